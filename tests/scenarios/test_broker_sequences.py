"""Sequences of commands as people give them, and what each node is to be afterwards.

What is wanted depends on what is recorded, never on the way there: sequences are turned round, squashed
and taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import pytest

from netctl.broker.commands import SetDraining, SetWanted
from netctl.delta import digest
from netctl.errors import NotFoundError
from netctl.model import NodeState
from tests.support.broker import World

Step = Callable[[World], object]


def _world() -> World:
    """Three nodes; web and log on n1, db on n2, api on n3."""
    world = World()
    for name in ("n1", "n2", "n3"):
        world.node(name)
    for name, node in (("web", "n1"), ("log", "n1"), ("db", "n2"), ("api", "n3")):
        world.run(name, node)
    world.acknowledge()
    return world


def _states(world: World) -> dict[str, NodeState]:
    return {name: world.state(name) for name in world.snapshot.nodes}


def _after(steps: Sequence[Step]) -> dict[str, NodeState]:
    world = _world()
    for step in steps:
        step(world)
    return _states(world)


CONNECTS: dict[str, tuple[Step, Step]] = {
    "a port across nodes": (
        lambda w: w.connect("web", "db", "5432"),
        lambda w: w.disconnect("web", "db", "5432"),
    ),
    "everything across nodes": (lambda w: w.connect("db", "api"), lambda w: w.disconnect("api", "db")),
    "a port on one node": (
        lambda w: w.connect("web", "log", "514/udp"),
        lambda w: w.disconnect("web", "log", "514/udp"),
    ),
    "ping back": (lambda w: w.connect("db", "web", "icmp"), lambda w: w.disconnect("db", "web", "icmp")),
    "a drain": (
        lambda w: w.do(SetDraining("n2", draining=True)),
        lambda w: w.do(SetDraining("n2", draining=False)),
    ),
}
"""What can be done in any order, each with what takes it back."""

DO = [do for do, _ in CONNECTS.values()]
UNDO = [undo for _, undo in CONNECTS.values()]


def test_reversed_the_same_commands_lead_to_the_same_states() -> None:
    assert _after(DO) == _after(DO[::-1])


def test_doing_everything_twice_is_doing_it_once() -> None:
    assert _after(DO) == _after([*DO, *DO])


def test_squashed_into_one_command_or_one_by_one() -> None:
    one_by_one: list[Step] = [
        lambda w: w.connect("web", "db", "80"),
        lambda w: w.connect("web", "db", "443"),
        lambda w: w.connect("web", "db", "icmp"),
    ]
    assert _after(one_by_one) == _after([lambda w: w.connect("web", "db", "443", "icmp", "80")])


@pytest.mark.parametrize("turn", [1, -1], ids=["in the same order", "in the opposite order"])
def test_taken_back_nothing_is_left(turn: int) -> None:
    untouched = _after([])
    done = _after(DO)
    assert done != untouched
    assert _after([*DO, *UNDO[::turn]]) == untouched


def test_detours_leave_no_trace_in_the_digest() -> None:
    straight, winding = _world(), _world()
    straight.connect("web", "db", "80")
    winding.connect("web", "db")
    winding.connect("api", "db", "1")
    winding.connect("web", "db", "80", "81")
    winding.disconnect("web", "db", "81")
    winding.disconnect("api", "db")
    with pytest.raises(NotFoundError):
        winding.disconnect("db", "web", "80")
    winding.connect("db", "web", "22")
    winding.disconnect("db", "web")  # with it goes the portless one
    assert winding.snapshot.revision > straight.snapshot.revision
    for name in ("n1", "n2", "n3"):
        assert digest(winding.state(name)) == digest(straight.state(name))


def test_a_node_that_comes_and_goes_leaves_the_others_as_they_were() -> None:
    world = _world()
    before = _states(world)
    world.node("n9")
    world.run("guest", "n9")
    world.connect("guest", "web", "80")
    assert "n9" in world.state("n1").peers
    assert world.permits("n1") == {"guest>web 80/tcp"}
    world.rm_node("n9", force=True)
    world.acknowledge()
    assert _states(world) == before
    assert world.held() == {}


def test_two_hosts_from_nothing_to_a_connection_and_back() -> None:
    world = World()
    world.node("one")
    world.node("two", attrs.evolve(world.snapshot.nodes["one"].facts, underlay="192.168.0.9"))
    assert world.run("web").message == "web runs on one at 10.1.0.2"
    assert world.run("db").message == "db runs on two at 10.2.0.2"
    assert world.connect("web", "db", "5432/tcp").nodes == {"one", "two"}
    assert world.permits("one") == world.permits("two") == {"web>db 5432/tcp"}
    assert world.disconnect("web", "db").nodes == {"one", "two"}
    assert world.permits("one") == world.permits("two") == set()


def test_a_container_removed_and_made_again_has_a_new_address_and_no_connections() -> None:
    world = _world()
    world.connect("web", "db")
    old = world.container("db")
    world.rm("db")
    world.run("db", "n2")
    new = world.container("db")
    assert new.id != old.id
    assert new.address != old.address
    assert world.permits("n1") == world.permits("n2") == set()


def test_the_broker_restarts_between_any_two_commands() -> None:
    plain, restarting = _world(), _world()
    for step in (*DO, lambda w: w.rm("log"), lambda w: w.do(SetWanted("admin", "web", running=False))):
        step(plain)
        step(restarting)
        restarting.snapshot = restarting.reloaded()
    assert _states(plain) == _states(restarting)
    assert plain.snapshot.revision == restarting.snapshot.revision


def test_a_node_away_while_much_happens_owes_one_acknowledgement() -> None:
    world = _world()
    world.connect("web", "db", "80")
    freed = world.container("web").address
    world.disconnect("web", "db")
    world.rm("web")
    world.rm_node("n3", force=True)
    world.acknowledge("n1", "n3")
    assert world.held() == {freed: {"n2"}, "10.3.0.0/16": {"n2"}}
    world.acknowledge("n2")
    assert world.held() == {}
