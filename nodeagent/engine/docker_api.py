"""What is asked of Docker, and how it fails: the docker SDK as the rest of the engine sees it.

Implemented in `nodeagent.engine.docker`, over the Engine API from 1.41 on
(docs.docker.com/reference/api/engine). JSON is passed as it came: `docker_views` makes sense of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import attrs

Json = Mapping[str, Any]


class AwayError(Exception):
    """Docker cannot be reached, does not answer in time, or answers what makes no sense."""


@attrs.define(slots=False)
class AnswerError(Exception):
    """Docker answered that it will not do it.

    Attributes:
        status: HTTP's.
        message: Docker's text.
    """

    status: int
    message: str

    def __str__(self) -> str:
        return self.message


class Stream(Protocol):
    """An endless answer."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None:
        """End it, from any thread."""


class DockerApi(Protocol):
    """One thread's way to ask Docker. `seconds`: how long it may take.

    Every method raises `AwayError`, and `AnswerError` where it does not say otherwise.
    """

    version: str
    path: str

    def events(self, filters: Mapping[str, list[str]]) -> Stream:
        """Begin to hear what happens (``GET /events``)."""

    def networks(self, seconds: float) -> list[Any]:
        """List networks whose driver's name contains ours."""

    def network(self, name: str, seconds: float) -> Json | None:
        """Look at one network, by name or id; None: there is none."""

    def make_network(self, body: Json, seconds: float) -> None:
        """Make a network."""

    def list(self, filters: Mapping[str, list[str]], seconds: float) -> list[Any]:
        """List containers, stopped ones too."""

    def inspect(self, name: str, seconds: float) -> Json | None:
        """Look at one container, by id or name; None: there is none."""

    def image(self, name: str, seconds: float) -> Json | None:
        """Look at an image; None: it is not here."""

    def pull(self, name: str, silence: float) -> Iterator[Any]:
        """Fetch an image; yield how far it is. `silence`: seconds between two pieces of that."""

    def make(self, body: Json, name: str, seconds: float) -> str:
        """Make a container; return Docker's id."""

    def start(self, name: str, seconds: float) -> None:
        """Start a container; one that runs is no error."""

    def stop(self, name: str, grace: int, seconds: float) -> None:
        """Stop a container, by force after `grace` seconds; one that does not run is no error."""

    def remove(self, name: str, seconds: float) -> None:
        """Kill and remove a container and its anonymous volumes; one that is gone is no error."""

    def set_restart(self, name: str, policy: Json, seconds: float) -> None:
        """Give a container another restart policy."""

    def connect(self, network: str, name: str, seconds: float) -> None:
        """Connect a container to a network."""

    def disconnect(self, network: str, name: str, seconds: float) -> None:
        """Disconnect a container from a network."""

    def make_exec(self, name: str, body: Json, seconds: float) -> str:
        """Make ready a command in a container; return Docker's id of it."""

    def exec_state(self, exec_id: str, seconds: float) -> Json | None:
        """Look at a command; None: there is none (any more)."""

    def resize_exec(self, exec_id: str, rows: int, columns: int, seconds: float) -> None:
        """Tell the size of a command's terminal."""

    def archive(self, name: str, path: str, silence: float) -> Iterator[bytes]:
        """Read a tar archive of a path in a container."""

    def put_archive(self, name: str, path: str, data: Iterable[bytes], silence: float) -> None:
        """Unpack a tar archive in a directory of a container."""
