from __future__ import annotations

import pytest

from netctl.broker import overlay
from netctl.broker.commands import UpdateFacts
from netctl.errors import ExistsError, InvalidError
from netctl.model import Encapsulation, WireguardEnd
from tests.support.broker import World, facts

WIREGUARD = tuple(WireguardEnd(1, f"{number:064x}", 51821) for number in range(10))
"""An end each for some nodes, by their numbers."""
Offer = tuple[Encapsulation, ...]


def world_of(one: Offer, other: Offer, **policy: object) -> World:
    """Return two nodes with their offers, and keys where they offer wireguard."""
    world = World(**policy)  # type: ignore[arg-type]
    for number, offer in ((1, one), (2, other)):
        ends = (WIREGUARD[number],) if "wireguard" in offer else ()
        world.node(f"n{number}", facts(number, encapsulations=offer, wireguard=ends))
    return world


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (("gre", "vxlan"), ("gre", "vxlan"), ("gre", "vxlan")),
        (("vxlan", "gre"), ("vxlan", "gre"), ("gre", "vxlan")),
        (("gre", "vxlan"), ("vxlan",), ("vxlan",)),
        (("gre",), ("vxlan",), ()),
        (("direct",), ("direct",), ("direct",)),
        (("direct", "gre"), ("direct",), ("direct",)),
        (("direct", "gre"), ("gre",), ("gre",)),
        (("gre", "direct"), ("direct", "gre"), ("direct", "gre")),
        (("wireguard",), ("wireguard",), ("wireguard",)),
        (("gre", "vxlan", "wireguard"), ("wireguard", "gre"), ("gre", "wireguard")),
        ((), ("gre",), ()),
    ],
)
def test_a_pair_may_use_what_both_offer_in_the_order_set(one: Offer, other: Offer, expected: Offer) -> None:
    world = world_of(one, other)
    ours, theirs = world.state("n1").peers["n2"], world.state("n2").peers["n1"]
    assert ours.candidates == theirs.candidates == expected
    assert ours.encapsulation == theirs.encapsulation == (expected[0] if expected else "none")


def test_the_operators_order_and_choice_count() -> None:
    world = world_of(("gre", "vxlan", "wireguard"), ("gre", "vxlan", "wireguard"), order=("vxlan", "gre"))
    assert world.state("n1").peers["n2"].candidates == ("vxlan", "gre")
    assert world.state("n1").wireguard_generations == ()


@pytest.mark.parametrize("other", [("gre", "vxlan", "direct"), ("gre",), ()])
def test_with_encryption_required_there_is_wireguard_or_nothing(other: Offer) -> None:
    world = world_of(("gre", "vxlan", "direct", "wireguard"), other, encryption="required")
    for name, peer in (("n1", "n2"), ("n2", "n1")):
        found = world.state(name)
        assert found.encryption == "required"
        assert (found.peers[peer].encapsulation, found.peers[peer].candidates) == ("none", ())
    world.do(UpdateFacts("n2", facts(2, encapsulations=("wireguard", "gre"), wireguard=(WIREGUARD[2],))))
    peer = world.state("n1").peers["n2"]
    assert (peer.encapsulation, peer.candidates) == ("wireguard", ("wireguard",))
    assert peer.wireguard == WIREGUARD[2]


def test_a_pair_without_a_key_on_either_side_uses_no_wireguard_yet() -> None:
    world = world_of(("wireguard",), ("wireguard",), encryption="required")
    mtu = world.state("n1").mtu
    world.do(UpdateFacts("n1", facts(1, encapsulations=("wireguard",))))
    assert world.state("n2").peers["n1"].candidates == ()
    assert world.state("n1").wireguard_generations == (1,), "it is to make one"
    assert world.state("n1").mtu == mtu == 1440, "its containers' MTU waits for no key"


def test_the_port_of_vxlan_is_told() -> None:
    assert world_of(("vxlan",), ("vxlan",), vxlan_port=14789).state("n1").vxlan_port == 14789


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


def test_a_pair_that_cannot_use_vxlan_has_no_network_identifier() -> None:
    assert world_of(("gre",), ("gre",)).state("n1").peers["n2"].vni == 0


def test_a_pair_that_may_use_vxlan_has_its_network_identifier_before_it_does() -> None:
    peer = world_of(("gre", "vxlan"), ("gre", "vxlan")).state("n1").peers["n2"]
    assert (peer.encapsulation, peer.vni) == ("gre", 1 << 12 | 2)


@pytest.mark.parametrize(
    ("number", "ends"),
    [
        (1, (WireguardEnd(1, WIREGUARD[2].key, 51821),)),
        (1, (WIREGUARD[1], WireguardEnd(2, WIREGUARD[2].key, 51820))),
    ],
)
def test_a_key_of_another_node_is_refused(number: int, ends: tuple[WireguardEnd, ...]) -> None:
    world = world_of(("wireguard",), ("wireguard",))
    with pytest.raises(ExistsError, match="key of node n1 is that of node n2"):
        world.do(UpdateFacts("n1", facts(number, encapsulations=("wireguard",), wireguard=ends)))


@pytest.mark.parametrize(
    "ends",
    [
        (WIREGUARD[1], WireguardEnd(1, "c" * 64, 51821)),
        (WIREGUARD[1], WireguardEnd(2, WIREGUARD[1].key, 51820)),
    ],
)
def test_ends_that_contradict_each_other_are_refused(ends: tuple[WireguardEnd, ...]) -> None:
    world = world_of(("wireguard",), ("wireguard",))
    with pytest.raises(InvalidError, match="twice"):
        world.do(UpdateFacts("n1", facts(1, encapsulations=("wireguard",), wireguard=ends)))


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
