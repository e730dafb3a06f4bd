"""Docker's networks and endpoints of ours, and what each call does to them: pure.

Every call may come twice, and may come after what it is about was forgotten. What is refused changes
nothing; what takes back is never refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import attrs
from immutables import Map

from firewall_rules.names import endpoint_link
from firewall_rules.policy import Publication
from netctl.errors import InvalidError, NotFoundError, RefusedError, UnavailableError
from netctl.model import mac_of
from nodeagent.driver.addresses import Addresses, check_fixed
from nodeagent.driver.calls import (
    Call,
    CreateEndpoint,
    CreateNetwork,
    DeleteEndpoint,
    DeleteNetwork,
    Join,
    Leave,
    PortMapping,
    ProgramExternalConnectivity,
    ReleaseAddress,
    ReleasePool,
    RequestAddress,
    RequestPool,
    RevokeExternalConnectivity,
)
from nodeagent.driver.publishing import Probe, publish
from nodeagent.driver.view import DriverView
from nodeagent.endpoints import KEY_DIGITS, Endpoint, Endpoints

NEXT_HOP: Final = 0
"""RouteType of a static route by a gateway (libnetwork's docs/remote.md, Join)."""
ANY_POOL: Final = "0.0.0.0/0"
"""What Docker is told is the subnet of a network whose user names none.

It looks for no overlap with the host's routes then; a pool that does overlap, as our own bridge's would, it
asks for again, for ever.
"""


@attrs.frozen
class Network:
    """One of Docker's networks that are ours.

    Attributes:
        internal: It leads nowhere but to connected containers (``--internal``).
        since: When it was made, by the agent's clock; 0: before this agent was started.
    """

    internal: bool
    since: float = 0.0


@attrs.frozen
class Book:
    """What Docker made here.

    Attributes:
        networks: By Docker's id.
        endpoints: All of them.
        since: When each endpoint was made, by key and by the agent's clock; absent: before it was started.
        addresses: Those without an endpoint.
        pools: How many were given out.
    """

    networks: Map[str, Network] = attrs.field(factory=Map)
    endpoints: Endpoints = attrs.field(factory=Endpoints)
    since: Map[str, float] = attrs.field(factory=Map)
    addresses: Addresses = attrs.field(factory=Addresses)
    pools: int = 0

    def without(self, key: str, now: float) -> Book:
        """Return this without an endpoint; its address is held until Docker releases it."""
        endpoint = self.endpoints.by_key.get(key)
        if endpoint is None:
            return self
        return attrs.evolve(
            self,
            endpoints=self.endpoints.without(key),
            since=self.since.delete(key) if key in self.since else self.since,
            addresses=self.addresses.hold(endpoint.address, now),
        )

    def with_(self, endpoint: Endpoint) -> Book:
        """Return this with an endpoint changed."""
        return attrs.evolve(self, endpoints=self.endpoints.with_(endpoint))


@attrs.frozen
class Answer:
    """What Docker is told."""

    body: Mapping[str, object] = attrs.field(factory=dict)


@attrs.frozen
class Wait:
    """The call cannot be answered yet; it is tried again once something changed.

    Attributes:
        address: The broker must put it on lease; empty: any address on lease will do.
    """

    address: str = ""


@attrs.frozen
class Build:
    """A Join: the endpoint stands in the book, and `answer` is given once its port is there."""

    key: str
    answer: Answer


Result = Answer | Wait | Build


@attrs.frozen
class Around:
    """What a call is decided with beside the book.

    Attributes:
        view: What the broker wants.
        now: Seconds by the agent's clock.
        taken: Addresses that Docker says are used.
        probe: Of the host's ports.
        name: Of this run, so that pools of two runs have different ids.
    """

    view: DriverView
    now: float
    taken: Collection[str]
    probe: Probe
    name: str


def key_of(docker_id: str) -> str:
    """Return the key of the endpoint that Docker calls so."""
    return docker_id[:KEY_DIGITS]


def answered(book: Book, call: Call, around: Around) -> tuple[Book, Result]:
    """Return the book after one call, and what is answered.

    Raises:
        NetctlError: It is refused; the book stays as it was.
    """
    taken_back = _TAKING_BACK.get(type(call))
    if taken_back is not None:
        return taken_back(book, call, around.now), Answer()
    if not around.view.block:
        raise UnavailableError(
            "this node has no block of the overlay yet", "start again once `netctl node list` shows it ready"
        )
    return _ASKING[type(call)](book, call, around)


def _release_pool(book: Book, _call: ReleasePool, _now: float) -> Book:
    return book


def _release_address(book: Book, call: ReleaseAddress, _now: float) -> Book:
    # What has an endpoint (again) is not released by a call that came late.
    if call.address not in book.addresses.held:
        return book
    return attrs.evolve(book, addresses=book.addresses.release(call.address))


def _delete_network(book: Book, call: DeleteNetwork, now: float) -> Book:
    for endpoint in [e for e in book.endpoints.by_key.values() if e.network == call.network]:
        book = book.without(endpoint.key, now)
    if call.network not in book.networks:
        return book
    return attrs.evolve(book, networks=book.networks.delete(call.network))


def _delete_endpoint(book: Book, call: DeleteEndpoint, now: float) -> Book:
    return book.without(key_of(call.endpoint), now)


def _leave(book: Book, call: Leave, _now: float) -> Book:
    endpoint = book.endpoints.by_key.get(key_of(call.endpoint))
    return book if endpoint is None else book.with_(attrs.evolve(endpoint, sandbox=""))


def _revoke(book: Book, call: RevokeExternalConnectivity, _now: float) -> Book:
    endpoint = book.endpoints.by_key.get(key_of(call.endpoint))
    return book if endpoint is None else book.with_(attrs.evolve(endpoint, publications=()))


def _request_pool(book: Book, call: RequestPool, around: Around) -> tuple[Book, Answer]:
    block = around.view.block
    if call.ipv6:
        raise InvalidError("the overlay carries IPv4 only", "leave out --ipv6")
    if call.options:
        _refuse_options(call.options, "--ipam-opt")
    if call.subnet not in ("", ANY_POOL, block):
        raise InvalidError(
            f"{call.subnet[:80]} is not this node's block of the overlay",
            f"write --subnet {block}, or leave it out",
        )
    if call.part not in ("", call.subnet):
        raise InvalidError("addresses are given out by the broker", "leave out --ip-range")
    pool = {"PoolID": f"netctl-{around.name}-{book.pools + 1}", "Pool": call.subnet or ANY_POOL, "Data": {}}
    return attrs.evolve(book, pools=book.pools + 1), Answer(pool)


def _request_address(book: Book, call: RequestAddress, around: Around) -> tuple[Book, Result]:
    view = around.view
    if call.gateway:
        _check_gateway(call.address, view)
        return book, Answer({"Address": f"{view.gateway}/{view.length}", "Data": {}})
    if call.address:
        address = call.address
        if not check_fixed(address, view, book.endpoints):
            return book, Wait(address)
    else:
        chosen = book.addresses.choose(view, book.endpoints, around.taken)
        if chosen is None:
            return book, Wait()
        address = chosen
    after = attrs.evolve(book, addresses=book.addresses.hold(address, around.now))
    return after, Answer({"Address": f"{address}/{view.length}", "Data": {}})


def _check_gateway(address: str, view: DriverView) -> None:
    if address not in ("", view.gateway):
        raise InvalidError(
            f"{address} is not this node's bridge", f"write --gateway {view.gateway}, or leave it out"
        )


def _create_network(book: Book, call: CreateNetwork, around: Around) -> tuple[Book, Answer]:
    if call.options:
        _refuse_options(call.options, "-o")
    if call.ipv6 or not call.ipv4:
        raise InvalidError("the overlay carries IPv4 only", "leave out --ipv6")
    if call.auxiliary:
        raise InvalidError("addresses are given out by the broker", "leave out --aux-address")
    # Another IPAM driver would give out addresses that the broker knows nothing of.
    if call.gateways != (around.view.gateway,):
        raise InvalidError(
            f"the subnet of this network is not this node's block {around.view.block}",
            "write --ipam-driver netctl, and no --subnet",
        )
    network = Network(call.internal, around.now)
    return attrs.evolve(book, networks=book.networks.set(call.network, network)), Answer()


def _refuse_options(options: tuple[str, ...], flag: str) -> None:
    names = ", ".join(options)[:200]
    raise InvalidError(f"netctl knows no option {names}", f"leave out {flag}")


def _create_endpoint(book: Book, call: CreateEndpoint, around: Around) -> tuple[Book, Answer]:
    key, address = key_of(call.endpoint), call.address
    if not address:
        raise InvalidError("an endpoint without an address", "make the network with --ipam-driver netctl")
    mac = mac_of(address)
    if call.mac not in ("", mac):
        raise InvalidError(
            f"{call.mac} cannot be had: on the overlay the address decides, and {address} has {mac}",
            "leave out --mac-address",
        )
    answer = Answer({"Interface": {} if call.mac else {"MacAddress": mac}})
    known = book.endpoints.by_key.get(key)
    if known is not None:
        if (known.address, known.network) != (address, call.network):
            raise RefusedError("this endpoint is another one already", "start the container again")
        return book, answer
    if address in book.endpoints.by_address:
        raise RefusedError(f"{address} is used by another container here", "start the container again")
    if address not in book.addresses.held and not check_fixed(address, around.view, book.endpoints):
        raise RefusedError(f"{address} was not given out by this node", "start the container again")
    network = book.networks.get(call.network)
    # Of a network that was forgotten it is not known whether it may lead out; Docker says so soon.
    internal = network is None or network.internal
    mappings = () if internal else call.mappings
    endpoint = Endpoint(
        key,
        call.network,
        address,
        internal=internal,
        publications=_published(book, mappings, address, around),
    )
    return (
        attrs.evolve(
            book.with_(endpoint),
            since=book.since.set(key, around.now),
            addresses=book.addresses.used(address),
        ),
        answer,
    )


def _published(
    book: Book, mappings: tuple[PortMapping, ...], address: str, around: Around
) -> tuple[Publication, ...]:
    if not mappings:
        return ()
    others = (p for endpoint in book.endpoints.by_key.values() for p in endpoint.publications)
    return publish(mappings, address, others, around.probe)


def _known(book: Book, docker_id: str) -> Endpoint:
    endpoint = book.endpoints.by_key.get(key_of(docker_id))
    if endpoint is None:
        raise NotFoundError(
            "the node agent does not know this endpoint any more", "start the container again"
        )
    return endpoint


def _join(book: Book, call: Join, around: Around) -> tuple[Book, Build]:
    endpoint = _known(book, call.endpoint)
    if endpoint.sandbox not in ("", call.sandbox):
        raise RefusedError("this endpoint is in another container already", "start the container again")
    for other in book.endpoints.by_key.values():
        if other.sandbox == call.sandbox and other.key != endpoint.key:
            raise RefusedError(
                "a container has one address on the overlay, and this one has it on another network",
                "connections do not depend on Docker's networks, so it needs no second one; if Docker has "
                "noted it all the same, take it off: docker network disconnect NETWORK CONTAINER",
            )
    body: dict[str, object] = {
        "InterfaceName": {"SrcName": endpoint_link(endpoint.key), "DstPrefix": "eth"},
        # Docker may give the default route to another network, and an internal one has none; connected
        # containers of other nodes are reached all the same.
        "StaticRoutes": [
            {"Destination": around.view.supernet, "RouteType": NEXT_HOP, "NextHop": around.view.gateway}
        ],
        # Without a gateway of ours Docker would give it one of its own, around the overlay.
        "DisableGatewayService": True,
    }
    if not endpoint.internal:
        body["Gateway"] = around.view.gateway
    return book.with_(attrs.evolve(endpoint, sandbox=call.sandbox)), Build(endpoint.key, Answer(body))


def _program(book: Book, call: ProgramExternalConnectivity, around: Around) -> tuple[Book, Answer]:
    endpoint = _known(book, call.endpoint)
    if endpoint.publications or endpoint.internal:
        return book, Answer()
    publications = _published(book, call.mappings, endpoint.address, around)
    if not publications:
        return book, Answer()
    return book.with_(attrs.evolve(endpoint, publications=publications)), Answer()


_TAKING_BACK: Final[Mapping[type, Callable[[Book, Any, float], Book]]] = {
    ReleasePool: _release_pool,
    ReleaseAddress: _release_address,
    DeleteNetwork: _delete_network,
    DeleteEndpoint: _delete_endpoint,
    Leave: _leave,
    RevokeExternalConnectivity: _revoke,
}
_ASKING: Final[Mapping[type, Callable[[Book, Any, Around], tuple[Book, Result]]]] = {
    RequestPool: _request_pool,
    RequestAddress: _request_address,
    CreateNetwork: _create_network,
    CreateEndpoint: _create_endpoint,
    Join: _join,
    ProgramExternalConnectivity: _program,
}
