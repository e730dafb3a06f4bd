"""What was freed and may still be in some kernel: held until every node concerned acknowledged. Pure."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

import attrs
from immutables import Map

from netctl.broker.commands import Acknowledge
from netctl.broker.draft import Draft
from netctl.broker.outcome import Outcome
from netctl.broker.snapshot import Container, Held
from netctl.errors import RefusedError


def hold(draft: Draft, subject: str, node: str, awaiting: AbstractSet[str]) -> None:
    """Keep an address or block from being used again until all of `awaiting` acknowledged.

    Args:
        draft: What is recorded.
        subject: The address or block.
        node: Whose it was.
        awaiting: Nodes that may still have it in their kernel.
    """
    draft.put(Held(subject, node, draft.revision, frozenset(awaiting)))


def nodes_knowing(draft: Draft, container: Container) -> set[str]:
    """Return the nodes that may know a container by its address.

    These are its own node, the nodes of what it is connected to, and those that have not yet acknowledged
    the loss of an earlier connection of it.
    """
    nodes = {container.node, *draft.unsettled(container.id)}
    for source, destination, _ in draft.connections_of.get(container.id, ()):
        nodes.update((draft.containers[source].node, draft.containers[destination].node))
    return nodes


def forget(draft: Draft, node: str) -> None:
    """Wait no longer for a node that was fenced or is gone."""
    for subject in draft.awaiting.get(node, Map[str, None]()):
        _release(draft, draft.held[subject], node)


def acknowledge(draft: Draft, command: Acknowledge) -> Outcome:
    """Note that a node holds what was wanted at a revision; free what only it was awaited for.

    A node that was being removed is gone with the acknowledgement of its removal. One that is not
    recorded any more is not heard: its last word may cross with its removal.

    Raises:
        RefusedError: The revision is not reached yet.
    """
    node = draft.nodes.get(command.node)
    if node is None:
        return Outcome()
    if command.revision > draft.base.revision:
        raise RefusedError(
            f"node {node.name} claims revision {command.revision}, ahead of {draft.base.revision}",
            "was the broker's store restored from an old copy?",
            (node.name,),
        )
    if command.revision > draft.acknowledged.get(node.name, 0):
        draft.acknowledged = draft.acknowledged.set(node.name, command.revision)
    present = command.revision >= draft.changed.get(node.name, 0)
    for subject in draft.awaiting.get(node.name, Map[str, None]()):
        held = draft.held[subject]
        if present or command.revision >= held.revision:
            _release(draft, held, node.name)
            if subject == node.block and node.removing:
                forget(draft, node.name)
                draft.delete(node)
                break
    return Outcome()


def _release(draft: Draft, held: Held, node: str) -> None:
    rest = held.awaiting - {node}
    if rest:
        draft.put(attrs.evolve(held, awaiting=rest))
    else:
        draft.delete(held)
