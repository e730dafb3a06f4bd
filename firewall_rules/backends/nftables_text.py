"""Rulesets and changes of elements as nft's language, nft(8); pure.

Every text that reaches nft passes the one check in here, whoever asked: values come from policies, and a
policy may come from a process that is not trusted with more than policies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from firewall_rules.backends.base import FirewallError
from firewall_rules.names import TABLE
from firewall_rules.ruleset import (
    Action,
    Chain,
    ElementKey,
    Elements,
    ElementType,
    Field,
    InSet,
    Jump,
    Match,
    Rule,
    Ruleset,
    Set,
    SetMark,
    Table,
    Translate,
)

_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_FORMS: Mapping[ElementType, re.Pattern[str]] = {
    "address": re.compile(rf"{_OCTET}(\.{_OCTET}){{3}}(/([12]?[0-9]|3[0-2]))?"),
    "device": re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,14}\*?"),
    "ether": re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}"),
    "port": re.compile(r"[0-9]{1,5}"),
    "protocol": re.compile(r"[0-9]{1,3}"),
    "quoted": re.compile(r"[0-9]{1,10}"),
    "vni": re.compile(r"[0-9]{1,8}"),
}
_LARGEST: Mapping[ElementType, int] = {
    "port": 0xFFFF,
    "protocol": 0xFF,
    "quoted": 0xFFFFFFFF,
    "vni": 0xFFFFFF,
}
_TYPES: Mapping[ElementType, str] = {
    "address": "ipv4_addr",
    "device": "ifname",
    "ether": "ether_addr",
    "port": "inet_service",
    "protocol": "inet_proto",
}
_PAYLOADS: Mapping[ElementType, str] = {"vni": "@th,96,24", "quoted": "@th,192,32"}
_TYPE_OF_FIELD: Mapping[Field, ElementType] = {
    "arp_destination": "address",
    "arp_source": "address",
    "destination": "address",
    "destination_port": "port",
    "flow_destination": "address",
    "flow_source": "address",
    "in_device": "device",
    "out_device": "device",
    "protocol": "protocol",
    "icmp_type": "protocol",
    "source": "address",
    "source_port": "port",
}
_WORD = re.compile(r"[a-z0-9_]{1,31}")
_EXPRESSIONS: Mapping[Field, str] = {
    "arp_destination": "arp daddr ip",
    "arp_ether_source": "arp saddr ether",
    "arp_source": "arp saddr ip",
    "destination": "ip daddr",
    "destination_port": "th dport",
    "destination_type": "fib daddr type",
    "ether_source": "ether saddr",
    "ether_type": "ether type",
    "family": "meta nfproto",
    "flow_destination": "ct original ip daddr",
    "flow_direction": "ct direction",
    "flow_source": "ct original ip saddr",
    "flow_state": "ct state",
    "flow_status": "ct status",
    "icmp_type": "icmp type",
    "in_device": "iifname",
    "in_device_type": "meta iiftype",
    "in_group": "meta iifgroup",
    "mark": "meta mark",
    "out_device": "oifname",
    "out_device_type": "meta oiftype",
    "out_group": "meta oifgroup",
    "protocol": "meta l4proto",
    "socket_user": "meta skuid",
    "source": "ip saddr",
    "source_port": "th sport",
    "source_type": "fib saddr type",
    # RFC 7348, section 5: flags and 24 reserved bits follow the UDP header of 8 bytes, then the VNI.
    "vxlan_vni": "@th,96,24",
    # RFC 792: an error's header of 8 bytes, then the quoted IP header, whose destination is at 16.
    "error_destination": "@th,192,32",
}
_BRIDGE_EXPRESSIONS: Mapping[Field, str] = {"protocol": "ip protocol"}
"""What is said otherwise in the bridge family, where a frame may be no packet at all."""
_ARP_FORM = "arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp operation { request, reply }"
_SHORTEST_LIFETIME = 0.001
_LONGEST_LIFETIME = 10 * 365 * 86400.0


def install_text(ruleset: Ruleset, now: float) -> str:
    """Return the commands that replace our tables, whole, by `ruleset`.

    Args:
        ruleset: Lifetimes that have ended at `now` are left out.
        now: Seconds since 1970.

    Raises:
        FirewallError: A value is not of the form it must have.
    """
    return remove_text(ruleset) + "".join(_table(table, now) for table in ruleset)


def remove_text(ruleset: Ruleset) -> str:
    """Return the commands that take our tables out, whether they are there or not."""
    return "".join(
        f"add table {table.family} {table.name}\ndelete table {table.family} {table.name}\n"
        for table in ruleset
    )


def change_text(
    family: str,
    one: Set,
    removed: Iterable[ElementKey],
    added: Elements,
    now: float,
    *,
    absent: frozenset[ElementKey] = frozenset(),
) -> str:
    """Return the commands that take elements out of one set of ours, and then put others in.

    An element is put in and taken out again before it stands with its own lifetime, since nft refuses to
    take out what is not there, and kernels before 6.12 do not change a lifetime. Taking out is what costs.

    Args:
        family: Of the set's table.
        one: The set, whose elements are not looked at.
        removed: Elements that must be gone; they need not be there.
        added: Elements that must be there; what has ended at `now` must be gone.
        now: Seconds since 1970.
        absent: Elements of both that are known not to be there. In a map, what leads elsewhere counts.

    Raises:
        FirewallError: A value is not of the form it must have.
    """
    target = f"element {family} {TABLE} {one.name}"
    old = ", ".join(_key(key, one) for key in sorted({*removed, *added} - absent))
    text = f"add {target} {{ {old} }}\ndelete {target} {{ {old} }}\n" if old else ""
    new = _elements(added, one, now)
    return text + (f"add {target} {{ {new} }}\n" if new else "")


def _table(table: Table, now: float) -> str:
    body = [_set(one, now) for one in table.sets]
    body += [_chain(chain, table.family) for chain in table.chains]
    return f"table {table.family} {table.name} {{\n" + "".join(body) + "}\n"


def _set(one: Set, now: float) -> str:
    flags = [flag for flag, is_set in (("interval", one.intervals), ("timeout", one.lifetimes)) if is_set]
    lines = [f"    {_types(one)}"]
    if flags:
        lines.append(f"    flags {', '.join(flags)}")
    if elements := _elements(one.elements, one, now):
        lines.append(f"    elements = {{ {elements} }}")
    kind = "map" if one.leads_to else "set"
    return f"  {kind} {one.name} {{\n" + "\n".join(lines) + "\n  }\n"


def _types(one: Set) -> str:
    if any(part in _PAYLOADS for part in one.parts):
        # Bytes of payload have no type with a name, so expressions stand for their types.
        return "typeof " + " . ".join(_PAYLOADS.get(part, "ip saddr") for part in one.parts)
    return "type " + _in_two(one, [_TYPES[part] for part in (*one.parts, *one.leads_to)])


def _elements(elements: Elements, one: Set, now: float) -> str:
    texts = []
    for key, expires_at in sorted(elements.items()):
        if expires_at is None:
            texts.append(_key(key, one))
        elif expires_at - now >= _SHORTEST_LIFETIME:
            lasts = math.floor(min(expires_at - now, _LONGEST_LIFETIME) * 1000)
            texts.append(f"{_key(key, one)} timeout {lasts // 1000}s{lasts % 1000}ms")
    return ", ".join(texts)


def _key(key: ElementKey, one: Set) -> str:
    parts = (*one.parts, *one.leads_to)
    return _in_two(one, [_value(text, part) for text, part in zip(key, parts, strict=True)])


def _in_two(one: Set, texts: list[str]) -> str:
    """Return what stands for the parts of a set's elements, and of a map's what they lead to."""
    own, led_to = texts[: len(one.parts)], texts[len(one.parts) :]
    return " . ".join(own) + (" : " + " . ".join(led_to) if led_to else "")


def _value(text: str, kind: ElementType) -> str:
    if _FORMS[kind].fullmatch(text) is None or (kind in _LARGEST and int(text) > _LARGEST[kind]):
        raise FirewallError(f"not a valid {kind}: {text[:40]!r}")
    return f'"{text}"' if kind == "device" else text


def _chain(chain: Chain, family: str) -> str:
    lines = []
    if chain.hook is not None:
        hook = chain.hook
        lines.append(
            f"    type {hook.kind} hook {hook.point} priority {hook.priority}; policy {hook.policy};"
        )
    lines += [f"    {_rule(rule, family)}" for rule in chain.rules]
    return f"  chain {chain.name} {{\n" + "".join(line + "\n" for line in lines) + "  }\n"


@lru_cache(maxsize=256)
def _rule(rule: Rule, family: str) -> str:
    # Most rules are the same in every container of a node.
    matches = [_match(match, family) for match in rule.matches]
    return " ".join([*matches, *(_action(action, family) for action in rule.actions)])


def _match(match: Match | InSet, family: str) -> str:
    sign = "!= " if match.negated else ""
    if isinstance(match, InSet):
        return " . ".join(_expression(field, family) for field in match.fields) + f" {sign}@{match.set_name}"
    if match.field == "arp_form":
        return _ARP_FORM
    values = [_literal(match.field, value) for value in match.values]
    value = values[0] if len(values) == 1 else "{ " + ", ".join(values) + " }"
    return f"{_expression(match.field, family)} {sign}{value}"


def _expression(field: Field, family: str) -> str:
    return (_BRIDGE_EXPRESSIONS.get(field) if family == "bridge" else None) or _EXPRESSIONS[field]


def _literal(field: Field, text: str) -> str:
    kind = _TYPE_OF_FIELD.get(field)
    if kind is not None:
        return _value(text, kind)
    if _WORD.fullmatch(text) is None:
        raise FirewallError(f"not a valid {field}: {text[:40]!r}")
    return text


def _action(action: Action, family: str) -> str:
    match action:
        case Jump():
            return f"jump {action.chain}"
        case SetMark():
            return f"meta mark set {action.value}"
        case Translate():
            fields = " . ".join(_expression(field, family) for field in action.fields)
            return f"dnat ip to {fields} map @{action.map_name}"
        case "masquerade":
            return "masquerade fully-random"
        case _:
            return action
