"""The ways between nodes, end to end: which is chosen, what becomes of it, and what the doctor says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.lab import Lab
from tests.support.netns import PASSES_WITHIN, Namespace, wait_for
from tests.support.pairs import Stream, two
from tests.support.underlay_faults import dropping, move, own_address

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

CONVERGED = 5.0
"""Seconds in which peers must follow a node that moves, and be rid of one that leaves."""
RECOVERED = 10.0
"""Seconds in which flows must recover when the underlay takes less, or a way breaks."""
OUTER = {"gre": "ip protocol gre", "vxlan": "udp dport 4789", "direct": "ip saddr 10.0.0.0/8"}
"""Each way's packets on the underlay, in nft's words."""
BOTH = pytest.mark.parametrize(
    "lab",
    [
        pytest.param(("vxlan", "direct"), id="vxlan, direct"),
        pytest.param(("gre", "vxlan"), id="gre, vxlan", marks=pytest.mark.needs_kernel("gre")),
    ],
    indirect=True,
)


class Ways(Lab):
    """A lab of three nodes.

    Attributes:
        first: The way that is chosen where both are up.
        second: The other one.
    """

    first: str
    second: str

    def show(self, node: str) -> Any:
        return self.netctl("node", "show", node, "--json").json

    def chosen(self, node: str, peer: str) -> str:
        return str(self.show(node)["peers"][peer])

    def states(self, node: str) -> dict[tuple[str, str], str]:
        return {
            (path["destination"], path["encapsulation"]): path["state"] for path in self.show(node)["paths"]
        }

    def settled(self) -> bool:
        return all(
            {*self.states(node).values()} == {"up"} and {*self.show(node)["peers"].values()} == {self.first}
            for node in ("n1", "n2", "n3")
        )


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    """Yield a lab whose nodes have two ways to each other."""
    offered = request.param
    made = Ways(tmp_path_factory.mktemp("ways"), "--encapsulation", ",".join(offered))
    made.first, made.second = sorted(offered, key=["direct", "gre", "vxlan"].index)
    made.up()
    wait_for(made.settled, 30, "every way to be found up")
    yield made
    made.down()


@BOTH
def test_a_pair_whose_way_breaks_takes_the_other_and_keeps_it(lab: Ways) -> None:
    assert lab.netctl("doctor").out.endswith("all is well\n")
    from_n1 = f"ip saddr {own_address(lab.host('n1'))}"
    way = OUTER["direct"] if lab.first == "direct" else f"{from_n1} {OUTER[lab.first]}"
    with two(lab, "web", "db") as pair, two(lab, "far", "end", ("n1", "n3")) as others:
        lab.netctl("connect", "web", "db", "--port", "5432")
        lab.netctl("connect", "far", "end", "--port", "5432")
        flow, other = Stream(pair, 5432), Stream(others, 5432)
        try:
            assert flow.flows(PASSES_WITHIN)
            with dropping(lab.host("n2"), way):
                # The control: it is really cut.
                assert not flow.flows(0.5) or not flow.flows(0.5)
                wait_for(lambda: lab.chosen("n1", "n2") == lab.second, RECOVERED, "the other way")
                assert flow.flows(RECOVERED)
                assert lab.chosen("n2", "n1") == lab.second
                assert lab.states("n1")["n2", lab.first] == "down"
                assert other.flows(PASSES_WITHIN)
                assert lab.chosen("n1", "n3") == lab.first
            wait_for(lambda: lab.states("n1")["n2", lab.first] == "up", 30, "the first way up again")
            assert lab.chosen("n1", "n2") == lab.second
            assert flow.flows(PASSES_WITHIN)
        finally:
            flow.close()
            other.close()


@BOTH
def test_the_doctor_names_a_pair_that_is_cut_and_is_content_again(lab: Ways) -> None:
    with dropping(lab.host("n3"), OUTER[lab.first], OUTER[lab.second]):
        wait_for(lambda: "up" not in lab.states("n3").values(), 15, "every way of n3 down")
        found = lab.netctl("doctor", "--json", status=1).json
        wrong = {
            finding["subject"]: finding for finding in found["findings"] if finding["severity"] == "error"
        }
        assert any({"n1", "n3"} <= {*subject.replace("->", " ").split()} for subject in wrong), wrong
        assert all(finding["remedy"] for finding in wrong.values())
        assert not any({"n1", "n2"} <= {*subject.replace("->", " ").split()} for subject in wrong), wrong
    wait_for(lambda: {*lab.states("n3").values()} == {"up"}, 30, "every way up again")
    wait_for(lambda: lab.netctl("doctor", status=None).status == 0, 10, "a doctor who is content")


@BOTH
def test_flows_recover_when_the_underlay_takes_less(lab: Ways) -> None:
    with two(lab, "web", "db") as pair:
        lab.netctl("connect", "web", "db", "--port", "5432", "--port", "5433")
        before = Stream(pair, 5432)
        try:
            assert before.flows(PASSES_WITHIN)
            with dropping(lab.host("n2"), "ip length > 1300"), dropping(lab.host("n1"), "ip length > 1300"):
                assert before.flows(RECOVERED)
                wait_for(
                    lambda: all(
                        path["mtu"] <= 1300
                        for path in lab.show("n1")["paths"]
                        if path["destination"] == "n2" and path["chosen"]
                    ),
                    RECOVERED,
                    "the path's own MTU",
                )
                after = Stream(pair, 5433)
                try:
                    assert after.flows(PASSES_WITHIN)
                finally:
                    after.close()
        finally:
            before.close()


@BOTH
def test_a_node_that_moves_takes_its_peers_along_and_leaves_nothing(lab: Ways) -> None:
    node = lab.host("n2")
    old, new = own_address(node), "172.31.77.2"
    with two(lab, "web", "db") as pair:
        lab.netctl("connect", "web", "db", "--port", "5432")
        flow = Stream(pair, 5432)
        try:
            assert flow.flows(PASSES_WITHIN)
            move(node, old, new)
            wait_for(lambda: lab.show("n2")["underlay"] == new, CONVERGED, "the broker to know")
            assert flow.flows(CONVERGED)
            for name in ("n1", "n3"):
                wait_for(lambda name=name: not seen(lab.host(name), old), CONVERGED, f"{name} to forget")
                assert seen(lab.host(name), new)
            # One's own old address is nobody's any more either.
            wait_for(lambda: not seen(node, old), CONVERGED, "n2 to forget")
        finally:
            flow.close()
            move(node, new, old)
            wait_for(lambda: lab.show("n2")["underlay"] == old, CONVERGED, "the way back")


def seen(node: Namespace, address: str) -> list[str]:
    """Return what of ours on a node names an underlay address: links, routes, rules."""
    listings = (
        node.ip("-d", "-o", "link"),
        node.ip("route", "show", "proto", "110"),
        node.run("nft", "list", "table", "inet", "netctl"),
        node.run("nft", "list", "table", "bridge", "netctl"),
    )
    return [
        line
        for listing in listings
        for line in listing.splitlines()
        if address in line.replace("/", " ").replace(",", " ").split()
    ]


@BOTH
def test_a_node_that_is_removed_is_gone_from_every_other(lab: Ways) -> None:
    hosts = [lab.host(name) for name in ("n1", "n2")]
    assert all(seen(host, "172.31.1.3") for host in hosts)
    assert all("10.3.0.0/16" in host.ip("route") for host in hosts)
    lab.netctl("node", "rm", "n3", "--force")
    for host in hosts:
        wait_for(lambda host=host: not seen(host, "172.31.1.3"), CONVERGED, "its traces to go")
        assert "10.3.0.0/16" not in host.ip("route")
        # In their devices' names.
        assert "0a030000" not in host.ip("-o", "link")
    # The control: the rest of the overlay goes on.
    with two(lab, "web", "db") as pair:
        lab.netctl("connect", "web", "db", "--port", "5432")
        assert pair.tcp(5432)
