from __future__ import annotations

import pytest

from netctl.broker.commands import AddContainer, DropContainer, SetWanted
from netctl.errors import ExistsError, InvalidError, NotFoundError, RefusedError, UnauthorisedError
from tests.support.broker import WORKLOAD, World


@pytest.fixture
def world() -> World:
    made = World()
    for name in ("n1", "n2", "n3"):
        made.node(name)
    return made


def test_running_a_container_concerns_its_node_alone(world: World) -> None:
    decision = world.run("web", "n2")
    assert decision.nodes == {"n2"}
    assert decision.message == "web runs on n2 at 10.2.0.2"
    (placed,) = decision.deltas["n2"].containers
    assert (placed.name, placed.address, placed.wanted, placed.generation) == (
        "web", "10.2.0.2", "running", 1,
    )  # fmt: skip


def test_a_name_is_taken_in_every_account(world: World) -> None:
    world.user("eve")
    world.run("web")
    with pytest.raises(ExistsError, match="called web already"):
        world.run("web", account="eve")
    with pytest.raises(UnauthorisedError, match="no account"):
        world.run("db", account="nobody")
    with pytest.raises(InvalidError, match="no valid name"):
        world.run("-db")
    taken = world.container("web").id
    with pytest.raises(ExistsError, match="this id"):
        world.do(AddContainer(taken, "admin", "db", WORKLOAD, None, frozenset({"n1"})))


def test_whose_container_is_meant_does_not_matter_while_names_are_unique(world: World) -> None:
    world.user("eve")
    world.run("web", account="eve")
    assert world.do(SetWanted("admin", "web", running=False)).changes
    assert world.container("web").account == "eve"


def test_every_start_is_a_new_generation_and_a_second_stop_changes_nothing(world: World) -> None:
    world.run("web", "n1")
    stopped = world.do(SetWanted("admin", "web", running=False))
    assert (world.container("web").wanted, world.container("web").generation) == ("stopped", 1)
    world.run("other", "n1")
    again = world.do(SetWanted("admin", "web", running=False))
    assert (again.revision, again.nodes, again.changes) == (stopped.revision, {"n1"}, ())
    for generation in (2, 3):
        assert world.do(SetWanted("admin", "web", running=True)).nodes == {"n1"}
        assert (world.container("web").wanted, world.container("web").generation) == ("running", generation)


def test_an_active_container_goes_only_by_force(world: World) -> None:
    world.run("web")
    with pytest.raises(RefusedError, match="web is not known to have ended"):
        world.do(DropContainer("admin", "web", force=False, active=True))
    world.do(DropContainer("admin", "web", force=False, active=False))
    assert "web" not in world.snapshot.bare_names


def test_removing_takes_all_connections_along_and_a_new_one_inherits_none(world: World) -> None:
    world.run("web", "n1")
    world.run("db", "n2")
    world.run("api", "n3")
    world.connect("web", "db", "5432")
    world.connect("api", "web")
    world.connect("api", "db", "icmp")
    decision = world.rm("web")
    assert decision.nodes == {"n1", "n2", "n3"}
    world.run("web", "n1")
    assert world.permits("n1") == set()
    assert world.permits("n2") == world.permits("n3") == {"api>db icmp"}


def test_unknown_names_give_near_ones(world: World) -> None:
    for name in ("web-1", "web-2", "database"):
        world.run(name)
    with pytest.raises(NotFoundError, match=r"did you mean web-[12] or web-[12]") as caught:
        world.rm("web-3")
    assert "database" not in caught.value.remedy
    with pytest.raises(NotFoundError, match="netctl ps"):
        world.rm("x")
    with pytest.raises(NotFoundError, match="did you mean n"):
        world.run("c", "n4")
