"""Layer 1 as a ruleset: what one container's namespace lets in and out; pure.

Every overlay packet is checked against its connection. Connection tracking tells only which way a packet
goes and what an ICMP error is about, so taking an element out cuts a live flow by itself, and putting it
back resumes it. Sets come in twos: ``in_*`` for what peers may open here, ``out_*`` for what we may open.

Where a namespace has other links too, their packets are told from the overlay's by the link's group, which
nobody gives a link but us: a name or a number is Docker's to choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from types import MappingProxyType
from typing import Literal

from firewall_rules.elements import PROTOCOLS, Item, Part, SetId, elements_of
from firewall_rules.names import OVERLAY_GROUP, TABLE
from firewall_rules.policy import ALWAYS_CLOSED, ContainerPolicy
from firewall_rules.ruleset import (
    Action,
    Chain,
    ElementKey,
    Elements,
    ElementType,
    Field,
    Hook,
    InSet,
    Jump,
    Match,
    Rule,
    Ruleset,
    Set,
    Table,
)

DNS_PORT = "53"
FILTER_PRIORITY = 0
ICMP = "1"
ICMP_ERRORS = ("3", "11", "12")
"""Destination unreachable (fragmentation needed is one), time exceeded, parameter problem: RFC 792."""
ECHO_REQUEST, ECHO_REPLY = "8", "0"

_NOT_IN = Match("in_group", (str(OVERLAY_GROUP),), negated=True)
_NOT_OUT = Match("out_group", (str(OVERLAY_GROUP),), negated=True)
_ORIGINAL, _REPLY = Match("flow_direction", ("original",)), Match("flow_direction", ("reply",))
_OPENING_SETS: Mapping[str, tuple[ElementType, ...]] = {
    "peers": ("address",),
    "ports": ("address", "protocol", "port"),
    "ping": ("address",),
    "any": ("address",),
}


@lru_cache(maxsize=16)
def closed_elements(networks: frozenset[str]) -> Elements:
    """Return `networks` and those that are always closed, as disjoint elements of an interval set.

    All containers of a node have the same ones, and collapsing them is most of what compiling costs.

    Raises:
        ValueError: One of them is no IPv4 network.
    """
    collapsed = collapse_addresses(IPv4Network(network) for network in networks | ALWAYS_CLOSED)
    return MappingProxyType({(element_network(network),): None for network in collapsed})


def element_network(network: IPv4Network) -> str:
    """Return `network` as elements name it: a single address without its length."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def container_items(policy: ContainerPolicy) -> list[tuple[Part, Item]]:
    """Return everything in `policy` that elements stand for."""
    items: list[tuple[Part, Item]] = [("inbound", item) for item in policy.inbound]
    items += [("outbound", item) for item in policy.outbound]
    return items


def compile_container(policy: ContainerPolicy) -> Ruleset:
    """Return the ruleset that holds a container to `policy`.

    Raises:
        ValueError: A network in `policy.closed` is none.
    """
    elements = elements_of(container_items(policy))
    closed = Set("closed", ("address",), True, False, closed_elements(policy.closed), True)
    return (
        Table(
            family="inet",
            name=TABLE,
            sets=(
                *((closed,) if policy.internet else ()),
                *(_opening_set(way, name, elements) for way in ("in", "out") for name in _OPENING_SETS),
            ),
            chains=(
                *_other_links(policy),
                Chain("input", _input(policy), Hook("filter", "input", FILTER_PRIORITY, "drop")),
                Chain("output", _output(policy), Hook("filter", "output", FILTER_PRIORITY, "drop")),
                Chain("forward", _forward(policy), Hook("filter", "forward", FILTER_PRIORITY, "drop")),
            ),
        ),
    )


def _opening_set(way: str, name: str, elements: Mapping[SetId, Mapping[ElementKey, float | None]]) -> Set:
    full = f"{way}_{name}"
    return Set(full, _OPENING_SETS[name], lifetimes=True, elements=elements.get(("inet", full), {}))


def _other_links(policy: ContainerPolicy) -> tuple[Chain, ...]:
    if not policy.overlay_only:
        return ()
    return (
        # Hosts take a packet for any address of theirs on any link, and answer by any: not with this one.
        Chain("from_others", (rule("drop", Match("destination", (policy.address,))), rule("accept"))),
        Chain("to_others", (rule("drop", Match("source", (policy.address,))), rule("accept"))),
    )


def _forward(policy: ContainerPolicy) -> tuple[Rule, ...]:
    return (rule("accept", _NOT_IN, _NOT_OUT),) if policy.overlay_only else ()


def _input(policy: ContainerPolicy) -> tuple[Rule, ...]:
    original, reply = _ORIGINAL, _REPLY
    return (
        rule("accept", Match("in_device_type", ("loopback",))),
        *((rule(Jump("from_others"), _NOT_IN),) if policy.overlay_only else ()),
        rule("drop", Match("family", ("ipv4",), negated=True)),
        rule("drop", Match("destination", (policy.address,), negated=True)),
        rule("accept", original, InSet(("source", "protocol", "destination_port"), "in_ports")),
        rule("accept", reply, InSet(("source", "protocol", "source_port"), "out_ports")),
        rule("accept", original, *icmp(ECHO_REQUEST), InSet(("source",), "in_ping")),
        rule("accept", reply, *icmp(ECHO_REPLY), InSet(("source",), "out_ping")),
        rule("accept", InSet(("source",), "in_any")),
        # An error may come from any router on the way; what counts is the flow that it is about.
        rule("accept", *related_errors(), InSet(("flow_source",), "in_peers")),
        rule("accept", *related_errors(), InSet(("flow_destination",), "out_peers")),
        *_resolver(policy.resolver, reply, "source", "source_port"),
        *(_internet_in(policy) if policy.internet else ()),
        *_published(policy, _ORIGINAL, "source", "destination_port"),
    )


def _internet_in(policy: ContainerPolicy) -> tuple[Rule, ...]:
    own = Match("flow_source", (policy.address,))
    return (
        rule("accept", _REPLY, internet("source")),
        rule("accept", *related_errors(), own, internet("flow_destination")),
    )


def _internet_out() -> tuple[Rule, ...]:
    return (
        rule("accept", _ORIGINAL, internet("destination")),
        rule("accept", *related_errors(), internet("flow_destination"), internet("destination")),
    )


def _output(policy: ContainerPolicy) -> tuple[Rule, ...]:
    original, reply = _ORIGINAL, _REPLY
    return (
        rule("accept", Match("out_device_type", ("loopback",))),
        *((rule(Jump("to_others"), _NOT_OUT),) if policy.overlay_only else ()),
        rule("drop", Match("family", ("ipv4",), negated=True)),
        rule("drop", Match("source", (policy.address,), negated=True)),
        rule("accept", original, InSet(("destination", "protocol", "destination_port"), "out_ports")),
        rule("accept", reply, InSet(("destination", "protocol", "source_port"), "in_ports")),
        rule("accept", original, *icmp(ECHO_REQUEST), InSet(("destination",), "out_ping")),
        rule("accept", reply, *icmp(ECHO_REPLY), InSet(("destination",), "in_ping")),
        rule("accept", InSet(("destination",), "out_any")),
        rule(
            "accept",
            *related_errors(),
            InSet(("flow_source",), "in_peers"),
            InSet(("destination",), "in_peers"),
        ),
        rule(
            "accept",
            *related_errors(),
            InSet(("flow_destination",), "out_peers"),
            InSet(("destination",), "out_peers"),
        ),
        *_resolver(policy.resolver, original, "destination", "destination_port"),
        *(_internet_out() if policy.internet else ()),
        *_published(policy, _REPLY, "destination", "source_port"),
    )


def _published(
    policy: ContainerPolicy, direction: Match, client: Literal["source", "destination"], port: Field
) -> Iterable[Rule]:
    """Yield what lets clients of published ports through, and errors about what they began."""
    for who in _clients(policy):
        for protocol in ("tcp", "udp"):
            ports = tuple(str(one.port) for one in sorted(policy.published) if one.protocol == protocol)
            if ports:
                is_protocol = Match("protocol", (PROTOCOLS[protocol],))
                yield rule("accept", direction, is_protocol, Match(port, ports), who(client))
        if policy.published:
            # Going out, an error is for the client whose packet it is about.
            to_client = (who("destination"),) if client == "destination" else ()
            to_us = Match("flow_destination", (policy.address,))
            yield rule("accept", *related_errors(), to_us, who("flow_source"), *to_client)


def _clients(policy: ContainerPolicy) -> Iterable[Callable[[Field], Match]]:
    """Yield questions whether an address is a client's: the node itself, and who is not in the overlay."""
    yield lambda field: Match(field, (policy.gateway,))
    gateway = IPv4Address(policy.gateway)
    around = [network for network in map(IPv4Network, policy.closed) if gateway in network]
    # Where no supernet is known, nobody is known to be outside of it.
    if around:
        supernet = element_network(min(around, key=lambda network: network.prefixlen))
        yield lambda field: Match(field, (supernet,), negated=True)


def _resolver(resolver: str | None, direction: Match, address: Field, port: Field) -> Sequence[Rule]:
    if resolver is None:
        return ()
    return (rule("accept", direction, Match(address, (resolver,)), *dns(port)),)


def rule(action: Action, *matches: Match | InSet) -> Rule:
    """Return a rule with one action."""
    return Rule(matches, (action,))


def icmp(*types: str) -> tuple[Match, Match]:
    """Return the questions whether a packet is ICMP of one of `types`."""
    return Match("protocol", (ICMP,)), Match("icmp_type", types)


def related_errors() -> tuple[Match, Match, Match]:
    """Return the questions whether a packet is an ICMP error about a flow that is known."""
    return Match("flow_state", ("related",)), *icmp(*ICMP_ERRORS)


def dns(port: Field) -> tuple[Match, Match]:
    """Return the questions whether a packet is DNS as seen in its field `port`."""
    return Match("protocol", (PROTOCOLS["tcp"], PROTOCOLS["udp"])), Match(port, (DNS_PORT,))


def internet(address: Field) -> InSet:
    """Return the question whether a field is an address of the internet."""
    return InSet((address,), "closed", negated=True)
