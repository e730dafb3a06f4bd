"""The driver's part of the agent: what it hears from Docker, and what it has to tell to whom."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from netctl.model import ContainerStatus, DockerContainer
from netctl.wire.messages import Attach, Detach, Done, Failure, NodeError, ReserveAddress
from nodeagent.driver.view import DriverView
from nodeagent.endpoints import Endpoints
from nodeagent.helper_messages import DockerAway, DockerChanged, DockerListed


class Driver:
    """Docker's network and IPAM driver on this node.

    One turn of the agent is: `receive` (calls, and pings, which must not wait), then what the helper had to
    say by `hear`, then work on `endpoints`, then `settle`, then `requests` if the broker listens.

    Args:
        networks: The file in which networks are kept for good.
        endpoints: The file in which endpoints are kept: gone after a reboot, as they are.
        socket_path: Of the process that holds the plugin's socket.
        exec_root: Docker's, below which its namespaces are.
        monotonic: Seconds of a clock that is never set.
    """

    def __init__(
        self,
        networks: Path,
        endpoints: Path,
        socket_path: Path,
        exec_root: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        raise NotImplementedError

    @property
    def endpoints(self) -> Endpoints:
        """What there is now; a persistent value, another object whenever it changed."""
        raise NotImplementedError

    def readers(self) -> tuple[int, ...]:
        """Return the descriptors to wait for; when one is readable, call `receive`."""
        raise NotImplementedError

    def deadline(self) -> float:
        """Return when `receive` has something to do by itself (by the clock `monotonic`)."""
        raise NotImplementedError

    def receive(self, view: DriverView) -> None:
        """Take what Docker asks, and answer what can be answered; in every turn, without waiting.

        Calls that wait for the broker are tried again with what it wants by now.
        """
        raise NotImplementedError

    def hear(self, event: DockerListed | DockerChanged | DockerAway) -> None:
        """Take what the engine says of Docker's containers and networks."""
        raise NotImplementedError

    def wants_list(self) -> bool:
        """Tell whether the helper should be asked for `ListDocker` now; true once, then not for seconds."""
        raise NotImplementedError

    def settle(self, built: Callable[[str], str | None]) -> None:
        """Answer the Joins that wait for their port.

        Args:
            built: Says of an endpoint's key: empty, once its port stands and, if its namespace is there
                already, its layer 1 too; why that failed; None: not yet.
        """
        raise NotImplementedError

    def containers(self) -> tuple[DockerContainer, ...] | None:
        """Return what `Hello.docker` says, which counts as told from then on; None: not known now."""
        raise NotImplementedError

    def statuses(self) -> tuple[ContainerStatus, ...]:
        """Return the states of Docker's users' containers; the same object while nothing changed."""
        raise NotImplementedError

    def requests(self) -> tuple[tuple[int, Attach | Detach | ReserveAddress], ...]:
        """Return what the broker is to be asked now, each with a token for `heard`.

        Call it only while the broker listens (after its answer to Hello): what is returned counts as asked.
        """
        raise NotImplementedError

    def heard(self, token: int, answer: Done | Failure) -> None:
        """Take the broker's answer to a request."""
        raise NotImplementedError

    def broker_gone(self) -> None:
        """The session ended: what was asked is not answered any more, and is asked again after the next."""
        raise NotImplementedError

    def errors(self) -> tuple[NodeError, ...]:
        """Return what is wrong with Docker's containers here; the same object while nothing changed."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the holder; it refuses Docker's calls from then on."""
        raise NotImplementedError
