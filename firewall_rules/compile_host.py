"""Layer 2 as a ruleset, and the host's own protection; pure.

It is per pair and never per port: later fragments carry no ports. The bridge table sees what containers
send as frames, before anyone believes an address in them. This kernel family cannot always tell one
bridge from another there, so our ports are known by their names; what the bridge table has bound to its
port carries a mark into the inet table, without which nothing that comes in by our bridge goes on.

What a packet costs is the questions it is asked, so every chain asks first what a connection's packets
answer with yes. Connection tracking is only for what leaves through the NAT and for the resolver: between
two containers, and around them in a tunnel, no answer depends on it, so they take no place in its table.
"""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Literal

import attrs

from firewall_rules.compile_container import (
    FILTER_PRIORITY,
    ICMP_ERRORS,
    closed_elements,
    dns,
    element_network,
    icmp,
    internet,
    related_errors,
    rule,
)
from firewall_rules.compile_outer import (
    from_no_peer,
    from_peers,
    never_a_users,
    never_forwarded,
    sent_untracked,
    untracked,
)
from firewall_rules.compile_publishing import (
    hides_clients,
    is_passed,
    is_translated,
    passed,
    passed_outside,
    publishing_chains,
)
from firewall_rules.elements import PROTOCOLS, Item, Part, SetId, elements_of
from firewall_rules.names import PORT_MARK, PORT_PREFIX, TABLE, TUNNEL_PREFIX
from firewall_rules.policy import HostPolicy
from firewall_rules.ruleset import (
    Chain,
    Elements,
    ElementType,
    Hook,
    InSet,
    Jump,
    Match,
    Rule,
    Ruleset,
    Set,
    SetMark,
    Table,
)

_RAW_PRIORITY = -300
_BRIDGE_PREROUTING_PRIORITY = -300
_BRIDGE_FILTER_PRIORITY = -200
_SOURCE_NAT_PRIORITY = 100

_FROM_PORT = Match("in_device", (PORT_PREFIX + "*",))
_TO_PORT = Match("out_device", (PORT_PREFIX + "*",))
_FROM_TUNNEL = Match("in_device", (TUNNEL_PREFIX + "*",))
_TO_TUNNEL = Match("out_device", (TUNNEL_PREFIX + "*",))
_PAIR = InSet(("source", "destination"), "pairs")
_ARP = Match("ether_type", ("arp",))
_NOT_IPV4 = Match("family", ("ipv4",), negated=True)
_TCP_OR_UDP = Match("protocol", (PROTOCOLS["tcp"], PROTOCOLS["udp"]))
_FROM_PEER_BLOCK = InSet(("in_device", "source"), "tunnels")
_TO_PEER_BLOCK = InSet(("out_device", "destination"), "tunnels")
_DROP = rule("drop")


def host_items(policy: HostPolicy) -> list[tuple[Part, Item]]:
    """Return everything in `policy` that elements stand for."""
    items: list[tuple[Part, Item]] = []
    items += [("bindings", item) for item in policy.bindings]
    items += [("pairs", item) for item in policy.pairs]
    items += [("tunnels", item) for item in policy.tunnels]
    items += [("publications", item) for item in policy.publications]
    items += [("internal", item) for item in policy.internal]
    return items


def compile_host(policy: HostPolicy) -> Ruleset:
    """Return the two tables that hold a host and its containers' ports to `policy`.

    Raises:
        ValueError: A network in it is none.
    """
    elements = elements_of(host_items(policy))
    closed = closed_elements(policy.closed | {policy.supernet, policy.block})
    return _bridge_table(policy, elements, closed), _inet_table(policy, elements, closed)


def _bridge_table(policy: HostPolicy, elements: dict[SetId, Elements], closed: Elements) -> Table:
    resolver = () if policy.resolver is None else (policy.resolver,)
    return Table(
        family="bridge",
        name=TABLE,
        sets=(
            Set("closed", ("address",), True, False, closed, True),
            _set("bridge", "bindings", ("device", "ether", "address"), elements),
            _set("bridge", "pairs", ("address", "address"), elements, lifetimes=True),
            _set("bridge", "publishers", ("address",), elements),
            _set("bridge", "internal", ("address",), elements),
        ),
        chains=(
            Chain(
                "from_port",
                (
                    # IPv6 and what else is no IPv4 goes past both to the end.
                    rule(
                        "accept",
                        _ARP,
                        Match("arp_form", ("ipv4",)),
                        InSet(("in_device", "ether_source", "arp_source"), "bindings"),
                        InSet(("in_device", "arp_ether_source", "arp_source"), "bindings"),
                    ),
                    _DROP,
                ),
            ),
            Chain(
                "between_ports",
                (
                    rule("accept", _PAIR),
                    rule("accept", _ARP, InSet(("arp_source", "arp_destination"), "pairs")),
                    _DROP,
                ),
            ),
            Chain(
                "from_host",
                (
                    rule("accept", *icmp(*ICMP_ERRORS)),
                    rule("accept", is_passed(), _not_internal("destination")),
                    *(rule("accept", Match("source", (a,)), _TCP_OR_UDP) for a in resolver),
                    rule("accept", _ARP, Match("arp_source", (policy.address,))),
                    _DROP,
                ),
            ),
            Chain(
                "to_host",
                (
                    rule("accept", internet("destination"), _not_internal("source")),
                    *(rule("accept", Match("destination", (a,)), _TCP_OR_UDP) for a in resolver),
                    rule("accept", _ARP, Match("arp_destination", (policy.address,))),
                    # Later fragments carry no ports; which answers these are, the inet table asks.
                    rule("accept", InSet(("source",), "publishers"), _not_internal("source")),
                    _DROP,
                ),
            ),
            Chain(
                "prerouting",
                (
                    # A VLAN tag is another Ethernet type, also where the kernel has taken it off.
                    Rule(
                        (
                            Match("ether_type", ("ip",)),
                            InSet(("in_device", "ether_source", "source"), "bindings"),
                        ),
                        (SetMark(PORT_MARK), "accept"),
                    ),
                    rule(Jump("from_port"), _FROM_PORT),
                ),
                Hook("filter", "prerouting", _BRIDGE_PREROUTING_PRIORITY, "accept"),
            ),
            Chain(
                "forward",
                (
                    rule(Jump("between_ports"), _FROM_PORT, _TO_PORT),
                    rule("drop", _FROM_PORT),
                    rule("drop", _TO_PORT),
                ),
                Hook("filter", "forward", _BRIDGE_FILTER_PRIORITY, "accept"),
            ),
            Chain(
                "input",
                (rule("accept", _PAIR), rule(Jump("to_host"), _FROM_PORT)),
                Hook("filter", "input", _BRIDGE_FILTER_PRIORITY, "accept"),
            ),
            Chain(
                "output",
                (rule("accept", _PAIR), rule(Jump("from_host"), _TO_PORT)),
                Hook("filter", "output", _BRIDGE_FILTER_PRIORITY, "accept"),
            ),
        ),
    )


def _inet_table(policy: HostPolicy, elements: dict[SetId, Elements], closed: Elements) -> Table:
    from_bridge = Match("in_device", (policy.bridge,))
    to_bridge = Match("out_device", (policy.bridge,))
    return Table(
        family="inet",
        name=TABLE,
        sets=(
            Set("closed", ("address",), True, False, closed, True),
            _set("inet", "pairs", ("address", "address"), elements, lifetimes=True),
            _set("inet", "error_pairs", ("address", "quoted"), elements, lifetimes=True),
            _set("inet", "tunnels", ("device", "address"), elements, intervals=True),
            _set("inet", "direct_sources", ("device", "address"), elements, intervals=True),
            _set("inet", "direct", ("device", "ether", "address"), elements, intervals=True),
            _set("inet", "encapsulations", ("protocol",), elements),
            _set("inet", "gre_peers", ("address",), elements),
            _set("inet", "vxlan_peers", ("address", "vni"), elements),
            _set("inet", "wireguard_peers", ("address",), elements),
            Set("wireguard_ports", ("port",), elements=_ports(policy), fixed=True),
            _set("inet", "nodes", ("address",), elements),
            attrs.evolve(
                _set("inet", "publications", ("protocol", "port"), elements), leads_to=("address", "port")
            ),
            attrs.evolve(
                _set("inet", "publications_at", ("address", "protocol", "port"), elements),
                leads_to=("address", "port"),
            ),
            _set("inet", "published", ("address", "protocol", "port"), elements),
            _set("inet", "publishers", ("address",), elements),
            _set("inet", "internal", ("address",), elements),
        ),
        chains=(
            *publishing_chains(policy),
            *_jumped_to(policy),
            Chain(
                "prerouting",
                (
                    rule(Jump("from_our_bridge"), from_bridge),
                    rule(Jump("from_our_tunnel"), _FROM_TUNNEL),
                    # What a port brings is the bridge's: by itself it came past the bridge table.
                    rule("drop", _FROM_PORT),
                    # A container's address elsewhere is somebody who would be answered, or leave, as one.
                    rule(
                        "drop",
                        Match("source", (element_network(IPv4Network(policy.block)),)),
                        Match("in_device", (policy.bridge,), negated=True),
                        Match("in_device_type", ("loopback",), negated=True),
                    ),
                    *untracked(policy.vxlan_port, "source"),
                    rule(Jump("from_direct_peer"), InSet(("in_device", "source"), "direct_sources")),
                ),
                Hook("filter", "prerouting", _RAW_PRIORITY, "accept"),
            ),
            Chain(
                "input",
                (
                    *from_peers(policy.vxlan_port),
                    rule(Jump("from_containers"), from_bridge),
                    rule("drop", _FROM_TUNNEL),
                    rule("drop", _FROM_PEER_BLOCK),
                    rule(
                        "drop",
                        Match("destination", (policy.address,)),
                        Match("in_device_type", ("loopback",), negated=True),
                    ),
                    *from_no_peer(policy.vxlan_port),
                ),
                Hook("filter", "input", FILTER_PRIORITY, "accept"),
            ),
            Chain(
                "forward",
                (
                    rule(Jump("into_bridge"), to_bridge),
                    rule(Jump("out_of_bridge"), from_bridge),
                    rule("drop", _FROM_TUNNEL),
                    rule("drop", _TO_TUNNEL),
                    rule("drop", _FROM_PEER_BLOCK),
                    rule("drop", _TO_PEER_BLOCK),
                    *never_forwarded(policy.vxlan_port),
                    *_unmarked(),
                ),
                # Whoever filters what is forwarded comes after it, and sees the mark.
                Hook("filter", "forward", FILTER_PRIORITY - 1, "accept"),
            ),
            Chain(
                "outer_output",
                (*never_a_users(policy.vxlan_port), *untracked(policy.vxlan_port, "destination")),
                Hook("filter", "output", _RAW_PRIORITY, "accept"),
            ),
            Chain(
                "output",
                (
                    # What goes to a peer node was looked at in `outer_output`.
                    *sent_untracked(policy.vxlan_port),
                    rule(Jump("to_containers"), to_bridge),
                    rule(Jump("errors_only"), _TO_TUNNEL),
                    rule(Jump("errors_only"), _TO_PEER_BLOCK),
                    # What was translated still shows the link it was to leave by before.
                    rule(Jump("into_published"), is_translated()),
                    *_unmarked(),
                ),
                Hook("filter", "output", FILTER_PRIORITY, "accept"),
            ),
            Chain(
                "postrouting",
                (
                    rule(
                        "masquerade",
                        Match("source", (element_network(IPv4Network(policy.block)),)),
                        Match("out_device", (policy.bridge,), negated=True),
                        Match("out_device", (TUNNEL_PREFIX + "*",), negated=True),
                        internet("destination"),
                    ),
                    *hides_clients(policy),
                ),
                Hook("nat", "postrouting", _SOURCE_NAT_PRIORITY, "accept"),
            ),
        ),
    )


def _jumped_to(policy: HostPolicy) -> tuple[Chain, ...]:
    from_bridge = Match("in_device", (policy.bridge,))
    block = element_network(IPv4Network(policy.block))
    replies = Match("flow_direction", ("reply",))
    resolver = () if policy.resolver is None else (policy.resolver,)
    return (
        Chain(
            "from_our_bridge",
            (
                # Without the mark it came in by a port that is not ours, or past the bridge table.
                rule("drop", Match("mark", (str(PORT_MARK),), negated=True)),
                rule(SetMark(0)),
                rule("drop", Match("source", (block,), negated=True)),
                Rule(
                    (
                        Match("destination", (policy.address,), negated=True),
                        Match("destination", (element_network(IPv4Network(policy.supernet)),)),
                    ),
                    ("notrack", "accept"),
                ),
                rule("drop", _NOT_IPV4),
                # The bridge may route to loopback for the answers to the node itself, and to nothing else.
                rule("drop", Match("destination", ("127.0.0.0/8",))),
            ),
        ),
        Chain("from_our_tunnel", (Rule((_FROM_PEER_BLOCK,), ("notrack", "accept")), _DROP)),
        Chain(
            "from_direct_peer",
            (
                Rule((InSet(("in_device", "ether_source", "source"), "direct"),), ("notrack", "accept")),
                _DROP,
            ),
        ),
        Chain(
            "from_containers",
            (
                *(rule("accept", Match("destination", (a,)), *dns("destination_port")) for a in resolver),
                rule("drop", InSet(("source",), "internal")),
                rule(Jump("out_of_published"), is_translated()),
                _DROP,
            ),
        ),
        Chain(
            "into_bridge",
            (
                # What came out of a tunnel has shown whose it is in prerouting.
                passed(_FROM_TUNNEL, _PAIR),
                passed(from_bridge, _PAIR),
                passed(_FROM_PEER_BLOCK, _PAIR),
                # Errors from the peer node's router: what they are about must be a pair.
                passed(
                    _FROM_PEER_BLOCK,
                    *icmp(*ICMP_ERRORS),
                    InSet(("destination", "error_destination"), "error_pairs"),
                ),
                rule("drop", from_bridge),
                rule("drop", _FROM_TUNNEL),
                rule("drop", _FROM_PEER_BLOCK),
                rule("drop", InSet(("destination",), "internal")),
                passed_outside(replies, internet("source")),
                rule(Jump("into_published"), is_translated()),
                passed_outside(
                    *related_errors(), Match("flow_source", (block,)), internet("flow_destination")
                ),
                _DROP,
            ),
        ),
        Chain(
            "out_of_bridge",
            (
                passed(_TO_PEER_BLOCK, _PAIR),
                rule("drop", _TO_TUNNEL),
                rule("drop", InSet(("source",), "internal")),
                rule(Jump("out_of_published"), is_translated()),
                passed_outside(internet("destination")),
                _DROP,
            ),
        ),
        Chain(
            "to_containers",
            (
                *(rule("accept", Match("source", (a,)), replies, *dns("source_port")) for a in resolver),
                rule("accept", *icmp(*ICMP_ERRORS)),
                _DROP,
            ),
        ),
        Chain("errors_only", (rule("accept", *icmp(*ICMP_ERRORS)), _DROP)),
    )


def _not_internal(address: Literal["source", "destination"]) -> InSet:
    return InSet((address,), "internal", negated=True)


def _ports(policy: HostPolicy) -> Elements:
    return {(str(port),): None for port in policy.wireguard_ports}


def _unmarked() -> tuple[Rule, ...]:
    """Return what takes our marks off a packet that nobody here let through: only we may give it."""
    return (Rule((is_passed(),), (SetMark(0),)),)


def _set(
    family: str,
    name: str,
    parts: tuple[ElementType, ...],
    elements: dict[SetId, Elements],
    *,
    intervals: bool = False,
    lifetimes: bool = False,
) -> Set:
    return Set(name, parts, intervals, lifetimes, elements.get((family, name), {}))
