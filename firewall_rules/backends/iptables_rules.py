"""Layer 1 in the words of iptables(8), iptables-extensions(8) and ipset(8); pure.

What iptables cannot say is said as strictly as it can be: its conntrack match compares the addresses of a
flow with fixed ones only, so ICMP errors are let in for every flow that is tracked, and the backend deletes
what is tracked of a peer when its last opening is taken away. Loopback is known by addresses, since a
packet from one of our own addresses to another has gone nowhere else, and no link's name is asked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Final, Literal

import attrs

from firewall_rules.backends.base import FirewallError
from firewall_rules.names import IPSET_PREFIX, IPTABLES_CHAIN_PREFIX
from firewall_rules.ruleset import Field, InSet, Jump, Match, Parts, Rule, Ruleset, Set, Table

Option = tuple[str, str, tuple[str, ...]]
"""One option of one match: the match's name, the option's, and its values; ``!`` among them negates."""


@attrs.frozen
class IptablesRule:
    """One rule of a chain of ours.

    Attributes:
        protocol: By number; empty: any.
        source: An address; ``!`` in front negates; empty: any.
        destination: The same.
        options: Those of the same match follow each other; a match's first option is named once per match.
        target: ACCEPT or DROP.
    """

    protocol: str
    source: str
    destination: str
    options: tuple[Option, ...]
    target: Literal["ACCEPT", "DROP"]


@attrs.frozen
class IpsetSet:
    """One set of ours.

    Attributes:
        kind: ipset's type name.
        lifetimes: Whether its elements may end by themselves.
    """

    name: str
    kind: Literal["hash:ip", "hash:net", "hash:ip,port"]
    lifetimes: bool


@attrs.frozen
class IptablesTables:
    """Everything of ours in one namespace.

    Attributes:
        ipv4: Rules by the built-in chain that comes to ours first.
        ipv6: The same.
    """

    sets: tuple[IpsetSet, ...]
    ipv4: Mapping[str, tuple[IptablesRule, ...]]
    ipv6: Mapping[str, tuple[IptablesRule, ...]]


_KINDS: Final[Mapping[Parts, Literal["hash:ip", "hash:ip,port"]]] = {
    ("address",): "hash:ip",
    ("address", "protocol", "port"): "hash:ip,port",
}
_DIRECTIONS: Final[Mapping[Field, str]] = {
    "source": "src",
    "destination": "dst",
    "source_port": "src",
    "destination_port": "dst",
}
_PROTOCOL_MATCHES: Final[Mapping[str, str]] = {"6": "tcp", "17": "udp"}
_PORT_OPTIONS: Final[Mapping[str, str]] = {"source_port": "sport", "destination_port": "dport"}
_FLOW_OPTIONS: Final[Mapping[Field, str]] = {
    "flow_direction": "ctdir",
    "flow_state": "ctstate",
    "flow_source": "ctorigsrc",
    "flow_destination": "ctorigdst",
}
_GROUP_OPTIONS: Final[Mapping[Field, str]] = {"in_group": "src-group", "out_group": "dst-group"}
_LOOPBACK: Final = IptablesRule(
    "", "", "", (("addrtype", "src-type", ("LOCAL",)), ("addrtype", "dst-type", ("LOCAL",))), "ACCEPT"
)
_DROP_ALL: Final = IptablesRule("", "", "", (), "DROP")


def set_name(name: str) -> str:
    """Return the name in the kernel of a set of ours."""
    return IPSET_PREFIX + name


def chain_name(builtin: str) -> str:
    """Return the name of our chain behind a built-in one."""
    return IPTABLES_CHAIN_PREFIX + builtin


def translate(ruleset: Ruleset) -> IptablesTables:
    """Return layer 1's ruleset for iptables.

    Raises:
        FirewallError: It asks for something that layer 1 does not, and that has no words here.
    """
    (table,) = ruleset
    return IptablesTables(
        sets=tuple(_set(one) for one in table.sets),
        ipv4={name: (*rules, _DROP_ALL) for name, rules in _chains(table)},
        ipv6={name: (*rules, _DROP_ALL) for name, rules in _chains(table, ipv6=True)},
    )


def _set(one: Set) -> IpsetSet:
    kind = "hash:net" if one.intervals else _KINDS[one.parts]
    return IpsetSet(set_name(one.name), kind, one.lifetimes)


def _chains(table: Table, *, ipv6: bool = False) -> Iterable[tuple[str, tuple[IptablesRule, ...]]]:
    jumped_to = {chain.name: chain.rules for chain in table.chains if chain.hook is None}
    for chain in table.chains:
        if chain.hook is not None:
            flat = itertools.chain.from_iterable(_without_jumps(rule, jumped_to) for rule in chain.rules)
            wanted = _of_ipv6(flat) if ipv6 else flat
            translated = itertools.chain.from_iterable(_rules(rule) for rule in wanted)
            yield chain.hook.point.upper(), tuple(dict.fromkeys(translated))


def _without_jumps(rule: Rule, jumped_to: Mapping[str, tuple[Rule, ...]]) -> Iterable[Rule]:
    match rule.actions:
        case (Jump(chain=name),):
            for one in jumped_to[name]:
                yield Rule((*rule.matches, *one.matches), one.actions)
        case _:
            yield rule


def _of_ipv6(rules: Iterable[Rule]) -> Iterable[Rule]:
    """Yield what is asked of IPv6 too: whatever comes before IPv4 is told from it, and names no address."""
    for rule in rules:
        fields = {match.field for match in rule.matches if isinstance(match, Match)}
        if "family" in fields:
            return
        if not fields & {"source", "destination"}:
            yield rule


def _rules(rule: Rule) -> Iterable[IptablesRule]:
    """Yield the rules that together say what `rule` says: one for every choice of several values."""
    fields = {match.field for match in rule.matches if isinstance(match, Match)}
    if fields & {"in_device_type", "out_device_type"}:
        yield _LOOPBACK
        return
    if "family" in fields:
        # Whatever is not IPv4 never comes to this table.
        return
    target = _target(rule)
    choices: list[list[Match | InSet]] = [
        [attrs.evolve(match, values=(value,)) for value in match.values]
        if isinstance(match, Match)
        else [match]
        for match in rule.matches
    ]
    for choice in itertools.product(*choices):
        yield _rule(choice, target)


def _target(rule: Rule) -> Literal["ACCEPT", "DROP"]:
    match rule.actions:
        case ("accept",):
            return "ACCEPT"
        case ("drop",):
            return "DROP"
    raise FirewallError(f"iptables has no words for the actions {rule.actions}")


def _rule(matches: Iterable[Match | InSet], target: Literal["ACCEPT", "DROP"]) -> IptablesRule:
    head: dict[str, str] = {"protocol": "", "source": "", "destination": ""}
    options: list[Option] = []
    for match in matches:
        if isinstance(match, InSet):
            options += _in_set(match)
        elif match.field in head:
            head[match.field] = ("!" if match.negated else "") + match.values[0]
        else:
            options.append(_option(match, head["protocol"]))
    return IptablesRule(**head, options=tuple(_by_match(options)), target=target)


def _option(match: Match, protocol: str) -> Option:
    (value,) = match.values
    sign = ("!",) if match.negated else ()
    match match.field:
        case "flow_direction" | "flow_state" | "flow_source" | "flow_destination":
            return "conntrack", _FLOW_OPTIONS[match.field], (*sign, value.upper())
        case "in_group" | "out_group":
            return "devgroup", _GROUP_OPTIONS[match.field], (*sign, value)
        case "icmp_type":
            return "icmp", "icmp-type", (value,)
        case "source_port" | "destination_port":
            return _PROTOCOL_MATCHES[protocol], _PORT_OPTIONS[match.field], (value,)
        case _:
            raise FirewallError(f"iptables has no words for {match.field}")


def _in_set(match: InSet) -> list[Option]:
    if any(field in {"flow_source", "flow_destination"} for field in match.fields):
        return []
    directions = ",".join(_DIRECTIONS[field] for field in match.fields if field != "protocol")
    sign = ("!",) if match.negated else ()
    return [("set", "match-set", (*sign, set_name(match.set_name), directions))]


def _by_match(options: list[Option]) -> list[Option]:
    """Return `options` with those of the same match together; every look into a set is a match of its own."""
    names = list(dict.fromkeys(name for name, _option, _values in options))
    return [option for name in names for option in options if option[0] == name]
