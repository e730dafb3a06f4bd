from __future__ import annotations

import attrs
import pytest

from netctl.broker import views
from netctl.broker.commands import SetDraining, SetWanted
from netctl.broker.views import Live, LiveNode
from netctl.errors import NotFoundError
from netctl.model import ContainerRunState, ContainerStatus
from netctl.wire.messages import NodeError
from tests.support.broker import World, facts


@pytest.fixture
def world() -> World:
    made = World()
    made.node("n1", facts(1, version="0.1.0"))
    made.node("n2")
    made.run("web", "n1")
    made.run("db", "n2")
    return made


def _live(world: World, *connected: str) -> Live:
    revision = world.snapshot.revision
    return Live(nodes={name: LiveNode(connected=True, applied=revision) for name in connected})


def test_a_node_is_one_word_the_gravest(world: World) -> None:
    live = _live(world, "n1")

    def word(live: Live) -> str:
        return views.node_state_word(world.snapshot.nodes["n1"], live)

    assert word(live) == "ready"
    world.do(SetDraining("n1", draining=True))
    assert word(live) == "draining"
    assert word(Live()) == "unreachable"
    world.rm_node("n1", force=True)
    assert word(live) == word(Live()) == "removing"


def test_nodes_are_listed_by_name(world: World) -> None:
    world.node("n0", facts(9))
    rows = views.node_list(world.snapshot, _live(world, "n1")).nodes
    assert [row.name for row in rows] == ["n0", "n1", "n2"]
    row = rows[1]
    assert (row.block, row.underlay, row.state, row.encapsulation, row.containers, row.version) == (
        "10.1.0.0/16", "192.168.0.2", "ready", "gre", 1, "0.1.0",
    )  # fmt: skip
    assert (row.applied, rows[2].applied) == (world.snapshot.revision, 0)


def test_a_node_in_detail(world: World) -> None:
    world.node("n3", facts(3, encapsulations=("vxlan",)))
    error = NodeError("web", "no such program")
    live = Live(nodes={"n1": LiveNode(connected=True, errors=(error,), last_seen=7.0)})
    detail = views.node_detail(world.snapshot, "n1", live)
    assert detail.peers == {"n2": "gre", "n3": "vxlan"}
    assert (detail.errors, detail.last_seen, detail.facts) == (
        (error,), 7.0, world.snapshot.nodes["n1"].facts,
    )  # fmt: skip
    with pytest.raises(NotFoundError):
        views.node_detail(world.snapshot, "x", live)


@pytest.mark.parametrize(
    ("reported", "generation", "wanted", "connected", "shown"),
    [
        (None, 0, "running", True, "creating"),
        (None, 0, "running", False, "unknown"),
        ("running", 2, "running", True, "running"),
        ("running", 2, "running", False, "unknown"),
        ("running", 1, "running", True, "creating"),
        ("exited", 2, "running", True, "exited"),
        ("exited", 2, "running", False, "exited"),
        ("exited", 1, "running", True, "creating"),
        ("exited", 1, "running", False, "unknown"),
        ("failed", 2, "running", True, "failed"),
        ("running", 2, "stopped", True, "running"),
        ("exited", 2, "stopped", True, "exited"),
        ("exited", 1, "stopped", True, "exited"),
        ("exited", 1, "stopped", False, "exited"),
    ],
)
def test_how_a_container_is(
    world: World,
    reported: ContainerRunState | None,
    generation: int,
    wanted: str,
    shown: str,
    *,
    connected: bool,
) -> None:
    container = attrs.evolve(world.container("web"), generation=2, wanted=wanted)
    live = _live(world, *(["n1"] if connected else []))
    if reported is not None:
        status = ContainerStatus(container.id, reported, generation)
        live = attrs.evolve(live, containers={container.id: status})
    assert views.container_state(container, live) == shown
    assert views.is_active(container, live) == (shown not in {"exited", "failed"})


def test_an_exit_code_is_shown_with_the_end_it_belongs_to(world: World) -> None:
    web = world.container("web")
    live = attrs.evolve(
        _live(world, "n1", "n2"),
        containers={web.id: ContainerStatus(web.id, "exited", 1, 3, "over")},
    )
    db, row = views.container_list(world.snapshot, live).containers
    assert (db.name, db.state, db.exit_code) == ("db", "creating", None)
    assert (row.name, row.node, row.address, row.engine, row.state, row.exit_code) == (
        "web", "n1", "10.1.0.2", "process", "exited", 3,
    )  # fmt: skip
    world.do(SetWanted("admin", "web", running=True))
    row = views.container_list(world.snapshot, live).containers[1]
    assert (row.state, row.exit_code) == ("creating", None)


def test_a_container_in_detail(world: World) -> None:
    world.connect("db", "web", "80")
    world.connect("web", "db")
    detail = views.container_detail(world.snapshot, "admin", "web", Live())
    assert [(c.source, c.destination, c.port) for c in detail.connections] == _ordered(
        world, ("db", "web", "80/tcp")
    )
    assert (detail.account, detail.wanted, detail.generation, detail.message) == ("admin", "running", 1, "")
    with pytest.raises(NotFoundError, match="did you mean web"):
        views.container_detail(world.snapshot, "admin", "wep", Live())


def _ordered(world: World, *rows: tuple[str, str, str]) -> list[tuple[str, str, str]]:
    """Return the rows with that of the portless pair, which goes by id, in their order."""
    one, other = sorted(("web", "db"), key=lambda name: world.container(name).id)
    return sorted([*rows, (one, other, "all")])


def test_a_connection_is_active_when_both_ends_have_applied_it(world: World) -> None:
    world.connect("web", "db", "80")
    revision = world.snapshot.revision
    (key,) = world.snapshot.connections
    connection = world.snapshot.connections[key]

    def word(one: int, other: int) -> str:
        live = Live(nodes={"n1": LiveNode(applied=one), "n2": LiveNode(applied=other)})
        return views.connection_state(world.snapshot, connection, live)

    assert word(revision, revision) == word(revision + 1, revision + 5) == "active"
    assert word(revision - 1, revision) == word(revision, revision - 1) == "pending"
    assert views.connection_state(world.snapshot, connection, Live()) == "pending"


def test_connections_are_listed_by_source_destination_and_port(world: World) -> None:
    for source, destination, port in (
        ("web", "db", "443"), ("web", "db", "80"), ("web", "db", "53/udp"), ("db", "web", "icmp"),
    ):  # fmt: skip
        world.connect(source, destination, port)
    rows = views.connection_list(world.snapshot, Live()).connections
    assert [(r.source, r.destination, r.port, r.state) for r in rows] == [
        ("db", "web", "icmp", "pending"),
        ("web", "db", "80/tcp", "pending"),
        ("web", "db", "443/tcp", "pending"),
        ("web", "db", "53/udp", "pending"),
    ]


def test_the_broker_in_numbers(world: World) -> None:
    world.connect("web", "db")
    live = _live(world, "n2")
    status = views.broker_status(
        world.snapshot, live, version="0.1.0", uptime=5.0, sessions=2, account="admin"
    )
    assert status.nodes == {"ready": 1, "unreachable": 1}
    assert (status.containers, status.connections, status.revision) == (2, 1, world.snapshot.revision)
    assert (status.supernet, status.block_size, status.epoch) == ("10.0.0.0/8", 16, 1)
