"""What `connect`, `disconnect` and `rm` promise, shown with packets through real nodes."""

from __future__ import annotations

import json
import os
import signal

import pytest

from tests.support.lab import Lab
from tests.support.netns import ping_passes, wait_for
from tests.support.pairs import Two, check_that_disconnect_cuts, two

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.mark.parametrize("nodes", [("n1", "n2"), ("n1", "n1")], ids=["across nodes", "same node"])
def test_exactly_the_recorded_port_passes(lab: Lab, nodes: tuple[str, str]) -> None:
    with two(lab, "web", "db", nodes) as pair:
        assert not pair.tcp(5432)
        assert not pair.udp(5432)
        assert not pair.ping()

        lab.netctl("connect", "web", "db", "--port", "5432/tcp")
        assert pair.tcp(5432)
        assert not pair.tcp(5433)
        assert not pair.udp(5432)
        assert not pair.ping()
        assert not pair.tcp_back(5432)

        lab.netctl("connect", "web", "db", "--port", "53/udp", "--port", "icmp")
        assert pair.udp(53)
        assert pair.udp(53, size=4000)
        assert pair.ping()
        assert not pair.udp(54)
        assert not ping_passes(pair.other, pair.one_address)

        lab.netctl("disconnect", "web", "db")
        assert not pair.tcp(5432)
        assert not pair.udp(53)
        assert not pair.ping()


def test_without_a_port_everything_passes_both_ways(lab: Lab) -> None:
    with two(lab, "web", "db") as pair:
        assert not pair.tcp(80)
        lab.netctl("connect", "db", "web")
        assert pair.tcp(80)
        assert pair.tcp_back(81)
        assert pair.udp(82, size=4000)
        assert pair.ping()
        rows = [
            row
            for row in lab.netctl("connections", "--json").json
            if {row["from"], row["to"]} == {"web", "db"}
        ]
        assert [row["ports"] for row in rows] == [["all"]]
        lab.netctl("disconnect", "web", "db")
        assert not pair.tcp(80)
        assert not pair.tcp_back(81)


def test_disconnect_cuts_a_live_flow_and_no_other(lab: Lab) -> None:
    with two(lab, "web", "db") as pair:
        check_that_disconnect_cuts(lab, pair)


def test_connecting_twice_is_the_same_as_once(lab: Lab) -> None:
    with two(lab, "web", "db") as pair:
        first = lab.netctl("connect", "web", "db", "--port", "90", "--json").json
        second = lab.netctl("connect", "web", "db", "--port", "90/tcp", "--json").json
        assert first["revision"] == second["revision"]
        rows = [row for row in lab.netctl("connections", "--json").json if row["from"] == "web"]
        assert [(row["to"], row["ports"], row["state"]) for row in rows] == [("db", ["90/tcp"], "active")]
        lab.netctl("disconnect", "web", "db", "--port", "90")
        assert not pair.tcp(90)
        gone = lab.netctl("disconnect", "web", "db", "--port", "90", status=1)
        assert len(gone.err.strip().splitlines()) == 1


def test_a_name_used_again_inherits_no_connection(lab: Lab) -> None:
    with two(lab, "web", "db"):
        lab.netctl("connect", "web", "db", "--port", "91")
        before = lab.address("db")
        lab.netctl("rm", "--force", "db")
        assert [
            row for row in lab.netctl("connections", "--json").json if "db" in (row["from"], row["to"])
        ] == []
        lab.run("db", "--node", "n2")
        assert lab.address("db") != before
        again = Two(lab.namespace("web"), lab.address("web"), lab.namespace("db"), lab.address("db"))
        assert not again.tcp(91)
        lab.netctl("connect", "web", "db", "--port", "91")
        assert again.tcp(91)


def test_errors_say_what_to_do_and_change_nothing(lab: Lab) -> None:
    with two(lab, "web", "db"):
        before = lab.netctl("connections", "--json").json
        near = lab.netctl("connect", "web", "bd", status=1)
        assert "db" in near.err
        assert len(near.err.strip().splitlines()) == 1
        lab.netctl("connect", "web", "web", status=1)
        wrong = lab.netctl("connect", "web", "db", "--port", "70000/tcp", status=None)
        assert wrong.status in (1, 2)
        lab.netctl("connect", "web", status=2)
        error = lab.netctl("connect", "web", "nosuch", "--json", status=1)
        told = error.json if error.out.strip() else json.loads(error.err)
        assert {"code", "message", "remedy", "nodes"} <= told.keys()
        assert told["code"] == "not-found"
        assert lab.netctl("connections", "--json").json == before


def test_a_node_that_is_away_is_named_and_catches_up(lab: Lab) -> None:
    with two(lab, "web", "db") as pair:
        agent = lab.pid("n2")
        os.kill(agent, signal.SIGSTOP)
        try:
            late = lab.netctl("connect", "web", "db", "--port", "92", "--timeout", "1", status=3)
            assert "n2" in late.err
            rows = [row for row in lab.netctl("connections", "--json").json if row["from"] == "web"]
            assert [row["state"] for row in rows] == ["pending"]
            assert not pair.tcp(92)
        finally:
            os.kill(agent, signal.SIGCONT)
        wait_for(lambda: pair.tcp(92), 30, "the connection")
        wait_for(
            lambda: (
                {r["state"] for r in lab.netctl("connections", "--json").json if r["from"] == "web"}
                == {"active"}
            ),
            10,
            "the record's state",
        )
