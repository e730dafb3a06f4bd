"""What a doctor finds: nodes that are asked, and what the broker knows by itself."""

from __future__ import annotations

import attrs
import pytest

from netctl.broker.commands import SetPairs, StartRotation, UpdateFacts
from netctl.broker.diagnosing import diagnose
from netctl.broker.examinations import AT_ONCE, Answer
from netctl.broker.overlay import Choice
from netctl.broker.sessions import Limits
from netctl.broker.views import Live, LiveNode
from netctl.broker.ways import Ways
from netctl.model import Finding, NodeFacts, PathState, WireguardEnd
from netctl.wire.messages import Diagnose, Diagnosis, Examined, Facts, Failure, NodeError, PathView
from tests.support.broker import World, facts
from tests.support.hub import FakeNode, House, Talker

OWN = Finding("warning", "n2", "its rp_filter is strict", "set it to 2")


@pytest.fixture
def house() -> House:
    return House(Limits(interval=1000.0))


def nodes_of(house: House, count: int = 3, **changes: object) -> list[FakeNode]:
    made = [house.node(f"n{number}", **changes) for number in range(1, count + 1)]
    for node in made:
        node.finds(*(PathState(f"n{other}", "gre", up=True, mtu=1476) for other in range(1, count + 1)))
    house.later(0)
    return made


def asked(user: Talker, timeout: float = 10.0) -> Diagnosis:
    user.say(Diagnose(timeout))
    return user.last(Diagnosis)


def about(found: Diagnosis, subject: str) -> list[Finding]:
    return [finding for finding in found.findings if finding.subject == subject]


def test_where_all_is_well_nothing_is_found_and_every_way_is_shown(house: House) -> None:
    user = house.user()
    nodes_of(house)
    found = asked(user)
    assert found.findings == ()
    assert [node.name for node in found.nodes] == ["n1", "n2", "n3"]
    assert {(p.source, p.destination, p.encapsulation, p.state) for p in found.paths} == {
        (f"n{one}", f"n{other}", "gre", "up") for one in (1, 2, 3) for other in (1, 2, 3) if one != other
    }


def test_without_nodes_it_is_answered_at_once(house: House) -> None:
    assert asked(house.user()) == Diagnosis((), (), ())


def test_what_nodes_find_is_passed_on_errors_first(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    error = Finding("error", "the kernel", "no nftables", "load it")
    nodes[0].findings, nodes[1].findings = (OWN,), (error, attrs.evolve(OWN, subject="n2"))
    found = asked(user).findings
    assert [f.severity for f in found] == ["error", "warning", "warning"]
    assert found[0].subject == "n2: the kernel", "a node speaks of itself alone"
    assert {f.subject for f in found[1:]} == {"n1: n2", "n2"}


def test_a_node_that_does_not_answer_is_named_when_time_is_up(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[1].mute = True
    nodes[0].findings = (OWN,)
    user.say(Diagnose(3.0))
    assert not user.has(Diagnosis)
    house.later(2.9)
    assert not user.has(Diagnosis)
    house.later(0.2)
    found = user.last(Diagnosis)
    assert [f.message for f in about(found, "n2")] == ["its agent did not answer in time"]
    assert about(found, "n1: n2"), "the others have"


def test_a_node_that_goes_while_it_is_asked_is_waited_for_no_longer(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[1].mute = True
    user.say(Diagnose(60.0))
    house.hub.lost(nodes[1].route, "gone")
    house.settle()
    assert "unreachable" in about(user.last(Diagnosis), "n2")[0].message


def test_an_unreachable_node_is_an_error_and_its_pairs_are_not_told_one_by_one(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    house.hub.lost(nodes[1].route, "gone")
    nodes[0].finds(PathState("n2", "gre", up=False))
    found = asked(user).findings
    assert [(f.severity, f.subject) for f in found] == [("error", "n2")]


@pytest.mark.parametrize(("ahead", "word"), [(1.5, "1.5 s ahead of"), (-90.0, "90.0 s behind"), (0.9, "")])
def test_a_clock_is_compared_with_the_brokers(house: House, ahead: float, word: str) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[2].ahead = ahead
    found = about(asked(user), "n3")
    assert [word in f.message for f in found] == ([True] if word else [])


def test_a_slow_answer_makes_a_clock_less_sure_not_wrong(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[0].mute = True
    user.say(Diagnose(60.0))
    number = next(e.id for e in nodes[0].heard if type(e.message).__name__ == "Examine")
    clock = house.now + 0.5
    house.later(4.0)
    nodes[0].say(Examined((), clock), number)
    assert user.last(Diagnosis).findings == (), "it may have looked at its clock at any time of these 4 s"


def test_answers_that_nobody_asked_for_count_nothing(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[1].mute = True
    nodes[0].say(Examined((OWN,), 0.0), 77)
    user.say(Diagnose(1.0))
    number = next(e.id for e in nodes[1].heard if type(e.message).__name__ == "Examine")
    nodes[0].say(Examined((OWN,), 0.0), number)
    assert not user.has(Diagnosis), "another node does not answer for it"
    nodes[1].say(Examined((), house.now), number)
    assert user.last(Diagnosis).findings == ()


def test_only_so_many_look_at_a_time(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[0].mute = True
    for _ in range(AT_ONCE):
        user.say(Diagnose(5.0))
    assert isinstance(user.ask(Diagnose(5.0)), Failure)
    house.later(6)
    assert len([e for e in user.heard if isinstance(e.message, Diagnosis)]) == AT_ONCE
    nodes[0].mute = False
    assert asked(user).findings == ()


def test_a_user_who_leaves_is_waited_for_by_nobody(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[0].mute = True
    user.say(Diagnose(5.0))
    house.hub.lost(user.route, "gone")
    house.later(6)
    assert house.hub.examinations.next_deadline() is None


def test_what_a_node_could_not_do_and_what_is_not_recorded_of_it_is_told(house: House) -> None:
    user, nodes = house.user(), nodes_of(house)
    nodes[0].errors = (NodeError("web", "no such image"), NodeError("db", "pulling", under_way=True))
    nodes[0].applied()
    nodes[1].say(Facts(attrs.evolve(nodes[1].facts, underlay="192.168.0.1")), 0)
    found = asked(user)
    assert [f.message for f in about(found, "n1: web")] == ["no such image"]
    assert not about(found, "n1: db")
    assert "192.168.0.1 is that of node n1 already" in about(found, "n2")[0].message


# --- what is known without asking -----------------------------------------------------------------------


def _live(*paths: tuple[str, PathState], names: tuple[str, ...] = ("n1", "n2")) -> Live:
    ways = Ways()
    for source, path in paths:
        ways.take(source, (path,), dict.fromkeys(names), 1.0)
    return Live({name: LiveNode(connected=True) for name in names}, ways=ways)


def _world(one: NodeFacts, other: NodeFacts, **policy: object) -> World:
    world = World(**policy)  # type: ignore[arg-type]
    world.node("n1", one)
    world.node("n2", other)
    return world


def _found(world: World, live: Live, version: str = "1", **answers: Answer) -> list[tuple[str, str, str]]:
    diagnosis = diagnose(world.snapshot, live, answers, (), version)
    return [(f.severity, f.subject, f.message) for f in diagnosis.findings]


def test_a_pair_that_is_down_is_an_error() -> None:
    live = _live(("n2", PathState("n1", "gre", up=False)), ("n1", PathState("n2", "gre", up=True, mtu=1476)))
    found = _found(_world(facts(1), facts(2)), live)
    assert [(f[0], f[1]) for f in found] == [("error", "n1 -> n2")]
    assert "gre is down, as n2 found" in found[0][2]


def test_a_pair_that_had_to_leave_a_better_way_is_a_warning() -> None:
    world = _world(facts(1), facts(2))
    world.do(SetPairs((("n1", "n2", Choice("vxlan", 1300)),)))
    live = _live(("n1", PathState("n2", "gre", up=False)))
    found = _found(world, live)
    assert [f[0] for f in found] == ["warning", "warning"]
    assert "gre is down, as n1 found; vxlan is used instead" in found[0][2]
    assert "packets of 1300 bytes, though both links would take 1450" in found[1][2]


def test_a_pair_without_a_way_says_why() -> None:
    found = _found(_world(facts(1, encapsulations=("gre",)), facts(2, encapsulations=("vxlan",))), _live())
    assert found == [("error", "n1 -> n2", "they have no encapsulation in common (n1 has gre; n2 has vxlan)")]


def test_a_pair_that_cannot_be_encrypted_says_on_whose_account() -> None:
    end = WireguardEnd(1, "a" * 64, 51821)
    able = facts(1, encapsulations=("gre", "wireguard"), wireguard=(end,))
    found = _found(_world(able, facts(2), encryption="required"), _live())
    assert found == [("error", "n1 -> n2", "encryption is required, and there is no wireguard on n2")]


def test_links_of_different_sizes_are_told_once() -> None:
    found = _found(_world(facts(1, underlay_mtu=9000), facts(2)), _live())
    assert found == [
        ("warning", "underlay", "the nodes' links have different MTUs: 1500 bytes on n2; 9000 bytes on n1")
    ]


def test_other_versions_are_told() -> None:
    world = _world(facts(1, version="1"), facts(2, version="2"))
    assert _found(world, _live()) == [("warning", "n2", "its agent is of version 2, the broker of 1")]


@pytest.mark.parametrize(
    ("network", "is_in_the_way"),
    [("10.2.0.0/16", True), ("10.1.7.0/24", True), ("10.0.0.0/8", False), ("10.77.0.0/16", False)],
)
def test_a_network_inside_a_block_in_use_is_an_error(network: str, *, is_in_the_way: bool) -> None:
    world = _world(facts(1), facts(2))
    world.do(UpdateFacts("n1", facts(1, networks=(network,))))
    found = _found(world, _live())
    assert [f[1] for f in found] == (["n1"] if is_in_the_way else [])
    told = Finding("error", "n1", f"the network {network} on this host lies in a block")
    assert len(_found(world, _live(), n1=Answer((told,), 0.0, 0.0))) == 1, "told once"


def test_a_new_key_that_waits_for_somebody_is_a_warning() -> None:
    ends = [WireguardEnd(1, c * 64, 51821) for c in "ab"]
    offers = ("wireguard",)
    world = _world(
        facts(1, encapsulations=offers, wireguard=(ends[0],)),
        facts(2, encapsulations=offers, wireguard=(ends[1],)),
    )
    world.do(StartRotation("n1"))
    found = _found(world, _live())
    assert found == [("warning", "n1", "its new WireGuard key is not in use everywhere yet: n1 to go")]


def test_a_node_that_is_being_removed_is_not_looked_at() -> None:
    world = _world(facts(1), facts(2))
    world.rm_node("n2")
    diagnosis = diagnose(world.snapshot, _live(), {}, (), "1")
    assert ([n.name for n in diagnosis.nodes], diagnosis.paths, diagnosis.findings) == (["n1"], (), ())


def test_more_ways_than_an_answer_holds_are_those_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    world = _world(facts(1), facts(2))
    live = _live(("n1", PathState("n2", "gre", up=True, mtu=1476)))
    monkeypatch.setattr("netctl.broker.diagnosing.MOST_PATHS", 3)
    paths = diagnose(world.snapshot, live, {}, (), "1").paths
    assert [p.chosen for p in paths] == [True, True]
    monkeypatch.setattr("netctl.broker.diagnosing.MOST_PATHS", 1)
    assert diagnose(world.snapshot, live, {}, (), "1").paths == (
        PathView("n2", "n1", "gre", chosen=True, state="unknown"),
    )


def test_more_findings_than_an_answer_holds_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    for number in range(1, 5):
        world.node(f"n{number}", facts(number, encapsulations=()))
    monkeypatch.setattr("netctl.broker.diagnosing.MOST_FINDINGS", 3)
    names = tuple(world.snapshot.nodes)
    found = diagnose(world.snapshot, _live(names=names), {}, (), "1").findings
    assert len(found) == 3
    assert found[-1].message == "and 4 more findings like these"
