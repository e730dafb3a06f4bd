"""Docker's containers as their users make them: what the broker, its nodes and Docker agree on afterwards.

The whole broker is driven in memory, by nodes that report as agents do.
"""

from __future__ import annotations

import itertools
import random

import attrs
import pytest

from netctl.broker.plan import node_state
from netctl.broker.state import load
from netctl.delta import digest
from netctl.model import DockerContainer, NodeState, Port, Wish
from netctl.wire.messages import (
    Attach,
    BindNode,
    Connect,
    Detach,
    Disconnect,
    Done,
    Hello,
    RemoveContainer,
    RemoveNode,
    ReserveAddress,
)
from tests.support.broker import docker_id
from tests.support.examples import examples
from tests.support.hub import FakeNode, House, Talker, facts, run


class Engine:
    """Docker on one node, and the agent's reports of it: addresses out of what is on lease."""

    def __init__(self, house: House, number: int) -> None:
        its_facts = attrs.evolve(facts(number), engines=("process", "docker"))
        name = f"n{number}"
        self.house = house
        self.name = name
        self.node = FakeNode(house, house.enrol("node", name, its_facts), its_facts)
        self.node.shake_hands()
        self.node.hello()
        self.containers: dict[str, DockerContainer] = {}
        self.connected = True

    _numbers = itertools.count(1)

    @property
    def state(self) -> NodeState:
        assert self.node.state is not None
        return self.node.state

    def free(self) -> str:
        """Return an address on lease that no container here has."""
        used = {container.address for container in self.containers.values()}
        return min(self.state.reserve - used)

    def run(self, name: str, address: str = "", **more: object) -> DockerContainer:
        plain = DockerContainer(docker_id(next(self._numbers)), name, "busybox", address or self.free())
        container = attrs.evolve(plain, **more)
        self.containers[container.id] = container
        self.tell(Attach(container))
        return container

    def stop(self, container: DockerContainer) -> None:
        self.change(container, address="")

    def start(self, container: DockerContainer) -> None:
        self.change(container, address=self.free())

    def change(self, container: DockerContainer, **changes: object) -> None:
        self.containers[container.id] = attrs.evolve(self.containers[container.id], **changes)
        self.tell(Attach(self.containers[container.id]))

    def rm(self, container: DockerContainer) -> None:
        del self.containers[container.id]
        self.tell(Detach(container.id))

    def tell(self, message: Attach | Detach) -> None:
        if self.connected:
            self.node.say(message)

    def away(self) -> None:
        """Lose the broker."""
        self.connected = False
        self.house.hub.lost(self.node.route, "closed")
        self.house.settle()

    def back(self) -> None:
        """Find it again, and say what there is."""
        self.connected = True
        self.node = self.house.again(self.node)
        held = digest(self.state)
        containers = tuple(self.containers.values())
        self.node.say(Hello(self.node.epoch, self.node.revision, held, self.node.facts, (), containers))


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def user(house: House) -> Talker:
    return house.user()


def agree(house: House, *engines: Engine) -> None:
    """Check that the record has what the engines have, and that nodes hold what is recorded."""
    for engine in engines:
        recorded = {
            c.id: c
            for c in house.snapshot.containers.values()
            if c.docker is not None and c.node == engine.name
        }
        assert recorded.keys() == engine.containers.keys()
        for identity, container in engine.containers.items():
            assert recorded[identity].docker == container
            assert container.address in (recorded[identity].address, "")
        assert digest(engine.state) == digest(node_state(house.snapshot, engine.name))
    addresses = {container.address for container in house.snapshot.containers.values()}
    assert len(addresses) == len(house.snapshot.containers) == len(house.snapshot.addresses)


def between(house: House) -> set[str]:
    names = {i: c.name for i, c in house.snapshot.containers.items()}
    return {f"{names[c.source]}>{names[c.destination]} {c.port}" for c in house.snapshot.connections.values()}


def compose(engine: Engine) -> dict[str, DockerContainer]:
    """Three services, of which only neighbours may talk."""
    wishes = {"web": ("api", 8000), "api": ("db", 5432), "db": None}
    return {
        service: engine.run(
            f"shop-{service}-1",
            project="shop",
            service=service,
            wishes=(Wish(wish[0], Port("tcp", wish[1])),) if wish else (),
        )
        for service, wish in wishes.items()
    }


def test_a_compose_file_states_its_connections(house: House, user: Talker) -> None:
    one, two = Engine(house, 1), Engine(house, 2)
    user.ask(BindNode("n1", "admin"))
    services = compose(one)
    compose(two)
    expected = {"shop-web-1>shop-api-1 8000/tcp", "shop-api-1>shop-db-1 5432/tcp"}
    assert between(house) == expected
    agree(house, one, two)
    permits = {(p.source, p.destination, p.port.number) for p in one.state.permits}
    address = {service: container.address for service, container in services.items()}
    assert permits == {(address["web"], address["api"], 8000), (address["api"], address["db"], 5432)}
    assert two.state.permits == frozenset()
    # A service made anew: the old one goes, another of the same name comes.
    one.rm(services["api"])
    assert between(house) == set()
    one.run("shop-api-1", project="shop", service="api", wishes=(Wish("db", Port("tcp", 5432)),))
    assert between(house) == expected
    user.ask(BindNode("n1", None))
    assert between(house) == set()
    agree(house, one, two)


def test_a_restart_keeps_connections_and_gives_the_old_address_back_late(house: House, user: Talker) -> None:
    one = Engine(house, 1)
    other = house.node("n2")
    run(user, "db", "n2")
    web = one.run("web")
    assert isinstance(user.ask(Connect("web", "db", (Port("tcp", 5432),))), Done)
    other.holding = True
    one.stop(web)
    one.start(web)
    assert web.address in house.snapshot.held
    assert web.address not in one.state.reserve
    agree(house, one)
    other.applied()
    house.settle()
    assert web.address not in house.snapshot.held
    assert other.state is not None
    assert {p.source for p in other.state.permits} == {one.containers[web.id].address}
    assert between(house) == {"web>db 5432/tcp"}


def test_what_happened_while_the_broker_was_away_is_made_up_for(house: House, user: Talker) -> None:
    one = Engine(house, 1)
    stays, goes, moves = one.run("stays"), one.run("goes"), one.run("moves")
    run(user, "db", "n1")
    for name in ("stays", "goes", "moves"):
        assert isinstance(user.ask(Connect(name, "db")), Done)
    one.away()
    one.rm(goes)
    one.stop(moves)
    one.start(moves)
    new = one.run("goes")
    assert new.address != goes.address
    one.back()
    agree(house, one)
    assert {name.partition(" ")[0] for name in between(house)} == {"stays>db", "moves>db"} or len(
        between(house)
    ) == 2
    assert one.containers[stays.id].address == stays.address


def test_a_fixed_address_comes_back_with_its_container(house: House) -> None:
    one = Engine(house, 1)
    assert isinstance(one.node.ask(ReserveAddress("10.1.44.4")), Done)
    web = one.run("web", "10.1.44.4")
    one.stop(web)
    assert isinstance(one.node.ask(ReserveAddress("10.1.44.4")), Done)
    one.change(web, address="10.1.44.4")
    agree(house, one)
    one.rm(web)
    assert isinstance(one.node.ask(ReserveAddress("10.1.44.4")), Done)
    assert "10.1.44.4" in one.state.reserve


def test_a_reserve_lasts_through_many_containers(house: House) -> None:
    one = Engine(house, 1)
    for number in range(150):
        one.rm(one.run(f"c{number}"))
    assert not house.snapshot.containers
    assert not house.snapshot.held
    assert len(one.state.reserve) >= 32
    agree(house, one)


class Anything:
    """Docker's users, netctl's users, lost sessions and slow nodes, in any order."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.house = House(block_size=26)
        self.user = self.house.user()
        self.engines = [Engine(self.house, number) for number in (1, 2)]
        self.count = 0
        run(self.user, "db", "n1")

    def step(self) -> None:
        engine = self.chance.choice(self.engines)
        containers = list(engine.containers.values())
        general = [self.run_one, self.slow_down, self.bind, self.connect, self.settle]
        single = [self.rm, self.restart, self.stop, self.miss]
        if containers and self.chance.random() < 0.6:
            self.chance.choice(single)(engine, self.chance.choice(containers))
        else:
            self.chance.choice(general)(engine)

    def run_one(self, engine: Engine) -> None:
        self.count += 1
        if len(engine.containers) < 8:
            wish = Wish(self.chance.choice(["db", "web", f"c{self.count - 1}"]), Port("tcp", 80))
            engine.run(self.chance.choice(["web", "db", f"c{self.count}"]), wishes=(wish,))

    def rm(self, engine: Engine, container: DockerContainer) -> None:
        engine.rm(container)

    def stop(self, engine: Engine, container: DockerContainer) -> None:
        engine.stop(container)

    def restart(self, engine: Engine, container: DockerContainer) -> None:
        engine.stop(container)
        engine.start(container)

    def miss(self, engine: Engine, container: DockerContainer) -> None:
        engine.away()
        engine.rm(container)
        engine.back()

    def slow_down(self, engine: Engine) -> None:
        engine.node.holding = True

    def bind(self, engine: Engine) -> None:
        self.user.say(BindNode(engine.name, self.chance.choice(["admin", None])))

    def connect(self, _engine: Engine) -> None:
        known = sorted(self.house.snapshot.bare_names)
        kind = self.chance.choice([Connect, Disconnect])
        self.user.say(kind(self.chance.choice(known), self.chance.choice(known)))

    def settle(self, _engine: Engine | None = None) -> None:
        for engine in self.engines:
            engine.node.holding = False
            engine.node.applied()
            self.house.settle()


@pytest.mark.parametrize("seed", range(examples(10)))
def test_any_sequence_ends_in_agreement(seed: int) -> None:
    anything = Anything(seed)
    for _ in range(60):
        anything.step()
    # Twice, since what was decided for one may be news for the other.
    anything.settle()
    anything.settle()
    agree(anything.house, *anything.engines)
    assert not anything.house.snapshot.held
    for engine in anything.engines:
        engine.away()
        engine.back()
    agree(anything.house, *anything.engines)


def test_all_of_it_goes_with_its_node(house: House, user: Talker) -> None:
    one, two = Engine(house, 1), Engine(house, 2)
    user.ask(BindNode("n1", "admin"))
    compose(one)
    run(user, "ours", "n2")
    assert isinstance(user.ask(RemoveNode("n1", force=True)), Done)
    assert [c.name for c in house.snapshot.containers.values()] == ["ours"]
    assert {lease.node for lease in house.snapshot.leases.values()} == {"n2"}
    assert not house.snapshot.held
    assert isinstance(user.ask(RemoveContainer("ours", force=True)), Done)
    agree(house, two)
    stored = load(1, house.snapshot.revision, "10.0.0.0/8", 16, (), house.snapshot.leases.values())
    assert stored.leases == house.snapshot.leases
