"""Which of its candidates a pair of nodes uses, and at which MTU, by what both nodes report. Pure.

What a pair uses is kept until one of its nodes reports it down; then the best candidate that both report up
takes its place, and is kept in its turn: nothing goes back to a better one by itself, since every change may
delay packets. Where nothing is up, everything stays as it is.

What counts has stood for `STEADY` seconds: a node that goes, or comes, is down by one way a moment earlier
than by the others, and none of them is the better one for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import attrs

from netctl.broker import overlay
from netctl.broker.commands import SetPairs
from netctl.broker.draft import Draft
from netctl.broker.outcome import Outcome
from netctl.broker.overlay import SMALLEST_MTU, Choice
from netctl.broker.snapshot import Node, Pair, Snapshot, pair_key
from netctl.model import OVERHEAD, Encapsulation, PathState

STEADY: Final = 2.0
"""Seconds for which one way has to be down, and another up, before that takes its place."""
RAISE_INTERVAL: Final = 10.0
"""Seconds from a change of a pair until its MTU may grow: one that is too small loses nothing."""
LOWER_INTERVAL: Final = 1.0
"""Seconds from a change of a pair until its MTU may shrink: one that is too large loses packets."""


@attrs.frozen
class Heard:
    """What one node said last of one way to a peer.

    Attributes:
        since: Since when it says that the way is up, or down (monotonic seconds).
    """

    path: PathState
    since: float


Side = Mapping[Encapsulation, Heard]
"""What one node of a pair says of the ways to the other."""


@attrs.frozen
class Verdict:
    """What a pair is to use.

    Attributes:
        choice: The present one, unless it is to change.
        again: When to look again though nothing more is reported (monotonic seconds); None: never.
    """

    choice: Choice
    again: float | None = None


def judge(
    snapshot: Snapshot, nodes: tuple[Node, Node], sides: tuple[Side, Side], *, now: float, changed: float
) -> Verdict:
    """Choose what a pair uses from now on.

    Args:
        snapshot: What is recorded.
        nodes: The two.
        sides: What each of them says.
        now: Monotonic seconds.
        changed: When this pair was last changed for what was reported.
    """
    present = overlay.choice(snapshot, *nodes)
    outer = overlay.outer_mtu(*nodes)
    heard = [side[present.encapsulation] for side in sides if present.encapsulation in side]
    down = [said.since for said in heard if not said.path.up]
    if not down:
        return _resize(present, heard, outer, now, changed)
    for candidate in overlay.candidates(snapshot, *nodes):
        ways = [side[candidate] for side in sides if candidate in side and side[candidate].path.up]
        if len(ways) < len(sides):
            continue
        steady = max(min(down), *(way.since for way in ways)) + STEADY
        if now < steady:
            return Verdict(present, steady)
        return Verdict(Choice(candidate, _mtu(candidate, ways, outer)))
    return Verdict(present)


def set_pairs(draft: Draft, command: SetPairs) -> Outcome:
    """Record what pairs of nodes use from now on.

    A pair of which a node is gone, or that may not use it any more, is left as it is: what was reported of it
    is overtaken.
    """
    snapshot = draft.snapshot(draft.revision)
    for one, other, chosen in command.pairs:
        if one not in draft.nodes or other not in draft.nodes:
            continue
        nodes = draft.nodes[one], draft.nodes[other]
        removing = nodes[0].removing or nodes[1].removing
        if not removing and chosen.encapsulation in overlay.candidates(snapshot, *nodes):
            _record(draft, snapshot, nodes, chosen)
    return Outcome()


def settle(draft: Draft, node: Node) -> None:
    """Forget what is recorded of a node's pairs and can be used no more, or is what they would use anyway."""
    snapshot = draft.snapshot(draft.revision)
    for key in snapshot.node_pairs_of.get(node.name, ()):
        nodes = snapshot.nodes[key[0]], snapshot.nodes[key[1]]
        _record(draft, snapshot, nodes, overlay.choice(snapshot, *nodes))


def drop(draft: Draft, node: Node) -> None:
    """Forget all pairs of a node that goes."""
    for key in draft.node_pairs_of.get(node.name, ()):
        draft.delete(draft.node_pairs[key])


def _record(draft: Draft, snapshot: Snapshot, nodes: tuple[Node, Node], chosen: Choice) -> None:
    """Write down what a pair uses, or nothing where it is what it would use without a record."""
    key = pair_key(nodes[0].name, nodes[1].name)
    full = overlay.outer_mtu(*nodes) - OVERHEAD[chosen.encapsulation]
    mtu = chosen.mtu if 0 < chosen.mtu < full else 0
    old = draft.node_pairs.get(key)
    if mtu == 0 and overlay.candidates(snapshot, *nodes)[:1] in ((), (chosen.encapsulation,)):
        if old is not None:
            draft.delete(old)
        return
    new = Pair(*key, chosen.encapsulation, mtu)
    if new != old:
        draft.put(new)


def _resize(present: Choice, heard: list[Heard], outer: int, now: float, changed: float) -> Verdict:
    """Return what a pair uses as before, at the MTU that is reported now."""
    mtu = _mtu(present.encapsulation, heard, outer)
    full = outer - OVERHEAD[present.encapsulation]
    if mtu == present.mtu or not any(said.path.mtu for said in heard):
        return Verdict(present)
    due = changed + (RAISE_INTERVAL if (mtu or full) > (present.mtu or full) else LOWER_INTERVAL)
    return Verdict(present, due) if now < due else Verdict(Choice(present.encapsulation, mtu))


def _mtu(encapsulation: Encapsulation, ways: Iterable[Heard], outer: int) -> int:
    """Return the MTU of a way as both ends find it; 0: all that the links take."""
    full = outer - OVERHEAD[encapsulation]
    found = min((way.path.mtu for way in ways if way.path.mtu), default=full)
    return 0 if found >= full else max(found, SMALLEST_MTU)
