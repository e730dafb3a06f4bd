"""A node's end of `netctl cp`: archives out of a tree of its own, and what came in."""

from __future__ import annotations

import io
import tarfile
from collections import deque
from collections.abc import Iterable

import attrs

from netctl.wire.messages import StreamData, StreamEnd

Member = tuple[tarfile.TarInfo, bytes]


def directory(name: str, mode: int = 0o755) -> Member:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, mode
    return member, b""


def file(name: str, content: bytes = b"content", mode: int = 0o644) -> Member:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(content), mode, 1_000_000_000
    return member, content


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> Member:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member, b""


def special(name: str, kind: bytes) -> Member:
    member = tarfile.TarInfo(name)
    member.type = kind
    return member, b""


def archive(members: Iterable[Member]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
    return target.getvalue()


@attrs.define
class CopyStream:
    """Stands where `netctl.stream.Stream` stands.

    Attributes:
        pieces: What comes, in order; the end is the last of them.
        window: Bytes that may be sent at once; as many more are given whenever the client waits.
        end: What the node answers once the client's archive has ended.
        gives_up_after: Bytes after which the node ends the stream with `end`; None: it never does.
    """

    pieces: deque[StreamData | StreamEnd] = attrs.field(factory=deque)
    window: int = 65536
    end: StreamEnd = attrs.field(factory=lambda: StreamEnd(1, 0))
    gives_up_after: int | None = None
    ended: StreamEnd | None = None
    sent: bytearray = attrs.field(factory=bytearray)
    largest: int = 0
    input_closed: bool = False
    closed: bool = False
    _step: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._step = self.window

    @classmethod
    def of(cls, data: bytes, end: StreamEnd | None = None, piece: int = 1000) -> CopyStream:
        """Return one that brings an archive, in pieces, and ends well unless `end` says otherwise."""
        pieces = [StreamData(1, 1, data[start : start + piece]) for start in range(0, len(data), piece)]
        return cls(deque([*pieces, StreamData(1, 1, eof=True), end or StreamEnd(1, 0)]))

    def receive(self, timeout: float | None = 0.0) -> StreamData | StreamEnd | None:
        assert timeout is None
        if self.ended is not None:
            return self.ended
        if self.pieces:
            piece = self.pieces.popleft()
            if isinstance(piece, StreamEnd):
                self.ended = piece
            return piece
        if self.input_closed:
            self.ended = self.end
            return self.ended
        assert self.window == 0, "waited for nothing"
        if self.gives_up_after is not None and len(self.sent) >= self.gives_up_after:
            self.ended = self.end
        self.window = self._step
        return None

    def send(self, data: bytes) -> int:
        taken = data[: self.window]
        self.window -= len(taken)
        self.largest = max(self.largest, len(data))
        self.sent += taken
        return len(taken)

    def close_input(self) -> None:
        self.input_closed = True

    def close(self) -> None:
        self.closed = True

    def members(self) -> dict[str, tarfile.TarInfo]:
        """Return what came in, by name."""
        with tarfile.open(fileobj=io.BytesIO(bytes(self.sent))) as tar:
            return {member.name: member for member in tar.getmembers()}
