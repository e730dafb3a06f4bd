"""Which of its candidates a pair of nodes uses by what is reported, and whom that touches."""

from __future__ import annotations

import attrs
import pytest

from netctl.broker import pairing, state
from netctl.broker.commands import SetPairs, UpdateFacts
from netctl.broker.overlay import Choice
from netctl.broker.pairing import LOWER_INTERVAL, RAISE_INTERVAL, STEADY, Heard, Side, Verdict
from netctl.broker.snapshot import Node, Pair
from netctl.model import Encapsulation, PathState, WireguardEnd
from tests.support.broker import World, facts
from tests.support.counting import counting

NEVER = float("-inf")
NOW = 1000.0


def world(nodes: int = 2) -> World:
    """Nodes that may use gre, vxlan and wireguard with each other."""
    made = World()
    for number in range(1, nodes + 1):
        end = WireguardEnd(1, f"{number:064x}", 51821)
        its = facts(number, encapsulations=("gre", "vxlan", "wireguard"), wireguard=(end,))
        made.node(f"n{number}", its)
    return made


def side(**ways: tuple[bool, int, float]) -> Side:
    """Return what one node says: encapsulation = (up, mtu, since)."""
    return {
        way: Heard(PathState("n2", way, up, mtu), since)  # type: ignore[arg-type,misc]
        for way, (up, mtu, since) in ways.items()
    }


def judge(made: World, one: Side, other: Side, now: float = NOW, changed: float = NEVER) -> Verdict:
    nodes = made.snapshot.nodes
    return pairing.judge(made.snapshot, (nodes["n1"], nodes["n2"]), (one, other), now=now, changed=changed)


def use(
    made: World, encapsulation: Encapsulation, mtu: int = 0, pair: tuple[str, str] = ("n1", "n2")
) -> None:
    made.do(SetPairs(((*pair, Choice(encapsulation, mtu)),)))


OLD_UP = (True, 1450, 10.0)
DOWN = (False, 0, 10.0)


def test_while_nothing_is_reported_the_first_candidate_is_used() -> None:
    assert judge(world(), {}, {}) == Verdict(Choice("gre"))


@pytest.mark.parametrize("swap", [False, True])
def test_a_way_that_one_side_finds_down_gives_way_to_the_best_that_both_find_up(*, swap: bool) -> None:
    one = side(gre=DOWN, vxlan=OLD_UP, wireguard=OLD_UP)
    other = side(gre=(True, 1476, 10.0), vxlan=OLD_UP, wireguard=OLD_UP)
    found = judge(world(), *((other, one) if swap else (one, other)))
    assert found == Verdict(Choice("vxlan"))


def test_what_one_side_alone_finds_up_is_passed_over() -> None:
    one = side(gre=DOWN, vxlan=OLD_UP, wireguard=(True, 1440, 10.0))
    assert judge(world(), one, side(gre=DOWN, vxlan=DOWN, wireguard=OLD_UP)) == Verdict(Choice("wireguard"))
    assert judge(world(), one, side(gre=DOWN)) == Verdict(Choice("gre")), "nothing that both find up"


def test_where_all_is_down_everything_stays() -> None:
    all_down = side(gre=DOWN, vxlan=DOWN, wireguard=DOWN)
    assert judge(world(), all_down, all_down) == Verdict(Choice("gre"))


def test_a_better_way_that_comes_up_changes_nothing() -> None:
    made = world()
    use(made, "vxlan")
    up = side(gre=(True, 1476, 10.0), vxlan=OLD_UP)
    assert judge(made, up, up) == Verdict(Choice("vxlan"))


def test_what_has_not_stood_long_enough_is_looked_at_again_when_it_has() -> None:
    one, other = side(gre=(False, 0, NOW), vxlan=OLD_UP), side(vxlan=OLD_UP)
    assert judge(world(), one, other) == Verdict(Choice("gre"), NOW + STEADY)
    assert judge(world(), one, other, NOW + STEADY) == Verdict(Choice("vxlan"))


def test_a_node_that_goes_or_comes_back_takes_no_pair_to_another_way() -> None:
    made, there = world(), side(gre=(True, 1476, 10.0), vxlan=OLD_UP)
    going = side(gre=(False, 0, NOW), vxlan=OLD_UP)
    assert judge(made, going, there, NOW + 1.9).choice == Choice("gre")
    gone = side(gre=(False, 0, NOW), vxlan=(False, 0, NOW + 1))
    assert judge(made, gone, there, NOW + 60) == Verdict(Choice("gre"))
    coming = side(gre=(False, 0, NOW), vxlan=(True, 1450, NOW + 100))
    assert judge(made, coming, there, NOW + 101) == Verdict(Choice("gre"), NOW + 102)
    back = side(gre=(True, 1476, NOW + 101.5), vxlan=(True, 1450, NOW + 100))
    assert judge(made, back, there, NOW + 102) == Verdict(Choice("gre"))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (1476, 1476, 0),
        (1400, 1476, 1400),
        (1476, 1300, 1300),
        (1400, 0, 1400),
        (9000, 9000, 0),
        (64, 1476, 576),
    ],
)
def test_the_mtu_is_what_both_find_and_never_more_than_the_links_take(
    one: int, other: int, expected: int
) -> None:
    found = judge(world(), side(gre=(True, one, 10.0)), side(gre=(True, other, 10.0)))
    assert found == Verdict(Choice("gre", expected))


def test_the_mtu_of_a_way_that_is_down_or_was_not_found_stays() -> None:
    made = world()
    use(made, "gre", 1400)
    assert judge(made, side(gre=(False, 0, 10.0)), {}) == Verdict(Choice("gre", 1400))
    assert judge(made, side(gre=(True, 0, 10.0)), {}) == Verdict(Choice("gre", 1400))


def test_a_way_is_taken_with_its_own_mtu() -> None:
    made = world()
    use(made, "gre", 1300)
    both = side(gre=DOWN, vxlan=(True, 1350, 10.0))
    assert judge(made, both, both) == Verdict(Choice("vxlan", 1350))


def test_an_mtu_shrinks_at_once_and_grows_slowly() -> None:
    made = world()
    less = side(gre=(True, 1400, 10.0))
    assert judge(made, less, {}, NOW, changed=NOW - LOWER_INTERVAL) == Verdict(Choice("gre", 1400))
    assert judge(made, less, {}, NOW, changed=NOW) == Verdict(Choice("gre"), NOW + LOWER_INTERVAL)
    use(made, "gre", 1400)
    more = side(gre=(True, 1476, 10.0))
    assert judge(made, more, {}, NOW, changed=NOW - 9) == Verdict(
        Choice("gre", 1400), NOW - 9 + RAISE_INTERVAL
    )
    assert judge(made, more, {}, NOW, changed=NOW - 10) == Verdict(Choice("gre"))


def test_a_change_of_a_pair_is_told_to_its_two_nodes_alone() -> None:
    made = world(5)
    decision = made.do(SetPairs((("n4", "n2", Choice("vxlan", 1400)),)))
    assert set(decision.deltas) == {"n2", "n4"}
    assert [p.name for p in decision.deltas["n2"].peers] == ["n4"]
    assert decision.deltas["n2"].header is None
    for name, peer in (("n2", "n4"), ("n4", "n2")):
        found = made.state(name).peers[peer]
        assert (found.encapsulation, found.mtu, found.outer_mtu) == ("vxlan", 1400, 1500)
        assert found.candidates == ("gre", "vxlan", "wireguard"), "all of them stand ready as before"
    assert made.snapshot.node_pairs[("n2", "n4")] == Pair("n2", "n4", "vxlan", 1400)
    assert made.reloaded().node_pairs == made.snapshot.node_pairs


def test_a_change_of_a_pair_costs_the_same_among_a_hundred_nodes() -> None:
    records = [Node(f"n{i}", i, f"10.{i}.0.0/16", f"k{i}", facts(i)) for i in range(1, 101)]
    counted, count = counting(state.load(1, 5, "10.0.0.0/8", 16, (), records))
    decision = state.decide(counted, SetPairs((("n4", "n2", Choice("vxlan")),)), 1.0)
    assert set(decision.deltas) == {"n2", "n4"}
    assert 0 < count.entries < 100


def test_what_would_be_used_anyway_is_not_recorded() -> None:
    made = world()
    use(made, "gre", 1476)
    assert not made.snapshot.node_pairs
    use(made, "vxlan")
    use(made, "gre")
    assert not made.snapshot.node_pairs
    assert made.state("n1").peers["n2"].encapsulation == "gre"


def test_what_a_pair_may_not_use_is_not_recorded() -> None:
    made = world()
    for chosen in ("direct", "none"):
        revision = made.snapshot.revision
        use(made, chosen)
        assert made.snapshot.revision == revision
    use(made, "vxlan", pair=("n1", "n9"))
    assert not made.snapshot.node_pairs


def test_a_pair_whose_node_offers_it_no_more_uses_what_it_would_at_first() -> None:
    made = world(3)
    use(made, "wireguard")
    use(made, "wireguard", pair=("n1", "n3"))
    made.do(UpdateFacts("n2", facts(2, encapsulations=("gre", "vxlan"))))
    assert set(made.snapshot.node_pairs) == {("n1", "n3")}
    assert made.state("n1").peers["n2"].encapsulation == "gre"


def test_an_mtu_that_the_links_take_no_more_is_forgotten() -> None:
    made = world()
    use(made, "gre", 1400)
    small = attrs.evolve(made.snapshot.nodes["n2"].facts, underlay_mtu=1400)
    made.do(UpdateFacts("n2", small))
    assert not made.snapshot.node_pairs
    assert made.state("n1").peers["n2"].mtu == 1376


@pytest.mark.parametrize("reachable", [True, False])
def test_a_node_that_goes_takes_its_pairs_with_it(*, reachable: bool) -> None:
    made = world(3)
    for pair in (("n1", "n2"), ("n2", "n3"), ("n1", "n3")):
        use(made, "vxlan", pair=pair)
    made.rm_node("n2", force=True, reachable=reachable)
    assert set(made.snapshot.node_pairs) == {("n1", "n3")}
    use(made, "wireguard")
    assert set(made.snapshot.node_pairs) == {("n1", "n3")}, "what is reported of it does not come back"
    assert set(made.state("n1").peers) == {"n3"}


def test_a_node_of_the_same_name_begins_anew() -> None:
    made = world(2)
    use(made, "vxlan")
    made.rm_node("n2", force=True, reachable=False)
    made.node("n2", facts(2, encapsulations=("gre", "vxlan")))
    assert made.state("n1").peers["n2"].encapsulation == "gre"
