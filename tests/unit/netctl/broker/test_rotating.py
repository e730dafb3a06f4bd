"""A node's new WireGuard key: step by step, over restarts, and with nodes that are away."""

from __future__ import annotations

import pytest

from netctl.broker.commands import StartRotation
from netctl.broker.sessions import Limits
from netctl.errors import RefusedError
from netctl.model import WireguardEnd
from netctl.wire.messages import Done, Failure, NodeError, RemoveNode, RotateNodeKey, Update
from tests.support.broker import World
from tests.support.hub import FakeNode, House, wireguard_end


@pytest.fixture
def house() -> House:
    return House(Limits(interval=1000.0), encryption="required")


def nodes_of(house: House, count: int = 3) -> list[FakeNode]:
    made = [house.node(f"n{number}", encapsulations=("gre", "wireguard")) for number in range(1, count + 1)]
    house.later(0)
    return made


def ends(nodes: list[FakeNode]) -> set[WireguardEnd | None]:
    """Return what n1's peers send to."""
    return {node.state.peers["n1"].wireguard for node in nodes[1:] if node.state is not None}


def generations(node: FakeNode) -> tuple[int, ...]:
    assert node.state is not None
    return node.state.wireguard_generations


def go_on(house: House, times: int = 6) -> None:
    for _ in range(times):
        house.later(0)


def test_nodes_that_join_make_keys_and_are_told_each_others(house: House) -> None:
    nodes = nodes_of(house)
    assert {generations(node) for node in nodes} == {(1,)}
    for node in nodes:
        assert node.state is not None
        for peer in node.state.peers.values():
            assert (peer.encapsulation, peer.candidates, peer.mtu) == ("wireguard", ("wireguard",), 1440)
            assert peer.wireguard == wireguard_end(int(peer.name[1:]), 1)


def test_a_key_is_replaced_and_the_user_hears_when_the_old_one_is_gone(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    told: list[tuple[int, ...]] = []
    seen: list[set[WireguardEnd | None]] = []

    def note() -> None:
        told.append(generations(nodes[0]))
        seen.append(ends(nodes))

    note()
    user.say(RotateNodeKey("n1"))
    for _ in range(6):
        note()
        house.later(0)
    note()
    steps = list(dict.fromkeys(zip(told, map(frozenset, seen), strict=True)))
    old, new = frozenset({wireguard_end(1, 1)}), frozenset({wireguard_end(1, 2)})
    assert steps == [((1,), old), ((1, 2), old), ((2, 1), old), ((2, 1), new), ((2,), new)]
    done = user.last(Done)
    assert done.message == "n1 has a new WireGuard key, of generation 2"
    assert nodes[0].facts.wireguard == (wireguard_end(1, 2),)
    assert not house.snapshot.rotations
    assert house.snapshot.nodes["n1"].generation == 2


def test_it_is_not_answered_before_the_node_has_destroyed_the_old_key(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[2].holding = True
    user.say(RotateNodeKey("n1"))
    go_on(house)
    nodes[0].holding = True
    nodes[2].holding = False
    nodes[2].applied()
    house.settle()
    go_on(house)
    assert not house.snapshot.rotations
    assert not user.has(Done)
    nodes[0].make_keys()
    nodes[0].applied()
    house.settle()
    assert user.last(Done).revision == nodes[0].revision


def test_peers_that_are_not_told_hold_the_node_to_its_old_key(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    house.hub.lost(nodes[2].route, "gone")
    user.say(RotateNodeKey("n1", timeout=5.0))
    go_on(house)
    assert generations(nodes[0]) == (1, 2), "it would send to n3 what that cannot read"
    assert not user.has(Failure)
    house.later(6)
    failure = user.last(Failure)
    assert (failure.code, failure.nodes) == ("pending", ("n3",))
    assert "n3 is unreachable" in failure.message
    back = house.again(nodes[2])
    back.hello()
    go_on(house)
    assert generations(nodes[0]) == (2,)
    assert ends([nodes[0], nodes[1], back]) == {wireguard_end(1, 2)}


def test_a_peer_that_is_slow_is_named(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[1].holding = True
    user.say(RotateNodeKey("n1", timeout=5.0))
    go_on(house)
    assert generations(nodes[0]) == (2, 1)
    house.later(6)
    failure = user.last(Failure)
    assert (failure.code, failure.nodes) == ("pending", ("n2",))
    nodes[1].holding = False
    nodes[1].applied()
    house.settle()
    go_on(house)
    assert generations(nodes[0]) == (2,)


def test_a_peer_that_could_not_take_the_new_key_is_waited_for(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[1].errors = (NodeError("n1", "the kernel refused the peer"),)
    user.say(RotateNodeKey("n1", timeout=5.0))
    go_on(house)
    assert generations(nodes[0]) == (2, 1)
    house.later(6)
    failure = user.last(Failure)
    assert (failure.nodes, "the kernel refused the peer" in failure.message) == (("n2",), True)
    nodes[1].errors = ()
    nodes[1].applied()
    house.settle()
    go_on(house)
    assert generations(nodes[0]) == (2,)


def test_errors_about_other_things_hold_nothing_up(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[1].errors = (NodeError("web", "no such program"),)
    user.say(RotateNodeKey("n1"))
    go_on(house)
    assert user.has(Done)


def _restart(house: House, nodes: list[FakeNode]) -> list[FakeNode]:
    house.restart()
    again = [house.again(node) for node in nodes]
    for node in again:
        node.hello()
    return again


@pytest.mark.parametrize("after", range(7))
def test_a_broker_that_restarts_at_any_step_goes_on_with_it(house: House, after: int) -> None:
    user, nodes = house.user(), nodes_of(house)
    user.say(RotateNodeKey("n1"))
    for _ in range(after):
        house.later(0)
    nodes = _restart(house, nodes)
    go_on(house)
    assert generations(nodes[0]) == (2,)
    assert ends(nodes) == {wireguard_end(1, 2)}
    assert not house.snapshot.rotations


@pytest.mark.parametrize("held", [0, 1])
def test_what_was_acknowledged_before_a_restart_need_not_be_again(house: House, held: int) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[1 + held].holding = True
    user.say(RotateNodeKey("n1"))
    go_on(house)
    assert house.snapshot.rotations["n1"].awaiting == {f"n{2 + held}"}
    house.restart()
    assert house.snapshot.rotations["n1"].awaiting == {f"n{2 + held}"}
    only = [house.again(node) for node in (nodes[0], nodes[1 + held])]
    for node in only:
        node.holding = False
        node.hello()
    go_on(house)
    assert not house.snapshot.rotations


def test_asking_twice_is_asking_once(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[2].holding = True
    user.say(RotateNodeKey("n1"))
    go_on(house)
    user.say(RotateNodeKey("n1"))
    nodes[2].holding = False
    nodes[2].applied()
    house.settle()
    go_on(house)
    assert len([e for e in user.heard if isinstance(e.message, Done)]) == 2
    assert house.snapshot.nodes["n1"].generation == 2


def test_the_same_request_again_is_answered_and_makes_no_third_key(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    user.say(RotateNodeKey("n1", key="once"))
    go_on(house)
    again = user.ask(RotateNodeKey("n1", key="once"))
    assert isinstance(again, Done)
    assert generations(nodes[0]) == (2,)


def test_keys_are_replaced_again_and_again(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    for generation in (2, 3, 4):
        user.say(RotateNodeKey("n1"))
        go_on(house)
        assert ends(nodes) == {wireguard_end(1, generation)}
    assert len({wireguard_end(1, generation).port for generation in (1, 3)}) == 1


def test_two_nodes_replace_theirs_at_a_time(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    user.say(RotateNodeKey("n1"))
    user.say(RotateNodeKey("n2"))
    go_on(house)
    assert [generations(node) for node in nodes] == [(2,), (2,), (1,)]


def test_a_node_that_joins_meanwhile_is_told_the_key_that_is_in_use(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[1].holding = True
    user.say(RotateNodeKey("n1"))
    go_on(house)
    newcomer = house.node("n9", encapsulations=("wireguard",))
    go_on(house)
    assert newcomer.state is not None
    assert newcomer.state.peers["n1"].wireguard == wireguard_end(1, 2)


@pytest.mark.parametrize("gone", ["n1", "n3"])
def test_a_node_that_goes_meanwhile_takes_its_part_with_it(house: House, gone: str) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[2].holding = True
    user.say(RotateNodeKey("n1"))
    go_on(house)
    assert house.snapshot.rotations["n1"].awaiting == {"n3"}
    house.hub.lost(nodes[int(gone[1]) - 1].route, "gone")
    user.say(RemoveNode(gone, force=True))
    go_on(house)
    assert not house.snapshot.rotations
    assert nodes[1].state is not None
    assert gone not in nodes[1].state.peers
    if gone == "n3":
        assert generations(nodes[0]) == (2,)
    else:
        assert user.last(Failure).message == "node n1 was removed"


def test_a_rotation_touches_no_other_pair(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    before = len(nodes[2].heard)
    user.say(RotateNodeKey("n1"))
    go_on(house)
    updates = [e.message for e in nodes[2].heard[before:] if isinstance(e.message, Update)]
    assert [[p.name for p in update.delta.peers] for update in updates] == [["n1"]]
    assert [update.delta.header for update in updates] == [None]


def test_a_node_without_wireguard_has_no_key_to_replace() -> None:
    world = World()
    world.node("n1")
    with pytest.raises(RefusedError, match="no WireGuard key"):
        world.do(StartRotation("n1"))


def test_a_node_that_is_being_removed_makes_no_key() -> None:
    world = World()
    world.node("n1")
    world.rm_node("n1")
    with pytest.raises(RefusedError, match="being removed"):
        world.do(StartRotation("n1"))
