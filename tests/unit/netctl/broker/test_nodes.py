"""What nodes report to a broker, and what they are told."""

from __future__ import annotations

import attrs
import pytest

from netctl.broker.plan import node_state
from netctl.broker.sessions import Limits
from netctl.delta import digest
from netctl.model import ContainerStatus, NodeDelta
from netctl.wire.messages import (
    Applied,
    Connect,
    ContainerList,
    Done,
    Envelope,
    Failure,
    Hello,
    Leave,
    ListContainers,
    ListNodes,
    NodeError,
    NodeList,
    Ping,
    Pong,
    RemoveContainer,
    Report,
    Reset,
    RunContainer,
    Update,
)
from tests.support.hub import WORKLOAD, FakeNode, House, Talker, facts, run


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def user(house: House) -> Talker:
    return house.user()


@pytest.fixture
def node(house: House) -> FakeNode:
    return house.node("n1")


def agree(house: House, *nodes: FakeNode) -> None:
    """Check that nodes hold what is recorded."""
    for node in nodes:
        state = next(s for n, s in ((n, node_state(house.snapshot, n)) for n in house.snapshot.nodes)
                     if house.snapshot.nodes[n].key == node.keys.public.hex())  # fmt: skip
        assert node.state is not None
        assert digest(node.state) == digest(state)


def state_of(user: Talker) -> list[tuple[str, str]]:
    listed = user.ask(ListNodes())
    assert isinstance(listed, NodeList)
    return [(view.name, view.state) for view in listed.nodes]


def test_a_new_node_is_told_its_whole_state_and_others_their_change(house: House, node: FakeNode) -> None:
    assert node.has(Reset)
    other = house.node("n2")
    assert node.has(Update)
    assert node.state is not None
    assert list(node.state.peers) == ["n2"]
    agree(house, node, other)


def test_a_node_that_holds_what_is_recorded_is_told_just_that(
    house: House, user: Talker, node: FakeNode
) -> None:
    user.ask(RunContainer("web", WORKLOAD))
    again = house.again(node)
    again.hello()
    assert not again.has(Reset)
    update = again.last(Update)
    assert (update.base, update.revision, update.delta) == (
        node.revision, house.snapshot.revision, NodeDelta(),
    )  # fmt: skip
    agree(house, again)


def test_a_node_that_missed_something_is_told_its_whole_state(
    house: House, user: Talker, node: FakeNode
) -> None:
    run(user, "web")
    run(user, "db")
    house.hub.lost(node.route, "closed")
    user.say(Connect("web", "db", timeout=1.0))
    again = house.again(node)
    again.hello()
    assert again.has(Reset)
    agree(house, again)
    assert user.last(Done).revision == house.snapshot.revision


def test_a_hello_within_a_session_is_answered_anew(house: House, user: Talker, node: FakeNode) -> None:
    run(user, "web")
    assert node.state is not None
    node.state = attrs.evolve(node.state, containers={})
    node.hello()
    agree(house, node)


def test_an_answer_to_hello_carries_its_id(node: FakeNode) -> None:
    answer = node.ask(Hello(0, 0, "", node.facts))
    assert isinstance(answer, Reset)


def test_commands_that_come_with_a_hello_are_told_once(house: House, user: Talker, node: FakeNode) -> None:
    other = house.node("n2")
    run(user, "web", "n1")
    run(user, "db", "n2")
    again = house.again(node)
    held = digest(node.state) if node.state is not None else ""
    house.deliver(
        user, user.seal(Connect("web", "db")),
        again, again.seal(Hello(node.epoch, node.revision, held, node.facts)),
        user, user.seal(RunContainer("more", WORKLOAD, "n2")),
    )  # fmt: skip
    agree(house, again, other)
    answered = {e.message.revision for e in user.heard if isinstance(e.message, Done)}
    assert {house.snapshot.revision - 1, house.snapshot.revision} <= answered


def test_other_facts_are_recorded_and_passed_on(house: House, node: FakeNode) -> None:
    other = house.node("n2")
    again = house.again(node)
    again.facts = attrs.evolve(facts(9), underlay_mtu=9000)
    again.hello()
    assert house.snapshot.nodes["n1"].facts == again.facts
    assert other.state is not None
    assert other.state.peers["n1"].underlay == "192.168.0.9"
    agree(house, again, other)


def test_facts_that_cannot_be_are_not_recorded(house: House, node: FakeNode) -> None:
    house.node("n2")
    again = house.again(node)
    again.facts = facts(2)
    again.hello()
    assert house.snapshot.nodes["n1"].facts == facts(1)
    assert again.has(Update) or again.has(Reset)


def test_a_node_ahead_of_the_store_begins_another_epoch(house: House, user: Talker, node: FakeNode) -> None:
    other = house.node("n2")
    run(user, "web", "n1")
    node.epoch, node.revision = 1, 500
    again = house.again(node)
    again.hello()
    assert house.snapshot.epoch == 2
    assert (again.last(Reset).epoch, other.last(Reset).epoch) == (2, 2)
    agree(house, again, other)
    assert isinstance(run(user, "db", "n2"), Done)
    assert house.store.place == (2, house.snapshot.revision)


def test_a_node_of_a_later_epoch_is_overtaken(house: House, node: FakeNode) -> None:
    node.epoch = 7
    house.again(node).hello()
    assert house.snapshot.epoch == 8


def test_a_node_cannot_use_epochs_up(house: House, node: FakeNode) -> None:
    node.epoch = 2**40
    far = house.again(node)
    far.hello()
    assert (house.snapshot.epoch, far.restarts) == (1, 1)
    node.epoch = 5
    house.again(node).hello()
    assert house.snapshot.epoch == 6
    node.epoch = 9
    again = house.again(node)
    again.hello()
    assert (house.snapshot.epoch, again.restarts) == (6, 1)


def test_a_report_from_another_epoch_is_not_counted(house: House, user: Talker, node: FakeNode) -> None:
    node.holding = True
    user.say(RunContainer("web", WORKLOAD))
    node.say(Applied(2, node.revision), 0)
    assert not user.has(Done)
    node.applied()
    house.settle()
    assert user.has(Done)


@pytest.mark.parametrize("message", [Applied(1, 10**6), Connect("a", "b"), ListNodes(), Done(1)])
def test_a_node_that_says_what_it_may_not_loses_its_session(
    user: Talker, node: FakeNode, message: object
) -> None:
    node.say(message, 5)
    assert node.restarts == 1
    assert state_of(user) == [("n1", "unreachable")]
    assert user.restarts == 0


def test_a_report_before_hello_costs_the_session(house: House, node: FakeNode) -> None:
    again = house.again(node)
    again.say(Applied(1, 1), 0)
    assert again.restarts == 1


def test_a_node_speaks_only_of_its_own_containers(house: House, user: Talker, node: FakeNode) -> None:
    other = house.node("n2")
    run(user, "web", "n1")
    (web,) = house.snapshot.containers.values()
    node.say(Report((ContainerStatus(web.id, "running", 1),)), 0)
    other.say(Report((ContainerStatus(web.id, "failed", 1), ContainerStatus("0" * 32, "running", 1))), 0)
    assert list(house.hub.statuses) == [web.id]
    containers = user.ask(ListContainers())
    assert isinstance(containers, ContainerList)
    assert [c.state for c in containers.containers] == ["running"]


def test_hello_brings_the_containers_as_they_are(house: House, user: Talker, node: FakeNode) -> None:
    run(user, "web")
    run(user, "db")
    web, db = (house.snapshot.containers[house.snapshot.bare_names[n]].id for n in ("web", "db"))
    node.say(Report((ContainerStatus(web, "running", 1), ContainerStatus(db, "running", 1))), 0)
    again = house.again(node)
    assert again.state is not None
    status = ContainerStatus(db, "exited", 1, 2)
    again.say(Hello(again.epoch, again.revision, digest(again.state), again.facts, (status,)))
    assert house.hub.statuses == {db: status}


def test_what_was_held_is_free_by_the_time_of_the_answer(house: House, user: Talker, node: FakeNode) -> None:
    run(user, "web")
    node.holding = True
    user.say(RemoveContainer("web", force=True))
    assert list(house.snapshot.held) == ["10.1.0.2"]
    node.applied()
    house.settle()
    assert user.has(Done)
    assert list(house.snapshot.held) == []


def test_leftovers_hold_back_the_acknowledgement(house: House, user: Talker, node: FakeNode) -> None:
    run(user, "web")
    node.errors, node.leftovers = (NodeError("", "the kernel refused"),), True
    user.say(RemoveContainer("web", force=True, timeout=2.0))
    assert list(house.snapshot.held) == ["10.1.0.2"]
    house.later(2.0)
    assert "the kernel refused" in user.last(Failure).message
    # Other errors may last for ever, as that of a peer without a common encapsulation; they hold nothing.
    node.errors, node.leftovers = (NodeError("n9", "no encapsulation in common"),), False
    node.applied()
    house.settle()
    assert list(house.snapshot.held) == []


def test_a_silent_node_is_unreachable_until_it_comes_back(user: Talker, node: FakeNode) -> None:
    house = node.house
    assert state_of(user) == [("n1", "ready")]
    for _ in range(7):
        house.later(2.5)
    assert state_of(user) == [("n1", "unreachable")]
    failure = run(user, "web")
    assert isinstance(failure, Failure)
    assert failure.code == "unavailable"
    again = house.again(node)
    again.hello()
    assert state_of(user) == [("n1", "ready")]


def test_heartbeats_go_both_ways() -> None:
    house = House(Limits(interval=5.0))
    node = house.node("n1")
    assert node.ask(Ping()) == Pong()
    house.later(5.0)
    assert node.heard[-1] == Envelope(0, Ping())
    for _ in range(20):
        node.say(Pong(), 0)
        house.later(4.0)
    assert node.restarts == 0


def test_a_node_that_leaves_is_answered_and_gone(house: House, node: FakeNode) -> None:
    other = house.node("n2")
    leaving = house.again(node)
    assert node.restarts == 0
    done = leaving.ask(Leave())
    assert isinstance(done, Done)
    assert node.restarts == 1
    assert leaving.restarts == 1
    assert sorted(house.snapshot.nodes) == ["n2"]
    assert other.state is not None
    assert other.state.peers == {}
    assert len(house.snapshot.held) == 0


def test_a_node_with_containers_leaves_by_force_only(house: House, user: Talker, node: FakeNode) -> None:
    run(user, "web")
    failure = node.ask(Leave())
    assert isinstance(failure, Failure)
    assert failure.code == "refused"
    assert isinstance(node.ask(Leave(force=True)), Done)
    assert len(house.snapshot.containers) == 0


def test_a_doubled_agent_ends_the_older_session_only_when_it_has_spoken(
    house: House, user: Talker, node: FakeNode
) -> None:
    again = FakeNode(house, node.keys, node.facts)
    again.shake_hands()
    assert isinstance(run(user, "web"), Done)
    again.say(Ping())
    assert node.restarts == 1
    assert state_of(user) == [("n1", "unreachable")]


@pytest.mark.parametrize(
    "parts", [[b""], [b"", b""], [b"\x03\x01" + bytes(8)], [b"\x01\x01node\0\0\0\0", bytes(96)]]
)
def test_junk_from_strangers_disturbs_nobody(
    house: House, user: Talker, node: FakeNode, parts: list[bytes]
) -> None:
    assert house.raw(b"stranger", parts) == []
    assert isinstance(run(user, "web"), Done)
    assert (user.restarts, node.restarts) == (0, 0)
