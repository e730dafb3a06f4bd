"""Streams between users and nodes: the output of containers, and commands run in them. No I/O.

Each stream has an id of its own towards either side. Bytes are passed on as they come; each side may send
as much as the other has given credit for, which bounds what can wait anywhere on the way, and a side that
sends more loses its session. A stream ends when either side ends it or goes away.
"""

from __future__ import annotations

from typing import Final

import attrs

from netctl.broker.sessions import Peer
from netctl.errors import ExhaustedError, ProtocolError
from netctl.wire.messages import Message, StreamCredit, StreamData, StreamEnd, StreamOpened, StreamResize

CREDIT: Final = 262144
"""Bytes each side may send before it is given more; what `StreamOpened` says."""
PER_USER: Final = 32
PER_NODE: Final = 1024
_MAX_CREDIT: Final = 2**31
_LAST_ID: Final = 2**31 - 1


@attrs.define(eq=False)
class _End:
    """One side of a stream: who, by which id, and how many bytes it may still send."""

    peer: Peer
    id: int
    credit: int = CREDIT


@attrs.define(eq=False)
class _Stream:
    user: _End
    node: _End

    def sides(self, peer: Peer) -> tuple[_End, _End]:
        """Return the side of `peer`, then the other."""
        return (self.user, self.node) if peer is self.user.peer else (self.node, self.user)


Relayed = tuple[Peer, Message]


class Streams:
    """All open streams."""

    def __init__(self) -> None:
        self._of: dict[Peer, dict[int, _Stream]] = {}
        self._last_id: dict[Peer, int] = {}

    def __len__(self) -> int:
        return sum(len(streams) for streams in self._of.values()) // 2

    def open(self, user: Peer, node: Peer) -> tuple[StreamOpened, int]:
        """Make a stream.

        Returns:
            The user's answer, and the stream's id towards the node.

        Raises:
            ExhaustedError: One of the two has too many.
        """
        if len(self._of.get(user, ())) >= PER_USER:
            raise ExhaustedError(f"a session has at most {PER_USER} streams", "end one first")
        if len(self._of.get(node, ())) >= PER_NODE:
            raise ExhaustedError(
                f"node {node.name} has {PER_NODE} streams already", "end some first", (node.name,)
            )
        stream = _Stream(_End(user, self._next_id(user)), _End(node, self._next_id(node)))
        for end in (stream.user, stream.node):
            self._of.setdefault(end.peer, {})[end.id] = stream
            end.peer.outstanding += 1
        return StreamOpened(stream.user.id, CREDIT), stream.node.id

    def relay(
        self, peer: Peer, message: StreamData | StreamCredit | StreamResize | StreamEnd
    ) -> Relayed | None:
        """Return what to pass on, and to whom; None where the stream is over already.

        Raises:
            ProtocolError: The sender went beyond its credit, or does what is not its side's to do.
        """
        stream = self._of.get(peer, {}).get(message.stream)
        if stream is None:
            if message.stream > self._last_id.get(peer, 0):
                raise ProtocolError("a stream that was never opened")
            # What was on its way when the other side ended the stream.
            return None
        own, other = stream.sides(peer)
        if isinstance(message, StreamData):
            _spend(own, message, from_user=own is stream.user)
        elif isinstance(message, StreamCredit):
            other.credit += message.credit
            if other.credit > _MAX_CREDIT:
                raise ProtocolError("more credit for a stream than can be used")
        elif isinstance(message, StreamEnd):
            self._close(stream)
        elif own is not stream.user:
            raise ProtocolError("only a user has a terminal")
        return other.peer, attrs.evolve(message, stream=other.id)

    def end(self, peer: Peer, reason: str) -> list[Relayed]:
        """End all streams of a session that is over; return what to tell the other sides."""
        told: list[Relayed] = []
        for stream in list(self._of.get(peer, {}).values()):
            other = stream.sides(peer)[1]
            self._close(stream)
            told.append((other.peer, StreamEnd(other.id, message=reason)))
        self._last_id.pop(peer, None)
        return told

    def _close(self, stream: _Stream) -> None:
        for end in (stream.user, stream.node):
            streams = self._of[end.peer]
            del streams[end.id]
            if not streams:
                del self._of[end.peer]
            end.peer.outstanding -= 1

    def _next_id(self, peer: Peer) -> int:
        number = self._last_id.get(peer, 0) % _LAST_ID + 1
        self._last_id[peer] = number
        return number


def _spend(own: _End, message: StreamData, *, from_user: bool) -> None:
    if (message.channel == 0) != from_user:
        raise ProtocolError("data on the other side's channel of a stream")
    if not message.data and not message.eof:
        raise ProtocolError("data without bytes on a stream")
    own.credit -= len(message.data)
    if own.credit < 0:
        raise ProtocolError("more bytes on a stream than there was credit for")
