"""How nodes are joined to each other: what every pair may use, what it uses, and at which MTU. Pure.

What a pair uses is its first candidate at the links' MTU, unless a `Pair` is recorded of it; when that
changes is settled in `netctl.broker.pairing`.
"""

from __future__ import annotations

import attrs

from netctl.broker.snapshot import Node, Snapshot, pair_key
from netctl.errors import ExistsError, InvalidError
from netctl.model import OVERHEAD, Encapsulation, NodeFacts, Peer, WireguardEnd

SMALLEST_MTU = 576
"""What every IPv4 host must take (RFC 791), so the least a container's link, or a route, can have."""


@attrs.frozen
class Choice:
    """How a pair of nodes carries the overlay.

    Attributes:
        mtu: Bytes of one inner packet, where the path takes less than both nodes' links; 0: it takes as much.
    """

    encapsulation: Encapsulation
    mtu: int = 0


def allowed(snapshot: Snapshot) -> tuple[Encapsulation, ...]:
    """Return what any pair may use, best first."""
    if snapshot.encryption == "required":
        return ("wireguard",)
    return snapshot.encapsulations


def candidates(snapshot: Snapshot, one: Node, other: Node) -> tuple[Encapsulation, ...]:
    """Return what two nodes may use between them, best first: what is allowed and both offer.

    ``wireguard`` needs the public key of both, too. Nothing: the pair is down.
    """
    keys = wireguard_end(snapshot, one) is not None and wireguard_end(snapshot, other) is not None
    mine, theirs = one.facts.encapsulations, other.facts.encapsulations
    return tuple(e for e in allowed(snapshot) if e in mine and e in theirs and (e != "wireguard" or keys))


def outer_mtu(one: Node, other: Node) -> int:
    """Return the bytes of one outer packet by the two nodes' links, whatever the path between them takes."""
    return min(one.facts.underlay_mtu, other.facts.underlay_mtu)


def choice(snapshot: Snapshot, one: Node, other: Node) -> Choice:
    """Return what two nodes use between them; ``none`` where they may use nothing."""
    possible = candidates(snapshot, one, other)
    recorded = snapshot.node_pairs.get(pair_key(one.name, other.name))
    if recorded is not None and recorded.encapsulation in possible:
        return Choice(recorded.encapsulation, recorded.mtu)
    return Choice(possible[0] if possible else "none")


def vni(one: int, other: int) -> int:
    """Return the VXLAN identifier of two nodes, from their blocks' numbers (12 bits each)."""
    return min(one, other) << 12 | max(one, other)


def peer(snapshot: Snapshot, own: Node, other: Node) -> Peer:
    """Return the tunnel that `own` keeps to `other`."""
    possible = candidates(snapshot, own, other)
    chosen = choice(snapshot, own, other)
    outer = outer_mtu(own, other)
    full = outer - OVERHEAD[chosen.encapsulation]
    return Peer(
        name=other.name,
        block=other.block,
        underlay=other.facts.underlay,
        underlay_mac=other.facts.underlay_mac,
        encapsulation=chosen.encapsulation,
        vni=vni(own.index, other.index) if "vxlan" in possible else 0,
        mtu=min(chosen.mtu or full, full),
        candidates=possible,
        outer_mtu=outer,
        wireguard=wireguard_end(snapshot, other) if "wireguard" in possible else None,
    )


def offers_wireguard(snapshot: Snapshot, node: Node) -> bool:
    """Return whether a node has, or is to make, a WireGuard key."""
    return "wireguard" in node.facts.encapsulations and "wireguard" in allowed(snapshot)


def wireguard_end(snapshot: Snapshot, node: Node) -> WireguardEnd | None:
    """Return the end of a node's that others send to; None: it has said of none that is in use."""
    rotation = snapshot.rotations.get(node.name)
    spread = rotation is not None and rotation.step == "spreading"
    generation = rotation.generation if rotation is not None and spread else node.generation
    return next((end for end in node.facts.wireguard if end.generation == generation), None)


def wireguard_generations(snapshot: Snapshot, node: Node) -> tuple[int, ...]:
    """Return of which generations a node is to hold keys; the first is the one it sends from."""
    if node.removing or not offers_wireguard(snapshot, node):
        return ()
    rotation = snapshot.rotations.get(node.name)
    if rotation is None:
        return (node.generation,)
    if rotation.step == "making":
        return (node.generation, rotation.generation)
    return (rotation.generation, node.generation)


def own_mode(snapshot: Snapshot, own: Node) -> Encapsulation:
    """Return the mode a node has with a node like itself: the one that fixes its containers' MTU."""
    return next((e for e in allowed(snapshot) if e in own.facts.encapsulations), "none")


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


def check_facts(snapshot: Snapshot, name: str, facts: NodeFacts) -> None:
    """Check that what a node says of itself can be told to its peers.

    Args:
        snapshot: What is recorded.
        name: Of the node.
        facts: What it says.

    Raises:
        InvalidError: The underlay's MTU is too small, or two of its WireGuard ends are the same.
        ExistsError: Its underlay address, or one of its WireGuard keys, is another node's: peers would take
            the one node for the other.
    """
    least = SMALLEST_MTU + max(OVERHEAD.values())
    if facts.underlay_mtu < least:
        raise InvalidError(
            f"an underlay MTU of {facts.underlay_mtu} bytes is too small for tunnels",
            f"give the underlay's link an MTU of {least} bytes or more",
        )
    keys = {end.key for end in facts.wireguard}
    if len(keys) < len(facts.wireguard) or len({e.generation for e in facts.wireguard}) < len(keys):
        raise InvalidError(
            f"node {name} reports one WireGuard key, or generation, twice", "start its agent again"
        )
    for other in snapshot.nodes.values():
        if other.name == name:
            continue
        if other.facts.underlay == facts.underlay:
            raise ExistsError(
                f"underlay address {facts.underlay} is that of node {other.name} already",
                f"choose another with `--underlay`, or remove that node with `netctl node rm {other.name}`",
                (other.name,),
            )
        if keys and not keys.isdisjoint(end.key for end in other.facts.wireguard):
            raise ExistsError(
                f"the WireGuard key of node {name} is that of node {other.name} already",
                "take the node out with `nodeagent leave` and join it anew, which makes another key",
                (other.name,),
            )
