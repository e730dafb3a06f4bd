"""A broker without sockets, a store with fault switches, and talkers that shake hands with it in memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TypeVar

import attrs

from netctl.broker import nodes, users
from netctl.broker.commands import AddInvite
from netctl.broker.draft import identity_of
from netctl.broker.hub import About, Hub
from netctl.broker.journal import FencedError, Journal, Remembered
from netctl.broker.sessions import Limits
from netctl.broker.snapshot import Change, Put, Record, Snapshot
from netctl.broker.state import empty, load
from netctl.delta import apply_delta, digest
from netctl.errors import UnavailableError
from netctl.model import (
    WIREGUARD_PORTS,
    Encryption,
    Finding,
    NodeFacts,
    NodeState,
    PathState,
    WireguardEnd,
    Workload,
)
from netctl.wire.identity import KeyPair
from netctl.wire.invite import token_hash
from netctl.wire.messages import (
    Applied,
    Enrol,
    Enrolled,
    Envelope,
    Examine,
    Examined,
    Facts,
    Hello,
    Message,
    NodeError,
    Paths,
    Ping,
    Reset,
    RunContainer,
    Update,
)
from netctl.wire.session import DATA, RESTART, ClientHandshake, Frame, Role, Session, parse_header

T = TypeVar("T")
WORKLOAD = Workload("process", ("sleep", "inf"))


def facts(number: int) -> NodeFacts:
    """Return what a plain node says of itself."""
    return NodeFacts(f"192.168.0.{number}", "", 1500, ("gre",), "nftables", ("process",))


class FakeStore:
    """Keeps what is committed; `fail` and `fenced` make the next commits fail."""

    def __init__(self) -> None:
        self.commits: list[tuple[list[Change], list[Remembered]]] = []
        self.rows: dict[tuple[type, object], Record] = {}
        self.place = (1, 0)
        self.fail = False
        self.fenced = False
        self.forgotten: list[tuple[float, int]] = []

    def commit(
        self,
        changes: list[Change],
        *,
        before: tuple[int, int],
        after: tuple[int, int],
        answers: list[Remembered],
    ) -> None:
        if self.fail:
            raise UnavailableError("the disk is full", "make room")
        if self.fenced or before != self.place:
            raise FencedError("another broker has taken over this store")
        self.place = after
        for change in changes:
            identity = (type(change.record), identity_of(change.record))
            if isinstance(change, Put):
                self.rows[identity] = change.record
            else:
                self.rows.pop(identity, None)
        self.commits.append((changes, answers))

    def forget(self, before: float, keep: int) -> None:
        self.forgotten.append((before, keep))


class Talker:
    """One connection to the hub, and the session on it."""

    def __init__(self, house: House, keys: KeyPair, role: Role) -> None:
        self.house = house
        self.keys = keys
        self.role = role
        self.route = house.new_route()
        self.session: Session | None = None
        self.heard: list[Envelope] = []
        self.restarts = 0
        self._handshake = ClientHandshake(keys, house.keys.public, role)
        self._ids = itertools.count(1)

    def first(self) -> Frame:
        return self._handshake.first()

    def shake_hands(self) -> None:
        self.house.deliver(self, self.first())

    def take(self, frame: Frame) -> None:
        kind = parse_header(frame.header).type
        if kind == RESTART:
            self.restarts += 1
        elif kind == DATA:
            assert self.session is not None
            self.heard.append(self.session.open(frame.header, frame.body))
        else:
            self.session = self._handshake.finish(frame.header, frame.body)

    def seal(self, message: Message, number: int | None = None) -> Frame:
        assert self.session is not None
        return self.session.seal(Envelope(next(self._ids) if number is None else number, message))

    def say(self, message: Message, number: int | None = None) -> None:
        self.house.deliver(self, self.seal(message, number))

    def ask(self, message: Message) -> Message:
        """Say something and return the one answer that came at once."""
        number = next(self._ids)
        self.say(message, number)
        answers = [e.message for e in self.heard if e.id == number]
        assert len(answers) == 1, answers
        return answers[0]

    def last(self, kind: type[T]) -> T:
        found = [e.message for e in self.heard if isinstance(e.message, kind)]
        assert found, f"no {kind.__name__} was heard"
        return found[-1]

    def has(self, kind: type) -> bool:
        return any(isinstance(e.message, kind) for e in self.heard)


def wireguard_end(number: int, generation: int) -> WireguardEnd:
    """Return the end that node `number` makes for a generation."""
    return WireguardEnd(generation, f"{number:032x}{generation:032x}", WIREGUARD_PORTS[generation % 2])


class FakeNode(Talker):
    """A node's agent that applies what it is told at once, unless `holding`, and reports its `errors`.

    It makes the WireGuard keys it is to have, and says so; it examines its host with `findings` and a clock
    that is `ahead`, unless `mute`.
    """

    def __init__(self, house: House, keys: KeyPair, its_facts: NodeFacts) -> None:
        super().__init__(house, keys, "node")
        self.facts = its_facts
        self.state: NodeState | None = None
        self.epoch = 0
        self.revision = 0
        self.holding = False
        self.errors: tuple[NodeError, ...] = ()
        self.leftovers = False
        self.findings: tuple[Finding, ...] = ()
        self.ahead = 0.0
        self.mute = False

    def hello(self) -> None:
        held = digest(self.state) if self.state is not None else ""
        self.say(Hello(self.epoch, self.revision, held, self.facts))

    def take(self, frame: Frame) -> None:
        before = len(self.heard)
        super().take(frame)
        for envelope in self.heard[before:]:
            message = envelope.message
            if isinstance(message, Reset):
                self.state = message.state
            elif isinstance(message, Update):
                assert self.state is not None
                assert message.base == self.revision
                self.state = apply_delta(self.state, message.delta)
            elif isinstance(message, Examine) and not self.mute:
                told = Examined(self.findings, self.house.now + self.ahead)
                self.house.queue(self, self.seal(told, envelope.id))
                continue
            else:
                continue
            self.epoch, self.revision = message.epoch, message.revision
            if not self.holding:
                self.make_keys()
                self.applied()

    def make_keys(self) -> None:
        """Have the keys that are wanted and no others, and say so."""
        assert self.state is not None
        number = int(self.facts.underlay.rpartition(".")[2])
        ends = tuple(wireguard_end(number, g) for g in sorted(self.state.wireguard_generations))
        if ends != self.facts.wireguard:
            self.facts = attrs.evolve(self.facts, wireguard=ends)
            self.house.queue(self, self.seal(Facts(self.facts), 0))

    def finds(self, *paths: PathState) -> None:
        """Report ways to peers."""
        self.say(Paths(paths), 0)

    def applied(self) -> None:
        self.house.queue(self, self.seal(Applied(self.epoch, self.revision, self.errors, self.leftovers), 0))


class House:
    """The hub, its store, and everyone who talks to it. Time stands still unless `later` is called."""

    def __init__(
        self, limits: Limits | None = None, block_size: int = 16, encryption: Encryption = "off"
    ) -> None:
        self.keys = KeyPair.generate()
        self.store = FakeStore()
        self.now = 1000.0
        self._limits = limits
        self._begin(empty("10.0.0.0/8", block_size, encryption=encryption))
        self._queue: list[tuple[Talker, Frame]] = []
        self._routes = itertools.count(1)
        self._tokens = (f"token {number}" for number in itertools.count(1))

    def _begin(self, snapshot: Snapshot) -> None:
        self.journal = Journal(self.store, snapshot, [])
        self._talkers: dict[bytes, Talker] = {}
        self.hub = Hub(
            About(self.keys, ("tcp://192.0.2.1:2020",), "1"),
            self.journal,
            {"user": users.handle, "enrol": users.enrol, "node": nodes.handle},
            limits=self._limits,
            clock=lambda: self.now,
        )

    def restart(self) -> None:
        """Have another broker go on with what is stored; all sessions are gone."""
        s = self.snapshot
        policy = {name: getattr(s, name) for name in ("encapsulations", "encryption", "vxlan_port")}
        place = (s.epoch, s.revision, s.supernet, s.block_size, s.closed)
        self._begin(load(*place, self.store.rows.values(), **policy))

    def new_route(self) -> bytes:
        return next(self._routes).to_bytes(5, "big")

    @property
    def snapshot(self) -> Snapshot:
        return self.journal.committed

    def queue(self, talker: Talker, frame: Frame) -> None:
        """Have a frame come in when the present one is done with."""
        self._talkers[talker.route] = talker
        self._queue.append((talker, frame))

    def deliver(self, *frames: Talker | Frame) -> None:
        """Let frames come in as one batch (talker, frame, talker, frame ...), and all they lead to."""
        pairs: Iterator[Talker | Frame] = iter(frames)
        for talker, frame in zip(pairs, pairs, strict=True):
            assert isinstance(talker, Talker)
            assert isinstance(frame, Frame)
            self.queue(talker, frame)
        self.settle()

    def raw(self, route: bytes, parts: list[bytes]) -> list[Frame]:
        """Let anything at all come in over a connection; return what is sent back there."""
        self.hub.receive(route, parts, self.now)
        self.hub.flush()
        answers = [frame for to, frame in self.hub.out if to == route]
        rest = [(to, frame) for to, frame in self.hub.out if to != route]
        self.hub.out.clear()
        self.hub.out.extend(rest)
        self.settle()
        return answers

    def settle(self) -> None:
        while True:
            batch, self._queue = self._queue, []
            for talker, frame in batch:
                self.hub.receive(talker.route, [frame.header, frame.body], self.now)
            try:
                self.hub.flush()
            finally:
                while self.hub.out:
                    route, frame = self.hub.out.popleft()
                    if route in self._talkers:
                        self._talkers[route].take(frame)
            if not self._queue:
                return

    def later(self, seconds: float) -> None:
        """Let time pass, and the hub notice."""
        self.now += seconds
        self.hub.tick(self.now)
        self.settle()

    def token(self, kind: str, name: str | None = None) -> str:
        """Return an invite's token."""
        token = next(self._tokens)
        command = AddInvite(token_hash(token), "node" if kind == "node" else "user", name, self.now + 3600)
        self.journal.decide(command, self.now)
        self.journal.commit()
        return token

    def enrol(self, kind: str, name: str, its_facts: NodeFacts | None = None) -> KeyPair:
        keys = KeyPair.generate()
        joiner = Talker(self, keys, "enrol")
        joiner.shake_hands()
        answer = joiner.ask(Enrol(self.token(kind), name, its_facts))
        assert isinstance(answer, Enrolled), answer
        return keys

    def user(self, name: str = "admin", keys: KeyPair | None = None) -> Talker:
        """Return a user with a session, enrolled unless its keys are given."""
        talker = Talker(self, keys or self.enrol("user", name), "user")
        talker.shake_hands()
        talker.say(Ping(), 0)
        return talker

    def node(self, name: str, number: int = 0, **changes: object) -> FakeNode:
        """Return a node that has joined and holds its desired state; `changes` are of its facts."""
        its_facts = attrs.evolve(facts(number or int(name.strip("n"))), **changes)
        node = FakeNode(self, self.enrol("node", name, its_facts), its_facts)
        node.shake_hands()
        node.hello()
        return node

    def again(self, node: FakeNode) -> FakeNode:
        """Return the same node over a new connection, holding what it held; it has not said Hello."""
        fresh = FakeNode(self, node.keys, node.facts)
        fresh.state, fresh.epoch, fresh.revision = node.state, node.epoch, node.revision
        fresh.holding, fresh.errors = node.holding, node.errors
        fresh.shake_hands()
        return fresh


def run(user: Talker, name: str, node: str | None = None, **changes: object) -> Message:
    """Run a container and return the answer, if there is one at once."""
    return user.ask(attrs.evolve(RunContainer(name, WORKLOAD, node), **changes))
