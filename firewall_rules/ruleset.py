"""A firewall as data: tables of sets and chains of rules, in no backend's syntax.

A rule asks a question of named fields of the packet (`Field`), and acts when every question is answered
with yes. Values are text: addresses and networks as in `firewall_rules.policy`, protocols and ICMP types
as their IANA numbers, ports and marks as decimal numbers, devices as names (a trailing ``*`` is a prefix).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

Field = Literal[
    "arp_destination",
    "arp_ether_source",
    "arp_form",
    "arp_source",
    "destination",
    "destination_port",
    "destination_type",
    "error_destination",
    "ether_source",
    "ether_type",
    "family",
    "flow_destination",
    "flow_direction",
    "flow_source",
    "flow_state",
    "flow_status",
    "icmp_type",
    "in_device",
    "in_device_type",
    "in_group",
    "mark",
    "out_device",
    "out_device_type",
    "out_group",
    "protocol",
    "socket_user",
    "source",
    "source_port",
    "source_type",
    "vxlan_vni",
]
"""What of a packet a rule may ask for.

``flow_*`` are connection tracking's: the addresses of the flow's first packet (for a related ICMP error, of
the flow it is about), which way this packet goes (original, reply), its state (related, untracked), and
what was done to it where it began (dnat: its destination was translated).
``error_*`` are the addresses of the packet that an ICMP error quotes (RFC 792). ``family`` is ipv4 or ipv6.
``source_type`` and
``destination_type`` are local for an address of this host. ``socket_user`` is the number of the user whose
process's socket sends the packet; of any other packet no question about it is answered with yes.
``in_group`` and ``out_group`` are a link's group as a number; it stays with a link that moves to another
namespace.
``arp_form`` has the one value ``ipv4``: an Ethernet ARP request or reply for IPv4 (RFC 826).
"""

ElementType = Literal["address", "protocol", "port", "device", "ether", "vni", "quoted"]
"""What one part of a set's element is; quoted: an address in a packet's payload, as a decimal number."""

Parts = tuple[ElementType, ...]
"""What the elements of one set are made of."""

ElementKey = tuple[str, ...]
"""One element of a set: a text for each part."""

Elements = Mapping[ElementKey, float | None]
"""A set's elements, each with when the kernel is to end it (seconds since 1970; None: never)."""

IN_SET_OF: Mapping[Field, ElementType] = {
    "source": "address",
    "destination": "address",
    "arp_source": "address",
    "arp_destination": "address",
    "flow_source": "address",
    "flow_destination": "address",
    "protocol": "protocol",
    "source_port": "port",
    "destination_port": "port",
    "in_device": "device",
    "out_device": "device",
    "ether_source": "ether",
    "arp_ether_source": "ether",
    "vxlan_vni": "vni",
    "error_destination": "quoted",
}
"""The fields that can be looked up in a set, and the type of its part they are compared to."""


@attrs.frozen
class Match:
    """One question: is this field one of these values?

    Attributes:
        values: One at least.
        negated: Ask for none of them.
    """

    field: Field
    values: tuple[str, ...]
    negated: bool = False


@attrs.frozen
class InSet:
    """One question: are these fields, taken together, an element of that set?

    Attributes:
        fields: In the order of the set's parts.
        set_name: Of the same table.
        negated: Ask whether they are not.
    """

    fields: tuple[Field, ...]
    set_name: str
    negated: bool = False


@attrs.frozen
class Jump:
    """Go on in another chain of the same table, and come back if it comes to no end."""

    chain: str


@attrs.frozen
class SetMark:
    """Write the packet's mark, which lives as long as the packet stays in one network namespace."""

    value: int


@attrs.frozen
class Translate:
    """Give the flow another destination (address and port), found in a map; not found, go on.

    Attributes:
        fields: What is looked up.
        map_name: A set of the same table, with `Set.leads_to`.
    """

    fields: tuple[Field, ...]
    map_name: str


Action = Literal["accept", "drop", "masquerade", "notrack"] | Jump | SetMark | Translate
"""What a rule does; notrack: connection tracking leaves the packet out, in chains that come before it."""


@attrs.frozen
class Rule:
    """Questions, and what is done when all are answered with yes; without questions, always."""

    matches: tuple[Match | InSet, ...]
    actions: tuple[Action, ...]


@attrs.frozen
class Hook:
    """Where in the kernel a chain is called.

    Attributes:
        kind: nat chains may translate addresses.
        priority: As in linux/netfilter_ipv4.h and linux/netfilter_bridge.h; the smallest is called first.
        policy: What happens to a packet that comes to no end in the chain.
    """

    kind: Literal["filter", "nat"]
    point: Literal["prerouting", "input", "forward", "output", "postrouting"]
    priority: int
    policy: Literal["accept", "drop"]


@attrs.frozen
class Chain:
    """Rules in their order.

    Attributes:
        hook: None: reached by jumps only.
    """

    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None


@attrs.frozen
class Set:
    """A set that rules look packets up in, at a cost that does not grow with its elements.

    Attributes:
        parts: The types of an element's parts.
        intervals: An address part may be a network.
        lifetimes: Elements may end by themselves.
        elements: What is in it when the table is made.
        fixed: Its elements are changed by nothing but another install of the whole.
        leads_to: Where it is a map: the types of what an element's parts lead to. An element then has
            those parts behind its own, and there is one at most for the same own parts.
    """

    name: str
    parts: Parts
    intervals: bool = False
    lifetimes: bool = False
    elements: Elements = attrs.field(factory=dict)
    fixed: bool = False
    leads_to: Parts = ()


@attrs.frozen
class Table:
    """A whole table of ours.

    Attributes:
        family: inet is IPv4 and IPv6 together; bridge is Ethernet frames.
    """

    family: Literal["inet", "bridge"]
    name: str
    sets: tuple[Set, ...]
    chains: tuple[Chain, ...]


Ruleset = tuple[Table, ...]
"""The tables that stand and fall together."""
