"""Any sequence of commands: what must hold after each is checked by `World`."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network

import attrs
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from netctl.broker.commands import (
    Acknowledge,
    AddConnections,
    AttachContainer,
    BindNode,
    DetachContainer,
    DropConnections,
    DropContainer,
    EnrolNode,
    Expire,
    LabelNode,
    LeaseAddress,
    RemoveNode,
    SetDraining,
    SetWanted,
    SyncContainers,
    TopUpLeases,
    UpdateFacts,
)
from netctl.errors import NetctlError
from netctl.model import ANY_PORT, DockerContainer, Encapsulation, NodeFacts, Port, Wish
from tests.support.broker import World, docker_id, facts
from tests.support.examples import examples

NODES = st.sampled_from(["n1", "n2", "n3", "n4", "n5"])
NAMES = st.sampled_from(["a", "b", "c", "d", "e", "f", "g"])
AT = st.integers(0, 11)
PORTS = st.lists(st.sampled_from([Port("tcp", 80), Port("udp", 53), Port("icmp"), ANY_PORT]), max_size=3).map(
    tuple
)
HOSTS = st.none() | st.integers(1, 6)
"""Host numbers of a block; None: no address. The first and the last are not a container's."""
WISHES = st.lists(
    st.builds(Wish, NAMES, st.sampled_from([Port("tcp", 80), Port("udp", 53), ANY_PORT])), max_size=3
).map(tuple)
ENGINES = st.sampled_from([("process", "docker"), ("process",), ("docker",)])
MODES: list[tuple[Encapsulation, ...]] = [("gre", "vxlan"), ("vxlan",), ("direct",), ("gre",)]


@st.composite
def some_facts(draw: st.DrawFn) -> NodeFacts:
    networks = draw(st.sampled_from([(), ("10.2.0.0/24",), ("10.0.0.32/28",)]))
    return facts(
        draw(st.integers(1, 6)),
        encapsulations=draw(st.sampled_from(MODES)),
        underlay_mtu=draw(st.sampled_from([600, 1500, 9000])),
        networks=networks,
        engines=draw(ENGINES),
    )


@st.composite
def reports(draw: st.DrawFn) -> tuple[int | None, DockerContainer]:
    """The number of the host's address within its block, and what a node says of a container but for that."""
    container = DockerContainer(
        docker_id(draw(st.integers(0, 5))),
        draw(st.sampled_from(["a", "b", "A", "x_y"])),
        "busybox",
        wishes=draw(WISHES),
        project=draw(st.sampled_from(["", "p"])),
        service=draw(NAMES | st.just("")),
    )
    return draw(HOSTS), container


class Broker(RuleBasedStateMachine):
    """Few names and a tiny plan, so that commands meet: seven blocks of five containers.

    It begins with something in it, and acts mostly on what is there: refusals have tests of their own.
    """

    @initialize(settled=st.booleans())
    def begin(self, *, settled: bool) -> None:
        self.world = World("10.0.0.0/26", 29)
        for number in (1, 2, 3):
            self.world.node(f"n{number}")
        for name, node in (("a", "n1"), ("b", "n2"), ("c", "n3"), ("d", "n1")):
            self.world.run(name, node)
        self.world.connect("a", "b", "80")
        self.world.connect("b", "c")
        self.world.node("n4", facts(4, engines=("docker",)))
        self.world.bind("n4", "admin")
        self.world.attach("n4", "e", wishes=("a:80",))
        self.world.connect("c", "e", "53/udp")
        if settled:
            self.world.acknowledge()

    def pick(self, names: Iterable[str], at: int) -> str:
        """Return one of the names there are, or one there is not."""
        known = sorted(names)
        return known[at % len(known)] if known else "nobody"

    def attempt(self, command: object) -> None:
        """Do it, or see that a refusal changed nothing."""
        before = self.world.snapshot
        try:
            self.world.do(command)
        except NetctlError:
            assert self.world.snapshot is before

    @rule(name=NODES, its_facts=some_facts())
    def enrol(self, name: str, its_facts: NodeFacts) -> None:
        try:
            self.world.node(name, its_facts)
        except NetctlError:
            self.attempt(EnrolNode("no invite", name, "a key", its_facts))

    @rule(at=AT, its_facts=some_facts())
    def learn(self, at: int, its_facts: NodeFacts) -> None:
        self.attempt(UpdateFacts(self.pick(self.world.snapshot.nodes, at), its_facts))

    @rule(at=AT, draining=st.booleans())
    def drain(self, at: int, *, draining: bool) -> None:
        self.attempt(SetDraining(self.pick(self.world.snapshot.nodes, at), draining))

    @rule(at=AT, force=st.booleans(), leaving=st.booleans(), reachable=st.booleans())
    def remove_node(self, at: int, *, force: bool, leaving: bool, reachable: bool) -> None:
        self.attempt(RemoveNode(self.pick(self.world.snapshot.nodes, at), force, leaving, reachable))

    @rule(name=NAMES, at=st.none() | AT)
    def add(self, name: str, at: int | None) -> None:
        before = self.world.snapshot
        try:
            self.world.run(name, None if at is None else self.pick(before.nodes, at))
        except NetctlError:
            assert self.world.snapshot is before

    @rule(at=AT, force=st.booleans())
    def drop(self, at: int, *, force: bool) -> None:
        name = self.pick(self.world.snapshot.bare_names, at)
        self.attempt(DropContainer("admin", name, force, active=True))

    @rule(at=AT, running=st.booleans())
    def want(self, at: int, *, running: bool) -> None:
        self.attempt(SetWanted("admin", self.pick(self.world.snapshot.bare_names, at), running))

    @rule(one=AT, other=AT, ports=PORTS)
    def connect(self, one: int, other: int, ports: tuple[Port, ...]) -> None:
        names = self.world.snapshot.bare_names
        self.attempt(AddConnections("admin", self.pick(names, one), self.pick(names, other), ports))

    @rule(at=AT, whole=st.booleans(), turned=st.booleans())
    def disconnect(self, at: int, *, whole: bool, turned: bool) -> None:
        snapshot = self.world.snapshot
        keys = sorted(snapshot.connections)
        if not keys:
            return
        one, other, port = keys[at % len(keys)]
        ends = (snapshot.containers[one].name, snapshot.containers[other].name)
        ports = () if whole else (port,)
        self.attempt(DropConnections("admin", *(reversed(ends) if turned else ends), ports))

    @rule(at=AT, back=st.integers(0, 4))
    def acknowledge(self, at: int, back: int) -> None:
        revision = max(0, self.world.snapshot.revision - back)
        self.attempt(Acknowledge(self.pick(self.world.snapshot.nodes, at), revision))

    @rule(at=AT, report=reports())
    def attach(self, at: int, report: tuple[int | None, DockerContainer]) -> None:
        node = self.pick(self.world.snapshot.nodes, at)
        self.attempt(AttachContainer(node, self.reported(node, report)))

    @rule(at=AT, host=HOSTS)
    def restart_container(self, at: int, host: int | None) -> None:
        """Docker's user stops or starts one again."""
        ours = {c.name for c in self.world.snapshot.containers.values() if c.docker is not None}
        if ours:
            container = self.world.container(self.pick(ours, at))
            assert container.docker is not None
            again = self.reported(container.node, (host, container.docker))
            self.attempt(AttachContainer(container.node, again))

    @rule(at=AT, number=st.integers(0, 5))
    def detach(self, at: int, number: int) -> None:
        self.attempt(DetachContainer(self.pick(self.world.snapshot.nodes, at), docker_id(number)))

    @rule(at=AT, several=st.lists(reports(), max_size=4))
    def sync(self, at: int, several: list[tuple[int | None, DockerContainer]]) -> None:
        node = self.pick(self.world.snapshot.nodes, at)
        self.attempt(SyncContainers(node, tuple(self.reported(node, one) for one in several)))

    @rule(at=AT, host=st.integers(0, 9))
    def lease(self, at: int, host: int) -> None:
        node = self.pick(self.world.snapshot.nodes, at)
        self.attempt(LeaseAddress(node, self.address(node, host)))

    @rule(at=AT)
    def top_up(self, at: int) -> None:
        self.attempt(TopUpLeases(self.pick(self.world.snapshot.nodes, at)))

    @rule(at=AT, account=st.sampled_from(["admin", "bob", None]))
    def bind(self, at: int, account: str | None) -> None:
        if "bob" not in self.world.snapshot.accounts:
            self.world.user("bob")
        self.attempt(BindNode(self.pick(self.world.snapshot.nodes, at), account))

    @rule(at=AT, value=st.sampled_from(["1", "2"]))
    def label(self, at: int, value: str) -> None:
        self.attempt(LabelNode(self.pick(self.world.snapshot.nodes, at), (("zone", value),)))

    def address(self, node: str, host: int) -> str:
        known = self.world.snapshot.nodes.get(node)
        return str(IPv4Network(known.block if known else "10.0.0.8/29").network_address + host)

    def reported(self, node: str, report: tuple[int | None, DockerContainer]) -> DockerContainer:
        host, container = report
        return attrs.evolve(container, address="" if host is None else self.address(node, host))

    @rule(seconds=st.sampled_from([1.0, 30.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.now += seconds
        self.attempt(Expire())

    @rule()
    def restart(self) -> None:
        self.world.snapshot = self.world.reloaded()

    def teardown(self) -> None:
        """Once all have acknowledged, nothing is held and no node is on its way out."""
        if hasattr(self, "world"):
            for _ in range(2):
                self.world.acknowledge()
            assert self.world.held() == {}
            assert not any(node.removing for node in self.world.snapshot.nodes.values())


Broker.TestCase.settings = settings(
    max_examples=examples(100),
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestBroker = Broker.TestCase
