"""Who is not in the overlay does not get into it by forging what carries it, with packets on the real kernel.

A node takes from a peer's underlay address what is in the peer's tunnel. Whatever leaves the peer with its
address counts as the peer's then: what it forwards for others under its own address, and its own users'.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from collections.abc import Callable

import attrs
import pytest

from firewall_rules.backends.nftables import NftablesHostBackend
from firewall_rules.names import OUTER_MARK
from firewall_rules.policy import TunnelPolicy
from tests.support.host_net import (
    FAR,
    FAR_ROUTER,
    GATEWAY,
    INTERNET,
    NODE,
    ONE,
    POLICY,
    TUNNEL,
    WORLD,
    HostNet,
    host_net,
)
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
WIREGUARD_POLICY = TunnelPolicy("nctw0", "10.2.0.0/16", "wireguard", WORLD)
WIREGUARD_PORTS = 51820, 51821


@attrs.frozen
class Node:
    """A node of ours that forwards for another network of its own, under its own address."""

    net: HostNet
    other: Namespace

    def install(self, tunnel: TunnelPolicy = VXLAN_POLICY) -> None:
        with self.net.node.entered():
            NftablesHostBackend().install(
                attrs.evolve(POLICY, tunnels=frozenset({tunnel}), wireguard_ports=frozenset(WIREGUARD_PORTS))
            )


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


def datagram(
    source: Namespace, target: str, payload: bytes, port: int = PORT, *, source_port: int = 0, mark: int = 0
) -> Callable[[], object]:
    def send() -> None:
        with source.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("", source_port))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
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


@pytest.mark.parametrize("whose", ["another network's", "the node's own users'"])
@pytest.mark.parametrize("port", WIREGUARD_PORTS)
def test_nobody_sends_from_our_wireguard_ports(node: Node, whose: str, port: int) -> None:
    source = node.other if whose == "another network's" else node.net.node
    world = node.net.world

    def sent(target: str, own_port: int) -> Callable[[], object]:
        return datagram(source, target, MARKER, 51820, source_port=own_port)

    assert heard(world, 17, sent(WORLD, port), PASSES_WITHIN) == NODE, (
        "the control: without our rules it does"
    )
    node.install(WIREGUARD_POLICY)
    assert not heard(world, 17, sent(WORLD, port), BLOCKED_AFTER)
    # A WireGuard of somebody else's, behind this node or for somebody else, is not ours to close.
    assert heard(world, 17, sent(WORLD, 51900), PASSES_WITHIN)
    assert heard(world, 17, sent(ELSEWHERE, port), PASSES_WITHIN)


def test_nobody_catches_what_a_peers_wireguard_sends(node: Node) -> None:
    net = node.net
    with (
        net.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as own,
        node.other.socket(socket.AF_INET, socket.SOCK_DGRAM) as catcher,
        net.world.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        own.bind((NODE, 51820))
        catcher.bind((OTHERS, 51820))
        peer.bind((WORLD, 51820))
        # Before our rules: a flow from a container of Docker's, with the node's address and that very port.
        catcher.sendto(MARKER, (WORLD, 51820))
        assert readable(peer, PASSES_WITHIN)
        assert peer.recvfrom(64)[1] == (NODE, 51820)
        peer.sendto(MARKER, (NODE, 51820))
        assert readable(catcher, PASSES_WITHIN), "the control: the flow that is tracked takes it"
        catcher.recv(64)
        node.install(WIREGUARD_POLICY)
        peer.sendto(MARKER, (NODE, 51820))
        assert readable(own, PASSES_WITHIN)
        assert not readable(catcher, BLOCKED_AFTER)


def test_a_probe_leaves_by_its_tunnel_and_is_no_users_forgery(node: Node) -> None:
    # Past the firewall is how a probe goes into its tunnel; what carries it passes the firewall all the same.
    net = node.net
    net.node.ip(
        "link", "add", "nctv0a020000", "type", "vxlan", "id", str(VNI), "local", NODE, "remote", WORLD,
        "dstport", str(PORT), "nolearning",
    )  # fmt: skip
    net.node.ip("link", "set", "nctv0a020000", "up")

    def probe(mark: int) -> Callable[[], object]:
        def send() -> None:
            with net.node.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                packet = ipv4(GATEWAY, FAR_ROUTER, 253, MARKER)
                sock.sendto(packet, ("nctv0a020000", 0x0800, 0, 0, b"\xff" * 6))

        return send

    assert heard(net.world, 17, probe(0), PASSES_WITHIN) == NODE, "the control: without our rules it leaves"
    for routed in (True, False):
        node.install(attrs.evolve(VXLAN_POLICY, device="nctv0a020000", routed=routed))
        assert heard(net.world, 17, probe(OUTER_MARK), PASSES_WITHIN) == NODE
        assert not heard(net.world, 17, probe(0), BLOCKED_AFTER)


SET_THE_MARK = f"""
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
try:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, {OUTER_MARK})
except PermissionError:
    sys.exit(7)
"""


def test_no_user_without_privilege_passes_for_a_tunnel(node: Node) -> None:
    # What the mark is worth: who may set it may send frames past every hook, too.
    unprivileged = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")
    with node.net.node.entered():
        statuses = [
            subprocess.run([*as_whom, sys.executable, "-c", SET_THE_MARK], check=False).returncode
            for as_whom in ((), unprivileged)
        ]
    assert statuses == [0, 7]


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
