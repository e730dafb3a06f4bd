"""Layer 2 and the host's own protection on the real kernel, with packets that no container should send."""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from collections.abc import Callable

import attrs
import pytest

from firewall_rules.backends.base import FirewallError
from firewall_rules.backends.nftables import NftablesHostBackend
from firewall_rules.names import OUTER_MARK
from firewall_rules.policy import HostPolicy, Pair, TunnelPolicy
from tests.support.host_net import (
    BRIDGE_MAC,
    FAR,
    FAR_OTHER,
    FAR_ROUTER,
    GATEWAY,
    INTERNET,
    MACS,
    NODE,
    ONE,
    POLICY,
    PORTS,
    TUNNEL,
    TUNNEL_POLICY,
    TWO,
    WORLD,
    HostNet,
    attach,
    host_net,
)
from tests.support.netns import (
    BLOCKED_AFTER,
    PASSES_WITHIN,
    Capture,
    Namespace,
    address,
    arp,
    checksum,
    ethernet,
    ipv4,
    ping6_passes,
    ping_passes,
    readable,
    send_frames,
    tcp_passes,
    udp,
    udp_passes,
    veth,
    wait_for,
)

pytestmark = pytest.mark.root

BROADCAST = "ff:ff:ff:ff:ff:ff"
ZERO = "00:00:00:00:00:00"
IPV4, ARP, IPV6, VLAN, EXPERIMENTAL = 0x0800, 0x0806, 0x86DD, 0x8100, 0x88B5
MARKER = b"netctl-test-marker"
UDP = socket.IPPROTO_UDP


class Host:
    """The backend under test, in the node's namespace."""

    def __init__(self, net: HostNet) -> None:
        self.net = net
        self.backend = NftablesHostBackend()

    def install(self, policy: HostPolicy = POLICY) -> None:
        with self.net.node.entered():
            self.backend.install(policy)

    def update(self, **changes: object) -> None:
        with self.net.node.entered():
            self.backend.update(**changes)  # type: ignore[arg-type]

    def read(self) -> HostPolicy | None:
        with self.net.node.entered():
            return self.backend.read()

    def drifted(self) -> bool:
        with self.net.node.entered():
            return self.backend.drifted()

    def remove(self) -> None:
        with self.net.node.entered():
            self.backend.remove()


@pytest.fixture(params=[True, False], ids=["bridge-nf", "no-bridge-nf"])
def both_ways(request: pytest.FixtureRequest, namespaces: Callable[[], Namespace]) -> Host:
    """A node whose bridged frames do, and do not, pass its inet hooks too."""
    return Host(host_net(namespaces, bridge_calls_ip=request.param))


@pytest.fixture
def host(namespaces: Callable[[], Namespace]) -> Host:
    return Host(host_net(namespaces))


def passes(check: Callable[..., bool], *arguments: object, **options: object) -> bool:
    return check(*arguments, seconds=PASSES_WITHIN, **options)


def arrives(at: Namespace, link: str, send: Callable[[], None], seconds: float) -> bool:
    """Whether something with the marker is seen coming in on `link` after `send`."""
    outgoing = 4  # PACKET_OUTGOING: packet(7)
    with at.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((link, 0x0003))
        send()
        while readable(sock, seconds):
            frame, sender = sock.recvfrom(65536)
            if MARKER in frame and sender[2] != outgoing:
                return True
        return False


def marked(source: str, target: str) -> bytes:
    return ipv4(source, target, UDP, udp(9999, 9999, MARKER))


# One node


def test_a_pair_on_one_node_passes_and_nobody_else(both_ways: Host) -> None:
    net = both_ways.net
    both_ways.install(attrs.evolve(POLICY, pairs=frozenset()))
    assert not tcp_passes(net.one, net.two, TWO, 80)
    assert not ping_passes(net.two, ONE)
    both_ways.install()
    assert passes(tcp_passes, net.one, net.two, TWO, 80)
    assert passes(tcp_passes, net.two, net.one, ONE, 80)
    assert passes(udp_passes, net.one, net.two, TWO, 80, size=4000)
    assert passes(ping_passes, net.two, ONE)


def test_a_pair_taken_out_is_cut_and_one_put_in_passes(host: Host) -> None:
    net = host.net
    host.install()
    assert passes(udp_passes, net.one, net.two, TWO, 80)
    host.update(pairs_removed=[Pair(ONE, TWO)])
    assert not udp_passes(net.one, net.two, TWO, 80)
    assert passes(udp_passes, net.one, net.far, FAR, 80)
    host.update(pairs=[Pair(ONE, TWO, time.time() + 2.5)])
    assert passes(udp_passes, net.one, net.two, TWO, 80)
    wait_for(lambda: not udp_passes(net.one, net.two, TWO, 80), what="the end of the pair")
    assert not tcp_passes(net.two, net.one, ONE, 81)


FORGED = {
    "another-source-address": ethernet(MACS[TWO], MACS[ONE], IPV4, marked("10.1.0.77", TWO)),
    "a-far-source-address": ethernet(MACS[TWO], MACS[ONE], IPV4, marked(FAR, TWO)),
    "another-mac": ethernet(MACS[TWO], "6e:63:0a:01:00:63", IPV4, marked(ONE, TWO)),
    "the-gateways-mac": ethernet(MACS[TWO], BRIDGE_MAC, IPV4, marked(ONE, TWO)),
    "the-gateways-address": ethernet(MACS[TWO], MACS[ONE], IPV4, marked(GATEWAY, TWO)),
    "a-vlan": ethernet(MACS[TWO], MACS[ONE], VLAN, struct.pack("!HH", 7, IPV4) + marked(ONE, TWO)),
    "a-priority-tag": ethernet(MACS[TWO], MACS[ONE], VLAN, struct.pack("!HH", 0, IPV4) + marked(ONE, TWO)),
    "ipv6": ethernet(MACS[TWO], MACS[ONE], IPV6, bytes.fromhex("6000000000123b40") + bytes(32) + MARKER),
    "an-unknown-ethertype": ethernet(MACS[TWO], MACS[ONE], EXPERIMENTAL, MARKER),
    "arp-for-another-address": ethernet(
        MACS[TWO], MACS[ONE], ARP, arp(2, MACS[ONE], GATEWAY, MACS[TWO], TWO) + MARKER
    ),
    "arp-with-another-mac": ethernet(
        MACS[TWO], MACS[ONE], ARP, arp(2, "6e:63:0a:01:00:63", ONE, MACS[TWO], TWO) + MARKER
    ),
    "arp-by-another-mac": ethernet(
        MACS[TWO], "6e:63:0a:01:00:63", ARP, arp(2, MACS[ONE], ONE, MACS[TWO], TWO) + MARKER
    ),
    "reverse-arp": ethernet(MACS[TWO], MACS[ONE], ARP, arp(3, MACS[ONE], ONE, MACS[TWO], TWO) + MARKER),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_frame_goes_nowhere(host: Host, name: str) -> None:
    net = host.net

    def send() -> None:
        send_frames(net.one, "eth0", [FORGED[name]])

    assert arrives(net.two, "eth0", send, PASSES_WITHIN), "the control: it arrives without our rules"
    host.install()
    honest = ethernet(MACS[TWO], MACS[ONE], IPV4, marked(ONE, TWO))
    assert not arrives(net.two, "eth0", send, BLOCKED_AFTER)
    assert arrives(net.two, "eth0", lambda: send_frames(net.one, "eth0", [honest]), PASSES_WITHIN), (
        "the control: what is not forged arrives with our rules"
    )


@pytest.mark.parametrize("source", ["10.1.0.77", TWO, FAR, "203.0.113.5"])
def test_a_forged_source_does_not_leave_the_node(host: Host, source: str) -> None:
    net = host.net
    host.install()
    wait_for(lambda: udp_passes(net.one, net.far, FAR, 80), what="the pair's first packet")

    def forged() -> None:
        send_frames(net.one, "eth0", [ethernet(BRIDGE_MAC, MACS[ONE], IPV4, marked(source, FAR))])

    def honest() -> None:
        send_frames(net.one, "eth0", [ethernet(BRIDGE_MAC, MACS[ONE], IPV4, marked(ONE, FAR))])

    assert not arrives(net.far, "eth0", forged, BLOCKED_AFTER)
    assert not arrives(net.node, "netctl0", forged, BLOCKED_AFTER)
    assert arrives(net.far, "eth0", honest, PASSES_WITHIN)


def test_arp_is_answered_between_pairs_and_by_the_gateway_alone(host: Host) -> None:
    net = host.net
    third = "10.1.0.4"
    host.install()

    def asks(target: str) -> Callable[[], None]:
        frame = ethernet(BROADCAST, MACS[ONE], ARP, arp(1, MACS[ONE], ONE, ZERO, target))
        return lambda: send_frames(net.one, "eth0", [frame])

    def answered(target: str, seconds: float) -> bool:
        answer = struct.pack("!H", 2)
        with Capture(net.one, "eth0") as capture:
            asks(target)()
            return (
                capture.until(
                    lambda frame: (
                        frame[12:14] == b"\x08\x06"
                        and frame[20:22] == answer
                        and frame[28:32] == socket.inet_aton(target)
                    ),
                    seconds,
                )
                is not None
            )

    assert answered(TWO, PASSES_WITHIN)
    assert answered(GATEWAY, PASSES_WITHIN)
    net.two.ip("addr", "add", f"{third}/16", "dev", "eth0")
    assert not answered(third, BLOCKED_AFTER)
    # By default Linux answers on every link for every address it has.
    assert not answered(NODE, BLOCKED_AFTER)
    host.update(pairs_removed=[Pair(ONE, TWO)])
    assert not answered(TWO, BLOCKED_AFTER)


def test_ipv6_is_closed_between_containers_and_to_the_node(host: Host) -> None:
    net = host.net
    inner = {
        namespace: namespace.ip("-6", "-o", "addr", "show", "dev", link, "scope", "link")
        .split()[3]
        .partition("/")[0]
        for namespace, link in ((net.two, "eth0"), (net.node, "netctl0"))
    }
    for namespace, link in ((net.one, "eth0"), (net.two, "eth0"), (net.node, "netctl0")):
        wait_for(lambda n=namespace, k=link: "tentative" not in n.ip("-6", "addr", "show", "dev", k))
    for target in inner.values():
        assert passes(ping6_passes, net.one, target, "eth0"), "the control: it passes without our rules"
    host.install()
    for target in inner.values():
        assert not ping6_passes(net.one, target, "eth0")


# The node itself


def test_of_the_node_a_container_reaches_the_resolver_alone(both_ways: Host) -> None:
    net = both_ways.net
    for target in (GATEWAY, NODE):
        assert passes(tcp_passes, net.one, net.node, target, 2020), "the control: it passes without our rules"
    both_ways.install()
    for target in (GATEWAY, NODE):
        assert not tcp_passes(net.one, net.node, target, 2020)
        assert not udp_passes(net.one, net.node, target, 2020)
        assert not ping_passes(net.one, target)
    assert passes(udp_passes, net.one, net.node, GATEWAY, 53)
    assert passes(tcp_passes, net.one, net.node, GATEWAY, 53)
    assert passes(udp_passes, net.one, net.node, GATEWAY, 53, size=4000)
    assert not udp_passes(net.one, net.node, NODE, 53)
    both_ways.install(attrs.evolve(POLICY, resolver=None))
    assert not udp_passes(net.one, net.node, GATEWAY, 53)


def test_the_node_does_not_reach_its_containers(host: Host) -> None:
    net = host.net
    assert passes(tcp_passes, net.node, net.one, ONE, 80)
    host.install()
    assert not tcp_passes(net.node, net.one, ONE, 80)
    assert not ping_passes(net.node, ONE)


def test_the_bridges_address_is_closed_from_outside(host: Host) -> None:
    net = host.net
    net.world.ip("route", "add", "10.0.0.0/8", "via", NODE)
    assert passes(udp_passes, net.world, net.node, GATEWAY, 53)
    host.install()
    assert not udp_passes(net.world, net.node, GATEWAY, 53)
    assert passes(udp_passes, net.world, net.node, NODE, 53), "the node's own services are not ours to close"


# Tunnels


def test_a_pair_over_the_tunnel_passes_and_nobody_else(both_ways: Host) -> None:
    net = both_ways.net
    both_ways.install()
    assert passes(tcp_passes, net.one, net.far, FAR, 80)
    assert passes(tcp_passes, net.far, net.one, ONE, 80)
    assert passes(udp_passes, net.one, net.far, FAR, 80, size=4000)
    assert passes(udp_passes, net.far, net.one, ONE, 80, size=4000)
    assert passes(ping_passes, net.far, ONE)
    assert not tcp_passes(net.one, net.far, FAR_OTHER, 80)
    assert not tcp_passes(net.two, net.far, FAR, 80)
    assert not tcp_passes(net.far, net.two, TWO, 80)
    both_ways.update(pairs_removed=[Pair(ONE, FAR)])
    assert not tcp_passes(net.one, net.far, FAR, 80)
    assert not tcp_passes(net.far, net.one, ONE, 80)


def from_tunnel(net: HostNet, source: str, target: str) -> Callable[[], None]:
    """Return what puts an inner packet into the tunnel at its far end."""
    mac = link_mac(net.node, TUNNEL)
    frame = ethernet(mac, link_mac(net.far, "eth0"), IPV4, marked(source, target))
    return lambda: send_frames(net.far, "eth0", [frame])


def link_mac(namespace: Namespace, link: str) -> str:
    return namespace.ip("-o", "link", "show", "dev", link).partition("link/ether ")[2].split()[0]


@pytest.mark.parametrize("source", ["10.3.0.5", TWO, WORLD, INTERNET])
def test_a_foreign_inner_source_is_dropped(host: Host, source: str) -> None:
    net = host.net
    assert arrives(net.one, "eth0", from_tunnel(net, source, ONE), PASSES_WITHIN), "the control"
    one, other = sorted((ONE, source))
    host.install(attrs.evolve(POLICY, pairs=frozenset({Pair(one, other), Pair(ONE, FAR)})))
    assert not arrives(net.one, "eth0", from_tunnel(net, source, ONE), BLOCKED_AFTER)
    assert arrives(net.one, "eth0", from_tunnel(net, FAR, ONE), PASSES_WITHIN)


@pytest.mark.parametrize("target", [GATEWAY, NODE])
def test_from_a_tunnel_nothing_reaches_the_node_itself(host: Host, target: str) -> None:
    net = host.net

    def heard(seconds: float) -> bool:
        with net.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("", 9999))
            from_tunnel(net, FAR, target)()
            return readable(receiver, seconds)

    assert heard(PASSES_WITHIN), "the control: it arrives without our rules"
    host.install()
    assert not heard(BLOCKED_AFTER)


@pytest.mark.parametrize("target", [INTERNET, WORLD])
def test_from_a_tunnel_nothing_goes_on_to_a_third_host(host: Host, target: str) -> None:
    net = host.net
    net.world.ip("route", "add", "10.0.0.0/8", "via", NODE)
    assert arrives(net.world, "eth0", from_tunnel(net, FAR, target), PASSES_WITHIN), "the control"
    host.install()
    assert not arrives(net.world, "eth0", from_tunnel(net, FAR, target), BLOCKED_AFTER)


def test_from_a_tunnel_nothing_goes_on_into_another(host: Host, namespaces: Callable[[], Namespace]) -> None:
    net, third = host.net, namespaces()
    veth(net.node, "nct0a030000", third, "eth0")
    net.node.ip("link", "set", "nct0a030000", "up")
    address(third, "eth0", "10.3.0.2/16")
    net.node.ip("route", "add", "10.3.0.0/16", "dev", "nct0a030000")
    send = from_tunnel(net, FAR, "10.3.0.2")
    assert arrives(third, "eth0", send, PASSES_WITHIN), "the control"
    other = TunnelPolicy("nct0a030000", "10.3.0.0/16", "gre", "192.0.2.10")
    pairs = frozenset({Pair(FAR, "10.3.0.2")})
    host.install(attrs.evolve(POLICY, tunnels=frozenset({TUNNEL_POLICY, other}), pairs=pairs))
    assert not arrives(third, "eth0", send, BLOCKED_AFTER)


def test_nobody_but_a_container_enters_a_tunnel(host: Host) -> None:
    net = host.net
    net.world.ip("route", "add", "10.0.0.0/8", "via", NODE)
    assert passes(udp_passes, net.node, net.far, FAR, 80)
    forged = ethernet(link_mac(net.node, "eth0"), link_mac(net.world, "eth0"), IPV4, marked(ONE, FAR))

    def send() -> None:
        send_frames(net.world, "eth0", [forged])

    assert arrives(net.far, "eth0", send, PASSES_WITHIN), "the control"
    host.install()
    assert not udp_passes(net.node, net.far, FAR, 80)
    assert not arrives(net.far, "eth0", send, BLOCKED_AFTER)


def test_a_tunnel_that_nobody_knows_brings_nothing(host: Host) -> None:
    net = host.net
    host.install()
    assert passes(udp_passes, net.far, net.one, ONE, 80)
    host.update(tunnels_removed=[TUNNEL_POLICY])
    assert not udp_passes(net.far, net.one, ONE, 80)
    assert not udp_passes(net.one, net.far, FAR, 80)
    host.update(tunnels=[TUNNEL_POLICY])
    assert passes(udp_passes, net.far, net.one, ONE, 80)


VXLAN_POLICY = TunnelPolicy("nctv0a020000", "10.2.0.0/16", "vxlan", WORLD, vni=17)


def test_a_way_that_is_not_routed_brings_nothing_of_the_peers_block(host: Host) -> None:
    net = host.net
    host.install()
    assert passes(udp_passes, net.far, net.one, ONE, 80), "the control: it passes where it is routed"
    host.update(tunnels=[attrs.evolve(TUNNEL_POLICY, routed=False)])
    for source, target in ((FAR, ONE), (FAR_ROUTER, ONE)):
        assert not arrives(net.one, "eth0", from_tunnel(net, source, target), BLOCKED_AFTER)
    assert not tcp_passes(net.one, net.far, FAR, 80)
    # Its outer packets come in as before, and nobody else's.
    payload = struct.pack("!HH", 0, IPV4) + MARKER
    assert outer_heard(net, WORLD, 47, payload, PASSES_WITHIN)
    assert not outer_heard(net, "192.0.2.66", 47, payload, BLOCKED_AFTER)
    host.update(tunnels=[TUNNEL_POLICY])
    assert passes(udp_passes, net.far, net.one, ONE, 80)


def test_a_pair_changes_its_way_by_its_own_elements_alone(
    host: Host, namespaces: Callable[[], Namespace]
) -> None:
    net, behind_other = host.net, namespaces()
    veth(net.node, VXLAN_POLICY.device, behind_other, "eth0")
    net.node.ip("link", "set", VXLAN_POLICY.device, "up")
    address(behind_other, "eth0", f"{FAR}/16")
    frame = ethernet(
        link_mac(net.node, VXLAN_POLICY.device), link_mac(behind_other, "eth0"), IPV4, marked(FAR, ONE)
    )

    def by_gre(seconds: float) -> bool:
        return arrives(net.one, "eth0", from_tunnel(net, FAR, ONE), seconds)

    def by_vxlan(seconds: float) -> bool:
        return arrives(net.one, "eth0", lambda: send_frames(behind_other, "eth0", [frame]), seconds)

    host.install(
        attrs.evolve(POLICY, tunnels=frozenset({TUNNEL_POLICY, attrs.evolve(VXLAN_POLICY, routed=False)}))
    )
    assert by_gre(PASSES_WITHIN)
    assert not by_vxlan(BLOCKED_AFTER)
    host.update(
        tunnels=[VXLAN_POLICY, attrs.evolve(TUNNEL_POLICY, routed=False)],
        tunnels_removed=[TUNNEL_POLICY, attrs.evolve(VXLAN_POLICY, routed=False)],
    )
    assert not by_gre(BLOCKED_AFTER)
    assert by_vxlan(PASSES_WITHIN)
    assert passes(udp_passes, net.one, net.two, TWO, 80)


def test_while_a_key_is_rotated_a_peer_speaks_by_either_link_and_for_its_block_alone(
    host: Host, namespaces: Callable[[], Namespace]
) -> None:
    net = host.net
    behind = {}
    for device in ("nctw0", "nctw1"):
        behind[device] = namespaces()
        veth(net.node, device, behind[device], "eth0")
        net.node.ip("link", "set", device, "up")
        address(behind[device], "eth0", f"{FAR}/16")

    def sent(device: str, source: str) -> Callable[[], None]:
        far = behind[device]
        frame = ethernet(link_mac(net.node, device), link_mac(far, "eth0"), IPV4, marked(source, ONE))
        return lambda: send_frames(far, "eth0", [frame])

    old = TunnelPolicy("nctw0", "10.2.0.0/16", "wireguard", WORLD)
    new = attrs.evolve(old, device="nctw1")
    third = "10.3.0.5"
    host.install(attrs.evolve(POLICY, pairs=frozenset({Pair(ONE, FAR), Pair(ONE, third)})))
    for device in behind:
        assert not arrives(net.one, "eth0", sent(device, FAR), BLOCKED_AFTER)
    host.update(tunnels=[old, new], tunnels_removed=[TUNNEL_POLICY])
    for device in behind:
        assert arrives(net.one, "eth0", sent(device, FAR), PASSES_WITHIN)
        assert not arrives(net.one, "eth0", sent(device, third), BLOCKED_AFTER)
    host.update(tunnels_removed=[old])
    assert not arrives(net.one, "eth0", sent("nctw0", FAR), BLOCKED_AFTER)
    assert arrives(net.one, "eth0", sent("nctw1", FAR), PASSES_WITHIN)


def error_about(source: str, target: str) -> bytes:
    about = ipv4(source, target, UDP, udp(9000, 7777, b"12345678"))
    head = struct.pack("!BBHHH", 3, 4, 0, 0, 1300)
    return head[:2] + struct.pack("!H", checksum(head + about + MARKER)) + head[4:] + about + MARKER


def test_a_far_routers_error_about_a_pair_arrives(host: Host) -> None:
    net = host.net
    host.install(attrs.evolve(POLICY, pairs=POLICY.pairs | {Pair(ONE, FAR_OTHER)}))
    for target in (FAR, FAR_OTHER):
        assert passes(udp_passes, net.one, net.far, target, 7777, source_port=9000)

    def error(target: str, about: str = ONE) -> Callable[[], None]:
        packet = ipv4(FAR_ROUTER, ONE, socket.IPPROTO_ICMP, error_about(about, target))
        frame = ethernet(link_mac(net.node, TUNNEL), link_mac(net.far, "eth0"), IPV4, packet)
        return lambda: send_frames(net.far, "eth0", [frame])

    assert arrives(net.one, "eth0", error(FAR), PASSES_WITHIN)
    assert arrives(net.one, "eth0", error(FAR_OTHER), PASSES_WITHIN)
    host.update(pairs_removed=[Pair(ONE, FAR_OTHER)])
    assert not arrives(net.one, "eth0", error(FAR_OTHER), BLOCKED_AFTER)
    assert arrives(net.one, "eth0", error(FAR), PASSES_WITHIN)
    # About somebody else's pair: an error is for whoever sent what it quotes.
    host.update(pairs=[Pair("10.1.0.77", FAR_OTHER)])
    assert not arrives(net.one, "eth0", error(FAR_OTHER, about="10.1.0.77"), BLOCKED_AFTER)
    # About a flow that nobody ever started.
    assert not arrives(net.one, "eth0", error("10.2.0.99"), BLOCKED_AFTER)


@pytest.mark.parametrize("outward", [True, False], ids=["to-a-container", "into-the-tunnel"])
def test_the_nodes_own_fragmentation_needed_arrives(host: Host, *, outward: bool) -> None:
    net = host.net
    net.node.ip("link", "set", TUNNEL if outward else "netctl0", "mtu", "1300")
    host.install()
    assert passes(udp_passes, net.one, net.far, FAR, 80)
    source, target = (net.one, FAR) if outward else (net.far, ONE)
    with source.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO: ip(7)
        sock.connect((target, 81))
        sock.send(bytes(1400))
        assert readable(sock, PASSES_WITHIN)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE


# The internet


def test_the_internet_can_be_asked_and_cannot_ask(both_ways: Host) -> None:
    net = both_ways.net
    both_ways.install()
    with net.world.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", 5300))
        with net.one.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"who am I", (INTERNET, 5300))
            assert readable(server, PASSES_WITHIN)
            _, sender = server.recvfrom(64)
            assert sender[0] == NODE
            server.sendto(b"you", sender)
            assert readable(client, PASSES_WITHIN)
    assert passes(tcp_passes, net.one, net.world, INTERNET, 443)
    assert passes(udp_passes, net.one, net.world, INTERNET, 443, size=4000)
    assert passes(ping_passes, net.one, INTERNET)
    net.world.ip("route", "add", "10.0.0.0/8", "via", NODE, "src", INTERNET)
    assert not tcp_passes(net.world, net.one, ONE, 80)
    assert not ping_passes(net.world, ONE)
    both_ways.remove()
    assert passes(tcp_passes, net.world, net.one, ONE, 80), "the control: it passes without our rules"


def test_the_underlay_is_no_internet(host: Host) -> None:
    net = host.net
    net.world.ip("route", "add", "10.0.0.0/8", "via", NODE)
    assert passes(tcp_passes, net.one, net.world, WORLD, 2020), "the control: it passes without our rules"
    host.install()
    assert not tcp_passes(net.one, net.world, WORLD, 2020)
    assert not ping_passes(net.one, WORLD)


def test_only_what_leaves_or_asks_the_resolver_is_tracked(both_ways: Host) -> None:
    net = both_ways.net
    both_ways.install()

    def tracked() -> str:
        return net.node.run("conntrack", "-L")

    assert passes(tcp_passes, net.one, net.two, TWO, 80)
    assert passes(tcp_passes, net.one, net.far, FAR, 80)
    assert passes(udp_passes, net.far, net.one, ONE, 80)
    assert passes(ping_passes, net.far, ONE)
    assert ONE not in tracked()
    assert passes(udp_passes, net.one, net.node, GATEWAY, 53)
    assert f"src={ONE} dst={GATEWAY}" in tracked()
    assert passes(tcp_passes, net.one, net.world, INTERNET, 443)
    assert f"src={ONE} dst={INTERNET}" in tracked()


# Direct, and what is around the inner packets


def test_direct_takes_a_block_from_its_peers_mac_alone(host: Host) -> None:
    net = host.net
    peer_mac = link_mac(net.world, "eth0")
    net.world.ip("addr", "add", "10.4.0.2/32", "dev", "lo")
    net.world.ip("route", "add", "10.1.0.0/16", "via", NODE, "src", "10.4.0.2")
    net.node.ip("route", "add", "10.4.0.0/16", "via", WORLD, "src", GATEWAY)
    direct = TunnelPolicy("eth0", "10.4.0.0/16", "direct", WORLD, mac=peer_mac)
    pairs = POLICY.pairs | {Pair(ONE, "10.4.0.2")}
    host.install(attrs.evolve(POLICY, pairs=pairs, tunnels=frozenset({direct})))
    assert passes(tcp_passes, net.one, net.world, "10.4.0.2", 80)
    assert passes(tcp_passes, net.world, net.one, ONE, 80)
    assert not tcp_passes(net.two, net.world, "10.4.0.2", 80)
    assert not tcp_passes(net.world, net.two, TWO, 80)

    def sent(mac: str, source: str, target: str) -> Callable[[], None]:
        frame = ethernet(link_mac(net.node, "eth0"), mac, IPV4, marked(source, target))
        return lambda: send_frames(net.world, "eth0", [frame])

    assert arrives(net.one, "eth0", sent(peer_mac, "10.4.0.2", ONE), PASSES_WITHIN)
    assert not arrives(net.one, "eth0", sent("02:00:00:00:00:63", "10.4.0.2", ONE), BLOCKED_AFTER)
    assert "10.4.0.2" not in net.node.run("conntrack", "-L")
    with net.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("", 9999))
        sent(peer_mac, "10.4.0.2", NODE)()
        assert not readable(receiver, BLOCKED_AFTER)
        sent(peer_mac, WORLD, NODE)()
        assert readable(receiver, PASSES_WITHIN), "the control: the peer node itself is not its containers"
    # A peer that may go this way, and goes another one.
    host.update(tunnels=[attrs.evolve(direct, routed=False)])
    assert not arrives(net.one, "eth0", sent(peer_mac, "10.4.0.2", ONE), BLOCKED_AFTER)


def outer_heard(net: HostNet, source: str, protocol: int, payload: bytes, seconds: float) -> bool:
    """Whether the node takes an outer packet in past its input hook."""
    with net.node.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as receiver:
        packet = ipv4(source, NODE, protocol, payload)
        send_frames(
            net.world,
            "eth0",
            [ethernet(link_mac(net.node, "eth0"), link_mac(net.world, "eth0"), IPV4, packet)],
        )
        while readable(receiver, seconds):
            if MARKER in receiver.recv(2048):
                return True
        return False


def test_gre_is_taken_from_peers_alone(host: Host) -> None:
    net = host.net
    payload = struct.pack("!HH", 0, IPV4) + MARKER
    stranger = "192.0.2.66"
    host.install(attrs.evolve(POLICY, tunnels=frozenset()))
    assert outer_heard(net, stranger, 47, payload, PASSES_WITHIN), (
        "without gre of ours, gre is not ours to close"
    )
    host.update(tunnels=[TUNNEL_POLICY])
    assert not outer_heard(net, stranger, 47, payload, BLOCKED_AFTER)
    assert outer_heard(net, WORLD, 47, payload, PASSES_WITHIN)


def test_vxlan_is_taken_from_a_peer_with_its_own_vni_alone(host: Host) -> None:
    net = host.net
    stranger = "192.0.2.66"

    def datagram(vni: int, port: int = 4790) -> bytes:
        return udp(5555, port, struct.pack("!II", 0x08000000, vni << 8) + MARKER)

    host.install(attrs.evolve(POLICY, tunnels=frozenset(), vxlan_port=4790))
    assert outer_heard(net, stranger, UDP, datagram(17), PASSES_WITHIN)
    tunnels = [
        TunnelPolicy(TUNNEL, "10.2.0.0/16", "vxlan", WORLD, vni=17),
        TunnelPolicy("nct0a030000", "10.3.0.0/16", "vxlan", "192.0.2.10", vni=18),
    ]
    host.update(tunnels=tunnels)
    assert outer_heard(net, WORLD, UDP, datagram(17), PASSES_WITHIN)
    assert outer_heard(net, "192.0.2.10", UDP, datagram(18), PASSES_WITHIN)
    assert not outer_heard(net, WORLD, UDP, datagram(18), BLOCKED_AFTER)
    assert not outer_heard(net, stranger, UDP, datagram(17), BLOCKED_AFTER)
    assert outer_heard(net, stranger, UDP, datagram(17, 4789), PASSES_WITHIN), (
        "another port is someone else's"
    )


WIREGUARD = TunnelPolicy("nctw0", "10.2.0.0/16", "wireguard", WORLD)
WIREGUARD_POLICY = attrs.evolve(
    POLICY, tunnels=frozenset({WIREGUARD}), wireguard_ports=frozenset({51820, 51821})
)


def test_wireguard_is_reached_by_peers_alone(host: Host) -> None:
    net = host.net
    stranger = "192.0.2.66"

    def datagram(port: int) -> bytes:
        return udp(51820, port, MARKER)

    host.install()
    for port in (51820, 51821):
        assert outer_heard(net, stranger, UDP, datagram(port), PASSES_WITHIN), (
            "the control: not ours to close"
        )
    host.install(WIREGUARD_POLICY)
    for port in (51820, 51821):
        assert outer_heard(net, WORLD, UDP, datagram(port), PASSES_WITHIN)
        assert not outer_heard(net, stranger, UDP, datagram(port), BLOCKED_AFTER)
    assert outer_heard(net, stranger, UDP, datagram(51822), PASSES_WITHIN), "another port is someone else's"
    host.update(tunnels=[attrs.evolve(WIREGUARD, encapsulation="gre")])
    assert not outer_heard(net, WORLD, UDP, datagram(51820), BLOCKED_AFTER), "a peer, and by gre alone"


def test_wireguard_is_not_reached_over_ipv6(host: Host) -> None:
    net = host.net
    address(net.node, "eth0", "fd00::1/64")
    address(net.world, "eth0", "fd00::9/64")

    def heard(port: int, seconds: float) -> bool:
        with (
            net.node.socket(socket.AF_INET6, socket.SOCK_DGRAM) as receiver,
            net.world.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind(("::", port))
            sender.sendto(MARKER, ("fd00::1", port))
            return readable(receiver, seconds)

    assert heard(51820, PASSES_WITHIN), "the control: it arrives without our rules"
    host.install(WIREGUARD_POLICY)
    assert not heard(51820, BLOCKED_AFTER)
    assert heard(51822, PASSES_WITHIN)


def test_what_carries_a_tunnel_is_not_tracked(host: Host) -> None:
    net = host.net

    def both_ways(port: int) -> None:
        with (
            net.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as own,
            net.world.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
        ):
            own.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, OUTER_MARK)
            own.bind((NODE, port))
            peer.bind((WORLD, port))
            own.sendto(MARKER, (WORLD, port))
            assert readable(peer, PASSES_WITHIN)
            peer.sendto(MARKER, (NODE, port))
            assert readable(own, PASSES_WITHIN)

    def tracked(port: int) -> bool:
        return f"dport={port}" in net.node.run("conntrack", "-L", "-p", "udp")

    host.install(WIREGUARD_POLICY)
    for port in (51820, 51821):
        both_ways(port)
        assert not tracked(port)
    both_ways(51822)
    assert tracked(51822), "the control: everything else is"


MOVES: dict[str, tuple[TunnelPolicy, int, bytes]] = {
    "gre": (TUNNEL_POLICY, 47, struct.pack("!HH", 0, IPV4) + MARKER),
    "vxlan": (VXLAN_POLICY, UDP, udp(5555, 4789, struct.pack("!II", 0x08000000, 17 << 8) + MARKER)),
    "wireguard": (WIREGUARD, UDP, udp(51820, 51820, MARKER)),
}
MOVED_TO, NOBODY = "192.0.2.10", "192.0.2.66"


@pytest.mark.parametrize("way", MOVES)
def test_a_peer_that_moved_is_heard_where_it_is_and_nowhere_else(host: Host, way: str) -> None:
    net = host.net
    tunnel, protocol, payload = MOVES[way]
    host.install(attrs.evolve(WIREGUARD_POLICY, tunnels=frozenset({tunnel})))
    assert outer_heard(net, WORLD, protocol, payload, PASSES_WITHIN)
    host.update(tunnels=[attrs.evolve(tunnel, outer=MOVED_TO)])
    assert outer_heard(net, MOVED_TO, protocol, payload, PASSES_WITHIN)
    assert not outer_heard(net, WORLD, protocol, payload, BLOCKED_AFTER)
    assert host.read() == attrs.evolve(
        WIREGUARD_POLICY, tunnels=frozenset({attrs.evolve(tunnel, outer=MOVED_TO)})
    )


@pytest.mark.parametrize("whole", [False, True], ids=["its-elements", "all-rules"])
@pytest.mark.parametrize("way", MOVES)
def test_while_a_peer_moves_nothing_opens(host: Host, way: str, *, whole: bool) -> None:
    net = host.net
    tunnel, protocol, payload = MOVES[way]
    at = [attrs.evolve(tunnel, outer=outer) for outer in (WORLD, MOVED_TO)]
    policies = [attrs.evolve(WIREGUARD_POLICY, tunnels=frozenset({one})) for one in at]
    ends = link_mac(net.node, "eth0"), link_mac(net.world, "eth0")
    forged = ethernet(*ends, IPV4, ipv4(NOBODY, NODE, protocol, payload))
    host.install(policies[0])
    sent, ended = 0, threading.Event()

    def send() -> None:
        nonlocal sent
        while not ended.is_set():
            send_frames(net.world, "eth0", [forged] * 50)
            sent += 50

    with net.node.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as receiver:
        sender = threading.Thread(target=send)
        sender.start()
        try:
            for turn in range(1, 21):
                before = sent
                if whole:
                    host.install(policies[turn % 2])
                else:
                    host.update(tunnels=[at[turn % 2]], tunnels_removed=[at[1 - turn % 2]])
                wait_for(lambda before=before: sent > before, what="more of what is forged")
        finally:
            ended.set()
            sender.join()
        assert not readable(receiver, BLOCKED_AFTER)
        assert sent >= 1000
    assert outer_heard(net, WORLD, protocol, payload, PASSES_WITHIN)


# What is not ours


def test_a_foreign_port_on_our_bridge_reaches_nothing_of_ours(
    host: Host, namespaces: Callable[[], Namespace]
) -> None:
    net, stranger = host.net, namespaces()
    own, mac = "10.1.0.9", "6e:63:0a:01:00:09"
    attach(net, stranger, own, "vnet0", mac)
    checks = (
        (tcp_passes, stranger, net.one, ONE, 80),
        (tcp_passes, net.one, stranger, own, 80),
        (udp_passes, stranger, net.node, GATEWAY, 53),
        (tcp_passes, stranger, net.node, NODE, 80),
    )
    for check, *arguments in checks:
        assert passes(check, *arguments), "the control: it passes without our rules"
    host.install(attrs.evolve(POLICY, pairs=POLICY.pairs | {Pair(ONE, own), Pair(own, FAR)}))
    for check, *arguments in checks:
        assert not check(*arguments)
    assert not udp_passes(stranger, net.far, FAR, 80)
    assert not tcp_passes(stranger, net.world, INTERNET, 80)
    forged = ethernet(BRIDGE_MAC, MACS[ONE], IPV4, marked(ONE, FAR))
    assert not arrives(net.far, "eth0", lambda: send_frames(stranger, "eth0", [forged]), BLOCKED_AFTER)


def test_other_bridges_and_tables_of_the_host_are_left_alone(
    host: Host, namespaces: Callable[[], Namespace]
) -> None:
    net, left, right = host.net, namespaces(), namespaces()
    net.node.ip("link", "add", "docker0", "type", "bridge")
    address(net.node, "docker0", "172.17.0.1/16")
    for namespace, link, own in ((left, "veth1", "172.17.0.2/16"), (right, "veth2", "172.17.0.3/16")):
        veth(net.node, link, namespace, "eth0")
        net.node.ip("link", "set", link, "master", "docker0", "up")
        address(namespace, "eth0", own)
    net.node.nft(
        "table ip theirs { chain c { type filter hook input priority 0; policy accept; counter; }\n}"
    )
    theirs = net.node.run("nft", "-s", "list", "ruleset")
    host.install()
    assert passes(tcp_passes, left, right, "172.17.0.3", 80)
    assert passes(ping_passes, left, "172.17.0.1")
    left_address = (
        left.ip("-6", "-o", "addr", "show", "dev", "eth0", "scope", "link").split()[3].partition("/")[0]
    )
    for namespace in (left, right):
        wait_for(lambda n=namespace: "tentative" not in n.ip("-6", "addr", "show", "dev", "eth0"))
    assert passes(ping6_passes, right, left_address, "eth0")
    assert "netctl" in net.node.run("nft", "list", "tables")
    host.remove()
    assert net.node.run("nft", "-s", "list", "ruleset") == theirs


def test_each_table_alone_stays_closed(host: Host) -> None:
    net = host.net
    host.install(attrs.evolve(POLICY, pairs=frozenset({Pair(ONE, FAR)})))
    assert passes(udp_passes, net.one, net.far, FAR, 80)
    net.node.nft("delete table inet netctl")
    assert not tcp_passes(net.one, net.two, TWO, 80)
    assert not tcp_passes(net.one, net.far, FAR_OTHER, 80)
    assert not ping_passes(net.one, GATEWAY)
    host.install(attrs.evolve(POLICY, pairs=frozenset({Pair(ONE, FAR)})))
    assert passes(udp_passes, net.one, net.far, FAR, 80)
    net.node.nft("delete table bridge netctl")
    assert not tcp_passes(net.one, net.far, FAR_OTHER, 80)
    assert not ping_passes(net.one, NODE)
    assert not tcp_passes(net.far, net.two, TWO, 80)


# What is in force


def test_what_was_installed_and_changed_is_in_force(host: Host) -> None:
    assert host.read() is None
    host.install()
    assert host.read() == POLICY
    assert not host.drifted()
    tunnel = TunnelPolicy("nct0a030000", "10.3.0.0/16", "vxlan", "192.0.2.10", vni=18)
    pair = Pair(TWO, "10.3.0.2", time.time() + 100)
    (binding,) = (one for one in POLICY.bindings if one.address == TWO)
    host.update(pairs=[pair], pairs_removed=[Pair(ONE, TWO)], tunnels=[tunnel], bindings_removed=[binding])
    wanted = attrs.evolve(
        POLICY,
        pairs=frozenset({pair, Pair(ONE, FAR)}),
        tunnels=frozenset({TUNNEL_POLICY, tunnel}),
        bindings=POLICY.bindings - {binding},
    )
    assert host.read() == wanted
    assert not host.drifted()
    net = host.net
    net.node.nft("add table ip someone-elses")
    assert not host.drifted(), "ours are as they were"
    assert host.read() == wanted
    assert not host.drifted()
    net.node.nft(f"delete element bridge netctl bindings {{ {PORTS[ONE]} . {MACS[ONE]} . {ONE} }}")
    assert host.drifted()
    assert host.read() == attrs.evolve(wanted, bindings=frozenset())
    net.node.nft("insert rule inet netctl input accept")
    assert host.drifted()
    assert host.read() is None
    host.install(wanted)
    assert host.read() == wanted
    net.node.nft("delete table bridge netctl")
    assert host.read() is None
    host.remove()
    host.remove()
    assert net.node.run("nft", "list", "tables").split() == ["table", "ip", "someone-elses"]


def test_ways_that_share_elements_are_told_apart(host: Host) -> None:
    net = host.net
    ways = frozenset(
        {
            TUNNEL_POLICY,
            attrs.evolve(VXLAN_POLICY, routed=False),
            attrs.evolve(WIREGUARD, routed=False),
            attrs.evolve(WIREGUARD, device="nctw1", routed=False),
            TunnelPolicy(
                "eth0", "10.2.0.0/16", "direct", WORLD, mac=link_mac(net.world, "eth0"), routed=False
            ),
        }
    )
    wanted = attrs.evolve(WIREGUARD_POLICY, tunnels=ways)
    host.install(wanted)
    net.node.nft("add table ip someone-elses")
    assert host.read() == wanted
    host.update(tunnels_removed=[attrs.evolve(WIREGUARD, device="nctw1")])
    wanted = attrs.evolve(wanted, tunnels=frozenset(one for one in ways if one.device != "nctw1"))
    net.node.nft("add chain ip someone-elses c")
    assert host.read() == wanted
    assert not host.drifted()
    net.node.nft(f"delete element inet netctl wireguard_peers {{ {WORLD} }}")
    assert host.drifted()
    assert host.read() == attrs.evolve(
        wanted, tunnels=frozenset(one for one in wanted.tunnels if one.encapsulation != "wireguard")
    )
    net.node.nft(f"delete element inet netctl gre_peers {{ {WORLD} }}")
    assert host.read() is None, "the rest of it stands, and nothing says so"


def test_a_change_that_is_refused_changes_nothing(host: Host) -> None:
    with pytest.raises(FirewallError):
        host.update(pairs=[Pair(ONE, TWO)])
    host.install()
    with pytest.raises(FirewallError, match="not a valid"):
        host.update(pairs_removed=[Pair(ONE, TWO)], pairs=[Pair(ONE, "10.2.0.0 accept")])
    assert host.read() == POLICY
    assert passes(udp_passes, host.net.one, host.net.two, TWO, 80)
