"""What Docker's answers mean: its JSON as our types. Pure, and it trusts nothing of what it reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import attrs

from netctl.model import ContainerRunState
from nodeagent.engine.docker_records import Start
from nodeagent.engine.docker_spec import ID_LABEL
from nodeagent.helper_messages import DockerNetwork, DockerSeen
from nodeagent.kernel_state import EngineContainer

LABELS: Final = ("com.docker.compose.project", "com.docker.compose.service")
"""Compose's labels that mean something to us, beside our own ``netctl.*``."""
_OURS: Final = "netctl."
_COMPOSE: Final = "com.docker.compose."
MOST_LABELS: Final = 32
MOST_TEXT: Final = 4096
NEVER: Final = "0001-01-01T00:00:00Z"
"""What Docker writes for a time that has not come."""
_DOCKER_ID: Final = re.compile(r"[0-9a-f]{64}\Z")
_CONTAINER: Final = re.compile(r"[0-9a-f]{32}\Z")
_ADDRESS: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}\Z")
_EXITED: Final = re.compile(r"(?:Exited|Restarting) \(([0-9]{1,3})\)")
_STATES: Final[dict[str, ContainerRunState]] = {
    "created": "created",
    "running": "running",
    "paused": "running",
    "restarting": "running",
    "exited": "exited",
    "dead": "failed",
    "removing": "unknown",
}
"""Docker's words. While it waits before it starts one again, that one runs: `stop` is what ends it."""


@attrs.frozen
class Endpoint:
    """A container's place on one of our networks, as Docker knows it."""

    id: str
    address: str


def is_docker_id(text: object) -> bool:
    """Tell whether it is of the form of Docker's ids."""
    return isinstance(text, str) and _DOCKER_ID.match(text) is not None


def our_id(labels: object) -> str:
    """Return the id of the broker's container that these labels name; empty: none."""
    value = labels.get(ID_LABEL) if isinstance(labels, Mapping) else None
    return value if isinstance(value, str) and _CONTAINER.match(value) else ""


def network_of(answer: Mapping[str, Any]) -> tuple[DockerNetwork, dict[str, Endpoint]] | None:
    """Return a network, and its endpoints by Docker's id of their containers; None: it makes no sense.

    Args:
        answer: Of ``GET /networks/ID``.
    """
    identifier, name = answer.get("Id"), answer.get("Name")
    if not is_docker_id(identifier) or not isinstance(name, str):
        return None
    endpoints: dict[str, Endpoint] = {}
    within = answer.get("Containers")
    for container, one in (within if isinstance(within, Mapping) else {}).items():
        if not isinstance(one, Mapping) or not is_docker_id(one.get("EndpointID")):
            continue
        # An endpoint without a container's id is one that Docker is about to take down.
        if is_docker_id(container):
            address = str(one.get("IPv4Address") or "").partition("/")[0]
            endpoints[container] = Endpoint(one["EndpointID"], address if _ADDRESS.match(address) else "")
    network = DockerNetwork(
        docker_id=str(identifier),
        name=name[:MOST_TEXT],
        internal=answer.get("Internal") is True,
        endpoints=tuple(sorted(one.id for one in endpoints.values())),
    )
    return network, endpoints


def seen_of(
    entry: Mapping[str, Any], networks: Iterable[DockerNetwork], endpoint: Endpoint | None, ours: str
) -> DockerSeen | None:
    """Return a container that is ours or on one of our networks; None: it is neither.

    Args:
        entry: Of the list that ``GET /containers/json`` answers.
        networks: Ours.
        endpoint: Its place on one of them now; None: it has none.
        ours: Its id at the broker, where the broker had it made; empty: somebody else made it.
    """
    identifier = entry.get("Id")
    if not is_docker_id(identifier):
        return None
    labels = entry.get("Labels")
    connected = endpoint is not None or _is_configured(entry, networks)
    if not connected and not ours:
        return None
    status = entry.get("Status")
    exited = _EXITED.match(status) if isinstance(status, str) else None
    state = _STATES.get(str(entry.get("State")), "unknown")
    return DockerSeen(
        docker_id=str(identifier),
        name=_name(entry.get("Names"), str(identifier)),
        image=str(entry.get("Image") or "")[:MOST_TEXT],
        state=state,
        ours=ours,
        labels=_labels(labels),
        endpoint="" if endpoint is None else endpoint.id,
        address="" if endpoint is None else endpoint.address,
        exit_code=int(exited[1]) & 0xFF if exited is not None and state == "exited" else None,
        connected=connected,
    )


def _is_configured(entry: Mapping[str, Any], networks: Iterable[DockerNetwork]) -> bool:
    settings = entry.get("NetworkSettings")
    configured = settings.get("Networks") if isinstance(settings, Mapping) else None
    if not isinstance(configured, Mapping):
        return False
    known = {network.docker_id for network in networks} | {network.name for network in networks}
    # Before its first start Docker keeps the name alone that its user gave.
    return any(
        (one.get("NetworkID") or name) in known if isinstance(one, Mapping) else name in known
        for name, one in configured.items()
    )


def _name(names: object, otherwise: str) -> str:
    """Return a container's own name: the others, with a second slash, are links to it."""
    for name in names if isinstance(names, list) else ():
        if isinstance(name, str) and name.count("/") == 1:
            return name.removeprefix("/")[:MOST_TEXT]
    return otherwise[:12]


def mean_something(labels: object) -> bool:
    """Tell whether some of these labels mean something to us."""
    return isinstance(labels, Mapping) and any(_means_something(name) for name in labels)


def without_images(labels: object, answer: Mapping[str, Any] | None) -> dict[str, object]:
    """Return a container's labels but for those that it has from its image: that is somebody else's word.

    Compose labels the images it builds with project and service, too. It is Compose that made the container
    if that has more of Compose's labels than its image.

    Args:
        labels: The container's.
        answer: Of ``GET /images/ID/json``; None: nobody knows, and none is left.
    """
    config = None if answer is None else answer.get("Config")
    if not isinstance(config, Mapping) or not isinstance(labels, Mapping):
        return {}
    images = config.get("Labels")
    known = images if isinstance(images, Mapping) else {}
    own = {name: value for name, value in labels.items() if name not in known or known[name] != value}
    if any(isinstance(name, str) and name.startswith(_COMPOSE) for name in own):
        own.update((name, labels[name]) for name in LABELS if name in labels)
    return own


def _means_something(name: object) -> bool:
    return isinstance(name, str) and (name.startswith(_OURS) or name in LABELS)


def _labels(labels: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(labels, Mapping):
        return ()
    meant = (
        (name, value)
        for name, value in sorted(labels.items())
        if isinstance(value, str)
        and _means_something(name)
        and len(name) <= MOST_TEXT
        and len(value) <= MOST_TEXT
    )
    return tuple(meant)[:MOST_LABELS]


def started_at(answer: Mapping[str, Any]) -> str:
    """Return when a container's command was last started, as Docker writes it; empty: never."""
    text = str(_state(answer).get("StartedAt") or "")[:64]
    return "" if text == NEVER else text


def container_of(answer: Mapping[str, Any], start: Start | None) -> EngineContainer:
    """Return what a container of ours is doing, and since which start.

    Args:
        answer: Of ``GET /containers/ID/json``.
        start: The last one that was asked for. None, as after our state was lost: one that was ever
            started counts as started at generation 1.
    """
    state = _state(answer)
    since = started_at(answer)
    if start is None:
        start = Start(1, "", 0)
    took_place = since != start.before
    generation = start.generation if took_place or start.failure else start.earlier
    word = str(state.get("Status"))
    now = _STATES.get(word, "unknown")
    if now == "running":
        message = {"paused": "paused in Docker", "restarting": "Docker starts it again"}.get(word, "")
        return EngineContainer("running", generation, None, message)
    if start.failure and not took_place:
        return EngineContainer("failed", generation, None, start.failure)
    if now == "exited":
        code = state.get("ExitCode")
        text = _one_line(state.get("Error"))
        if state.get("OOMKilled") is True:
            text = text or "it needed more memory than it may have"
        return EngineContainer("exited", generation, code & 0xFF if isinstance(code, int) else None, text)
    if now == "failed":
        text = _one_line(state.get("Error"))
        return EngineContainer("failed", generation, None, text or "Docker could not take it down whole")
    return EngineContainer(now, generation)


def is_refused_start(answer: Mapping[str, Any], driver: str) -> bool:
    """Tell whether Docker should keep a container running, and could not start it for want of our driver.

    Args:
        answer: Of ``GET /containers/ID/json``.
        driver: The name of ours.
    """
    state = _state(answer)
    host = answer.get("HostConfig")
    policy = host.get("RestartPolicy") if isinstance(host, Mapping) else None
    name = policy.get("Name") if isinstance(policy, Mapping) else ""
    error = str(state.get("Error") or "")
    # "remote: " begins what libnetwork passes on from a driver; the others are of one that was not there.
    refused = any(text in error for text in (f"remote: {driver}", f"{driver}.sock", f'plugin "{driver}"'))
    return name in ("always", "unless-stopped") and state.get("Status") in ("created", "exited") and refused


def _state(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    state = answer.get("State")
    return state if isinstance(state, Mapping) else {}


def _one_line(text: object) -> str:
    return " ".join(str(text or "").split())[:MOST_TEXT]


def hint(message: str) -> tuple[str, str]:
    """Return Docker's text made readable, and what can be done about it (empty: it says so itself)."""
    text = _one_line(message)
    for prefix in ("Error response from daemon: ", "OCI runtime create failed: ", "remote: "):
        text = text.removeprefix(prefix)
    low = text.lower()
    for needles, remedy in _HINTS:
        if any(needle in low for needle in needles):
            return text, remedy
    return text, ""


_HINTS: Final[tuple[tuple[tuple[str, ...], str], ...]] = (
    (
        ("pull access denied", "manifest unknown", "repository does not exist", "no such image"),
        "check the image's name; for a private one use docker login on the node as the agent's user",
    ),
    (("unauthorized", "no basic auth"), "use docker login on the node as the agent's user"),
    (("no such host", "connection refused", "i/o timeout"), "see whether the node reaches the registry"),
    (("no space left",), "make room on the node, as with docker system prune"),
    (("executable file not found", "no such file or directory"), "check the command after --"),
    (("permission denied",), "the image may need --writable, or --user root"),
    (("invalid mount config", "bind source path does not exist"), "make the volume's directory on the node"),
)
