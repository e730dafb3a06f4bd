"""The doctor's matrix, findings and exit status, and the ways that `netctl node show` tells."""

from __future__ import annotations

import json

import attrs
import pytest

from netctl.errors import UnavailableError
from netctl.model import Finding, NodeFacts
from netctl.wire.messages import Diagnose, Diagnosis, NodeDetail, NodeView, PathView, ShowNode
from tests.unit.netctl.cli.conftest import Broker, Netctl


def node(number: int) -> NodeView:
    return NodeView(f"n{number}", f"10.{number}.0.0/16", f"192.0.2.{number}", "ready", "gre")


def path(source: int, destination: int, encapsulation: str = "gre") -> PathView:
    return PathView(
        f"n{source}", f"n{destination}", encapsulation, True, "up", 1476, 0.314, 0.0,  # type: ignore[arg-type]
    )  # fmt: skip


def other(way: PathView) -> PathView:
    """Return a way that stands by."""
    return attrs.evolve(way, encapsulation="vxlan", chosen=False, mtu=1450)


WARNING = Finding("warning", "n1", "the network 10.9.0.0/16 lies in the supernet", "move it")
ERROR = Finding("error", "n1 -> n2", "no way is up", "look at the underlay\x1b[2J")
TWO = (node(1), node(2))
BOTH = (path(1, 2), other(path(1, 2)), path(2, 1), other(path(2, 1)))


@pytest.mark.parametrize(
    ("findings", "status", "verdict"),
    [
        ((), 0, "all is well"),
        ((WARNING,), 0, "1 warning"),
        ((ERROR,), 1, "1 error"),
        ((ERROR, ERROR, WARNING), 1, "2 errors, 1 warning"),
    ],
)
def test_the_exit_status_says_if_something_fails(
    broker: Broker, netctl: Netctl, findings: tuple[Finding, ...], status: int, verdict: str
) -> None:
    broker.answers[Diagnose] = Diagnosis(TWO, BOTH, findings)
    shown = netctl("doctor")
    assert (shown.status, shown.err) == (status, "")
    assert shown.out.splitlines()[-1] == verdict
    assert netctl("doctor", "--json").status == status


def test_json_has_its_keys(broker: Broker, netctl: Netctl) -> None:
    broker.answers[Diagnose] = Diagnosis(TWO, BOTH, (ERROR,))
    shown = json.loads(netctl("doctor", "--json", "--timeout", "3").out)
    assert broker.asked == [Diagnose(3.0)]
    assert list(shown) == ["nodes", "paths", "findings"]
    assert shown["nodes"][0]["name"] == "n1"
    assert len(shown["paths"]) == 4
    assert shown["paths"][0] == {
        "source": "n1",
        "destination": "n2",
        "encapsulation": "gre",
        "chosen": True,
        "state": "up",
        "mtu": 1476,
        "rtt_ms": 0.314,
        "loss": 0.0,
    }
    assert shown["findings"] == [
        {
            "severity": "error",
            "subject": "n1 -> n2",
            "message": "no way is up",
            "remedy": "look at the underlay\x1b[2J",
        }
    ]


def test_a_few_nodes_are_a_matrix(broker: Broker, netctl: Netctl) -> None:
    lossy = attrs.evolve(path(2, 1), encapsulation="vxlan", mtu=1350, rtt_ms=12.0, loss=0.25)
    down = attrs.evolve(path(1, 3), state="down", mtu=0, rtt_ms=0.0, loss=1.0)
    unknown = attrs.evolve(path(3, 1), state="unknown", mtu=0, rtt_ms=0.0)
    broker.answers[Diagnose] = Diagnosis(
        (node(1), node(2), node(3)), (path(1, 2), other(path(1, 2)), lossy, down, unknown), ()
    )
    assert broker.asked == []
    first, *rows = netctl("doctor").out.splitlines()[:4]
    assert broker.asked == [Diagnose(10.0)]
    assert first.split("  ")[0].strip() == "FROM"
    assert all(f"TO N{number}" in first for number in (1, 2, 3))
    assert "gre 1476 0.31ms 0%" in rows[0]
    assert "gre down" in rows[0]
    # Only what is routed along is a pair's cell.
    assert "1450" not in rows[0]
    assert "vxlan 1350 12.00ms 25%" in rows[1]
    assert "no way" in rows[1]
    assert "gre unknown" in rows[2]


def test_many_nodes_are_a_line_each(broker: Broker, netctl: Netctl) -> None:
    count = 20
    nodes = tuple(node(number) for number in range(1, count + 1))
    paths = tuple(path(one, two) for one in range(1, count + 1) for two in range(1, count + 1) if one != two)
    worse = attrs.evolve(paths[0], encapsulation="vxlan", mtu=1400, loss=0.5)
    down = attrs.evolve(paths[1], state="down")
    broker.answers[Diagnose] = Diagnosis(nodes, (worse, down, *paths[2:]), ())
    lines = netctl("doctor").out.splitlines()
    assert lines[0].split() == [
        "NODE", "STATE", "PEERS", "UP", "ENCAPSULATION", "MTU", "ROUND", "TRIP", "LOSS",
    ]  # fmt: skip
    assert lines[1].split() == ["n1", "ready", "19", "18", "gre,vxlan", "1400", "0.31ms", "50%"]
    assert lines[2].split() == ["n2", "ready", "19", "19", "gre", "1476", "0.31ms", "0%"]
    assert max(map(len, lines)) < 100


def test_findings_have_their_remedy_below_and_drive_no_terminal(broker: Broker, netctl: Netctl) -> None:
    broker.answers[Diagnose] = Diagnosis(TWO, BOTH, (ERROR, attrs.evolve(WARNING, remedy="")))
    shown = netctl("doctor").out
    assert "error: n1 -> n2: no way is up\n  look at the underlay [2J\n" in shown
    assert "warning: n1: the network 10.9.0.0/16 lies in the supernet\n\n1 error, 1 warning\n" in shown
    assert "\x1b" not in shown


def test_where_no_node_is(broker: Broker, netctl: Netctl) -> None:
    broker.answers[Diagnose] = Diagnosis((), (), ())
    shown = netctl("doctor")
    assert (shown.status, shown.out) == (0, "")
    assert "no node has joined" in shown.err
    assert json.loads(netctl("doctor", "--json").out) == {"nodes": [], "paths": [], "findings": []}


def test_a_node_alone_has_nobody_to_reach(broker: Broker, netctl: Netctl) -> None:
    broker.answers[Diagnose] = Diagnosis((node(1),), (), ())
    shown = netctl("doctor")
    assert shown.status == 0
    assert shown.out.splitlines()[1].split() == ["n1", "ready", "-"]


def test_a_broker_that_does_not_answer_is_a_failure(broker: Broker, netctl: Netctl) -> None:
    broker.answers[Diagnose] = UnavailableError("the broker does not answer", "start it")
    shown = netctl("doctor")
    assert (shown.status, shown.out) == (1, "")


def test_a_node_is_shown_with_its_ways(broker: Broker, netctl: Netctl) -> None:
    facts = NodeFacts("192.0.2.1", "", 1500, ("gre", "vxlan"), "nftables", ("process",))
    ways = (
        path(1, 2),
        other(path(1, 2)),
        attrs.evolve(path(1, 3), chosen=False, state="down"),
        attrs.evolve(path(1, 3), encapsulation="wireguard", state="unknown"),
    )
    broker.answers[ShowNode] = NodeDetail(
        node(1), facts, {"n2": "gre", "n3": "wireguard"}, paths=ways, mtu=1476
    )
    row = json.loads(netctl("node", "show", "n1", "--json").out)
    assert row["mtu"] == 1476
    assert [(each["destination"], each["encapsulation"], each["chosen"]) for each in row["paths"]] == [
        ("n2", "gre", True), ("n2", "vxlan", False), ("n3", "gre", False), ("n3", "wireguard", True),
    ]  # fmt: skip
    lines = [line.split("  ")[-1].strip() for line in netctl("node", "show", "n1").out.splitlines()]
    assert lines[-4:] == [
        "n2 by gre (chosen): up, MTU 1476, 0.31 ms, 0% lost",
        "n2 by vxlan: up, MTU 1450, 0.31 ms, 0% lost",
        "n3 by gre: down",
        "n3 by wireguard (chosen): not probed yet",
    ]
