"""The user's end of one stream: a command in a container, its output, or files of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from netctl.wire.messages import (
    Message,
    StreamCredit,
    StreamData,
    StreamEnd,
    StreamOpened,
    StreamResize,
)

CHUNK: Final = 65536
"""Bytes of one StreamData at most (`netctl.wire.messages.Chunk`)."""


class Stream:
    """Bytes both ways, each direction only as far as its receiver gave credit for.

    Made by `netctl.client.Client.open`. What comes in waits here, bounded by the credit this end gave.

    Args:
        opened: The broker's answer.
        send: Sends one message.
        wait: Takes in what came, waiting so many seconds for something (None: without end).
    """

    def __init__(
        self,
        opened: StreamOpened,
        send: Callable[[Message], None],
        wait: Callable[[float | None], None],
    ) -> None:
        self.id = opened.stream
        self.window = opened.credit
        """Bytes that may be sent now."""
        self.ended: StreamEnd | None = None
        """How it ended; None while it has not. Data may still wait in `receive`."""
        self._credit = opened.credit
        self._consumed = 0
        self._send = send
        self._wait = wait
        self._inbox: deque[StreamData] = deque()

    def send(self, data: bytes) -> int:
        """Send what the window allows of `data` to the command's stdin; return how many bytes that was.

        Raises:
            UnavailableError: The session with the broker ended.
        """
        taken = min(len(data), self.window)
        for start in range(0, taken, CHUNK):
            self._send(StreamData(self.id, 0, data[start : min(start + CHUNK, taken)]))
        self.window -= taken
        return taken

    def close_input(self) -> None:
        """Tell the command that its stdin ends."""
        if self.ended is None:
            self._send(StreamData(self.id, 0, eof=True))

    def resize(self, rows: int, columns: int) -> None:
        """Tell the command the terminal's new size."""
        if self.ended is None:
            self._send(StreamResize(self.id, rows, columns))

    def receive(self, timeout: float | None = 0.0) -> StreamData | StreamEnd | None:
        """Return the next piece of output, then, again and again, the end.

        Args:
            timeout: Seconds to wait; 0 does not wait, None waits without end.

        Returns:
            None when nothing came; with a `timeout` this may be earlier than that.
        """
        if not self._inbox and self.ended is None:
            self._wait(timeout)
        if not self._inbox:
            return self.ended
        data = self._inbox.popleft()
        self._consumed += len(data.data)
        if self._consumed * 2 >= self._credit and self.ended is None:
            self._send(StreamCredit(self.id, self._consumed))
            self._consumed = 0
        return data

    def close(self) -> None:
        """End the stream from this side; the command is hung up on."""
        if self.ended is None:
            self.ended = StreamEnd(self.id, message="closed by the client")
            self._send(self.ended)

    def deliver(self, message: StreamData | StreamCredit | StreamEnd) -> None:
        """Take in what the broker sent for this stream."""
        if isinstance(message, StreamData):
            self._inbox.append(message)
        elif isinstance(message, StreamCredit):
            self.window += message.credit
        elif self.ended is None:
            self.ended = message


class StreamTable:
    """The streams of one session.

    Args:
        send: Sends one message.
        wait: As `Stream` takes it.
    """

    def __init__(self, send: Callable[[Message], None], wait: Callable[[float | None], None]) -> None:
        self._send = send
        self._wait = wait
        self._streams: dict[int, Stream] = {}

    def open(self, opened: StreamOpened) -> Stream:
        """Return the stream that was opened; what came for it since waits in it."""
        return self._streams[opened.stream]

    def take(self, message: Message) -> bool:
        """Take in a message if it is a stream's; say whether that was all there is to it."""
        if isinstance(message, StreamOpened):
            self._streams = {number: stream for number, stream in self._streams.items() if not stream.ended}
            # Made at once: its first bytes may be in the very next frame.
            self._streams[message.stream] = Stream(message, self._send, self._wait)
            return False
        if not isinstance(message, StreamData | StreamCredit | StreamEnd):
            return False
        stream = self._streams.get(message.stream)
        if stream is not None:
            stream.deliver(message)
        if isinstance(message, StreamEnd):
            self._streams.pop(message.stream, None)
        return True

    def close(self) -> None:
        """End all streams from this side.

        Raises:
            UnavailableError: The session with the broker ended.
        """
        for stream in list(self._streams.values()):
            stream.close()

    def end(self, reason: str) -> None:
        """Note that the session, and with it every stream, is over."""
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.deliver(StreamEnd(stream.id, message=reason))
