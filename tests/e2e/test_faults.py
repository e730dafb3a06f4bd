"""What a user must not notice: agents and brokers that die, rules that someone flushes."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator

import attrs
import pytest

from tests.support.lab import Lab
from tests.support.netns import Namespace, tcp_passes, wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


AS_DESIRED = "the host is as desired"


@attrs.frozen
class Pair:
    web: Namespace
    db: Namespace
    address: str

    def passes(self, port: int = 5432) -> bool:
        return tcp_passes(self.web, self.db, self.address, port)


@pytest.fixture(scope="module")
def pair(lab: Lab) -> Iterator[Pair]:
    """Yield web on n1 and db on n2, connected on 5432/tcp."""
    lab.run("web", "--node", "n1")
    lab.run("db", "--node", "n2")
    lab.netctl("connect", "web", "db", "--port", "5432")
    yield Pair(lab.namespace("web"), lab.namespace("db"), lab.address("db"))
    lab.netctl("rm", "--force", "web")
    lab.netctl("rm", "--force", "db")


def ready(lab: Lab) -> bool:
    nodes = lab.netctl("node", "list", "--json", status=None)
    return nodes.status == 0 and [node["state"] for node in nodes.json] == ["ready"] * 3


def test_flows_outlive_the_broker(lab: Lab, pair: Pair) -> None:
    os.kill(lab.pid("broker"), signal.SIGKILL)
    assert pair.passes()
    assert not pair.passes(5433)
    lab.up()
    wait_for(lambda: ready(lab), 30, "the nodes' return")
    assert pair.passes()
    lab.netctl("connect", "web", "db", "--port", "5433")
    assert pair.passes(5433)
    lab.netctl("disconnect", "web", "db", "--port", "5433")


def test_an_agent_that_is_killed_comes_back_and_writes_nothing(lab: Lab, pair: Pair) -> None:
    os.kill(lab.pid("n2"), signal.SIGKILL)
    assert pair.passes()
    mark = len(lab.log("n2"))
    lab.up()
    wait_for(lambda: ready(lab), 30, "the node's return")
    wait_for(lambda: AS_DESIRED in lab.log("n2")[mark:], 10, "the first look")
    told = json.loads(next(line for line in lab.log("n2")[mark:].splitlines() if AS_DESIRED in line))
    assert told["count"] == 0
    assert pair.passes()
    assert not pair.passes(5433)


def test_a_flushed_firewall_is_repaired(lab: Lab, pair: Pair) -> None:
    node = lab.host("n2")
    pair.db.run("nft", "flush", "ruleset")
    node.run("nft", "flush", "ruleset")
    wait_for(
        lambda: (
            "netctl" in pair.db.run("nft", "list", "tables") and "netctl" in node.run("nft", "list", "tables")
        ),
        10,
        "the repair",
    )
    wait_for(pair.passes, 5, "the connection")
    assert not pair.passes(5433)


def test_a_link_that_was_deleted_comes_back(lab: Lab, pair: Pair) -> None:
    node = lab.host("n1")
    links = node.ip("-o", "link", "show")
    tunnel = re.search(r"\b(nct[gv][0-9a-f]+)", links)
    assert tunnel is not None, links
    for link in set(re.findall(r"\b(nct[gv][0-9a-f]+)", links)):
        node.ip("link", "del", link)
    wait_for(pair.passes, 15, "the tunnel")
