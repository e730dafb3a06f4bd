"""Probing the ways to the peers: what to send when, what to answer, and what is worth telling. Pure.

    targets, packets in, the time --> Probing --> packets out, the ways found otherwise, when to ask again

Nothing here reads a clock or a socket (see `nodeagent.kernel.prober`). Whatever goes wrong on many ways at
once, this node sends no more than PACKETS_PER_SECOND probes, and answers no more than REPLIES_PER_SECOND
on each way: it looks less often then, and the routed ways come before the others.
"""

from __future__ import annotations

import heapq
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import attrs

from netctl.model import PathState
from nodeagent import probe_packets
from nodeagent.kernel_state import ProbeTarget
from nodeagent.mtu_search import OuterSizes
from nodeagent.probe_packets import NONCE_BYTES, Probe
from nodeagent.probed_way import MAX_BATCH, Way

CHOSEN_INTERVAL: Final = 1.0
"""Seconds between two probes of a way that packets are routed along."""
OTHER_INTERVAL: Final = 10.0
PACKETS_PER_SECOND: Final = 100
"""Probes sent in any one second, at most; answers to the peers' come on top."""
REGULAR_PER_SECOND: Final = 50
"""Probes a second while nothing happens: with more ways than that allows, each is probed less often."""
REPLIES_PER_SECOND: Final = 120
"""Probes of one peer answered in one second on one way: what an honest one sends, and some more."""
PAUSE: Final = 2.0
"""Seconds between two words on one way's round trip or loss; what is up, and its MTU, is told at once."""
TELLING_ROUND_TRIP: Final = 0.25
"""A round trip that differs by more than this part of the one told is worth telling,"""
TELLING_MICROSECONDS: Final = 1000
"""if it differs by more than this, too."""
TELLING_PERMILLE: Final = 100
"""The same for a loss."""
TOGETHER: Final = 1.5
"""Seconds that bad news of a routed way waits for the news of the same peer's other ways."""
OTHER_HANDICAP: Final = 2.0
"""Seconds that another way must have waited longer than a routed one to be probed first,"""
REST_HANDICAP: Final = 1.0
"""and a way at rest longer than one of which something is being found out."""

_BURST: Final = 20
_RATE: Final = PACKETS_PER_SECOND - _BURST
_HAIR: Final = 1e-6
"""What sums of floating-point numbers may lack: else a deadline could be reached and not be over."""


@attrs.frozen
class Packet:
    """A packet to send: as IPv4 by a device, to `mac` where that is an Ethernet link."""

    device: str
    mac: str
    data: bytes


class _Watched:
    """One way, and what was told and answered of it."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.told: PathState | None = None
        self.told_at = 0.0
        self._second = 0
        self._replies = 0

    def may_reply(self, now: float) -> bool:
        if self._second != int(now):
            self._second, self._replies = int(now), 0
        self._replies += 1
        return self._replies <= REPLIES_PER_SECOND


class Probing:
    """All ways of one node.

    Args:
        nonce: Returns NONCE_BYTES that nobody can guess.
    """

    def __init__(self, nonce: Callable[[], bytes] = lambda: secrets.token_bytes(NONCE_BYTES)) -> None:
        self._nonce = nonce
        self._watched: dict[tuple[str, str], _Watched] = {}
        self._by_peer: dict[str, list[_Watched]] = {}
        # By device, the peer's bridge's address and ours.
        self._by_place: dict[tuple[str, str, str], _Watched] = {}
        self._sizes = OuterSizes()
        self._slowdown = 1.0
        self._tokens = float(_BURST)
        self._filled_at = 0.0
        # When a way may have something to do; an entry whose time is not its way's any more means nothing.
        self._agenda: list[tuple[float, int, _Watched]] = []
        self._entries = 0
        self._news: dict[str, None] = {}

    @property
    def devices(self) -> frozenset[str]:
        """The devices that packets are taken from."""
        return frozenset(device for device, _, _ in self._by_place)

    def aim(self, targets: Iterable[ProbeTarget], now: float) -> None:
        """Probe these ways from now on, and no others. One that is kept keeps what is known of it."""
        before, self._watched = self._watched, {}
        self._by_peer, self._by_place = {}, {}
        demand = 0.0
        for target in targets:
            key = (target.peer, target.encapsulation)
            watched = before.get(key)
            if watched is None:
                watched = _Watched(Way(target, self._sizes, now))
            else:
                watched.way.aim(target, now)
            self._watched[key] = watched
            self._by_peer.setdefault(target.peer, []).append(watched)
            for device in (target.device, *target.also):
                self._by_place[device, target.destination, target.source] = watched
            demand += 1 / (CHOSEN_INTERVAL if target.chosen else OTHER_INTERVAL)
        self._slowdown = max(1.0, demand / REGULAR_PER_SECOND)
        self._agenda = []
        for watched in self._watched.values():
            self._schedule(watched)
            self._news[watched.way.target.peer] = None

    def receive(self, device: str, mac: str, data: bytes, now: float) -> Packet | None:
        """Take a packet; return the answer to it, if it is a peer's probe on one of the ways.

        Args:
            device: Where it came in.
            mac: Who sent the frame, where the device is an Ethernet link; else empty.
            data: From its IPv4 header on.
            now: Seconds of the caller's clock.
        """
        probe = probe_packets.decode(data)
        if probe is None:
            return None
        watched = self._by_place.get((device, probe.source, probe.destination))
        if watched is None or watched.way.target.mac != mac:
            return None
        way, at = watched.way, watched.way.at
        if probe.kind == "reply":
            way.received(probe.nonce, probe.size, now)
            self._news[way.target.peer] = None
        elif watched.may_reply(now):
            way.sign_of_life(now)
        else:
            return None
        if way.at != at:
            self._schedule(watched)
        if probe.kind == "reply":
            return None
        return Packet(device, mac, probe_packets.encode(probe.reply()))

    def turn(self, now: float) -> Sequence[Packet]:
        """Do what is due; return the packets to send now. Call it when `deadline` has come."""
        self._tokens = min(_BURST, self._tokens + (now - self._filled_at) * _RATE)
        self._filled_at = now
        due: list[_Watched] = []
        while self._agenda and self._agenda[0][0] <= now:
            at, _, watched = heapq.heappop(self._agenda)
            if self._watched.get(_key(watched)) is watched and watched.way.at == at:
                due.append(watched)
        due.sort(key=_place_in_line)
        packets: list[Packet] = []
        for watched in due:
            # One that is due twice, as it may be on the agenda, is not due any more after the first time.
            if watched.way.at <= now and self._tokens > MAX_BATCH - _HAIR:
                packets += self._send(watched, now)
            self._schedule(watched)
        return packets

    def changes(self, now: float) -> tuple[PathState, ...]:
        """Return the ways that are found otherwise than returned before, where that is worth telling."""
        found: list[PathState] = []
        for peer in list(self._news):
            waits = False
            for watched in self._by_peer.get(peer, ()):
                state = watched.way.state
                if state is None or not _is_news(watched, state, now):
                    continue
                if self._waits_for_others(watched, state, now):
                    waits = True
                    continue
                watched.told, watched.told_at = state, now
                found.append(state)
            if not waits:
                del self._news[peer]
        return tuple(found)

    @property
    def deadline(self) -> float | None:
        """When `turn` has something to do by itself; None: never."""
        if not self._agenda:
            return None
        return max(self._agenda[0][0], self._filled_at + (MAX_BATCH - self._tokens) / _RATE)

    # --- parts --------------------------------------------------------------------------------------

    def _schedule(self, watched: _Watched) -> None:
        self._entries += 1
        heapq.heappush(self._agenda, (watched.way.at, self._entries, watched))

    def _send(self, watched: _Watched, now: float) -> Iterable[Packet]:
        way = watched.way
        target = way.target
        suspect = way.is_suspect
        self._news[target.peer] = None
        interval = CHOSEN_INTERVAL if target.chosen else OTHER_INTERVAL
        packets: list[Packet] = []
        for size in way.send(now, interval * self._slowdown):
            nonce = self._nonce()
            way.sent(nonce, size, now)
            probe = Probe(target.source, target.destination, "request", nonce, size)
            packets.append(Packet(target.device, target.mac, probe_packets.encode(probe)))
        self._tokens -= len(packets)
        if target.chosen and way.is_suspect and not suspect:
            self._check_others(watched, now)
        return packets

    def _check_others(self, chosen: _Watched, now: float) -> None:
        """Look at the peer's other ways: one of them may be needed in a moment."""
        for watched in self._by_peer[chosen.way.target.peer]:
            if watched is not chosen:
                watched.way.check(now)
                self._schedule(watched)

    def _waits_for_others(self, watched: _Watched, state: PathState, now: float) -> bool:
        """Tell whether a routed way that fell is told a moment later.

        A peer that is silent as a whole would else pass for one that another way leads to.
        """
        way = watched.way
        if state.up or not way.target.chosen or now >= way.down_at + TOGETHER:
            return False
        others = (other.way for other in self._by_peer[way.target.peer] if other is not watched)
        return any(other.is_undecided for other in others)


def _place_in_line(watched: _Watched) -> float:
    way = watched.way
    return (
        way.at + (0.0 if way.target.chosen else OTHER_HANDICAP) + (0.0 if way.is_undecided else REST_HANDICAP)
    )


def _key(watched: _Watched) -> tuple[str, str]:
    return watched.way.target.peer, watched.way.target.encapsulation


def _is_news(watched: _Watched, state: PathState, now: float) -> bool:
    told = watched.told
    if told is None or (told.up, told.mtu) != (state.up, state.mtu):
        return True
    slower = abs(state.rtt_us - told.rtt_us)
    return now >= watched.told_at + PAUSE and (
        (slower > TELLING_MICROSECONDS and slower > TELLING_ROUND_TRIP * told.rtt_us)
        or abs(state.loss_permille - told.loss_permille) > TELLING_PERMILLE
    )
