"""How nodes are joined to each other: encapsulation, network identifier and MTU of every pair. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from netctl.broker.snapshot import Node, Snapshot
from netctl.errors import InvalidError
from netctl.model import OVERHEAD, Encapsulation, NodeFacts, Peer

_SMALLEST_MTU = 576
"""What every IPv4 host must take (RFC 791), so the least a container's link can have."""


def mode(order: Iterable[Encapsulation], one: NodeFacts, other: NodeFacts) -> Encapsulation:
    """Choose how two nodes carry the overlay between them.

    Args:
        order: Preference of the broker.
        one: Either node.
        other: The other one.

    Returns:
        The first of `order` that both offer. ``direct`` needs a shared link, which only an operator can
        promise, by offering nothing else on both; ``none`` where nothing fits.
    """
    offered = {*one.encapsulations, *other.encapsulations}
    for candidate in order:
        shared = candidate in one.encapsulations and candidate in other.encapsulations
        if shared and (candidate != "direct" or offered == {"direct"}):
            return candidate
    return "none"


def vni(one: int, other: int) -> int:
    """Return the VXLAN identifier of two nodes, from their blocks' numbers (12 bits each)."""
    return min(one, other) << 12 | max(one, other)


def peer(snapshot: Snapshot, own: Node, other: Node) -> Peer:
    """Return the tunnel that `own` keeps to `other`."""
    chosen = mode(snapshot.encapsulations, own.facts, other.facts)
    return Peer(
        name=other.name,
        block=other.block,
        underlay=other.facts.underlay,
        underlay_mac=other.facts.underlay_mac,
        encapsulation=chosen,
        vni=vni(own.index, other.index) if chosen == "vxlan" else 0,
        mtu=min(own.facts.underlay_mtu, other.facts.underlay_mtu) - OVERHEAD[chosen],
    )


def own_mode(snapshot: Snapshot, own: Node) -> Encapsulation:
    """Return the mode a node has with a node like itself: the one that fixes its containers' MTU."""
    return mode(snapshot.encapsulations, own.facts, own.facts)


def own_mtu(snapshot: Snapshot, own: Node) -> int:
    """Return the MTU of a node's bridge and of all its containers' links, in bytes.

    It depends on nothing but the node: one MTU per bridge, since a bridge loses what does not fit without
    a word, and none that changes under running flows when some other node joins. A pair with a smaller
    underlay or a costlier encapsulation has its own, smaller MTU on its route, and the node answers what
    is too large for it with "fragmentation needed" (RFC 1191).
    """
    return own.facts.underlay_mtu - OVERHEAD[own_mode(snapshot, own)]


def closed(snapshot: Snapshot) -> tuple[str, ...]:
    """Return what no container may reach: every node's underlay address, and the broker's."""
    underlays = {f"{node.facts.underlay}/32" for node in snapshot.nodes.values() if not node.removing}
    return tuple(sorted(underlays.union(snapshot.closed)))


def check_mtu(facts: NodeFacts) -> None:
    """Check that every encapsulation leaves containers a usable MTU.

    Raises:
        InvalidError: The underlay's MTU is too small.
    """
    least = _SMALLEST_MTU + max(OVERHEAD.values())
    if facts.underlay_mtu < least:
        raise InvalidError(
            f"an underlay MTU of {facts.underlay_mtu} bytes is too small for tunnels",
            f"give the underlay's link an MTU of {least} bytes or more",
        )
