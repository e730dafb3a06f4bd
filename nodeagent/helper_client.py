"""The agent's side of the privileged child: one request at a time, events in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nodeagent.helper_messages import ContainerChanged, Drifted, ExecEnded, OpenExec
from nodeagent.kernel_state import HostFacts, HostState
from nodeagent.ops import Op

Event = ContainerChanged | ExecEnded | Drifted


class Helper(Protocol):
    """What the agent asks of its privileged child."""

    def facts(self, underlay: str | None = None) -> HostFacts:
        """Say what the host is. `underlay`: the address to use; None: that of the default route's link.

        Raises:
            KernelError: No such address on this host.
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

    def open_logs(self, container: str) -> int:
        """Return a descriptor, the caller's to close, that reads the container's kept output.

        Raises:
            KernelError: There is no such container here.
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
