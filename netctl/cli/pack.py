"""Pack files of this machine into the archive that goes into a container."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import IO, Final, Protocol

from netctl.cli.unpack import Tally

PIECE: Final = 65536
"""Bytes of an archive that are moved at once: what one message of a stream carries."""


class Writable(Protocol):
    """What an archive is written to."""

    def write(self, data: bytes) -> int:
        """Take all of `data`."""


def pack(source: str, name: str, target: Writable) -> Tally:
    """Write an archive of `source`, under the name `name`, piece by piece.

    Everything belongs to root (0:0) in it. Links are packed as links; devices, pipes and sockets are left
    out, and counted.

    Args:
        source: A file, a directory or a link.
        name: Of the root in the archive, e.g. ``.`` to have a directory's contents alone.
        target: Takes the archive's bytes.

    Raises:
        OSError: Something cannot be read, or changed meanwhile.
    """
    tally = Tally()
    with tarfile.open(fileobj=_as_file(target), mode="w|", bufsize=PIECE, format=tarfile.PAX_FORMAT) as tar:
        for path, member_name in _walk(source, name):
            member = tar.gettarinfo(path, member_name)
            # A socket has no place in an archive, and tarfile no record for it.
            if member is None or not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
                tally.leave_out(path, "neither a file, a directory nor a link")
                continue
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            if member.isreg():
                with open(path, "rb") as file:  # noqa: PTH123 - a path may be of any bytes
                    tar.addfile(member, file)
                tally.bytes += member.size
            else:
                tar.addfile(member)
            tally.entries += 1
            # What was written is not needed again, and a tree has any number of entries.
            tar.members.clear()  # type: ignore[attr-defined]  # typeshed leaves it out
    return tally


def _as_file(target: Writable) -> IO[bytes]:
    return target  # type: ignore[return-value]  # a stream mode's file needs no more than write


def _walk(source: str, name: str) -> Iterator[tuple[str, str]]:
    """Yield every path below `source`, itself first, and its name in the archive; follows no link."""
    waiting = [(source, name)]
    while waiting:
        path, member_name = waiting.pop()
        yield path, member_name
        if os.path.islink(path) or not os.path.isdir(path):  # noqa: PTH112, PTH114 - a path of any bytes
            continue
        with os.scandir(path) as entries:
            names = sorted((entry.name for entry in entries), reverse=True)
        waiting.extend((f"{path.rstrip('/')}/{each}", f"{member_name}/{each}") for each in names)
