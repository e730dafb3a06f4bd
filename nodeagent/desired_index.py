"""The desired state of a node, indexed so that a delta costs what it changes and no more.

A `DesiredIndex` is never altered: `advanced` makes the next one and shares what did not change, and
`scope_of` says which parts of the host a delta can touch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import attrs
from immutables import Map

from netctl.model import NodeDelta, NodeState, Peer, Permit, PlacedContainer
from nodeagent.endpoints import Endpoint, Endpoints

PairKey = tuple[str, str]
"""Two addresses, the smaller text first."""

_K = TypeVar("_K")
_V = TypeVar("_V")
_NO_PERMITS: frozenset[Permit] = frozenset()
_NO_ADDRESSES: Map[str, None] = Map()


def pair_key(one: str, other: str) -> PairKey:
    """Return the two addresses in the order in which a pair is known."""
    return (one, other) if one < other else (other, one)


@attrs.frozen
class Scope:
    """What a change can have touched; everything else on the host is as it was.

    Attributes:
        containers: Ids of containers to look at whole, each with the addresses it has or had.
        pairs: Pairs of addresses to look at, each with the permits that came or went.
        endpoints: Keys of Docker's endpoints to look at whole, each with the forms it has or had.
    """

    containers: Mapping[str, frozenset[str]] = attrs.field(factory=dict)
    pairs: Mapping[PairKey, frozenset[Permit]] = attrs.field(factory=dict)
    endpoints: Mapping[str, frozenset[Endpoint]] = attrs.field(factory=dict)

    def __bool__(self) -> bool:
        return bool(self.containers or self.pairs or self.endpoints)


def united(one: Scope | None, other: Scope | None) -> Scope | None:
    """Return the scope of both changes together; None stands for everything."""
    if one is None or other is None:
        return None
    return Scope(
        _merged(one.containers, other.containers),
        _merged(one.pairs, other.pairs),
        _merged(one.endpoints, other.endpoints),
    )


def scope_between(before: Endpoints, after: Endpoints) -> Scope:
    """Return the scope of a change of Docker's endpoints."""
    changed: dict[str, frozenset[Endpoint]] = {}
    for key, endpoint in after.by_key.items():
        old = before.by_key.get(key)
        if old is not endpoint and old != endpoint:
            changed[key] = frozenset((endpoint,) if old is None else (old, endpoint))
    for key, old in before.by_key.items():
        if key not in after.by_key:
            changed[key] = frozenset((old,))
    return Scope(endpoints=changed)


def _merged(one: Mapping[_K, frozenset[_V]], other: Mapping[_K, frozenset[_V]]) -> Mapping[_K, frozenset[_V]]:
    merged = dict(one)
    for key, values in other.items():
        merged[key] = merged.get(key, frozenset()) | values
    return merged


@attrs.frozen
class DesiredIndex:
    """One desired state.

    Attributes:
        header: Everything but the maps, which are empty in it.
        closed: What no container may reach but through a permit: the header's, and the supernet.
        peers: By name.
        containers: By id.
        by_address: Container id by address.
        permits: By the pair of their ends.
        partners: For every address with a permit: the addresses at the other ends.
        reserve: Addresses on lease.
    """

    header: NodeState
    closed: frozenset[str]
    peers: Map[str, Peer] = attrs.field(factory=Map)
    containers: Map[str, PlacedContainer] = attrs.field(factory=Map)
    by_address: Map[str, str] = attrs.field(factory=Map)
    permits: Map[PairKey, frozenset[Permit]] = attrs.field(factory=Map)
    partners: Map[str, Map[str, None]] = attrs.field(factory=Map)
    reserve: frozenset[str] = frozenset()

    @classmethod
    def of(cls, state: NodeState) -> DesiredIndex:
        """Index `state`."""
        permits: dict[PairKey, set[Permit]] = {}
        partners: dict[str, dict[str, None]] = {}
        for permit in state.permits:
            permits.setdefault(pair_key(permit.source, permit.destination), set()).add(permit)
            partners.setdefault(permit.source, {})[permit.destination] = None
            partners.setdefault(permit.destination, {})[permit.source] = None
        return cls(
            header=_bare(state),
            closed=_closed(state),
            peers=Map(state.peers),
            containers=Map(state.containers),
            by_address=Map({c.address: c.id for c in state.containers.values()}),
            permits=Map({pair: frozenset(found) for pair, found in permits.items()}),
            partners=Map({address: Map(others) for address, others in partners.items()}),
            reserve=state.reserve,
        )

    def state(self) -> NodeState:
        """Return the desired state that was indexed, whole."""
        return attrs.evolve(
            self.header,
            peers=dict(self.peers),
            containers=dict(self.containers),
            permits=frozenset().union(*self.permits.values()),
            reserve=self.reserve,
        )

    def between(self, pair: PairKey) -> frozenset[Permit]:
        """Return the permits between two addresses."""
        return self.permits.get(pair, _NO_PERMITS)

    def partners_of(self, address: str) -> Iterable[str]:
        """Return the addresses that `address` has a permit with, in either direction."""
        return self.partners.get(address, _NO_ADDRESSES)

    def advanced(self, delta: NodeDelta) -> DesiredIndex:
        """Return the later state, as `netctl.delta.apply_delta` does for the whole."""
        containers, by_address = self.containers, self.by_address
        for identifier in delta.containers_removed:
            old = containers.get(identifier)
            if old is not None:
                containers = containers.delete(identifier)
                by_address = _without(by_address, old.address, identifier)
        for container in delta.containers:
            old = containers.get(container.id)
            if old is not None:
                by_address = _without(by_address, old.address, old.id)
            containers = containers.set(container.id, container)
            by_address = by_address.set(container.address, container.id)
        peers = self.peers
        for name in delta.peers_removed:
            if name in peers:
                peers = peers.delete(name)
        for peer in delta.peers:
            peers = peers.set(peer.name, peer)
        permits, partners = self._permits_after(delta)
        reserve = self.reserve
        if delta.reserve or delta.reserve_removed:
            reserve = reserve.difference(delta.reserve_removed).union(delta.reserve)
        return DesiredIndex(
            header=self.header if delta.header is None else _bare(delta.header),
            closed=self.closed if delta.header is None else _closed(delta.header),
            peers=peers,
            containers=containers,
            by_address=by_address,
            permits=permits,
            partners=partners,
            reserve=reserve,
        )

    def _permits_after(
        self, delta: NodeDelta
    ) -> tuple[Map[PairKey, frozenset[Permit]], Map[str, Map[str, None]]]:
        permits, partners = self.permits, self.partners
        for pair, (added, removed) in _by_pair(delta).items():
            left = permits.get(pair, _NO_PERMITS).difference(removed).union(added)
            one, other = pair
            if left:
                permits = permits.set(pair, left)
                partners = partners.set(one, partners.get(one, _NO_ADDRESSES).set(other, None))
                partners = partners.set(other, partners.get(other, _NO_ADDRESSES).set(one, None))
            elif pair in permits:
                permits = permits.delete(pair)
                partners = _parted(_parted(partners, one, other), other, one)
        return permits, partners

    def scope_of(self, delta: NodeDelta) -> Scope | None:
        """Return what `delta`, applied to this state, can touch; None: everything.

        Addresses on lease touch nothing.
        """
        if delta.header is not None or delta.peers or delta.peers_removed:
            return None
        containers: dict[str, frozenset[str]] = {}
        for container in delta.containers:
            old = self.containers.get(container.id, container)
            containers[container.id] = frozenset((container.address, old.address))
        for identifier in delta.containers_removed:
            gone = self.containers.get(identifier)
            if gone is not None:
                containers[identifier] = frozenset((gone.address,))
        return Scope(
            containers=containers,
            pairs={pair: frozenset((*added, *removed)) for pair, (added, removed) in _by_pair(delta).items()},
        )

    def scope_of_container(self, identifier: str) -> Scope:
        """Return the scope of a change of one container that happened by itself."""
        container = self.containers.get(identifier)
        addresses = frozenset[str]() if container is None else frozenset((container.address,))
        return Scope(containers={identifier: addresses})


def _bare(header: NodeState) -> NodeState:
    return attrs.evolve(header, peers={}, containers={}, permits=frozenset(), reserve=frozenset())


def _closed(header: NodeState) -> frozenset[str]:
    return frozenset((*header.closed, header.supernet))


def _by_pair(delta: NodeDelta) -> Mapping[PairKey, tuple[list[Permit], list[Permit]]]:
    """Return the permits a delta adds and removes, by pair."""
    pairs: dict[PairKey, tuple[list[Permit], list[Permit]]] = {}
    for permit in delta.permits:
        pairs.setdefault(pair_key(permit.source, permit.destination), ([], []))[0].append(permit)
    for permit in delta.permits_removed:
        pairs.setdefault(pair_key(permit.source, permit.destination), ([], []))[1].append(permit)
    return pairs


def _without(by_address: Map[str, str], address: str, identifier: str) -> Map[str, str]:
    return by_address.delete(address) if by_address.get(address) == identifier else by_address


def _parted(partners: Map[str, Map[str, None]], one: str, other: str) -> Map[str, Map[str, None]]:
    """Return `partners` with `other` no longer one of those of `one`."""
    of_one = partners.get(one, _NO_ADDRESSES)
    left = of_one.delete(other) if other in of_one else of_one
    if left:
        return partners.set(one, left)
    return partners.delete(one) if one in partners else partners
