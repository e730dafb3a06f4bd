"""The agent's side of the probes: what is probed, when the helper hears of it, and what the broker does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import pytest

from firewall_rules import names
from netctl.errors import UnavailableError
from netctl.model import NodeDelta, NodeState, PathState, Peer, WireguardEnd, mac_of
from netctl.wire.messages import Hello, Paths, Update
from nodeagent.helper_fake import LocalHelper
from nodeagent.kernel_state import HostFacts, ProbeTarget
from nodeagent.ops import SetTunnel
from nodeagent.ways import probe_targets, standing
from tests.support.agents import FULL_FACTS, REMOVED, FakeNode, Life, peer, state

OURS, OURS_NEXT, THEIRS = (WireguardEnd(number, "0" * 63 + str(number), 51820) for number in (1, 2, 3))
FACTS = attrs.evolve(FULL_FACTS, wireguard=(OURS, OURS_NEXT))
ALL = ("gre", "vxlan", "wireguard", "direct")


def several(number: int, *ways: str, **changes: object) -> Peer:
    """Return a peer with several ways, the first of them chosen."""
    made = attrs.evolve(
        peer(number, ways[0]),
        candidates=ways,  # type: ignore[arg-type]
        vni=(1 << 12) | number,
        mtu=1300,
        outer_mtu=1500,
        wireguard=THEIRS,
    )
    return attrs.evolve(made, **changes)


def targets(wanted: NodeState, facts: HostFacts = FACTS) -> Sequence[ProbeTarget]:
    return probe_targets(wanted, wanted.peers, facts)


# --- what is probed ---------------------------------------------------------------------------------


def test_every_way_to_every_peer_is_probed() -> None:
    found = targets(state(peers=[several(2, *ALL), peer(3, "vxlan")], wireguard_generations=(2,)))
    assert [(t.peer, t.encapsulation, t.device, t.mac, t.mtu, t.chosen) for t in found] == [
        ("n2", "gre", "nctg0a020000", "", 1476, True),
        ("n2", "vxlan", "nctv0a020000", mac_of("10.2.0.1"), 1450, False),
        ("n2", "wireguard", "nctw0", "", 1440, False),
        ("n2", "direct", FACTS.underlay_device, "02:00:00:00:00:02", 1500, False),
        ("n3", "vxlan", "nctv0a030000", mac_of("10.3.0.1"), 1450, True),
    ]
    assert {(t.source, t.destination) for t in found if t.peer == "n2"} == {("10.1.0.1", "10.2.0.1")}


def test_no_more_is_tried_than_both_nodes_links_take() -> None:
    (small,) = targets(state(peers=[several(2, "wireguard", outer_mtu=1400)], wireguard_generations=(1,)))
    assert small.mtu == 1340
    (own,) = targets(
        state(peers=[several(2, "direct", outer_mtu=9000)]), attrs.evolve(FACTS, underlay_mtu=1400)
    )
    assert own.mtu == 1400


def test_peers_are_answered_on_both_links_while_a_key_is_replaced() -> None:
    (one,) = targets(state(peers=[several(2, "wireguard")], wireguard_generations=(2, 1)))
    assert (one.device, one.also) == (names.wireguard_device(2), (names.wireguard_device(1),))
    (one,) = targets(state(peers=[several(2, "wireguard")], wireguard_generations=(2,)))
    assert (one.device, one.also) == (names.wireguard_device(2), ())


def test_with_encryption_required_nothing_is_probed_in_the_clear() -> None:
    wanted = state(peers=[several(2, *ALL), several(3, "gre")], wireguard_generations=(1,))
    assert {t.encapsulation for t in targets(wanted)} == set(ALL)
    required = attrs.evolve(wanted, encryption="required")
    assert [(t.peer, t.encapsulation) for t in targets(required)] == [("n2", "wireguard")]


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param(REMOVED, id="removed"),
        pytest.param(state(peers=[peer(2, "none")]), id="nothing-in-common"),
        pytest.param(state(peers=[several(2, "wireguard")]), id="no-key"),
        pytest.param(state(peers=[several(2, "direct", underlay_mac="")]), id="no-link-address"),
    ],
)
def test_what_does_not_stand_is_not_probed(wanted: NodeState) -> None:
    assert targets(wanted) == ()


def test_host_without_a_firewall_has_no_tunnels_to_probe() -> None:
    wanted = state(peers=[peer(2)])
    assert targets(wanted)
    assert targets(wanted, attrs.evolve(FACTS, host_firewall="no nftables")) == ()


def test_only_what_stands_is_probed() -> None:
    wanted = targets(state(peers=[several(2, "gre", "vxlan", "direct")]))
    found = standing(tuple(wanted), {"nctv0a020000": 1}, ())
    assert [t.encapsulation for t in found] == ["vxlan", "direct"]


# --- in an agent ------------------------------------------------------------------------------------


class Helpers:
    """The helpers of one agent."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node
        self.told: list[tuple[str, ...]] = []
        self.last: LocalHelper | None = None

    def __call__(self) -> LocalHelper:
        told = self.told

        class Noting(LocalHelper):
            def set_probes(self, targets: Sequence[ProbeTarget]) -> None:
                super().set_probes(targets)
                told.append(tuple(f"{target.encapsulation} {target.peer}" for target in targets))

        self.last = Noting(self.node.host)
        return self.last

    def find(self, *paths: PathState) -> None:
        assert self.last is not None
        self.last.find(*paths)


@pytest.fixture
def helpers(tmp_path: Path) -> Helpers:
    return Helpers(FakeNode(tmp_path))


@pytest.fixture
def life(helpers: Helpers) -> Iterator[Life]:
    made = Life(helpers.node, helpers)
    made.agent.begin()
    yield made
    made.agent.close()


GRE = PathState("n2", "gre", up=True, mtu=1476, rtt_us=300)
VXLAN = PathState("n2", "vxlan", up=True, mtu=1450, rtt_us=400)
WANTED = state(peers=[several(2, "gre", "vxlan")])


def said(life: Life) -> list[tuple[PathState, ...]]:
    return [message.paths for message in life.link.said(Paths)]  # type: ignore[attr-defined]


def test_helper_is_told_once_the_devices_stand_and_then_only_of_changes(life: Life, helpers: Helpers) -> None:
    assert helpers.told == []
    life.meet(1, 10, WANTED)
    life.turn(5)
    assert helpers.told == [("gre n2", "vxlan n2")]
    life.link.say(Update(1, 10, 11, NodeDelta(peers=(several(3, "gre"),))))
    life.turn(5)
    assert helpers.told[1:] == [("gre n2", "vxlan n2", "gre n3")]
    life.link.say(Update(1, 11, 12, NodeDelta(peers_removed=("n2", "n3"))))
    life.turn(5)
    assert helpers.told[2:] == [()]


def test_device_that_cannot_be_made_is_not_probed_until_it_is(life: Life, helpers: Helpers) -> None:
    helpers.node.kernel.refuse[SetTunnel] = "no"
    life.meet(1, 10, WANTED)
    life.turn(5)
    assert helpers.told == []
    helpers.node.kernel.refuse.clear()
    life.clock += 60
    life.turn(5)
    assert helpers.told == [("gre n2", "vxlan n2")]


def test_broker_hears_what_changes(life: Life, helpers: Helpers) -> None:
    life.meet(1, 10, WANTED)
    life.turn(3)
    assert said(life) == []
    helpers.find(GRE, VXLAN)
    life.turn(3)
    assert said(life) == [(GRE, VXLAN)]
    down = PathState("n2", "gre", up=False, loss_permille=1000)
    helpers.find(down)
    life.turn(3)
    assert said(life)[1:] == [(down,)]


def test_broker_hears_all_after_each_hello(life: Life, helpers: Helpers) -> None:
    life.meet(1, 10, WANTED)
    life.turn(3)
    helpers.find(GRE, VXLAN)
    life.turn(3)
    life.link.lose()
    life.turn(3)
    slower = attrs.evolve(GRE, rtt_us=9000)
    helpers.find(slower)
    life.turn(3)
    assert len(said(life)) == 1
    life.link.sent.clear()
    life.link.connect()
    life.turn(2)
    assert [type(message) for message in life.link.sent] == [Hello]
    life.meet(1, 11, WANTED)
    life.turn(3)
    assert said(life) == [(slower, VXLAN)]


def test_ways_that_are_gone_are_not_spoken_of(life: Life, helpers: Helpers) -> None:
    life.meet(1, 10, WANTED)
    life.turn(3)
    helpers.find(GRE, VXLAN)
    life.turn(3)
    life.link.say(Update(1, 10, 11, NodeDelta(peers=(several(2, "gre"),))))
    life.turn(5)
    # What was under way when it went.
    helpers.find(attrs.evolve(VXLAN, rtt_us=7))
    life.turn(3)
    assert len(said(life)) == 1
    life.link.lose()
    life.turn()
    life.meet(1, 12, WANTED)
    life.turn(3)
    assert said(life)[1:] == [(GRE,)]


def test_new_helper_is_told_anew(life: Life, helpers: Helpers) -> None:
    life.meet(1, 10, WANTED)
    life.turn(5)
    first = helpers.last
    assert first is not None

    def gone() -> list[object]:
        raise UnavailableError("gone")

    first.events = gone  # type: ignore[assignment]
    life.turn()
    life.clock += 60
    life.turn(5)
    assert helpers.last is not first
    assert helpers.told == [("gre n2", "vxlan n2")] * 2
