"""Every session the broker has, by id and by the connection it came over. No I/O.

A handshake makes a half-open session: bounded in number and time, it changes nothing and ends nobody
else's. Its first sealed message confirms it; only then does a node's new session take the place of its
older one. A frame that is not of the agreed form ends the session of the connection it came over, and
nothing else; a frame of a session that is not known is answered with a restart frame.

The routing id that names a connection is ZeroMQ's and grants nothing: it only says where to answer.
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator

import attrs

from netctl.errors import ProtocolError
from netctl.wire.identity import KeyPair
from netctl.wire.messages import Envelope
from netctl.wire.session import (
    DATA,
    FIRST,
    SESSION_ID_BYTES,
    Frame,
    Role,
    Session,
    accept_first,
    parse_header,
    restart_frame,
)


@attrs.frozen
class Limits:
    """What the broker takes at most, and how long it waits.

    Attributes:
        half_open: Handshakes whose initiator has not spoken yet.
        half_open_seconds: How long one may stay so.
        sessions: Confirmed sessions; the user's or joiner's that is silent for longest makes room.
        sessions_per_key: Confirmed sessions of one user.
        idle_seconds: Silence that ends a user's session of which nothing is outstanding.
        interval: Seconds of silence after which a node is asked whether it is there, and a user of whom
            something is outstanding; after three of them the session ends.
    """

    half_open: int = 256
    half_open_seconds: float = 10.0
    sessions: int = 8192
    sessions_per_key: int = 64
    idle_seconds: float = 600.0
    interval: float = 5.0


@attrs.define(eq=False)
class Peer:
    """One session, and the connection it lives on.

    Attributes:
        route: The connection's routing id.
        heard: When a frame of it last opened (monotonic seconds), or when it was made.
        asked: When it was last asked whether it is there.
        name: Of the account or node, once the key was looked up; empty before.
        outstanding: Streams and answers that this session waits for.
        sent: For a node: the revision of the desired state it was sent last; None before its Hello.
    """

    route: bytes
    session: Session
    heard: float
    asked: float
    name: str = ""
    outstanding: int = 0
    sent: int | None = None

    @property
    def role(self) -> Role:
        """What this session may do."""
        return self.session.role

    @property
    def key(self) -> str:
        """The other side's public key in hexadecimal."""
        return self.session.peer_key.hex()


@attrs.frozen
class Reply:
    """A frame to send back that belongs to no confirmed session."""

    route: bytes
    frame: Frame


@attrs.frozen
class Opened:
    """A message that came in."""

    peer: Peer
    envelope: Envelope


@attrs.frozen
class Ended:
    """A confirmed session is over."""

    peer: Peer
    reason: str


Event = Reply | Opened | Ended


class Sessions:
    """The table of sessions.

    Args:
        keys: The broker's.
        allowed: The messages each role may send.
        limits: Bounds.
        random: Makes that many random bytes.
    """

    def __init__(
        self,
        keys: KeyPair,
        allowed: dict[Role, frozenset[type]],
        limits: Limits,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._keys = keys
        self._allowed = allowed
        self._limits = limits
        self._random = random
        # Both in the order of their last sign of life, oldest first.
        self._half_open: OrderedDict[bytes, Peer] = OrderedDict()
        self._confirmed: OrderedDict[bytes, Peer] = OrderedDict()
        self._routes: dict[bytes, Peer] = {}
        self._half_routes: dict[bytes, Peer] = {}
        self._nodes: dict[str, Peer] = {}
        self._per_key: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._confirmed)

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._confirmed.values()))

    @property
    def half_open(self) -> int:
        """Handshakes whose initiator has not spoken yet."""
        return len(self._half_open)

    def receive(self, route: bytes, parts: list[bytes], now: float) -> list[Event]:
        """Take in what came over one connection.

        Args:
            route: The connection's routing id.
            parts: What came, without the routing id.
            now: Monotonic seconds.
        """
        try:
            return self._take(route, parts, now)
        except ProtocolError as error:
            return [*self._punish(route, str(error))]

    def end(self, peer: Peer, reason: str) -> list[Ended]:
        """End a session; nothing when it is over already."""
        if self._confirmed.get(peer.session.id) is not peer:
            return []
        del self._confirmed[peer.session.id]
        if self._routes.get(peer.route) is peer:
            del self._routes[peer.route]
        if self._nodes.get(peer.key) is peer:
            del self._nodes[peer.key]
        self._per_key[peer.key] -= 1
        if not self._per_key[peer.key]:
            del self._per_key[peer.key]
        return [Ended(peer, reason)]

    def lost(self, route: bytes, reason: str) -> list[Ended]:
        """End the session of a connection that takes no more frames."""
        return self._punish(route, reason)

    def is_live(self, peer: Peer) -> bool:
        """Tell whether a session is not over."""
        return self._confirmed.get(peer.session.id) is peer

    def sweep(self, now: float) -> tuple[list[Ended], list[Peer]]:
        """End what was silent for too long.

        Returns:
            What ended, and the sessions that are to be asked whether they are there.
        """
        self._expire_half_open(now)
        ended: list[Ended] = []
        silent = []
        for peer in self:
            silence = now - peer.heard
            watched = peer.role == "node" or peer.outstanding > 0
            if watched and silence > 3 * self._limits.interval:
                ended += self.end(peer, f"silent for {silence:.0f} seconds")
            elif not watched and silence > self._limits.idle_seconds:
                ended += self.end(peer, "idle")
            elif watched and now - max(peer.heard, peer.asked) >= self._limits.interval:
                peer.asked = now
                silent.append(peer)
        return ended, silent

    def _take(self, route: bytes, parts: list[bytes], now: float) -> list[Event]:
        if len(parts) != 2:  # noqa: PLR2004 - a frame is a header and a body
            raise ProtocolError(f"a frame has {len(parts)} parts instead of 2")
        header = parse_header(parts[0])
        if header.type == FIRST:
            return [self._shake_hands(route, parts[0], parts[1], now)]
        if header.type != DATA:
            raise ProtocolError("only a broker sends frames of this type")
        peer = self._confirmed.get(header.session_id) or self._half_open.get(header.session_id)
        if peer is None or peer.route != route:
            return [Reply(route, restart_frame(header.session_id))]
        envelope = peer.session.open(parts[0], parts[1], self._allowed[peer.role])
        peer.heard = now
        ended = self._confirm(peer) if header.session_id in self._half_open else []
        self._confirmed.move_to_end(header.session_id)
        return [*ended, Opened(peer, envelope)]

    def _shake_hands(self, route: bytes, header: bytes, body: bytes, now: float) -> Event:
        self._expire_half_open(now)
        frame, session = accept_first(self._keys, header, body, self._random(SESSION_ID_BYTES))
        old = self._half_routes.get(route)
        if old is not None:
            self._forget_half_open(old)
        while len(self._half_open) >= self._limits.half_open:
            # The oldest has had the most time to speak: who is really there does so within a round trip.
            self._forget_half_open(next(iter(self._half_open.values())))
        peer = Peer(route, session, now, now)
        self._half_open[session.id] = peer
        self._half_routes[route] = peer
        return Reply(route, frame)

    def _confirm(self, peer: Peer) -> list[Ended]:
        """Move a session among the confirmed, at the expense of those it replaces."""
        self._forget_half_open(peer)
        ended: list[Ended] = []
        older = [self._routes.get(peer.route)]
        if peer.role == "node":
            older.append(self._nodes.get(peer.key))
        elif self._per_key[peer.key] >= self._limits.sessions_per_key:
            same = [p for p in self if p.key == peer.key and p.role == peer.role]
            # One that waits for nothing first: its command has ended, and a broker is not told of that.
            older.append(next((p for p in same if not p.outstanding), next(iter(same), None)))
        for old in older:
            if old is not None:
                ended += self.end(old, "a newer session took its place")
        if len(self._confirmed) >= self._limits.sessions:
            others = [p for p in self if p.role != "node"]
            idle = next((p for p in others if not p.outstanding), next(iter(others), None))
            ended += self.end(idle, "too many sessions") if idle is not None else []
        self._confirmed[peer.session.id] = peer
        self._routes[peer.route] = peer
        self._per_key[peer.key] += 1
        if peer.role == "node":
            self._nodes[peer.key] = peer
        return ended

    def _punish(self, route: bytes, reason: str) -> list[Ended]:
        half_open = self._half_routes.get(route)
        if half_open is not None:
            self._forget_half_open(half_open)
        peer = self._routes.get(route)
        return [] if peer is None else self.end(peer, reason)

    def _expire_half_open(self, now: float) -> None:
        while self._half_open:
            oldest = next(iter(self._half_open.values()))
            if now - oldest.heard <= self._limits.half_open_seconds:
                break
            self._forget_half_open(oldest)

    def _forget_half_open(self, peer: Peer) -> None:
        del self._half_open[peer.session.id]
        if self._half_routes.get(peer.route) is peer:
            del self._half_routes[peer.route]
