from __future__ import annotations

import attrs
import pytest

from netctl.broker.commands import AddConnections, Expire
from netctl.broker.connecting import next_expiry
from netctl.broker.snapshot import Put
from netctl.errors import InvalidError, NotFoundError
from netctl.model import ANY_PORT
from tests.support.broker import World


@pytest.fixture
def world() -> World:
    made = World()
    for name in ("n1", "n2", "n3"):
        made.node(name)
    made.run("web", "n1")
    made.run("db", "n2")
    made.run("api", "n3")
    made.run("log", "n1")
    return made


def test_a_connection_reaches_both_ends_and_nobody_else(world: World) -> None:
    decision = world.connect("web", "db", "5432/tcp", "53/udp", "icmp")
    assert decision.nodes == {"n1", "n2"}
    assert world.permits("n1") == world.permits("n2") == {
        "web>db 5432/tcp", "web>db 53/udp", "web>db icmp",
    }  # fmt: skip
    assert world.permits("n3") == set()


def test_ends_on_one_node_concern_that_node_once(world: World) -> None:
    decision = world.connect("web", "log", "80")
    assert decision.nodes == {"n1"}
    assert len(decision.deltas["n1"].permits) == 1


def test_connecting_again_changes_nothing_and_waits_for_the_same(world: World) -> None:
    first = world.connect("web", "db", "80", "80", "80/tcp")
    assert len(first.changes) == 1
    second = world.connect("web", "db", "443")
    for ports, revision in ((["80"], first.revision), (["80", "443"], second.revision)):
        again = world.connect("web", "db", *ports)
        assert (again.revision, again.nodes, again.changes, again.deltas) == (
            revision, {"n1", "n2"}, (), {},
        )  # fmt: skip


def test_only_the_new_ports_are_told(world: World) -> None:
    world.connect("web", "db", "80")
    decision = world.connect("web", "db", "80", "443")
    assert [str(p.port) for p in decision.deltas["n1"].permits] == ["443/tcp"]
    assert decision.revision == world.snapshot.revision


def test_without_ports_a_pair_has_no_direction(world: World) -> None:
    first = world.connect("web", "db")
    again = world.connect("db", "web")
    assert (again.revision, again.changes) == (first.revision, ())
    (connection,) = world.snapshot.connections.values()
    assert connection.source < connection.destination
    world.disconnect("db", "web")
    assert not world.snapshot.connections


def test_with_ports_it_has_one(world: World) -> None:
    world.connect("web", "db", "80")
    assert world.connect("db", "web", "80").changes
    world.disconnect("db", "web", "80")
    assert world.permits("n2") == {"web>db 80/tcp"}


def test_disconnect_removes_one_direction_and_the_portless_one(world: World) -> None:
    world.connect("web", "db", "80", "443")
    world.connect("db", "web", "22")
    world.connect("web", "db")
    world.connect("web", "api", "80")
    assert world.disconnect("web", "db").nodes == {"n1", "n2"}
    assert world.permits("n1") == {"db>web 22/tcp", "web>api 80/tcp"}


def test_disconnect_with_ports_removes_those(world: World) -> None:
    world.connect("web", "db", "80", "443", "icmp")
    world.connect("web", "db")
    world.disconnect("web", "db", "80", "icmp")
    assert {str(key[2]) for key in world.snapshot.connections} == {"443/tcp", "all"}


def test_removing_what_is_not_there_is_refused_whole(world: World) -> None:
    world.connect("web", "db", "80")
    before = world.snapshot
    with pytest.raises(NotFoundError, match="web is not connected to db with port icmp, 81/tcp"):
        world.disconnect("web", "db", "80", "81", "icmp")
    with pytest.raises(NotFoundError, match="db is not connected to web") as caught:
        world.disconnect("db", "web")
    assert caught.value.remedy == "there is web to db with port 80/tcp"
    with pytest.raises(NotFoundError, match="netctl connections"):
        world.disconnect("web", "api")
    assert world.snapshot is before


def test_nobody_is_connected_to_itself(world: World) -> None:
    for refused in (world.connect, world.disconnect):
        with pytest.raises(InvalidError, match="itself"):
            refused("web", "web", "80")


def test_an_any_port_among_others_is_the_portless_connection(world: World) -> None:
    world.do(AddConnections("admin", "db", "web", (ANY_PORT,)))
    assert not world.connect("web", "db").changes


def _let_end(world: World, at: float) -> None:
    """Give every connection an end, as a stored record may have one."""
    for identity, record in list(world.rows.items()):
        if record in world.snapshot.connections.values():
            world.rows[identity] = attrs.evolve(record, expires_at=at)
    world.snapshot = world.reloaded()
    world.held_by_nodes = {name: world.state(name) for name in world.snapshot.nodes}


def test_a_connection_past_its_end_is_dropped(world: World) -> None:
    world.connect("web", "db", "80")
    _let_end(world, world.now + 10)
    world.connect("web", "db", "443")
    assert next_expiry(world.snapshot) == world.now + 10
    assert not world.do(Expire()).changes
    world.now += 10
    assert world.do(Expire()).nodes == {"n1", "n2"}
    assert world.permits("n1") == {"web>db 443/tcp"}
    assert next_expiry(world.snapshot) is None


def test_connecting_anew_takes_the_end_away(world: World) -> None:
    world.connect("web", "db", "80")
    _let_end(world, world.now + 10)
    decision = world.connect("web", "db", "80")
    assert [type(change) for change in decision.changes] == [Put]
    (permit,) = world.state("n1").permits
    assert permit.expires_at is None
    assert next_expiry(world.snapshot) is None
