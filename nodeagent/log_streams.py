"""A container's output on its way to a user: read from the file that keeps it, or from an engine's pipe."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from netctl.errors import ProtocolError
from netctl.wire.messages import StreamCredit, StreamData, StreamEnd, StreamResize
from nodeagent.exec_stream import CHUNK, CREDIT, MAX_WINDOW, Send
from nodeagent.helper_messages import ExecEnded
from nodeagent.output_reader import SLICE, OutputReader, Piece, Tail, split_records

FOLLOW_SECONDS: Final = 0.1
"""Seconds between two looks for more output that is followed."""


class Logs:
    """A container's kept output on its way to a user.

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
        self._window = _send_pieces(self.stream, self._waiting, self._window, self._send)

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


class PipedLogs:
    """A container's output that its engine sends by a pipe, as records, to its end.

    It is read no further than the user's window, so the engine waits with the user.

    Args:
        stream: The stream's id.
        handle: The helper's name for the reading.
        descriptor: Of the pipe; closed with this object.
        send: Sends one message to the broker.
    """

    def __init__(self, stream: int, handle: int, descriptor: int, send: Send) -> None:
        self.stream = stream
        self.handle = handle
        self.over = False
        self._descriptor = descriptor
        self._send = send
        self._window = CREDIT
        self._buffer = b""
        self._waiting: deque[Piece] = deque()
        self._ended: ExecEnded | None = None
        os.set_blocking(descriptor, False)

    def readers(self) -> Iterable[int]:
        """Return the descriptor while there is room for what it gives."""
        return [self._descriptor] if self._descriptor >= 0 and self._window > 0 else []

    def writers(self) -> Iterable[int]:
        """Return nothing."""
        return []

    @property
    def busy(self) -> bool:
        """Whether `pump` is to be called whatever the descriptor says."""
        return self._window > 0 and (bool(self._waiting) or self._ended is not None)

    def feed(self, message: StreamData) -> None:
        """Refuse what the user sends; that nothing will be sent is as it should be.

        Raises:
            ProtocolError: It is more than that.
        """
        if message.data:
            raise ProtocolError(f"output takes no input, {len(message.data)} bytes came")

    def credit(self, message: StreamCredit) -> None:
        """The user has consumed output."""
        self._window = min(MAX_WINDOW, self._window + message.credit)

    def resize(self, message: StreamResize) -> None:
        """The user's terminal has a new size, which does not matter here."""

    def ended(self, event: ExecEnded) -> None:
        """The engine has sent everything; what is in the pipe is still to be sent on."""
        self._ended = event

    def pump(self, readable: Iterable[int], writable: Iterable[int]) -> None:
        """Send, or read, one slice of output.

        Raises:
            KernelError: What came is no output.
        """
        del writable
        if not self._waiting and (self._descriptor in set(readable) or self._ended is not None):
            self._read()
        self._window = _send_pieces(self.stream, self._waiting, self._window, self._send)
        if self._ended is not None and self._descriptor < 0 and not self._waiting:
            failed = self._ended.exit_code != 0
            self._send(StreamEnd(self.stream, None if failed else 0, self._ended.message))
            self.over = True

    def _read(self) -> None:
        if self._descriptor < 0:
            return
        try:
            data = os.read(self._descriptor, SLICE)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        pieces, self._buffer = split_records(self._buffer + data)
        self._waiting.extend(pieces)

    def close(self) -> None:
        """Close the pipe; the engine hears of it by that."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _send_pieces(stream: int, waiting: deque[Piece], window: int, send: Send) -> int:
    """Send what the window takes of `waiting`, which keeps the rest; return the window that is left."""
    while waiting and window > 0:
        channel, data = waiting.popleft()
        sendable = min(len(data), window, CHUNK)
        if sendable < len(data):
            waiting.appendleft((channel, data[sendable:]))
        window -= sendable
        send(StreamData(stream, 1 if channel == 1 else 2, data[:sendable]))
    return window
