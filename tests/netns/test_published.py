"""Ports of a node that lead to containers, and containers without the internet, with real packets."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from firewall_rules.backends.nftables import NftablesContainerBackend, NftablesHostBackend
from firewall_rules.policy import (
    ContainerPolicy,
    HostPolicy,
    Opening,
    Pair,
    Publication,
    PublishedPort,
    TunnelPolicy,
)
from tests.support.host_net import (
    FAR,
    GATEWAY,
    INTERNET,
    NODE,
    ONE,
    POLICY,
    TUNNEL_POLICY,
    TWO,
    WORLD,
    HostNet,
    host_net,
)
from tests.support.netns import (
    BLOCKED_AFTER,
    PASSES_WITHIN,
    Namespace,
    address,
    ping_passes,
    readable,
    tcp_passes,
    udp_passes,
    veth,
)

pytestmark = pytest.mark.root

WEB = Publication("tcp", "", 8080, ONE, 80)
DNS = Publication("udp", "", 5353, ONE, 53)
PUBLIC = "203.0.113.7"
"""An address of the node that is no part of the underlay."""
LAN = "10.77.0.9"
"""A client in a network beside the node, whose address lies in the supernet."""


@attrs.frozen
class Node:
    """A node whose container ONE publishes ports; the node's own backend."""

    net: HostNet
    backend: NftablesHostBackend

    def install(self, *publications: Publication, **changes: object) -> None:
        policy = attrs.evolve(POLICY, publications=frozenset(publications), **changes)  # type: ignore[arg-type]
        with self.net.node.entered():
            self.backend.install(policy)

    def update(self, **changes: object) -> None:
        with self.net.node.entered():
            self.backend.update(**changes)  # type: ignore[arg-type]

    def read(self) -> HostPolicy | None:
        with self.net.node.entered():
            return self.backend.read()


def make_node(namespaces: Callable[[], Namespace], *, bridge_calls_ip: bool) -> Node:
    net = host_net(namespaces, bridge_calls_ip=bridge_calls_ip)
    net.node.ip("addr", "add", f"{PUBLIC}/32", "dev", "lo")
    net.world.ip("route", "add", f"{PUBLIC}/32", "via", NODE)
    net.world.ip("addr", "add", f"{LAN}/32", "dev", "lo")
    net.node.ip("route", "add", f"{LAN}/32", "dev", "eth0", "via", WORLD)
    # Strictly checked, as many distributions do.
    for link in ("all", "eth0", "netctl0"):
        net.node.sysctl(f"net/ipv4/conf/{link}/rp_filter", "1")
    return Node(net, NftablesHostBackend())


@pytest.fixture(params=[True, False], ids=["bridge-nf", "no-bridge-nf"])
def both_ways(request: pytest.FixtureRequest, namespaces: Callable[[], Namespace]) -> Node:
    return make_node(namespaces, bridge_calls_ip=request.param)


@pytest.fixture
def node(namespaces: Callable[[], Namespace]) -> Node:
    return make_node(namespaces, bridge_calls_ip=True)


@attrs.frozen
class Client:
    """Who asks: a namespace, and which of its addresses (empty: whichever the kernel takes)."""

    namespace: Namespace
    address: str = ""


Server = tuple[Namespace, int]
"""Who is to answer, at which of its ports."""


def asked(client: Client, server: Server, to: tuple[str, int], seconds: float, size: int = 8) -> str | None:
    """Return whom the server sees when `to` is asked by UDP and the answer comes back; None: it fails."""
    with (
        client.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking,
        server[0].socket(socket.AF_INET, socket.SOCK_DGRAM) as served,
    ):
        served.bind(("", server[1]))
        asking.bind((client.address, 0))
        with contextlib.suppress(OSError):
            asking.connect(to)
            asking.send(bytes(size))
        if not readable(served, seconds):
            return None
        question, sender = served.recvfrom(65536)
        assert len(question) == size
        served.sendto(question, sender)
        return str(sender[0]) if readable(asking, seconds) and len(asking.recv(65536)) == size else None


def opens(client: Client, server: Server, to: tuple[str, int], seconds: float) -> str | None:
    """Return whom the server sees when `to` is connected to by TCP; None: it fails."""
    with (
        client.namespace.socket(socket.AF_INET, socket.SOCK_STREAM) as asking,
        server[0].socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", server[1]))
        listener.listen()
        asking.bind((client.address, 0))
        asking.settimeout(seconds)
        try:
            asking.connect(to)
        except OSError:
            return None
        served, sender = listener.accept()
        served.close()
        return str(sender[0])


@contextlib.contextmanager
def flow(
    source: Namespace, server: Namespace, to: tuple[str, int], at: int
) -> Iterator[Callable[[float], bool]]:
    """Open a TCP flow; yield what tells whether a byte goes there and one comes back."""
    with (
        source.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
        server.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", at))
        listener.listen()
        client.settimeout(PASSES_WITHIN)
        client.connect(to)
        served, _ = listener.accept()
        listener.close()

        def carries(seconds: float) -> bool:
            client.sendall(b"a")
            there = readable(served, seconds) and served.recv(1) == b"a"
            served.sendall(b"b")
            return readable(client, seconds) and client.recv(1) == b"b" and there

        with served:
            yield carries


def test_a_published_port_is_reached_from_outside(both_ways: Node) -> None:
    net = both_ways.net
    both_ways.install(WEB, DNS)
    for own in (WORLD, INTERNET):
        assert opens(Client(net.world, own), (net.one, 80), (NODE, 8080), PASSES_WITHIN) == own
        assert asked(Client(net.world, own), (net.one, 53), (NODE, 5353), PASSES_WITHIN) == own
    assert asked(Client(net.world, WORLD), (net.one, 53), (NODE, 5353), PASSES_WITHIN, size=4000) == WORLD
    assert opens(Client(net.world, INTERNET), (net.one, 80), (PUBLIC, 8080), PASSES_WITHIN) == INTERNET
    # Another port, another protocol, and the container's own address are no way in.
    net.world.ip("route", "add", "10.1.0.0/16", "via", NODE)
    for target in ((NODE, 80), (NODE, 8081), (ONE, 80), (ONE, 8080), (GATEWAY, 8080)):
        assert not opens(Client(net.world, WORLD), (net.one, 80), target, BLOCKED_AFTER)
    assert not asked(Client(net.world, WORLD), (net.one, 80), (NODE, 8080), BLOCKED_AFTER)
    assert not ping_passes(net.world, ONE)


def test_without_publications_nothing_is_reached_and_the_nodes_own_ports_are(node: Node) -> None:
    net = node.net
    node.install()
    assert not opens(Client(net.world, WORLD), (net.one, 80), (NODE, 8080), BLOCKED_AFTER)
    assert passes_tcp(net.world, net.node, NODE, 8080)
    node.install(WEB)
    assert opens(Client(net.world, WORLD), (net.one, 80), (NODE, 8080), PASSES_WITHIN) == WORLD
    assert passes_tcp(net.world, net.node, NODE, 8081), "other ports stay the node's"


def passes_tcp(source: Namespace, target: Namespace, at: str, port: int) -> bool:
    return tcp_passes(source, target, at, port, seconds=PASSES_WITHIN)


def test_a_client_in_the_supernet_comes_by_the_bridges_address(both_ways: Node) -> None:
    net = both_ways.net
    both_ways.install(WEB, DNS)
    assert opens(Client(net.world, LAN), (net.one, 80), (NODE, 8080), PASSES_WITHIN) == GATEWAY
    assert asked(Client(net.world, LAN), (net.one, 53), (NODE, 5353), PASSES_WITHIN) == GATEWAY
    assert asked(Client(net.world, LAN), (net.one, 53), (NODE, 5353), PASSES_WITHIN, size=4000) == GATEWAY


def test_the_node_itself_reaches_it(both_ways: Node) -> None:
    net = both_ways.net
    both_ways.install(WEB, DNS)
    for target in (NODE, PUBLIC):
        assert opens(Client(net.node, target), (net.one, 80), (target, 8080), PASSES_WITHIN) == GATEWAY
    assert asked(Client(net.node, NODE), (net.one, 53), (NODE, 5353), PASSES_WITHIN, size=4000) == GATEWAY
    assert opens(Client(net.node, GATEWAY), (net.one, 80), (GATEWAY, 8080), PASSES_WITHIN) == GATEWAY
    assert not opens(Client(net.node), (net.one, 80), (ONE, 80), BLOCKED_AFTER)
    # By loopback only where the bridge may route it, and then by the bridge's address.
    assert not opens(Client(net.node), (net.one, 80), ("127.0.0.1", 8080), BLOCKED_AFTER)
    net.node.sysctl("net/ipv4/conf/netctl0/route_localnet", "1")
    assert opens(Client(net.node), (net.one, 80), ("127.0.0.1", 8080), PASSES_WITHIN) == GATEWAY
    assert asked(Client(net.node), (net.one, 53), ("127.0.0.1", 5353), PASSES_WITHIN) == GATEWAY


def test_what_is_published_at_one_address_is_at_no_other(node: Node) -> None:
    net = node.net
    local = attrs.evolve(WEB, host_address="127.0.0.1", host_port=8081)
    other = attrs.evolve(WEB, host_address=PUBLIC, address=TWO)
    net.node.sysctl("net/ipv4/conf/netctl0/route_localnet", "1")
    node.install(attrs.evolve(WEB, host_address=NODE), other, local)
    assert opens(Client(net.world, WORLD), (net.one, 80), (NODE, 8080), PASSES_WITHIN) == WORLD
    assert opens(Client(net.world, LAN), (net.two, 80), (PUBLIC, 8080), PASSES_WITHIN) == GATEWAY
    assert opens(Client(net.node), (net.one, 80), ("127.0.0.1", 8081), PASSES_WITHIN) == GATEWAY
    for target in (NODE, PUBLIC):
        assert not opens(Client(net.world, WORLD), (net.one, 80), (target, 8081), BLOCKED_AFTER)
    # A neighbour can send to loopback's addresses, and the translation comes before routing refuses them.
    net.world.ip("route", "add", "127.0.0.1/32", "via", NODE, "table", "9")
    net.world.ip("rule", "add", "pref", "0", "to", "127.0.0.1", "lookup", "9")
    net.world.ip("rule", "del", "pref", "0", "lookup", "local")
    net.world.ip("rule", "add", "pref", "10", "lookup", "local")
    net.world.sysctl("net/ipv4/conf/eth0/route_localnet", "1")
    assert not opens(Client(net.world, WORLD), (net.one, 80), ("127.0.0.1", 8081), BLOCKED_AFTER)


def test_nobody_in_the_overlay_gets_in_by_a_published_port(both_ways: Node) -> None:
    net = both_ways.net
    net.node.sysctl("net/ipv4/conf/netctl0/route_localnet", "1")
    both_ways.install(WEB, DNS, pairs=frozenset())
    assert opens(Client(net.world, WORLD), (net.one, 80), (NODE, 8080), PASSES_WITHIN) == WORLD, "the control"
    for at in (NODE, PUBLIC, GATEWAY):
        assert not opens(Client(net.two, TWO), (net.one, 80), (at, 8080), BLOCKED_AFTER)
        assert not asked(Client(net.two, TWO), (net.one, 53), (at, 5353), BLOCKED_AFTER)
        assert not opens(Client(net.far, FAR), (net.one, 80), (at, 8080), BLOCKED_AFTER)
        assert not opens(Client(net.one, ONE), (net.one, 80), (at, 8080), BLOCKED_AFTER)
    assert not opens(Client(net.two, TWO), (net.one, 80), (ONE, 80), BLOCKED_AFTER)


def test_a_peer_nodes_containers_are_not_taken_for_the_outside(node: Node) -> None:
    net = node.net
    node.install(WEB)
    # By the peer's NAT its containers have its address, and reach what is not closed to them.
    assert not opens(Client(net.world, WORLD), (net.one, 80), (PUBLIC, 8080), BLOCKED_AFTER)
    assert opens(Client(net.world, WORLD), (net.one, 80), (NODE, 8080), PASSES_WITHIN) == WORLD, (
        "the control: the underlay is closed to containers, so this is the peer itself"
    )
    node.update(tunnels_removed=[TUNNEL_POLICY])
    assert opens(Client(net.world, WORLD), (net.one, 80), (PUBLIC, 8080), PASSES_WITHIN) == WORLD


def test_with_direct_a_peers_block_is_the_overlay(node: Node) -> None:
    net = node.net
    mac = net.world.ip("-o", "link", "show", "dev", "eth0").partition("link/ether ")[2].split()[0]
    net.world.ip("addr", "add", "10.4.0.2/32", "dev", "lo")
    net.node.ip("route", "add", "10.4.0.0/16", "via", WORLD, "src", GATEWAY)
    direct = TunnelPolicy("eth0", "10.4.0.0/16", "direct", "192.0.2.10", mac=mac)
    node.install(WEB)
    assert opens(Client(net.world, "10.4.0.2"), (net.one, 80), (NODE, 8080), PASSES_WITHIN) == GATEWAY, (
        "the control"
    )
    node.update(tunnels=[direct])
    assert not opens(Client(net.world, "10.4.0.2"), (net.one, 80), (NODE, 8080), BLOCKED_AFTER)
    assert opens(Client(net.world, LAN), (net.one, 80), (NODE, 8080), PASSES_WITHIN) == GATEWAY


@pytest.mark.parametrize("by", ["lan", "node"])
def test_a_live_flow_is_cut_with_its_publication_and_resumes_with_it(node: Node, by: str) -> None:
    net = node.net
    node.install(WEB, attrs.evolve(WEB, address=TWO, host_port=8082))
    source = net.world if by == "lan" else net.node
    with flow(source, net.one, (NODE, 8080), 80) as cut, flow(source, net.two, (NODE, 8082), 80) as kept:
        assert cut(PASSES_WITHIN)
        assert kept(PASSES_WITHIN)
        node.update(publications_removed=[WEB])
        assert not cut(BLOCKED_AFTER)
        assert kept(PASSES_WITHIN)
        assert not opens(Client(source), (net.one, 80), (NODE, 8080), BLOCKED_AFTER)
        node.update(publications=[WEB])
        assert cut(PASSES_WITHIN)


def test_a_flow_from_the_internet_is_cut_both_ways(node: Node) -> None:
    net = node.net
    node.install(DNS)
    with (
        net.world.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        net.one.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
    ):
        server.bind((ONE, 53))
        client.bind((INTERNET, 0))
        client.connect((NODE, 5353))
        client.send(b"before")
        assert readable(server, PASSES_WITHIN)
        _, sender = server.recvfrom(64)
        server.sendto(b"before", sender)
        assert readable(client, PASSES_WITHIN)
        assert client.recv(64) == b"before"
        node.update(publications_removed=[DNS])
        server.sendto(b"after", sender)
        assert not readable(client, BLOCKED_AFTER)


def test_a_port_that_moves_leads_new_clients_to_the_other_container(node: Node) -> None:
    net = node.net
    node.install(WEB)
    assert opens(Client(net.world, WORLD), (net.one, 80), (NODE, 8080), PASSES_WITHIN)
    moved = attrs.evolve(WEB, address=TWO)
    node.update(publications=[moved], publications_removed=[WEB])
    assert opens(Client(net.world, WORLD), (net.two, 80), (NODE, 8080), PASSES_WITHIN)
    assert node.read() == attrs.evolve(POLICY, publications=frozenset({moved}))


@pytest.mark.parametrize("later", ["update", "install"])
def test_a_client_that_goes_on_sending_comes_to_whoever_has_the_port_now(node: Node, later: str) -> None:
    net = node.net
    elsewhere = attrs.evolve(DNS, address=TWO)

    def publish(before: list[Publication], after: list[Publication]) -> None:
        if later == "install":
            node.install(*after)
        else:
            node.update(publications=after, publications_removed=before)

    def sent_to() -> list[str]:
        client.send(b"x")
        return [
            name for name, server in servers.items() if readable(server, BLOCKED_AFTER) and server.recv(64)
        ]

    with (
        net.world.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        net.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as own,
        net.one.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        net.two.socket(socket.AF_INET, socket.SOCK_DGRAM) as two,
    ):
        servers = {"the node": own, "one": one, "two": two}
        own.bind((NODE, 5353))
        one.bind(("", 53))
        two.bind(("", 53))
        client.connect((NODE, 5353))
        node.install()
        assert sent_to() == ["the node"]
        publish([], [DNS])
        assert sent_to() == ["one"]
        publish([DNS], [elsewhere])
        assert sent_to() == ["two"]
        publish([elsewhere], [])
        assert sent_to() == ["the node"]


def test_the_answers_to_a_published_port_are_no_way_out(node: Node) -> None:
    net = node.net
    node.install(WEB, DNS)
    assert asked(Client(net.world, WORLD), (net.one, 53), (NODE, 5353), PASSES_WITHIN) == WORLD
    # From the published ports themselves nothing new can be begun: not to the node, and not to its LAN.
    for target, to in ((net.world, WORLD), (net.node, NODE)):
        assert not udp_passes(net.one, target, to, 7777, source_port=53)
        assert not tcp_passes(net.one, target, to, 7777)


def test_layer_one_lets_the_outside_in_and_a_connected_peer_no_further(node: Node) -> None:
    net = node.net
    node.install(WEB, DNS, pairs=frozenset({Pair(ONE, TWO)}))
    backend = NftablesContainerBackend()
    policy = ContainerPolicy(
        ONE,
        GATEWAY,
        closed=frozenset({"10.0.0.0/8", "192.0.2.0/24"}),
        inbound=frozenset({Opening(TWO, "tcp", 81)}),
    )
    backend.install("one", net.one.fd, policy)
    assert passes_tcp(net.two, net.one, ONE, 81)
    assert not opens(Client(net.world, WORLD), (net.one, 80), (NODE, 8080), BLOCKED_AFTER)
    published = frozenset({PublishedPort("tcp", 80), PublishedPort("udp", 53)})
    policy = attrs.evolve(policy, published=published, internet=False)
    backend.install("one", net.one.fd, policy)
    assert backend.read("one", net.one.fd) == policy
    for own, seen in ((WORLD, WORLD), (INTERNET, INTERNET), (LAN, GATEWAY)):
        assert opens(Client(net.world, own), (net.one, 80), (NODE, 8080), PASSES_WITHIN) == seen
        assert asked(Client(net.world, own), (net.one, 53), (NODE, 5353), PASSES_WITHIN, size=4000) == seen
    assert opens(Client(net.node), (net.one, 80), (NODE, 8080), PASSES_WITHIN) == GATEWAY
    assert not tcp_passes(net.two, net.one, ONE, 80)
    assert not udp_passes(net.two, net.one, ONE, 53)
    assert refused(net.world, NODE, 5353, PASSES_WITHIN), "an error about a published port finds its client"
    assert not tcp_passes(net.one, net.world, INTERNET, 443)


def refused(source: Namespace, target: str, port: int, seconds: float) -> bool:
    with source.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((target, port))
        sock.send(b"anyone?")
        if not readable(sock, seconds):
            return False
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)
        return True


def test_an_internal_container_has_its_peers_and_nothing_else(both_ways: Node) -> None:
    net = both_ways.net
    both_ways.install(WEB)
    assert passes_tcp(net.one, net.world, INTERNET, 443)
    both_ways.update(internal=[ONE])
    assert not tcp_passes(net.one, net.world, INTERNET, 443)
    assert not udp_passes(net.one, net.world, INTERNET, 53)
    assert not ping_passes(net.one, INTERNET)
    assert not opens(Client(net.world, WORLD), (net.one, 80), (NODE, 8080), BLOCKED_AFTER)
    assert not opens(Client(net.node), (net.one, 80), (NODE, 8080), BLOCKED_AFTER)
    assert passes_tcp(net.one, net.two, TWO, 80)
    assert passes_tcp(net.one, net.far, FAR, 80)
    assert udp_passes(net.one, net.node, GATEWAY, 53, seconds=PASSES_WITHIN), "the resolver is no internet"
    assert passes_tcp(net.two, net.world, INTERNET, 443)
    both_ways.update(internal_removed=[ONE])
    assert passes_tcp(net.one, net.world, INTERNET, 443)


def test_a_flow_to_the_internet_is_cut_where_it_is_closed(node: Node) -> None:
    net = node.net
    node.install()
    with flow(net.one, net.world, (INTERNET, 443), 443) as carries:
        assert carries(PASSES_WITHIN)
        node.update(internal=[ONE])
        assert not carries(BLOCKED_AFTER)
        node.update(internal_removed=[ONE])
        assert carries(PASSES_WITHIN)


@pytest.mark.parametrize("family", ["bridge", "inet"])
def test_each_table_alone_keeps_an_internal_container_in(node: Node, family: str) -> None:
    net = node.net
    # With a way back, so that the missing NAT is not what stops it.
    net.world.ip("route", "add", "10.1.0.0/16", "via", NODE, "src", INTERNET)
    node.install(internal=frozenset({ONE}))
    net.node.nft(f"flush set {'inet' if family == 'bridge' else 'bridge'} netctl internal")
    assert not udp_passes(net.one, net.world, INTERNET, 53)
    assert not tcp_passes(net.one, net.world, INTERNET, 443)
    net.node.nft(f"flush set {family} netctl internal")
    assert passes_tcp(net.one, net.world, INTERNET, 443), "the control"


def test_what_is_published_and_internal_is_read_back(node: Node) -> None:
    node.install(WEB)
    assert node.read() == attrs.evolve(POLICY, publications=frozenset({WEB}))
    at = attrs.evolve(DNS, host_address=NODE)
    node.update(publications=[at], internal=[TWO])
    wanted = attrs.evolve(POLICY, publications=frozenset({WEB, at}), internal=frozenset({TWO}))
    assert node.read() == wanted
    node.net.node.nft("add table ip someone-elses")
    assert node.read() == wanted
    # A map that someone made to lead elsewhere is not as we made it.
    node.net.node.nft(
        "delete element inet netctl publications { 6 . 8080 }\n"
        f"add element inet netctl publications {{ 6 . 8080 : {TWO} . 80 }}"
    )
    assert node.read() is None
    node.install(WEB)
    assert node.read() == attrs.evolve(POLICY, publications=frozenset({WEB}))


def test_a_process_started_again_finds_what_is_published(node: Node, tmp_path: Path) -> None:
    with node.net.node.entered():
        first = NftablesHostBackend(tmp_path)
        first.install(attrs.evolve(POLICY, publications=frozenset({WEB})))
        first.update(publications=[DNS], internal=[TWO])
        later = NftablesHostBackend(tmp_path)
        assert not later.drifted()
        wanted = attrs.evolve(POLICY, publications=frozenset({WEB, DNS}), internal=frozenset({TWO}))
        assert later.read() == wanted
        later.update(publications_removed=[WEB], internal_removed=[TWO])
        assert later.read() == attrs.evolve(POLICY, publications=frozenset({DNS}))


def test_docker_networks_reach_it_only_where_dockers_own_firewall_lets_them(
    node: Node, namespaces: Callable[[], Namespace]
) -> None:
    net, theirs = node.net, namespaces()
    net.node.ip("link", "add", "br-0123456789ab", "type", "bridge")
    address(net.node, "br-0123456789ab", "172.18.0.1/16")
    veth(net.node, "veththeirs", theirs, "eth0")
    net.node.ip("link", "set", "veththeirs", "master", "br-0123456789ab", "up")
    address(theirs, "eth0", "172.18.0.2/16")
    theirs.ip("route", "add", "default", "via", "172.18.0.1")
    net.node.run("iptables-nft", "-N", "DOCKER-USER")
    net.node.run("iptables-nft", "-A", "FORWARD", "-j", "DOCKER-USER")
    net.node.run("iptables-nft", "-A", "DOCKER-USER", "-m", "mark", "--mark", "0x6e637402", "-j", "ACCEPT")
    node.install(WEB)
    assert opens(Client(theirs, "172.18.0.2"), (net.one, 80), (NODE, 8080), PASSES_WITHIN) == "172.18.0.2"
    # As Docker keeps a network in that was made with --internal.
    net.node.run(
        "iptables-nft", "-A", "FORWARD", "-i", "br-0123456789ab", "!", "-d", "172.18.0.0/16", "-j", "DROP"
    )
    assert not opens(Client(theirs, "172.18.0.2"), (net.one, 80), (NODE, 8080), BLOCKED_AFTER)
    assert opens(Client(net.world, WORLD), (net.one, 80), (NODE, 8080), PASSES_WITHIN) == WORLD
