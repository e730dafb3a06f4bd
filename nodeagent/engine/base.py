"""What the agent asks of a container engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import attrs

from netctl.model import Workload
from nodeagent.helper_messages import DockerAway, DockerChanged, DockerListed
from nodeagent.kernel_state import EngineContainer

Direction = Literal["out", "in"]
Changed = Callable[[str, EngineContainer | None], None]
"""Told of a container's id and its new state; None: it is gone."""
Ended = Callable[[int, str], None]
"""Told of an exit code, and of why where that says too little."""
DockerNews = DockerListed | DockerChanged | DockerAway
"""What Docker's containers are and become, those of its own users included."""


@attrs.frozen
class ExecRequest:
    """A command to run inside a container.

    Attributes:
        tty: The command gets a terminal of the container's own, which becomes the controlling one.
        stdin: Descriptor the command reads; the engine duplicates what it needs, the caller closes its own.
            With a terminal, all three are one UNIX socket: the terminal's master is sent by it (SCM_RIGHTS,
            beside one byte) before the command runs; it ends without one if the command cannot run.
        stdout: Descriptor it writes.
        stderr: Descriptor it writes.
        rows: Of the terminal; 0: not known.
        columns: Likewise.
    """

    argv: Sequence[str]
    env: Sequence[tuple[str, str]]
    user: str
    tty: bool
    stdin: int
    stdout: int
    stderr: int
    rows: int = 0
    columns: int = 0


class Engine(Protocol):
    """One container engine. No call waits for a container's command; what takes time ends in an event.

    A container in state ``unknown`` is one that the engine cannot ask about now: nothing is to be done to it.
    """

    name: str
    removes_later: bool

    def containers(self) -> Mapping[str, EngineContainer]:
        """Return every container of ours, by id, without starting a process."""

    def namespace(self, container: str) -> int:
        """Return a descriptor of the container's network namespace, kept open by the engine.

        Raises:
            KernelError: The container has none (any more).
        """

    def create(self, container: str, name: str, address: str, workload: Workload, block: str = "") -> None:
        """Begin to make the container's namespaces; it goes from ``creating`` to ``created`` in an event.

        Args:
            container: Its id.
            name: What its user calls it.
            address: Its own.
            workload: What it runs.
            block: The node's, where the engine makes a network of its own for it.

        Raises:
            KernelError: It cannot be made.
        """

    def start(self, container: str, generation: int) -> None:
        """Run the container's command; an event says ``running``, or ``failed`` with a message.

        Raises:
            KernelError: The container does not exist.
        """

    def stop(self, container: str) -> None:
        """SIGTERM, SIGKILL after eight seconds; an event says ``exited``."""

    def remove(self, container: str) -> None:
        """Kill and forget the container.

        When this returns its namespaces and processes are gone; with an engine that `removes_later`, once
        an event says that its state is None. Then asking again while it goes is no error.
        """

    def exec(self, container: str, request: ExecRequest, ended: Ended) -> int:
        """Run a command in the container; return a handle for `kill_exec` and `resize_exec`.

        `ended` is called from `dispatch` with the exit code (125 and a message if it could not run).

        Raises:
            KernelError: The container is not running.
        """

    def kill_exec(self, handle: int) -> None:
        """The user went away: end the command."""

    def copy(
        self,
        container: str,
        path: str,
        direction: Direction,
        descriptor: int,
        ended: Ended,
    ) -> int:
        """Copy files; return a handle for `kill_exec`. `ended` is called from `dispatch`, as by `exec`.

        Args:
            container: Its id; it need not run where the engine can do without.
            path: In the container, absolute.
            direction: ``out``: write a tar archive of `path` (members named from its last part on) to the
                descriptor; ``in``: read one from it and unpack it in the directory `path`.
            descriptor: Of a pipe; the engine duplicates it, the caller closes its own.
            ended: Called with 0, or with another exit code and why.

        Raises:
            KernelError: The container does not exist, or cannot be copied from now.
        """

    def logs(self, container: str, tail: int | None, *, follow: bool, ended: Ended) -> tuple[int, int]:
        """Begin to read a container's output; see `nodeagent.helper_messages.OpenLogs`.

        Returns:
            A handle (0: none, and `ended` is never called) and a new descriptor.

        Raises:
            KernelError: The container does not exist.
        """

    def descriptors(self) -> Sequence[int]:
        """Return the descriptors to poll for readability; when one is ready, call `dispatch`."""

    def dispatch(self, changed: Changed) -> None:
        """Handle what came in; `changed` is called with each container whose state changed (None: gone)."""


@runtime_checkable
class Docker(Engine, Protocol):
    """The engine `docker`: beside the broker's containers it knows those of Docker's own users.

    `exec`, `copy` and `logs` take those on our networks too, by the first 32 digits of Docker's id.
    """

    def listen(self, hear: Callable[[DockerNews], None]) -> None:
        """Have `hear` called from `dispatch` with what Docker's containers are; before that it is kept."""

    def list_docker(self) -> None:
        """Look through everything of Docker's on our networks; `DockerListed` follows if Docker is there."""

    def revive(self) -> None:
        """Start what Docker should keep running and could not start for want of our driver."""

    def adopt(self, container: str, block: str, ended: Ended) -> int:
        """Connect a running container that has no network to ours; return a handle that names it.

        `ended` is called from `dispatch`: with 0 and Docker's whole id of the container once it is
        connected, else with another exit code and why not.

        Args:
            container: Docker's name or id of it.
            block: The node's, which Docker's network is made with.
            ended: Called once.

        Raises:
            KernelError: Docker is away.
        """
