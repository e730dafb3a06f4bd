"""Addresses on lease: a node's reserve, what it asks for, and what becomes of both."""

from __future__ import annotations

import attrs
import pytest

from netctl.broker import leasing
from netctl.broker.commands import Acknowledge, LeaseAddress, TopUpLeases, UpdateFacts
from netctl.broker.leasing import HeldError
from netctl.errors import ExhaustedError, InvalidError, NetctlError, RefusedError
from tests.support.broker import World, facts

DOCKER = ("process", "docker")


@pytest.fixture
def world() -> World:
    """n1 offers docker, n2 does not."""
    made = World()
    made.node("n1", facts(1, engines=DOCKER))
    made.node("n2")
    return made


def leases(world: World, node: str = "n1") -> set[str]:
    return set(world.snapshot.leases_of.get(node, ()))


def test_a_node_with_docker_joins_with_a_reserve(world: World) -> None:
    assert leases(world) == {f"10.1.0.{number}" for number in range(2, 2 + leasing.RESERVE)}
    assert world.state("n1").reserve == leases(world)
    assert leases(world, "n2") == world.state("n2").reserve == set()


def test_a_reserve_is_topped_up_when_half_of_it_is_used(world: World) -> None:
    for number in range(leasing.RESERVE - leasing.LOW):
        decision = world.attach("n1", f"c{number}")
    assert len(leases(world)) == leasing.LOW
    assert decision.deltas["n1"].reserve == ()
    decision = world.attach("n1", "last")
    assert len(leases(world)) == leasing.RESERVE
    assert len(decision.deltas["n1"].reserve) == leasing.RESERVE - leasing.LOW + 1
    assert len(decision.deltas["n1"].reserve_removed) == 1


def test_addresses_used_are_leased_again_late(world: World) -> None:
    world.attach("n1", "a")
    address = world.container("a").address
    world.detach("a")
    world.acknowledge()
    for number in range(40):
        world.attach("n1", f"c{number}")
    assert address not in leases(world)
    assert world.held() == {}


def test_containers_of_the_brokers_get_no_address_on_lease(world: World) -> None:
    world.run("web", "n1")
    assert world.container("web").address not in world.state("n1").reserve
    assert world.container("web").address == f"10.1.0.{2 + leasing.RESERVE}"


def test_docker_comes_and_goes_with_a_nodes_facts(world: World) -> None:
    world.do(UpdateFacts("n2", facts(2, engines=DOCKER)))
    given = leases(world, "n2")
    assert len(given) == leasing.RESERVE
    decision = world.do(UpdateFacts("n2", facts(2)))
    assert leases(world, "n2") == set()
    assert set(decision.deltas["n2"].reserve_removed) == given
    assert world.held() == {address: {"n2"} for address in given}
    world.do(Acknowledge("n2", decision.revision))
    assert world.held() == {}


@pytest.mark.parametrize("reachable", [True, False])
def test_a_removed_node_has_no_leases(world: World, *, reachable: bool) -> None:
    world.rm_node("n1", force=True, reachable=reachable)
    assert leases(world) == set()
    assert set(world.held()) == {"10.1.0.0/16"}
    world.acknowledge()
    assert world.held() == {}


def test_a_small_block_keeps_half_of_its_addresses_for_others() -> None:
    world = World("10.0.0.0/24", 29)
    world.node("n1", facts(1, engines=DOCKER))
    assert len(leases(world)) == 2
    for name in ("a", "b", "c"):
        world.run(name, "n1")
    with pytest.raises(ExhaustedError, match="on lease"):
        world.run("d", "n1")
    world.attach("n1", "e")
    world.attach("n1", "f")
    assert leases(world) == set()


def test_what_became_free_is_leased_to_a_node_that_had_too_little() -> None:
    world = World("10.0.0.0/24", 29)
    world.node("n1", facts(1, engines=DOCKER))
    for name in ("a", "b", "c"):
        world.run(name, "n1")
    world.attach("n1", "e")
    world.attach("n1", "f")
    world.rm("a")
    assert leasing.is_low(world.snapshot, "n1")
    world.do(TopUpLeases("n1"))
    assert leases(world) == set()
    world.acknowledge()
    world.do(TopUpLeases("n1"))
    assert len(leases(world)) == 1
    assert not leasing.is_low(world.snapshot, "n2")


def test_an_address_asked_for_is_leased(world: World) -> None:
    decision = world.do(LeaseAddress("n1", "10.1.200.7"))
    assert decision.deltas["n1"].reserve == ("10.1.200.7",)
    again = world.do(LeaseAddress("n1", "10.1.200.7"))
    assert again.changes == ()
    world.attach("n1", "a", "10.1.200.7")
    assert world.container("a").address == "10.1.200.7"
    # Its container is about to start again; whether another may have it, Docker says.
    assert world.do(LeaseAddress("n1", "10.1.200.7")).changes == ()


@pytest.mark.parametrize(
    ("node", "address", "error", "said"),
    [
        ("n1", "10.2.0.9", InvalidError, "no address for a container of node n1"),
        ("n1", "10.1.0.0", InvalidError, "no address"),
        ("n1", "10.1.0.1", InvalidError, "no address"),
        ("n1", "10.1.255.255", InvalidError, "no address"),
        ("n1", "10.1.0.66", RefusedError, "the address of web"),
        ("n2", "10.2.0.9", RefusedError, "gives no addresses"),
    ],
)
def test_an_address_that_cannot_be_leased_is_refused(
    world: World, node: str, address: str, error: type[NetctlError], said: str
) -> None:
    world.run("web", "n1")
    before = world.snapshot
    with pytest.raises(error, match=said):
        world.do(LeaseAddress(node, address))
    assert world.snapshot is before


def test_a_freed_address_is_leased_once_it_is_acknowledged(world: World) -> None:
    world.attach("n1", "a", "10.1.200.7")
    world.detach("a")
    with pytest.raises(HeldError, match="not every node has acknowledged"):
        world.do(LeaseAddress("n1", "10.1.200.7"))
    world.acknowledge()
    world.do(LeaseAddress("n1", "10.1.200.7"))
    assert "10.1.200.7" in leases(world)


def test_a_node_cannot_fill_the_record_with_leases(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leasing, "MOST", leasing.RESERVE + 1)
    world.do(LeaseAddress("n1", "10.1.200.7"))
    with pytest.raises(ExhaustedError, match="on lease already"):
        world.do(LeaseAddress("n1", "10.1.200.8"))


def test_a_node_being_removed_is_given_nothing(world: World) -> None:
    world.rm_node("n1")
    world.do(UpdateFacts("n1", attrs.evolve(facts(1, engines=DOCKER), version="2")))
    assert leases(world) == set()
    with pytest.raises(RefusedError, match="gives no addresses"):
        world.do(LeaseAddress("n1", "10.1.200.7"))
