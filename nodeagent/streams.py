"""Streams between users and this node's containers: commands run in them, and their output.

Every turn is short: one slice of one descriptor, then the next one's, so that a user who reads a lot of
output holds up nobody's connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from netctl.errors import NetctlError, ProtocolError
from netctl.wire.messages import (
    NodeOpenExec,
    NodeOpenLogs,
    StreamCredit,
    StreamData,
    StreamEnd,
    StreamResize,
)
from nodeagent.exec_stream import CHUNK, CREDIT, MAX_WINDOW, Exec, Send
from nodeagent.helper_client import Helper
from nodeagent.helper_messages import ExecEnded, OpenExec
from nodeagent.output_reader import OutputReader, Piece, Tail

MAX_STREAMS: Final = 256
FOLLOW_SECONDS: Final = 0.1
"""Seconds between two looks for more output that is followed."""


class Logs:
    """A container's output on its way to a user.

    Args:
        stream: The stream's id.
        reader: At the beginning of the output.
        tail: Only so many last lines; None: all.
        goes_on: Tells whether more may come, so that it is waited for.
        send: Sends one message to the broker.
    """

    def __init__(
        self,
        stream: int,
        reader: OutputReader,
        *,
        tail: int | None,
        goes_on: Callable[[], bool],
        send: Send,
    ) -> None:
        self.stream = stream
        self.over = False
        self._reader = reader
        self._tail = None if tail is None else Tail(tail)
        self._goes_on = goes_on
        self._send = send
        self._window = CREDIT
        self._waiting: deque[Piece] = deque()
        self._look_at = 0.0

    def credit(self, message: StreamCredit) -> None:
        """The user has consumed output."""
        self._window = min(MAX_WINDOW, self._window + message.credit)

    def deadline(self, now: float) -> float | None:
        """Return when `pump` has something to do (monotonic seconds); None: once there is credit."""
        if self._window <= 0 and self._tail is None:
            return None
        return max(now, self._look_at)

    def pump(self, now: float) -> None:
        """Send, or look for, one slice of output."""
        if now < self._look_at:
            return
        if not self._waiting:
            # Asked before reading: what was written before the end is read after it.
            goes_on = self._goes_on()
            pieces = self._reader.read()
            if self._tail is not None:
                if pieces:
                    self._tail.feed(pieces)
                    return
                pieces, self._tail = self._tail.lines(), None
            elif not pieces:
                self._rest(now, goes_on=goes_on)
                return
            self._waiting.extend(pieces)
        while self._waiting and self._window > 0:
            channel, data = self._waiting.popleft()
            sendable = min(len(data), self._window, CHUNK)
            if sendable < len(data):
                self._waiting.appendleft((channel, data[sendable:]))
            self._window -= sendable
            self._send(StreamData(self.stream, 1 if channel == 1 else 2, data[:sendable]))

    def _rest(self, now: float, *, goes_on: bool) -> None:
        if goes_on:
            self._look_at = now + FOLLOW_SECONDS
            return
        self._send(StreamEnd(self.stream, 0))
        self.over = True
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


class Streams:
    """All streams of one session with the broker.

    Args:
        send: Sends one message to the broker.
        runs: Tells whether a container's command runs or is about to, so that output may still come.
    """

    def __init__(self, send: Send, runs: Callable[[str], bool]) -> None:
        self._send = send
        self._runs = runs
        self._execs: dict[int, Exec] = {}
        self._logs: dict[int, Logs] = {}

    def __len__(self) -> int:
        return len(self._execs) + len(self._logs)

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

    def open_logs(self, message: NodeOpenLogs, helper: Helper) -> None:
        """Send a container's output.

        Raises:
            UnavailableError: The helper is gone.
        """
        if not self._has_room(message.stream):
            return
        try:
            descriptor = helper.open_logs(message.container)
        except NetctlError as error:
            self._refuse(message.stream, error)
            return
        self._logs[message.stream] = Logs(
            message.stream,
            OutputReader(descriptor),
            tail=message.tail,
            goes_on=lambda: message.follow and self._runs(message.container),
            send=self._send,
        )

    def _has_room(self, stream: int) -> bool:
        if stream in self._execs or stream in self._logs:
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

    def exec_ended(self, event: ExecEnded) -> None:
        """A command is over."""
        for running in self._execs.values():
            if running.handle == event.handle:
                running.ended(event)

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
        times = [logs.deadline(now) for logs in self._logs.values()]
        return min((time for time in times if time is not None), default=None)

    def pump(self, readable: Iterable[int], writable: Iterable[int], now: float) -> None:
        """Move what can be moved."""
        readable, writable = set(readable), set(writable)
        for running in list(self._execs.values()):
            running.pump(readable, writable)
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
        for stream in list(self._execs):
            self._send(StreamEnd(stream, message=reason))
            self._drop(stream, None)

    def drop_all(self, helper: Helper | None) -> None:
        """The session is over, and its users with it.

        Raises:
            UnavailableError: The helper is gone.
        """
        for stream in [*self._execs, *self._logs]:
            self._drop(stream, helper)

    def _drop(self, stream: int, helper: Helper | None) -> None:
        logs = self._logs.pop(stream, None)
        if logs is not None:
            logs.close()
        running = self._execs.pop(stream, None)
        if running is not None:
            running.close()
            if helper is not None:
                helper.kill_exec(running.handle)


def _hear(running: Exec, message: StreamData | StreamCredit | StreamResize) -> None:
    if isinstance(message, StreamData):
        running.feed(message)
    elif isinstance(message, StreamCredit):
        running.credit(message)
    else:
        running.resize(message)
