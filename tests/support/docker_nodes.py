"""Nodes over fakes that have a Docker engine: endpoints, namespaces, and a driver that a test plays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
from hypothesis import strategies as st

from firewall_rules.backends.base import Variant
from firewall_rules.backends.fake import FakePassages
from firewall_rules.policy import Publication
from netctl.model import ContainerStatus, DockerContainer, PlacedContainer, Workload
from netctl.wire.messages import Attach, Detach, Done, Failure, Message, NodeError, ReserveAddress
from nodeagent.agent import Agent
from nodeagent.apply import Host
from nodeagent.desired import Desired
from nodeagent.driver.view import DriverView
from nodeagent.endpoints import Endpoint, Endpoints
from nodeagent.engine.fake_docker import FakeDocker
from nodeagent.found import Found
from nodeagent.helper_client import Helper
from nodeagent.helper_messages import DockerAway, DockerChanged, DockerListed
from nodeagent.kernel_state import HostFacts
from nodeagent.sandboxes_fake import FakeFolder, FakeSandboxes
from tests.support.agents import FakeLink, FakeNode, Life, container

DOCKER_WORKLOAD = Workload("docker", (), image="web:1")


def foreign(number: int) -> PlacedContainer:
    """Return the container with address 10.1.0.`number` that Docker's user made, as it is recorded."""
    return container(number, workload=DOCKER_WORKLOAD, origin="engine")


def placed_by_docker(number: int, **changes: object) -> PlacedContainer:
    """Return the container with address 10.1.0.`number` that the broker has Docker run."""
    return container(number, workload=DOCKER_WORKLOAD, **changes)


def endpoint(number: int, **changes: object) -> Endpoint:
    """Return the endpoint, joined, of the container with address 10.1.0.`number`."""
    plain = Endpoint(
        key=f"{number:032x}"[::-1].replace("0", "e"),
        network="a" * 64,
        address=f"10.1.0.{number}",
        sandbox=f"5a{number:010x}",
        container=container(number).id,
    )
    return attrs.evolve(plain, **changes)


def published(number: int) -> Publication:
    """Return the publication of port 80 of the container with address 10.1.0.`number`."""
    return Publication("tcp", "", 8000 + number, f"10.1.0.{number}", 80)


def endpoints(*found: Endpoint) -> Endpoints:
    """Return all endpoints of a node."""
    together = Endpoints()
    for one in found:
        together = together.with_(one)
    return together


def some_endpoints() -> st.SearchStrategy[Endpoints]:
    """Endpoints of some of the addresses that `tests.support.agents.states` knows."""

    def one(number: int, form: int, known: bool, internal: bool) -> Endpoint:  # noqa: FBT001 - from hypothesis
        plain = endpoint(number, internal=internal)
        return attrs.evolve(
            plain,
            sandbox="" if form == 0 else plain.sandbox,
            publications=(published(number),) if form == 2 else (),
            container=plain.container if known else "",
        )

    single = st.builds(one, st.sampled_from((2, 3, 4)), st.integers(0, 2), st.booleans(), st.booleans())
    return st.lists(single, max_size=3, unique_by=lambda e: e.key).map(lambda found: endpoints(*found))


class DockerNode(FakeNode):
    """A `FakeNode` whose host has Docker, its namespaces and its firewall; each helper watches anew."""

    def __init__(self, directory: Path, now: Callable[[], float] = lambda: 1e9) -> None:
        super().__init__(directory, now)
        self.docker = FakeDocker()
        self.folder = FakeFolder()
        chains: dict[Variant, list[str]] = {"nft": ["return"]}
        self.passages = FakePassages(chains=chains)
        self.host = self.new_host()

    def new_host(self) -> Host:
        """Return the host as a new helper has it: it watches nothing yet."""
        return Host(
            self.kernel,
            self.layer1,
            self.layer2,
            [self.engine, self.docker],
            sandboxes=FakeSandboxes(self.folder),
            passages=self.passages,
        )

    def facts(self) -> HostFacts:
        """Return what the host is, as the agent uses it by default."""
        return attrs.evolve(super().facts(), engines=("process", "docker"))


@attrs.define
class FakeDriver:
    """A `nodeagent.docker_side.Driver` that a test plays.

    Attributes:
        endpoints: What Docker asked for.
        joining: Keys of endpoints whose Join waits; `answers` has what became of it.
        asked: What `requests` returns next.
        heard: What `hear` and `heard` were told.
    """

    endpoints: Endpoints = attrs.field(factory=Endpoints)
    joining: list[str] = attrs.field(factory=list)
    answers: dict[str, str] = attrs.field(factory=dict)
    asked: list[tuple[int, Attach | Detach | ReserveAddress]] = attrs.field(factory=list)
    heard_of: list[object] = attrs.field(factory=list)
    views: list[DriverView] = attrs.field(factory=list)
    known: tuple[DockerContainer, ...] | None = None
    states: tuple[ContainerStatus, ...] = ()
    problems: tuple[NodeError, ...] = ()
    list_wanted: bool = False
    closed: bool = False

    def readers(self) -> tuple[int, ...]:
        return ()

    def deadline(self) -> float:
        return float("inf")

    def receive(self, view: DriverView) -> None:
        self.views.append(view)

    def hear(self, event: DockerListed | DockerChanged | DockerAway) -> None:
        self.heard_of.append(event)

    def wants_list(self) -> bool:
        wanted, self.list_wanted = self.list_wanted, False
        return wanted

    def settle(self, built: Callable[[str], str | None]) -> None:
        for key in list(self.joining):
            answer = built(key)
            if answer is not None:
                self.joining.remove(key)
                self.answers[key] = answer

    def containers(self) -> tuple[DockerContainer, ...] | None:
        return self.known

    def statuses(self) -> tuple[ContainerStatus, ...]:
        return self.states

    def requests(self) -> tuple[tuple[int, Attach | Detach | ReserveAddress], ...]:
        asked, self.asked = self.asked, []
        return tuple(asked)

    def heard(self, token: int, answer: Done | Failure) -> None:
        self.heard_of.append((token, answer))

    def broker_gone(self) -> None:
        self.heard_of.append("broker gone")

    def errors(self) -> tuple[NodeError, ...]:
        return self.problems

    def close(self) -> None:
        self.closed = True

    # What a test lets Docker do.

    def put(self, *found: Endpoint) -> None:
        """Let Docker ask for endpoints, or change them."""
        for one in found:
            self.endpoints = self.endpoints.with_(one)

    def join(self, one: Endpoint) -> None:
        """Let Docker ask for an endpoint to join, and wait for the answer."""
        self.put(one)
        self.joining.append(one.key)

    def leave(self, key: str) -> None:
        """Let Docker take an endpoint away."""
        self.endpoints = self.endpoints.without(key)


@attrs.define
class NumberedLink(FakeLink):
    """A session that a test plays, which remembers the numbers of requests.

    Attributes:
        numbers: Of every message that has one, in order.
    """

    numbers: list[int] = attrs.field(factory=list)

    def send(self, message: Message, number: int = 0) -> bool:
        """See `nodeagent.session.BrokerSession`."""
        if number:
            self.numbers.append(number)
        return FakeLink.send(self, message, number)


class DockerLife(Life):
    """One agent's life on a fake node with Docker."""

    def __init__(
        self, node: DockerNode, driver: FakeDriver, spawn: Callable[[], Helper] | None = None
    ) -> None:
        self.node = node
        self.driver = driver
        self.link: NumberedLink = NumberedLink()
        self.clock = 1000.0
        self.desired = Desired(node.directory)
        self.desired.load()
        found = Found(node.directory)
        found.load()
        node.host = node.new_host()
        self.agent = Agent(
            self.link,
            self.desired,
            found,
            spawn or node.helper,
            driver=driver,
            monotonic=lambda: self.clock,
        )
