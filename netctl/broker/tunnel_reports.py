"""What nodes report of themselves and of the ways to their peers, and what that leads to."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import attrs

from netctl.broker import lookup, overlay, pairing, rotating
from netctl.broker.commands import AdvanceRotation, SetPairs, UpdateFacts
from netctl.broker.snapshot import Decision, Delete, PairKey, Rotation, pair_key
from netctl.errors import NetctlError
from netctl.log import get_logger
from netctl.model import NodeFacts, PathState
from netctl.wire.messages import NodeError

if TYPE_CHECKING:
    from netctl.broker.hub import Hub


RETRY_INTERVAL: Final = 1.0
"""Seconds until a change of a pair is decided again that could not be written."""


@attrs.frozen
class Refused:
    """What a node said of itself, and why that is not recorded (yet)."""

    facts: NodeFacts
    error: NodeError


def take_facts(hub: Hub, node: str, facts: NodeFacts) -> Decision | None:
    """Record what a node says of itself.

    What cannot be recorded is kept, since it may be possible later: as when two nodes move, and the one says
    so before the other has left the address. Until then peers are told what is recorded, and users why.

    Args:
        hub: The broker.
        node: Its name.
        facts: What it says.

    Returns:
        What was decided, to be published once it is written; None: nothing changed.

    Raises:
        NotFoundError: The node is not recorded.
    """
    hub.refused.pop(node, None)
    if lookup.node(hub.journal.head, node).facts == facts:
        return None
    try:
        decision = hub.journal.decide(UpdateFacts(node, facts), hub.clock())
    except NetctlError as error:
        get_logger().warning("facts refused", node=node, error=error.message, remedy=error.remedy)
        hub.refused[node] = Refused(facts, NodeError("", error.message, error.remedy))
        return None
    hub.something_freed = True
    return decision


def go_on(hub: Hub) -> None:
    """Decide what waited for a node to come, to go, to acknowledge or to say something of itself."""
    hub.something_freed = False
    decisions = _try_refused(hub)
    for rotation in list(hub.journal.head.rotations.values()):
        ready = frozenset(hub.nodes)
        if not rotating.awaited(hub.journal.head, rotation, ready):
            decisions.append(hub.journal.decide(AdvanceRotation(rotation.node, ready), hub.clock()))
    for decision in decisions:
        hub.after(functools.partial(_went_on, hub, decision), lambda _error: None)


def _went_on(hub: Hub, decision: Decision) -> None:
    # The next step may be due already, where nobody is awaited for this one.
    hub.something_freed = True
    for change in decision.changes:
        if isinstance(change.record, Rotation):
            node = change.record.node
            get_logger().info("a key rotation went on", node=node, revision=decision.revision)
            if isinstance(change, Delete):
                hub.waiting.rotated(node, decision.revision)
    hub.publish(decision)


def _try_refused(hub: Hub) -> list[Decision]:
    decisions = []
    for node, refused in list(hub.refused.items()):
        if node not in hub.journal.head.nodes:
            del hub.refused[node]
            continue
        try:
            decisions.append(hub.journal.decide(UpdateFacts(node, refused.facts), hub.clock()))
        except NetctlError as error:
            hub.refused[node] = attrs.evolve(refused, error=NodeError("", error.message, error.remedy))
        else:
            del hub.refused[node]
    return decisions


def take_paths(hub: Hub, node: str, paths: Iterable[PathState], now: float) -> None:
    """Note how a node finds the ways to its peers, and have the pairs concerned use what is best for them."""
    look_at(hub, hub.ways.take(node, paths, hub.journal.head.nodes, now), now)


def look_at(hub: Hub, pairs: Iterable[PairKey], now: float) -> None:
    """Look at what is reported of some pairs of nodes; have them use something else where that asks for it.

    Args:
        hub: The broker.
        pairs: The pairs; nothing else is looked at.
        now: Monotonic seconds.
    """
    head = hub.journal.head
    changes = []
    for key in pairs:
        if key[0] not in head.nodes or key[1] not in head.nodes:
            continue
        one, other = head.nodes[key[0]], head.nodes[key[1]]
        sides = (hub.ways.side(one.name, other.name), hub.ways.side(other.name, one.name))
        verdict = pairing.judge(head, (one, other), sides, now=now, changed=hub.ways.changed(key))
        hub.ways.look_again(key, verdict.again)
        if verdict.choice != overlay.choice(head, one, other):
            hub.ways.change(key, now)
            changes.append((one.name, other.name, verdict.choice))
            get_logger().info(
                "a pair uses another way",
                node=one.name,
                peer=other.name,
                encapsulation=verdict.choice.encapsulation,
                mtu=verdict.choice.mtu,
            )
    if changes:
        decision = hub.journal.decide(SetPairs(tuple(changes)), hub.clock())

        def failed(_error: NetctlError) -> None:
            for one, other, _ in changes:
                hub.ways.look_again(pair_key(one, other), now + RETRY_INTERVAL)

        hub.after(lambda: hub.publish(decision), failed)
