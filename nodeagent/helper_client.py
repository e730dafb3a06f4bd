"""The agent's side of the privileged child: one request at a time, events in between."""

from __future__ import annotations

import select
import socket
import subprocess
from collections.abc import Sequence
from typing import Any, Final, Protocol, TypeVar

from netctl.errors import KernelError, ProtocolError
from nodeagent import helper_wire
from nodeagent.helper_messages import (
    Adopt,
    Apply,
    ChecksAnswer,
    ContainerChanged,
    DockerAway,
    DockerChanged,
    DockerListed,
    Drifted,
    ExecEnded,
    FactsAnswer,
    FactsChanged,
    GetChecks,
    GetFacts,
    GetSandbox,
    KillExec,
    ListDocker,
    Observe,
    Observed,
    OpenCopy,
    Opened,
    OpenExec,
    OpenLogs,
    PathsChanged,
    Refused,
    Results,
    ReviveDocker,
    SandboxAnswer,
    SandboxChanged,
    SetProbes,
)
from nodeagent.helper_process import start
from nodeagent.kernel_state import HostChecks, HostFacts, HostState, ProbeTarget
from nodeagent.ops import Op

ANSWER_SECONDS: Final = 120.0
"""How long one answer may take: a node's whole state applied on a busy machine."""
CLOSE_SECONDS: Final = 10.0
"""How long the child may take to end by itself."""

Event = (
    ContainerChanged | ExecEnded | Drifted | FactsChanged | PathsChanged | SandboxChanged | DockerListed
    | DockerChanged | DockerAway
)  # fmt: skip
T = TypeVar("T")


class Helper(Protocol):
    """What the agent asks of its privileged child."""

    def facts(self, underlay: str | None = None) -> HostFacts:
        """Say what the host is. `underlay`: the address, or its link; None: the default route's link's.

        Raises:
            KernelError: No such address on this host.
            UnavailableError: The child is gone.
        """

    def checks(self, peers: Sequence[str] = ()) -> HostChecks:
        """Look at what of the host may be in our way. `peers`: addresses whose routes are looked up.

        Raises:
            KernelError: Looking failed.
            UnavailableError: The child is gone.
        """

    def observe(self) -> HostState:
        """Read everything of ours.

        Raises:
            KernelError: Reading failed.
            UnavailableError: The child is gone.
        """

    def apply(self, operations: Sequence[Op]) -> tuple[str, ...]:
        """Do `operations` in order; return one text each: empty, or why it failed or was not tried.

        Raises:
            KernelError: The child refused them all as not allowed; nothing was changed.
            UnavailableError: The child is gone; some may have been done.
        """

    def open_exec(self, request: OpenExec) -> tuple[int, tuple[int, ...]]:
        """Run a command in a container.

        Returns:
            Its handle, and descriptors that are the caller's to close: with a terminal its master, else
            stdin (to write), stdout and stderr (to read).

        Raises:
            KernelError: The container is not running here.
            UnavailableError: The child is gone.
        """

    def kill_exec(self, handle: int) -> None:
        """The user went away: end the command.

        Raises:
            UnavailableError: The child is gone.
        """

    def open_logs(self, request: OpenLogs) -> tuple[int, int]:
        """Read a container's output; see `OpenLogs`.

        Returns:
            A handle (0: of a file, which has no end of its own) and a descriptor, the caller's to close.

        Raises:
            KernelError: There is no such container here.
            UnavailableError: The child is gone.
        """

    def open_copy(self, request: OpenCopy) -> tuple[int, int]:
        """Copy files out of a container or into it; see `OpenCopy`.

        Returns:
            A handle for `kill_exec`, and a descriptor, the caller's to close.

        Raises:
            KernelError: There is no such container here, or nothing can be copied from it now.
            UnavailableError: The child is gone.
        """

    def adopt(self, request: Adopt) -> int:
        """Have Docker connect a running container to our network; return a handle: `ExecEnded` follows.

        Raises:
            KernelError: This node has no Docker.
            UnavailableError: The child is gone.
        """

    def list_docker(self) -> None:
        """Have Docker's containers looked through: `DockerListed` or `DockerAway` follows.

        Raises:
            KernelError: This node has no Docker.
            UnavailableError: The child is gone.
        """

    def revive_docker(self) -> None:
        """Have the containers started that Docker should keep running, and could not for want of us.

        Raises:
            KernelError: This node has no Docker.
            UnavailableError: The child is gone.
        """

    def set_probes(self, targets: Sequence[ProbeTarget]) -> None:
        """Have these ways probed from now on, and no others; `PathsChanged` tell what is found.

        Of a way that is new, and of each that is found otherwise than told before.

        Raises:
            KernelError: The child refused them as not allowed; what it probes is as it was.
            UnavailableError: The child is gone.
        """

    def sandbox_present(self, endpoint: str) -> bool:
        """Tell whether the namespace of a watched Docker endpoint is there; False too if none is watched.

        Raises:
            UnavailableError: The child is gone.
        """

    def events(self) -> list[Event]:
        """Return what happened since the last call, without waiting.

        Raises:
            UnavailableError: The child is gone.
        """

    def fileno(self) -> int:
        """Return the descriptor to poll: readable when `events` has something to say or the child ended.

        Events that came in during another call are kept, and do not make it readable: call `events`
        after every call, too.
        """

    def close(self) -> None:
        """End the child, and wait until it is gone."""


class HelperClient:
    """The privileged child in a process of its own. For one thread.

    Any failure of the socket ends this object's use: close it and start another child.

    Args:
        sock: Our end of the SOCK_SEQPACKET pair.
        process: The child, to wait for in `close`; None: whoever made the pair looks after it.
    """

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        sock.settimeout(ANSWER_SECONDS)
        self._socket = sock
        self._process = process
        self._events: list[Event] = []

    @classmethod
    def spawn(cls, arguments: Sequence[str]) -> HelperClient:
        """Start the child. It needs root; it ends when this object is closed or this process ends.

        Args:
            arguments: For `python -m nodeagent.helper`, all but ``--socket-fd``.

        Raises:
            UnavailableError: It cannot be started.
        """
        return cls(*start(arguments))

    @property
    def pid(self) -> int:
        """The child's process id; 0 where it is not ours to know."""
        return 0 if self._process is None else self._process.pid

    def facts(self, underlay: str | None = None) -> HostFacts:
        """See `Helper`."""
        return self._call(GetFacts(underlay), FactsAnswer).facts

    def checks(self, peers: Sequence[str] = ()) -> HostChecks:
        """See `Helper`."""
        return self._call(GetChecks(tuple(peers)), ChecksAnswer).checks

    def observe(self) -> HostState:
        """See `Helper`."""
        return self._call(Observe(), Observed).state

    def apply(self, operations: Sequence[Op]) -> tuple[str, ...]:
        """See `Helper`."""
        named = tuple((type(operation).__name__, operation) for operation in operations)
        return self._call(Apply(named), Results).errors

    def open_exec(self, request: OpenExec) -> tuple[int, tuple[int, ...]]:
        """See `Helper`."""
        opened, descriptors = self._call_for_descriptors(request, 1 if request.tty else 3)
        return opened.handle, descriptors

    def kill_exec(self, handle: int) -> None:
        """See `Helper`."""
        self._call(KillExec(handle), Results)

    def open_logs(self, request: OpenLogs) -> tuple[int, int]:
        """See `Helper`."""
        opened, (descriptor,) = self._call_for_descriptors(request, 1)
        return opened.handle, descriptor

    def open_copy(self, request: OpenCopy) -> tuple[int, int]:
        """See `Helper`."""
        opened, (descriptor,) = self._call_for_descriptors(request, 1)
        return opened.handle, descriptor

    def adopt(self, request: Adopt) -> int:
        """See `Helper`."""
        return self._call_for_descriptors(request, 0)[0].handle

    def list_docker(self) -> None:
        """See `Helper`."""
        self._call(ListDocker(), Results)

    def revive_docker(self) -> None:
        """See `Helper`."""
        self._call(ReviveDocker(), Results)

    def set_probes(self, targets: Sequence[ProbeTarget]) -> None:
        """See `Helper`."""
        self._call(SetProbes(tuple(targets)), Results)

    def sandbox_present(self, endpoint: str) -> bool:
        """See `Helper`."""
        return self._call(GetSandbox(endpoint), SandboxAnswer).present

    def events(self) -> list[Event]:
        """See `Helper`."""
        while select.select([self._socket], [], [], 0)[0]:
            message, descriptors = helper_wire.receive(self._socket, descriptors=True)
            helper_wire.close_all(descriptors)
            if not isinstance(message, Event):
                raise _unexpected(message)
            self._events.append(message)
        events, self._events = self._events, []
        return events

    def fileno(self) -> int:
        """See `Helper`."""
        return self._socket.fileno()

    def close(self) -> None:
        """See `Helper`."""
        self._socket.close()
        if self._process is not None:
            try:
                self._process.wait(CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _call(self, request: Any, kind: type[T]) -> T:
        answer, descriptors = self._exchange(request)
        helper_wire.close_all(descriptors)
        if not isinstance(answer, kind):
            raise _unexpected(answer)
        return answer

    def _call_for_descriptors(self, request: Any, count: int) -> tuple[Opened, tuple[int, ...]]:
        answer, descriptors = self._exchange(request)
        if not isinstance(answer, Opened) or len(descriptors) != count:
            helper_wire.close_all(descriptors)
            raise _unexpected(answer)
        return answer, descriptors

    def _exchange(self, request: Any) -> tuple[Any, tuple[int, ...]]:
        helper_wire.send(self._socket, request)
        while True:
            answer, descriptors = helper_wire.receive(self._socket, descriptors=True)
            if isinstance(answer, Refused):
                raise KernelError(answer.message)
            if not isinstance(answer, Event):
                return answer, descriptors
            self._events.append(answer)


def _unexpected(answer: Any) -> ProtocolError:
    return ProtocolError(
        f"the privileged child sent {type(answer).__name__}, which was not asked for",
        "restart the node agent: its two halves may be of different versions",
    )
