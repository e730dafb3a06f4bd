"""What is done to Docker's containers: each function one job, on a thread that may wait for Docker."""

from __future__ import annotations

import contextlib
import http
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from netctl.errors import KernelError
from nodeagent.engine.docker_api import AnswerError, AwayError, DockerApi
from nodeagent.engine.docker_records import Records, Start
from nodeagent.engine.docker_spec import (
    ID_LABEL,
    RESTART_LABEL,
    Creation,
    check_network,
    container_body,
    names_for,
    network_body,
    restart_body,
)
from nodeagent.engine.docker_views import container_of, hint, is_docker_id, is_refused_start, started_at

ASK_SECONDS: Final = 30.0
"""How long a question, or a small change, may take."""
START_SECONDS: Final = 90.0
"""How long a start may take: Docker asks a driver that does not answer again after 1, 2, 4 and 8 s."""
STOP_GRACE: Final = 8
"""Seconds between SIGTERM and SIGKILL."""
STOP_SECONDS: Final = STOP_GRACE + 80.0
REMOVE_SECONDS: Final = 90.0
PULL_SILENCE: Final = 300.0
"""Seconds a registry may be silent: it unpacks a layer without a word."""
TOLD_SECONDS: Final = 0.5
"""Between two pieces of news about how far a pull is."""
_REMOVE_PAUSES: Final = (0.1, 0.3, 1.0, 2.0, 3.0)
_MOST_LAYERS: Final = 1024


@attrs.frozen
class Settings:
    """Of one engine.

    Attributes:
        network: Docker's network that the broker's containers are put on, and adopted ones.
        driver: Its network driver.
        ipam: Its IPAM driver.
        guarded: Paths of the node that no volume may reach.
    """

    network: str = "netctl"
    driver: str = "netctl"
    ipam: str = "netctl"
    guarded: tuple[str, ...] = ()


class CancelledError(Exception):
    """What was asked for is not wanted any more."""


def reason_of(error: Exception) -> str:
    """Return one line that tells a user why Docker did not do something, and what to do about it."""
    if isinstance(error, AnswerError):
        return str(KernelError(*hint(error.message)))
    if isinstance(error, AwayError):
        return str(KernelError(f"Docker is away: {error}", "see whether it runs on the node"))
    if isinstance(error, KernelError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def find(api: DockerApi, container: str) -> str:
    """Return Docker's id of a container of ours; empty: it has none."""
    for entry in api.list({"label": [f"{ID_LABEL}={container}"]}, ASK_SECONDS):
        if isinstance(entry, Mapping) and is_docker_id(entry.get("Id")):
            return str(entry["Id"])
    return ""


def ensure_network(api: DockerApi, settings: Settings, block: str) -> None:
    """Make Docker's network if it is not there.

    Raises:
        KernelError: Another one has its name.
    """
    seen = api.network(settings.network, ASK_SECONDS)
    if seen is None:
        body = network_body(settings.network, settings.driver, block, settings.ipam)
        try:
            api.make_network(body, ASK_SECONDS)
        except AnswerError as error:
            # Somebody was faster, as another container of the same run.
            if error.status != http.HTTPStatus.CONFLICT:
                raise
        seen = api.network(settings.network, ASK_SECONDS)
    if seen is not None:
        check_network(seen, settings.network, settings.driver, block)


def ensure_image(
    api: DockerApi, image: str, tell: Callable[[str], None], cancelled: Callable[[], bool]
) -> Mapping[str, Any]:
    """Return what Docker says of an image, which is fetched if it is not here.

    Raises:
        KernelError: It cannot be fetched.
        CancelledError: It is not wanted any more.
    """
    seen = api.image(image, ASK_SECONDS)
    if seen is not None:
        return seen
    tell("pulling")
    layers: dict[str, tuple[int, int]] = {}
    told_at, told = time.monotonic(), "pulling"
    for piece in api.pull(image, PULL_SILENCE):
        if cancelled():
            raise CancelledError
        if not isinstance(piece, Mapping):
            continue
        if "error" in piece:
            raise KernelError(*_failure(f"cannot pull {image}", str(piece["error"])))
        _note_layer(layers, piece)
        text = _progress(layers)
        if text != told and time.monotonic() - told_at >= TOLD_SECONDS:
            told_at, told = time.monotonic(), text
            tell(text)
    seen = api.image(image, ASK_SECONDS)
    if seen is None:
        raise KernelError(f"image {image} was pulled and is not there", "see docker images on the node")
    return seen


def _note_layer(layers: dict[str, tuple[int, int]], piece: Mapping[str, Any]) -> None:
    """Take in how far one layer is, of the lines of ``POST /images/create``."""
    layer, status, detail = piece.get("id"), piece.get("status"), piece.get("progressDetail")
    if not isinstance(layer, str) or len(layers) >= _MOST_LAYERS:
        return
    if status == "Downloading" and isinstance(detail, Mapping):
        current, total = detail.get("current"), detail.get("total")
        if isinstance(current, int) and isinstance(total, int) and total > 0:
            layers[layer] = (min(current, total), total)
    elif status in ("Download complete", "Pull complete", "Already exists") and layer in layers:
        layers[layer] = (layers[layer][1], layers[layer][1])


def _progress(layers: Mapping[str, tuple[int, int]]) -> str:
    total = sum(size for _, size in layers.values())
    return f"pulling {100 * sum(done for done, _ in layers.values()) // total} %" if total else "pulling"


def create(
    api: DockerApi,
    settings: Settings,
    creation: Creation,
    tell: Callable[[str], None],
    cancelled: Callable[[], bool],
) -> str:
    """Make a container, or find that it is made already; return Docker's id.

    Raises:
        KernelError: It cannot be made as it is wanted.
        CancelledError: It is not wanted any more.
    """
    docker_id = find(api, creation.container)
    if docker_id:
        return docker_id
    ensure_network(api, settings, creation.block)
    body = container_body(creation, ensure_image(api, creation.workload.image, tell, cancelled))
    if cancelled():
        raise CancelledError
    name, other = names_for(creation)
    try:
        return api.make(body, name, ASK_SECONDS)
    except AnswerError as error:
        # The name is somebody else's; or ours already, if Docker heard a request that we took for lost.
        if error.status != http.HTTPStatus.CONFLICT:
            raise
    return find(api, creation.container) or api.make(body, other, ASK_SECONDS)


def start(api: DockerApi, records: Records, container: str, docker_id: str, generation: int) -> bool:
    """Start a container as `generation`; return False if it is gone.

    Raises:
        KernelError: It cannot be started; that is kept.
        OSError: That it is to be started cannot be kept, so it was not.
    """
    answer = api.inspect(docker_id, ASK_SECONDS)
    if answer is None:
        return False
    since = started_at(answer)
    earlier = container_of(answer, records.get(container)).generation
    asked = Start(generation, since, earlier, docker_id=docker_id)
    records.put(container, asked)
    try:
        _restore_policy(api, docker_id, answer)
        api.start(docker_id, START_SECONDS)
    except AnswerError as error:
        if error.status == http.HTTPStatus.NOT_FOUND and api.inspect(docker_id, ASK_SECONDS) is None:
            return False
        text, remedy = hint(error.message)
        failure = KernelError(text, remedy)
        records.put(container, attrs.evolve(asked, failure=str(failure)[:4096]))
        raise failure from error
    return True


def _restore_policy(api: DockerApi, docker_id: str, answer: Mapping[str, Any]) -> None:
    """Give a container its restart policy back, which `stop` took."""
    labels = answer.get("Config", {}).get("Labels") or {}
    wanted = labels.get(RESTART_LABEL)
    now = answer.get("HostConfig", {}).get("RestartPolicy", {}).get("Name")
    if wanted == "always" and now != wanted:
        api.set_restart(docker_id, restart_body(wanted), ASK_SECONDS)


def stop(api: DockerApi, docker_id: str) -> None:
    """Stop a container so that it stays so.

    Docker starts one that is to restart ``always`` again when it is itself started, stopped or not.
    """
    answer = api.inspect(docker_id, ASK_SECONDS)
    if answer is None:
        return
    if answer.get("HostConfig", {}).get("RestartPolicy", {}).get("Name") == "always":
        api.set_restart(docker_id, restart_body("no"), ASK_SECONDS)
    api.stop(docker_id, STOP_GRACE, STOP_SECONDS)


def remove(api: DockerApi, container: str, docker_id: str) -> None:
    """Take a container out of Docker; when this returns Docker has none of it.

    Raises:
        AnswerError: Docker cannot, however often it is asked.
    """
    target = docker_id or find(api, container)
    if not target:
        return
    for pause in _REMOVE_PAUSES:
        try:
            api.remove(target, REMOVE_SECONDS)
        except AnswerError as error:
            # 409: it is being removed already; 500: something of it was in use for a moment.
            if error.status not in (http.HTTPStatus.CONFLICT, http.HTTPStatus.INTERNAL_SERVER_ERROR):
                raise
        if not _is_there(api, target):
            return
        time.sleep(pause)
    api.remove(target, REMOVE_SECONDS)


def _is_there(api: DockerApi, docker_id: str) -> bool:
    return any(
        isinstance(entry, Mapping) and entry.get("Id") == docker_id
        for entry in api.list({"id": [docker_id]}, ASK_SECONDS)
    )


def adopt(api: DockerApi, settings: Settings, name: str, block: str) -> str:
    """Connect a container without a network to ours; return Docker's id of it. Done twice it is no error.

    Raises:
        KernelError: There is no such container, it has another network, or it cannot be connected; then
            it is as it was.
    """
    answer = api.inspect(name, ASK_SECONDS)
    if answer is None or not is_docker_id(answer.get("Id")):
        raise KernelError(f"Docker has no container {name!r} here", "see docker ps on the node")
    docker_id = str(answer["Id"])
    networks = (answer.get("NetworkSettings") or {}).get("Networks") or {}
    if not (answer.get("State") or {}).get("Running"):
        raise KernelError(f"container {name} does not run", "start it first, with --network none")
    mode = (answer.get("HostConfig") or {}).get("NetworkMode")
    if mode == "none" and set(networks) == {settings.network}:
        return docker_id
    if mode != "none" or set(networks) - {"none"}:
        has = ", ".join(sorted(set(networks) - {"none"})) or str(mode)
        raise KernelError(
            f"container {name} has a network already: {has[:200]}",
            f"only one that was started with --network none can join so; connect this one by Docker: "
            f"docker network connect NETWORK {name}",
        )
    ensure_network(api, settings, block)
    api.disconnect("none", docker_id, ASK_SECONDS)
    try:
        api.connect(settings.network, docker_id, START_SECONDS)
    except BaseException:
        # Whatever it was, the container is left as it was.
        with contextlib.suppress(AnswerError, AwayError):
            api.connect("none", docker_id, ASK_SECONDS)
        raise
    return docker_id


def revive(api: DockerApi, settings: Settings, docker_id: str) -> bool:
    """Start a container if Docker should keep it running and our driver was not there; tell whether."""
    answer = api.inspect(docker_id, ASK_SECONDS)
    if answer is None or not is_refused_start(answer, settings.driver):
        return False
    api.start(docker_id, START_SECONDS)
    return True


def _failure(what: str, message: str) -> tuple[str, str]:
    text, remedy = hint(message)
    return f"{what}: {text}", remedy
