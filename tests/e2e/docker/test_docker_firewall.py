"""Beside Docker's own firewall, whichever it is: ours holds, and Docker's is as tight as before."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import attrs
import pytest

from tests.support.docker_lab import DockerLab
from tests.support.netns import Namespace, tcp_passes, wait_for

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.timeout(400)]

OUTSIDE = "198.51.100.1"


@attrs.frozen
class Walled:
    """A lab whose engines write their rules by one variant of iptables."""

    lab: DockerLab
    program: str

    def user_rules(self, node: str) -> list[str]:
        """Return the rules of DOCKER-USER; empty also where there is no such chain."""
        saved = self.lab.host(node).run(f"{self.program}-save", "-t", "filter").splitlines()
        return [line for line in saved if line.startswith("-A DOCKER-USER")]

    def ours(self, node: str) -> list[str]:
        return [rule for rule in self.user_rules(node) if not rule.endswith("-j RETURN")]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((version, legacy), marks=[pytest.mark.full] if full else [], id=f"{version}-{name}")
        for version, legacy, name, full in (
            ("20.10", False, "nft", False),
            ("20.10", True, "legacy", True),
            ("26.1", False, "nft", True),
            ("26.1", True, "legacy", False),
        )
    ],
)
def walled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walled]:
    version, legacy = request.param
    lab = DockerLab(tmp_path_factory.mktemp("walled"), version, "--outside", legacy=legacy)
    try:
        lab.up()
        lab.furnish()
        yield Walled(lab, "iptables-legacy" if legacy else "iptables-nft")
    finally:
        lab.down()


@pytest.mark.parametrize("iptables", [False, True], ids=["iptables off", "iptables on"])
def test_exactly_what_is_connected_passes(walled: Walled, *, iptables: bool) -> None:
    lab = walled.lab
    for node in lab.nodes:
        lab.restart_engine(node, settings={"iptables": iptables})
        if iptables:
            lab.host(node).run(walled.program, "-P", "FORWARD", "DROP")
    lab.wait_agreed()
    outside = lab.host("outside")
    for bridge_calls, nodes in itertools.product("01", (("n1", "n2"), ("n1", "n1"))):
        for node in lab.nodes:
            lab.host(node).sysctl("net/bridge/bridge-nf-call-iptables", bridge_calls)
        with lab.pair("web", "db", nodes) as pair:
            assert not pair.tcp(5432)
            lab.netctl("connect", "web", "db", "--port", "5432", "--port", "icmp")
            assert pair.tcp(5432)
            assert pair.ping()
            assert not pair.tcp(5433)
            assert not pair.tcp_back(5432)
            assert tcp_passes(pair.one, outside, OUTSIDE, 80)
    if iptables:
        assert all(len(walled.ours(node)) == 1 for node in lab.nodes)


def docker_isolates(lab: DockerLab, web: Namespace, address: str) -> None:
    """Check that nothing passes between Docker's own bridge and a container of ours, or two of them."""
    lab.docker("n1", "network", "create", "second")
    try:
        theirs = lab.start("n1", "theirs", network="bridge")
        second = lab.start("n1", "second", network="second")
        inside, inside_second = lab.inside(theirs), lab.inside(second)
        assert not tcp_passes(web, inside, theirs.address, 80)
        assert not tcp_passes(inside, web, address, 80)
        assert not tcp_passes(inside, inside_second, second.address, 80)
        # The control: from the node itself they are reached.
        assert tcp_passes(lab.host("n1"), inside, theirs.address, 80)
        assert tcp_passes(lab.host("n1"), inside_second, second.address, 80)
    finally:
        for name in ("theirs", "second"):
            lab.docker("n1", "rm", "--force", name, status=None)
        lab.docker("n1", "network", "rm", "second")


def test_our_one_rule_is_put_back_and_docker_isolates_as_before(walled: Walled) -> None:
    lab = walled.lab
    for node in lab.nodes:
        lab.host(node).run(walled.program, "-P", "FORWARD", "DROP")
    wait_for(lambda: all(len(walled.ours(node)) == 1 for node in lab.nodes), 5, "our rule")
    with lab.pair("web", "db") as pair:
        lab.netctl("connect", "web", "db", "--port", "5432")
        assert pair.tcp(5432)
        docker_isolates(lab, pair.one, pair.one_address)
        lab.host("n1").run(walled.program, "-F", "DOCKER-USER")
        lab.host("n2").run(walled.program, "-F", "DOCKER-USER")
        wait_for(lambda: all(len(walled.ours(node)) == 1 for node in lab.nodes), 5, "our rule, put back")
        wait_for(lambda: pair.tcp(5432), 5, "the connection")
        # What an administrator wrote there stays, and comes before what Docker isolates as ever.
        lab.host("n1").run(walled.program, "-A", "DOCKER-USER", "-s", "192.0.2.9/32", "-j", "DROP")
        lab.restart_engine("n1", settings={})
        wait_for(lambda: len(walled.ours("n1")) == 2, 5, "both rules")
        assert any("192.0.2.9" in rule for rule in walled.ours("n1"))
        lab.host("n1").run(walled.program, "-D", "DOCKER-USER", "-s", "192.0.2.9/32", "-j", "DROP")


def test_leaving_takes_our_rule_out(walled: Walled) -> None:
    lab = walled.lab
    assert walled.ours("n2")
    lab.netctl("node", "rm", "--force", "n2")
    wait_for(lambda: not walled.ours("n2"), 10, "the rule's end")
    assert "netctl" not in lab.host("n2").run("nft", "list", "tables")
