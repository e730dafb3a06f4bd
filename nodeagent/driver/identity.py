"""Which container each endpoint is, and what the broker is told of Docker's users' containers: pure.

Docker's calls name no container; what its engine says afterwards names the endpoint that each container has.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Final

import attrs
from immutables import Map

from netctl.errors import InvalidError
from netctl.model import ANY_PORT, ContainerStatus, DockerContainer, Port, Wish
from nodeagent.driver.book import Book, Network, key_of
from nodeagent.endpoints import KEY_DIGITS
from nodeagent.helper_messages import DockerChanged, DockerListed, DockerNetwork, DockerSeen

SETTLE_SECONDS: Final = 30.0
"""An endpoint that Docker does not list is given up once it is so old: until then its container may be
about to start."""
MAX_WISHES: Final = 64

CONNECT_LABEL: Final = "netctl.connect"
# https://docs.docker.com/compose/ sets them on every container that it makes.
_PROJECT_LABEL: Final = "com.docker.compose.project"
_SERVICE_LABEL: Final = "com.docker.compose.service"
_DESTINATION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@attrs.frozen
class Docker:
    """What Docker's engine said of our networks.

    Attributes:
        containers: By Docker's id.
        known: Whether that is all, and as it is now.
    """

    containers: Map[str, DockerSeen] = attrs.field(factory=Map)
    known: bool = False

    def changed(self, event: DockerChanged) -> Docker:
        """Return this after one container came, changed or went."""
        if event.container is not None:
            return attrs.evolve(self, containers=self.containers.set(event.docker_id, event.container))
        if event.docker_id not in self.containers:
            return self
        return attrs.evolve(self, containers=self.containers.delete(event.docker_id))


@attrs.frozen
class Problem:
    """Something that is wrong with a container which is otherwise as it should be."""

    name: str
    message: str


@attrs.frozen
class Described:
    """What the broker is to know of the containers of Docker's users.

    Attributes:
        containers: By their id at the broker.
        statuses: Of all of them.
        problems: Of their labels.
    """

    containers: Mapping[str, DockerContainer] = attrs.field(factory=dict)
    statuses: tuple[ContainerStatus, ...] = ()
    problems: tuple[Problem, ...] = ()


def listed(event: DockerListed) -> Docker:
    """Return what Docker said when it said everything."""
    return Docker(Map({seen.docker_id: seen for seen in event.containers}), known=True)


def broker_id(seen: DockerSeen) -> str:
    """Return what the broker calls a container by."""
    return seen.ours or seen.docker_id[:KEY_DIGITS]


def identified(book: Book, seen: DockerSeen, now: float) -> Book:
    """Return the book once it is known which endpoint a container has; others of its are over."""
    identity, current = broker_id(seen), key_of(seen.endpoint)
    endpoint = book.endpoints.by_key.get(current)
    if endpoint is not None and endpoint.container != identity:
        book = book.with_(attrs.evolve(endpoint, container=identity))
    # While it is being started, Docker may not say yet which one it has.
    if current or not seen.connected or seen.state not in ("creating", "created", "running"):
        book = _without_others(book, identity, current, now)
    return book


def gone(book: Book, before: DockerSeen | None, docker_id: str, now: float) -> Book:
    """Return the book once Docker forgot a container, which was `before`."""
    identity = docker_id[:KEY_DIGITS] if before is None else broker_id(before)
    return _without_others(book, identity, "", now)


def _without_others(book: Book, identity: str, current: str, now: float) -> Book:
    for endpoint in book.endpoints.by_key.values():
        if endpoint.container == identity and endpoint.key != current:
            book = book.without(endpoint.key, now)
    return book


def settled(book: Book, event: DockerListed, before: float, now: float) -> Book:
    """Return the book once Docker said everything it has.

    Args:
        book: As it was.
        event: What Docker said.
        before: When Docker, or the agent, was last away: with a fresh list, what was made earlier and is
            not in it will never be.
        now: By the same clock.
    """
    for network in event.networks:
        book = _learned(book, network, now)
    for seen in event.containers:
        book = identified(book, seen, now)
    known = {key_of(endpoint) for network in event.networks for endpoint in network.endpoints}
    known.update(key_of(seen.endpoint) for seen in event.containers)
    for endpoint in book.endpoints.by_key.values():
        made = book.since.get(endpoint.key, float("-inf"))
        over = (event.fresh and made < before) or now - made >= SETTLE_SECONDS
        if over and endpoint.key not in known:
            book = book.without(endpoint.key, now)
    if event.fresh:
        listed_networks = {network.docker_id for network in event.networks}
        for docker_id, kept in book.networks.items():
            if docker_id not in listed_networks and kept.since < before:
                book = attrs.evolve(book, networks=book.networks.delete(docker_id))
    return book


def _learned(book: Book, network: DockerNetwork, now: float) -> Book:
    """Return the book once Docker said what a network is: it remembers better than a lost file."""
    known = book.networks.get(network.docker_id)
    if known is not None and known.internal == network.internal:
        return book
    book = attrs.evolve(book, networks=book.networks.set(network.docker_id, Network(network.internal, now)))
    for endpoint in book.endpoints.by_key.values():
        if endpoint.network == network.docker_id and endpoint.internal != network.internal:
            book = book.with_(attrs.evolve(endpoint, internal=network.internal))
    return book


def described(docker: Docker, book: Book) -> Described:
    """Return what the broker is to know of the containers that Docker's users have on our networks."""
    containers: dict[str, DockerContainer] = {}
    statuses: list[ContainerStatus] = []
    problems: list[Problem] = []
    for seen in docker.containers.values():
        if seen.ours or not seen.connected:
            continue
        identity = broker_id(seen)
        labels = dict(seen.labels)
        wishes, wrong = parse_wishes(labels.get(CONNECT_LABEL, ""))
        if wrong:
            problems.append(Problem(seen.name[:128], wrong))
        endpoint = book.endpoints.by_key.get(key_of(seen.endpoint))
        containers[identity] = DockerContainer(
            id=identity,
            name=seen.name[:128],
            image=seen.image[:512],
            address="" if endpoint is None else endpoint.address,
            wishes=wishes,
            project=_bounded(labels.get(_PROJECT_LABEL, "")),
            service=_bounded(labels.get(_SERVICE_LABEL, "")),
        )
        ended = None if seen.exit_code is None else seen.exit_code & 255
        statuses.append(ContainerStatus(identity, seen.state, generation=1, exit_code=ended))
    return Described(containers, tuple(statuses), tuple(problems))


def _bounded(text: str) -> str:
    """Return a label's value, or nothing where it is longer than it can be: a part would name another."""
    return text if len(text) <= 128 else ""  # noqa: PLR2004 - as DockerContainer has it


@functools.lru_cache(maxsize=4096)
def parse_wishes(text: str) -> tuple[tuple[Wish, ...], str]:
    """Read the label ``netctl.connect``: ``db:5432/tcp, cache:6379, log:514/udp, gw``.

    Returns:
        What it asks for, and what is wrong with the rest; empty: nothing is.
    """
    wishes: list[Wish] = []
    wrong = ""
    for part in (part.strip() for part in text.split(",")):
        destination, colon, port = part.partition(":")
        destination, port = destination.strip(), port.strip()
        if not part:
            continue
        if _DESTINATION.fullmatch(destination) is None:
            wrong = wrong or f"{destination[:80]!r} in the label {CONNECT_LABEL} is no name of a container"
            continue
        try:
            wish = Wish(destination, Port.parse(port) if colon else ANY_PORT)
        except InvalidError as error:
            wrong = wrong or f"the label {CONNECT_LABEL}: {error.message}"
            continue
        if wish not in wishes:
            wishes.append(wish)
    if len(wishes) > MAX_WISHES:
        wrong = wrong or f"the label {CONNECT_LABEL} asks for more than {MAX_WISHES} connections"
    return tuple(wishes[:MAX_WISHES]), wrong
