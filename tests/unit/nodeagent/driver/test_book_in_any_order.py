"""Docker, the agent and its machine do what they like in any order: no address is ever had twice."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from netctl.errors import NetctlError
from nodeagent.driver import calls
from nodeagent.driver.addresses import HELD_SECONDS
from nodeagent.driver.book import Answer, Book, Build, answered, key_of
from nodeagent.driver.identity import SETTLE_SECONDS, settled
from nodeagent.driver.keeping import Keeper
from nodeagent.helper_messages import DockerListed
from tests.support.docker_calls import GATEWAY, NETWORK, RESERVE, around, docker_id, network, seen, view

NUMBERS = st.integers(0, 7)
FIXED = st.sampled_from(["", "", "10.1.0.3", "10.1.0.5"])


class AnyOrder(RuleBasedStateMachine):
    """Docker's side is `has`: the endpoints that it believes in, each with its address."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.files = (Path(self.folder.name) / "networks", Path(self.folder.name) / "endpoints")
        self.keeper = Keeper(*self.files)
        self.now = 1000.0
        self.away_at = self.now
        self.book = Book()
        self.has: dict[int, str] = {}
        self.asked: set[str] = set()

    def teardown(self) -> None:
        self.folder.cleanup()

    def ask(self, call: calls.Call, *, crash: bool) -> dict[str, Any] | None:
        """Return the answer; None: refused, or the agent died between keeping it and saying it."""
        try:
            book, result = answered(self.book, call, around(view(), self.now))
        except NetctlError:
            return None
        if not isinstance(result, Answer | Build):
            return None
        self.book = book
        self.keeper.keep(book)
        if crash:
            self.agent_dies()
            return None
        return dict(result.answer.body if isinstance(result, Build) else result.body)

    @initialize()
    def make_network(self) -> None:
        self.ask(calls.CreateNetwork(NETWORK, False, (GATEWAY,), False, (), True, False), crash=False)

    @rule(number=NUMBERS, address=FIXED, crash=st.sampled_from(["", "", "", "request", "create", "join"]))
    def start(self, number: int, address: str, crash: str) -> None:
        """Docker starts a container; what it was not answered it believes it does not have."""
        if number in self.has:
            return
        given = self.ask(calls.RequestAddress("p", address, gateway=False), crash=crash == "request")
        if given is None:
            return
        got = str(given["Address"]).partition("/")[0]
        self.asked.add(got)
        create = calls.CreateEndpoint(NETWORK, docker_id(number), got, "", ())
        if self.ask(create, crash=crash == "create") is None:
            return
        if self.ask(calls.Join(NETWORK, docker_id(number), f"{number:06x}"), crash=crash == "join") is None:
            return
        self.has[number] = got

    @rule(number=NUMBERS, lost=st.integers(0, 3))
    def stop(self, number: int, lost: int) -> None:
        """Docker stops a container; after some of its calls the agent hears no more."""
        if number not in self.has:
            return
        address = self.has.pop(number)
        steps = [
            calls.Leave(NETWORK, docker_id(number)),
            calls.DeleteEndpoint(NETWORK, docker_id(number)),
            calls.ReleaseAddress("p", address),
        ]
        for call in steps[: 3 - lost]:
            assert self.ask(call, crash=False) == {}

    @rule(address=st.sampled_from(sorted(RESERVE)))
    def release_late(self, address: str) -> None:
        """A release comes that belongs to an endpoint of long ago."""
        assert self.ask(calls.ReleaseAddress("p", address), crash=False) == {}

    @rule()
    def agent_dies(self) -> None:
        self.keeper = Keeper(*self.files)
        self.book = self.keeper.load(self.now)
        self.away_at = self.now

    @rule(seconds=st.sampled_from([1.0, HELD_SECONDS]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.book = attrs.evolve(self.book, addresses=self.book.addresses.expired(self.now))

    @rule(fresh=st.booleans())
    def docker_lists(self, fresh: bool) -> None:  # noqa: FBT001 - hypothesis passes by name
        containers = tuple(seen(100 + number, number) for number in self.has)
        event = DockerListed(containers, (network(*self.has),), fresh)
        if fresh:
            self.now += 0.001
            self.away_at = self.now
        self.book = settled(self.book, event, self.away_at, self.now)
        if fresh:
            assert set(self.book.endpoints.by_key) == {key_of(docker_id(number)) for number in self.has}
        for number in self.has:
            endpoint = self.book.endpoints.by_key[key_of(docker_id(number))]
            assert endpoint.container == docker_id(100 + number)[:32]

    @rule()
    def everything_settles(self) -> None:
        """After a while without calls Docker's list alone gives back whatever is not used."""
        self.now += SETTLE_SECONDS
        self.docker_lists(fresh=False)
        self.now += HELD_SECONDS
        self.time_passes(0.0)
        free = RESERVE - set(self.has.values())
        given = set()
        book = self.book
        for _ in free:
            book, result = answered(
                book, calls.RequestAddress("p", "", gateway=False), around(view(), self.now)
            )
            assert isinstance(result, Answer)
            given.add(str(result.body["Address"]).partition("/")[0])
        assert given == free

    @invariant()
    def what_docker_has_is_in_the_book(self) -> None:
        for number, address in self.has.items():
            assert self.book.endpoints.by_key[key_of(docker_id(number))].address == address

    @invariant()
    def no_address_is_had_twice(self) -> None:
        endpoints = self.book.endpoints
        addresses = [endpoint.address for endpoint in endpoints.by_key.values()]
        assert len(addresses) == len(set(addresses))
        assert dict(endpoints.by_address) == {e.address: e.key for e in endpoints.by_key.values()}
        assert not set(addresses) & set(self.book.addresses.held)
        sandboxes = [endpoint.sandbox for endpoint in endpoints.by_key.values() if endpoint.sandbox]
        assert len(sandboxes) == len(set(sandboxes))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
