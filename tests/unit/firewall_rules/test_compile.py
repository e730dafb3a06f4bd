from __future__ import annotations

import ipaddress
import re

import attrs
import pytest

from firewall_rules.backends.base import FirewallError
from firewall_rules.backends.iptables_rules import translate
from firewall_rules.backends.nftables_text import change_text, install_text
from firewall_rules.compile_container import closed_elements, compile_container
from firewall_rules.compile_host import compile_host
from firewall_rules.names import FORWARD_MARK, OVERLAY_GROUP
from firewall_rules.policy import (
    ALWAYS_CLOSED,
    ContainerPolicy,
    HostPolicy,
    Opening,
    PortBinding,
    Publication,
    PublishedPort,
)
from firewall_rules.ruleset import InSet, Match, Rule, Ruleset, Set, SetMark, Translate

NOW = 1_700_000_000.0
CONTAINER = ContainerPolicy(address="10.1.0.2", gateway="10.1.0.1", resolver="10.1.0.1")
IN_ANY = Set("in_any", ("address",))
HOST = HostPolicy(bridge="netctl0", address="10.1.0.1", block="100.200.0.0/16", supernet="100.192.0.0/10")


def networks(closed: object) -> list[ipaddress.IPv4Network]:
    return [ipaddress.IPv4Network(key[0]) for key in closed]  # type: ignore[attr-defined]


def test_what_is_always_closed_is_closed_without_being_asked() -> None:
    closed = networks(closed_elements(frozenset()))
    for network in ALWAYS_CLOSED:
        assert any(ipaddress.IPv4Network(network).subnet_of(one) for one in closed)
    assert not any(ipaddress.IPv4Address("198.51.100.1") in one for one in closed)


def test_closed_networks_never_overlap_or_touch() -> None:
    asked = frozenset({"10.1.0.0/16", "203.0.113.0/25", "203.0.113.128/25", "203.0.113.7/32"})
    closed = networks(closed_elements(asked))
    assert sorted(ipaddress.collapse_addresses(closed)) == sorted(closed)
    assert ipaddress.IPv4Network("203.0.113.0/24") in closed


def test_a_hosts_block_and_supernet_are_closed_whatever_they_are() -> None:
    for table in compile_host(HOST):
        (closed,) = [networks(one.elements) for one in table.sets if one.name == "closed"]
        assert any(ipaddress.IPv4Network(HOST.supernet).subnet_of(one) for one in closed)


@pytest.mark.parametrize(
    "ruleset", [compile_container(CONTAINER), compile_host(HOST)], ids=["container", "host"]
)
def test_every_set_that_is_asked_is_there_and_every_one_there_is_asked(ruleset: Ruleset) -> None:
    for table in ruleset:
        asked = {
            match.set_name
            for chain in table.chains
            for rule in chain.rules
            for match in rule.matches
            if isinstance(match, InSet)
        } | {
            action.map_name
            for chain in table.chains
            for rule in chain.rules
            for action in rule.actions
            if isinstance(action, Translate)
        }
        assert asked == {one.name for one in table.sets}


@pytest.mark.parametrize("point", ["input", "output", "forward"])
def test_other_links_cost_the_overlay_one_question(point: str) -> None:
    def rules(policy: ContainerPolicy) -> tuple[Rule, ...]:
        (table,) = compile_container(policy)
        return next(chain.rules for chain in table.chains if chain.name == point)

    with_others, alone = rules(attrs.evolve(CONTAINER, overlay_only=True)), rules(CONTAINER)
    (more,) = [rule for rule in with_others if rule not in alone]
    assert [rule for rule in with_others if rule is not more] == list(alone)
    assert more.matches[0] == Match(
        "out_group" if point == "output" else "in_group", (str(OVERLAY_GROUP),), negated=True
    )
    assert with_others.index(more) == (0 if point == "forward" else 1)


def test_without_the_internet_no_rule_asks_for_it() -> None:
    (table,) = compile_container(attrs.evolve(DOCKER, internet=False))
    assert "closed" not in install_text((table,), NOW)


def test_a_pair_is_asked_nothing_more_for_what_is_published() -> None:
    _, inet = compile_host(HOST)
    into = next(chain for chain in inet.chains if chain.name == "into_bridge")
    pair = InSet(("source", "destination"), "pairs")
    assert [pair in rule.matches for rule in into.rules[:3]] == [True] * 3
    assert all(rule.actions == (SetMark(FORWARD_MARK), "accept") for rule in into.rules[:3])


def test_the_decision_comes_before_whoever_else_filters_what_is_forwarded() -> None:
    _, inet = compile_host(HOST)
    (forward,) = (chain.hook for chain in inet.chains if chain.hook and chain.hook.point == "forward")
    assert forward.priority < 0


def test_the_container_is_closed_at_every_hook() -> None:
    (table,) = compile_container(CONTAINER)
    hooks = {chain.hook.point: chain.hook.policy for chain in table.chains if chain.hook is not None}
    assert hooks == {"input": "drop", "output": "drop", "forward": "drop"}


DOCKER = attrs.evolve(
    CONTAINER,
    closed=frozenset({"10.0.0.0/8"}),
    overlay_only=True,
    published=frozenset({PublishedPort("tcp", 80), PublishedPort("udp", 53)}),
)


@pytest.mark.parametrize("policy", [CONTAINER, DOCKER], ids=["alone", "docker"])
def test_every_iptables_chain_ends_closed(policy: ContainerPolicy) -> None:
    tables = translate(compile_container(policy))
    for chains in (tables.ipv4, tables.ipv6):
        assert set(chains) == {"INPUT", "OUTPUT", "FORWARD"}
        for rules in chains.values():
            assert rules[-1].target == "DROP"
            assert not rules[-1].options
            assert all(
                rule.options or rule.protocol or rule.source or rule.destination for rule in rules[:-1]
            )


@pytest.mark.parametrize(
    "broken",
    [
        attrs.evolve(CONTAINER, address="10.1.0.2; accept"),
        attrs.evolve(CONTAINER, resolver="10.1.0.1\n"),
        attrs.evolve(CONTAINER, inbound=frozenset({Opening("10.2.0.256", "tcp", 1)})),
        attrs.evolve(CONTAINER, inbound=frozenset({Opening("10.2.0.2", "tcp", -1)})),
        attrs.evolve(CONTAINER, outbound=frozenset({Opening("@closed", "any")})),
    ],
    ids=["address", "resolver", "octet", "port", "set"],
)
def test_no_text_of_another_form_reaches_nft(broken: ContainerPolicy) -> None:
    with pytest.raises(FirewallError, match="not a valid"):
        install_text(compile_container(broken), NOW)


@pytest.mark.parametrize(
    "broken",
    [
        attrs.evolve(HOST, bridge='netctl0" accept #'),
        attrs.evolve(HOST, bindings=frozenset({PortBinding("ncp 1", "6e:63:0a:01:00:02", "10.1.0.2")})),
        attrs.evolve(HOST, bindings=frozenset({PortBinding("ncp1", "6e:63:0a:01:00", "10.1.0.2")})),
        attrs.evolve(HOST, vxlan_port=70000),
        attrs.evolve(HOST, publications=frozenset({Publication("tcp", "", 70000, "10.1.0.2", 80)})),
        attrs.evolve(HOST, publications=frozenset({Publication("tcp", "", 80, "10.1.0.2 }", 80)})),
        attrs.evolve(HOST, publications=frozenset({Publication("tcp", "any", 80, "10.1.0.2", 80)})),
        attrs.evolve(HOST, internal=frozenset({"10.1.0.2, 10.1.0.3"})),
    ],
    ids=["bridge", "device", "mac", "port", "host-port", "target", "host-address", "internal"],
)
def test_no_text_of_another_form_reaches_the_hosts_nft(broken: HostPolicy) -> None:
    with pytest.raises(FirewallError, match="not a valid"):
        install_text(compile_host(broken), NOW)


def test_an_element_is_put_in_anew_with_its_lifetime_and_never_longer() -> None:
    text = change_text("inet", IN_ANY, [], {("10.2.0.2",): NOW + 1.0009}, NOW)
    assert text.splitlines() == [
        "add element inet netctl in_any { 10.2.0.2 }",
        "delete element inet netctl in_any { 10.2.0.2 }",
        "add element inet netctl in_any { 10.2.0.2 timeout 1s0ms }",
    ]


def test_an_element_that_has_ended_is_taken_out_and_not_put_in() -> None:
    text = change_text("inet", IN_ANY, [], {("10.2.0.2",): NOW}, NOW)
    assert re.findall(r"^(\w+) element", text, re.MULTILINE) == ["add", "delete"]


def test_an_element_of_a_map_is_named_with_what_it_leads_to() -> None:
    leads = Set("publications", ("protocol", "port"), leads_to=("address", "port"))
    old, new = ("6", "80", "10.1.0.2", "81"), ("6", "80", "10.1.0.3", "81")
    text = change_text("inet", leads, [old], {new: None}, NOW, absent=frozenset({new}))
    assert text.splitlines() == [
        "add element inet netctl publications { 6 . 80 : 10.1.0.2 . 81 }",
        "delete element inet netctl publications { 6 . 80 : 10.1.0.2 . 81 }",
        "add element inet netctl publications { 6 . 80 : 10.1.0.3 . 81 }",
    ]


def test_no_change_is_no_command() -> None:
    assert change_text("inet", IN_ANY, [], {}, NOW) == ""


def test_what_is_known_to_be_absent_is_only_put_in() -> None:
    key = ("10.2.0.2",)
    text = change_text("inet", IN_ANY, [], {key: None}, NOW, absent=frozenset({key}))
    assert text == "add element inet netctl in_any { 10.2.0.2 }\n"
