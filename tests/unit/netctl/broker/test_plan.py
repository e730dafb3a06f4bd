from __future__ import annotations

import pytest

from netctl.broker import plan, state
from netctl.broker.commands import (
    Acknowledge,
    AddConnections,
    AddContainer,
    Command,
    DropConnections,
    DropContainer,
    SetWanted,
)
from netctl.broker.snapshot import Account, Connection, Container, Node, Record, Snapshot
from netctl.delta import apply_delta, digest
from netctl.errors import NotFoundError
from netctl.model import NodeState, Permit, Port
from tests.support.broker import WORKLOAD, World, facts
from tests.support.counting import counting

CONNECTIONS = 10_000


def _big() -> Snapshot:
    """A hub on n1 with 10,000 connections to containers on n2 and, among others, `a` and `b`."""
    records: list[Record] = [Account("admin", "k", 0.0)]
    records += [
        Node("n1", 1, "10.1.0.0/16", "k1", facts(1)),
        Node("n2", 2, "10.2.0.0/16", "k2", facts(2)),
    ]

    def container(number: int, name: str, node: str, address: str) -> Container:
        identity = f"{number:032x}"
        return Container(identity, "admin", name, node, address, WORKLOAD, "running", 1, 0.0, 5)

    records.append(container(0, "hub", "n1", "10.1.0.2"))
    records.append(container(1, "lonely", "n1", "10.1.0.3"))
    for number in range(2, CONNECTIONS + 2):
        address = f"10.2.{number // 256}.{number % 256}"
        records.append(container(number, f"c{number}", "n2", address))
        key = (f"{number:032x}", f"{0:032x}", Port("tcp", 80))
        records.append(Connection(*key, revision=5, created_at=0.0, created_by="admin"))
    return state.load(1, 5, "10.0.0.0/8", 16, (), records)


@pytest.fixture(scope="module")
def big() -> Snapshot:
    return _big()


@pytest.mark.parametrize(
    "command",
    [
        AddConnections("admin", "c7", "hub", (Port("tcp", 443),)),
        AddConnections("admin", "c7", "hub", (Port("tcp", 80),)),
        AddConnections("admin", "hub", "lonely", ()),
        DropConnections("admin", "c7", "hub", (Port("tcp", 80),)),
        DropConnections("admin", "c7", "hub", ()),
        SetWanted("admin", "hub", running=False),
        AddContainer("f" * 32, "admin", "new", WORKLOAD, None, frozenset({"n1", "n2"})),
        DropContainer("admin", "lonely", force=True, active=True),
        DropContainer("admin", "c7", force=True, active=True),
        Acknowledge("n1", 5),
    ],
    ids=lambda command: type(command).__name__,
)
def test_a_change_costs_what_changes_however_much_there_is(big: Snapshot, command: Command) -> None:
    counted, count = counting(big)
    state.decide(counted, command, 1.0)
    assert 0 < count.entries < 100


def test_the_count_would_notice_a_look_at_everything(big: Snapshot) -> None:
    counted, count = counting(big)
    plan.node_state(counted, "n1")
    assert count.entries > CONNECTIONS


def test_a_delta_says_no_more_than_what_changed(big: Snapshot) -> None:
    connect = AddConnections("admin", "c7", "hub", (Port("tcp", 443),))
    delta = state.decide(big, connect, 1.0).deltas["n1"]
    assert delta.permits == (Permit("10.2.0.7", "10.1.0.2", Port("tcp", 443)),)
    assert (delta.header, delta.peers, delta.containers, delta.permits_removed) == (None, (), (), ())


def test_a_large_state_changed_by_deltas_has_the_whole_ones_digest(big: Snapshot) -> None:
    disconnect = DropConnections("admin", "c7", "hub", ())
    decision = state.decide(big, disconnect, 1.0)
    changed = apply_delta(plan.node_state(big, "n1"), decision.deltas["n1"])
    assert digest(changed) == digest(plan.node_state(decision.snapshot, "n1"))
    assert len(changed.permits) == CONNECTIONS - 1


def test_a_node_joining_costs_each_other_node_one_peer() -> None:
    world = World()
    for number in range(1, 6):
        world.node(f"n{number}")
    decision = world.node("n6")
    assert {len(delta.peers) for delta in decision.deltas.values()} == {1}


def test_a_whole_state() -> None:
    world = World()
    world.node("n1")
    world.node("n2")
    world.run("web", "n1")
    world.run("db", "n2")
    world.connect("web", "db", "5432")
    web = world.container("web")
    found = world.state("n1")
    assert (found.name, found.block, found.supernet) == ("n1", "10.1.0.0/16", "10.0.0.0/8")
    assert (found.encapsulation, found.mtu) == ("gre", 1476)
    assert [c.name for c in found.containers.values()] == ["web"]
    assert set(found.containers) == {web.id}
    assert found.permits == {Permit("10.1.0.2", "10.2.0.2", Port("tcp", 5432))}


def test_a_removing_node_wants_nothing_of_ours() -> None:
    world = World()
    world.node("n1")
    world.rm_node("n1")
    wanted = NodeState("n1", None, "10.0.0.0/8", "gre", 1476)
    assert world.state("n1") == wanted


def test_an_unknown_node_has_no_state() -> None:
    with pytest.raises(NotFoundError):
        plan.node_state(World().snapshot, "n1")
