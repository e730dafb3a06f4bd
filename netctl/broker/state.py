"""Deciding: `(snapshot, command) -> decision`, or a refusal that changes nothing. Pure.

    command -> decide -> handler drafts records          (membership, workloads, attaching, leasing,
                                                            connecting, holding, pairing, rotating)
                      -> what changed, and for whom      (plan.deltas)
                      -> Decision: next snapshot, changes for the store, deltas for nodes

The handlers know their subject; this module knows revisions. Revisions grow by one with every accepted
command that changes a record, but for acknowledgements, which change no desired state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
from immutables import Map

from netctl.broker import (
    attaching,
    connecting,
    holding,
    ipam,
    leasing,
    membership,
    pairing,
    plan,
    rotating,
    workloads,
)
from netctl.broker.commands import (
    Acknowledge,
    AddConnections,
    AddContainer,
    AddInvite,
    AdvanceRotation,
    AttachContainer,
    BindNode,
    Command,
    DetachContainer,
    DropConnections,
    DropContainer,
    EnrolNode,
    EnrolUser,
    Expire,
    LabelNode,
    LeaseAddress,
    RemoveNode,
    SetDraining,
    SetPairs,
    SetWanted,
    StartRotation,
    SyncContainers,
    TopUpLeases,
    UpdateFacts,
)
from netctl.broker.draft import Draft
from netctl.broker.outcome import Outcome
from netctl.broker.snapshot import DEFAULT_ORDER, Container, Decision, Record, Snapshot
from netctl.model import VXLAN_PORT, Encapsulation, Encryption


def _acknowledge(draft: Draft, command: Acknowledge) -> Outcome:
    rotating.acknowledge(draft, command)
    return holding.acknowledge(draft, command)


_HANDLERS: Mapping[type, Callable[[Draft, Any], Outcome]] = {
    AddInvite: membership.add_invite,
    EnrolUser: membership.enrol_user,
    EnrolNode: membership.enrol_node,
    UpdateFacts: membership.update_facts,
    SetDraining: membership.set_draining,
    RemoveNode: membership.remove_node,
    BindNode: attaching.bind_node,
    LabelNode: membership.label_node,
    AttachContainer: attaching.attach_container,
    DetachContainer: attaching.detach_container,
    SyncContainers: attaching.sync_containers,
    LeaseAddress: leasing.lease_address,
    TopUpLeases: leasing.top_up_leases,
    AddContainer: workloads.add_container,
    SetWanted: workloads.set_wanted,
    DropContainer: workloads.drop_container,
    AddConnections: connecting.add_connections,
    DropConnections: connecting.drop_connections,
    SetPairs: pairing.set_pairs,
    StartRotation: rotating.start,
    AdvanceRotation: rotating.advance,
    Acknowledge: _acknowledge,
    Expire: connecting.expire,
}


def decide(snapshot: Snapshot, command: Command, now: float) -> Decision:
    """Decide what a command leads to.

    Args:
        snapshot: What is recorded now; it is not altered.
        command: What is asked, with everything impure filled in.
        now: Seconds since 1970.

    Returns:
        The next snapshot and what it means for the store and for nodes.

    Raises:
        NetctlError: The command is refused, for the reason the handler documents.
    """
    draft = Draft(snapshot, now, snapshot.revision + 1)
    outcome = _HANDLERS[type(command)](draft, command)
    changes = draft.changes
    if isinstance(command, Acknowledge):
        return _acknowledged(draft, outcome)
    if not changes:
        since = outcome.revision or snapshot.revision
        return Decision(snapshot, nodes=outcome.nodes, revision=since, message=outcome.message)
    after = draft.snapshot(draft.revision)
    deltas = plan.deltas(snapshot, after, changes)
    if deltas:
        after = attrs.evolve(after, changed=after.changed.update(dict.fromkeys(deltas, draft.revision)))
    if not deltas and outcome.revision:
        return Decision(after, changes, outcome.nodes, revision=outcome.revision, message=outcome.message)
    return Decision(after, changes, frozenset(deltas), deltas, draft.revision, outcome.message)


def empty(
    supernet: str,
    block_size: int,
    epoch: int = 1,
    closed: tuple[str, ...] = (),
    *,
    encapsulations: tuple[Encapsulation, ...] = DEFAULT_ORDER,
    encryption: Encryption = "off",
    vxlan_port: int = VXLAN_PORT,
) -> Snapshot:
    """Return the snapshot of a new broker: revision 0, nothing recorded.

    Args:
        supernet: What blocks are cut from, as ``a.b.c.d/len``.
        block_size: Prefix length of a block.
        epoch: At least 1; 0 stands for "none" in a node's Hello.
        closed: Networks no container may reach: the broker's own addresses.
        encapsulations: What pairs of nodes may use, best first.
        encryption: ``required``: of those only wireguard.
        vxlan_port: UDP port of VXLAN, on every node.

    Raises:
        InvalidError: The supernet or the block size cannot be used.
    """
    ipam.check_plan(supernet, block_size)
    return Snapshot(
        epoch=epoch,
        revision=0,
        supernet=supernet,
        block_size=block_size,
        closed=tuple(sorted(set(closed))),
        encapsulations=encapsulations,
        encryption=encryption,
        vxlan_port=vxlan_port,
    )


def load(  # noqa: PLR0917 - the first five are the store's one row of constants, in its order
    epoch: int,
    revision: int,
    supernet: str,
    block_size: int,
    closed: tuple[str, ...],
    records: Iterable[Record],
    cursors: Mapping[str, int] | None = None,
    *,
    encapsulations: tuple[Encapsulation, ...] = DEFAULT_ORDER,
    encryption: Encryption = "off",
    vxlan_port: int = VXLAN_PORT,
) -> Snapshot:
    """Return the snapshot that holds `records`, all indexes rebuilt.

    Args:
        epoch: As stored.
        revision: As stored.
        supernet: As stored.
        block_size: As stored.
        closed: The broker's own addresses, as they are now.
        records: In any order.
        cursors: Node name -> host number last given out; where it is not known, that of the node's
            newest container.
        encapsulations: As stored.
        encryption: As stored.
        vxlan_port: As stored.

    Raises:
        InvalidError: The supernet or the block size cannot be used.
    """
    bare = empty(
        supernet,
        block_size,
        epoch,
        closed,
        encapsulations=encapsulations,
        encryption=encryption,
        vxlan_port=vxlan_port,
    )
    base = attrs.evolve(bare, revision=revision)
    draft = Draft(base, 0.0, revision)
    newest: dict[str, Container] = {}
    for record in records:
        draft.index(record)
        if isinstance(record, Container):
            rival = newest.setdefault(record.node, record)
            if (record.created_at, record.address) > (rival.created_at, rival.address):
                newest[record.node] = record
    draft.cursors = Map(
        {
            name: ipam.host_number(draft.nodes[name].block, container.address)
            for name, container in newest.items()
        }
    ).update(cursors or {})
    # Which removals the nodes have acknowledged was not stored, so every node may still permit traffic
    # of every container until it is heard at this revision. One map serves all.
    anywhere = Map(dict.fromkeys(draft.nodes, revision))
    draft.lost = Map(dict.fromkeys(draft.containers, anywhere))
    return draft.snapshot(revision, changed=draft.nodes)


def _acknowledged(draft: Draft, outcome: Outcome) -> Decision:
    base = draft.base
    unchanged = draft.acknowledged is base.acknowledged and not draft.changes
    after = base if unchanged else draft.snapshot(base.revision)
    return Decision(after, draft.changes, revision=base.revision, message=outcome.message)
