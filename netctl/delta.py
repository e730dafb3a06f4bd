"""From one desired state of a node to a later one, and a name for the contents of one; pure."""

from __future__ import annotations

import hashlib

import attrs
import msgspec

from netctl.model import NodeDelta, NodeState


def apply_delta(state: NodeState, delta: NodeDelta) -> NodeState:
    """Return the later state. Removing what is not there is harmless; the digest tells a wrong base."""
    base = state
    if delta.header is not None:
        base = attrs.evolve(
            delta.header,
            peers=state.peers,
            containers=state.containers,
            permits=state.permits,
            reserve=state.reserve,
        )
    peers, containers, permits, reserve = base.peers, base.containers, base.permits, base.reserve
    if delta.peers or delta.peers_removed:
        peers = {n: p for n, p in peers.items() if n not in delta.peers_removed}
        peers.update((p.name, p) for p in delta.peers)
    if delta.containers or delta.containers_removed:
        containers = {i: c for i, c in containers.items() if i not in delta.containers_removed}
        containers.update((c.id, c) for c in delta.containers)
    if delta.permits or delta.permits_removed:
        permits = permits.difference(delta.permits_removed).union(delta.permits)
    if delta.reserve or delta.reserve_removed:
        reserve = reserve.difference(delta.reserve_removed).union(delta.reserve)
    return attrs.evolve(base, peers=peers, containers=containers, permits=permits, reserve=reserve)


def digest(state: NodeState) -> str:
    """Name the contents of `state`: SHA-256, in hexadecimal, of a canonical encoding."""
    canonical = (
        attrs.evolve(state, peers={}, containers={}, permits=frozenset(), reserve=frozenset()),
        tuple(state.peers[k] for k in sorted(state.peers)),
        tuple(state.containers[k] for k in sorted(state.containers)),
        sorted(state.permits, key=lambda p: (p.source, p.destination, p.port, p.expires_at or 0.0)),
        sorted(state.reserve),
    )
    return hashlib.sha256(msgspec.msgpack.encode(canonical)).hexdigest()
