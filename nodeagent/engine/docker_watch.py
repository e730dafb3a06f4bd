"""Hears from Docker what its containers become, and looks at them: what `docker` news are made of.

    Docker --events--> reader thread --queue--> viewer thread --GET networks, list--> news

The reader keeps one connection open and makes it again with growing pauses. Everything is looked at by the
one viewer, so that each piece of news is of a later moment than the one before. It never inspects a
container: while one is being started Docker answers for it only after our own driver has; its entry in the
list is to be had at any time.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import attrs

from netctl import log
from nodeagent.engine.base import DockerNews
from nodeagent.engine.docker_api import AnswerError, AwayError, DockerApi, Stream
from nodeagent.engine.docker_views import (
    Endpoint,
    is_docker_id,
    mean_something,
    network_of,
    our_id,
    seen_of,
    without_images,
)
from nodeagent.helper_messages import DockerAway, DockerChanged, DockerListed, DockerNetwork, DockerSeen

FIRST_PAUSE: Final = 0.1
LAST_PAUSE: Final = 2.0
"""Seconds between two tries to reach Docker: doubled from the first to the last."""
STEADY: Final = 5.0
"""Seconds a contact must have lasted for the pauses to begin anew."""
LIST_SECONDS: Final = 15.0
"""How long one question about networks or containers may take."""
LAG: Final = 5.0
"""Seconds by which a list may be behind the events."""
MOST_WAITING: Final = 4096
"""Events that wait to be looked at; if there are more, everything is looked at instead."""
MOST_LINE: Final = 2**20
MOST_IMAGES: Final = 256
"""Images whose labels are remembered."""
CONTAINER_EVENTS: Final = ("create", "start", "die", "rename", "destroy", "update", "pause", "unpause")
NETWORK_EVENTS: Final = ("create", "connect", "disconnect", "destroy")


@attrs.frozen
class Listed:
    """All that Docker has of the broker's containers: ids by Docker's ids, at one moment."""

    ours: Mapping[str, str]


@attrs.frozen
class OursChanged:
    """Something happened to one of the broker's containers. With `gone` it was removed."""

    container: str
    docker_id: str
    gone: bool = False


Tell = Callable[[DockerNews | Listed | OursChanged], None]
Knows = Callable[[str, str], bool]


@attrs.frozen
class _Contact:
    """Docker can be reached (again)."""


@attrs.frozen
class _Lost:
    reason: str


@attrs.frozen
class _Look:
    """Everything is to be looked at."""


_Queued = _Contact | _Lost | _Look | Mapping[str, Any]


class DockerWatch:
    """The two threads. They begin with `start`.

    Args:
        connect: Makes a api; called in each thread. Raises AwayError.
        driver: Name of our network driver.
        knows: Says of one of the broker's containers whether it is that container of Docker's (second), which
            is labelled so.
        tell: Called from the viewer thread with all that is found.
    """

    def __init__(self, connect: Callable[[], DockerApi], driver: str, knows: Knows, tell: Tell) -> None:
        self._connect = connect
        self._driver = driver
        self._knows = knows
        self._tell = tell
        self._queue: queue.Queue[_Queued] = queue.Queue()
        self._closed = threading.Event()
        self._stream: Stream | None = None
        self._stream_lock = threading.Lock()
        self._overflowed = False

    def start(self) -> None:
        """Begin to hear and to look."""
        threading.Thread(target=self._read, name="docker-events", daemon=True).start()
        threading.Thread(target=self._view, name="docker-views", daemon=True).start()

    def look(self) -> None:
        """Have everything looked at, if Docker is there."""
        self._queue.put(_Look())

    def close(self) -> None:
        """End both threads, as soon as they notice."""
        self._closed.set()
        self._hang_up()
        self._queue.put(_Lost(""))

    def _hang_up(self) -> None:
        with self._stream_lock:
            if self._stream is not None:
                # Whatever it says about a socket that has ended by itself.
                with contextlib.suppress(Exception):
                    self._stream.close()

    # --- the reader -----------------------------------------------------------------------------------

    def _read(self) -> None:
        pause = FIRST_PAUSE
        while not self._closed.is_set():
            began = time.monotonic()
            try:
                self._listen()
                reason = "it ended the connection"
            except (AwayError, AnswerError) as error:
                reason = str(error)
            except Exception as error:  # noqa: BLE001 - whatever a stream of garbage makes of the library
                reason = f"{type(error).__name__}: {error}"
            self._queue.put(_Lost(reason))
            if time.monotonic() - began > STEADY:
                pause = FIRST_PAUSE
            self._closed.wait(pause)
            pause = min(2 * pause, LAST_PAUSE)

    def _listen(self) -> None:
        api = self._connect()
        stream = api.events(
            {
                "type": ["container", "network"],
                "event": sorted({*CONTAINER_EVENTS, *NETWORK_EVENTS}),
            }
        )
        with self._stream_lock:
            self._stream = stream
        try:
            self._queue.put(_Contact())
            for event in _events(stream):
                if self._closed.is_set():
                    return
                self._take(event)
        finally:
            self._hang_up()
            with self._stream_lock:
                self._stream = None

    def _take(self, event: Mapping[str, Any]) -> None:
        if self._queue.qsize() < MOST_WAITING:
            self._queue.put(event)
            self._overflowed = False
        elif not self._overflowed:
            self._overflowed = True
            self._queue.put(_Look())

    # --- the viewer -----------------------------------------------------------------------------------

    def _view(self) -> None:
        view: _View | None = None
        away = ""
        while not self._closed.is_set():
            item = self._queue.get()
            if self._closed.is_set():
                return
            try:
                if isinstance(item, _Contact):
                    view = _View(self._connect(), self._driver, self._knows, self._tell)
                    view.list(fresh=True)
                    away = ""
                elif isinstance(item, _Lost):
                    view = None
                    if away != item.reason:
                        away = item.reason
                        self._tell(DockerAway(away[:4096] or "it ended the connection"))
                elif view is not None and isinstance(item, _Look):
                    view.list(fresh=False)
                elif view is not None and isinstance(item, Mapping):
                    view.handle(item)
            except (AwayError, AnswerError) as error:
                view = None
                log.get_logger().warning("Docker does not answer", reason=str(error))
                # The reader makes a new contact, and everything is looked at then.
                self._hang_up()


@attrs.frozen
class _Death:
    """A container's end, as an event told it.

    Attributes:
        at: Monotonic seconds.
    """

    exit_code: int | None
    at: float


class _View:
    """What is known of Docker's containers during one contact."""

    def __init__(self, api: DockerApi, driver: str, knows: Knows, tell: Tell) -> None:
        self._api = api
        self._driver = driver
        self._knows = knows
        self._tell = tell
        self._networks: dict[str, DockerNetwork] = {}
        self._endpoints: dict[str, dict[str, Endpoint]] = {}
        self._seen: dict[str, DockerSeen] = {}
        # An engine tells that a container died before its list does, and no event follows.
        self._died: dict[str, _Death] = {}
        # By id, which is a hash of what they are.
        self._images: dict[str, Mapping[str, Any]] = {}

    def list(self, *, fresh: bool) -> None:
        """Look at everything, and tell it."""
        self._networks.clear()
        self._endpoints.clear()
        for network in self._api.networks(LIST_SECONDS):
            # The list names no endpoints, and its filter by driver takes what only begins like ours.
            if isinstance(network, Mapping) and network.get("Driver") == self._driver:
                self._look_at_network(str(network.get("Id")))
        self._seen = {}
        for entry in self._api.list({}, LIST_SECONDS):
            seen = self._see(entry) if isinstance(entry, Mapping) else None
            if seen is not None:
                self._seen[seen.docker_id] = seen
        self._tell(DockerListed(tuple(self._seen.values()), tuple(self._networks.values()), fresh=fresh))
        self._tell(Listed({seen.ours: seen.docker_id for seen in self._seen.values() if seen.ours}))

    def handle(self, event: Mapping[str, Any]) -> None:
        """Look at what an event is about, and tell it."""
        kind, action = event.get("Type"), str(event.get("Action"))
        actor = event.get("Actor")
        identifier = actor.get("ID") if isinstance(actor, Mapping) else None
        attributes = actor.get("Attributes") if isinstance(actor, Mapping) else None
        if not is_docker_id(identifier) or not isinstance(attributes, Mapping):
            return
        if kind == "network":
            if attributes.get("type") == self._driver:
                self._network_event(action, str(identifier), attributes.get("container"))
        elif kind == "container":
            self._container_event(action, str(identifier), attributes)

    def _network_event(self, action: str, identifier: str, container: object) -> None:
        if action == "destroy":
            self._networks.pop(identifier, None)
            self._endpoints.pop(identifier, None)
            return
        self._look_at_network(identifier)
        if not is_docker_id(container):
            return
        docker_id = str(container)
        if action == "connect":
            self._died.pop(docker_id, None)
        known = self._seen.get(docker_id)
        endpoint = self._endpoint_of(docker_id)
        if action == "connect" and known is not None and endpoint is not None:
            # All else is known, and whoever is to open its port waits for this.
            self._note(docker_id, attrs.evolve(
                known, endpoint=endpoint.id, address=endpoint.address, connected=True
            ))  # fmt: skip
            return
        self._refresh(docker_id)

    def _container_event(self, action: str, docker_id: str, attributes: Mapping[str, Any]) -> None:
        ours = self._ours(attributes, docker_id)
        if action == "destroy":
            self._died.pop(docker_id, None)
            if self._seen.pop(docker_id, None) is not None:
                self._tell(DockerChanged(docker_id, None))
            if ours:
                self._tell(OursChanged(ours, docker_id, gone=True))
            return
        if action == "die":
            code = attributes.get("exitCode")
            told = int(code) & 0xFF if isinstance(code, str) and code.isdecimal() else None
            self._died[docker_id] = _Death(told, time.monotonic())
        elif action == "start":
            self._died.pop(docker_id, None)
        # What is on none of our networks when it is made comes to one by an event of that network.
        if action == "create" or docker_id in self._seen:
            self._refresh(docker_id)
        if ours:
            self._tell(OursChanged(ours, docker_id))

    def _ours(self, labels: object, docker_id: str) -> str:
        """Return the id of the broker's container that Docker calls `docker_id`; empty: it is none."""
        labelled = our_id(labels)
        return labelled if labelled and self._knows(labelled, docker_id) else ""

    def _refresh(self, docker_id: str) -> None:
        entries = self._api.list({"id": [docker_id]}, LIST_SECONDS)
        seen = None
        for entry in entries:
            if isinstance(entry, Mapping) and entry.get("Id") == docker_id:
                seen = self._see(entry)
        self._note(docker_id, seen)

    def _note(self, docker_id: str, seen: DockerSeen | None) -> None:
        if self._seen.get(docker_id) == seen:
            return
        if seen is None:
            del self._seen[docker_id]
        else:
            self._seen[docker_id] = seen
        self._tell(DockerChanged(docker_id, seen))

    def _see(self, entry: Mapping[str, Any]) -> DockerSeen | None:
        docker_id = str(entry.get("Id"))
        ours = self._ours(entry.get("Labels"), docker_id)
        labels = entry.get("Labels")
        if not ours and mean_something(labels):
            entry = {**entry, "Labels": without_images(labels, self._image(entry.get("ImageID")))}
        seen = seen_of(entry, self._networks.values(), self._endpoint_of(docker_id), ours)
        death = self._died.get(docker_id)
        if seen is None or seen.state != "running" or death is None:
            return seen
        if time.monotonic() - death.at > LAG:
            # A start of it was not heard of.
            del self._died[docker_id]
            return seen
        if entry.get("State") == "restarting":
            return seen
        return attrs.evolve(seen, state="exited", exit_code=death.exit_code)

    def _image(self, identifier: object) -> Mapping[str, Any] | None:
        """Return what Docker says of an image; None: nothing that could be understood."""
        if not isinstance(identifier, str):
            return None
        answer: object = self._images.get(identifier)
        if answer is None:
            with contextlib.suppress(AnswerError):
                answer = self._api.image(identifier, LIST_SECONDS)
        if not isinstance(answer, Mapping):
            return None
        if len(self._images) >= MOST_IMAGES:
            self._images.clear()
        self._images[identifier] = answer
        return answer

    def _endpoint_of(self, docker_id: str) -> Endpoint | None:
        """Return a container's endpoint on any of our networks; Docker lets it have one."""
        for endpoints in self._endpoints.values():
            if docker_id in endpoints:
                return endpoints[docker_id]
        return None

    def _look_at_network(self, identifier: str) -> None:
        answer = self._api.network(identifier, LIST_SECONDS)
        understood = None if answer is None else network_of(answer)
        if understood is None:
            self._networks.pop(identifier, None)
            self._endpoints.pop(identifier, None)
            return
        network, endpoints = understood
        self._networks[identifier] = network
        self._endpoints[identifier] = endpoints


def _events(stream: Stream) -> Iterator[Mapping[str, Any]]:
    """Return the events of a stream: one JSON object a line. What is none is left out."""
    buffer = b""
    for chunk in stream:
        buffer += chunk
        *lines, buffer = buffer.split(b"\n")
        if len(buffer) > MOST_LINE:
            raise AwayError("what it sends are no events")
        for line in lines:
            with contextlib.suppress(ValueError):
                event = json.loads(line) if line.strip() else None
                if isinstance(event, Mapping):
                    yield event
