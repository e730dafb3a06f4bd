"""The two ends of `netctl cp` on a stream, as the files that Python's tarfile reads and writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netctl.errors import NetctlError
from netctl.wire.messages import StreamData, StreamEnd

if TYPE_CHECKING:
    from netctl.stream import Stream


class CopyReader:
    """What comes out of a container. No more waits here than the stream's credit allows."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, at least one; none at the end of a copy that came to a good end.

        Raises:
            NetctlError: The node could not go on; the message says why.
        """
        while not self._rest:
            piece = self._stream.receive(None)
            if isinstance(piece, StreamEnd):
                check(piece)
                return b""
            # Channel 2 carries nothing in a copy.
            if isinstance(piece, StreamData) and piece.channel == 1:
                self._rest = piece.data
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


class CopyWriter:
    """What goes into a container, as far as the node gave credit for."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        """Send all of `data`, waiting for credit.

        Raises:
            NetctlError: The node could not go on; the message says why.
        """
        left = data
        while left:
            if self._stream.ended is not None:
                check(self._stream.ended)
                raise NetctlError("the node ended the copy early", "try again")
            sent = self._stream.send(left)
            left = left[sent:]
            if not sent:
                self._stream.receive(None)
        return len(data)

    def finish(self) -> None:
        """Say that nothing follows, and wait until everything is in its place.

        Raises:
            NetctlError: The node could not unpack it; the message says why.
        """
        self._stream.close_input()
        while not isinstance(piece := self._stream.receive(None), StreamEnd):
            pass
        check(piece)


def check(end: StreamEnd) -> None:
    """Let a copy's good end pass.

    Raises:
        NetctlError: It ended otherwise; the message says why.
    """
    if end.exit_code != 0:
        raise NetctlError(
            end.message or "the copy ended without a word",
            "check the path, and the container with `netctl inspect`",
        )
