"""What nodes report of themselves and of the ways to their peers, and what the broker makes of it."""

from __future__ import annotations

import attrs
import pytest

from netctl.broker.sessions import Limits
from netctl.model import PathState
from netctl.wire.messages import Done, Facts, NodeDetail, Paths, PathView, RemoveNode, ShowNode, Update
from tests.support.hub import FakeNode, House

WAYS = ("gre", "vxlan")


@pytest.fixture
def house() -> House:
    return House(Limits(interval=1000.0))


def nodes_of(house: House, count: int = 4) -> list[FakeNode]:
    made = [house.node(f"n{number}", encapsulations=WAYS) for number in range(1, count + 1)]
    house.later(0)
    return made


def path(peer: str, way: str = "gre", mtu: int = 0, *, up: bool = True) -> PathState:
    return PathState(peer, way, up, mtu or (1476 if way == "gre" else 1450) if up else 0)  # type: ignore[arg-type]


def all_up(nodes: list[FakeNode]) -> None:
    names = [node.state.name for node in nodes if node.state]
    for node in nodes:
        node.finds(*(path(name, way) for name in names for way in WAYS))


def used(node: FakeNode, peer: str) -> tuple[str, int]:
    assert node.state is not None
    return node.state.peers[peer].encapsulation, node.state.peers[peer].mtu


def test_a_way_that_fails_is_left_by_both_nodes_and_nobody_else_hears_of_it(house: House) -> None:
    nodes = nodes_of(house)
    all_up(nodes)
    house.later(60)
    heard = [len(node.heard) for node in nodes]
    nodes[0].finds(path("n2", up=False))
    house.later(1.9)
    assert used(nodes[0], "n2") == ("gre", 1476)
    house.later(0.2)
    assert used(nodes[0], "n2") == used(nodes[1], "n1") == ("vxlan", 1450)
    assert [len(node.heard) - before for node, before in zip(nodes, heard, strict=True)] == [1, 1, 0, 0]
    update = nodes[0].last(Update)
    assert [p.name for p in update.delta.peers] == ["n2"]


def test_reports_that_change_nothing_are_not_written(house: House) -> None:
    nodes = nodes_of(house)
    all_up(nodes)
    commits, revision = len(house.store.commits), house.snapshot.revision
    for number in range(200):
        nodes[0].finds(*(attrs.evolve(path(f"n{peer}"), rtt_us=number) for peer in (2, 3, 4)))
    house.later(60)
    assert (len(house.store.commits), house.snapshot.revision) == (commits, revision)


def test_one_message_about_many_pairs_is_one_write(house: House) -> None:
    nodes = nodes_of(house)
    all_up(nodes)
    house.later(60)
    commits = len(house.store.commits)
    nodes[0].finds(*(path(f"n{peer}", up=False) for peer in (2, 3, 4)))
    house.later(3)
    assert {used(nodes[0], f"n{peer}")[0] for peer in (2, 3, 4)} == {"vxlan"}
    assert len([changes for changes, _ in house.store.commits[commits:] if changes]) == 1


def test_another_way_that_flaps_takes_nothing_with_it(house: House) -> None:
    nodes = nodes_of(house, 2)
    all_up(nodes)
    revision = house.snapshot.revision
    for number in range(100):
        nodes[0].finds(path("n2", "vxlan", up=number % 2 == 1))
        house.later(0.5)
    assert house.snapshot.revision == revision


def test_an_mtu_that_flaps_changes_the_pair_twice_in_ten_seconds_at_most(house: House) -> None:
    nodes = nodes_of(house, 2)
    all_up(nodes)
    revision, smallest = house.snapshot.revision, 9999
    for number in range(120):
        nodes[0].finds(path("n2", mtu=1476 if number % 2 else 1400))
        house.later(0.5)
        smallest = min(smallest, used(nodes[1], "n1")[1])
    assert smallest == 1400
    assert house.snapshot.revision - revision <= 2 * 6 + 1
    nodes[0].finds(path("n2"))
    house.later(11)
    assert used(nodes[0], "n2") == ("gre", 1476), "in the end what is so counts"


def test_an_mtu_that_shrinks_is_told_at_once(house: House) -> None:
    nodes = nodes_of(house, 2)
    all_up(nodes)
    nodes[1].finds(path("n1", mtu=1376))
    assert used(nodes[0], "n2") == used(nodes[1], "n1") == ("gre", 1376)


def test_what_is_used_survives_the_broker_and_the_nodes_sessions(house: House) -> None:
    nodes = nodes_of(house, 2)
    all_up(nodes)
    house.later(60)
    nodes[0].finds(path("n2", up=False))
    house.later(3)
    house.restart()
    again = [house.again(node) for node in nodes]
    for node in again:
        node.hello()
    assert used(again[0], "n2") == used(again[1], "n1") == ("vxlan", 1450)
    assert not any(node.has(Update) and node.last(Update).delta.peers for node in again)


def test_what_a_node_said_goes_with_its_session(house: House) -> None:
    nodes = nodes_of(house, 2)
    all_up(nodes)
    house.later(60)
    house.hub.lost(nodes[1].route, "gone")
    nodes[0].finds(path("n2", up=False))
    house.later(10)
    assert used(nodes[0], "n2")[0] == "gre", "nobody knows whether the other way is up at both ends"
    back = house.again(nodes[1])
    back.hello()
    back.finds(path("n1"), path("n1", "vxlan"))
    house.later(2.1)
    assert used(nodes[0], "n2")[0] == "vxlan"


def test_what_a_node_says_of_itself_strangers_and_what_it_may_not_use_counts_nothing(house: House) -> None:
    nodes = nodes_of(house, 2)
    all_up(nodes)
    revision = house.snapshot.revision
    nodes[0].say(Paths((path("n1", up=False), path("n9", up=False), path("n2", "wireguard", up=False))), 0)
    house.later(60)
    assert house.snapshot.revision == revision


def test_a_node_says_nothing_of_pairs_of_others(house: House) -> None:
    nodes = nodes_of(house, 3)
    all_up(nodes)
    house.later(60)
    nodes[2].finds(path("n1", up=False), path("n2", up=False))
    house.later(60)
    assert used(nodes[0], "n2")[0] == "gre"
    assert used(nodes[0], "n3")[0] == "vxlan", "the control: its own pairs it decides with"


def test_the_ways_of_a_node_are_shown(house: House) -> None:
    user, nodes = house.user(), nodes_of(house, 3)
    nodes[0].finds(PathState("n2", "gre", up=True, mtu=1400, rtt_us=1500, loss_permille=20))
    nodes[0].finds(path("n2", "vxlan", up=False))
    detail = user.ask(ShowNode("n1"))
    assert isinstance(detail, NodeDetail)
    assert detail.mtu == 1476
    assert detail.peers == {"n2": "gre", "n3": "gre"}
    assert detail.paths == (
        PathView("n1", "n2", "gre", chosen=True, state="up", mtu=1400, rtt_ms=1.5, loss=0.02),
        PathView("n1", "n2", "vxlan", chosen=False, state="down"),
        PathView("n1", "n3", "gre", chosen=True, state="unknown"),
        PathView("n1", "n3", "vxlan", chosen=False, state="unknown"),
    )


# --- facts ---------------------------------------------------------------------------------------------


def moved(node: FakeNode, **changes: object) -> None:
    node.facts = attrs.evolve(node.facts, **changes)
    node.say(Facts(node.facts), 0)


def test_a_node_that_moves_is_told_to_its_peers(house: House) -> None:
    nodes = nodes_of(house, 3)
    moved(nodes[0], underlay="192.168.7.7", underlay_mtu=1400)
    for node in nodes[1:]:
        assert node.state is not None
        peer = node.state.peers["n1"]
        assert (peer.underlay, peer.mtu, peer.outer_mtu) == ("192.168.7.7", 1376, 1400)
        assert "192.168.7.7/32" in node.state.closed
        assert "192.168.0.1/32" not in node.state.closed
    assert nodes[0].state is not None
    assert nodes[0].state.mtu == 1376


def test_facts_that_are_as_they_were_change_nothing(house: House) -> None:
    nodes = nodes_of(house, 2)
    revision = house.snapshot.revision
    moved(nodes[0])
    assert house.snapshot.revision == revision


def test_an_address_that_another_node_has_is_not_told_and_the_reason_is_shown(house: House) -> None:
    user, nodes = house.user(), nodes_of(house, 3)
    moved(nodes[0], underlay="192.168.0.2")
    house.later(0)
    assert nodes[2].state is not None
    assert nodes[2].state.peers["n1"].underlay == "192.168.0.1"
    detail = user.ask(ShowNode("n1"))
    assert isinstance(detail, NodeDetail)
    assert "192.168.0.2 is that of node n2 already" in detail.errors[0].message
    assert detail.facts is not None
    assert detail.facts.underlay == "192.168.0.1"


@pytest.mark.parametrize("how", ["moves", "goes"])
def test_an_address_is_taken_when_the_other_has_left_it(house: House, how: str) -> None:
    user, nodes = house.user(), nodes_of(house, 3)
    moved(nodes[0], underlay="192.168.0.2")
    if how == "moves":
        moved(nodes[1], underlay="192.168.0.99")
    else:
        house.hub.lost(nodes[1].route, "gone")
        from_user = user.ask(RemoveNode("n2", force=True))
        assert isinstance(from_user, Done), from_user
    house.later(0)
    assert nodes[2].state is not None
    assert nodes[2].state.peers["n1"].underlay == "192.168.0.2"
    detail = user.ask(ShowNode("n1"))
    assert isinstance(detail, NodeDetail)
    assert detail.errors == ()
