"""What users have done in containers: commands, copies, output read; and the handles that name them."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final

from netctl.errors import KernelError
from nodeagent.apply import Host
from nodeagent.engine.base import Ended, Engine, ExecRequest
from nodeagent.helper_messages import Adopt, ExecEnded, OpenCopy, OpenExec, OpenLogs

TERMINAL_WITHIN: Final = 2.0
"""Seconds a container's shim may take to make a terminal, which takes it milliseconds."""


MOST_MESSAGE: Final = 4096
"""Characters of a message (`netctl.model.Text`)."""
Tell = Callable[[ExecEnded], None]


class Execs:
    """All that runs on one host for users. Handles are of all engines together, and never used twice.

    The descriptors that are returned are the caller's. `ended` is called once, from an engine's `dispatch`.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._running: dict[int, tuple[Engine, int]] = {}
        self._last = 0

    def open(self, request: OpenExec, ended: Tell) -> tuple[int, tuple[int, ...]]:
        """Run a command; return its handle and the descriptors for the user's side.

        They are, with a terminal, its master, else stdin (to write), stdout and stderr (to read).

        Raises:
            KernelError: The container is not on this node, is not running, or makes no terminal.
        """
        engine = self._host.engine_of(request.container)
        theirs, ours = _socket() if request.tty else _pipes()
        handle, tell = self._name(ended)
        try:
            inner = engine.exec(
                request.container,
                ExecRequest(
                    argv=request.argv,
                    env=request.env,
                    user=request.user,
                    tty=request.tty,
                    stdin=theirs[0],
                    stdout=theirs[-2],
                    stderr=theirs[-1],
                    rows=request.rows,
                    columns=request.columns,
                ),
                tell,
            )
        except BaseException:
            _close(ours)
            raise
        finally:
            _close(theirs)
        self._running[handle] = (engine, inner)
        if request.tty:
            try:
                ours = (_terminal(ours[0]),)
            except KernelError:
                engine.kill_exec(inner)
                raise
        return handle, ours

    def copy(self, request: OpenCopy, ended: Tell) -> tuple[int, tuple[int]]:
        """Copy files; return the handle and the archive's end of a pipe: to read with ``out``, else to write.

        Raises:
            KernelError: The container is not on this node, or cannot be copied from or to now.
        """
        engine = self._host.engine_of(request.container)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        ours, theirs = (reader, writer) if request.direction == "out" else (writer, reader)
        handle, tell = self._name(ended)
        try:
            inner = engine.copy(request.container, request.path, request.direction, theirs, tell)
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._running[handle] = (engine, inner)
        return handle, (ours,)

    def logs(self, request: OpenLogs, ended: Tell) -> tuple[int, tuple[int]]:
        """Read a container's output; return a handle and a descriptor, as `OpenLogs` says.

        Raises:
            KernelError: The container is not on this node.
        """
        engine = self._host.engine_of(request.container)
        handle, tell = self._name(ended)
        inner, descriptor = engine.logs(request.container, request.tail, follow=request.follow, ended=tell)
        if inner == 0:
            return 0, (descriptor,)
        self._running[handle] = (engine, inner)
        return handle, (descriptor,)

    def adopt(self, request: Adopt, ended: Tell) -> int:
        """Have Docker connect a container to our network; return the handle.

        Raises:
            KernelError: This node has no engine `docker`, or Docker is away.
        """
        engine = self._host.docker()
        handle, tell = self._name(ended)
        self._running[handle] = (engine, engine.adopt(request.container, request.block, tell))
        return handle

    def kill(self, handle: int) -> None:
        """The user went away: end it. What has ended already is no error."""
        engine, inner = self._running.get(handle, (None, 0))
        if engine is not None:
            engine.kill_exec(inner)

    def _name(self, ended: Tell) -> tuple[int, Ended]:
        """Return a new handle, and what the engine calls at the end of what has it."""
        self._last += 1
        handle = self._last

        def tell(exit_code: int, message: str) -> None:
            self._running.pop(handle, None)
            ended(ExecEnded(handle, exit_code, message[:MOST_MESSAGE]))

        return handle, tell


def _pipes() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the command's stdin, stdout, stderr, and the far end of each."""
    made = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    (stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr) = made
    return (stdin, stdout, stderr), (to_stdin, from_stdout, from_stderr)


def _socket() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return a socket for the engine to send a terminal's master by, three times over, and the far end."""
    ours, theirs = socket.socketpair()
    descriptor = theirs.detach()
    return (descriptor, descriptor, descriptor), (ours.detach(),)


def _terminal(descriptor: int) -> int:
    """Wait for the terminal's master to come by the socket `descriptor`, close that, and return the master.

    Raises:
        KernelError: None comes.
    """
    with socket.socket(fileno=descriptor) as sock:
        sock.settimeout(TERMINAL_WITHIN)
        try:
            _, descriptors, _, _ = socket.recv_fds(sock, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise KernelError(
                f"the container makes no terminal: {error}", "see whether its node is overloaded"
            ) from error
    if descriptors:
        return descriptors[0]
    # The command cannot run, and an event says why. A terminal without its other side reads as ended.
    master, slave = os.openpty()
    os.close(slave)
    return master


def _close(descriptors: tuple[int, ...]) -> None:
    for descriptor in set(descriptors):
        with contextlib.suppress(OSError):
            os.close(descriptor)
