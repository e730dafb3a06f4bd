"""What nft lists as JSON, libnftables-json(5), read back as what we once made; pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeVar

import attrs

from firewall_rules.book import Book, with_items
from firewall_rules.elements import PROTOCOLS, Item, Part, SetId, elements_of
from firewall_rules.policy import ContainerPolicy, HostPolicy, Opening, Pair, PortBinding, Publication
from firewall_rules.ruleset import ElementKey, Elements, Ruleset

LIFETIME_TOLERANCE: Final = 2.5
"""Seconds by which a lifetime that is listed (in whole seconds, rounded down) may differ from the wanted."""

_SETS: Final = frozenset({"set", "map"})
_P = TypeVar("_P", ContainerPolicy, HostPolicy)


class UnreadableError(Exception):
    """A listing that is not of the form we know."""


@attrs.frozen
class Listing:
    """Our tables as listed.

    Attributes:
        static: Everything but handles, counters and the elements that updates change; equal texts mean
            equal tables.
        elements: Of the sets that updates change.
    """

    static: str
    elements: Mapping[SetId, Elements]


def parse_listing(outputs: Iterable[str], ruleset: Ruleset, now: float) -> Listing:
    """Return what `outputs` say of the tables of `ruleset`, listed at `now`.

    Raises:
        UnreadableError: They are not of the form we know.
    """
    changing = {(table.family, one.name) for table in ruleset for one in table.sets if not one.fixed}
    static: list[Any] = []
    elements: dict[SetId, Elements] = {}
    try:
        for output in outputs:
            for entry in json.loads(output)["nftables"]:
                if "metainfo" in entry:
                    continue
                ((kind, body),) = entry.items()
                listed = body.pop("elem", []) if kind in _SETS else []
                set_id = body.get("family"), body.get("name")
                if kind in _SETS and set_id in changing:
                    elements[set_id] = dict(_element(one, now) for one in listed)
                    listed = []
                static.append([kind, _without_handles(body), listed])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableError(str(error)) from error
    return Listing(json.dumps(static, sort_keys=True), elements)


def policy_in_force(listing: Listing, book: Book[_P], now: float) -> _P | None:
    """Return the policy that the listed elements stand for, None where they stand for none.

    Args:
        listing: Whose static part is known to be as it must be.
        book: What should be in force; its items are taken where the kernel tells less than they say.
        now: When it was listed.
    """
    items = [(part, _known(book, part, item)) for part, item in _items(listing.elements, book, now)]
    wanted: dict[SetId, Elements] = elements_of(items)
    set_ids = {*listing.elements, *wanted}
    if not all(_same(listing.elements.get(one, {}), wanted.get(one, {}), now) for one in set_ids):
        return None
    return with_items(book.frame, items)


def _items(elements: Mapping[SetId, Elements], book: Book[_P], now: float) -> Iterable[tuple[Part, Item]]:
    yield from _openings(elements)
    for device, mac, address in elements.get(("bridge", "bindings"), {}):
        yield "bindings", PortBinding(device, mac, address)
    for (one, other), ends in elements.get(("bridge", "pairs"), {}).items():
        if one < other:
            yield "pairs", Pair(one, other, ends)
    for key in elements.get(("inet", "publications"), {}):
        yield "publications", _publication("", *key)
    for key in elements.get(("inet", "publications_at"), {}):
        yield "publications", _publication(*key)
    for (address,) in elements.get(("inet", "internal"), {}):
        yield "internal", address
    # Several ways share elements, so what is listed does not say which there are: what is known does.
    for part_of, item in book.items(now):
        if part_of == "tunnels" and _all_listed(elements_of([(part_of, item)]), elements):
            yield part_of, item


def _all_listed(wanted: Mapping[SetId, Elements], listed: Mapping[SetId, Elements]) -> bool:
    return all(keys.keys() <= listed.get(set_id, {}).keys() for set_id, keys in wanted.items())


def _openings(elements: Mapping[SetId, Elements]) -> Iterable[tuple[Part, Item]]:
    ways: tuple[tuple[str, Part], ...] = (("in", "inbound"), ("out", "outbound"))
    for way, part in ways:
        for key, ends in elements.get(("inet", f"{way}_ports"), {}).items():
            peer, protocol, port = key
            # An element of another protocol is none of ours, and shows as a difference.
            yield part, Opening(peer, "tcp" if protocol == PROTOCOLS["tcp"] else "udp", int(port), ends)
        for (peer,), ends in elements.get(("inet", f"{way}_ping"), {}).items():
            yield part, Opening(peer, "icmp", 0, ends)
        for (peer,), ends in elements.get(("inet", f"{way}_any"), {}).items():
            yield part, Opening(peer, "any", 0, ends)


def _publication(host_address: str, protocol: str, host_port: str, address: str, port: str) -> Publication:
    # An element of another protocol is none of ours, and shows as a difference.
    name: Literal["tcp", "udp"] = "tcp" if protocol == PROTOCOLS["tcp"] else "udp"
    return Publication(name, host_address, int(host_port), address, int(port))


def _known(book: Book[_P], part: Part, item: Item) -> Item:
    known = book.find(part, item)
    if isinstance(item, Opening | Pair) and isinstance(known, Opening | Pair):
        if item.expires_at is None or known.expires_at is None:
            return item
        return known if abs(item.expires_at - known.expires_at) <= LIFETIME_TOLERANCE else item
    return item


def _same(listed: Elements, wanted: Elements, now: float) -> bool:
    for key in {*listed, *wanted}:
        if key not in wanted or key not in listed:
            ends = listed.get(key) or wanted.get(key)
            # What is about to end may be in one of two sets and no longer in the other.
            if ends is None or ends - now > LIFETIME_TOLERANCE:
                return False
            continue
        one, other = listed[key], wanted[key]
        if (one is None) != (other is None):
            return False
        if one is not None and other is not None and abs(one - other) > LIFETIME_TOLERANCE:
            return False
    return True


def _element(entry: Any, now: float) -> tuple[ElementKey, float | None]:
    ends = None
    if isinstance(entry, dict) and "elem" in entry:
        body = entry["elem"]
        ends = now + body["expires"] if "expires" in body else None
        entry = body["val"]
    # An element of a map is a list: its own parts, and what they lead to.
    values = entry if isinstance(entry, list) else [entry]
    return tuple(_text(part) for value in values for part in _parts(value)), ends


def _parts(value: Any) -> list[Any]:
    return value["concat"] if isinstance(value, dict) and "concat" in value else [value]


def _text(part: Any) -> str:
    if isinstance(part, dict):
        ((kind, body),) = part.items()
        if kind == "prefix":
            return f"{body['addr']}/{body['len']}"
        return json.dumps(part, sort_keys=True)
    return str(part)


def _without_handles(body: Any) -> Any:
    if isinstance(body, dict):
        if "counter" in body and body["counter"] is not None:
            body = {**body, "counter": None}
        return {key: _without_handles(value) for key, value in body.items() if key != "handle"}
    if isinstance(body, list):
        return [_without_handles(value) for value in body]
    return body
