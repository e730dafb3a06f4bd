"""A node's new WireGuard key, step by step, so that nothing is lost and every step survives a restart. Pure.

    making      the node holds two keys, and says what the new one's public half is
    switching   it sends from the new one; what its peers do not know yet waits in its kernel
    spreading   its peers send to the new one, which lets the waiting packets go
    (over)      it holds the new key alone; the old one is destroyed

A step is taken when the one before is acknowledged by all that it concerns. The second is not taken before
all peers can be reached: one that is not told of the new key would hear nothing from the node until it is.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import attrs

from netctl.broker import lookup, overlay
from netctl.broker.commands import Acknowledge, AdvanceRotation, StartRotation
from netctl.broker.draft import Draft
from netctl.broker.outcome import Outcome
from netctl.broker.snapshot import Node, Rotation, Snapshot
from netctl.errors import RefusedError


def start(draft: Draft, command: StartRotation) -> Outcome:
    """Have a node make a new key; where that is under way, it is the same one.

    Raises:
        NotFoundError: No node is called so.
        RefusedError: It is being removed, or uses no WireGuard.
    """
    node = lookup.node(draft, command.node)
    if node.removing:
        raise RefusedError(f"node {node.name} is being removed", "join it anew once it is gone", (node.name,))
    if not overlay.offers_wireguard(draft.base, node):
        raise RefusedError(
            f"node {node.name} has no WireGuard key",
            f"load the kernel's module on {node.name}, and let its `--encapsulation` name wireguard",
            (node.name,),
        )
    rotation = draft.rotations.get(node.name)
    if rotation is not None:
        return Outcome(_done(rotation), rotation.revision, frozenset({node.name}))
    rotation = Rotation(node.name, node.generation + 1, "making", draft.revision)
    draft.put(rotation)
    return Outcome(_done(rotation))


def awaited(snapshot: Snapshot, rotation: Rotation, ready: AbstractSet[str]) -> frozenset[str]:
    """Return the nodes that the next step waits for; none: it is due.

    Args:
        snapshot: What is recorded.
        rotation: One of its.
        ready: Nodes with a live session.
    """
    node = snapshot.nodes[rotation.node]
    if rotation.step != "making":
        return rotation.awaiting
    if not any(end.generation == rotation.generation for end in node.facts.wireguard):
        return frozenset({node.name})
    return (_peers(snapshot, node) | {node.name}) - ready


def advance(draft: Draft, command: AdvanceRotation) -> Outcome:
    """Take the next step, if it is due."""
    rotation = draft.rotations.get(command.node)
    if rotation is None or awaited(draft.base, rotation, command.ready):
        return Outcome()
    node = draft.nodes[rotation.node]
    match rotation.step:
        case "making":
            waits = frozenset({node.name})
            draft.put(attrs.evolve(rotation, step="switching", revision=draft.revision, awaiting=waits))
        case "switching":
            peers = _peers(draft.base, node)
            draft.put(attrs.evolve(rotation, step="spreading", revision=draft.revision, awaiting=peers))
        case "spreading":
            draft.put(attrs.evolve(node, generation=rotation.generation))
            draft.delete(rotation)
    return Outcome(_done(rotation))


def acknowledge(draft: Draft, command: Acknowledge) -> None:
    """Note that a node has taken a step, unless it says that just that failed."""
    if command.node not in draft.nodes or "" in command.failed:
        return
    present = command.revision >= draft.changed.get(command.node, 0)
    for rotation in draft.rotations.values():
        concerned = command.node in rotation.awaiting and rotation.node not in command.failed
        if concerned and (present or command.revision >= rotation.revision):
            draft.put(attrs.evolve(rotation, awaiting=rotation.awaiting - {command.node}))


def drop(draft: Draft, node: Node) -> None:
    """Forget the new key of a node that goes, and wait for it nowhere."""
    for rotation in draft.rotations.values():
        if rotation.node == node.name:
            draft.delete(rotation)
        elif node.name in rotation.awaiting:
            draft.put(attrs.evolve(rotation, awaiting=rotation.awaiting - {node.name}))


def _peers(snapshot: Snapshot, node: Node) -> frozenset[str]:
    """Return the nodes that send to a node by WireGuard, or may."""
    return frozenset(
        name
        for name, other in snapshot.nodes.items()
        if name != node.name
        and not other.removing
        and "wireguard" in overlay.candidates(snapshot, node, other)
    )


def _done(rotation: Rotation) -> str:
    return f"{rotation.node} has a new WireGuard key, of generation {rotation.generation}"
