"""Connections that labels ask for: granted within an account, gone with what asked for them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import pytest

from netctl.broker import state, wishing
from netctl.broker.commands import AttachContainer, SyncContainers
from netctl.errors import NotFoundError
from tests.support.broker import World, facts
from tests.support.counting import counting

DOCKER = ("process", "docker")
Step = Callable[[World], object]


@pytest.fixture
def world() -> World:
    """n1 and n2 with docker, bound to admin; n3 with docker, bound to nobody; and bob."""
    made = World()
    made.user("bob")
    for number in (1, 2, 3):
        made.node(f"n{number}", facts(number, engines=DOCKER))
    made.bind("n1", "admin")
    made.bind("n2", "admin")
    return made


def wished(world: World) -> set[str]:
    names = {i: c.name for i, c in world.snapshot.containers.items()}
    return {
        f"{names[c.source]}>{names[c.destination]} {c.port}"
        for c in world.snapshot.connections.values()
        if c.wished
    }


STEPS: dict[str, Step] = {
    "web": lambda w: w.attach("n1", "web", project="shop", service="web", wishes=("api:8000",)),
    "api": lambda w: w.attach("n1", "api", project="shop", service="api", wishes=("db:5432", "cache:53/udp")),
    "db": lambda w: w.run("db", "n3"),
    "cache": lambda w: w.attach("n2", "cache"),
    "bind": lambda w: w.bind("n1", "admin"),
}


@pytest.mark.parametrize("order", list(permutations(STEPS)), ids="-".join)
def test_wishes_are_granted_whatever_comes_first(order: tuple[str, ...]) -> None:
    world = World()
    for number in (1, 2, 3):
        world.node(f"n{number}", facts(number, engines=DOCKER))
    world.bind("n2", "admin")
    for name in order:
        STEPS[name](world)
    assert wished(world) == {"web>api 8000/tcp", "api>db 5432/tcp", "api>cache 53/udp"}
    assert world.permits("n3") == {"api>db 5432/tcp"}


def test_a_service_is_one_of_the_same_project_on_the_same_node(world: World) -> None:
    world.attach("n1", "a-web-1", project="a", service="web", wishes=("db:1",))
    for name, node, project in (
        ("a-db-1", "n1", "a"), ("a-db-2", "n1", "a"), ("b-db-1", "n1", "b"), ("c-db", "n2", "a"),
    ):  # fmt: skip
        world.attach(node, name, project=project, service="db")
    assert wished(world) == {"a-web-1>a-db-1 1/tcp", "a-web-1>a-db-2 1/tcp"}


def test_a_container_without_project_means_names_only(world: World) -> None:
    world.attach("n1", "one", service="db")
    world.attach("n1", "web", wishes=("db:1",))
    assert wished(world) == set()
    world.attach("n2", "db")
    assert wished(world) == {"web>db 1/tcp"}


def test_no_wish_reaches_another_account(world: World) -> None:
    world.run("db", "n2", account="bob")
    world.bind("n3", "bob")
    world.attach("n3", "cache")
    world.attach("n1", "web", wishes=("db:1", "cache:1"))
    assert wished(world) == set()
    (cache, db) = wishing.explain(world.snapshot, world.container("web"))
    assert (cache.granted, db.granted) == (False, False)
    assert "no container of admin" in db.reason
    world.bind("n1", "bob")
    assert wished(world) == {"web>db 1/tcp", "web>cache 1/tcp"}


def test_on_an_unbound_node_nothing_is_granted(world: World) -> None:
    world.attach("n3", "web", wishes=("db:1",))
    world.attach("n3", "db")
    assert wished(world) == set()
    (view,) = wishing.explain(world.snapshot, world.container("web"))
    assert "netctl node bind n3" in view.reason


def test_neither_itself_nor_everything_can_be_wished_for(world: World) -> None:
    world.attach("n1", "web", project="p", service="web", wishes=("web:1",))
    assert wished(world) == set()
    world.attach("n1", "other", wishes=("web:80", "web:icmp"))
    assert wished(world) == {"other>web 80/tcp", "other>web icmp"}


def test_binding_to_another_account_takes_what_labels_made_and_leaves_what_users_made(world: World) -> None:
    world.run("db", "n2")
    world.attach("n1", "web", wishes=("db:1", "db:2"))
    world.attach("n2", "log", wishes=("web:514",))
    world.connect("web", "db", "2", "3")
    assert wished(world) == {"web>db 1/tcp", "log>web 514/tcp"}
    decision = world.bind("n1", "bob")
    assert decision.nodes == {"n1", "n2"}
    assert wished(world) == set()
    assert world.permits("n1") == {"web>db 2/tcp", "web>db 3/tcp"}
    assert world.container("web").account == "bob"
    assert (world.container("db").account, world.container("log").account) == ("admin", "admin")
    world.bind("n1", "admin")
    assert wished(world) == {"web>db 1/tcp", "log>web 514/tcp"}


def test_unbinding_takes_back_all_that_labels_made(world: World) -> None:
    world.attach("n1", "web", wishes=("db:1",))
    world.attach("n1", "db")
    world.bind("n1", None)
    assert wished(world) == set()
    assert world.container("web").account == ""
    before = world.snapshot
    world.bind("n1", None)
    assert world.snapshot is before
    with pytest.raises(NotFoundError, match="no account is called 'eve'"):
        world.bind("n1", "eve")


def test_wishes_go_with_either_end(world: World) -> None:
    for gone in ("web", "db"):
        world.attach("n1", "web", wishes=("db:1",))
        world.attach("n2", "db")
        assert wished(world) == {"web>db 1/tcp"}
        world.detach(gone)
        assert not world.snapshot.connections
        world.do(SyncContainers("n1", ()))
        world.do(SyncContainers("n2", ()))


def test_fewer_wishes_and_other_names_take_back_what_nothing_asks_for(world: World) -> None:
    world.attach("n1", "web", wishes=("db:1", "db:2"))
    world.attach("n2", "db")
    world.attach("n1", "web", wishes=("db:2",))
    assert wished(world) == {"web>db 2/tcp"}
    world.attach("n2", "db", name="base")
    assert wished(world) == set()
    world.attach("n1", "web", wishes=("base:2",))
    assert wished(world) == {"web>base 2/tcp"}


def test_a_restart_neither_grants_nor_takes_back(world: World) -> None:
    world.attach("n1", "web", wishes=("db:1", "db:2"))
    world.attach("n2", "db")
    message = world.disconnect("web", "db", "1").message
    assert "label of web asks for it" in message
    world.attach("n1", "web", "")
    world.attach("n1", "web", "10.1.0.40")
    world.attach("n2", "db", "10.2.0.40")
    assert wished(world) == {"web>db 2/tcp"}
    gone, _ = wishing.explain(world.snapshot, world.container("web"))
    assert (gone.granted, gone.reason) == (
        False, "disconnected from db by a user: `netctl connect` opens it again",
    )  # fmt: skip
    world.detach("db")
    world.attach("n2", "db")
    assert wished(world) == {"web>db 1/tcp", "web>db 2/tcp"}


def test_what_a_user_connects_stays_when_the_wish_goes(world: World) -> None:
    world.attach("n1", "web", wishes=("db:1",))
    granted = world.attach("n2", "db")
    decision = world.connect("web", "db", "1")
    assert (decision.deltas, decision.message) == ({}, "connected already")
    assert (decision.nodes, decision.revision) == ({"n1", "n2"}, granted.revision)
    world.attach("n1", "web", wishes=())
    assert world.permits("n1") == {"web>db 1/tcp"}
    assert wished(world) == set()


def test_labels_cannot_fill_the_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wishing, "MOST", 2)
    world.attach("n2", "db")
    world.attach("n1", "web", wishes=("db:1", "db:2", "db:3"))
    assert wished(world) == {"web>db 1/tcp", "web>db 2/tcp"}
    views = wishing.explain(world.snapshot, world.container("web"))
    assert [(view.port, view.granted) for view in views] == [
        ("1/tcp", True), ("2/tcp", True), ("3/tcp", False),
    ]  # fmt: skip
    assert "2 connections already" in views[2].reason


def test_a_report_costs_what_it_changes_however_many_containers_there_are(world: World) -> None:
    for number in range(300):
        world.attach("n2", f"c{number}", wishes=(f"nobody{number}:1",), project="p", service=f"s{number}")
    world.attach("n1", "db")
    reported = world.foreign("db")
    assert reported is not None
    world.detach("db")
    world.acknowledge()
    counted, count = counting(world.snapshot)
    state.decide(counted, AttachContainer("n1", reported), 1.0)
    assert 0 < count.entries < 100
