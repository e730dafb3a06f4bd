"""What a real host shows of itself: forwarding, filters, other firewalls, routes, networks, features."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from firewall_rules.backends.docker_user import RULE
from firewall_rules.backends.forward_chains import policies_in
from firewall_rules.names import FORWARD_MARK
from nodeagent.kernel.linux import LinuxKernel
from nodeagent.kernel_state import HostChecks
from tests.support.netns import Namespace, address, veth

pytestmark = pytest.mark.root

Make = Callable[[], Namespace]


class Seen:
    """A host in a namespace of the test's, and what looks at it."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        with namespace.entered():
            self._kernel = LinuxKernel()

    def look(self, *peers: str) -> HostChecks:
        with self.namespace.entered():
            return self._kernel.checks(peers)

    def iptables(self, variant: str, *arguments: str) -> str:
        return self.namespace.run(f"iptables-{variant}", *arguments)

    def close(self) -> None:
        self._kernel.close()


@pytest.fixture
def host(namespaces: Make) -> Iterator[Seen]:
    seen = Seen(namespaces())
    yield seen
    seen.close()


def test_a_new_namespace_has_nothing_in_the_way(host: Seen) -> None:
    checks = host.look()
    assert (checks.forward_policies, checks.docker_user, checks.networks, checks.routes) == ({}, {}, (), {})
    assert checks.clock > 1.7e9


def test_settings_are_those_of_the_namespace(host: Seen) -> None:
    for value in ("0", "1"):
        host.namespace.sysctl("net/ipv4/ip_forward", value)
        assert host.look().forwarding is (value == "1")
    host.namespace.ip("link", "add", "eth0", "type", "bridge")
    # One of ours, which the agent sets itself.
    host.namespace.ip("link", "add", "nctg0a020000", "type", "bridge")
    for value in ("1", "2", "0"):
        host.namespace.sysctl("net/ipv4/conf/eth0/rp_filter", value)
        found = host.look().reverse_path
        assert found["eth0"] == int(value)
        assert "all" in found
        assert "nctg0a020000" not in found
    calls = "net/bridge/bridge-nf-call-iptables"
    for value, wanted in (("0", False), ("1", True)):
        host.namespace.sysctl(calls, value)
        assert host.look().bridge_calls is wanted


def test_what_this_kernel_has(host: Seen) -> None:
    features = host.look().features
    assert features.keys() == {
        "gre", "vxlan", "wireguard", "bridge", "veth", "conntrack",
        "nftables inet", "nftables bridge", "nftables nat",
    }  # fmt: skip
    needed = {feature for feature in features if feature not in ("gre", "vxlan", "wireguard")}
    assert {feature for feature in needed if not features[feature]} == set()
    # It was tried elsewhere, and nothing of that is left.
    assert host.namespace.run("nft", "list", "ruleset") == ""
    assert "try" not in host.namespace.ip("link")


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_the_policy_of_forward(host: Seen, variant: str) -> None:
    if shutil.which(f"iptables-{variant}") is None:
        pytest.fail(f"iptables-{variant} is not installed")
    host.iptables(variant, "-A", "FORWARD", "-s", "192.0.2.0/24", "-j", "ACCEPT")
    assert host.look().forward_policies == {variant: "ACCEPT"}
    host.iptables(variant, "-P", "FORWARD", "DROP")
    # That of the other chains is another matter.
    host.iptables(variant, "-P", "INPUT", "ACCEPT")
    assert host.look().forward_policies == {variant: "DROP"}
    host.iptables(variant, "-P", "INPUT", "DROP")
    host.iptables(variant, "-P", "FORWARD", "ACCEPT")
    assert host.look().forward_policies == {variant: "ACCEPT"}


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_our_rule_in_dockers_chain(host: Seen, variant: str) -> None:
    host.iptables(variant, "-P", "FORWARD", "DROP")
    host.iptables(variant, "-N", "DOCKER-USER")
    host.iptables(variant, "-A", "FORWARD", "-j", "DOCKER-USER")
    host.iptables(variant, "-A", "DOCKER-USER", "-j", "RETURN")
    checks = host.look()
    assert (checks.forward_policies, checks.docker_user) == ({variant: "DROP"}, {variant: False})
    host.iptables(variant, "-I", "DOCKER-USER", *RULE)
    assert host.look().docker_user == {variant: True}
    host.iptables(variant, "-F", "DOCKER-USER")
    assert host.look().docker_user == {variant: False}


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_a_rule_of_the_administrators_own_does_as_well(host: Seen, variant: str) -> None:
    host.iptables(variant, "-P", "FORWARD", "DROP")
    assert host.look().docker_user == {}
    mark = ("-m", "mark", "--mark", f"{FORWARD_MARK:#x}")
    host.iptables(variant, "-A", "FORWARD", *mark, "-j", "DROP")
    host.iptables(variant, "-A", "FORWARD", "-m", "mark", "--mark", "0x1", "-j", "ACCEPT")
    assert host.look().docker_user == {}
    # As the doctor says it.
    host.iptables(variant, "-I", "FORWARD", *mark, "-j", "ACCEPT")
    assert host.look().docker_user == {variant: True}


def test_chains_of_other_firewalls(host: Seen) -> None:
    host.namespace.nft(
        "add table inet wall\n"
        "add chain inet wall forward { type filter hook forward priority 0; policy drop; }\n"
        "add chain inet wall input { type filter hook input priority 0; policy drop; }\n"
        "add table inet open\n"
        "add chain inet open forward { type filter hook forward priority 0; policy accept; }\n"
        "add table inet netctl\n"
        "add chain inet netctl forward { type filter hook forward priority 0; policy drop; }\n"
        "add table bridge wall\n"
        "add chain bridge wall forward { type filter hook forward priority 0; policy drop; }\n"
        "add table ip6 wall\n"
        "add chain ip6 wall forward { type filter hook forward priority 0; policy drop; }\n"
    )
    assert host.look().forward_policies == {"inet wall forward": "DROP"}


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ({}, {}),
        ({"metainfo": {"version": "1.0.6"}}, {}),
        ({"chain": {"family": "ip", "table": "t", "name": "regular", "handle": 1}}, {}),
    ],
)
def test_what_is_no_base_chain_has_no_policy(entry: Mapping[str, object], wanted: Mapping[str, str]) -> None:
    assert policies_in({"nftables": [entry]}) == wanted


def test_routes_to_peers(host: Seen, namespaces: Make) -> None:
    other, away = namespaces(), namespaces()
    veth(host.namespace, "eth0", other, "eth0")
    veth(host.namespace, "eth1", away, "eth0")
    address(host.namespace, "eth0", "192.0.2.1/24")
    address(host.namespace, "eth1", "198.51.100.1/24")
    host.namespace.ip("route", "add", "192.0.2.9/32", "via", "198.51.100.2")
    host.namespace.ip("route", "add", "unreachable", "203.0.113.0/24")
    checks = host.look("192.0.2.2", "192.0.2.9", "203.0.113.7", "100.64.0.1")
    assert checks.routes == {"192.0.2.2": "eth0", "192.0.2.9": "eth1", "203.0.113.7": "", "100.64.0.1": ""}
    assert checks.networks == ("192.0.2.0/24", "192.0.2.9/32", "198.51.100.0/24", "203.0.113.0/24")


def test_as_many_peers_as_there_may_be(host: Seen) -> None:
    host.namespace.ip("link", "add", "eth0", "type", "bridge")
    address(host.namespace, "eth0", "10.0.0.1/8")
    peers = [f"10.1.{number // 256}.{number % 256}" for number in range(4096)]
    assert host.look(*peers).routes == dict.fromkeys(peers, "eth0")


def test_looking_leaves_nothing_open(host: Seen) -> None:
    def descriptors() -> int:
        # What earlier tests left to the collector must not go in between.
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    host.look()
    before = descriptors()
    for _ in range(3):
        host.look()
    assert descriptors() == before
