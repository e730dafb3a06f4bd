"""A container that has Docker's networks beside ours: only what is on our link is held to the policy."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import attrs
import pytest

from firewall_rules.backends.base import ContainerBackend
from firewall_rules.backends.iptables_client import IptablesContainerBackend
from firewall_rules.backends.nftables import NftablesContainerBackend
from firewall_rules.names import OVERLAY_GROUP
from firewall_rules.policy import ContainerPolicy, Opening, PublishedPort
from tests.support.firewall_net import CONTAINER, GATEWAY, INTERNET, PEER, ContainerNet, container_net
from tests.support.netns import (
    BLOCKED_AFTER,
    PASSES_WITHIN,
    Namespace,
    address,
    ping6_passes,
    ping_passes,
    readable,
    tcp_passes,
    udp_passes,
    veth,
    wait_for,
)

pytestmark = pytest.mark.root

KEY = "0123456789abcdef0123456789abcdef"
OWN, NEIGHBOUR, OTHER_OWN, OTHER_NEIGHBOUR = "172.18.0.2", "172.18.0.3", "172.19.0.2", "172.19.0.3"
POLICY = ContainerPolicy(
    CONTAINER, GATEWAY, resolver=GATEWAY, closed=frozenset({"10.0.0.0/8"}), overlay_only=True
)
TCP = Opening(PEER, "tcp", 5432)


@attrs.frozen
class Rig:
    """A container with its link on the overlay and two of Docker's networks, one neighbour in each."""

    backend: ContainerBackend
    net: ContainerNet
    neighbour: Namespace
    other: Namespace

    def install(self, **changes: object) -> None:
        policy = attrs.evolve(POLICY, **changes)  # type: ignore[arg-type]
        self.backend.install(KEY, self.net.container.fd, policy)
        assert self.backend.read(KEY, self.net.container.fd) == policy


@pytest.fixture(params=["nftables", "iptables"])
def rig(request: pytest.FixtureRequest, namespaces: Callable[[], Namespace]) -> Iterator[Rig]:
    net, neighbour, other = container_net(namespaces), namespaces(), namespaces()
    container = net.container
    # The overlay's link is made and put in its group elsewhere, as for a namespace that is not there yet.
    net.router.ip("link", "del", "c")
    net.router.ip("link", "add", "c", "type", "veth", "peer", "name", "nce0", "group", str(OVERLAY_GROUP))
    net.router.ip("link", "set", "nce0", "netns", container.path)
    container.ip("link", "set", "nce0", "name", "eth7")
    address(net.router, "c", f"{GATEWAY}/16")
    address(container, "eth7", f"{CONTAINER}/16")
    container.ip("route", "add", "10.0.0.0/8", "via", GATEWAY)
    for link, there, own, its in (
        ("eth0", neighbour, OWN, NEIGHBOUR),
        ("eth1", other, OTHER_OWN, OTHER_NEIGHBOUR),
    ):
        veth(container, link, there, "eth0")
        address(container, link, f"{own}/16")
        address(there, "eth0", f"{its}/16")
        there.ip("route", "add", "default", "via", own)
    container.sysctl("net/ipv4/conf/all/rp_filter", "0")
    container.sysctl("net/ipv4/ip_forward", "1")
    backend = NftablesContainerBackend() if request.param == "nftables" else IptablesContainerBackend()
    yield Rig(backend, net, neighbour, other)
    if isinstance(backend, IptablesContainerBackend):
        backend.close()


def passes(check: Callable[..., bool], *arguments: object, **options: object) -> bool:
    return check(*arguments, seconds=PASSES_WITHIN, **options)


def test_the_overlay_is_closed_and_dockers_networks_are_dockers(rig: Rig) -> None:
    net, container = rig.net, rig.net.container
    rig.install(internet=False)
    assert not tcp_passes(net.peer, container, CONTAINER, 5432)
    assert not tcp_passes(container, net.peer, PEER, 5432)
    assert not ping_passes(net.peer, CONTAINER)
    for there, own, its in ((rig.neighbour, OWN, NEIGHBOUR), (rig.other, OTHER_OWN, OTHER_NEIGHBOUR)):
        assert passes(tcp_passes, there, container, own, 80)
        assert passes(udp_passes, container, there, its, 53, size=4000)
        assert passes(ping_passes, container, its)
    rig.install(inbound=frozenset({TCP}))
    assert passes(tcp_passes, net.peer, container, CONTAINER, 5432)
    assert not tcp_passes(net.peer, container, CONTAINER, 5433)


def test_without_other_links_they_are_closed_too(rig: Rig) -> None:
    rig.install(overlay_only=False)
    assert not tcp_passes(rig.neighbour, rig.net.container, OWN, 80)
    assert not udp_passes(rig.net.container, rig.neighbour, NEIGHBOUR, 53)


def test_the_internet_goes_by_whichever_link_the_routes_say(rig: Rig) -> None:
    net, container = rig.net, rig.net.container
    rig.neighbour.ip("addr", "add", f"{INTERNET}/32", "dev", "lo")
    container.ip("route", "add", "default", "via", NEIGHBOUR)
    rig.install(internet=False)
    assert passes(tcp_passes, container, rig.neighbour, INTERNET, 443)
    container.ip("route", "replace", "default", "via", GATEWAY)
    assert not tcp_passes(container, net.internet, INTERNET, 443)
    rig.install()
    assert passes(tcp_passes, container, net.internet, INTERNET, 443)


def test_the_overlays_address_is_not_answered_to_another_network(rig: Rig) -> None:
    container = rig.net.container
    rig.neighbour.ip("route", "add", f"{CONTAINER}/32", "via", OWN)
    assert passes(tcp_passes, rig.neighbour, container, CONTAINER, 80), "the control"
    rig.install(published=frozenset({PublishedPort("tcp", 80)}))
    assert not tcp_passes(rig.neighbour, container, CONTAINER, 80)
    assert not ping_passes(rig.neighbour, CONTAINER)
    assert passes(tcp_passes, rig.neighbour, container, OWN, 80)


def heard(source: Namespace, own: str, target: Namespace, to: str, seconds: float) -> bool:
    with (
        source.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        target.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("", 7777))
        sender.bind((own, 0))
        with contextlib.suppress(PermissionError):
            sender.sendto(b"netctl", (to, 7777))
        return readable(receiver, seconds)


def test_no_link_carries_the_others_address(rig: Rig) -> None:
    net, container = rig.net, rig.net.container
    for own, there, to in ((CONTAINER, rig.neighbour, NEIGHBOUR), (OWN, net.peer, PEER)):
        assert heard(container, own, there, to, PASSES_WITHIN), "the control"
    rig.install(outbound=frozenset({Opening(PEER, "any")}), inbound=frozenset({Opening(PEER, "any")}))
    assert not heard(container, CONTAINER, rig.neighbour, NEIGHBOUR, BLOCKED_AFTER)
    assert not heard(container, OWN, net.peer, PEER, BLOCKED_AFTER)
    assert heard(container, CONTAINER, net.peer, PEER, PASSES_WITHIN)
    assert heard(container, OWN, rig.neighbour, NEIGHBOUR, PASSES_WITHIN)


def test_nothing_is_forwarded_to_or_from_the_overlay(rig: Rig) -> None:
    net = rig.net
    rig.net.router.ip("route", "add", "172.18.0.0/16", "via", CONTAINER)
    ways = ((net.peer, rig.neighbour, NEIGHBOUR), (rig.neighbour, net.peer, PEER))
    for source, target, to in ways:
        assert passes(udp_passes, source, target, to, 99), "the control: the container is a router"
    rig.install(inbound=frozenset({Opening(PEER, "any")}), outbound=frozenset({Opening(PEER, "any")}))
    for source, target, to in ways:
        assert not udp_passes(source, target, to, 99)
    assert passes(udp_passes, rig.neighbour, rig.other, OTHER_NEIGHBOUR, 99), "others' links are not ours"


def test_ipv6_is_closed_on_the_overlay_alone(rig: Rig) -> None:
    net, container = rig.net, rig.net.container
    ends = ((container, "eth7"), (net.router, "c"), (container, "eth0"), (rig.neighbour, "eth0"))
    for namespace, link in ends:
        wait_for(lambda n=namespace, k=link: "tentative" not in n.ip("-6", "addr", "show", "dev", k))
    overlay, router, own, its = (
        namespace.ip("-6", "-o", "addr", "show", "dev", link, "scope", "link").split()[3].partition("/")[0]
        for namespace, link in ends
    )
    assert passes(ping6_passes, net.router, overlay, "c"), "the control"
    rig.install(inbound=frozenset({Opening(PEER, "any")}))
    assert not ping6_passes(net.router, overlay, "c")
    assert not ping6_passes(container, router, "eth7")
    assert passes(ping6_passes, rig.neighbour, own, "eth0")
    assert passes(ping6_passes, container, its, "eth0")


def test_dockers_resolver_answers_on_loopback(rig: Rig) -> None:
    container = rig.net.container
    # As Docker has it: 127.0.0.11:53 leads to a port that its resolver listens on.
    container.run("iptables-nft", "-t", "nat", "-N", "DOCKER_OUTPUT")
    container.run("iptables-nft", "-t", "nat", "-A", "OUTPUT", "-d", "127.0.0.11/32", "-j", "DOCKER_OUTPUT")
    container.run(
        *("iptables-nft", "-t", "nat", "-A", "DOCKER_OUTPUT", "-d", "127.0.0.11/32", "-p", "udp"),
        *("--dport", "53", "-j", "DNAT", "--to-destination", "127.0.0.11:43210"),
    )
    theirs = container.run("iptables-nft", "-t", "nat", "-S")
    rig.install(internet=False)
    with (
        container.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver,
        container.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        resolver.bind(("127.0.0.11", 43210))
        client.connect(("127.0.0.11", 53))
        client.send(b"who is db")
        assert readable(resolver, PASSES_WITHIN)
        question, sender = resolver.recvfrom(64)
        resolver.sendto(question, sender)
        assert readable(client, PASSES_WITHIN)
        assert client.recv(64) == b"who is db"
    assert container.run("iptables-nft", "-t", "nat", "-S") == theirs
    rig.backend.remove(KEY, container.fd)
    assert container.run("iptables-nft", "-t", "nat", "-S") == theirs


def test_published_ports_are_for_the_node_and_for_whoever_is_not_in_the_overlay(rig: Rig) -> None:
    net, container = rig.net, rig.net.container
    container.ip("route", "add", "default", "via", GATEWAY)
    net.internet.ip("addr", "add", "192.168.7.7/32", "dev", "lo")
    net.router.ip("route", "add", "192.168.7.7/32", "via", INTERNET, "dev", "i")
    rig.install()
    assert not tcp_passes(net.internet, container, CONTAINER, 80)
    rig.install(
        published=frozenset({PublishedPort("tcp", 80), PublishedPort("udp", 53)}),
        internet=False,
        inbound=frozenset({TCP}),
    )
    assert passes(tcp_passes, net.internet, container, CONTAINER, 80)
    assert passes(udp_passes, net.internet, container, CONTAINER, 53, size=4000)
    net.internet.ip("route", "replace", "10.0.0.0/8", "via", "198.51.100.1", "src", "192.168.7.7")
    assert passes(tcp_passes, net.internet, container, CONTAINER, 80), "a private network is outside too"
    assert passes(tcp_passes, net.router, container, CONTAINER, 80)
    assert not tcp_passes(net.internet, container, CONTAINER, 81)
    assert not udp_passes(net.internet, container, CONTAINER, 80)
    assert not tcp_passes(net.peer, container, CONTAINER, 80), "a connected peer has what it is connected to"
    assert passes(tcp_passes, net.peer, container, CONTAINER, 5432)
    assert not tcp_passes(net.other, container, CONTAINER, 80)
    assert not udp_passes(container, net.internet, INTERNET, 99, source_port=53)


def test_where_the_supernet_is_not_known_only_the_node_is_outside(rig: Rig) -> None:
    net, container = rig.net, rig.net.container
    container.ip("route", "add", "default", "via", GATEWAY)
    rig.install(published=frozenset({PublishedPort("tcp", 80)}), closed=frozenset())
    assert passes(tcp_passes, net.router, container, CONTAINER, 80)
    assert not tcp_passes(net.internet, container, CONTAINER, 80)
