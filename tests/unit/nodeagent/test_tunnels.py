"""What a node makes of its peers: every way stands, one is routed, none in plain text where it must not."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from firewall_rules.policy import TunnelPolicy
from netctl.model import Encapsulation, NodeState, Peer, WireguardEnd
from nodeagent.after import after
from nodeagent.desired_index import DesiredIndex
from nodeagent.diff import plan
from nodeagent.kernel.fake import FACTS
from nodeagent.kernel_state import HostState, Route, WireguardPeer
from nodeagent.ops import (
    DeleteRoute,
    DeleteTunnel,
    DeleteWireguard,
    Op,
    SetHostRules,
    SetRoute,
    SetSysctl,
    SetWireguard,
    UpdateHostRules,
)
from nodeagent.target import target, troubles
from nodeagent.tunnels import SMALLEST_MTU, device_of, ways
from tests.support.agents import FULL_FACTS, FakeNode, container, peer, permit, state

NOW = 1e9
ALL: tuple[Encapsulation, ...] = ("gre", "vxlan", "wireguard", "direct")
ABLE = attrs.evolve(FULL_FACTS, encapsulations=ALL, wireguard=(WireguardEnd(1, "ab" * 32, 51821),))
HEADER = {"wireguard_generations": (1,)}


def way_to(number: int, chosen: Encapsulation, **changes: object) -> Peer:
    """Return a peer to which every way leads."""
    plain = attrs.evolve(
        peer(number, chosen),
        vni=(1 << 12) | number,
        candidates=ALL,
        outer_mtu=1500,
        mtu=1500 - {"gre": 24, "vxlan": 50, "wireguard": 60, "direct": 0}[chosen],
        wireguard=WireguardEnd(1, f"{number:064x}", 51821),
    )
    return attrs.evolve(plain, **changes)


def wanted_for(*peers: Peer, **header: object) -> HostState:
    desired = DesiredIndex.of(state([], peers, **{**HEADER, **header}))
    return target(desired, ABLE, HostState(), NOW)


def applied(wanted: NodeState, observed: HostState) -> tuple[tuple[Op, ...], HostState]:
    """Return the operations of one plan, and what is there after them."""
    operations = plan(DesiredIndex.of(wanted), ABLE, observed, NOW)
    for operation in operations:
        observed = after(operation, observed)
    return operations, observed


def settled(wanted: NodeState) -> HostState:
    observed = HostState()
    while (step := applied(wanted, observed))[0]:
        observed = step[1]
    return observed


def test_every_way_has_its_device_and_one_is_routed() -> None:
    wanted = wanted_for(way_to(2, "vxlan"))
    assert {t.device: (t.encapsulation, t.mtu) for t in wanted.tunnels.values()} == {
        "nctg0a020000": ("gre", 1476),
        "nctv0a020000": ("vxlan", 1450),
    }
    (link,) = wanted.wireguard.values()
    assert (link.device, link.generation, link.port, link.mtu) == ("nctw1", 1, 51821, 1440)
    assert link.peers == {WireguardPeer("10.2.0.0/16", f"{2:064x}", "192.0.2.2", 51821)}
    assert [route.device for route in wanted.routes.values()] == ["nctv0a020000"]
    assert wanted.host_policy is not None
    found = {one.device: (one.encapsulation, one.routed) for one in wanted.host_policy.tunnels}
    assert found == {
        "nctg0a020000": ("gre", False),
        "nctv0a020000": ("vxlan", True),
        "nctw1": ("wireguard", False),
        "eth0": ("direct", False),
    }
    assert wanted.host_policy.wireguard_ports == {51821}


@pytest.mark.parametrize("chosen", ALL)
def test_the_route_is_that_of_the_chosen_way(chosen: Encapsulation) -> None:
    (route,) = wanted_for(way_to(2, chosen)).routes.values()
    assert (
        route
        == {
            "gre": Route("10.2.0.0/16", "nctg0a020000", "10.1.0.1"),
            "vxlan": Route("10.2.0.0/16", "nctv0a020000", "10.1.0.1", "10.2.0.1", "6e:63:0a:02:00:01"),
            "wireguard": Route("10.2.0.0/16", "nctw1", "10.1.0.1"),
            "direct": Route("10.2.0.0/16", "eth0", "10.1.0.1", "192.0.2.2", mtu=1500),
        }[chosen]
    )


@pytest.mark.parametrize("chosen", ["gre", "vxlan", "wireguard"])
def test_what_the_path_takes_less_than_the_device_stands_on_the_route(chosen: Encapsulation) -> None:
    whole = way_to(2, chosen)
    narrow = wanted_for(attrs.evolve(whole, mtu=1300))
    (route,) = narrow.routes.values()
    assert route.mtu == 1300
    assert narrow.tunnels == wanted_for(whole).tunnels
    assert narrow.wireguard == wanted_for(whole).wireguard


def test_a_peer_of_one_way_is_as_it_is_said_to_be() -> None:
    plain = peer(2, "vxlan")
    assert (plain.candidates, plain.outer_mtu, plain.mtu) == ((), 0, 1450)
    wanted = wanted_for(plain, vxlan_port=4790)
    (tunnel,) = wanted.tunnels.values()
    assert (tunnel.device, tunnel.mtu, tunnel.port) == ("nctv0a020000", 1450, 4790)
    assert wanted.host_policy is not None
    assert wanted.host_policy.vxlan_port == 4790
    assert [route.mtu for route in wanted.routes.values()] == [0]


def test_a_way_too_narrow_for_ipv4_does_not_stand() -> None:
    narrow = way_to(2, "gre", outer_mtu=620, mtu=596)
    assert ways(state(**HEADER), ABLE, narrow) == ("gre", "wireguard", "direct")
    assert all(tunnel.mtu >= SMALLEST_MTU for tunnel in wanted_for(narrow).tunnels.values())


def test_reverse_paths_are_strict_but_on_wireguard_links() -> None:
    sysctls = wanted_for(way_to(2, "gre")).sysctls
    found = {path.split("/")[3]: value for path, value in sysctls.items() if path.endswith("/rp_filter")}
    assert found == {"netctl0": "1", "nctg0a020000": "1", "nctv0a020000": "1", "nctw1": "2"}


@pytest.mark.parametrize("new", ALL)
@pytest.mark.parametrize("old", ALL)
def test_changing_the_way_of_a_pair_touches_its_route_and_its_elements_only(
    old: Encapsulation, new: Encapsulation
) -> None:
    others = [way_to(3, "gre"), way_to(4, "vxlan"), way_to(5, "wireguard"), way_to(6, "direct")]
    containers, permits = [container(2)], [permit("10.1.0.2", "10.3.0.2")]
    before = state(containers, [way_to(2, old), *others], permits, **HEADER)
    later = state(containers, [way_to(2, new), *others], permits, **HEADER)
    operations, observed = applied(later, settled(before))
    if old == new:
        assert operations == ()
        return
    rules, route = operations
    assert isinstance(rules, UpdateHostRules)
    assert isinstance(route, SetRoute)
    assert route.route.block == "10.2.0.0/16"
    moved = {(one.encapsulation, one.routed) for one in rules.tunnels}
    assert moved == {(old, False), (new, True)}
    assert {(one.encapsulation, one.routed) for one in rules.tunnels_removed} == {(old, True), (new, False)}
    assert {one.block for one in (*rules.tunnels, *rules.tunnels_removed)} == {"10.2.0.0/16"}
    assert attrs.evolve(rules, tunnels=(), tunnels_removed=()) == UpdateHostRules()
    assert applied(later, observed)[0] == ()


def test_a_peer_that_goes_takes_its_devices_and_its_key_along() -> None:
    both = state([], [way_to(2, "gre"), way_to(3, "wireguard")], closed=(), **HEADER)
    one = state([], [way_to(2, "gre")], closed=(), **HEADER)
    operations, observed = applied(one, settled(both))
    assert sorted(type(operation).__name__ for operation in operations) == [
        "DeleteRoute",
        "DeleteTunnel",
        "DeleteTunnel",
        "SetWireguard",
        "UpdateHostRules",
    ]
    (link,) = observed.wireguard.values()
    assert {known.block for known in link.peers} == {"10.2.0.0/16"}
    assert "0a03" not in "".join((*observed.tunnels, *observed.sysctls))


# --- encryption -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [*ALL, "none"])
@pytest.mark.parametrize("able", [True, False])
def test_with_encryption_required_nothing_but_wireguard_is_made(
    chosen: Encapsulation,
    able: bool,  # noqa: FBT001 - a case of the test
) -> None:
    one = way_to(2, "gre", encapsulation=chosen, wireguard=way_to(2, "gre").wireguard if able else None)
    desired = DesiredIndex.of(state([], [one], encryption="required", **HEADER))
    wanted = target(desired, ABLE, HostState(), NOW)
    assert wanted.tunnels == {}
    assert wanted.host_policy is not None
    assert {policy.encapsulation for policy in wanted.host_policy.tunnels} <= {"wireguard"}
    if chosen == "wireguard" and able:
        assert [route.device for route in wanted.routes.values()] == ["nctw1"]
        assert troubles(desired, ABLE) == ()
    else:
        assert wanted.routes == {}
        (error,) = troubles(desired, ABLE)
        assert error.subject == "n2"
        assert "wireguard" in error.message
        assert error.remedy
    # The control: without that, what is chosen is made.
    plain = wanted_for(one)
    assert set(plain.tunnels) == {"nctg0a020000", "nctv0a020000"}


def test_turning_encryption_on_takes_all_plain_text_away_before_anything_is_made() -> None:
    plain = state([], [way_to(2, "gre"), way_to(3, "direct")], **HEADER)
    required = attrs.evolve(
        plain, encryption="required", peers={"n2": way_to(2, "wireguard"), "n3": way_to(3, "direct")}
    )
    operations, observed = applied(required, settled(plain))
    kinds = [type(operation) for operation in operations]
    assert kinds.index(DeleteRoute) < kinds.index(SetRoute)
    assert kinds.count(DeleteTunnel) == 4
    assert observed.tunnels == {}
    assert {block: route.device for block, route in observed.routes.items()} == {"10.2.0.0/16": "nctw1"}


@pytest.mark.parametrize(
    ("facts", "header", "changes"),
    [
        ({"wireguard": ()}, {}, {}),
        ({}, {"wireguard_generations": ()}, {}),
        ({}, {}, {"wireguard": None}),
    ],
    ids=["kernel without it", "no generation of ours", "no end of the peer's"],
)
def test_wireguard_that_one_end_lacks_is_left_out_and_said(
    facts: dict[str, object], header: dict[str, object], changes: dict[str, object]
) -> None:
    able = attrs.evolve(ABLE, **facts)
    desired = DesiredIndex.of(state([], [way_to(2, "wireguard", **changes)], **{**HEADER, **header}))
    wanted = target(desired, able, HostState(), NOW)
    assert wanted.routes == {}
    assert all(not link.peers for link in wanted.wireguard.values())
    (error,) = troubles(desired, able)
    assert "no key for it" in error.message


def test_of_two_peers_with_one_key_only_one_is_on_the_link() -> None:
    stolen = way_to(3, "wireguard", wireguard=way_to(2, "wireguard").wireguard)
    desired = state([], [way_to(2, "wireguard"), stolen], **HEADER)
    (link,) = settled(desired).wireguard.values()
    assert len(link.peers) == 1


# --- rotation of our own key ------------------------------------------------------------------------


def test_a_rotation_has_both_links_until_the_old_key_is_destroyed(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.kernel.host_facts = attrs.evolve(FACTS, encapsulations=ABLE.encapsulations)
    helper = node.helper()
    first = helper.facts().wireguard
    assert [(end.generation, end.port) for end in first] == [(1, 51821)]
    peers = [way_to(2, "wireguard"), way_to(3, "gre")]

    def step(*generations: int) -> list[Op]:
        desired = DesiredIndex.of(state([], peers, wireguard_generations=generations))
        done: list[Op] = []
        while operations := plan(desired, ABLE, helper.observe(), NOW):
            assert not any(helper.apply(operations))
            done.extend(operations)
        return done

    def routed() -> str:
        return helper.observe().routes["10.2.0.0/16"].device

    step(1)
    assert routed() == "nctw1"

    done = step(1, 2)
    assert {type(one) for one in done} == {SetHostRules, SetWireguard, SetSysctl}
    assert [one.link.device for one in done if isinstance(one, SetWireguard)] == ["nctw0"]
    links = helper.observe().wireguard
    assert links["nctw0"].peers == links["nctw1"].peers
    assert routed() == "nctw1"
    ends = helper.facts().wireguard
    assert [end.generation for end in ends] == [1, 2]
    assert ends[0] == first[0]
    assert ends[0].key != ends[1].key

    assert [type(one) for one in step(2, 1)] == [SetRoute]
    assert routed() == "nctw0"
    policy = helper.observe().host_policy
    assert policy is not None
    ours = [one for one in policy.tunnels if one.encapsulation == "wireguard"]
    assert {(one.device, one.block, one.routed) for one in ours} == {
        (device, block, block == "10.2.0.0/16")
        for device in ("nctw0", "nctw1")
        for block in ("10.2.0.0/16", "10.3.0.0/16")
    }

    done = step(2)
    assert [type(one) for one in done] == [DeleteWireguard, SetHostRules]
    assert [end.generation for end in helper.facts().wireguard] == [2]
    assert set(helper.observe().wireguard) == {"nctw0"}
    helper.close()


def test_a_peer_with_a_new_key_changes_that_peer_alone() -> None:
    before = state([], [way_to(2, "wireguard"), way_to(3, "wireguard")], **HEADER)
    rotated = way_to(2, "wireguard", wireguard=WireguardEnd(2, "cd" * 32, 51820))
    operations, _ = applied(attrs.evolve(before, peers={**before.peers, "n2": rotated}), settled(before))
    (operation,) = operations
    assert isinstance(operation, SetWireguard)
    assert {one.key for one in operation.link.peers} == {"cd" * 32, f"{3:064x}"}


def test_probes_leave_by_the_link_that_is_sent_from() -> None:
    header = state(wireguard_generations=(2, 1))
    assert device_of(header, ABLE, way_to(2, "gre"), "wireguard") == "nctw0"
    assert device_of(header, ABLE, way_to(2, "gre"), "vxlan") == "nctv0a020000"
    assert device_of(header, ABLE, way_to(2, "gre"), "direct") == "eth0"


def test_a_policy_of_a_way_names_what_its_packets_are_known_by() -> None:
    wanted = wanted_for(way_to(2, "direct"))
    assert wanted.host_policy is not None
    vni, mac = (1 << 12) | 2, "02:00:00:00:00:02"
    assert wanted.host_policy.tunnels == {
        TunnelPolicy("nctg0a020000", "10.2.0.0/16", "gre", "192.0.2.2", routed=False),
        TunnelPolicy("nctv0a020000", "10.2.0.0/16", "vxlan", "192.0.2.2", vni, routed=False),
        TunnelPolicy("nctw1", "10.2.0.0/16", "wireguard", "192.0.2.2", routed=False),
        TunnelPolicy("eth0", "10.2.0.0/16", "direct", "192.0.2.2", mac=mac),
    }
