"""Which elements of which sets stand for a policy's openings, pairs, bindings and so on; pure.

The sets are declared in `firewall_rules.compile_container` and `firewall_rules.compile_host`. Elements of
different groups never depend on each other, so a change looks at the groups it touches and at nothing else.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from socket import inet_aton
from typing import Literal

from firewall_rules.policy import Opening, Pair, PortBinding, Publication, TunnelPolicy
from firewall_rules.ruleset import ElementKey, Elements

PROTOCOLS: Mapping[str, str] = {"tcp": "6", "udp": "17", "gre": "47", "vxlan": "17"}
"""IANA's protocol numbers of what openings and encapsulations are carried by."""

Item = Opening | Pair | PortBinding | TunnelPolicy | Publication | str
"""What elements stand for; a text is an address that is internal."""
Part = Literal["inbound", "outbound", "bindings", "pairs", "tunnels", "publications", "internal"]
"""The field of a policy that an item is in."""
SetId = tuple[str, str]
"""A set by its table's family and its own name."""


def item_key(item: Item) -> Hashable:
    """Return what `item` is known by in its part; what else it holds is its value, which may be replaced."""
    match item:
        case Opening():
            return item.peer, item.protocol, item.port
        case Pair():
            return item.one, item.other
        case PortBinding():
            return item.device
        case TunnelPolicy():
            return item.block, item.device
        case Publication():
            return item.protocol, item.host_address, item.host_port
        case str():
            return item


def group_of(part: Part, item: Item) -> Hashable:
    """Return the group of `item`: only items of one group can stand for the same element."""
    match item:
        case Opening():
            return part, item.peer
        case TunnelPolicy() | Publication():
            return part
        case _:
            return part, item_key(item)


def elements_of(items: Iterable[tuple[Part, Item]]) -> dict[SetId, Elements]:
    """Return the elements that stand for `items`; of two lifetimes of one element the longer counts."""
    sets: dict[SetId, dict[ElementKey, float | None]] = {}
    for part, item in items:
        for set_id, key, expires_at in _elements(part, item):
            elements = sets.setdefault(set_id, {})
            if key in elements:
                other = elements[key]
                expires_at = None if other is None or expires_at is None else max(other, expires_at)  # noqa: PLW2901 - the longer one
            elements[key] = expires_at
    return dict(sets)


def _elements(part: Part, item: Item) -> Iterable[tuple[SetId, ElementKey, float | None]]:
    match item:
        case Opening():
            return _of_opening("in" if part == "inbound" else "out", item)
        case Pair():
            return [
                (set_id, key, item.expires_at)
                for one, other in ((item.one, item.other), (item.other, item.one))
                for set_id, key in (
                    (("bridge", "pairs"), (one, other)),
                    (("inet", "pairs"), (one, other)),
                    (("inet", "error_pairs"), (one, _number(other))),
                )
            ]
        case PortBinding():
            return [(("bridge", "bindings"), (item.device, item.mac, item.address), None)]
        case TunnelPolicy():
            return [(("inet", name), key, None) for name, key in _of_tunnel(item)]
        case Publication():
            return [(set_id, key, None) for set_id, key in _of_publication(item)]
        case str():
            return [((family, "internal"), (item,), None) for family in ("bridge", "inet")]


def _number(address: str) -> str:
    """Return an address as payload is compared to; what is none stays, and is refused as text."""
    try:
        return str(int.from_bytes(inet_aton(address)))
    except OSError:
        return address


def _of_opening(way: str, opening: Opening) -> Iterable[tuple[SetId, ElementKey, float | None]]:
    ends = opening.expires_at
    yield ("inet", f"{way}_peers"), (opening.peer,), ends
    if opening.protocol == "any":
        yield ("inet", f"{way}_any"), (opening.peer,), ends
    elif opening.protocol == "icmp":
        yield ("inet", f"{way}_ping"), (opening.peer,), ends
    else:
        yield ("inet", f"{way}_ports"), (opening.peer, PROTOCOLS[opening.protocol], str(opening.port)), ends


def _of_tunnel(tunnel: TunnelPolicy) -> Iterable[tuple[str, ElementKey]]:
    yield "nodes", (tunnel.outer,)
    yield from _of_outer_packets(tunnel)
    if not tunnel.routed:
        return
    yield "tunnels", (tunnel.device, tunnel.block)
    if tunnel.encapsulation == "direct":
        yield "direct_sources", (tunnel.device, tunnel.block)
        yield "direct", (tunnel.device, tunnel.mac, tunnel.block)


def _of_outer_packets(tunnel: TunnelPolicy) -> Iterable[tuple[str, ElementKey]]:
    match tunnel.encapsulation:
        case "gre":
            yield "encapsulations", (PROTOCOLS["gre"],)
            yield "gre_peers", (tunnel.outer,)
        case "vxlan":
            yield "encapsulations", (PROTOCOLS["vxlan"],)
            yield "vxlan_peers", (tunnel.outer, str(tunnel.vni))
        case "wireguard":
            yield "wireguard_peers", (tunnel.outer,)


def _of_publication(item: Publication) -> Iterable[tuple[SetId, ElementKey]]:
    protocol, host_port, port = PROTOCOLS[item.protocol], str(item.host_port), str(item.port)
    leads_to = item.address, port
    if item.host_address:
        yield ("inet", "publications_at"), (item.host_address, protocol, host_port, *leads_to)
    else:
        yield ("inet", "publications"), (protocol, host_port, *leads_to)
    yield ("inet", "published"), (item.address, protocol, port)
    yield ("inet", "publishers"), (item.address,)
    yield ("bridge", "publishers"), (item.address,)
