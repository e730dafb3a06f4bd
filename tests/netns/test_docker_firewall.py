"""Our traffic beside Docker's own firewall (FORWARD drops), of both iptables, called by bridges or not."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable

import attrs
import pytest

from firewall_rules.backends.base import Variant
from firewall_rules.backends.docker_user import DockerUserPassages
from firewall_rules.backends.nftables import NftablesHostBackend
from firewall_rules.names import FORWARD_MARK
from firewall_rules.policy import Pair, Publication
from tests.support.host_net import FAR, INTERNET, NODE, ONE, POLICY, TWO, HostNet, host_net
from tests.support.netns import PASSES_WITHIN, Namespace, address, tcp_passes, udp_passes, veth

pytestmark = pytest.mark.root

WEB = Publication("tcp", "", 8080, ONE, 80)
DOCKERS, DOCKERS_CONTAINER = "172.17.0.1/16", "172.17.0.2"
VARIANTS: tuple[tuple[Variant, ...], ...] = (("nft",), ("legacy",), ("nft", "legacy"))


@attrs.frozen
class Docker:
    """A node of ours that Docker runs on too: its filter, and one container on its bridge."""

    net: HostNet
    container: Namespace
    variants: tuple[Variant, ...]
    backend: NftablesHostBackend
    passages: DockerUserPassages

    def iptables(self, *arguments: str) -> None:
        for variant in self.variants:
            self.net.node.run(f"iptables-{variant}", *arguments)

    def install(self) -> None:
        with self.net.node.entered():
            self.backend.install(attrs.evolve(POLICY, publications=frozenset({WEB})))

    def open(self) -> None:
        with self.net.node.entered():
            for variant, stands in self.passages.read().items():
                if not stands:
                    self.passages.open(variant)

    def stands(self) -> dict[Variant, bool]:
        with self.net.node.entered():
            return dict(self.passages.read())

    def start(self) -> None:
        """Write what Docker writes when it starts: what is forwarded is dropped, its chains asked first."""
        self.iptables("-P", "FORWARD", "DROP")
        for chain in ("DOCKER-ISOLATION-STAGE-1", "DOCKER-USER"):
            self.iptables("-N", chain)
            self.iptables("-I", "FORWARD", "-j", chain)
            self.iptables("-A", chain, "-j", "RETURN")
        self.iptables("-A", "FORWARD", "-i", "docker0", "!", "-o", "docker0", "-j", "ACCEPT")


def passes(check: Callable[..., bool], *arguments: object) -> bool:
    return check(*arguments, seconds=PASSES_WITHIN)


@pytest.fixture(
    params=itertools.product(VARIANTS, (True, False)),
    ids=lambda value: "+".join(value[0]) + ("-bridge-nf" if value[1] else ""),
)
def docker(request: pytest.FixtureRequest, namespaces: Callable[[], Namespace]) -> Docker:
    variants, bridge_calls_ip = request.param
    net, container = host_net(namespaces, bridge_calls_ip=bridge_calls_ip), namespaces()
    net.node.ip("link", "add", "docker0", "type", "bridge")
    address(net.node, "docker0", DOCKERS)
    veth(net.node, "vethdocker", container, "eth0")
    net.node.ip("link", "set", "vethdocker", "master", "docker0", "up")
    address(container, "eth0", f"{DOCKERS_CONTAINER}/16")
    container.ip("route", "add", "default", "via", DOCKERS.partition("/")[0])
    net.world.ip("route", "add", "172.17.0.0/16", "via", NODE)
    docker = Docker(net, container, variants, NftablesHostBackend(), DockerUserPassages())
    docker.start()
    docker.install()
    return docker


def test_one_rule_lets_through_what_ours_let_through_and_nothing_else(docker: Docker) -> None:
    net = docker.net
    assert not tcp_passes(net.one, net.far, FAR, 80)
    assert not tcp_passes(net.one, net.world, INTERNET, 443)
    docker.open()
    assert docker.stands() == dict.fromkeys(docker.variants, True)
    for pair in (
        (net.one, net.two, TWO),
        (net.two, net.one, ONE),
        (net.one, net.far, FAR),
        (net.far, net.one, ONE),
    ):
        assert passes(tcp_passes, *pair, 80)
        assert udp_passes(*pair, 80, size=4000, seconds=PASSES_WITHIN)
    assert passes(tcp_passes, net.one, net.world, INTERNET, 443)
    assert published(net.world, net.one)
    # What is not connected, and what Docker keeps in, stays where it is.
    assert not tcp_passes(net.two, net.far, FAR, 80)
    assert not tcp_passes(net.world, docker.container, DOCKERS_CONTAINER, 80)
    assert not tcp_passes(net.one, docker.container, DOCKERS_CONTAINER, 80)
    assert not tcp_passes(docker.container, net.one, ONE, 80)
    with net.node.entered():
        docker.backend.update(pairs_removed=[Pair(ONE, FAR)])
    assert not tcp_passes(net.one, net.far, FAR, 80)


def published(client: Namespace, server: Namespace) -> bool:
    """Whether the node's port 8080 leads to the container's port 80."""
    with (
        client.socket(socket.AF_INET, socket.SOCK_STREAM) as asking,
        server.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", 80))
        listener.listen()
        asking.settimeout(PASSES_WITHIN)
        return asking.connect_ex((NODE, 8080)) == 0


def test_on_one_bridge_it_passes_with_and_without_being_called(docker: Docker) -> None:
    net = docker.net
    called = net.node.sysctl("net/bridge/bridge-nf-call-iptables") == "1"
    assert tcp_passes(net.one, net.two, TWO, 80) is not called, "Docker drops what it is shown"
    docker.open()
    assert passes(tcp_passes, net.one, net.two, TWO, 80)


def test_a_rule_that_was_flushed_is_put_back(docker: Docker) -> None:
    net = docker.net
    docker.open()
    assert passes(tcp_passes, net.one, net.far, FAR, 80)
    docker.iptables("-F", "DOCKER-USER")
    assert docker.stands() == dict.fromkeys(docker.variants, False)
    assert not tcp_passes(net.one, net.far, FAR, 80)
    docker.open()
    assert passes(tcp_passes, net.one, net.far, FAR, 80)
    # As firewalld does at a reload: chains and all. Docker then writes its own anew.
    docker.iptables("-F")
    docker.iptables("-X")
    assert docker.stands() == {}
    docker.start()
    assert docker.stands() == dict.fromkeys(docker.variants, False)
    docker.open()
    assert passes(tcp_passes, net.one, net.far, FAR, 80)


def test_somebody_elses_mark_opens_nothing(docker: Docker) -> None:
    net = docker.net
    docker.open()
    # Whoever can write here could open Docker's firewall as well; nobody shall do it by accident.
    docker.iptables("-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--set-mark", f"{FORWARD_MARK:#x}")
    assert not tcp_passes(net.world, docker.container, DOCKERS_CONTAINER, 80)
    assert not tcp_passes(net.two, net.far, FAR, 80)
    assert passes(tcp_passes, net.one, net.far, FAR, 80)
    with net.node.entered():
        docker.backend.remove()
    assert passes(tcp_passes, net.world, docker.container, DOCKERS_CONTAINER, 80), (
        "the control: the mark does it"
    )


def test_taken_out_docker_is_as_it_was(docker: Docker) -> None:
    net = docker.net
    before = [net.node.run(f"iptables-{variant}", "-S") for variant in docker.variants]
    docker.open()
    assert [net.node.run(f"iptables-{variant}", "-S") for variant in docker.variants] != before
    with net.node.entered():
        for variant in docker.variants:
            docker.passages.close(variant)
    assert [net.node.run(f"iptables-{variant}", "-S") for variant in docker.variants] == before
