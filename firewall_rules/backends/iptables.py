"""iptables' legacy tables of the namespace that the calling thread is in, through python-iptables.

A `Table` is one handle per process and table, bound to the namespace it was last refreshed in, and no two
threads may use it: only the worker of the iptables backend does, one request at a time, refreshing first.
Each table is changed in one atomic commit; what others keep in it stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import iptc

from firewall_rules.backends.base import FirewallError
from firewall_rules.backends.iptables_rules import IptablesRule, IptablesTables, chain_name
from firewall_rules.names import IPTABLES_CHAIN_PREFIX

_BUILTINS: Final = ("INPUT", "OUTPUT", "FORWARD")


def install(tables: IptablesTables) -> None:
    """Put our chains in place, whole, and first behind the built-in ones.

    Raises:
        FirewallError: The kernel refused.
    """
    # IPv6 first: where its table cannot be had, nothing has been opened yet.
    _replace(_table(ipv6=True), tables.ipv6, ipv6=True)
    _replace(_table(ipv6=False), tables.ipv4, ipv6=False)


def remove() -> bool:
    """Take our chains out; return whether there were any.

    Raises:
        FirewallError: The kernel refused.
    """
    removed = [_take_out(_table(ipv6=ipv6), ipv6=ipv6) for ipv6 in (True, False)]
    return any(removed)


def listed() -> list[Any]:
    """Return our chains, and the first rule of each built-in one, in a form that can be compared.

    Raises:
        FirewallError: The kernel refused.
    """
    found: list[Any] = []
    for ipv6 in (True, False):
        table = _table(ipv6=ipv6)
        for chain in table.chains:
            rules = [iptc.easy.decode_iptc_rule(rule, ipv6=ipv6) for rule in chain.rules]
            for rule in rules:
                rule.pop("counters", None)
            if chain.name.startswith(IPTABLES_CHAIN_PREFIX):
                found.append([ipv6, chain.name, rules])
            elif chain.name in _BUILTINS:
                found.append([ipv6, chain.name, rules[:1]])
    return found


def _table(*, ipv6: bool) -> Any:
    try:
        table = iptc.Table6(iptc.Table6.FILTER) if ipv6 else iptc.Table(iptc.Table.FILTER)
        table.autocommit = False
        table.refresh()
    except iptc.IPTCError as error:
        raise FirewallError(
            f"the legacy {'ip6tables' if ipv6 else 'iptables'} cannot be used: {error}"
        ) from error
    return table


def _replace(table: Any, chains: Mapping[str, tuple[IptablesRule, ...]], *, ipv6: bool) -> None:
    try:
        for builtin, rules in chains.items():
            ours = iptc.Chain(table, chain_name(builtin))
            if table.is_chain(ours.name):
                ours.flush()
            else:
                table.create_chain(ours.name)
            for rule in rules:
                ours.append_rule(_encoded(rule, ipv6=ipv6))
            _come_first(iptc.Chain(table, builtin), ours.name, ipv6=ipv6)
        table.commit()
    except (iptc.IPTCError, ValueError, AttributeError) as error:
        table.refresh()
        raise FirewallError(f"iptables refused: {error}") from error


def _come_first(builtin: Any, ours: str, *, ipv6: bool) -> None:
    for rule in builtin.rules:
        if rule.target is not None and rule.target.name == ours:
            builtin.delete_rule(rule)
    jump = iptc.Rule6() if ipv6 else iptc.Rule()
    jump.target = iptc.Target(jump, ours)
    builtin.insert_rule(jump)


def _take_out(table: Any, *, ipv6: bool) -> bool:
    del ipv6
    ours = [chain for chain in table.chains if chain.name.startswith(IPTABLES_CHAIN_PREFIX)]
    if not ours:
        return False
    names = {chain.name for chain in ours}
    try:
        for name in _BUILTINS:
            builtin = iptc.Chain(table, name)
            for rule in builtin.rules:
                if rule.target is not None and rule.target.name in names:
                    builtin.delete_rule(rule)
        for chain in ours:
            chain.flush()
            table.delete_chain(chain)
        table.commit()
    except iptc.IPTCError as error:
        table.refresh()
        raise FirewallError(f"iptables refused: {error}") from error
    return True


def _encoded(rule: IptablesRule, *, ipv6: bool) -> Any:
    encoded = iptc.Rule6() if ipv6 else iptc.Rule()
    if rule.protocol:
        encoded.protocol = rule.protocol
    if rule.source:
        encoded.src = rule.source
    if rule.destination:
        encoded.dst = rule.destination
    match, of = None, ""
    for name, option, values in rule.options:
        # A second look into a set is a second match; other matches take several options.
        if match is None or name != of or name == "set":
            match, of = encoded.create_match(name), name
        match.set_parameter(option, list(values))
    encoded.target = iptc.Target(encoded, rule.target)
    return encoded
