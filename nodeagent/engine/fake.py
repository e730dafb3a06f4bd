"""A container engine without containers: the same states, events and refusals, with switches for faults."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import attrs

from netctl.errors import KernelError
from netctl.model import Workload
from nodeagent.engine.base import Direction, Ended, ExecRequest
from nodeagent.kernel_state import EngineContainer

Method = Literal["create", "start", "stop", "remove", "exec", "copy", "logs", "namespace"]
Hook = Callable[[Method, str, Literal["before", "after"]], None]
"""Called around every call that changes something, with the container's id; may raise, as a crash would."""


@attrs.define
class FakeExec:
    """A command a caller asked to run in a container, until a test ends it.

    Attributes:
        stdin: Our own copies of the caller's descriptors, or the terminal; a test plays the command on them.
        killed: `kill_exec` was called.
    """

    container: str
    request: ExecRequest
    ended: Callable[[int, str], None]
    stdin: int
    stdout: int
    stderr: int
    killed: bool = False


@attrs.define
class FakeCopy:
    """Files a caller asked to copy, until a test ends it; `descriptor` is our own copy of the caller's."""

    container: str
    path: str
    direction: Direction
    ended: Ended
    descriptor: int
    killed: bool = False


@attrs.define
class _Box:
    """What the fake keeps of one container: what is true (`truth`), and what was dispatched (`seen`)."""

    name: str
    address: str
    workload: Workload
    truth: EngineContainer
    seen: EngineContainer
    namespace: int
    block: str = ""
    output: bytes = b""
    going: bool = False


@attrs.define
class FakeEngine:
    """An `Engine` in memory. It stands for the shims, so one instance outlives its callers' crashes.

    With `auto` each state follows from the last by itself, and shows at the next `dispatch`:
    ``creating`` -> ``created``, start -> ``running``, stop -> ``exited`` with 143. Without it a test says
    what comes next with `become`.

    Attributes:
        removes_later: A removal shows at a later dispatch, as Docker's do; without `auto`, once a test calls
            `finish_removal`.
        away: The engine behind it cannot be reached: every container is ``unknown``, and calls are refused.
        pipes_logs: `logs` gives a pipe and a handle, as Docker's do, rather than a file.
        hook: Called around every change; may raise whatever a test takes for a crash.
        calls: Every call that changed something, as (method, container).
    """

    name: str = "process"
    removes_later: bool = False
    auto: bool = True
    away: bool = False
    pipes_logs: bool = False
    hook: Hook | None = None
    calls: list[tuple[Method, str]] = attrs.field(factory=list)
    execs: dict[int, FakeExec] = attrs.field(factory=dict)
    copies: dict[int, FakeCopy] = attrs.field(factory=dict)
    _boxes: dict[str, _Box] = attrs.field(factory=dict)
    _gone: set[str] = attrs.field(factory=set)
    _failures: list[tuple[Method, str | None, str]] = attrs.field(factory=list)
    _ended: list[tuple[Callable[[int, str], None], int, str]] = attrs.field(factory=list)
    _wake: int = -1
    _handles: int = 0
    _namespaces: int = 1_000_000

    # What a test does to it.

    def fail(self, method: Method, message: str, container: str | None = None, times: int = 1) -> None:
        """Let the next `times` calls of `method` (for `container`, or any) raise KernelError."""
        self._failures.extend([(method, container, message)] * times)

    def become(self, container: str, state: EngineContainer) -> None:
        """Let the container's state change by itself; it shows at the next dispatch."""
        self._boxes[container].truth = state
        if state.state != "running":
            self._end_execs(container)
        self._ring()

    def end(self, container: str, exit_code: int) -> None:
        """Let the container's command end."""
        self.become(
            container, attrs.evolve(self._boxes[container].truth, state="exited", exit_code=exit_code)
        )

    def vanish(self, container: str) -> None:
        """Let the container disappear, as if its shim had been killed."""
        del self._boxes[container]
        self._end_execs(container)
        self._gone.add(container)
        self._ring()

    def write_output(self, container: str, stream: Literal[1, 2], data: bytes) -> None:
        """Let the container's command write."""
        self._boxes[container].output += struct.pack(">BI", stream, len(data)) + data

    def end_exec(self, handle: int, exit_code: int, message: str = "") -> None:
        """Let an exec's command end; its caller hears at the next dispatch."""
        command = self.execs.pop(handle)
        for descriptor in (command.stdin, command.stdout, command.stderr):
            os.close(descriptor)
        self._ended.append((command.ended, exit_code, message))
        self._ring()

    def end_copy(self, handle: int, exit_code: int = 0, message: str = "") -> None:
        """Let a copy end; its caller hears at the next dispatch."""
        copy = self.copies.pop(handle)
        os.close(copy.descriptor)
        self._ended.append((copy.ended, exit_code, message))
        self._ring()

    def finish_removal(self, container: str) -> None:
        """Let a removal that was asked for come to its end."""
        if self._boxes[container].going:
            self.vanish(container)

    def ring(self) -> None:
        """Make `descriptors` readable, so that `dispatch` is called."""
        self._ring()

    # The engine.

    def containers(self) -> Mapping[str, EngineContainer]:
        """Return every container, by id."""
        if self.away:
            return {
                container: attrs.evolve(box.seen, state="unknown") for container, box in self._boxes.items()
            }
        return {container: box.seen for container, box in self._boxes.items()}

    def namespace(self, container: str) -> int:
        """Return a number that stands for the namespace; it is no open descriptor."""
        self._fault("namespace", container)
        box = self._boxes.get(container)
        if box is None or box.seen.state == "creating":
            raise KernelError(f"container {container} has no network namespace")
        return box.namespace

    def create(self, container: str, name: str, address: str, workload: Workload, block: str = "") -> None:
        """Begin to make a container; one that is there stays as it is."""
        self._around("create", container, lambda: self._create(container, name, address, workload, block))

    def start(self, container: str, generation: int) -> None:
        """Run the command, if it has not run at this generation."""
        self._around("start", container, lambda: self._start(container, generation))

    def stop(self, container: str) -> None:
        """End the command, if it runs."""
        self._around("stop", container, lambda: self._stop(container))

    def remove(self, container: str) -> None:
        """Forget the container, if it is there."""
        self._around("remove", container, lambda: self._remove(container))

    def exec(self, container: str, request: ExecRequest, ended: Callable[[int, str], None]) -> int:
        """Note the command; a test plays it, and ends it with `end_exec`."""
        self._fault("exec", container)
        box = self._boxes.get(container)
        if box is None or box.seen.state != "running":
            raise KernelError(f"container {container} is not running")
        self._handles += 1
        if request.tty:
            slave = _send_terminal(request)
            stdin, stdout, stderr = slave, os.dup(slave), os.dup(slave)
        else:
            stdin, stdout, stderr = (os.dup(fd) for fd in (request.stdin, request.stdout, request.stderr))
        self.execs[self._handles] = FakeExec(container, request, ended, stdin, stdout, stderr)
        return self._handles

    def kill_exec(self, handle: int) -> None:
        """End the command, or the copy, with 137."""
        if (command := self.execs.get(handle)) is not None:
            command.killed = True
            self.end_exec(handle, 137)
        elif (copy := self.copies.get(handle)) is not None:
            copy.killed = True
            self.end_copy(handle, 137)

    def copy(self, container: str, path: str, direction: Direction, descriptor: int, ended: Ended) -> int:
        """Note the copy; a test plays it, and ends it with `end_copy`."""
        self._fault("copy", container)
        if container not in self._boxes:
            raise KernelError(f"container {container} does not exist")
        self._handles += 1
        self.copies[self._handles] = FakeCopy(container, path, direction, ended, os.dup(descriptor))
        return self._handles

    def logs(self, container: str, tail: int | None, *, follow: bool, ended: Ended) -> tuple[int, int]:
        """Return a new descriptor of what `write_output` wrote until now (64 KiB at most as a pipe)."""
        self._fault("logs", container)
        if (box := self._boxes.get(container)) is None:
            raise KernelError(f"container {container} does not exist")
        if self.pipes_logs:
            del tail, follow
            reader, writer = os.pipe2(os.O_CLOEXEC)
            os.write(writer, box.output)
            os.close(writer)
            self._handles += 1
            self._ended.append((ended, 0, ""))
            self._ring()
            return self._handles, reader
        descriptor = os.memfd_create("output", os.MFD_CLOEXEC)
        os.write(descriptor, box.output)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return 0, descriptor

    def descriptors(self) -> Sequence[int]:
        """Return one descriptor, readable while a change waits for `dispatch`."""
        if self._wake < 0:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._ring()
        return (self._wake,)

    def dispatch(self, changed: Callable[[str, EngineContainer | None], None]) -> None:
        """Show what changed since the last dispatch."""
        if self._wake >= 0:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        ended, self._ended = self._ended, []
        for callback, exit_code, message in ended:
            callback(exit_code, message)
        if self.auto:
            for container in [container for container, box in self._boxes.items() if box.going]:
                self.finish_removal(container)
        gone, self._gone = self._gone - self._boxes.keys(), set()
        for container in sorted(gone):
            changed(container, None)
        for container, box in list(self._boxes.items()):
            if box.seen != box.truth:
                box.seen = box.truth
                changed(container, box.seen)

    def close(self) -> None:
        """Close the descriptors; the containers stay."""
        for handle in list(self.execs):
            self.end_exec(handle, 125, "the engine was closed")
        for handle in list(self.copies):
            self.end_copy(handle, 125, "the engine was closed")
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    def _around(self, method: Method, container: str, change: Callable[[], None]) -> None:
        if self.hook is not None:
            self.hook(method, container, "before")
        self._fault(method, container)
        self.calls.append((method, container))
        change()
        self._ring()
        if self.hook is not None:
            self.hook(method, container, "after")

    def _fault(self, method: Method, container: str) -> None:
        if self.away:
            raise KernelError(f"the engine {self.name} cannot be reached")
        for failure in self._failures:
            if failure[0] == method and failure[1] in (None, container):
                self._failures.remove(failure)
                raise KernelError(failure[2])

    def _ring(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    def _create(self, container: str, name: str, address: str, workload: Workload, block: str) -> None:
        if container in self._boxes:
            return
        creating = EngineContainer("creating")
        self._namespaces += 1
        self._boxes[container] = _Box(
            name,
            address,
            workload,
            truth=EngineContainer("created") if self.auto else creating,
            seen=creating,
            namespace=self._namespaces,
            block=block,
        )

    def _start(self, container: str, generation: int) -> None:
        box = self._boxes.get(container)
        if box is None or box.seen.state == "creating":
            raise KernelError(f"container {container} does not exist or is not made yet")
        if generation <= box.truth.generation:
            return
        if box.truth.state == "running":
            raise KernelError(f"container {container} still runs", "stop it first")
        if self.auto:
            box.truth = EngineContainer("running", generation)

    def _stop(self, container: str) -> None:
        box = self._boxes.get(container)
        if self.auto and box is not None and box.truth.state == "running":
            box.truth = attrs.evolve(box.truth, state="exited", exit_code=143)
            self._end_execs(container)

    def _remove(self, container: str) -> None:
        self._end_execs(container)
        if self.removes_later and container in self._boxes:
            self._boxes[container].going = True
            return
        self._boxes.pop(container, None)

    def _end_execs(self, container: str) -> None:
        for handle, command in list(self.execs.items()):
            if command.container == container:
                self.end_exec(handle, 137)


def _send_terminal(request: ExecRequest) -> int:
    """Make a terminal and send its master as the request says; return its other side."""
    master, slave = os.openpty()
    # struct winsize of ioctl_tty(2).
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", request.rows, request.columns, 0, 0))
    with socket.socket(fileno=os.dup(request.stdin)) as sock:
        socket.send_fds(sock, [b"t"], [master])
    os.close(master)
    return slave
