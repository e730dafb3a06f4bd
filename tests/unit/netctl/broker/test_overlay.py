from __future__ import annotations

import pytest

from netctl.broker import overlay
from netctl.broker.commands import UpdateFacts
from netctl.errors import InvalidError
from netctl.model import Encapsulation
from tests.support.broker import World, facts

ORDER: tuple[Encapsulation, ...] = ("gre", "vxlan", "direct")


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (("gre", "vxlan"), ("gre", "vxlan"), "gre"),
        (("vxlan", "gre"), ("vxlan", "gre"), "gre"),
        (("gre", "vxlan"), ("vxlan",), "vxlan"),
        (("gre",), ("vxlan",), "none"),
        (("direct",), ("direct",), "direct"),
        (("direct", "gre"), ("direct",), "none"),
        (("direct", "gre"), ("direct", "gre"), "gre"),
        (("wireguard",), ("wireguard",), "none"),
        ((), ("gre",), "none"),
    ],
)
def test_a_pair_takes_the_first_mode_both_offer(
    one: tuple[Encapsulation, ...], other: tuple[Encapsulation, ...], expected: str
) -> None:
    left, right = facts(1, encapsulations=one), facts(2, encapsulations=other)
    assert overlay.mode(ORDER, left, right) == expected
    assert overlay.mode(ORDER, right, left) == expected


def test_network_identifiers_are_the_pairs_own() -> None:
    numbers = (1, 2, 3, 255, 256, 4094, 4095)
    pairs = [(one, other) for one in numbers for other in numbers if one < other]
    found = {overlay.vni(one, other) for one, other in pairs}
    assert len(found) == len(pairs)
    assert all(overlay.vni(one, other) == overlay.vni(other, one) < 2**24 for one, other in pairs)


@pytest.mark.parametrize(("mode", "overhead"), [("gre", 24), ("vxlan", 50), ("direct", 0)])
@pytest.mark.parametrize("underlay", [1280, 1400, 1500, 9000])
def test_the_mtu_follows_the_underlay(mode: Encapsulation, overhead: int, underlay: int) -> None:
    world = World()
    world.node("n1", facts(1, encapsulations=(mode,), underlay_mtu=underlay))
    world.node("n2", facts(2, encapsulations=(mode,), underlay_mtu=9000))
    assert world.state("n1").mtu == underlay - overhead
    assert world.state("n2").mtu == 9000 - overhead
    assert world.state("n2").peers["n1"].mtu == underlay - overhead
    assert world.state("n1").peers["n2"].mtu == underlay - overhead


def test_a_peer_is_described_from_both_sides() -> None:
    world = World()
    world.node("n1")
    world.node("n2", facts(2, encapsulations=("vxlan",)))
    one, two = world.state("n1").peers["n2"], world.state("n2").peers["n1"]
    assert (one.block, one.underlay, one.encapsulation) == ("10.2.0.0/16", "192.168.0.3", "vxlan")
    assert (two.block, two.underlay, two.encapsulation) == ("10.1.0.0/16", "192.168.0.2", "vxlan")
    assert one.vni == two.vni == (1 << 12 | 2)


def test_gre_carries_no_network_identifier() -> None:
    world = World()
    world.node("n1")
    world.node("n2")
    assert world.state("n1").peers["n2"].vni == 0


def test_a_joining_node_with_less_changes_no_mtu_of_others() -> None:
    world = World()
    world.node("n1", facts(1, underlay_mtu=9000))
    before = world.state("n1")
    world.node("n2", facts(2, encapsulations=("vxlan",), underlay_mtu=1280))
    after = world.state("n1")
    assert (after.mtu, after.encapsulation) == (before.mtu, before.encapsulation) == (8976, "gre")
    assert after.peers["n2"].mtu == 1230


def test_an_underlay_too_small_for_tunnels_is_refused() -> None:
    world = World()
    with pytest.raises(InvalidError, match="too small"):
        world.node("n1", facts(1, underlay_mtu=635))
    world.node("n1", facts(1, underlay_mtu=636))
    with pytest.raises(InvalidError, match="too small"):
        world.do(UpdateFacts("n1", facts(1, underlay_mtu=600)))


def test_all_underlays_and_the_brokers_addresses_are_closed_everywhere() -> None:
    world = World()
    world.node("n1")
    world.node("n2")
    assert world.state("n1").closed == world.state("n2").closed == ("192.168.0.2/32", "192.168.0.3/32")
    world.rm_node("n2")
    assert world.state("n1").closed == ("192.168.0.2/32",)
