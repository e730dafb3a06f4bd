"""What nodes report of Docker's containers to a whole broker, and how they are answered."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest

from netctl.model import ContainerStatus, DockerContainer, Port, Wish
from netctl.wire.messages import (
    Attach,
    BindNode,
    Connect,
    ContainerDetail,
    ContainerList,
    Detach,
    Done,
    Failure,
    Hello,
    InspectContainer,
    LabelNode,
    ListContainers,
    Message,
    NodeDetail,
    NodeError,
    NodeOpenAdopt,
    NodeOpenCopy,
    NodeOpenExec,
    OpenAdopt,
    OpenCopy,
    OpenExec,
    Progress,
    RemoveContainer,
    Report,
    ReserveAddress,
    RunContainer,
    ShowNode,
    StartContainer,
    StopContainer,
    StreamData,
    StreamEnd,
    StreamOpened,
    Update,
)
from tests.support.broker import docker_id
from tests.support.hub import WORKLOAD, FakeNode, House, Talker, facts, run

WEB = DockerContainer(docker_id(1), "web", "busybox", "10.1.0.2")
IMAGE = attrs.evolve(WORKLOAD, engine="docker", image="busybox")


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def user(house: House) -> Talker:
    return house.user()


@pytest.fixture
def node(house: House) -> FakeNode:
    """n1, which offers docker."""
    return docker_node(house, 1)


def docker_node(house: House, number: int) -> FakeNode:
    its_facts = attrs.evolve(facts(number), engines=("process", "docker"))
    node = FakeNode(house, house.enrol("node", f"n{number}", its_facts), its_facts)
    node.shake_hands()
    node.hello()
    return node


def sync(node: FakeNode, *containers: DockerContainer) -> None:
    """Say Hello with a whole list."""
    node.say(Hello(node.epoch, node.revision, "", node.facts, (), containers))


def failed(answer: Message, said: str) -> Failure:
    assert isinstance(answer, Failure), answer
    assert said in answer.message
    return answer


def held_state(node: FakeNode) -> Iterator[str]:
    assert node.state is not None
    return (container.name for container in node.state.containers.values())


def test_a_report_is_answered_after_the_update(node: FakeNode) -> None:
    answer = node.ask(Attach(WEB))
    assert isinstance(answer, Done)
    assert (answer.revision, answer.message) == (node.house.snapshot.revision, "it is recorded as web")
    kinds = [type(envelope.message) for envelope in node.heard][-2:]
    assert kinds == [Update, Done]
    assert list(held_state(node)) == ["web"]
    again = node.ask(Attach(WEB))
    assert again == answer
    assert isinstance(node.ask(Detach(WEB.id)), Done)
    assert list(held_state(node)) == []


def test_a_refusal_is_answered_and_costs_nothing(node: FakeNode) -> None:
    failed(node.ask(Attach(attrs.evolve(WEB, address="10.9.0.1"))), "no address for a container of node n1")
    assert node.restarts == 0
    node.say(Attach(WEB), 0)
    assert node.restarts == 1


def test_a_failed_commit_is_answered_so(house: House, node: FakeNode) -> None:
    house.store.fail = True
    failed(node.ask(Attach(WEB)), "the disk is full")
    house.store.fail = False
    assert not house.snapshot.containers
    assert isinstance(node.ask(Attach(WEB)), Done)


def test_a_whole_list_comes_with_hello(house: House, node: FakeNode) -> None:
    node.ask(Attach(WEB))
    other = DockerContainer(docker_id(2), "other", "busybox", "10.1.0.3")
    again = house.again(node)
    sync(again, other)
    assert list(held_state(again)) == ["other"]
    house.again(again).hello()
    # A list that is not known drops nothing.
    assert [c.name for c in house.snapshot.containers.values()] == ["other"]
    assert len(house.snapshot.held) == 0


def test_an_address_asked_for_is_on_lease_by_the_time_of_the_answer(node: FakeNode) -> None:
    assert isinstance(node.ask(ReserveAddress("10.1.9.9")), Done)
    assert node.state is not None
    assert "10.1.9.9" in node.state.reserve
    failed(node.ask(ReserveAddress("10.2.9.9")), "no address")


def test_a_fixed_address_passes_to_the_next_container_within_a_moment(
    house: House, user: Talker, node: FakeNode
) -> None:
    """As when Compose makes a service with a fixed address anew: remove, ask, start, within milliseconds."""
    other = house.node("n2")
    run(user, "db", "n2")
    node.ask(Attach(WEB))
    assert isinstance(user.ask(Connect("web", "db")), Done)
    other.holding = True
    node.ask(Detach(WEB.id))
    node.say(ReserveAddress(WEB.address), 900)
    successor = attrs.evolve(WEB, id=docker_id(2))
    node.say(Attach(successor), 901)
    assert not [e for e in node.heard if e.id in (900, 901)]
    assert not house.snapshot.addresses.get(WEB.address)
    other.applied()
    house.settle()
    answers = {e.id: e.message for e in node.heard if e.id in (900, 901)}
    assert isinstance(answers[900], Done)
    assert isinstance(answers[901], Done)
    assert house.snapshot.addresses[WEB.address] == successor.id
    assert list(held_state(node)) == ["web"]


def test_an_address_that_stays_held_is_refused_in_time(house: House, user: Talker, node: FakeNode) -> None:
    other = house.node("n2")
    run(user, "db", "n2")
    node.ask(Attach(WEB))
    user.ask(Connect("web", "db"))
    other.holding = True
    node.ask(Detach(WEB.id))
    node.say(ReserveAddress(WEB.address), 900)
    successor = attrs.evolve(WEB, id=docker_id(2))
    node.say(Attach(successor), 901)
    wake = house.hub.next_wake()
    assert wake is not None
    assert wake <= house.now + 0.5
    house.later(0.6)
    assert [type(e.message) for e in node.heard if e.id in (900, 901)] == [Failure]
    house.later(5.0)
    answers = {e.id: e.message for e in node.heard if e.id in (900, 901)}
    for answer in answers.values():
        failed(answer, "not every node has acknowledged")
    # The container is there, so it is recorded as soon as it can be.
    other.applied()
    house.settle()
    assert house.snapshot.addresses[WEB.address] == successor.id
    assert len(house.hub.deferred) == 0


def test_what_waits_is_overtaken_by_what_comes_later(house: House, user: Talker, node: FakeNode) -> None:
    other = house.node("n2")
    run(user, "db", "n2")
    node.ask(Attach(WEB))
    user.ask(Connect("web", "db"))
    other.holding = True
    node.ask(Detach(WEB.id))
    successor = attrs.evolve(WEB, id=docker_id(2))
    node.say(Attach(successor), 901)
    node.ask(Detach(successor.id))
    failed(next(e.message for e in node.heard if e.id == 901), "overtook")
    third = attrs.evolve(WEB, id=docker_id(3))
    sync(node, third)
    assert len(house.hub.deferred) == 1
    other.applied()
    house.settle()
    assert house.snapshot.addresses[WEB.address] == third.id
    assert sorted(c.name for c in house.snapshot.containers.values()) == ["db", "web"]


def test_nothing_waits_for_a_node_that_went_away(house: House, user: Talker, node: FakeNode) -> None:
    other = house.node("n2")
    run(user, "db", "n2")
    node.ask(Attach(WEB))
    user.ask(Connect("web", "db"))
    other.holding = True
    node.ask(Detach(WEB.id))
    node.say(Attach(attrs.evolve(WEB, id=docker_id(2))), 901)
    house.hub.lost(node.route, "closed")
    assert len(house.hub.deferred) == 0
    other.applied()
    house.settle()
    assert WEB.address not in house.snapshot.addresses


def test_a_reserve_follows_what_becomes_free(house: House, user: Talker) -> None:
    """A block of four: what is removed goes back on lease once it is known to be free."""
    house = House(block_size=29)
    node = docker_node(house, 1)
    user = house.user()
    for name in ("a", "b", "c"):
        assert isinstance(run(user, name), Done)
    assert node.state is not None
    first, second = sorted(node.state.reserve)
    for number, address in enumerate((first, second)):
        node.ask(Attach(DockerContainer(docker_id(number), f"d{number}", "busybox", address)))
    assert node.state.reserve == frozenset()
    freed = house.snapshot.containers[house.snapshot.bare_names["a"]].address
    assert isinstance(user.ask(RemoveContainer("a", force=True)), Done)
    assert node.state.reserve == {freed}


def test_users_see_what_docker_made_and_leave_it_to_docker(user: Talker, node: FakeNode) -> None:
    user.ask(BindNode("n1", "admin"))
    node.ask(Attach(attrs.evolve(WEB, wishes=(Wish("db", Port("tcp", 5432)),))))
    detail = user.ask(InspectContainer("web"))
    assert isinstance(detail, ContainerDetail)
    assert (detail.account, detail.workload.engine) == ("admin", "docker")
    assert detail.docker is not None
    assert (detail.docker.id, detail.docker.image) == (WEB.id, "busybox")
    (wish,) = detail.wishes
    assert (wish.destination, wish.port, wish.granted) == ("db", "5432/tcp", False)
    assert isinstance(run(user, "db"), Done)
    detail = user.ask(InspectContainer("web"))
    assert isinstance(detail, ContainerDetail)
    assert detail.wishes[0].granted
    assert [(c.destination, c.state) for c in detail.connections] == [("db", "active")]
    for request in (StopContainer("web"), StartContainer("web"), RemoveContainer("web", force=True)):
        failure = failed(user.ask(request), "made by a Docker user on node n1")
        assert "`docker " in failure.remedy


def test_its_state_is_what_the_node_says_or_docker_said(house: House, user: Talker, node: FakeNode) -> None:
    def state() -> str:
        listed = user.ask(ListContainers())
        assert isinstance(listed, ContainerList)
        return listed.containers[0].state

    node.ask(Attach(WEB))
    assert state() == "running"
    node.ask(Attach(attrs.evolve(WEB, address="")))
    assert state() == "exited"
    node.say(Report((ContainerStatus(WEB.id, "exited", 0, 3),)), 0)
    assert state() == "exited"
    node.say(Report((ContainerStatus(WEB.id, "running"),)), 0)
    assert state() == "running"
    house.hub.lost(node.route, "closed")
    assert state() == "unknown"


def test_a_status_that_comes_with_the_report_counts(house: House, user: Talker, node: FakeNode) -> None:
    house.deliver(
        node, node.seal(Attach(WEB)), node, node.seal(Report((ContainerStatus(WEB.id, "exited", 0, 3),)), 0)
    )
    detail = user.ask(InspectContainer("web"))
    assert isinstance(detail, ContainerDetail)
    assert detail.container.exit_code == 3


def test_binding_and_labels_are_shown(house: House, user: Talker) -> None:
    docker_node(house, 1)
    assert isinstance(user.ask(BindNode("n1", "admin")), Done)
    assert isinstance(user.ask(LabelNode("n1", (("zone", "a"), ("disk", "ssd")))), Done)
    assert isinstance(user.ask(LabelNode("n1", (("zone", "b"),), ("disk",))), Done)
    shown = user.ask(ShowNode("n1"))
    assert isinstance(shown, NodeDetail)
    assert (shown.account, shown.labels) == ("admin", (("zone", "b"),))
    failed(user.ask(LabelNode("n1", removed=("nothing",))), "no label 'nothing'")
    failed(user.ask(LabelNode("n1", (("a=b", "c"),))), "no name for a label")
    failed(user.ask(BindNode("n1", "nobody")), "no account is called")


def test_a_binding_is_answered_once_its_nodes_have_it(house: House, user: Talker, node: FakeNode) -> None:
    node.ask(Attach(attrs.evolve(WEB, wishes=(Wish("db", Port("tcp", 1)),))))
    run(user, "db")
    node.holding = True
    user.say(BindNode("n1", "admin"), 700)
    assert not [e for e in user.heard if e.id == 700]
    house.later(1.0)
    assert not [e for e in user.heard if e.id == 700]
    node.applied()
    house.settle()
    assert isinstance(next(e.message for e in user.heard if e.id == 700), Done)


def test_constraints_choose_the_node(user: Talker, node: FakeNode) -> None:
    docker_node(node.house, 2)
    user.ask(LabelNode("n2", (("zone", "b"),)))
    done = user.ask(RunContainer("one", IMAGE, constraints=(("zone", "b"),)))
    assert isinstance(done, Done)
    assert done.nodes == ("n2",)
    failed(user.ask(RunContainer("two", IMAGE, constraints=(("zone", "c"),))), "is labelled zone=c")
    failed(user.ask(RunContainer("two", IMAGE, "n1", constraints=(("zone", "b"),))), "is not labelled zone=b")


def test_a_start_under_way_goes_on_and_says_how_far_it_is(house: House, user: Talker, node: FakeNode) -> None:
    node.errors = (NodeError("app", "pulling", under_way=True),)
    other = house.user("bob")
    user.say(RunContainer("app", IMAGE, timeout=60.0), 700)
    other.say(StartContainer("app", timeout=60.0), 701)
    assert not [e for e in user.heard if e.id == 700]
    (app,) = house.snapshot.containers
    node.say(Report((ContainerStatus(app, "creating", 0, None, "pulling 45 %"),)), 0)
    for talker in (user, other):
        assert talker.heard[-1].id == 0
        assert talker.last(Progress) == Progress("app", "pulling 45 %")
    # Nobody else waits for it.
    assert isinstance(run(user, "plain"), Done)
    node.errors = ()
    node.applied()
    house.settle()
    assert isinstance(next(e.message for e in user.heard if e.id == 700), Done)
    count = sum(isinstance(e.message, Progress) for e in user.heard)
    node.say(Report((ContainerStatus(app, "creating", 0, None, "again"),)), 0)
    assert sum(isinstance(e.message, Progress) for e in user.heard) == count


def test_a_start_that_its_node_refused_has_failed(house: House, user: Talker, node: FakeNode) -> None:
    node.errors = (NodeError("app", "pulling", under_way=True),)
    user.say(RunContainer("app", IMAGE, timeout=60.0), 700)

    def shown() -> tuple[str, str]:
        detail = user.ask(InspectContainer("app"))
        assert isinstance(detail, ContainerDetail)
        return detail.container.state, detail.message

    assert shown() == ("creating", "")
    node.errors = (NodeError("app", "no such image", "check its name"),)
    node.applied()
    house.settle()
    failed(next(e.message for e in user.heard if e.id == 700), "no such image")
    assert shown() == ("failed", "no such image")
    node.errors = ()
    assert isinstance(user.ask(RemoveContainer("app")), Done)


def test_files_are_copied_through_a_stream(user: Talker, node: FakeNode) -> None:
    node.ask(Attach(WEB))
    opened = user.ask(OpenCopy("web", "/srv/data", "out"))
    assert isinstance(opened, StreamOpened)
    asked = node.last(NodeOpenCopy)
    assert (asked.container, asked.path, asked.direction) == (WEB.id, "/srv/data", "out")
    node.say(StreamData(asked.stream, 1, b"tar"), 0)
    node.say(StreamEnd(asked.stream, 0), 0)
    assert user.last(StreamData) == StreamData(opened.stream, 1, b"tar")
    assert user.last(StreamEnd) == StreamEnd(opened.stream, 0)
    user.ask(OpenCopy("web", "/tmp", "in"))  # noqa: S108 - a path in a container
    into = node.last(NodeOpenCopy)
    assert into.direction == "in"
    user.ask(OpenExec("web", ("true",)))
    assert node.last(NodeOpenExec).container == WEB.id


def test_a_container_is_adopted_where_docker_is(house: House, user: Talker, node: FakeNode) -> None:
    house.node("n3")
    opened = user.ask(OpenAdopt("lonely"))
    assert isinstance(opened, StreamOpened)
    asked = node.last(NodeOpenAdopt)
    assert asked.container == "lonely"
    node.say(StreamEnd(asked.stream, 0, "it is recorded as lonely"), 0)
    assert user.last(StreamEnd).message == "it is recorded as lonely"
    failed(user.ask(OpenAdopt("lonely", "n3")), "does not offer the docker engine")
    failed(user.ask(OpenAdopt("lonely", "n9")), "no node is called")
    other = docker_node(house, 2)
    failure = failed(user.ask(OpenAdopt("lonely")), "several nodes offer the docker engine: n1, n2")
    assert failure.nodes == ("n1", "n2")
    assert isinstance(user.ask(OpenAdopt("lonely", "n2")), StreamOpened)
    assert other.has(NodeOpenAdopt)
    house.hub.lost(node.route, "closed")
    assert isinstance(user.ask(OpenAdopt("lonely")), StreamOpened)
    failed(user.ask(OpenAdopt("lonely", "n1")), "unreachable")
    house.hub.lost(other.route, "closed")
    failed(user.ask(OpenAdopt("lonely")), "no reachable node offers")


def test_users_may_not_report_nor_nodes_bind(house: House, user: Talker, node: FakeNode) -> None:
    user.say(Attach(WEB))
    assert user.restarts == 1
    node.say(BindNode("n1", "admin"))
    assert node.restarts == 1
    assert not house.snapshot.containers
