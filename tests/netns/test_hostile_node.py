"""What a node of the overlay whose owner is hostile, or somebody on the underlay, can do to an honest one.

Whole nodes n1, n2, n3 with all their rules; n3 has thrown its own away and sends what it likes. For each
encapsulation alike; what differs is what an underlay lets strangers forge.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator

import attrs
import pytest

from firewall_rules import names
from netctl.model import Encapsulation, mac_of
from nodeagent.ops import SetWireguard
from tests.support.agents import permit
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
from tests.support.whole_nodes import UNDERLAY, Overlay, WholeNode, overlay

WAYS: tuple[Encapsulation, ...] = ("gre", "vxlan", "wireguard", "direct")
PORT = 9000
GRE, VXLAN_PORT = 47, 4789
N1_BOX, N2_BOX, N3_BOX = "10.1.0.2", "10.2.0.2", "10.3.0.2"
N2_BRIDGE, N2_ELSE, INTERNET = "10.2.0.1", "203.0.113.2", "198.51.100.1"
BEHIND_N2 = ("203.0.113.0/24", "198.51.100.0/24")
STRANGER = "192.0.2.99"

pytestmark = pytest.mark.root
Make = Callable[[], Namespace]


@pytest.fixture(
    params=[pytest.param(way, marks=[] if way == "direct" else pytest.mark.needs_kernel(way)) for way in WAYS]
)
def net(request: pytest.FixtureRequest) -> Iterator[Overlay]:
    """Yield three nodes whose first containers may send datagrams to n2's; n3 has no rules."""
    with overlay([request.param], nodes=3, containers=1) as made:
        made.want(*(permit(box, N2_BOX, f"{PORT}/udp") for box in (N1_BOX, N3_BOX)))
        _throw_rules_away(made.nodes[2])
        yield made


def _throw_rules_away(node: WholeNode) -> None:
    node.namespace.nft(f"delete table inet {names.TABLE}\ndelete table bridge {names.TABLE}\n")


def _way(net: Overlay) -> Encapsulation:
    return net.nodes[0].state.encapsulation


def _packet(source: str, target: str) -> bytes:
    return ipv4(source, target, socket.IPPROTO_UDP, udp(PORT, PORT, b"hostile"))


def _send(sender: Namespace, target: str, packet: bytes) -> None:
    """Send a packet with its IP header as it is, wherever the sender's routes lead."""
    with sender.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        sock.sendto(packet, (target, 0))


def _arrives(at: Namespace, send: Callable[[], None], seconds: float, port: int = PORT) -> bool:
    with at.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", port))
        send()
        return readable(server, seconds)


def test_an_inner_source_of_a_foreign_block_is_dropped(net: Overlay) -> None:
    hostile, box = net.nodes[2].namespace, net.containers[N2_BOX]

    def arrives(source: str, seconds: float) -> bool:
        return _arrives(box, lambda: _send(hostile, N2_BOX, _packet(source, N2_BOX)), seconds)

    assert arrives(N3_BOX, PASSES_WITHIN), "the control: its own container"
    for source in (N1_BOX, "10.1.0.1", N2_BRIDGE, "10.2.0.3", "10.9.0.2", INTERNET):
        assert not arrives(source, BLOCKED_AFTER), source
    assert not arrives("10.3.0.3", BLOCKED_AFTER), "its own block, but nothing is permitted"
    assert arrives(N3_BOX, PASSES_WITHIN)


def test_the_tunnel_leads_neither_to_the_node_nor_through_it(net: Overlay, namespaces: Make) -> None:
    n2, n3 = net.nodes[1], net.nodes[2]
    world = namespaces()
    veth(n2.namespace, "wan0", world, "eth0")
    address(n2.namespace, "wan0", "198.51.100.2/24")
    address(n2.namespace, "lo", f"{N2_ELSE}/32")
    address(world, "eth0", f"{INTERNET}/24")
    _route_through(n3, n2)
    targets = ((N2_BRIDGE, n2.namespace), (N2_ELSE, n2.namespace), (INTERNET, world))

    def arrives(target: str, at: Namespace, seconds: float) -> bool:
        return _arrives(at, lambda: _send(n3.namespace, target, _packet(N3_BOX, target)), seconds)

    for target, at in targets:
        assert not arrives(target, at, BLOCKED_AFTER), target
    _throw_rules_away(n2)
    for target, at in targets:
        assert arrives(target, at, PASSES_WITHIN), f"the control: {target} is reached if n2 has no rules"


def _route_through(hostile: WholeNode, victim: WholeNode) -> None:
    """Have `hostile` send what is not for the overlay along its tunnel to `victim`."""
    block, way = f"10.{victim.number}.0.0/16", hostile.state.encapsulation
    device = {
        "wireguard": names.wireguard_device(1),
        "direct": UNDERLAY,
    }.get(way) or names.tunnel_device(block, way)
    via = {"vxlan": f"10.{victim.number}.0.1", "direct": victim.underlay}.get(way)
    gateway = ["via", via, "onlink"] if via else []
    for network in BEHIND_N2:
        hostile.namespace.ip("route", "add", network, *gateway, "dev", device)
    if way == "wireguard":
        # What its own side lets out is its owner's to choose.
        link = next(iter(hostile.links().wireguard.values()))
        everything = (attrs.evolve(p, block="0.0.0.0/0") for p in link.peers if p.block == block)
        hostile.do(SetWireguard(attrs.evolve(link, peers=frozenset(everything))))


def _carried(way: Encapsulation, source: str, target: str, inner: bytes) -> bytes:
    """Return an outer packet as the encapsulation makes it; with wireguard as gre, for want of its key."""
    if way == "vxlan":
        vni = 1 << 12 | 2
        frame = ethernet(mac_of(N2_BRIDGE), mac_of("10.1.0.1"), 0x0800, inner)
        body = udp(40000, VXLAN_PORT, struct.pack("!II", 0x08000000, vni << 8) + frame)
        return ipv4(source, target, socket.IPPROTO_UDP, body)
    return ipv4(source, target, GRE, b"\0\0\x08\0" + inner)


def test_a_stranger_on_the_underlay_is_not_taken_for_a_node(net: Overlay, namespaces: Make) -> None:
    way, stranger, box = _way(net), namespaces(), net.containers[N2_BOX]
    n1, n2 = net.nodes[0], net.nodes[1]
    veth(net.switch, "stranger", stranger, "eth0")
    net.switch.ip("link", "set", "stranger", "master", "switch", "up")
    address(stranger, "eth0", f"{STRANGER}/24")
    inner = _packet(N1_BOX, N2_BOX)

    def plain(mac: str) -> None:
        send_frames(stranger, "eth0", [ethernet(n2.facts.underlay_mac, mac, 0x0800, inner)])

    def outer(source: str) -> None:
        _send(stranger, n2.underlay, _carried(way, source, n2.underlay, inner))

    own_mac = stranger.ip("-o", "link", "show", "eth0").partition("link/ether ")[2][:17]
    assert not _arrives(box, lambda: outer(STRANGER), BLOCKED_AFTER)
    assert not _arrives(box, lambda: plain(own_mac), BLOCKED_AFTER)
    # The controls, and the limit of all but wireguard: who can send under a node's own address is that node.
    assert _arrives(box, lambda: outer(n1.underlay), _patience(way in {"gre", "vxlan"})) == (
        way in {"gre", "vxlan"}
    )
    assert _arrives(box, lambda: plain(n1.facts.underlay_mac), _patience(way == "direct")) == (
        way == "direct"
    )


def _patience(passes: bool) -> float:  # noqa: FBT001 - what is waited for
    return PASSES_WITHIN if passes else BLOCKED_AFTER


@pytest.mark.needs_kernel("wireguard")
def test_a_packet_of_wireguard_that_is_sent_again_counts_once(namespaces: Make) -> None:
    stranger = namespaces()
    with overlay(["wireguard"], nodes=2, containers=1) as net:
        n2 = net.nodes[1]
        veth(net.switch, "stranger", stranger, "eth0")
        net.switch.ip("link", "set", "stranger", "master", "switch", "up")
        stranger.ip("link", "set", "eth0", "up")
        net.want(permit(N1_BOX, N2_BOX, f"{PORT}/udp"))
        packet, box = _packet(N1_BOX, N2_BOX), net.containers[N2_BOX]
        wire = n2.namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        with wire:
            wire.bind((UNDERLAY, 0x0003))
            assert _arrives(box, lambda: _send(net.containers[N1_BOX], N2_BOX, packet), PASSES_WITHIN)
            sent = _data_frames(wire)
            assert sent
            assert not _arrives(box, lambda: send_frames(stranger, "eth0", sent), BLOCKED_AFTER)
            assert _data_frames(wire) == sent, "the control: they came to the node once more"
        assert _arrives(box, lambda: _send(net.containers[N1_BOX], N2_BOX, packet), PASSES_WITHIN)


def _data_frames(wire: socket.socket) -> list[bytes]:
    """Return the frames with WireGuard's data that have come in."""
    found = []
    while readable(wire, BLOCKED_AFTER):
        frame, origin = wire.recvfrom(65536)
        # PACKET_HOST: it came to us; type 4 is data (wireguard.com/protocol).
        if origin[2] == 0 and frame[42:46] == b"\x04\0\0\0":
            found.append(frame)
    return found
