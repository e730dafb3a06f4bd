"""From what is recorded to what each node must be: whole (`node_state`), and as changes (`deltas`). Pure.

For every node that is there before and after a command,
``apply_delta(node_state(before), delta) == node_state(after)``. A delta costs what changed, never what
the node has: a node with 10,000 connections is not looked at to open one more.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from netctl.broker import lookup, overlay
from netctl.broker.snapshot import (
    Change,
    Connection,
    ConnectionKey,
    Container,
    Lease,
    Node,
    Pair,
    PairKey,
    Rotation,
    Snapshot,
)
from netctl.model import NodeDelta, NodeState, Peer, Permit, PlacedContainer


def node_state(snapshot: Snapshot, name: str) -> NodeState:
    """Return the desired state of one node, whole.

    Raises:
        NotFoundError: No node is called so.
    """
    own = lookup.node(snapshot, name)
    header = _header(snapshot, own, overlay.closed(snapshot))
    if own.removing:
        return header
    containers = [snapshot.containers[i] for i in snapshot.containers_of.get(name, ())]
    return attrs.evolve(
        header,
        peers={n: overlay.peer(snapshot, own, other) for n, other in _others(snapshot, own)},
        containers={c.id: _placed(c) for c in containers},
        permits=frozenset(
            _permit(snapshot, snapshot.connections[key])
            for container in containers
            for key in snapshot.connections_of.get(container.id, ())
        ),
        reserve=frozenset(snapshot.leases_of.get(name, ())),
    )


def deltas(before: Snapshot, after: Snapshot, changes: Iterable[Change]) -> dict[str, NodeDelta]:
    """Return how the desired states change, for each node where one does.

    Args:
        before: The snapshot a command was decided on.
        after: What it led to.
        changes: What was put and deleted between the two.

    Returns:
        By node name. Nodes that are not in both snapshots are left out: a new one is told its whole
        state, a deleted one nothing.
    """
    nodes: set[str] = set()
    containers: set[str] = set()
    connections: set[ConnectionKey] = set()
    leases: set[str] = set()
    changes = tuple(changes)
    pairs = {change.record.key for change in changes if isinstance(change.record, Pair)}
    for change in changes:
        match change.record:
            case Node(name=name) | Rotation(node=name):
                nodes.add(name)
            case Container(id=container):
                containers.add(container)
                if _moved(before, after, container):
                    # Those that went with it are among the changes themselves.
                    connections.update(after.connections_of.get(container, ()))
            case Connection() as connection:
                connections.add(connection.key)
            case Lease(address=address):
                leases.add(address)
            case _:
                pass
    gathered = _Gathered(before, after)
    for container in containers:
        gathered.container(container)
    for key in connections:
        gathered.connection(key)
    for address in leases:
        gathered.lease(address)
    gathered.nodes(nodes)
    gathered.pairs(pairs)
    return gathered.deltas()


@attrs.define
class _Parts:
    """One node's delta in the making."""

    header: NodeState | None = None
    peers: list[Peer] = attrs.field(factory=list)
    peers_removed: list[str] = attrs.field(factory=list)
    containers: list[PlacedContainer] = attrs.field(factory=list)
    containers_removed: list[str] = attrs.field(factory=list)
    permits: list[Permit] = attrs.field(factory=list)
    permits_removed: list[Permit] = attrs.field(factory=list)
    reserve: list[str] = attrs.field(factory=list)
    reserve_removed: list[str] = attrs.field(factory=list)

    def delta(self) -> NodeDelta:
        return NodeDelta(
            header=self.header,
            peers=tuple(self.peers),
            peers_removed=tuple(self.peers_removed),
            containers=tuple(self.containers),
            containers_removed=tuple(self.containers_removed),
            permits=tuple(self.permits),
            permits_removed=tuple(self.permits_removed),
            reserve=tuple(self.reserve),
            reserve_removed=tuple(self.reserve_removed),
        )


class _Gathered:
    """Compares records between two snapshots and collects what that means to whom."""

    def __init__(self, before: Snapshot, after: Snapshot) -> None:
        self._before = before
        self._after = after
        self._parts: dict[str, _Parts] = {}
        self._whole: dict[str, NodeDelta] = {}
        self._compared: set[tuple[str, str]] = set()

    def deltas(self) -> dict[str, NodeDelta]:
        found = {name: parts.delta() for name, parts in self._parts.items()} | self._whole
        return {name: delta for name, delta in sorted(found.items()) if self._lasts(name)}

    def container(self, identity: str) -> None:
        old = self._before.containers.get(identity)
        new = self._after.containers.get(identity)
        if old is not None and new is None:
            self._of(old.node).containers_removed.append(identity)
        if new is not None:
            placed = _placed(new)
            if old is None or placed != _placed(old):
                self._of(new.node).containers.append(placed)

    def connection(self, key: ConnectionKey) -> None:
        old, closing = _reach(self._before, key)
        new, opening = _reach(self._after, key)
        if old == new:
            return
        for name in closing:
            if old is not None:
                self._of(name).permits_removed.append(old)
        for name in opening:
            if new is not None:
                self._of(name).permits.append(new)

    def lease(self, address: str) -> None:
        old, new = self._before.leases.get(address), self._after.leases.get(address)
        if old != new:
            if old is not None:
                self._of(old.node).reserve_removed.append(address)
            if new is not None:
                self._of(new.node).reserve.append(address)

    def nodes(self, touched: set[str]) -> None:
        changed = {name for name in touched if _visible(self._before, name) != _visible(self._after, name)}
        if not touched:
            return
        closed_after = overlay.closed(self._after)
        closed_before = overlay.closed(self._before) if changed else closed_after
        # What only a node itself sees of its own change leaves all others alone.
        concerned: Iterable[str] = self._after.nodes if changed else touched
        for name in concerned:
            own, was = self._after.nodes.get(name), self._before.nodes.get(name)
            if own is None or was is None or (own.removing and name not in changed):
                continue
            if own.removing:
                delta = _difference(node_state(self._before, name), node_state(self._after, name))
                if delta != NodeDelta():
                    self._whole[name] = delta
                continue
            if closed_before != closed_after or name in touched:
                header = _header(self._after, own, closed_after)
                if header != _header(self._before, was, closed_before):
                    self._of(name).header = header
            others = changed if name not in changed else {*self._after.nodes, *changed}
            self._compared.update((name, other) for other in others if other != name)
        for one, other in self._compared:
            self._peer(one, other)

    def pairs(self, touched: set[PairKey]) -> None:
        for one, other in touched:
            for way in ((one, other), (other, one)):
                if way not in self._compared and way[0] not in self._whole:
                    self._peer(*way)

    def _peer(self, name: str, other: str) -> None:
        was, own = self._before.nodes.get(name), self._after.nodes.get(name)
        if was is None or own is None or own.removing:
            return
        old = _peer_of(self._before, was, other)
        new = _peer_of(self._after, own, other)
        if new is None and old is not None:
            self._of(name).peers_removed.append(other)
        elif new is not None and new != old:
            self._of(name).peers.append(new)

    def _lasts(self, name: str) -> bool:
        return name in self._before.nodes and name in self._after.nodes

    def _of(self, name: str) -> _Parts:
        return self._parts.setdefault(name, _Parts())


def _moved(before: Snapshot, after: Snapshot, container: str) -> bool:
    """Return whether a container that stays has another address, so that its permits are others."""
    old, new = before.containers.get(container), after.containers.get(container)
    return old is not None and new is not None and old.address != new.address


def _reach(snapshot: Snapshot, key: ConnectionKey) -> tuple[Permit | None, set[str]]:
    """Return a connection as nodes see it, and the nodes that see it."""
    connection = snapshot.connections.get(key)
    if connection is None:
        return None, set()
    ends = (connection.source, connection.destination)
    return _permit(snapshot, connection), {snapshot.containers[end].node for end in ends}


def _permit(snapshot: Snapshot, connection: Connection) -> Permit:
    return Permit(
        source=snapshot.containers[connection.source].address,
        destination=snapshot.containers[connection.destination].address,
        port=connection.port,
        expires_at=connection.expires_at,
    )


def _placed(container: Container) -> PlacedContainer:
    return PlacedContainer(
        id=container.id,
        name=container.name,
        address=container.address,
        workload=container.workload,
        wanted=container.wanted,
        generation=container.generation,
        origin=container.origin,
    )


def _header(snapshot: Snapshot, own: Node, closed: tuple[str, ...]) -> NodeState:
    return NodeState(
        name=own.name,
        block=None if own.removing else own.block,
        supernet=snapshot.supernet,
        encapsulation=overlay.own_mode(snapshot, own),
        mtu=overlay.own_mtu(snapshot, own),
        closed=() if own.removing else closed,
        vxlan_port=snapshot.vxlan_port,
        encryption=snapshot.encryption,
        wireguard_generations=overlay.wireguard_generations(snapshot, own),
    )


def _others(snapshot: Snapshot, own: Node) -> Iterable[tuple[str, Node]]:
    return (
        (name, other) for name, other in snapshot.nodes.items() if name != own.name and not other.removing
    )


def _peer_of(snapshot: Snapshot, own: Node, name: str) -> Peer | None:
    other = snapshot.nodes.get(name)
    return None if other is None or other.removing else overlay.peer(snapshot, own, other)


def _visible(snapshot: Snapshot, name: str) -> tuple[object, ...] | None:
    """Return what other nodes can see of a node in their desired states."""
    node = snapshot.nodes.get(name)
    if node is None:
        return None
    facts = node.facts
    return (
        node.index,
        node.block,
        node.removing,
        facts.underlay,
        facts.underlay_mac,
        facts.underlay_mtu,
        facts.encapsulations,
        overlay.wireguard_end(snapshot, node),
    )


def _difference(old: NodeState, new: NodeState) -> NodeDelta:
    """Compare two whole states, as is fitting where all of a node goes."""
    bare_old = attrs.evolve(old, peers={}, containers={}, permits=frozenset(), reserve=frozenset())
    bare_new = attrs.evolve(new, peers={}, containers={}, permits=frozenset(), reserve=frozenset())
    return NodeDelta(
        header=bare_new if bare_new != bare_old else None,
        peers=tuple(p for n, p in new.peers.items() if old.peers.get(n) != p),
        peers_removed=tuple(n for n in old.peers if n not in new.peers),
        containers=tuple(c for i, c in new.containers.items() if old.containers.get(i) != c),
        containers_removed=tuple(i for i in old.containers if i not in new.containers),
        permits=tuple(new.permits - old.permits),
        permits_removed=tuple(old.permits - new.permits),
        reserve=tuple(new.reserve - old.reserve),
        reserve_removed=tuple(old.reserve - new.reserve),
    )
