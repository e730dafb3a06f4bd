"""A container's kept output: one file of records, whose oldest part is given back as it grows.

Each record is ``stream byte (1 or 2), length (4 bytes, big-endian), data``. What was given back is a
hole at the file's beginning (fallocate(2)), so a descriptor that follows the file needs to know of no
second file: it reads on. A reader that was overtaken finds zero bytes where a record would begin, and
skips them. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import deque

from nodeagent.shim_syscalls import punch_hole

LIMIT = 8 * 2**20
"""Bytes of output kept at least, once there were as many."""
STEP = 2**20
"""Bytes given back at a time."""
_HEAD = struct.Struct(">BI")


class Output:
    """The writing side, in the shim."""

    def __init__(self, path: str) -> None:
        """Open or make the file; what is in it stays."""
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._end = os.lseek(self._file, 0, os.SEEK_END)
        self._begin = 0
        self._marks: deque[int] = deque()

    def write(self, stream: int, data: bytes) -> None:
        """Append a record. Where the disk takes none, the record is lost: a container never waits for us."""
        if not self._marks or self._end - self._marks[-1] >= STEP:
            self._marks.append(self._end)
        record = _HEAD.pack(stream, len(data)) + data
        with contextlib.suppress(OSError):
            if os.pwrite(self._file, record, self._end) == len(record):
                self._end += len(record)
            else:
                os.ftruncate(self._file, self._end)
        self._give_back()

    def _give_back(self) -> None:
        keep_from = self._begin
        while self._marks and self._end - self._marks[0] >= LIMIT + STEP:
            self._marks.popleft()
            keep_from = self._marks[0]
        if keep_from == self._begin:
            return
        try:
            punch_hole(self._file, self._begin, keep_from - self._begin)
            self._begin = keep_from
        except OSError:
            # A file system without holes: start over rather than fill the disk.
            os.ftruncate(self._file, 0)
            self._begin = self._end = 0
            self._marks.clear()


def open_at_first_record(path: str) -> int:
    """Return a new descriptor of kept output, positioned at its oldest whole record.

    Raises:
        OSError: The file cannot be opened.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        position = os.lseek(file, 0, os.SEEK_DATA)
        while chunk := os.pread(file, 65536, position):
            rest = chunk.lstrip(b"\0")
            position += len(chunk) - len(rest)
            if rest:
                break
        os.lseek(file, position, os.SEEK_SET)
    except OSError:
        # No data at all (ENXIO): whatever comes, comes after what there is.
        os.lseek(file, 0, os.SEEK_END)
    return file
