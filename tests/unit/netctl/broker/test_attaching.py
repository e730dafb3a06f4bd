"""Containers that Docker's own users make, as their nodes report them."""

from __future__ import annotations

import attrs
import pytest

from netctl.broker import placement, plan
from netctl.broker.attaching import dns_label
from netctl.broker.commands import (
    AttachContainer,
    DetachContainer,
    DropContainer,
    LeaseAddress,
    SetWanted,
    SyncContainers,
)
from netctl.broker.leasing import HeldError
from netctl.delta import apply_delta
from netctl.errors import ExhaustedError, InvalidError, NetctlError, NotFoundError, RefusedError
from netctl.model import DockerContainer, Permit, Port, Wish
from tests.support.broker import World, docker_id, facts

DOCKER = ("process", "docker")


@pytest.fixture
def world() -> World:
    """Three nodes with docker; web of Docker's on n1, db of the broker's on n2."""
    made = World()
    for number in (1, 2, 3):
        made.node(f"n{number}", facts(number, engines=DOCKER))
    made.attach("n1", "web")
    made.run("db", "n2")
    made.acknowledge()
    return made


def known(world: World, name: str) -> DockerContainer:
    found = world.foreign(name)
    assert found is not None
    return found


def test_a_container_is_recorded_as_it_is(world: World) -> None:
    decision = world.attach("n1", "Api_1", image="api:2", project="shop", service="api")
    record = world.container("api-1")
    assert decision.message == "it is recorded as api-1"
    assert (record.node, record.address, record.origin, record.account) == ("n1", "10.1.0.3", "engine", "")
    assert (record.workload.engine, record.workload.image) == ("docker", "api:2")
    assert record.docker == known(world, "api-1")
    (placed,) = decision.deltas["n1"].containers
    assert (placed.id, placed.address, placed.origin) == (record.id, "10.1.0.3", "engine")
    assert decision.deltas["n1"].reserve_removed == ("10.1.0.3",)
    assert set(decision.deltas) == {"n1"}
    assert world.state("n2").containers[world.container("db").id].origin == "broker"


def test_the_same_report_again_changes_nothing(world: World) -> None:
    before = world.snapshot
    decision = world.attach("n1", "web")
    assert world.snapshot is before
    assert (decision.message, decision.revision) == (
        "it is recorded as web", world.container("web").revision,
    )  # fmt: skip


def test_one_that_never_had_an_address_is_not_recorded(world: World) -> None:
    before = world.snapshot
    decision = world.attach("n1", "new", "")
    assert world.snapshot is before
    assert decision.message == "it is recorded once it has an address"


def test_a_stopped_one_keeps_its_address_and_its_connections(world: World) -> None:
    world.connect("web", "db", "80")
    decision = world.attach("n1", "web", "")
    assert decision.deltas == {}
    assert world.container("web").address == "10.1.0.2"
    assert known(world, "web").address == ""
    assert "10.1.0.2" not in world.state("n1").reserve
    assert world.permits("n1") == {"web>db 80/tcp"}


def test_a_new_address_takes_the_connections_along_and_the_old_one_waits_for_all(world: World) -> None:
    world.attach("n3", "log")
    for name in ("db", "log"):
        world.connect("web", name, "80")
    world.connect("db", "web")
    world.acknowledge()
    db, log = world.container("db").address, world.container("log").address
    decision = world.attach("n1", "web", "10.1.0.9")
    assert world.container("web").address == "10.1.0.9"
    assert set(decision.deltas) == decision.nodes == {"n1", "n2", "n3"}
    assert world.held() == {"10.1.0.2": {"n1", "n2", "n3"}}
    assert set(decision.deltas["n3"].permits_removed) == {Permit("10.1.0.2", log, Port("tcp", 80))}
    assert set(decision.deltas["n3"].permits) == {Permit("10.1.0.9", log, Port("tcp", 80))}
    assert {p.destination for p in decision.deltas["n2"].permits} == {db, "10.1.0.9"} - {"10.1.0.2"}
    assert decision.deltas["n1"].reserve_removed == ("10.1.0.9",)
    assert len(world.permits("n2")) == 2
    world.acknowledge("n1", "n2")
    assert world.held() == {"10.1.0.2": {"n3"}}
    world.acknowledge("n3")
    assert world.held() == {}


def test_a_move_along_with_a_disconnection_is_told_once(world: World) -> None:
    """What the wish made goes with the wish while the address changes; nothing of either is left."""
    world.bind("n1", "admin")
    world.attach("n1", "api", wishes=("db:5432", "db:80"))
    world.acknowledge()
    before = world.snapshot
    decision = world.attach("n1", "api", "10.1.0.20", wishes=("db:80",))
    old, new, db = "10.1.0.3", "10.1.0.20", world.container("db").address
    assert set(decision.deltas["n2"].permits_removed) == {
        Permit(old, db, Port("tcp", 5432)), Permit(old, db, Port("tcp", 80)),
    }  # fmt: skip
    assert decision.deltas["n2"].permits == (Permit(new, db, Port("tcp", 80)),)
    for node in ("n1", "n2"):
        told = apply_delta(plan.node_state(before, node), decision.deltas[node])
        assert told == world.state(node)


def test_an_address_need_not_be_on_lease_if_nobody_has_it(world: World) -> None:
    """A broker that was restored from an old copy does not know of its latest leases."""
    world.attach("n1", "late", "10.1.77.7")
    assert world.container("late").address == "10.1.77.7"


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        ("10.2.0.9", InvalidError, "no address for a container of node n1"),
        ("10.1.0.1", InvalidError, "no address"),
        ("10.1.255.255", InvalidError, "no address"),
        ("192.0.2.1", InvalidError, "no address"),
        ("10.1.0.2", RefusedError, "10.1.0.2 is the address of web"),
    ],
)
def test_an_address_that_is_not_the_nodes_to_give_is_refused(
    world: World, address: str, error: type[NetctlError], said: str
) -> None:
    before = world.snapshot
    for reported in ("new", "other"):
        with pytest.raises(error, match=said):
            world.attach("n1", reported, address)
    assert world.snapshot is before


def test_an_address_that_is_held_is_refused_for_now(world: World) -> None:
    world.attach("n1", "web", "10.1.0.9")
    with pytest.raises(HeldError):
        world.attach("n1", "new", "10.1.0.2")
    world.acknowledge()
    world.attach("n1", "new", "10.1.0.2")
    assert world.container("new").address == "10.1.0.2"


def test_an_id_that_stands_for_something_else_is_refused(world: World) -> None:
    for name, node in (("web", "n2"), ("db", "n2"), ("db", "n1")):
        before = world.snapshot
        foreign = DockerContainer(world.container(name).id, "mine", "busybox", "10.2.0.9")
        for command in (AttachContainer(node, foreign), DetachContainer(node, foreign.id)):
            with pytest.raises(RefusedError, match="is recorded already"):
                world.do(command)
        world.do(
            SyncContainers(node, (known(world, "web"), foreign))
            if node == "n1"
            else SyncContainers(node, (foreign,))
        )
        assert world.snapshot.containers == before.containers


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "\x1b[2Jweb"}, {"name": ""}, {"name": "/web"}, {"image": "a\nb"}, {"project": "\x9b"},
        {"service": "\u202e"}, {"wishes": (Wish("\x07", Port("tcp", 1)),)},
    ],
)  # fmt: skip
def test_texts_that_docker_lets_nobody_write_are_refused(world: World, changes: dict[str, object]) -> None:
    plain = DockerContainer(docker_id(1), "new", "busybox", "10.1.0.9")
    with pytest.raises(InvalidError, match="no text of Docker's"):
        world.do(AttachContainer("n1", attrs.evolve(plain, **changes)))
    world.do(AttachContainer("n1", plain))
    assert world.container("new").id == plain.id


def test_a_bridge_takes_no_more_than_it_has_ports(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "BRIDGE_PORTS", 2)
    world.attach("n1", "two")
    with pytest.raises(ExhaustedError, match="bridge of node n1 is full"):
        world.attach("n1", "three")
    world.attach("n1", "two", "10.1.0.40")


def test_a_node_that_goes_reports_nothing_more(world: World) -> None:
    world.rm_node("n3")
    for command in (
        AttachContainer("n3", DockerContainer(docker_id(1), "a", "b", "10.3.0.9")),
        DetachContainer("n3", docker_id(1)),
        SyncContainers("n3", ()),
    ):
        with pytest.raises(RefusedError, match="being removed"):
            world.do(command)
    with pytest.raises(NotFoundError):
        world.do(SyncContainers("n9", ()))


def test_names_are_dns_labels_and_unique(world: World) -> None:
    world.attach("n2", "x", "10.2.0.20", name="web")
    world.attach("n2", "y", "10.2.0.21", name="Web")
    world.attach("n2", "z", "10.2.0.22", name="web_")
    assert {c.name: c.address for c in world.snapshot.containers.values() if "web" in c.name} == {
        "web": "10.1.0.2", "web-n2": "10.2.0.20", "web-n2-2": "10.2.0.21", "web-n2-3": "10.2.0.22",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("web", "web"), ("My_Web.1", "my-web-1"), ("a--b", "a--b"), ("a_.-b", "a--b"), ("Web-", "web"),
        ("x" * 128, "x" * 63), ("x" * 62 + "-y", "x" * 62),
    ],
)  # fmt: skip
def test_a_docker_name_as_a_label(name: str, label: str) -> None:
    assert dns_label(name) == label


def test_names_stay_within_a_label_whatever_their_parts_are() -> None:
    world = World()
    node = "n" * 62 + "1"
    world.node(node, facts(1, engines=DOCKER))
    for number in range(3):
        world.attach(node, f"c{number}", f"10.1.0.{number + 9}", name="x" * 63)
    names = sorted(world.snapshot.bare_names)
    assert [len(name) for name in names] == [63, 63, 63]


def test_very_many_of_one_name_still_get_names(world: World) -> None:
    for number in range(30):
        world.attach("n1", f"c{number}", f"10.1.1.{number}", name="same")
    assert sum(c.name.startswith("same") for c in world.snapshot.containers.values()) == 30


def test_a_rename_renames_the_record(world: World) -> None:
    world.connect("web", "db", "80")
    decision = world.attach("n1", "web", name="shop")
    assert "web" not in world.snapshot.bare_names
    assert [c.name for c in decision.deltas["n1"].containers] == ["shop"]
    assert world.permits("n2") == {"shop>db 80/tcp"}
    world.attach("n1", "shop", name="db")
    assert world.container("db-n1").address == "10.1.0.2"


def test_a_name_given_up_by_another_renames_nobody(world: World) -> None:
    world.attach("n2", "second", name="web")
    world.attach("n1", "web", name="first")
    before = world.snapshot
    world.attach("n2", "web-n2")
    assert world.snapshot is before
    world.attach("n2", "web-n2", "")
    assert world.container("web-n2").node == "n2"


def test_a_name_of_dockers_is_not_given_to_one_of_the_brokers(world: World) -> None:
    with pytest.raises(NetctlError, match="called web already") as caught:
        world.run("web", "n2")
    assert "`docker rm web` on node n1" in caught.value.remedy


def test_one_that_is_gone_takes_its_connections_along(world: World) -> None:
    world.connect("web", "db", "80")
    world.acknowledge()
    decision = world.detach("web")
    assert set(decision.deltas) == {"n1", "n2"}
    assert world.held() == {"10.1.0.2": {"n1", "n2"}}
    assert not world.snapshot.connections
    before = world.snapshot
    world.do(DetachContainer("n1", docker_id(1)))
    assert world.snapshot is before


def test_a_whole_list_adds_and_drops(world: World) -> None:
    world.attach("n1", "stays", "10.1.0.30")
    world.attach("n1", "goes")
    world.attach("n2", "elsewhere")
    world.run("ours", "n1")
    news = DockerContainer(docker_id(900), "news", "busybox", "10.1.0.40")
    decision = world.do(SyncContainers("n1", (known(world, "web"), news, known(world, "stays"))))
    names = {c.name for c in world.snapshot.containers.values()}
    assert names == {"web", "stays", "news", "elsewhere", "ours", "db"}
    assert decision.message == ""
    before = world.snapshot
    world.do(SyncContainers("n1", (news, known(world, "stays"), known(world, "web"))))
    assert world.snapshot is before


def test_names_change_hands_within_one_list(world: World) -> None:
    """As when a Compose service is made anew with the broker away: the old one is renamed first."""
    old = attrs.evolve(known(world, "web"), name="old", address="")
    new = DockerContainer(docker_id(900), "web", "busybox", "10.1.0.40")
    world.do(SyncContainers("n1", (new, old)))
    assert (world.container("web").address, world.container("old").address) == ("10.1.0.40", "10.1.0.2")


def test_one_that_cannot_be_recorded_keeps_no_other_from_it(world: World) -> None:
    bad = DockerContainer(docker_id(900), "bad", "busybox", "10.2.0.40")
    good = DockerContainer(docker_id(901), "good", "busybox", "10.1.0.40")
    moved = attrs.evolve(known(world, "web"), address="10.1.0.1")
    decision = world.do(SyncContainers("n1", (bad, moved, good)))
    assert "bad" not in world.snapshot.bare_names
    assert world.container("web").address == "10.1.0.2"
    assert world.container("good").address == "10.1.0.40"
    assert docker_id(900)[:12] in decision.message
    assert "10.1.0.1 is no address" in decision.message


def test_an_empty_list_drops_all_of_dockers_there_and_nothing_else(world: World) -> None:
    world.attach("n2", "other")
    world.do(SyncContainers("n2", ()))
    assert {c.name for c in world.snapshot.containers.values()} == {"web", "db"}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (SetWanted("admin", "web", running=True), "docker start web"),
        (SetWanted("admin", "web", running=False), "docker stop web"),
        (DropContainer("admin", "web", force=True, active=False), "docker rm web"),
    ],
)
def test_dockers_containers_are_left_to_docker(world: World, command: object, said: str) -> None:
    with pytest.raises(RefusedError, match="made by a Docker user on node n1") as caught:
        world.do(command)
    assert said in caught.value.remedy
    assert caught.value.nodes == ("n1",)


def test_a_node_with_dockers_containers_goes_by_force_only(world: World) -> None:
    with pytest.raises(RefusedError, match="has containers: web"):
        world.rm_node("n1")
    world.rm_node("n1", force=True)
    assert "web" not in world.snapshot.bare_names


def test_a_restart_with_its_fixed_address(world: World) -> None:
    world.do(LeaseAddress("n1", "10.1.50.5"))
    world.attach("n1", "fixed", "10.1.50.5")
    revision = world.container("fixed").revision
    world.attach("n1", "fixed", "")
    world.do(LeaseAddress("n1", "10.1.50.5"))
    decision = world.attach("n1", "fixed", "10.1.50.5")
    assert decision.deltas == {}
    assert world.container("fixed").address == "10.1.50.5"
    assert world.container("fixed").revision > revision
    assert world.held() == {}
