from __future__ import annotations

import pytest

from netctl.broker import placement
from netctl.broker.commands import AddContainer, SetDraining
from netctl.errors import ExhaustedError, NetctlError, NotFoundError, RefusedError, UnavailableError
from tests.support.broker import WORKLOAD, World, facts


@pytest.fixture
def world() -> World:
    made = World()
    for name in ("n1", "n2", "n3"):
        made.node(name)
    return made


def _run(world: World, name: str, node: str | None, *ready: str) -> str:
    world.do(AddContainer(world.token(), "admin", name, WORKLOAD, node, frozenset(ready)))
    return world.container(name).node


def test_containers_spread_and_ties_go_by_name(world: World) -> None:
    world.run("z", "n1")
    placed = [_run(world, name, None, "n1", "n2", "n3") for name in "abcde"]
    assert placed == ["n2", "n3", "n1", "n2", "n3"]


def test_only_ready_nodes_are_chosen(world: World) -> None:
    assert [_run(world, name, None, "n2") for name in "ab"] == ["n2", "n2"]


def test_draining_and_removing_nodes_and_those_without_the_engine_are_passed_over(world: World) -> None:
    world.do(SetDraining("n1", draining=True))
    world.rm_node("n2")
    world.node("n0", facts(9, engines=("docker",)))
    assert _run(world, "a", None, "n0", "n1", "n2", "n3") == "n3"
    world.do(SetDraining("n1", draining=False))
    assert _run(world, "b", None, "n0", "n1", "n2", "n3") == "n1"


@pytest.mark.parametrize(
    ("node", "ready", "error", "said"),
    [
        ("n9", {"n1"}, NotFoundError, "no node is called 'n9'"),
        ("n1", {"n2"}, UnavailableError, "n1 is unreachable"),
        (None, set(), UnavailableError, "no node is reachable"),
        ("drained", {"drained"}, RefusedError, "drained is draining"),
        (None, {"drained"}, RefusedError, "draining or being removed"),
        ("plain", {"plain"}, RefusedError, "does not offer the process engine"),
        (None, {"plain"}, RefusedError, "offers the process engine"),
        ("gone", {"gone"}, RefusedError, "gone is being removed"),
    ],
)
def test_why_there_is_no_place_is_said(
    world: World, node: str | None, ready: set[str], error: type[NetctlError], said: str
) -> None:
    world.node("drained", facts(4))
    world.do(SetDraining("drained", draining=True))
    world.node("plain", facts(5, engines=()))
    world.node("gone", facts(6))
    world.rm_node("gone")
    before = world.snapshot
    with pytest.raises(error, match=said) as caught:
        _run(world, "a", node, *ready)
    assert caught.value.remedy
    assert world.snapshot is before


def test_without_nodes_the_next_step_is_named() -> None:
    with pytest.raises(RefusedError, match="no node has joined"):
        World().run("a")


def test_a_full_bridge_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "BRIDGE_PORTS", 1)
    world.run("a", "n1")
    with pytest.raises(ExhaustedError, match="bridge of node n1 is full"):
        world.run("b", "n1")
    assert _run(world, "b", None, "n1", "n2") == "n2"
    with pytest.raises(ExhaustedError, match="bridge of every suitable node"):
        _run(world, "c", None, "n1", "n2")
