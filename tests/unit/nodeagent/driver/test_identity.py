"""Which container each endpoint is, what the broker hears of it, and when an endpoint is given up."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from immutables import Map

from netctl.model import ANY_PORT, ContainerRunState, ContainerStatus, Port, Wish
from nodeagent.driver.book import Book, Network, key_of
from nodeagent.driver.identity import (
    MAX_WISHES,
    SETTLE_SECONDS,
    Docker,
    described,
    gone,
    identified,
    listed,
    parse_wishes,
    settled,
)
from nodeagent.endpoints import Endpoint
from nodeagent.helper_messages import DockerChanged, DockerListed
from tests.support.docker_calls import NETWORK, docker_id, network, seen

NOW = 1000.0


def book(*endpoints: Endpoint, since: float | None = NOW - 1) -> Book:
    made = Book(networks=Map({NETWORK: Network(internal=False)}))
    for endpoint in endpoints:
        made = made.with_(endpoint)
        if since is not None:
            made = attrs.evolve(made, since=made.since.set(endpoint.key, since))
    return made


def endpoint(number: int, container: int | None = None, **changes: object) -> Endpoint:
    identity = "" if container is None else docker_id(container)[:32]
    base = Endpoint(
        key_of(docker_id(number)), NETWORK, f"10.1.0.{number}", f"{number:06x}", container=identity
    )
    return attrs.evolve(base, **changes)


def keys(made: Book) -> set[int]:
    return {int(key, 16) for key in made.endpoints.by_key}


def test_an_endpoint_belongs_to_the_container_that_docker_says_has_it() -> None:
    before = book(endpoint(2))
    after = identified(before, seen(100, 2), NOW)
    assert after.endpoints.by_key[key_of(docker_id(2))].container == docker_id(100)[:32]
    assert identified(after, seen(100, 2), NOW) is after
    ours = identified(before, seen(100, 2, ours="ab" * 16), NOW)
    assert ours.endpoints.by_key[key_of(docker_id(2))].container == "ab" * 16


def test_a_container_that_was_started_again_has_left_its_old_endpoint() -> None:
    before = book(endpoint(2, 100), endpoint(3), endpoint(4, 101))
    after = identified(before, seen(100, 3), NOW)
    assert keys(after) == {3, 4}
    assert "10.1.0.2" in after.addresses.held


@pytest.mark.parametrize(
    ("state", "connected", "left"),
    [
        ("running", True, {2}),
        ("creating", True, {2}),
        ("created", True, {2}),
        ("exited", True, set()),
        ("failed", True, set()),
        ("running", False, set()),
    ],
)
def test_a_container_without_an_endpoint_keeps_its_old_one_only_while_it_starts(
    *, state: ContainerRunState, connected: bool, left: set[int]
) -> None:
    after = identified(book(endpoint(2, 100)), seen(100, state=state, connected=connected), NOW)
    assert keys(after) == left


def test_a_container_that_docker_forgot_has_no_endpoint() -> None:
    before = book(endpoint(2, 100), endpoint(3, 101))
    assert keys(gone(before, seen(100, 2), docker_id(100), NOW)) == {3}
    assert keys(gone(before, None, docker_id(100), NOW)) == {3}
    mine = book(endpoint(2, container=None, address="10.1.0.9"))
    mine = identified(mine, seen(100, 2, ours="ab" * 16), NOW)
    assert keys(gone(mine, seen(100, 2, ours="ab" * 16), docker_id(100), NOW)) == set()


# --- settling -----------------------------------------------------------------------------------------


def test_a_fresh_list_ends_what_was_made_before_docker_was_away() -> None:
    old, young = endpoint(2), endpoint(3)
    made = attrs.evolve(book(old, young), since=Map({old.key: NOW - 5, young.key: NOW - 1}))
    event = DockerListed((), (network(),), fresh=True)
    assert keys(settled(made, event, NOW - 3, NOW)) == {3}
    assert keys(settled(made, attrs.evolve(event, fresh=False), NOW - 3, NOW)) == {2, 3}


def test_what_was_kept_from_before_the_agents_start_is_older_than_it() -> None:
    made = book(endpoint(2), endpoint(3), since=None)
    event = DockerListed((seen(100, 3),), (network(3),), fresh=True)
    after = settled(made, event, NOW, NOW)
    assert keys(after) == {3}
    assert after.endpoints.by_key[key_of(docker_id(3))].container == docker_id(100)[:32]


def test_any_list_ends_what_is_old_and_unknown_to_docker() -> None:
    made = book(endpoint(2), endpoint(3), since=NOW - SETTLE_SECONDS)
    event = DockerListed((), (network(3),), fresh=False)
    assert keys(settled(made, event, 0.0, NOW)) == {3}
    younger = book(endpoint(2), since=NOW - SETTLE_SECONDS + 1)
    assert keys(settled(younger, event, 0.0, NOW)) == {2}


def test_docker_says_whether_a_network_is_internal_and_which_there_are() -> None:
    lost = attrs.evolve(book(endpoint(2, internal=True)), networks=Map({"dd" * 32: Network(internal=False)}))
    event = DockerListed((), (network(2),), fresh=True)
    after = settled(lost, event, NOW, NOW)
    assert set(after.networks) == {NETWORK}
    assert not after.endpoints.by_key[key_of(docker_id(2))].internal
    inward = settled(after, DockerListed((), (network(2, internal=True),), fresh=False), NOW, NOW)
    assert inward.endpoints.by_key[key_of(docker_id(2))].internal
    # One that was made after Docker was away may be missing from a list that was begun before.
    young = attrs.evolve(lost, networks=Map({"dd" * 32: Network(internal=False, since=NOW)}))
    assert "dd" * 32 in settled(young, event, NOW - 1, NOW).networks


# --- what the broker hears ----------------------------------------------------------------------------


def test_containers_of_dockers_users_are_described_with_their_labels() -> None:
    labels = (
        ("netctl.connect", "db:5432"),
        ("com.docker.compose.project", "shop"),
        ("com.docker.compose.service", "api"),
    )
    docker = listed(
        DockerListed(
            (
                seen(100, 2, labels=labels, name="shop-api-1"),
                seen(101, state="exited", exit_code=137),
                seen(102, 4, ours="ab" * 16),
                seen(103, connected=False),
            ),
            (),
            fresh=True,
        )
    )
    found = described(docker, book(endpoint(2, 100)))
    assert set(found.containers) == {docker_id(100)[:32], docker_id(101)[:32]}
    api = found.containers[docker_id(100)[:32]]
    assert (api.name, api.image, api.address) == ("shop-api-1", "tiny:1", "10.1.0.2")
    assert (api.project, api.service) == ("shop", "api")
    assert api.wishes == (Wish("db", Port("tcp", 5432)),)
    assert found.containers[docker_id(101)[:32]].address == ""
    ended = ContainerStatus(docker_id(101)[:32], "exited", generation=1, exit_code=137)
    assert ended in found.statuses
    assert found.problems == ()


def test_an_endpoint_that_the_book_does_not_know_gives_no_address() -> None:
    docker = listed(DockerListed((seen(100, 2, address="10.1.0.2"),), (), fresh=True))
    assert described(docker, Book()).containers[docker_id(100)[:32]].address == ""


def test_a_bad_label_is_a_problem_and_the_container_lives() -> None:
    docker = listed(DockerListed((seen(100, 2, labels=(("netctl.connect", "db:x"),)),), (), fresh=True))
    found = described(docker, book(endpoint(2, 100)))
    assert found.containers[docker_id(100)[:32]].wishes == ()
    assert [problem.name for problem in found.problems] == ["c100"]


def test_containers_come_change_and_go() -> None:
    docker = Docker().changed(DockerChanged(docker_id(100), seen(100, 2)))
    assert not docker.known
    docker = docker.changed(DockerChanged(docker_id(100), None))
    assert docker.containers == Map()
    assert docker.changed(DockerChanged(docker_id(100), None)) is docker


def test_labels_are_read_as_they_are_written() -> None:
    wishes, wrong = parse_wishes("db:5432/tcp, cache:6379,log:514/udp , gw, ping:icmp,,db:5432")
    assert wishes == (
        Wish("db", Port("tcp", 5432)),
        Wish("cache", Port("tcp", 6379)),
        Wish("log", Port("udp", 514)),
        Wish("gw", ANY_PORT),
        Wish("ping", Port("icmp")),
    )
    assert wrong == ""
    assert parse_wishes("") == ((), "")


@pytest.mark.parametrize(
    "text", ["db:", "db:0", "db:70000", "db:1/sctp", ":80", "-x:80", "a b:80", "x" * 200]
)
def test_what_cannot_be_wished_for_is_said_and_the_rest_is_wished(text: str) -> None:
    wishes, wrong = parse_wishes(f"ok:80,{text}")
    assert wishes == (Wish("ok", Port("tcp", 80)),)
    assert "netctl.connect" in wrong


def test_wishes_are_bounded() -> None:
    wishes, wrong = parse_wishes(",".join(f"c{n}:80" for n in range(MAX_WISHES + 1)))
    assert len(wishes) == MAX_WISHES
    assert str(MAX_WISHES) in wrong


@given(st.text(max_size=400))
def test_any_label_is_read_or_refused(text: str) -> None:
    wishes, wrong = parse_wishes(text)
    assert len(wishes) <= MAX_WISHES
    assert len(wrong) < 1000
