"""The agent with Docker at its side: a driver that a test plays, and Docker's engine in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from firewall_rules import names
from netctl.errors import UnavailableError
from netctl.model import ContainerStatus, DockerContainer, NodeDelta, NodeState
from netctl.wire.messages import (
    Attach,
    Detach,
    Done,
    Envelope,
    Failure,
    Hello,
    NodeError,
    NodeOpenAdopt,
    NodeOpenCopy,
    Report,
    Reset,
    StreamEnd,
    Update,
)
from nodeagent.agent import RESYNC
from nodeagent.docker_side import AFTERWARDS, PATIENCE
from nodeagent.helper_fake import LocalHelper
from nodeagent.helper_messages import DockerAway, DockerListed
from nodeagent.kernel_state import EngineContainer
from nodeagent.ops import SetContainerRules, SetEndpoint, UpdateHostRules, WatchSandbox
from nodeagent.reports import MAX_ERRORS
from nodeagent.under_way import FIRST_REST
from tests.support.agents import REMOVED, container, permit, state
from tests.support.docker_nodes import (
    DockerLife,
    DockerNode,
    FakeDriver,
    endpoint,
    endpoints,
    foreign,
    placed_by_docker,
    published,
)

WEB, MINE = foreign(2), placed_by_docker(3)
WEB_END = endpoint(2)
BASE = state([WEB], permits=[permit(WEB.address, "10.2.0.2", "80/tcp")])
SEEN = DockerContainer(WEB.id, "web", "web:1", WEB.address)


@pytest.fixture
def node(tmp_path: Path) -> DockerNode:
    return DockerNode(tmp_path)


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def life(node: DockerNode, driver: FakeDriver) -> Iterator[DockerLife]:
    made = DockerLife(node, driver)
    made.agent.begin()
    yield made
    made.agent.close()
    assert driver.closed


def settled(life: DockerLife, wanted: NodeState = BASE) -> DockerLife:
    life.meet(1, 10, wanted)
    life.turn(4)
    assert life.link.applied.revision == 10
    return life


def bindings(node: DockerNode) -> set[str]:
    policy = node.observed().host_policy
    assert policy is not None
    return {binding.device for binding in policy.bindings}


OPEN = {names.port_device(WEB_END.key)}


# --- endpoints --------------------------------------------------------------------------------------


def test_a_container_of_dockers_user_from_its_join_to_its_leave(
    life: DockerLife, node: DockerNode, driver: FakeDriver
) -> None:
    settled(life, state())
    unknown = attrs.evolve(WEB_END, container="")
    driver.join(unknown)
    life.turn()
    # Docker may go on: the far end is there to be moved, and nothing passes.
    assert driver.answers == {WEB_END.key: ""}
    node.kernel.docker_moves(WEB_END.key)
    assert bindings(node) == set()
    # Whose it is, by Docker's event; and the broker's record of it.
    driver.put(WEB_END)
    driver.asked.append((7, Attach(SEEN)))
    life.turn()
    assert life.link.said(Attach) == [Attach(SEEN)]
    life.link.say(Update(1, 10, 11, NodeDelta(containers=(WEB,), permits=tuple(BASE.permits))))
    life.turn()
    assert bindings(node) == set()
    # Its namespace: layer 1, acknowledged, and then its port, in one turn and without a look at the host.
    looks = node.kernel.observations
    node.folder.make(WEB_END.sandbox)
    life.turn()
    assert node.kernel.observations == looks
    assert bindings(node) == OPEN
    assert node.layer1.tables[WEB_END.key].container is not None
    driver.leave(WEB_END.key)
    life.turn()
    assert bindings(node) == set()
    assert (node.kernel.ports, node.kernel.far_ends) == ({}, {})
    assert node.host.observe().sandboxes == {}


def test_the_order_is_port_rules_opening(node: DockerNode, driver: FakeDriver) -> None:
    helpers: list[LocalHelper] = []

    def spawn() -> LocalHelper:
        helpers.append(node.helper())
        return helpers[-1]

    life = DockerLife(node, driver, spawn)
    life.agent.begin()
    settled(life)
    before = len(helpers[0].applied)
    node.folder.make(WEB_END.sandbox)
    driver.join(WEB_END)
    life.turn(2)
    # A namespace that is there already, as with `docker network connect`: layer 1 before the answer.
    assert driver.answers == {WEB_END.key: ""}
    assert [type(op) for op in helpers[0].applied[before:]] == [
        WatchSandbox,
        SetEndpoint,
        SetContainerRules,
        UpdateHostRules,
    ]
    life.agent.close()


def test_a_join_waits_for_layer_one_where_the_namespace_is_there(
    life: DockerLife, node: DockerNode, driver: FakeDriver
) -> None:
    settled(life)
    node.folder.make(WEB_END.sandbox)
    node.layer1.fail_next = ["no memory"] * 99
    driver.join(WEB_END)
    life.turn(2)
    assert driver.answers == {WEB_END.key: "no memory"}
    assert bindings(node) == set()
    # The control: a namespace that comes later is not waited for.
    other = endpoint(3)
    driver.join(other)
    life.turn(2)
    assert driver.answers[other.key] == ""


def test_a_join_is_told_why_it_cannot_be(life: DockerLife, node: DockerNode, driver: FakeDriver) -> None:
    settled(life)
    node.kernel.refuse[SetEndpoint] = "the node's bridge is full"
    driver.join(WEB_END)
    life.turn(2)
    assert driver.answers == {WEB_END.key: "the node's bridge is full"}


def test_nothing_joins_a_node_without_a_block(node: DockerNode, driver: FakeDriver) -> None:
    life = DockerLife(node, driver)
    life.agent.begin()
    driver.join(WEB_END)
    life.turn()
    assert driver.answers[WEB_END.key]
    assert node.kernel.ports == {}
    life.agent.close()


def test_what_is_not_acknowledged_stays_closed(
    life: DockerLife, node: DockerNode, driver: FakeDriver
) -> None:
    settled(life)
    driver.join(WEB_END)
    life.turn()
    node.layer1.fail_next = ["no memory"] * 2
    node.folder.make(WEB_END.sandbox)
    life.turn(2)
    assert bindings(node) == set()
    assert [error.subject for error in life.link.applied.errors] == [WEB.name]
    life.clock += 1
    life.turn(2)
    assert bindings(node) == OPEN
    assert life.link.applied.errors == ()


def test_a_namespace_that_is_replaced_gets_its_own_rules_before_it_is_opened(
    life: DockerLife, node: DockerNode, driver: FakeDriver
) -> None:
    settled(life)
    node.folder.make(WEB_END.sandbox)
    driver.put(WEB_END)
    life.turn(2)
    assert bindings(node) == OPEN
    writes = list(node.layer1.writes)
    node.folder.make(WEB_END.sandbox)
    life.turn(2)
    assert bindings(node) == OPEN
    assert node.layer1.writes[len(writes) :] == [("install", WEB_END.key)]
    # One that goes closes its port.
    node.folder.end(WEB_END.sandbox)
    life.turn(2)
    assert bindings(node) == set()


def test_a_restarted_agent_interrupts_nothing(node: DockerNode, driver: FakeDriver) -> None:
    life = DockerLife(node, driver)
    life.agent.begin()
    settled(life)
    node.folder.make(WEB_END.sandbox)
    driver.put(WEB_END)
    life.turn(2)
    assert bindings(node) == OPEN
    life.agent.close()
    writes = (node.kernel.writes, list(node.layer1.writes), list(node.layer2.writes))
    again = DockerLife(node, FakeDriver(endpoints=driver.endpoints))
    again.agent.begin()
    again.turn(3)
    assert (node.kernel.writes, node.layer1.writes, node.layer2.writes) == writes
    assert bindings(node) == OPEN
    # The control: it follows the namespace.
    node.folder.end(WEB_END.sandbox)
    again.turn(2)
    assert bindings(node) == set()
    again.agent.close()


def test_a_helper_that_ended_is_told_of_every_namespace_again(node: DockerNode, driver: FakeDriver) -> None:
    class Mortal(LocalHelper):
        dead = False

        def events(self):  # noqa: ANN202 - as LocalHelper's
            if self.dead:
                raise UnavailableError("killed")
            return super().events()

    helpers: list[Mortal] = []

    def spawn() -> Mortal:
        node.host = node.new_host()
        helpers.append(Mortal(node.host))
        return helpers[-1]

    life = DockerLife(node, driver, spawn)
    life.agent.begin()
    settled(life)
    node.folder.make(WEB_END.sandbox)
    driver.put(WEB_END)
    life.turn(2)
    writes = list(node.layer2.writes)
    helpers[-1].dead = True
    life.turn()
    assert isinstance(driver.heard_of[-1], DockerAway)
    life.clock += 1
    life.turn(3)
    assert len(helpers) == 2
    assert node.layer2.writes == writes
    assert bindings(node) == OPEN
    life.agent.close()


def test_the_agent_takes_everything_out_when_its_node_is_removed(
    life: DockerLife, node: DockerNode, driver: FakeDriver
) -> None:
    settled(life, state([WEB, MINE]))
    node.folder.make(WEB_END.sandbox)
    driver.put(WEB_END)
    life.turn(3)
    assert node.passages.read() == {"nft": True}
    life.link.say(Reset(1, 11, REMOVED))
    life.turn(2)
    life.clock += 60
    life.turn(3)
    observed = node.observed()
    assert (observed.ports, observed.sandboxes, observed.containers) == ({}, {}, {})
    assert observed.host_policy is None
    assert node.passages.chains == {"nft": ["return"]}
    assert life.agent.removed
    # What Docker's user made is Docker's to remove.
    assert [call for call in node.docker.calls if call[1] == WEB.id] == []


# --- the broker -------------------------------------------------------------------------------------


def test_the_broker_hears_of_dockers_containers(life: DockerLife, driver: FakeDriver) -> None:
    driver.known = (SEEN,)
    driver.states = (ContainerStatus(WEB.id, "running"), ContainerStatus("f" * 32, "running"))
    settled(life)
    (hello,) = life.link.said(Hello)
    assert isinstance(hello, Hello)
    assert hello.docker == (SEEN,)
    assert "docker" in hello.facts.engines
    # Only what is recorded is reported.
    reported = [status for message in life.link.said(Report) for status in message.containers]  # type: ignore[attr-defined]
    assert [status.id for status in reported] == [WEB.id]
    driver.states = (ContainerStatus(WEB.id, "exited", 0, 3),)
    life.turn()
    (status,) = life.link.said(Report)[-1].containers  # type: ignore[attr-defined]
    assert (status.state, status.exit_code) == ("exited", 3)


def test_answers_find_who_asked(life: DockerLife, driver: FakeDriver) -> None:
    settled(life)
    life.link.numbers.clear()
    driver.asked = [(7, Attach(SEEN)), (8, Detach("f" * 32))]
    life.turn()
    numbers = list(life.link.numbers)
    assert len(set(numbers)) == 2
    refusal = Failure("exists", "no")
    life.link.incoming += [Envelope(numbers[1], refusal), Envelope(numbers[0], Done(11))]
    life.turn()
    assert driver.heard_of == [(8, refusal), (7, Done(11))]
    # The same number again is nobody's, and a refusal of it not of the session.
    life.link.incoming.append(Envelope(numbers[0], Done(11)))
    life.turn()
    assert driver.heard_of == [(8, refusal), (7, Done(11))]
    assert life.link.postponed == []


def test_nothing_is_asked_before_the_broker_listens(life: DockerLife, driver: FakeDriver) -> None:
    driver.asked = [(7, Attach(SEEN))]
    life.turn()
    life.link.connect()
    life.turn()
    assert life.link.said(Attach) == []
    assert not driver.views[-1].connected
    life.link.say(Reset(1, 10, BASE))
    life.turn()
    assert life.link.said(Attach) == [Attach(SEEN)]
    life.turn()
    assert driver.views[-1].connected
    assert driver.views[-1].block == "10.1.0.0/16"
    life.link.lose()
    life.turn()
    assert driver.heard_of == ["broker gone"]
    assert not driver.views[-1].connected


def test_what_is_wrong_with_docker_is_reported(life: DockerLife, driver: FakeDriver) -> None:
    driver.problems = tuple(NodeError(f"c{n}", "bad label") for n in range(MAX_ERRORS + 5))
    settled(life)
    assert len(life.link.applied.errors) == MAX_ERRORS
    driver.problems = ()
    life.turn()
    assert life.link.applied.errors == ()


def test_streams_of_docker_are_opened(life: DockerLife, node: DockerNode) -> None:
    settled(life, state([MINE]))
    life.turn(3)
    life.link.say(NodeOpenCopy(1, MINE.id, "/etc/hosts", "out"))
    life.link.say(NodeOpenAdopt(2, "web"))
    life.turn()
    (copy,) = node.docker.copies.values()
    assert (copy.path, copy.direction) == ("/etc/hosts", "out")
    (handle,) = node.docker.adoptions
    assert node.docker.adoptions[handle].block == "10.1.0.0/16"
    node.docker.end_adoption(handle, 0, MINE.id * 2)
    life.turn()
    assert StreamEnd(2, 0, f"{MINE.name} has joined at {MINE.address}") in life.link.sent


# --- the engine -------------------------------------------------------------------------------------


def test_docker_takes_its_time_and_nobody_else_waits(life: DockerLife, node: DockerNode) -> None:
    node.docker.auto = False
    life.meet(1, 10, state([MINE, container(4)]))
    life.turn(3)
    # The other container runs, and what is under way is told as that.
    (error,) = life.link.applied.errors
    assert (error.subject, error.under_way) == (MINE.name, True)
    node.docker.become(MINE.id, EngineContainer("creating", 0, None, "pulling 45 %"))
    life.turn()
    (status,) = life.link.said(Report)[-1].containers  # type: ignore[attr-defined]
    assert (status.state, status.message) == ("creating", "pulling 45 %")
    assert life.link.applied.errors == (error,)
    node.docker.become(MINE.id, EngineContainer("created"))
    life.turn()
    assert node.docker.calls == [("create", MINE.id), ("start", MINE.id)]
    node.docker.become(MINE.id, EngineContainer("running", 1))
    life.turn()
    assert life.link.applied.errors == ()


def test_a_container_that_docker_cannot_make_is_tried_again_ever_more_slowly(
    life: DockerLife, node: DockerNode
) -> None:
    node.docker.auto = False
    life.meet(1, 10, state([MINE]))
    life.turn(2)
    failed = EngineContainer("failed", 0, None, "no such image: web:1")
    node.docker.become(MINE.id, failed)
    life.turn(2)
    errors = [e for m in life.link.sent for e in getattr(m, "errors", ()) if not e.under_way]
    assert [error.subject for error in errors] == [MINE.name]
    assert "no such image" in errors[0].message
    (status,) = life.link.said(Report)[-1].containers  # type: ignore[attr-defined]
    assert status.state == "failed"
    for pause in (FIRST_REST, 2 * FIRST_REST):
        calls = list(node.docker.calls)
        life.clock += pause - 1
        life.turn(2)
        assert node.docker.calls == calls
        life.clock += 1
        life.turn()
        assert node.docker.calls[len(calls) :] == [("remove", MINE.id)]
        node.docker.finish_removal(MINE.id)
        life.turn(2)
        assert node.docker.calls[len(calls) :] == [("remove", MINE.id), ("create", MINE.id)]
        node.docker.become(MINE.id, failed)
        life.turn(2)
    # Its user need not wait, and hears what becomes of it.
    calls = list(node.docker.calls)
    again = attrs.evolve(MINE, generation=MINE.generation + 1)
    life.link.say(Update(1, 10, 11, NodeDelta(containers=(again,))))
    life.turn(2)
    assert node.docker.calls[len(calls) :] == [("remove", MINE.id)]
    assert [(e.subject, e.under_way) for e in life.link.applied.errors] == [(MINE.name, True)]
    node.docker.finish_removal(MINE.id)
    life.turn(2)
    node.docker.become(MINE.id, failed)
    life.turn(2)
    assert ("no such image" in life.link.applied.errors[0].message, life.link.applied.revision) == (True, 11)


def test_a_removal_is_not_done_before_docker_says_so(life: DockerLife, node: DockerNode) -> None:
    settled(life, state([MINE]))
    life.turn(2)
    node.docker.auto = False
    life.link.say(Update(1, 10, 11, NodeDelta(containers_removed=(MINE.id,))))
    life.turn(2)
    assert life.link.applied.revision == 11
    (error,) = life.link.applied.errors
    assert (error.subject, error.under_way) == (MINE.name, True)
    assert life.link.applied.leftovers
    life.clock += RESYNC
    life.turn(2)
    assert life.link.applied.leftovers
    node.docker.finish_removal(MINE.id)
    life.turn(2)
    assert (life.link.applied.errors, life.link.applied.leftovers) == ((), False)
    assert [call for call in node.docker.calls if call[0] == "remove"] == [("remove", MINE.id)]


def test_while_docker_is_away_nothing_is_done_to_its_containers(life: DockerLife, node: DockerNode) -> None:
    settled(life, state([MINE]))
    life.turn(2)
    calls = list(node.docker.calls)
    node.docker.go()
    life.clock += RESYNC
    life.turn(3)
    assert node.docker.calls == calls
    assert life.link.said(Report)[-1].containers[0].state == "unknown"  # type: ignore[attr-defined]
    node.docker.come_back()
    life.turn(3)
    assert life.link.said(Report)[-1].containers[0].state == "running"  # type: ignore[attr-defined]
    assert node.docker.calls == calls


def test_docker_is_revived_once_everything_is_taken_up(
    life: DockerLife, node: DockerNode, driver: FakeDriver
) -> None:
    node.docker.come_back()
    life.turn()
    assert isinstance(driver.heard_of[-1], DockerListed)
    # The broker gets a moment to say what is wanted.
    assert node.docker.revivals == 0
    settled(life)
    life.turn()
    assert node.docker.revivals == 1
    # Docker says only after its call was refused that a container could not be started.
    life.clock += AFTERWARDS - 0.01
    life.turn(2)
    assert node.docker.revivals == 1
    life.clock += 0.01
    life.turn(2)
    assert node.docker.revivals == 2
    life.clock += 10
    life.turn(2)
    assert node.docker.revivals == 2
    # Its calls were not answered for a while: it is listed, and what it was refused is started.
    node.docker.list_docker()
    life.turn(2)
    assert node.docker.revivals == 3
    # Docker starts again, its firewall without our rule, the broker away.
    life.link.lose()
    node.passages.flush("nft")
    node.docker.come_back()
    life.turn(2)
    assert node.passages.read() == {"nft": True}
    life.clock += PATIENCE
    life.turn()
    assert node.docker.revivals == 4


def test_docker_is_listed_when_the_driver_wants_it(life: DockerLife, driver: FakeDriver) -> None:
    driver.list_wanted = True
    life.turn(2)
    (listed,) = (event for event in driver.heard_of if isinstance(event, DockerListed))
    assert not listed.fresh


def test_publications_follow_the_endpoint(life: DockerLife, node: DockerNode, driver: FakeDriver) -> None:
    settled(life)
    node.folder.make(WEB_END.sandbox)
    driver.put(attrs.evolve(WEB_END, publications=(published(2),)))
    life.turn(2)
    assert node.observed().host_policy.publications == {published(2)}  # type: ignore[union-attr]
    driver.put(WEB_END)
    life.turn(2)
    assert node.observed().host_policy.publications == frozenset()  # type: ignore[union-attr]
    assert bindings(node) == OPEN


def test_an_endpoint_that_the_helper_refuses_costs_nobody_else_anything(
    life: DockerLife, node: DockerNode, driver: FakeDriver
) -> None:
    settled(life)
    driver.endpoints = endpoints(attrs.evolve(endpoint(3), sandbox="not-hex"), WEB_END)
    node.folder.make(WEB_END.sandbox)
    life.turn(3)
    assert bindings(node) == OPEN
