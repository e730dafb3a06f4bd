"""Streams between users and this node's containers: commands run in them, files copied, their output.

Every turn is short: one slice of one descriptor, then the next one's, so that a user who reads a lot of
output holds up nobody's connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from netctl.errors import KernelError, NetctlError, ProtocolError
from netctl.wire.messages import (
    NodeOpenAdopt,
    NodeOpenCopy,
    NodeOpenExec,
    NodeOpenLogs,
    StreamCredit,
    StreamData,
    StreamEnd,
    StreamResize,
)
from nodeagent.adoptions import Adoptions
from nodeagent.exec_stream import Exec, Send
from nodeagent.helper_client import Helper
from nodeagent.helper_messages import Adopt, ExecEnded, OpenCopy, OpenExec, OpenLogs
from nodeagent.log_streams import Logs, PipedLogs
from nodeagent.output_reader import OutputReader

MAX_STREAMS: Final = 256


class Streams:
    """All streams of one session with the broker.

    Args:
        send: Sends one message to the broker.
        runs: Tells whether a container's command runs or is about to, so that output may still come.

    Attributes:
        adoptions: Containers that users have Docker connect; nothing flows on their streams.
    """

    def __init__(self, send: Send, runs: Callable[[str], bool]) -> None:
        self._send = send
        self._runs = runs
        self._execs: dict[int, Exec | PipedLogs] = {}
        self._logs: dict[int, Logs] = {}
        self.adoptions = Adoptions(send)

    def __len__(self) -> int:
        return len(self._execs) + len(self._logs) + len(self.adoptions)

    def open_exec(self, message: NodeOpenExec, helper: Helper) -> None:
        """Run a command in a container.

        Raises:
            UnavailableError: The helper is gone.
        """
        if not self._has_room(message.stream):
            return
        request = OpenExec(
            container=message.container,
            argv=message.argv,
            env=message.env,
            user=message.user,
            tty=message.tty,
            rows=message.rows,
            columns=message.columns,
        )
        try:
            handle, descriptors = helper.open_exec(request)
        except NetctlError as error:
            self._refuse(message.stream, error)
            return
        self._execs[message.stream] = Exec(message.stream, handle, descriptors, self._send)

    def open_copy(self, message: NodeOpenCopy, helper: Helper) -> None:
        """Copy files out of a container or into it.

        Raises:
            UnavailableError: The helper is gone.
        """
        if not self._has_room(message.stream):
            return
        try:
            handle, descriptor = helper.open_copy(
                OpenCopy(message.container, message.path, message.direction)
            )
        except NetctlError as error:
            self._refuse(message.stream, error)
            return
        descriptors = (-1, descriptor, -1) if message.direction == "out" else (descriptor, -1, -1)
        self._execs[message.stream] = Exec(message.stream, handle, descriptors, self._send)

    def open_adopt(self, message: NodeOpenAdopt, helper: Helper, block: str) -> None:
        """Have Docker connect a container to our network, which is made with the node's `block`.

        At the end StreamEnd says, with exit code 0, as what it is recorded, or, without an exit code, why
        that was not done.

        Raises:
            UnavailableError: The helper is gone.
        """
        if not self._has_room(message.stream):
            return
        try:
            self.adoptions.add(message.stream, helper.adopt(Adopt(message.container, block)))
        except NetctlError as error:
            self._refuse(message.stream, error)

    def open_logs(self, message: NodeOpenLogs, helper: Helper) -> None:
        """Send a container's output.

        Raises:
            UnavailableError: The helper is gone.
        """
        if not self._has_room(message.stream):
            return
        try:
            handle, descriptor = helper.open_logs(OpenLogs(message.container, message.tail, message.follow))
        except NetctlError as error:
            self._refuse(message.stream, error)
            return
        if handle:
            self._execs[message.stream] = PipedLogs(message.stream, handle, descriptor, self._send)
            return
        self._logs[message.stream] = Logs(
            message.stream,
            OutputReader(descriptor),
            tail=message.tail,
            goes_on=lambda: message.follow and self._runs(message.container),
            send=self._send,
        )

    def _has_room(self, stream: int) -> bool:
        if stream in self._execs or stream in self._logs or stream in self.adoptions:
            return False
        if len(self) >= MAX_STREAMS:
            self._send(StreamEnd(stream, message=f"this node has {MAX_STREAMS} streams already; end some"))
            return False
        return True

    def _refuse(self, stream: int, error: NetctlError) -> None:
        self._send(StreamEnd(stream, message=str(error)[:4096]))

    def hear(
        self, message: StreamData | StreamCredit | StreamResize | StreamEnd, helper: Helper | None
    ) -> None:
        """Take in what the user's side sent. What is for a stream that is over is nothing.

        Raises:
            UnavailableError: The helper is gone.
        """
        running, logs = self._execs.get(message.stream), self._logs.get(message.stream)
        if isinstance(message, StreamEnd):
            self._drop(message.stream, helper)
        elif running is not None:
            try:
                _hear(running, message)
            except ProtocolError as error:
                self._refuse(message.stream, error)
                self._drop(message.stream, helper)
        elif logs is not None and isinstance(message, StreamCredit):
            logs.credit(message)

    def exec_ended(self, event: ExecEnded, now: float) -> None:
        """A command, a copy, a reading or an adoption is over."""
        for running in self._execs.values():
            if running.handle == event.handle:
                running.ended(event)
        self.adoptions.ended(event, now)

    def readers(self) -> list[int]:
        """Return the descriptors to poll for reading."""
        return [descriptor for running in self._execs.values() for descriptor in running.readers()]

    def writers(self) -> list[int]:
        """Return the descriptors to poll for writing."""
        return [descriptor for running in self._execs.values() for descriptor in running.writers()]

    def deadline(self, now: float) -> float | None:
        """Return when `pump` has something to do even if no descriptor is ready; None: never."""
        if any(running.busy for running in self._execs.values()):
            return now
        times = [self.adoptions.deadline(), *(logs.deadline(now) for logs in self._logs.values())]
        return min((time for time in times if time is not None), default=None)

    def pump(self, readable: Iterable[int], writable: Iterable[int], now: float) -> None:
        """Move what can be moved."""
        readable, writable = set(readable), set(writable)
        for running in list(self._execs.values()):
            try:
                running.pump(readable, writable)
            except KernelError as error:
                # The engine hears of it by its pipe.
                self._refuse(running.stream, error)
                self._drop(running.stream, None)
            if running.over:
                del self._execs[running.stream]
        for logs in list(self._logs.values()):
            try:
                logs.pump(now)
            except (NetctlError, OSError) as error:
                self._send(StreamEnd(logs.stream, message=f"cannot read the output: {error}"[:4096]))
                self._drop(logs.stream, None)
            if logs.over:
                self._logs.pop(logs.stream, None)

    def end_execs(self, reason: str) -> None:
        """The helper is gone, and with it every command's ending."""
        for stream in [*self._execs, *self.adoptions.streams()]:
            self._send(StreamEnd(stream, message=reason))
            self._drop(stream, None)

    def drop_all(self, helper: Helper | None) -> None:
        """The session is over, and its users with it.

        Raises:
            UnavailableError: The helper is gone.
        """
        for stream in [*self._execs, *self._logs, *self.adoptions.streams()]:
            self._drop(stream, helper)

    def _drop(self, stream: int, helper: Helper | None) -> None:
        logs = self._logs.pop(stream, None)
        if logs is not None:
            logs.close()
        self.adoptions.drop(stream)
        running = self._execs.pop(stream, None)
        if running is not None:
            running.close()
            if helper is not None:
                helper.kill_exec(running.handle)


def _hear(running: Exec | PipedLogs, message: StreamData | StreamCredit | StreamResize) -> None:
    if isinstance(message, StreamData):
        running.feed(message)
    elif isinstance(message, StreamCredit):
        running.credit(message)
    else:
        running.resize(message)
