"""Reads a container's kept output: records of ``stream (1), length (4, big-endian), data``.

The file grows at its end, and gives its oldest part back as a hole; where a file system has no holes, it
starts anew at length zero (`nodeagent.shim_output`). A reader that was overtaken goes on where data begins.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from typing import Final

from netctl.errors import KernelError

SLICE: Final = 65536
"""Bytes read at once, so that nobody else waits long."""
MAX_RECORD: Final = 2**20
"""Bytes of one record at most; a longer one is damage."""
_HEAD = struct.Struct(">BI")

Piece = tuple[int, bytes]
"""Stream (1 stdout, 2 stderr) and data."""


class OutputReader:
    """One reading of one container's output.

    Args:
        descriptor: At the oldest record; it is closed with this object.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._position = os.lseek(descriptor, 0, os.SEEK_CUR)
        self._buffer = b""

    def read(self) -> list[Piece]:
        """Return the next pieces of output, a slice of them; empty: nothing more has been written yet.

        Raises:
            KernelError: The kept output is damaged.
        """
        while True:
            chunk = os.pread(self._descriptor, SLICE, self._position)
            if not chunk:
                if os.fstat(self._descriptor).st_size < self._position:
                    self._position, self._buffer = 0, b""
                    continue
                return []
            self._position += len(chunk)
            pieces, self._buffer = split_records(self._buffer + chunk)
            if pieces:
                return pieces

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def split_records(buffer: bytes) -> tuple[list[Piece], bytes]:
    """Return the pieces of the whole records in `buffer`, and what is left of it.

    Raises:
        KernelError: They are no records.
    """
    pieces: list[Piece] = []
    offset = 0
    while len(buffer) - offset >= _HEAD.size:
        stream, length = _HEAD.unpack_from(buffer, offset)
        if stream == 0:
            # Given back while we read: zeros up to the oldest record that is left.
            rest = buffer[offset:].lstrip(b"\0")
            offset = len(buffer) - len(rest)
            continue
        if stream > 2 or length > MAX_RECORD:  # noqa: PLR2004 - stdout and stderr
            raise KernelError("the container's kept output is damaged")
        end = offset + _HEAD.size + length
        if end > len(buffer):
            break
        _append(pieces, stream, buffer[offset + _HEAD.size : end])
        offset = end
    return pieces, buffer[offset:]


def _append(pieces: list[Piece], stream: int, data: bytes) -> None:
    """Add data, to the last piece where it is of the same stream and stays short."""
    if not data:
        return
    if pieces and pieces[-1][0] == stream and len(pieces[-1][1]) + len(data) <= SLICE:
        pieces[-1] = (stream, pieces[-1][1] + data)
    else:
        pieces.append((stream, data))


class Tail:
    """The last lines of what is fed to it.

    Args:
        lines: How many are kept.
    """

    def __init__(self, lines: int) -> None:
        self._kept: deque[Piece] = deque(maxlen=lines)
        self._partial: dict[int, bytes] = {}

    def feed(self, pieces: list[Piece]) -> None:
        """Take output in."""
        for stream, data in pieces:
            *lines, rest = (self._partial.pop(stream, b"") + data).split(b"\n")
            self._kept.extend((stream, line + b"\n") for line in lines)
            if len(rest) >= SLICE:
                self._kept.append((stream, rest))
            elif rest:
                self._partial[stream] = rest

    def lines(self) -> list[Piece]:
        """Return the last lines, an unfinished one of each stream after them."""
        for stream, data in sorted(self._partial.items()):
            self._kept.append((stream, data))
        self._partial.clear()
        return list(self._kept)
