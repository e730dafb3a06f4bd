"""What a node makes of its peers: devices, routes and what may come out of them. Pure.

Every way of a pair that the broker names has its device standing; one of them is routed. So a pair that
changes its encapsulation changes its route and its own elements of the firewall, and nothing of anybody
else's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from firewall_rules import names
from firewall_rules.policy import TunnelPolicy
from netctl.model import OVERHEAD, Encapsulation, NodeState, Peer, bridge_address, mac_of
from netctl.wire.messages import NodeError
from nodeagent.kernel.wireguard import listen_port
from nodeagent.kernel_state import HostFacts, Route, Tunnel, WireguardLink, WireguardPeer
from nodeagent.policies import gateway_of

ENCAPSULATIONS: Final[tuple[Encapsulation, ...]] = ("gre", "vxlan", "wireguard", "direct")
"""What this agent can make of a tunnel."""
SMALLEST_MTU: Final = 576
"""Bytes of an inner packet; what every IPv4 host takes (RFC 791)."""
_LARGEST_MTU = 65535


def ways(header: NodeState, facts: HostFacts, peer: Peer) -> tuple[Encapsulation, ...]:
    """Return the ways to `peer` that stand on this node, best first.

    With encryption required none but wireguard is among them, whatever the peer is said to be.
    """
    return tuple(
        way
        for way in peer.candidates or (peer.encapsulation,)
        if _is_possible(header, facts, peer, way) and device_mtu(facts, peer, way) >= SMALLEST_MTU
    )


def _is_possible(header: NodeState, facts: HostFacts, peer: Peer, way: Encapsulation) -> bool:
    if way == "wireguard":
        return bool(facts.wireguard and header.wireguard_generations) and peer.wireguard is not None
    return way in ENCAPSULATIONS and header.encryption == "off"


def is_routed(header: NodeState, facts: HostFacts, peer: Peer) -> bool:
    """Tell whether `peer`'s block is routed at all: by the way the broker chose, or not."""
    return peer.encapsulation in ways(header, facts, peer)


def device_of(header: NodeState, facts: HostFacts, peer: Peer, way: Encapsulation) -> str:
    """Return the link that packets to `peer` leave by on one of its `ways`."""
    if way == "direct":
        return facts.underlay_device
    if way == "wireguard":
        return names.wireguard_device(header.wireguard_generations[0])
    return names.tunnel_device(peer.block, way)


def device_mtu(facts: HostFacts, peer: Peer, way: Encapsulation) -> int:
    """Return the bytes of an inner packet that the device of one of `peer`'s ways takes.

    The WireGuard link has all peers on it, and so the MTU of this node's own underlay.
    """
    if way == "direct":
        return facts.underlay_mtu
    if way == "wireguard":
        return _wireguard_mtu(facts)
    outer = peer.outer_mtu or peer.mtu + OVERHEAD[peer.encapsulation]
    return min(outer, _LARGEST_MTU) - OVERHEAD[way]


def _wireguard_mtu(facts: HostFacts) -> int:
    return max(min(facts.underlay_mtu, _LARGEST_MTU) - OVERHEAD["wireguard"], SMALLEST_MTU)


def tunnels_of(header: NodeState, facts: HostFacts, peers: Iterable[Peer]) -> dict[str, Tunnel]:
    """Return the devices that a peer has for itself, by name."""
    tunnels = (
        _tunnel(header, facts, peer, way)
        for peer in peers
        for way in ways(header, facts, peer)
        if way in ("gre", "vxlan")
    )
    return {tunnel.device: tunnel for tunnel in tunnels}


def _tunnel(header: NodeState, facts: HostFacts, peer: Peer, way: Encapsulation) -> Tunnel:
    vxlan = way == "vxlan"
    return Tunnel(
        device=names.tunnel_device(peer.block, way),
        encapsulation=way,
        local=facts.underlay,
        remote=peer.underlay,
        mtu=device_mtu(facts, peer, way),
        vni=peer.vni if vxlan else 0,
        port=header.vxlan_port if vxlan else 0,
        mac=mac_of(gateway_of(header)[0]) if vxlan else "",
    )


def wireguard_links(header: NodeState, facts: HostFacts, peers: Iterable[Peer]) -> dict[str, WireguardLink]:
    """Return the node's WireGuard links, by name: one for every generation of its key, all peers on each."""
    if not facts.wireguard:
        return {}
    # The kernel knows a peer by its key: of two with one key, only one can be on a link.
    ends = {
        peer.wireguard.key: WireguardPeer(peer.block, peer.wireguard.key, peer.underlay, peer.wireguard.port)
        for peer in peers
        if peer.wireguard is not None and "wireguard" in ways(header, facts, peer)
    }
    links = (
        WireguardLink(
            device=names.wireguard_device(generation),
            generation=generation,
            port=listen_port(generation),
            mtu=_wireguard_mtu(facts),
            peers=frozenset(ends.values()),
        )
        for generation in header.wireguard_generations
    )
    return {link.device: link for link in links}


def routes_of(header: NodeState, facts: HostFacts, peers: Iterable[Peer]) -> dict[str, Route]:
    """Return the routes to the peers' blocks, by block: each by the way that the broker chose."""
    return {peer.block: _route(header, facts, peer) for peer in peers if is_routed(header, facts, peer)}


def _route(header: NodeState, facts: HostFacts, peer: Peer) -> Route:
    way, source = peer.encapsulation, gateway_of(header)[0]
    device = device_of(header, facts, peer, way)
    if way == "direct":
        return Route(peer.block, device, source, via=peer.underlay, mtu=peer.mtu)
    # What the path takes less than the device: the node itself says so to whoever sends more.
    mtu = peer.mtu if peer.mtu < device_mtu(facts, peer, way) else 0
    if way == "vxlan":
        far = bridge_address(peer.block)
        return Route(peer.block, device, source, via=far, via_mac=mac_of(far), mtu=mtu)
    return Route(peer.block, device, source, mtu=mtu)


def tunnel_policies(header: NodeState, facts: HostFacts, peers: Iterable[Peer]) -> Iterable[TunnelPolicy]:
    """Yield what may come out of every way to every peer: its block only out of the routed one."""
    for peer in peers:
        for way in ways(header, facts, peer):
            for device in _devices_in(header, facts, peer, way):
                yield TunnelPolicy(
                    device=device,
                    block=peer.block,
                    encapsulation=way,
                    outer=peer.underlay,
                    vni=peer.vni if way == "vxlan" else 0,
                    mac=peer.underlay_mac if way == "direct" else "",
                    routed=way == peer.encapsulation,
                )


def _devices_in(header: NodeState, facts: HostFacts, peer: Peer, way: Encapsulation) -> Iterable[str]:
    """Return the links that a peer's packets come in by: while our key is rotated, by either of two."""
    if way == "wireguard":
        return dict.fromkeys(map(names.wireguard_device, header.wireguard_generations))
    return (device_of(header, facts, peer, way),)


def wireguard_ports(header: NodeState, facts: HostFacts) -> frozenset[int]:
    """Return the UDP ports at which this node's WireGuard links listen."""
    return frozenset(map(listen_port, header.wireguard_generations)) if facts.wireguard else frozenset()


def sysctls_of(tunnels: Iterable[str], wireguard: Iterable[str]) -> Mapping[str, str]:
    """Return the settings of devices (ip-sysctl.rst): no redirects, and reverse paths checked.

    Strictly on a tunnel. Loosely on a WireGuard link: it binds sources to keys by itself, and while a key
    is rotated, a peer's packets come in by one link and ours to it leave by the other.
    """
    wanted = {}
    for devices, reverse_path in ((tunnels, "1"), (wireguard, "2")):
        for device in devices:
            wanted[f"net/ipv4/conf/{device}/rp_filter"] = reverse_path
            wanted[f"net/ipv4/conf/{device}/send_redirects"] = "0"
            wanted[f"net/ipv4/conf/{device}/accept_redirects"] = "0"
    return wanted


def missing_tunnels(header: NodeState, facts: HostFacts, peers: Iterable[Peer]) -> Iterable[NodeError]:
    """Yield an error for each peer whose block is not routed, and why."""
    for peer in peers:
        if is_routed(header, facts, peer):
            continue
        why, remedy = _why_missing(header, peer)
        yield NodeError(peer.name, f"no tunnel to {peer.name}: {why}", remedy)


def _why_missing(header: NodeState, peer: Peer) -> tuple[str, str]:
    if peer.encapsulation == "wireguard":
        return (
            "wireguard is chosen, and one of the two nodes has no key for it (yet)",
            "load the kernel module wireguard on both nodes, and start their agents again",
        )
    if header.encryption == "required":
        return (
            "encryption is required, and the two nodes have no wireguard in common",
            "load the kernel module wireguard on both nodes, and allow it with --encapsulation",
        )
    return (
        "the two nodes have no encapsulation in common",
        "start both agents with an --encapsulation that both kernels have",
    )
