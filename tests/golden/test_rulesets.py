"""The firewalls of representative policies as nft's text.

`NETCTL_UPDATE_GOLDEN=1` writes the files anew; read their difference before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest

from firewall_rules.backends.iptables_rules import IptablesRule, translate
from firewall_rules.backends.nftables_text import install_text
from firewall_rules.compile_container import compile_container
from firewall_rules.compile_host import compile_host
from firewall_rules.policy import (
    ContainerPolicy,
    HostPolicy,
    Opening,
    Pair,
    PortBinding,
    Publication,
    PublishedPort,
    TunnelPolicy,
)

HERE = Path(__file__).parent
NOW = 1_700_000_000.0

CLOSED_CONTAINER = ContainerPolicy(address="10.1.0.2", gateway="10.1.0.1")
CONTAINER = ContainerPolicy(
    address="10.1.0.2",
    gateway="10.1.0.1",
    resolver="10.1.0.1",
    closed=frozenset({"192.0.2.1/32", "203.0.113.0/25", "203.0.113.128/25"}),
    inbound=frozenset(
        {
            Opening("10.2.0.2", "tcp", 5432),
            Opening("10.2.0.2", "udp", 53, NOW + 60.25),
            Opening("10.2.0.3", "icmp"),
            Opening("10.3.0.4", "any"),
        }
    ),
    outbound=frozenset({Opening("10.2.0.5", "tcp", 80, NOW - 1), Opening("10.3.0.4", "any")}),
)
DOCKER_CONTAINER = attrs.evolve(
    CONTAINER,
    closed=CONTAINER.closed | {"10.0.0.0/8"},
    inbound=frozenset({Opening("10.2.0.2", "tcp", 5432)}),
    outbound=frozenset(),
    overlay_only=True,
    internet=False,
    published=frozenset({PublishedPort("tcp", 443), PublishedPort("tcp", 80), PublishedPort("udp", 443)}),
)
HOST = HostPolicy(
    bridge="netctl0",
    address="10.1.0.1",
    block="10.1.0.0/16",
    supernet="10.0.0.0/8",
    resolver="10.1.0.1",
    closed=frozenset({"192.0.2.0/24"}),
    bindings=frozenset({PortBinding("ncp0123456789ab", "6e:63:0a:01:00:02", "10.1.0.2")}),
    pairs=frozenset({Pair("10.1.0.2", "10.2.0.2"), Pair("10.1.0.2", "10.3.0.4", NOW + 60)}),
    tunnels=frozenset(
        {
            TunnelPolicy("nctg0a020000", "10.2.0.0/16", "gre", "192.0.2.2"),
            TunnelPolicy("nctv0a020000", "10.2.0.0/16", "vxlan", "192.0.2.2", vni=16, routed=False),
            TunnelPolicy("nctw0", "10.2.0.0/16", "wireguard", "192.0.2.2", routed=False),
            TunnelPolicy("nctv0a030000", "10.3.0.0/16", "vxlan", "192.0.2.3", vni=17),
            TunnelPolicy("eth0", "10.3.0.0/16", "direct", "192.0.2.3", mac="02:00:00:00:00:03", routed=False),
            TunnelPolicy("eth0", "10.4.0.0/16", "direct", "192.0.2.4", mac="02:00:00:00:00:04"),
            # While the node's key is rotated.
            TunnelPolicy("nctw0", "10.5.0.0/16", "wireguard", "192.0.2.5"),
            TunnelPolicy("nctw1", "10.5.0.0/16", "wireguard", "192.0.2.5"),
        }
    ),
    vxlan_port=4790,
    wireguard_ports=frozenset({51820, 51821}),
    publications=frozenset(
        {
            Publication("tcp", "", 8080, "10.1.0.2", 80),
            Publication("udp", "192.0.2.1", 8443, "10.1.0.2", 443),
        }
    ),
    internal=frozenset({"10.1.0.3"}),
)
EMPTY_HOST = attrs.evolve(
    HOST,
    resolver=None,
    bindings=frozenset(),
    pairs=frozenset(),
    tunnels=frozenset(),
    publications=frozenset(),
    internal=frozenset(),
)

RULESETS = {
    "container_closed.nft": install_text(compile_container(CLOSED_CONTAINER), NOW),
    "container.nft": install_text(compile_container(CONTAINER), NOW),
    "container_docker.nft": install_text(compile_container(DOCKER_CONTAINER), NOW),
    "host_empty.nft": install_text(compile_host(EMPTY_HOST), NOW),
    "host.nft": install_text(compile_host(HOST), NOW),
}


def iptables_text(rule: IptablesRule) -> str:
    words = [
        *(("-p", rule.protocol) if rule.protocol else ()),
        *(("-s", rule.source) if rule.source else ()),
        *(("-d", rule.destination) if rule.destination else ()),
    ]
    for match, option, values in rule.options:
        words += ["-m", match, f"--{option}", *values]
    return " ".join([*words, "-j", rule.target])


def compared(name: str, text: str) -> None:
    golden = HERE / name
    if os.environ.get("NETCTL_UPDATE_GOLDEN") == "1":
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("name", RULESETS)
def test_nftables_rulesets_are_as_recorded(name: str) -> None:
    compared(name, RULESETS[name])


@pytest.mark.parametrize(
    ("name", "policy"), [("container", CONTAINER), ("container_docker", DOCKER_CONTAINER)]
)
def test_iptables_rules_are_as_recorded(name: str, policy: ContainerPolicy) -> None:
    tables = translate(compile_container(policy))
    lines = [f"set {one.name} {one.kind}{' timeout' if one.lifetimes else ''}" for one in tables.sets]
    for family, chains in (("ipv4", tables.ipv4), ("ipv6", tables.ipv6)):
        lines += [
            f"{family} {builtin} {iptables_text(rule)}" for builtin, rules in chains.items() for rule in rules
        ]
    compared(f"{name}.iptables", "".join(f"{line}\n" for line in lines))
