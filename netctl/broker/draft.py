"""A snapshot in the making: records go in and out, every index follows, every change is noted.

`netctl.broker.state` makes a `Draft` of the present snapshot, lets one command alter it, and takes the
next snapshot out of it; the present one is never touched, since all maps are persistent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import attrs
from immutables import Map

from netctl.broker.snapshot import (
    Account,
    Change,
    Connection,
    ConnectionKey,
    Container,
    Delete,
    Held,
    Invite,
    Lease,
    Node,
    Pair,
    PairKey,
    Put,
    Record,
    Rotation,
    ServiceKey,
    Snapshot,
)

K = TypeVar("K")
M = TypeVar("M")


def pair(one: str, other: str) -> tuple[str, str]:
    """Return two container ids in the order that stands for the pair."""
    return (one, other) if one < other else (other, one)


def _with(index: Map[K, Map[M, None]], key: K, member: M) -> Map[K, Map[M, None]]:
    return index.set(key, index.get(key, Map[M, None]()).set(member, None))


def _without(index: Map[K, Map[M, None]], key: K, member: M) -> Map[K, Map[M, None]]:
    rest = index[key].delete(member)
    return index.set(key, rest) if rest else index.delete(key)


def identity_of(record: Record) -> str | ConnectionKey | PairKey:
    """Return what tells a record from the others of its type: two of the same identity are one record."""
    match record:
        case Account() | Node():
            return record.name
        case Container():
            return record.id
        case Connection() | Pair():
            return record.key
        case Invite(identity) | Held(identity) | Lease(identity) | Rotation(identity):
            return identity


def service_key(record: Container) -> ServiceKey | None:
    """Return the service of Compose that a container belongs to, if it does."""
    docker = record.docker
    if docker is None or not docker.project or not docker.service:
        return None
    return (record.node, docker.project, docker.service)


def _wished(record: Container) -> set[str]:
    return {wish.destination for wish in record.docker.wishes} if record.docker is not None else set()


def _indexed(record: Container) -> tuple[object, ...]:
    """Return what of a container the indexes go by."""
    own = (record.account, record.name, record.node, record.address)
    return (*own, _wished(record), service_key(record))


class Draft:
    """What a command works on.

    Attributes:
        base: The snapshot it started from.
        now: Seconds since 1970.
        revision: Of what is recorded by this command.
    """

    def __init__(self, base: Snapshot, now: float, revision: int) -> None:
        self.base = base
        self.now = now
        self.revision = revision
        self._changes: dict[tuple[type, object], Change] = {}
        self.accounts = base.accounts
        self.nodes = base.nodes
        self.containers = base.containers
        self.names = base.names
        self.connections = base.connections
        self.invites = base.invites
        self.held = base.held
        self.leases = base.leases
        self.node_pairs = base.node_pairs
        self.rotations = base.rotations
        self.containers_of = base.containers_of
        self.connections_of = base.connections_of
        self.addresses = base.addresses
        self.pairs = base.pairs
        self.keys = base.keys
        self.bare_names = base.bare_names
        self.expiring = base.expiring
        self.awaiting = base.awaiting
        self.leases_of = base.leases_of
        self.node_pairs_of = base.node_pairs_of
        self.wishes = base.wishes
        self.services = base.services
        self.cursors = base.cursors
        self.changed = base.changed
        self.acknowledged = base.acknowledged
        self.lost = base.lost

    @property
    def changes(self) -> tuple[Change, ...]:
        """What was put and deleted so far, each record once, in the order it was last touched."""
        return tuple(self._changes.values())

    def snapshot(self, revision: int, changed: Iterable[str] = ()) -> Snapshot:
        """Return the snapshot as it stands now.

        Args:
            revision: Of the snapshot.
            changed: Nodes whose desired state is another one since this revision.
        """
        for node in changed:
            self.changed = self.changed.set(node, revision)
        return attrs.evolve(
            self.base,
            revision=revision,
            accounts=self.accounts,
            nodes=self.nodes,
            containers=self.containers,
            names=self.names,
            connections=self.connections,
            invites=self.invites,
            held=self.held,
            leases=self.leases,
            node_pairs=self.node_pairs,
            rotations=self.rotations,
            containers_of=self.containers_of,
            connections_of=self.connections_of,
            addresses=self.addresses,
            pairs=self.pairs,
            keys=self.keys,
            bare_names=self.bare_names,
            expiring=self.expiring,
            awaiting=self.awaiting,
            leases_of=self.leases_of,
            node_pairs_of=self.node_pairs_of,
            wishes=self.wishes,
            services=self.services,
            cursors=self.cursors,
            changed=self.changed,
            acknowledged=self.acknowledged,
            lost=self.lost,
        )

    def put(self, record: Record) -> None:
        """Record something, over whatever has its identity."""
        self.index(record)
        self._note(Put(record))

    def index(self, record: Record) -> None:
        """Take a record in without noting a change, as loading does."""
        match record:
            case Account():
                self.accounts = self.accounts.set(record.name, record)
                self.keys = self.keys.set(record.key, ("user", record.name))
            case Node():
                self.nodes = self.nodes.set(record.name, record)
                self.keys = self.keys.set(record.key, ("node", record.name))
            case Container():
                self._index_container(record)
            case Connection():
                self._index_connection(record)
            case Invite():
                self.invites = self.invites.set(record.token_hash, record)
            case Held():
                self._index_held(record)
            case Lease():
                self.leases = self.leases.set(record.address, record)
                self.leases_of = _with(self.leases_of, record.node, record.address)
            case Pair():
                self._index_pair(record)
            case Rotation():
                self.rotations = self.rotations.set(record.node, record)

    def delete(self, record: Record) -> None:
        """Take a record out. What it names, and what names it, is the caller's to care for."""
        match record:
            case Account():
                self.accounts = self.accounts.delete(record.name)
                self.keys = self.keys.delete(record.key)
            case Node():
                self._delete_node(record)
            case Container():
                self._delete_container(record)
            case Connection():
                self._delete_connection(record)
            case Invite():
                self.invites = self.invites.delete(record.token_hash)
            case Held():
                self._delete_held(record)
            case Lease():
                self.leases = self.leases.delete(record.address)
                self.leases_of = _without(self.leases_of, record.node, record.address)
            case Pair():
                self._delete_pair(record)
            case Rotation():
                self.rotations = self.rotations.delete(record.node)
        self._note(Delete(record))

    def unsettled(self, container: str) -> Map[str, int]:
        """Return the nodes that may still permit traffic of `container` which is no longer recorded.

        Returns:
            By node name, the revision at which the node lost a connection of the container.
        """
        lost = self.lost.get(container, Map[str, int]())
        for node, revision in lost.items():
            if node not in self.nodes or self.acknowledged.get(node, 0) >= revision:
                lost = lost.delete(node)
        return lost

    def _note(self, change: Change) -> None:
        identity = (type(change.record), identity_of(change.record))
        self._changes.pop(identity, None)
        if isinstance(change, Put) or self._in_base(change.record):
            self._changes[identity] = change

    def _in_base(self, record: Record) -> bool:
        base = self.base
        of_its_kind: Mapping[type, Map[Any, Any]] = {
            Account: base.accounts,
            Node: base.nodes,
            Container: base.containers,
            Connection: base.connections,
            Invite: base.invites,
            Held: base.held,
            Lease: base.leases,
            Pair: base.node_pairs,
            Rotation: base.rotations,
        }
        return identity_of(record) in of_its_kind[type(record)]

    def _index_container(self, record: Container) -> None:
        old = self.containers.get(record.id)
        self.containers = self.containers.set(record.id, record)
        if old is not None:
            if _indexed(old) == _indexed(record):
                return
            self._unindex_container(old)
        self.names = self.names.set((record.account, record.name), record.id)
        self.bare_names = self.bare_names.set(record.name, record.id)
        self.containers_of = _with(self.containers_of, record.node, record.id)
        self.addresses = self.addresses.set(record.address, record.id)
        for destination in _wished(record):
            self.wishes = _with(self.wishes, destination, record.id)
        service = service_key(record)
        if service is not None:
            self.services = _with(self.services, service, record.id)

    def _unindex_container(self, record: Container) -> None:
        self.names = self.names.delete((record.account, record.name))
        self.bare_names = self.bare_names.delete(record.name)
        self.containers_of = _without(self.containers_of, record.node, record.id)
        self.addresses = self.addresses.delete(record.address)
        for destination in _wished(record):
            self.wishes = _without(self.wishes, destination, record.id)
        service = service_key(record)
        if service is not None:
            self.services = _without(self.services, service, record.id)

    def _index_connection(self, record: Connection) -> None:
        key = record.key
        if key not in self.connections:
            self.connections_of = _with(self.connections_of, record.source, key)
            self.connections_of = _with(self.connections_of, record.destination, key)
            self.pairs = _with(self.pairs, pair(record.source, record.destination), key)
        if record.expires_at is not None:
            self.expiring = self.expiring.set(key, record.expires_at)
        elif key in self.expiring:
            self.expiring = self.expiring.delete(key)
        self.connections = self.connections.set(key, record)

    def _index_held(self, record: Held) -> None:
        old = self.held.get(record.subject)
        for node in old.awaiting - record.awaiting if old is not None else ():
            self.awaiting = _without(self.awaiting, node, record.subject)
        for node in record.awaiting:
            self.awaiting = _with(self.awaiting, node, record.subject)
        self.held = self.held.set(record.subject, record)

    def _delete_held(self, record: Held) -> None:
        self.held = self.held.delete(record.subject)
        for node in record.awaiting:
            self.awaiting = _without(self.awaiting, node, record.subject)

    def _index_pair(self, record: Pair) -> None:
        self.node_pairs = self.node_pairs.set(record.key, record)
        for node in record.key:
            self.node_pairs_of = _with(self.node_pairs_of, node, record.key)

    def _delete_pair(self, record: Pair) -> None:
        self.node_pairs = self.node_pairs.delete(record.key)
        for node in record.key:
            self.node_pairs_of = _without(self.node_pairs_of, node, record.key)

    def _delete_node(self, record: Node) -> None:
        self.nodes = self.nodes.delete(record.name)
        self.keys = self.keys.delete(record.key)
        # A later node of the same name starts afresh.
        if record.name in self.cursors:
            self.cursors = self.cursors.delete(record.name)
        if record.name in self.changed:
            self.changed = self.changed.delete(record.name)
        if record.name in self.acknowledged:
            self.acknowledged = self.acknowledged.delete(record.name)

    def _delete_container(self, record: Container) -> None:
        self._unindex_container(record)
        self.containers = self.containers.delete(record.id)
        if record.id in self.lost:
            self.lost = self.lost.delete(record.id)

    def _delete_connection(self, record: Connection) -> None:
        key = record.key
        self.connections = self.connections.delete(key)
        self.connections_of = _without(self.connections_of, record.source, key)
        self.connections_of = _without(self.connections_of, record.destination, key)
        self.pairs = _without(self.pairs, pair(record.source, record.destination), key)
        if key in self.expiring:
            self.expiring = self.expiring.delete(key)
        ends = (record.source, record.destination)
        nodes = {self.containers[end].node for end in ends}
        for end in ends:
            lost = self.unsettled(end)
            for node in nodes:
                lost = lost.set(node, self.revision)
            self.lost = self.lost.set(end, lost)
