"""An address or block that was freed is not used again before every node concerned has said so."""

from __future__ import annotations

import pytest

from netctl.broker.commands import Acknowledge
from netctl.errors import ExhaustedError, RefusedError
from tests.support.broker import World


@pytest.fixture
def world() -> World:
    """Three nodes with six containers' room each, and one container on n1 and on n2."""
    made = World("10.0.0.0/24", 29)
    for name in ("n1", "n2", "n3"):
        made.node(name)
    made.run("a", "n1")
    made.run("b", "n2")
    made.acknowledge()
    return made


def test_an_address_waits_for_its_node_and_those_it_was_connected_to(world: World) -> None:
    address = world.container("a").address
    world.connect("a", "b", "80")
    world.rm("a")
    assert world.held() == {address: {"n1", "n2"}}
    world.acknowledge("n3")
    world.acknowledge("n1")
    assert world.held() == {address: {"n2"}}
    world.acknowledge("n2")
    assert world.held() == {}


def test_a_full_block_gives_an_address_again_only_after_the_acknowledgement(world: World) -> None:
    for name in ("c", "d", "e", "f"):
        world.run(name, "n1")
    freed = world.container("a").address
    world.rm("a")
    with pytest.raises(ExhaustedError, match="not yet acknowledged"):
        world.run("g", "n1")
    world.acknowledge("n1")
    world.run("g", "n1")
    assert world.container("g").address == freed


def test_a_node_that_missed_an_earlier_disconnect_is_waited_for(world: World) -> None:
    """n2 was told to close a to b and has not said so: a packet of a's successor could still pass there."""
    address = world.container("a").address
    world.connect("a", "b", "80")
    world.acknowledge()
    missed = world.disconnect("a", "b").revision
    world.acknowledge("n1")
    world.rm("a")
    assert world.held() == {address: {"n1", "n2"}}
    world.acknowledge("n1")
    assert world.held() == {address: {"n2"}}
    # The removal itself changed nothing for n2, so the revision of the disconnect is its latest.
    world.do(Acknowledge("n2", missed))
    assert world.held() == {}


def test_a_node_that_acknowledged_the_disconnect_is_not(world: World) -> None:
    address = world.container("a").address
    world.connect("a", "b", "80")
    world.disconnect("a", "b")
    world.acknowledge()
    world.rm("a")
    assert world.held() == {address: {"n1"}}


def test_an_older_acknowledgement_frees_nothing(world: World) -> None:
    before = world.snapshot.revision
    world.rm("a")
    held = world.held()
    world.do(Acknowledge("n1", before))
    assert world.held() == held


def test_after_a_restart_nobody_is_trusted_to_have_acknowledged(world: World) -> None:
    address = world.container("a").address
    world.snapshot = world.reloaded()
    loaded = world.snapshot.revision
    world.do(Acknowledge("n1", loaded))
    world.rm("a")
    assert world.held() == {address: {"n1", "n2", "n3"}}
    world.do(Acknowledge("n2", loaded))
    world.do(Acknowledge("n3", loaded))
    assert world.held() == {address: {"n1"}}


def test_what_came_after_the_restart_waits_for_its_own_nodes_only(world: World) -> None:
    world.snapshot = world.reloaded()
    world.run("new", "n3")
    address = world.container("new").address
    world.rm("new")
    assert world.held() == {address: {"n3"}}


def test_what_is_held_survives_a_restart(world: World) -> None:
    world.rm("a")
    held = world.held()
    world.snapshot = world.reloaded()
    assert world.held() == held
    world.acknowledge("n1")
    assert world.held() == {}


def test_a_fenced_node_is_waited_for_no_longer(world: World) -> None:
    address = world.container("a").address
    world.connect("a", "b", "80")
    world.rm("a")
    world.rm_node("n2", force=True, reachable=False)
    assert world.held()[address] == {"n1"}


def test_a_nodes_second_life_under_its_name_owes_nothing(world: World) -> None:
    address = world.container("b").address
    world.connect("a", "b", "80")
    world.disconnect("a", "b")
    world.rm_node("n1", force=True, reachable=False)
    world.node("n1")
    world.rm("b")
    assert "n2" in world.held()[address]


def test_a_block_waits_for_every_node(world: World) -> None:
    block = world.snapshot.nodes["n3"].block
    world.rm_node("n3")
    world.acknowledge("n3")
    world.node("n4")
    assert world.snapshot.nodes["n4"].block != block
    world.acknowledge("n1", "n2")
    assert world.held() == {}
    world.node("n5")
    assert world.snapshot.nodes["n5"].block == block


def test_an_acknowledgement_bumps_no_revision_and_is_stored_only_if_it_frees(world: World) -> None:
    world.rm("a")
    revision = world.snapshot.revision
    decision = world.do(Acknowledge("n1", revision))
    assert decision.changes
    assert world.snapshot.revision == revision
    again = world.snapshot
    assert world.do(Acknowledge("n1", revision)).snapshot is again


def test_a_revision_of_the_future_and_a_forgotten_node(world: World) -> None:
    with pytest.raises(RefusedError, match="ahead of"):
        world.do(Acknowledge("n1", world.snapshot.revision + 1))
    before = world.snapshot
    assert world.do(Acknowledge("n9", 1)).snapshot is before
