"""What is taken out is gone, and the host is as it was: compared by listing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from tests.support.lab import PROGRAMS, HostListing, Lab, listing
from tests.support.netns import Namespace, tcp_passes, wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@attrs.frozen
class NodeListing:
    """What a node's namespace holds; IPv6 routes come and go with the kernel's own address detection."""

    links: tuple[str, ...]
    routes: str
    rules: str
    neighbours: str


def of(namespace: Namespace) -> NodeListing:
    links = sorted(line.split()[1] for line in namespace.ip("-o", "link", "show").splitlines())
    return NodeListing(
        tuple(links),
        # The kernel's own note on a route, some time after the bridge has lost its last port.
        namespace.ip("-4", "route", "show", "table", "all").replace("linkdown ", ""),
        namespace.run("nft", "list", "ruleset"),
        namespace.ip("neigh", "show", "nud", "permanent"),
    )


@pytest.fixture
def before() -> HostListing:
    return listing()


@pytest.fixture
def lab(tmp_path: Path, before: HostListing) -> Iterator[Lab]:
    """Yield a lab and, when it is down, compare the host with what it was."""
    made = Lab(tmp_path / "lab")
    made.up()
    yield made
    made.down()
    after = listing()
    assert after.network == before.network
    assert after.things - before.things == frozenset()
    assert not made.directory.exists()


def test_rm_node_rm_and_leave_take_everything_out(lab: Lab) -> None:
    n1, n2, n3 = lab.host("n1"), lab.host("n2"), lab.host("n3")
    empty = of(n1)
    assert any(link.startswith("netctl0") for link in empty.links)

    lab.run("web", "--node", "n1")
    lab.run("db", "--node", "n2")
    lab.run("also", "--node", "n1")
    lab.netctl("connect", "web", "db", "--port", "5432")
    lab.netctl("connect", "web", "also")
    web, db = lab.namespace("web"), lab.namespace("db")
    assert tcp_passes(web, db, lab.address("db"), 5432)
    assert of(n1) != empty
    for name in ("web", "also"):
        lab.netctl("rm", "--force", name)
    assert of(n1) == empty

    refused = lab.netctl("node", "rm", "n2", status=1)
    assert "--force" in refused.err
    lab.netctl("rm", "--force", "db")
    lab.netctl("node", "rm", "n2")
    assert [node["name"] for node in lab.netctl("node", "list", "--json").json] == ["n1", "n3"]
    assert not any(link.startswith("nct") for link in of(n2).links if not link.startswith("netctl"))
    wait_for(lambda: "netctl0:" not in of(n2).links, 10, "the removed node's own clean-up")
    assert of(n2).rules == ""
    assert len([link for link in of(n1).links if link.startswith("nct")]) == 1
    assert "10.2.0.0/16" not in of(n1).routes

    state = lab.directory / "n3"
    left = n3.run(
        str(PROGRAMS / "nodeagent"),
        "leave", "--dir", str(state / "state"), "--run-dir", str(state / "run"),
    )  # fmt: skip
    assert "n3" in left
    assert "netctl0:" not in of(n3).links
    assert of(n3).rules == ""
    assert [node["name"] for node in lab.netctl("node", "list", "--json").json] == ["n1"]


def test_up_twice_changes_nothing(lab: Lab) -> None:
    lab.run("web")
    first, pids = of(lab.host("n1")), [lab.pid(name) for name in ("broker", "n1", "n2", "n3")]
    lab.up()
    assert of(lab.host("n1")) == first
    assert [lab.pid(name) for name in ("broker", "n1", "n2", "n3")] == pids
    assert lab.containers()["web"]["state"] == "running"


def test_two_labs_do_not_disturb_each_other(lab: Lab, tmp_path: Path) -> None:
    lab.run("web", "--node", "n1")
    other = Lab(tmp_path / "other", "--nodes", "1")
    other.up()
    try:
        assert other.containers() == {}
        other.run("web")
        assert (lab.containers()["web"]["node"], other.containers()["web"]["node"]) == ("n1", "n1")
    finally:
        other.down()
    assert lab.containers()["web"]["state"] == "running"
