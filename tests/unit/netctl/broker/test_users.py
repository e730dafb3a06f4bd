"""What users ask of a broker, and when and how they are answered; how keys are enrolled."""

from __future__ import annotations

import pytest

from netctl.broker.journal import FencedError
from netctl.broker.sessions import Limits
from netctl.model import ContainerStatus, Port
from netctl.wire import invite
from netctl.wire.identity import KeyPair
from netctl.wire.messages import (
    BrokerStatus,
    Connect,
    ConnectionList,
    ContainerList,
    CreateInvite,
    Disconnect,
    Done,
    DrainNode,
    Enrol,
    Enrolled,
    Failure,
    GetStatus,
    InviteCreated,
    ListConnections,
    ListContainers,
    ListNodes,
    NodeDetail,
    NodeError,
    NodeList,
    NodeOpenExec,
    NodeOpenLogs,
    OpenExec,
    OpenLogs,
    Ping,
    Pong,
    RemoveContainer,
    RemoveNode,
    Report,
    RunContainer,
    ShowNode,
    StartContainer,
    StopContainer,
    StreamCredit,
    StreamData,
    StreamEnd,
    StreamOpened,
    StreamResize,
)
from tests.support.hub import WORKLOAD, FakeNode, House, Talker, facts, run

TCP = Port("tcp", 5432)


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def user(house: House) -> Talker:
    return house.user()


@pytest.fixture
def nodes(house: House) -> tuple[FakeNode, FakeNode]:
    return house.node("n1"), house.node("n2")


@pytest.fixture
def pair(user: Talker, nodes: tuple[FakeNode, FakeNode]) -> tuple[FakeNode, FakeNode]:
    """Two nodes with web on the first and db on the second."""
    assert isinstance(run(user, "web", "n1"), Done)
    assert isinstance(run(user, "db", "n2"), Done)
    return nodes


def pending(talker: Talker) -> list[object]:
    """Return what a talker was answered, but for heartbeats."""
    return [e.message for e in talker.heard if e.id and not isinstance(e.message, Pong)]


def test_a_key_joins_by_an_invite_once(house: House) -> None:
    token = house.token("user")
    first = Talker(house, KeyPair.generate(), "enrol")
    first.shake_hands()
    assert first.ask(Enrol(token, "bob")) == Enrolled("user", "bob")
    second = Talker(house, KeyPair.generate(), "enrol")
    second.shake_hands()
    failure = second.ask(Enrol(token, "eve"))
    assert isinstance(failure, Failure)
    assert failure.code == "unauthorised"
    assert sorted(house.snapshot.accounts) == ["bob"]
    assert house.user(keys=first.keys).has(Pong)
    assert house.user(keys=second.keys).last(Failure).code == "unauthorised"


def test_an_enrolling_session_ends_with_its_answer(house: House) -> None:
    joiner = Talker(house, KeyPair.generate(), "enrol")
    joiner.shake_hands()
    joiner.ask(Enrol("no such token", "bob"))
    assert joiner.restarts == 1
    assert len(house.hub.sessions) == 0


def test_an_unknown_key_may_not_ask_anything(house: House) -> None:
    stranger = Talker(house, KeyPair.generate(), "user")
    stranger.shake_hands()
    failure = stranger.ask(ListNodes())
    assert isinstance(failure, Failure)
    assert failure.code == "unauthorised"
    assert stranger.restarts == 1


def test_a_users_key_is_no_nodes_and_a_nodes_no_users(house: House, user: Talker) -> None:
    node = house.node("n1")
    as_node = Talker(house, user.keys, "node")
    as_node.shake_hands()
    as_node.say(Ping())
    assert as_node.last(Failure).code == "unauthorised"
    as_user = Talker(house, node.keys, "user")
    as_user.shake_hands()
    assert isinstance(as_user.ask(Connect("a", "b")), Failure)
    assert as_user.last(Failure).code == "unauthorised"


def test_an_invite_names_where_the_broker_is_and_lets_one_join(house: House, user: Talker) -> None:
    created = user.ask(CreateInvite("node", "n7", 60))
    assert isinstance(created, InviteCreated)
    made = invite.parse(created.invite)
    assert (made.kind, made.name, made.broker_key) == ("node", "n7", house.keys.public)
    assert made.addresses == ("tcp://192.0.2.1:2020",)
    assert made.expires_at == house.now + 60
    joiner = Talker(house, KeyPair.generate(), "enrol")
    joiner.shake_hands()
    assert joiner.ask(Enrol(made.token, "n7", facts(7))) == Enrolled(
        "node", "n7", "10.1.0.0/16", "10.0.0.0/8"
    )


def test_no_token_is_stored(house: House, user: Talker) -> None:
    created = user.ask(CreateInvite("user"))
    assert isinstance(created, InviteCreated)
    token = invite.parse(created.invite).token
    assert token not in repr(house.store.commits)
    assert invite.token_hash(token) in house.snapshot.invites


def test_connecting_is_answered_when_both_nodes_have_applied_it(
    user: Talker, pair: tuple[FakeNode, FakeNode]
) -> None:
    one, other = pair
    one.holding = other.holding = True
    before = len(pending(user))
    user.say(Connect("web", "db", (TCP,)))
    assert one.state is not None
    assert [str(permit.port) for permit in one.state.permits] == ["5432/tcp"]
    one.applied()
    one.house.settle()
    assert len(pending(user)) == before
    other.applied()
    other.house.settle()
    done = user.last(Done)
    assert (done.nodes, done.revision) == (("n1", "n2"), other.revision)
    assert len(pending(user)) == before + 1


def test_connecting_names_those_that_have_not_applied_it_in_time(
    house: House, user: Talker, pair: tuple[FakeNode, FakeNode]
) -> None:
    pair[1].holding = True
    user.say(Connect("web", "db", timeout=3.0))
    house.later(2.9)
    assert not user.has(Failure)
    house.later(0.2)
    failure = user.last(Failure)
    assert (failure.code, failure.nodes) == ("pending", ("n2",))
    assert failure.revision == house.snapshot.revision
    connections = user.ask(ListConnections())
    assert isinstance(connections, ConnectionList)
    assert [c.state for c in connections.connections] == ["pending"]
    pair[1].applied()
    house.settle()
    connections = user.ask(ListConnections())
    assert isinstance(connections, ConnectionList)
    assert [c.state for c in connections.connections] == ["active"]


def test_connecting_twice_is_answered_as_once(
    house: House, user: Talker, pair: tuple[FakeNode, FakeNode]
) -> None:
    first = user.ask(Connect("web", "db"))
    again = user.ask(Connect("db", "web"))
    assert isinstance(first, Done)
    assert isinstance(again, Done)
    assert (again.revision, again.nodes) == (first.revision, ("n1", "n2"))
    assert pair[0].revision == house.snapshot.revision == first.revision


def test_disconnecting_takes_the_permits_away(user: Talker, pair: tuple[FakeNode, FakeNode]) -> None:
    user.ask(Connect("web", "db", (TCP, Port("icmp"))))
    assert isinstance(user.ask(Disconnect("web", "db", (TCP,))), Done)
    assert pair[0].state is not None
    assert [str(permit.port) for permit in pair[0].state.permits] == ["icmp"]
    failure = user.ask(Disconnect("web", "db", (TCP,)))
    assert isinstance(failure, Failure)
    assert failure.code == "not-found"


def test_a_refusal_changes_nothing(house: House, user: Talker, pair: tuple[FakeNode, FakeNode]) -> None:
    before = (house.snapshot, len(house.store.commits), pair[0].revision)
    for request in (Connect("web", "dbb"), Connect("web", "web"), RemoveContainer("nothing")):
        assert isinstance(user.ask(request), Failure)
    assert "did you mean db" in user.ask(Connect("web", "dbb")).remedy
    assert (house.snapshot, len(house.store.commits), pair[0].revision) == before


def test_a_failed_commit_leaves_everything_as_it_was_and_says_so(
    house: House, user: Talker, pair: tuple[FakeNode, FakeNode]
) -> None:
    before = house.snapshot
    house.store.fail = True
    failure = user.ask(Connect("web", "db", key="k"))
    assert isinstance(failure, Failure)
    assert (failure.code, failure.message) == ("unavailable", "the disk is full")
    assert house.snapshot is before
    assert house.journal.head is before
    assert pair[0].state is not None
    assert pair[0].state.permits == frozenset()
    house.store.fail = False
    assert isinstance(user.ask(Connect("web", "db", key="k")), Done)


def test_a_broker_that_was_taken_over_answers_and_steps_down(
    house: House, user: Talker, pair: tuple[FakeNode, FakeNode]
) -> None:
    house.store.fenced = True
    with pytest.raises(FencedError):
        user.say(Connect("web", "db"))
    assert user.last(Failure).code == "unavailable"
    assert pair[0].state is not None
    assert pair[0].state.permits == frozenset()


def test_what_comes_together_is_one_commit(
    house: House, user: Talker, pair: tuple[FakeNode, FakeNode]
) -> None:
    other = house.user("bob")
    before = len(house.store.commits)
    house.deliver(
        user, user.seal(Connect("web", "db", (TCP,))),
        user, user.seal(Connect("web", "nothing")),
        other, other.seal(Connect("web", "db", (Port("udp", 53),))),
    )  # fmt: skip
    assert len(house.store.commits) == before + 1
    assert user.last(Failure).code == "not-found"
    assert user.last(Done).revision + 1 == other.last(Done).revision
    assert pair[0].state is not None
    assert len(pair[0].state.permits) == 2


def test_an_answered_key_returns_the_first_answer(
    house: House, user: Talker, pair: tuple[FakeNode, FakeNode]
) -> None:
    first = user.ask(Connect("web", "db", (TCP,), key="k"))
    user.ask(Disconnect("web", "db"))
    assert user.ask(Connect("web", "db", (TCP,), timeout=1.0, key="k")) == first
    connections = user.ask(ListConnections())
    assert isinstance(connections, ConnectionList)
    assert connections.connections == ()
    other = user.ask(Connect("web", "db", key="k"))
    assert isinstance(other, Failure)
    assert other.code == "invalid"
    bob = house.user("bob")
    assert isinstance(bob.ask(Connect("web", "db", key="k")), Done)
    assert len(house.snapshot.connections) == 1
    house.now += 3601
    assert isinstance(user.ask(Connect("web", "db", key="k")), Done)
    assert pair[0].revision == house.snapshot.revision


def test_a_key_asked_again_over_another_session_waits_for_the_same(
    house: House, user: Talker, nodes: tuple[FakeNode, FakeNode]
) -> None:
    nodes[0].holding = True
    user.say(RunContainer("web", WORKLOAD, "n1", key="k"))
    again = house.user(keys=user.keys)
    again.say(RunContainer("web", WORKLOAD, "n1", key="k"))
    assert len(house.snapshot.containers) == 1
    nodes[0].applied()
    house.settle()
    assert user.last(Done) == again.last(Done)


def test_a_container_that_does_not_start_fails_its_request_and_stays_listed(
    user: Talker, nodes: tuple[FakeNode, FakeNode]
) -> None:
    nodes[0].errors = (NodeError("web", "no such program", "name one that is there"),)
    failure = run(user, "web", "n1")
    assert isinstance(failure, Failure)
    assert (failure.code, failure.message, failure.nodes) == ("failed", "no such program", ("n1",))
    containers = user.ask(ListContainers())
    assert isinstance(containers, ContainerList)
    assert [c.name for c in containers.containers] == ["web"]


def test_run_says_where_it_runs(user: Talker, nodes: tuple[FakeNode, FakeNode]) -> None:
    assert run(user, "web") == Done(nodes[0].revision, ("n1",), "web runs on n1 at 10.1.0.2")


def test_starting_what_runs_is_refused_and_what_ended_is_started(
    house: House, user: Talker, pair: tuple[FakeNode, FakeNode]
) -> None:
    (web,) = (c for c in house.snapshot.containers.values() if c.name == "web")
    pair[0].say(Report((ContainerStatus(web.id, "running", 1),)), 0)
    failure = user.ask(StartContainer("web"))
    assert isinstance(failure, Failure)
    assert failure.code == "refused"
    pair[0].say(Report((ContainerStatus(web.id, "exited", 1, 3),)), 0)
    containers = user.ask(ListContainers())
    assert isinstance(containers, ContainerList)
    assert [(c.name, c.state, c.exit_code) for c in containers.containers][1] == ("web", "exited", 3)
    assert isinstance(user.ask(StartContainer("web")), Done)
    assert house.snapshot.containers[web.id].generation == 2


def test_what_runs_is_removed_by_force_only(
    house: House, user: Talker, pair: tuple[FakeNode, FakeNode]
) -> None:
    failure = user.ask(RemoveContainer("web"))
    assert isinstance(failure, Failure)
    assert failure.code == "refused"
    (web,) = (c for c in house.snapshot.containers.values() if c.name == "web")
    assert isinstance(user.ask(StopContainer("web")), Done)
    pair[0].say(Report((ContainerStatus(web.id, "exited", 1, 0),)), 0)
    assert isinstance(user.ask(RemoveContainer("web")), Done)
    assert isinstance(user.ask(RemoveContainer("db", force=True)), Done)
    assert house.hub.statuses == {}
    assert len(house.snapshot.held) == 0


def test_a_node_is_drained_and_removed(house: House, user: Talker, pair: tuple[FakeNode, FakeNode]) -> None:
    assert isinstance(user.ask(DrainNode("n2")), Done)
    refused = user.ask(RemoveNode("n2"))
    assert isinstance(refused, Failure)
    assert refused.code == "refused"
    assert isinstance(user.ask(RemoveNode("n2", force=True)), Done)
    assert pair[1].state is not None
    assert pair[1].state.block is None
    assert sorted(house.snapshot.nodes) == ["n1"]
    assert pair[1].restarts == 1
    node_list = user.ask(ListNodes())
    assert isinstance(node_list, NodeList)
    assert [n.name for n in node_list.nodes] == ["n1"]
    assert pair[0].state is not None
    assert pair[0].state.peers == {}
    gone = house.again(pair[1])
    gone.hello()
    assert gone.last(Failure).code == "unauthorised"


def test_a_node_that_cannot_be_reached_is_fenced(
    house: House, user: Talker, pair: tuple[FakeNode, FakeNode]
) -> None:
    house.hub.lost(pair[1].route, "closed")
    assert isinstance(user.ask(RemoveNode("n2", force=True)), Done)
    assert sorted(house.snapshot.nodes) == ["n1"]
    assert len(house.snapshot.held) == 0


def test_the_status_counts(user: Talker, pair: tuple[FakeNode, FakeNode]) -> None:
    pair[1].house.hub.lost(pair[1].route, "closed")
    status = user.ask(GetStatus())
    assert isinstance(status, BrokerStatus)
    assert (status.containers, status.nodes, status.account) == (2, {"ready": 1, "unreachable": 1}, "admin")
    detail = user.ask(ShowNode("n1"))
    assert isinstance(detail, NodeDetail)
    assert detail.peers == {"n2": "gre"}


def test_a_command_in_a_container_is_carried_both_ways(
    house: House, user: Talker, pair: tuple[FakeNode, FakeNode]
) -> None:
    opened = user.ask(OpenExec("web", ("cat",), (("A", "b"),), "nobody", tty=True, rows=24, columns=80))
    assert isinstance(opened, StreamOpened)
    (web,) = (c for c in house.snapshot.containers.values() if c.name == "web")
    asked = pair[0].last(NodeOpenExec)
    assert asked == NodeOpenExec(asked.stream, web.id, ("cat",), (("A", "b"),), "nobody", True, 24, 80)
    user.say(StreamData(opened.stream, 0, b"in", eof=True), 0)
    user.say(StreamResize(opened.stream, 1, 2), 0)
    assert pair[0].last(StreamData) == StreamData(asked.stream, 0, b"in", eof=True)
    assert pair[0].last(StreamResize) == StreamResize(asked.stream, 1, 2)
    pair[0].say(StreamData(asked.stream, 1, b"out"), 0)
    pair[0].say(StreamCredit(asked.stream, 2), 0)
    pair[0].say(StreamEnd(asked.stream, 7), 0)
    assert user.last(StreamData) == StreamData(opened.stream, 1, b"out")
    assert user.last(StreamCredit) == StreamCredit(opened.stream, 2)
    assert user.last(StreamEnd) == StreamEnd(opened.stream, 7)


def test_a_stream_ends_with_either_side(house: House, user: Talker, pair: tuple[FakeNode, FakeNode]) -> None:
    user.ask(OpenLogs("web", 10, follow=True))
    asked = pair[0].last(NodeOpenLogs)
    assert (asked.tail, asked.follow) == (10, True)
    house.hub.lost(user.route, "closed")
    house.settle()
    assert pair[0].last(StreamEnd) == StreamEnd(asked.stream, message="the user went away")
    other = house.user(keys=user.keys)
    opened = other.ask(OpenLogs("web"))
    assert isinstance(opened, StreamOpened)
    house.hub.lost(pair[0].route, "closed")
    house.settle()
    assert other.last(StreamEnd) == StreamEnd(opened.stream, message="node n1 went away")
    failure = other.ask(OpenLogs("web"))
    assert isinstance(failure, Failure)
    assert (failure.code, failure.nodes) == ("unavailable", ("n1",))


@pytest.mark.parametrize("number", [0, 1])
def test_a_request_without_an_id_of_its_own_costs_the_session(
    user: Talker, pair: tuple[FakeNode, FakeNode], number: int
) -> None:
    pair[0].holding = True
    user.say(Connect("web", "db"), 1)
    user.say(Connect("web", "db"), number)
    assert user.restarts == 1


def test_requests_that_wait_are_bounded(user: Talker, pair: tuple[FakeNode, FakeNode]) -> None:
    pair[0].holding = True
    for _ in range(257):
        user.say(Connect("web", "db"))
    assert user.last(Failure).code == "exhausted"
    assert sum(isinstance(e.message, Failure) for e in user.heard) == 1


def test_whoever_went_away_is_not_answered(
    house: House, user: Talker, pair: tuple[FakeNode, FakeNode]
) -> None:
    pair[0].holding = True
    user.say(Connect("web", "db"))
    house.hub.lost(user.route, "closed")
    pair[0].applied()
    house.settle()
    assert len(house.hub.waiting) == 0
    assert len(house.snapshot.connections) == 1


def test_time_ends_invites_and_answers(house: House, user: Talker) -> None:
    user.ask(CreateInvite("user", ttl=5))
    house.later(6.0)
    house.later(10.0)
    assert len(house.snapshot.invites) == 0
    house.later(700.0)
    assert len(house.store.forgotten) == 2


def test_the_hub_sleeps_until_there_is_something_to_do() -> None:
    house = House(Limits(interval=5.0))
    house.later(0.0)
    assert house.hub.next_wake() is None
    house.user()
    wake = house.hub.next_wake()
    assert wake is not None
    assert 0 < wake - house.now <= 2.5
