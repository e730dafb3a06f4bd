"""What a host's looks mean: each finding, what makes it none, and what hinders a join."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from netctl.model import Finding, NodeState
from nodeagent.checkup import MAX_FINDINGS, Subject, examine, refusals
from nodeagent.kernel.fake import CHECKS
from nodeagent.kernel_state import HostChecks, HostFacts
from tests.support.agents import FULL_FACTS, peer, state

PEERS = {one.name: one for one in (peer(2), peer(3))}
NEW = Subject("n1")
MEMBER = Subject("n1", attrs.evolve(state(), peers={}), PEERS)
MARK = "0x6e637402"


def checks(**changes: Any) -> HostChecks:
    return attrs.evolve(CHECKS, **changes)


def lacking(*features: str) -> HostChecks:
    return checks(features={**CHECKS.features, **dict.fromkeys(features, False)})


def found(seen: HostChecks, subject: Subject = MEMBER, facts: HostFacts = FULL_FACTS) -> tuple[Finding, ...]:
    return examine(seen, facts, subject)


def only(seen: HostChecks, subject: Subject = MEMBER, facts: HostFacts = FULL_FACTS) -> Finding:
    (finding,) = found(seen, subject, facts)
    assert finding.subject == "n1"
    assert finding.remedy
    return finding


@pytest.mark.parametrize("subject", [NEW, MEMBER])
def test_a_host_with_nothing_in_the_way_has_no_findings(subject: Subject) -> None:
    assert found(CHECKS, subject) == ()


@pytest.mark.parametrize("subject", [NEW, MEMBER])
@pytest.mark.parametrize(
    "feature", ["bridge", "veth", "nftables inet", "nftables bridge", "nftables nat", "conntrack"]
)
def test_what_no_container_can_do_without(feature: str, subject: Subject) -> None:
    finding = only(lacking(feature), subject)
    assert finding.severity == "error"
    assert "no container can run here" in finding.message


def test_several_missing_features_are_one_finding_and_hide_what_follows_from_them() -> None:
    finding = only(
        lacking("nftables inet", "nftables bridge"), facts=attrs.evolve(FULL_FACTS, host_firewall="no")
    )
    assert "nftables in the family inet, no nftables in the family bridge" in finding.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"host_firewall": "nft is not installed"}, "nft is not installed"), ({"firewall": "none"}, "firewall")],
)
def test_a_host_whose_firewall_cannot_be_had(changes: Mapping[str, str], words: str) -> None:
    finding = only(CHECKS, NEW, attrs.evolve(FULL_FACTS, **changes))
    assert (finding.severity, words in finding.message) == ("error", True)


def test_an_encapsulation_that_others_stand_in_for_is_no_finding() -> None:
    assert found(lacking("gre", "wireguard"), facts=attrs.evolve(FULL_FACTS, encapsulations=("vxlan",))) == ()
    none = only(lacking("gre", "vxlan"), NEW, attrs.evolve(FULL_FACTS, encapsulations=()))
    assert (none.severity, "no encapsulation" in none.message) == ("error", True)


def test_where_encryption_is_required_only_wireguard_counts() -> None:
    encrypted = Subject("n1", attrs.evolve(state(), peers={}, encryption="required"), PEERS)
    assert "encryption is required" in only(CHECKS, encrypted).message
    able = attrs.evolve(FULL_FACTS, encapsulations=("gre", "wireguard"))
    assert found(CHECKS, encrypted, able) == ()


def test_forwarding_is_the_agents_to_set_until_it_runs() -> None:
    off = checks(forwarding=False)
    assert found(off, NEW) == ()
    finding = only(off)
    assert (finding.severity, "ip_forward" in finding.message) == ("error", True)


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_dockers_firewall_without_our_rule(variant: str) -> None:
    drops = {"forward_policies": {variant: "DROP"}}
    finding = only(checks(**drops, docker_user={variant: False}))
    assert finding.severity == "error"
    assert f"iptables-{variant} -I DOCKER-USER -m mark --mark {MARK} -j ACCEPT" in finding.remedy
    assert "--docker" in finding.remedy
    # The agent may mend it once it runs.
    assert only(checks(**drops, docker_user={variant: False}), NEW).severity == "warning"
    assert found(checks(**drops, docker_user={variant: True})) == ()
    assert found(checks(forward_policies={variant: "ACCEPT"}, docker_user={variant: False})) == ()


def test_a_firewall_of_the_hosts_own_that_drops_what_is_forwarded() -> None:
    finding = only(checks(forward_policies={"legacy": "DROP", "nft": "ACCEPT"}))
    assert finding.severity == "error"
    assert finding.remedy == f"iptables-legacy -I FORWARD -m mark --mark {MARK} -j ACCEPT"
    # What rules another chain has is not known: it may let everything through.
    other = only(checks(forward_policies={"inet firewalld forward": "DROP"}))
    assert (other.severity, "inet firewalld forward" in other.message) == ("warning", True)


def test_bridged_packets_meet_that_firewall_too() -> None:
    drops = {"forward_policies": {"nft": "DROP"}, "docker_user": {"nft": False}}
    first, second = found(checks(**drops, bridge_calls=True))
    assert "bridge-nf-call-iptables" in second.message
    assert {first.severity, second.severity} == {"error"}
    for calls in (False, None):
        assert len(found(checks(**drops, bridge_calls=calls))) == 1
    assert found(checks(bridge_calls=True)) == ()


@pytest.mark.parametrize(
    ("reverse_path", "strict"),
    [
        ({"all": 1, "eth0": 0}, True),
        ({"all": 0, "eth0": 1}, True),
        # The greater one counts, and 2 is the looser.
        ({"all": 2, "eth0": 1}, False),
        ({"all": 1, "eth0": 2}, False),
        ({"all": 0, "eth0": 0, "eth1": 1}, False),
        ({}, False),
    ],
)
def test_strict_reverse_path_filtering_matters_where_answers_leave_by_another_link(
    reverse_path: Mapping[str, int], *, strict: bool
) -> None:
    there, elsewhere = {"192.0.2.2": "eth0"}, {"192.0.2.2": "eth0", "192.0.2.3": "eth1"}
    assert found(checks(reverse_path=reverse_path, routes=there)) == ()
    asymmetric = found(checks(reverse_path=reverse_path, routes=elsewhere))
    assert len(asymmetric) == strict
    if strict:
        assert asymmetric[0].severity == "error"
        assert "n3 (by eth1)" in asymmetric[0].message
        assert "n2" not in asymmetric[0].message


def test_peers_without_a_route() -> None:
    finding = only(checks(routes={"192.0.2.2": "eth0", "192.0.2.3": ""}))
    assert finding.severity == "error"
    assert "n3 (192.0.2.3)" in finding.message
    assert "n2" not in finding.message


@pytest.mark.parametrize(
    ("network", "severity"),
    [
        ("10.1.7.0/24", "error"),
        ("10.2.0.0/16", "error"),
        ("10.3.255.255/32", "error"),
        ("10.200.0.0/24", "warning"),
        # Our routes are the longer ones.
        ("10.0.0.0/8", "warning"),
        ("10.0.0.0/7", None),
        ("172.17.0.0/16", None),
    ],
)
def test_networks_among_the_overlays_addresses(network: str, severity: str | None) -> None:
    result = found(checks(networks=(*CHECKS.networks, network)))
    assert [finding.severity for finding in result] == ([severity] if severity else [])
    assert all(network in finding.message for finding in result)
    # Before it has joined, the broker is whom it concerns: it gives out the blocks.
    assert found(checks(networks=(network,)), NEW) == ()


def test_an_underlay_in_the_supernet_is_as_it_was_planned() -> None:
    inside = attrs.evolve(FULL_FACTS, underlay="10.200.0.5")
    seen = checks(networks=("10.200.0.0/24",))
    assert found(seen, facts=inside) == ()
    assert len(found(seen)) == 1


@pytest.mark.parametrize("clock", [0.0, 86400.0, 1.7e9, 5e9])
def test_a_clock_that_was_never_set(clock: float) -> None:
    finding = only(checks(clock=clock), NEW)
    assert (finding.severity, "clock" in finding.message) == ("error", True)


def test_errors_come_first_and_only_they_hinder_a_join() -> None:
    seen = checks(
        clock=0.0, forward_policies={"nft": "DROP"}, docker_user={"nft": False}, networks=("10.9.0.0/16",)
    )
    severities = [finding.severity for finding in found(seen, NEW)]
    assert severities == ["error", "warning"]
    assert [finding.severity for finding in refusals(found(seen, NEW))] == ["error"]
    assert refusals(found(CHECKS, NEW)) == ()


def test_findings_fit_one_message() -> None:
    networks = tuple(f"10.{200 + n // 256}.{n % 256}.0/24" for n in range(1000))
    assert len(found(checks(networks=networks))) == MAX_FINDINGS


def test_a_node_that_was_removed_has_no_blocks() -> None:
    removed = Subject("n1", NodeState("n1", None, "10.0.0.0/8", "gre", 1476))
    assert found(checks(networks=("10.1.7.0/24",)), removed) == ()
