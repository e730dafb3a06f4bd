"""What layer 1 lets pass and what not, shown by packets: the same for nftables and iptables."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator

import attrs
import pytest

from firewall_rules.backends.base import ContainerBackend
from firewall_rules.backends.iptables_client import IptablesContainerBackend
from firewall_rules.backends.nftables import NftablesContainerBackend
from firewall_rules.policy import ContainerPolicy, Opening
from tests.support.firewall_net import CONTAINER, GATEWAY, INTERNET, OTHER, PEER, ContainerNet, container_net
from tests.support.netns import (
    BLOCKED_AFTER,
    PASSES_WITHIN,
    Namespace,
    checksum,
    ipv4,
    ping6_passes,
    ping_passes,
    readable,
    tcp_passes,
    udp,
    udp_passes,
    wait_for,
)

pytestmark = pytest.mark.root

KEY = "0123456789abcdef0123456789abcdef"
TCP = Opening(PEER, "tcp", 5432)
UDP = Opening(PEER, "udp", 7777)
ANY = Opening(PEER, "any")
PING = Opening(PEER, "icmp")
CLOSED_POLICY = ContainerPolicy(address=CONTAINER, gateway=GATEWAY, resolver=GATEWAY)


@attrs.frozen
class Rig:
    """A container behind the firewall under test."""

    backend: ContainerBackend
    net: ContainerNet

    def install(self, **changes: object) -> None:
        policy = attrs.evolve(CLOSED_POLICY, **changes)  # type: ignore[arg-type]
        self.backend.install(KEY, self.net.container.fd, policy)

    def update(self, **changes: list[Opening]) -> None:
        self.backend.update(KEY, self.net.container.fd, **changes)


@pytest.fixture(params=["nftables", "iptables"])
def rig(request: pytest.FixtureRequest, namespaces: Callable[[], Namespace]) -> Iterator[Rig]:
    net = container_net(namespaces)
    if request.param == "nftables":
        yield Rig(NftablesContainerBackend(), net)
        return
    backend = IptablesContainerBackend()
    yield Rig(backend, net)
    backend.close()


def passes(check: Callable[..., bool], *arguments: object, **options: object) -> bool:
    """Give what should pass the time a busy machine may need."""
    return check(*arguments, seconds=PASSES_WITHIN, **options)


class Stream:
    """One TCP connection that stays open, seen from both ends."""

    def __init__(self, source: Namespace, target: Namespace, target_address: str, port: int) -> None:
        with target.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", port))
            listener.listen()
            self.client = source.socket(socket.AF_INET, socket.SOCK_STREAM)
            self.client.settimeout(PASSES_WITHIN)
            self.client.connect((target_address, port))
            self.server, _ = listener.accept()

    def carries(self, data: bytes, seconds: float) -> bool:
        """Send from the client; tell whether exactly that arrives."""
        self.client.sendall(data)
        return self.arrives(data, seconds)

    def arrives(self, data: bytes, seconds: float) -> bool:
        got = b""
        while len(got) < len(data) and readable(self.server, seconds):
            got += self.server.recv(len(data) - len(got))
        return got == data

    def close(self) -> None:
        self.client.close()
        self.server.close()


@contextlib.contextmanager
def stream(source: Namespace, target: Namespace, target_address: str, port: int) -> Iterator[Stream]:
    opened = Stream(source, target, target_address, port)
    try:
        yield opened
    finally:
        opened.close()


def test_nothing_passes_by_default_and_everything_did_before(rig: Rig) -> None:
    net = rig.net
    assert passes(tcp_passes, net.peer, net.container, CONTAINER, 5432)
    assert passes(udp_passes, net.container, net.peer, PEER, 7777)
    assert passes(ping_passes, net.peer, CONTAINER)
    rig.install()
    assert not tcp_passes(net.peer, net.container, CONTAINER, 5432)
    assert not tcp_passes(net.container, net.peer, PEER, 5432)
    assert not udp_passes(net.peer, net.container, CONTAINER, 7777)
    assert not udp_passes(net.container, net.peer, PEER, 7777)
    assert not ping_passes(net.peer, CONTAINER)
    assert not ping_passes(net.container, PEER)
    assert not ping_passes(net.container, GATEWAY)


def test_an_inbound_port_opens_that_port_that_way_from_that_peer(rig: Rig) -> None:
    net = rig.net
    rig.install(inbound=frozenset({TCP, UDP}))
    assert passes(tcp_passes, net.peer, net.container, CONTAINER, 5432)
    assert passes(udp_passes, net.peer, net.container, CONTAINER, 7777)
    assert not tcp_passes(net.peer, net.container, CONTAINER, 5433)
    assert not udp_passes(net.peer, net.container, CONTAINER, 5432)
    assert not tcp_passes(net.other, net.container, CONTAINER, 5432)
    assert not tcp_passes(net.container, net.peer, PEER, 5432)
    assert not ping_passes(net.peer, CONTAINER)


def test_an_outbound_port_opens_that_port_that_way_to_that_peer(rig: Rig) -> None:
    net = rig.net
    rig.install(outbound=frozenset({TCP, UDP}))
    assert passes(tcp_passes, net.container, net.peer, PEER, 5432)
    assert passes(udp_passes, net.container, net.peer, PEER, 7777)
    assert not tcp_passes(net.container, net.peer, PEER, 5433)
    assert not tcp_passes(net.container, net.other, OTHER, 5432)
    assert not tcp_passes(net.peer, net.container, CONTAINER, 5432)


def test_from_the_open_port_itself_nothing_new_can_be_started(rig: Rig) -> None:
    net = rig.net
    rig.install(inbound=frozenset({UDP}))
    assert passes(udp_passes, net.peer, net.container, CONTAINER, 7777, source_port=9000)
    # The same ports the other way round: a reply by its looks, but nobody asked.
    assert not udp_passes(net.container, net.peer, PEER, 9001, source_port=7777)


def test_ping_opens_one_way(rig: Rig) -> None:
    net = rig.net
    rig.install(inbound=frozenset({PING}))
    assert passes(ping_passes, net.peer, CONTAINER)
    assert not ping_passes(net.container, PEER)
    rig.install(outbound=frozenset({PING}))
    assert passes(ping_passes, net.container, PEER)
    assert not ping_passes(net.peer, CONTAINER)
    assert not tcp_passes(net.container, net.peer, PEER, 5432)


def test_any_opens_everything_both_ways_to_that_peer(rig: Rig) -> None:
    net = rig.net
    rig.install(inbound=frozenset({ANY}), outbound=frozenset({ANY}))
    assert passes(tcp_passes, net.peer, net.container, CONTAINER, 1)
    assert passes(tcp_passes, net.container, net.peer, PEER, 2)
    assert passes(udp_passes, net.container, net.peer, PEER, 3)
    assert passes(ping_passes, net.peer, CONTAINER)
    assert protocol_passes(net.container, net.peer, PEER, 253, PASSES_WITHIN)
    assert protocol_passes(net.peer, net.container, CONTAINER, 253, PASSES_WITHIN)
    assert not protocol_passes(net.other, net.container, CONTAINER, 253, BLOCKED_AFTER)
    assert not tcp_passes(net.other, net.container, CONTAINER, 1)


def protocol_passes(source: Namespace, target: Namespace, to: str, protocol: int, seconds: float) -> bool:
    """Whether a packet of an IP protocol without ports (253: RFC 3692) arrives."""
    with (
        source.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as sender,
        target.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as receiver,
    ):
        with contextlib.suppress(PermissionError):
            sender.sendto(b"netctl", (to, 0))
        return readable(receiver, seconds)


@pytest.mark.parametrize("outward", [True, False], ids=["outbound", "inbound"])
def test_a_removed_element_cuts_a_live_flow_and_adding_it_resumes_it(rig: Rig, *, outward: bool) -> None:
    net = rig.net
    other_port, elsewhere = Opening(PEER, "tcp", 5433), Opening(OTHER, "tcp", 5432)
    part = "outbound" if outward else "inbound"
    rig.install(**{part: frozenset({TCP, other_port, elsewhere})})

    def ends(one: Namespace, its_address: str) -> tuple[Namespace, Namespace, str]:
        return (net.container, one, its_address) if outward else (one, net.container, CONTAINER)

    with (
        stream(*ends(net.peer, PEER), 5432) as cut,
        stream(*ends(net.peer, PEER), 5433) as same_peer,
        stream(*ends(net.other, OTHER), 5432) as same_port,
    ):
        for flow in (cut, same_peer, same_port):
            assert flow.carries(b"before", PASSES_WITHIN)
        rig.update(**{f"{part}_removed": [TCP]})
        assert not cut.carries(b"after", BLOCKED_AFTER)
        assert same_peer.carries(b"untouched", PASSES_WITHIN)
        assert same_port.carries(b"untouched", PASSES_WITHIN)
        rig.update(**{part: [TCP]})
        assert cut.arrives(b"after", PASSES_WITHIN)


def test_a_disconnected_server_cannot_go_on_sending_either(rig: Rig) -> None:
    net = rig.net
    rig.install(inbound=frozenset({TCP}))
    with stream(net.peer, net.container, CONTAINER, 5432) as flow:
        flow.server.sendall(b"before")
        assert readable(flow.client, PASSES_WITHIN)
        assert flow.client.recv(6) == b"before"
        rig.update(inbound_removed=[TCP])
        flow.server.sendall(b"after")
        assert not readable(flow.client, BLOCKED_AFTER)


def test_other_flows_lose_nothing_while_openings_come_and_go(rig: Rig) -> None:
    net = rig.net
    rig.install(outbound=frozenset({UDP}))
    changing = [Opening(PEER, "udp", port) for port in (1, 2, 3)]
    with (
        net.peer.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        net.container.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind(("", 7777))
        for number in range(30):
            rig.update(**{("outbound", "outbound_removed")[number % 2]: changing})
            client.sendto(struct.pack("!I", number), (PEER, 7777))
            assert readable(server, PASSES_WITHIN), f"datagram {number} was lost"
            assert server.recv(4) == struct.pack("!I", number)


def test_an_opening_ends_by_itself(rig: Rig) -> None:
    net = rig.net
    ending = attrs.evolve(TCP, expires_at=time.time() + 3.5)
    rig.install(inbound=frozenset({UDP}))
    rig.update(inbound=[ending])
    with stream(net.peer, net.container, CONTAINER, 5432) as flow:
        assert flow.carries(b"before", PASSES_WITHIN)
        wait_for(lambda: not flow.carries(b"x", 0.1), what="the end of the opening")
        assert time.time() <= attrs.astuple(ending)[3] + 1
        assert not flow.carries(b"after", BLOCKED_AFTER)
    assert not tcp_passes(net.peer, net.container, CONTAINER, 5432)
    assert passes(udp_passes, net.peer, net.container, CONTAINER, 7777)


def test_fragments_pass_where_their_port_is_open(rig: Rig) -> None:
    net = rig.net
    rig.install(inbound=frozenset({UDP}), outbound=frozenset({UDP}))
    assert passes(udp_passes, net.peer, net.container, CONTAINER, 7777, size=4000)
    assert passes(udp_passes, net.container, net.peer, PEER, 7777, size=4000)
    assert not udp_passes(net.peer, net.container, CONTAINER, 7778, size=4000)
    assert not udp_passes(net.container, net.peer, PEER, 7778, size=4000)


def refused(source: Namespace, target_address: str, port: int, seconds: float) -> bool:
    """Whether an ICMP error (port unreachable) comes back for a datagram."""
    with source.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((target_address, port))
        with contextlib.suppress(PermissionError):
            sock.send(b"anyone?")
        if not readable(sock, seconds):
            return False
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)
        return True


def test_errors_about_an_open_flow_come_through_both_ways(rig: Rig) -> None:
    net = rig.net
    rig.install(outbound=frozenset({UDP}), inbound=frozenset({UDP}))
    assert refused(net.container, PEER, 7777, PASSES_WITHIN)
    assert refused(net.peer, CONTAINER, 7777, PASSES_WITHIN)
    assert not refused(net.peer, CONTAINER, 7778, BLOCKED_AFTER)


def error_arrives(net: ContainerNet, about: bytes, seconds: float) -> bool:
    """Whether the router's fragmentation needed (RFC 1191) about a packet gets past the firewall."""
    head = struct.pack("!BBHHH", 3, 4, 0, 0, 1400)
    message = head[:2] + struct.pack("!H", checksum(head + about)) + head[4:] + about
    with (
        net.router.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sender,
        net.container.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as receiver,
    ):
        sender.sendto(message, (CONTAINER, 0))
        while readable(receiver, seconds):
            packet = receiver.recv(2048)
            if packet[(packet[0] & 15) * 4] == 3:
                return True
        return False


def test_a_routers_error_is_heard_while_its_pair_is_connected(rig: Rig) -> None:
    net = rig.net
    rig.install(outbound=frozenset({UDP, TCP}))
    assert passes(udp_passes, net.container, net.peer, PEER, 7777, source_port=9000)
    about = ipv4(CONTAINER, PEER, socket.IPPROTO_UDP, udp(9000, 7777, b"netctl"))
    never_sent = ipv4(CONTAINER, PEER, socket.IPPROTO_UDP, udp(9001, 7777, b"netctl"))
    assert error_arrives(net, about, PASSES_WITHIN)
    assert not error_arrives(net, never_sent, BLOCKED_AFTER)
    rig.update(outbound_removed=[UDP])
    assert error_arrives(net, about, PASSES_WITHIN), "the pair still has a connection"
    rig.update(outbound_removed=[TCP])
    assert not error_arrives(net, about, BLOCKED_AFTER)


def link_local(namespace: Namespace, link: str) -> str:
    output = namespace.ip("-6", "-o", "addr", "show", "dev", link, "scope", "link")
    return output.split()[3].partition("/")[0]


def test_ipv6_is_closed(rig: Rig) -> None:
    net = rig.net
    for namespace, link in ((net.container, "eth0"), (net.router, "c")):
        wait_for(lambda n=namespace, k=link: "tentative" not in n.ip("-6", "addr", "show", "dev", k))
    inner, outer = link_local(net.container, "eth0"), link_local(net.router, "c")
    assert passes(ping6_passes, net.router, inner, "c"), "the control: it passes without a firewall"
    assert passes(ping6_passes, net.container, outer, "eth0")
    rig.install(inbound=frozenset({ANY}), outbound=frozenset({ANY}))
    assert not ping6_passes(net.router, inner, "c")
    assert not ping6_passes(net.container, outer, "eth0")


def from_source(namespace: Namespace, source: str, target: Namespace, seconds: float) -> bool:
    with (
        namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        target.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("", 7777))
        sender.bind((source, 0))
        with contextlib.suppress(PermissionError):
            sender.sendto(b"netctl", (PEER, 7777))
        return readable(receiver, seconds)


def test_another_source_address_does_not_leave(rig: Rig) -> None:
    net = rig.net
    net.container.ip("addr", "add", "10.1.0.99/16", "dev", "eth0")
    assert from_source(net.container, "10.1.0.99", net.peer, PASSES_WITHIN), "the control: the sender works"
    rig.install(outbound=frozenset({ANY}), inbound=frozenset({ANY}))
    assert from_source(net.container, CONTAINER, net.peer, PASSES_WITHIN)
    assert not from_source(net.container, "10.1.0.99", net.peer, BLOCKED_AFTER)
    assert not tcp_passes(net.peer, net.container, "10.1.0.99", 5432)


def test_loopback_is_open_whatever_it_is_called(rig: Rig) -> None:
    container = rig.net.container
    rig.install()
    for own in ("127.0.0.1", CONTAINER):
        assert passes(tcp_passes, container, container, own, 8080)
        assert passes(ping_passes, container, own)
    assert passes(ping6_passes, container, "::1", "lo")


def test_a_link_that_is_called_lo_is_no_loopback(rig: Rig) -> None:
    net = rig.net
    container = net.container
    for arguments in (
        ("set", "lo", "down"), ("set", "lo", "name", "real"), ("set", "real", "up"),
        ("set", "eth0", "down"), ("set", "eth0", "name", "lo"), ("set", "lo", "up"),
    ):  # fmt: skip
        container.ip("link", *arguments)
    container.ip("route", "add", "default", "via", GATEWAY)
    assert passes(tcp_passes, net.peer, container, CONTAINER, 5433), (
        "the control: it passes without a firewall"
    )
    rig.install(inbound=frozenset({TCP}))
    assert passes(tcp_passes, net.peer, container, CONTAINER, 5432)
    assert not tcp_passes(net.peer, container, CONTAINER, 5433)
    assert not tcp_passes(container, net.peer, PEER, 5432)
    assert passes(tcp_passes, container, container, "127.0.0.1", 8080)


def test_the_internet_can_be_asked_and_cannot_ask(rig: Rig) -> None:
    net = rig.net
    rig.install()
    assert passes(tcp_passes, net.container, net.internet, INTERNET, 443)
    assert passes(udp_passes, net.container, net.internet, INTERNET, 123, size=4000)
    assert passes(ping_passes, net.container, INTERNET)
    assert refused(net.container, INTERNET, 124, PASSES_WITHIN)
    assert not tcp_passes(net.internet, net.container, CONTAINER, 443)
    assert not udp_passes(net.internet, net.container, CONTAINER, 443)
    assert not ping_passes(net.internet, CONTAINER)


def test_what_the_policy_closes_is_no_internet(rig: Rig) -> None:
    net = rig.net
    rig.install(closed=frozenset({"198.51.100.0/25"}))
    assert not tcp_passes(net.container, net.internet, INTERNET, 443)
    assert not ping_passes(net.container, INTERNET)
    net.internet.ip("addr", "add", "198.51.100.130/32", "dev", "lo")
    assert passes(tcp_passes, net.container, net.internet, "198.51.100.130", 443)


@pytest.mark.parametrize(
    "metadata", ["169.254.169.254", "192.168.3.4", "172.16.5.6", "100.64.1.1"], ids=lambda value: value
)
def test_private_ranges_and_the_metadata_service_are_closed_always(rig: Rig, metadata: str) -> None:
    net = rig.net
    net.internet.ip("addr", "add", f"{metadata}/32", "dev", "lo")
    net.router.ip("route", "add", f"{metadata}/32", "via", INTERNET)
    assert passes(tcp_passes, net.container, net.internet, metadata, 80), "the control: it is reachable"
    rig.install()
    assert not tcp_passes(net.container, net.internet, metadata, 80)


def test_the_resolver_answers_on_its_port_alone(rig: Rig) -> None:
    net = rig.net
    rig.install()
    assert passes(udp_passes, net.container, net.router, GATEWAY, 53)
    assert passes(tcp_passes, net.container, net.router, GATEWAY, 53)
    assert not tcp_passes(net.container, net.router, GATEWAY, 54)
    assert not udp_passes(net.router, net.container, CONTAINER, 53)
    rig.install(resolver=None)
    assert not udp_passes(net.container, net.router, GATEWAY, 53)


def test_nothing_is_forwarded_through_the_container(rig: Rig) -> None:
    net = rig.net
    net.container.sysctl("net/ipv4/ip_forward", "1")
    net.container.ip("route", "add", "198.18.0.0/24", "via", GATEWAY)
    net.internet.ip("addr", "add", "198.18.0.1/32", "dev", "lo")
    net.router.ip("route", "add", "198.18.0.0/24", "via", CONTAINER, "dev", "c")
    net.router.ip("route", "add", "198.18.0.0/24", "via", INTERNET, "dev", "i", "table", "7")
    net.router.ip("rule", "add", "iif", "c", "lookup", "7")
    assert passes(udp_passes, net.peer, net.internet, "198.18.0.1", 99), "the control: it is a router"
    rig.install(inbound=frozenset({ANY}), outbound=frozenset({ANY}))
    assert not udp_passes(net.peer, net.internet, "198.18.0.1", 99)
