"""Who is not in the overlay does not get into it by forging what carries it, with packets on the real kernel.

A node takes from a peer's underlay address what is in the peer's tunnel. Whatever leaves the peer with its
address counts as the peer's then: what it forwards for others under its own address, and its own users'.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import attrs
import pytest

from firewall_rules.backends.nftables import NftablesHostBackend
from firewall_rules.policy import TunnelPolicy
from tests.support.host_net import FAR, INTERNET, NODE, ONE, POLICY, TUNNEL, WORLD, HostNet, host_net
from tests.support.netns import (
    BLOCKED_AFTER,
    PASSES_WITHIN,
    Namespace,
    address,
    ethernet,
    ipv4,
    readable,
    send_frames,
    udp,
    veth,
)

pytestmark = pytest.mark.root

MARKER = b"netctl-test-marker"
GRE, VNI, PORT = 47, 17, 4789
ELSEWHERE = "192.0.2.77"
BRIDGE, OTHERS = "br-0123456789ab", "172.18.0.2"
VXLAN_POLICY = TunnelPolicy(TUNNEL, "10.2.0.0/16", "vxlan", WORLD, vni=VNI)


@attrs.frozen
class Node:
    """A node of ours that forwards for another network of its own, under its own address."""

    net: HostNet
    other: Namespace

    def install(self, tunnel: TunnelPolicy = VXLAN_POLICY) -> None:
        with self.net.node.entered():
            NftablesHostBackend().install(attrs.evolve(POLICY, tunnels=frozenset({tunnel})))


@pytest.fixture
def node(namespaces: Callable[[], Namespace]) -> Node:
    net, other = host_net(namespaces), namespaces()
    net.node.ip("link", "add", BRIDGE, "type", "bridge")
    address(net.node, BRIDGE, "172.18.0.1/16")
    veth(net.node, "vethother", other, "eth0")
    net.node.ip("link", "set", "vethother", "master", BRIDGE, "up")
    address(other, "eth0", f"{OTHERS}/16")
    other.ip("route", "add", "default", "via", "172.18.0.1")
    # As Docker does for each of its networks.
    net.node.run(
        "iptables-nft", "-t", "nat", "-A", "POSTROUTING", "-s", "172.18.0.0/16", "!", "-o", BRIDGE,
        "-j", "MASQUERADE",
    )  # fmt: skip
    address(net.world, "lo", f"{ELSEWHERE}/32")
    net.node.ip("route", "add", f"{ELSEWHERE}/32", "via", WORLD)
    return Node(net, other)


def inner() -> bytes:
    return ipv4(ONE, FAR, socket.IPPROTO_UDP, udp(9, 9, MARKER))


def vxlan(vni: int = VNI) -> bytes:
    frame = ethernet("6e:63:0a:02:00:01", "6e:63:0a:01:00:01", 0x0800, inner())
    return struct.pack("!II", 0x08000000, vni << 8) + frame


def heard(at: Namespace, protocol: int, sender: Callable[[], object], seconds: float) -> str:
    """Return from whom the world takes in a packet with the marker; empty: from nobody."""
    with at.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as receiver:
        sender()
        while readable(receiver, seconds):
            packet, source = receiver.recvfrom(2048)
            if MARKER in packet:
                return str(source[0])
    return ""


def datagram(source: Namespace, target: str, payload: bytes, port: int = PORT) -> Callable[[], object]:
    def send() -> None:
        with source.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto(payload, (target, port))
            except PermissionError:
                # What the output hook drops it answers so.
                return

    return send


def raw(source: Namespace, target: str) -> Callable[[], object]:
    def send() -> None:
        with source.socket(socket.AF_INET, socket.SOCK_RAW, GRE) as sock:
            try:
                sock.sendto(struct.pack("!HH", 0, 0x0800) + inner(), (target, 0))
            except PermissionError:
                return

    return send


@pytest.mark.parametrize("whose", ["another network's", "the node's own users'"])
def test_nobody_forges_a_peers_vxlan(node: Node, whose: str) -> None:
    source = node.other if whose == "another network's" else node.net.node
    world = node.net.world
    forged = datagram(source, WORLD, vxlan())
    assert heard(world, 17, forged, PASSES_WITHIN) == NODE, "the control: without our rules it counts as ours"
    node.install()
    assert not heard(world, 17, forged, BLOCKED_AFTER)
    # In pieces too: the port is in the first one alone.
    assert not heard(world, 17, datagram(source, WORLD, vxlan() + bytes(4000)), BLOCKED_AFTER)
    # Others' tunnels, and everything else for a peer, are not ours to close.
    assert heard(world, 17, datagram(source, WORLD, vxlan(VNI + 1)), PASSES_WITHIN)
    assert heard(world, 17, datagram(source, ELSEWHERE, vxlan()), PASSES_WITHIN)
    assert heard(world, 17, datagram(source, WORLD, vxlan(), PORT + 1), PASSES_WITHIN)


@pytest.mark.parametrize("whose", ["another network's", "the node's own users'"])
def test_nobody_forges_a_peers_gre(node: Node, whose: str) -> None:
    source = node.other if whose == "another network's" else node.net.node
    world = node.net.world
    assert heard(world, GRE, raw(source, WORLD), PASSES_WITHIN) == NODE, "the control: it counts as ours"
    node.install(attrs.evolve(VXLAN_POLICY, encapsulation="gre"))
    assert not heard(world, GRE, raw(source, WORLD), BLOCKED_AFTER)
    assert heard(world, GRE, raw(source, ELSEWHERE), PASSES_WITHIN)


def test_a_containers_address_comes_by_our_bridge_alone(node: Node) -> None:
    net = node.net
    gateway = net.node.ip("-o", "link", "show", BRIDGE).partition("link/ether ")[2][:17]

    def packet(source: str) -> bytes:
        return ipv4(source, INTERNET, socket.IPPROTO_UDP, udp(9, 9, MARKER))

    def sent(source: str) -> Callable[[], object]:
        frame = ethernet(gateway, link_mac(node.other), 0x0800, packet(source))
        return lambda: send_frames(node.other, "eth0", [frame])

    node.install()
    assert heard(net.world, 17, sent(OTHERS), PASSES_WITHIN) == NODE, "the control: with its own address"
    assert not heard(net.world, 17, sent(ONE), BLOCKED_AFTER)


def link_mac(namespace: Namespace) -> str:
    return namespace.ip("-o", "link", "show", "eth0").partition("link/ether ")[2][:17]
