"""One node by hand, for tests of its host rules: bridge, two containers, one tunnel, and the world outside.

The tunnel is a veth pair with a tunnel's name, so that a test can put any inner packet into it. Nothing but
the node's own tables filters: the containers' namespaces have no firewall.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from firewall_rules.policy import HostPolicy, Pair, PortBinding, TunnelPolicy
from tests.support.netns import Namespace, address, veth

GATEWAY, ONE, TWO = "10.1.0.1", "10.1.0.2", "10.1.0.3"
FAR, FAR_OTHER, FAR_ROUTER = "10.2.0.2", "10.2.0.3", "10.2.0.1"
NODE, WORLD, INTERNET = "192.0.2.1", "192.0.2.9", "198.51.100.2"
PORTS = {ONE: "ncp000000000001", TWO: "ncp000000000002"}
TUNNEL = "nct0a020000"
BRIDGE_MAC = "6e:63:0a:01:00:01"
MACS = {ONE: "6e:63:0a:01:00:02", TWO: "6e:63:0a:01:00:03"}
TUNNEL_POLICY = TunnelPolicy(TUNNEL, "10.2.0.0/16", "gre", WORLD)
POLICY = HostPolicy(
    bridge="netctl0",
    address=GATEWAY,
    block="10.1.0.0/16",
    supernet="10.0.0.0/8",
    resolver=GATEWAY,
    closed=frozenset({"192.0.2.0/24"}),
    bindings=frozenset(PortBinding(PORTS[own], MACS[own], own) for own in (ONE, TWO)),
    pairs=frozenset({Pair(ONE, TWO), Pair(ONE, FAR)}),
    tunnels=frozenset({TUNNEL_POLICY}),
)


@attrs.frozen
class HostNet:
    """The namespaces: the node, its containers, what is behind the tunnel, what is on the underlay."""

    node: Namespace
    one: Namespace
    two: Namespace
    far: Namespace
    world: Namespace


def host_net(make: Callable[[], Namespace], *, bridge_calls_ip: bool = True) -> HostNet:
    """Build it. `bridge_calls_ip`: whether bridged frames pass the node's inet hooks too."""
    net = HostNet(make(), make(), make(), make(), make())
    node = net.node
    node.ip("link", "add", "netctl0", "address", BRIDGE_MAC, "type", "bridge")
    address(node, "netctl0", f"{GATEWAY}/16")
    for own, namespace in ((ONE, net.one), (TWO, net.two)):
        attach(net, namespace, own, PORTS[own], MACS[own])
    veth(node, TUNNEL, net.far, "eth0")
    node.ip("link", "set", TUNNEL, "up")
    address(net.far, "eth0", f"{FAR}/16", f"{FAR_OTHER}/16", f"{FAR_ROUTER}/16")
    # What a tunnel needs no address for: everything behind it answers on the link.
    node.ip("route", "add", "10.2.0.0/16", "dev", TUNNEL, "src", GATEWAY)
    net.far.ip("route", "add", "default", "dev", "eth0", "src", FAR)
    node.sysctl(f"net/ipv4/conf/{TUNNEL}/proxy_arp", "1")
    node.sysctl(f"net/ipv4/neigh/{TUNNEL}/proxy_delay", "0")
    veth(node, "eth0", net.world, "eth0")
    address(node, "eth0", f"{NODE}/24")
    address(net.world, "eth0", f"{WORLD}/24")
    net.world.ip("addr", "add", f"{INTERNET}/32", "dev", "lo")
    # Datagrams to the node are answered from the internet's address unless a test binds another.
    net.world.ip("route", "add", f"{NODE}/32", "dev", "eth0", "src", INTERNET)
    node.ip("route", "add", "default", "via", WORLD)
    for path, value in (
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/bridge/bridge-nf-call-iptables", "1" if bridge_calls_ip else "0"),
        *((f"net/ipv4/conf/{link}/rp_filter", "0") for link in ("eth0", TUNNEL, "netctl0")),
    ):
        node.sysctl(path, value)
    return net


def attach(net: HostNet, namespace: Namespace, own: str, port: str, mac: str) -> None:
    """Put a namespace on the node's bridge, as a container is."""
    veth(net.node, port, namespace, "eth0")
    namespace.ip("link", "set", "eth0", "address", mac)
    net.node.ip("link", "set", port, "master", "netctl0", "up")
    address(namespace, "eth0", f"{own}/16")
    namespace.ip("route", "add", "default", "via", GATEWAY)
