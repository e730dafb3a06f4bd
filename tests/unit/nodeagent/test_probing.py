"""Probing, over paths that are shaped by hand, in a time of its own."""

from __future__ import annotations

import itertools

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netctl.model import PathState
from nodeagent.probe_packets import SMALL, Probe, decode, encode
from nodeagent.probing import (
    CHOSEN_INTERVAL,
    OTHER_INTERVAL,
    PACKETS_PER_SECOND,
    PAUSE,
    REPLIES_PER_SECOND,
    Probing,
)
from tests.support.probed_net import ProbedNet, target

FOUND_WITHIN = 3.5
"""Seconds in which a loss, or a smaller MTU, of a routed way must be found."""


def pair(*encapsulations: str, seed: int = 0) -> ProbedNet:
    """Return nodes 1 and 2 with these ways, the first of them routed, once each has been found."""
    net = ProbedNet(seed)
    aim(net, *encapsulations)
    net.run(1.0)
    return net


def aim(net: ProbedNet, *encapsulations: str, outer: int = 1500) -> None:
    for us, peer in ((1, 2), (2, 1)):
        net.aim(
            us,
            *(
                target(us, peer, one, chosen=one == encapsulations[0], outer=outer)  # type: ignore[arg-type]
                for one in encapsulations
            ),
        )


def state(net: ProbedNet, encapsulation: str = "gre") -> PathState:
    found = net.found(1, 2, encapsulation)
    assert found is not None
    return found


def routed(net: ProbedNet) -> dict[str, PathState]:
    return {path.peer: path for _, node, path in net.told if (node, path.encapsulation) == (1, "gre")}


# --- what is found ----------------------------------------------------------------------------------


def test_new_ways_are_found_at_once() -> None:
    net = pair("gre", "vxlan", "wireguard", "direct")
    for us, peer in ((1, 2), (2, 1)):
        for way, mtu in (("gre", 1476), ("vxlan", 1450), ("wireguard", 1440), ("direct", 1500)):
            assert net.found(us, peer, way) == PathState(f"n{peer}", way, True, mtu, 1000, 0)  # type: ignore[arg-type]
    assert net.told[-1][0] < 1000.1


def test_peer_that_comes_a_little_later_is_not_told_to_be_down() -> None:
    net = ProbedNet()
    net.aim(1, target(1, 2), target(1, 2, "vxlan", chosen=False))
    net.run(2.5)
    assert net.told == []
    net.aim(2, target(2, 1), target(2, 1, "vxlan", chosen=False))
    net.run(1.0)
    assert [(path.encapsulation, path.up) for _, node, path in net.told if node == 1] == [
        ("gre", True),
        ("vxlan", True),
    ]


def test_peer_that_does_not_come_is_down_and_up_soon_after_it_came() -> None:
    net = ProbedNet()
    net.aim(1, target(1, 2), target(1, 2, "vxlan", chosen=False))
    net.run(6.0)
    assert (state(net).up, state(net).mtu, state(net).loss_permille) == (False, 0, 1000)
    assert not state(net, "vxlan").up
    net.aim(2, target(2, 1), target(2, 1, "vxlan", chosen=False))
    assert net.run(3.0, lambda: state(net).up and state(net, "vxlan").up) < 1.0


def test_way_that_breaks_is_found_down() -> None:
    net = pair("gre", "vxlan")
    net.run(7.77)
    net.path(1, 2).open = False
    assert net.run(10.0, lambda: not state(net).up) < FOUND_WITHIN
    assert state(net, "vxlan").up
    net.run(5.0)
    assert state(net, "vxlan").up
    net.path(1, 2).open = True
    assert net.run(10.0, lambda: state(net).up) < FOUND_WITHIN
    assert state(net).mtu == 1476


def test_one_direction_that_breaks_is_found_by_both_ends() -> None:
    net = pair("gre")
    before = ProbedNet._send

    def one_way(self: ProbedNet, us: int, packet: object) -> None:
        if us != 1:
            before(self, us, packet)  # type: ignore[arg-type]

    net._send = one_way.__get__(net)  # type: ignore[method-assign]
    net.run(FOUND_WITHIN)
    for us, peer in ((1, 2), (2, 1)):
        found = net.found(us, peer)
        assert found is not None
        assert not found.up


def test_peer_that_is_silent_is_found_down_on_all_ways_before_the_routed_one_is_told() -> None:
    net = pair("gre", "vxlan", "wireguard")
    net.run(4.2)
    net.told.clear()
    net.silent.add(2)
    assert net.run(10.0, lambda: len(net.told) == 3) < FOUND_WITHIN + 1
    assert {path.encapsulation for _, _, path in net.told} == {"gre", "vxlan", "wireguard"}
    assert not any(path.up for _, _, path in net.told)
    # None was told alone before: the broker would have moved the pair to a way that is as dead.
    routed = next(at for at, _, path in net.told if path.encapsulation == "gre")
    assert all(at <= routed for at, _, _ in net.told)


@pytest.mark.parametrize("outer", [1280, 1333, 1400, 1499])
def test_smaller_mtu_is_found(outer: int) -> None:
    net = pair("gre", "vxlan")
    net.run(5.9)
    net.path(1, 2).mtu = outer - 24
    net.told.clear()
    assert net.run(10.0, lambda: any(path.mtu == outer - 24 for _, _, path in net.told)) < FOUND_WITHIN
    net.run(30.0)
    assert {(path.up, path.mtu) for _, _, path in net.told} == {(True, outer - 24)}
    assert {path.loss_permille for _, _, path in net.told} == {0}


def test_larger_mtu_is_found() -> None:
    net = pair("gre")
    path = net.path(1, 2)
    path.mtu = 1200
    net.run(10.0, lambda: state(net).mtu == 1200)
    path.mtu = 1400
    assert net.run(20.0, lambda: state(net).mtu == 1400) < 14.0
    path.mtu = 9000
    net.told.clear()
    assert net.run(20.0, lambda: any(found.mtu == 1476 for _, _, found in net.told)) < 14.0
    assert [path.mtu for _, node, path in net.told if node == 1] == [1476]


def test_larger_links_are_tried_at_once_and_smaller_ones_believed() -> None:
    net = pair("gre")
    aim(net, "gre", outer=9000)
    net.run(5.0, lambda: state(net).mtu == 8976)
    assert state(net).mtu == 8976
    net.told.clear()
    aim(net, "gre", outer=1400)
    net.run(0.1)
    assert state(net).mtu == 1376


def test_slow_path_is_up() -> None:
    net = ProbedNet()
    net.path(1, 2).delay = 0.6
    aim(net, "gre")
    net.run(20.0)
    assert (state(net).up, state(net).mtu, state(net).rtt_us) == (True, 1476, 1_200_000)
    net.told.clear()
    net.run(60.0)
    assert net.told == []


def test_loss_is_measured() -> None:
    net = pair("gre", seed=4)
    net.run(30.0)
    net.path(1, 2).loss = 0.2
    assert net.run(10.0, lambda: state(net).loss_permille > 100) < 5.0
    net.run(20.0)
    assert state(net).mtu == 1476
    net.path(1, 2).loss = 0.0
    net.run(40.0)
    assert state(net).loss_permille <= 100


def test_round_trip_is_told_when_it_changes_much_and_not_all_the_time() -> None:
    net = pair("gre")
    net.told.clear()
    for step in range(60):
        net.path(1, 2).delay = 0.0005 + 0.00002 * (step % 7)
        net.run(1.0)
    assert net.told == []
    net.path(1, 2).delay = 0.02
    net.run(10.0)
    assert state(net).rtt_us == 40_000
    for step in range(60):
        net.path(1, 2).delay = 0.02 * (1 + step % 2 * 5)
        net.run(0.5)
    times = [at for at, node, _ in net.told if node == 1]
    assert all(later - earlier >= PAUSE for earlier, later in itertools.pairwise(times))


@given(
    st.integers(0, 1000),
    st.lists(
        st.tuples(st.integers(SMALL, 1600), st.floats(0.1, 15.0), st.booleans(), st.sampled_from((0.0, 0.1))),
        max_size=5,
    ),
    st.integers(SMALL, 1600),
    st.sampled_from((0.0001, 0.01, 0.3)),
)
@settings(max_examples=60, deadline=None)
def test_whatever_happened_the_true_mtu_is_found_in_the_end(
    seed: int, events: list[tuple[int, float, bool, float]], truth: int, delay: float
) -> None:
    net = ProbedNet(seed)
    path = net.path(1, 2)
    path.delay = delay
    aim(net, "gre")
    for path.mtu, seconds, path.open, path.loss in events:
        net.run(seconds)
    path.mtu, path.open, path.loss = truth, True, 0.0
    net.run(40.0)
    for us, peer in ((1, 2), (2, 1)):
        found = net.found(us, peer)
        assert found is not None
        assert (found.up, found.mtu) == (True, min(truth, 1476))
    assert net.busiest_second(1) <= PACKETS_PER_SECOND


# --- how much is sent -------------------------------------------------------------------------------


def test_ways_at_rest_cost_one_packet_an_interval() -> None:
    net = pair("gre", "vxlan")
    net.run(20.0)
    net.sent.clear()
    net.run(100.0)
    requests = [
        packet.device
        for _, node, packet in net.sent
        if node == 1 and (probe := decode(packet.data)) is not None and probe.kind == "request"
    ]
    assert requests.count("gre2") == pytest.approx(100 / CHOSEN_INTERVAL, abs=2)
    assert requests.count("vxlan2") == pytest.approx(100 / OTHER_INTERVAL, abs=2)


def test_node_with_many_peers_sends_a_hundred_packets_a_second_at_most() -> None:
    net = ProbedNet()
    peers = range(2, 202)
    for peer in peers:
        net.aim(peer, target(peer, 1), target(peer, 1, "vxlan", chosen=False))
    net.aim(
        1,
        *(target(1, peer, way, chosen=way == "gre") for peer in peers for way in ("gre", "vxlan")),  # type: ignore[arg-type]
    )
    net.run(12.0)
    assert all(net.found(1, peer) is not None for peer in peers)
    # All the paths shrink, and a tenth of them breaks.
    for peer in peers:
        net.path(1, peer).mtu = 1376
        net.path(1, peer).open = peer % 10 != 0

    def all_found() -> bool:
        found = (net.found(1, peer) for peer in peers)
        return all(path is not None and path.mtu == (1376 if path.up else 0) for path in found)

    seconds = next((second for second in range(90) if net.run(1.0) and all_found()), None)
    assert seconds is not None
    assert seconds < 60
    assert all(state.up == (int(peer[1:]) % 10 != 0) for peer, state in routed(net).items())
    assert net.busiest_second(1) <= PACKETS_PER_SECOND


# --- who is answered --------------------------------------------------------------------------------

REQUEST = Probe("10.2.0.1", "10.1.0.1", "request", b"12345678", 200)


def listening() -> Probing:
    probing = Probing()
    probing.aim((target(1, 2, also=("gre9",)), target(1, 3, "vxlan")), 0.0)
    return probing


def test_probe_of_a_peer_is_answered_with_as_many_bytes_by_the_way_it_came() -> None:
    for device in ("gre2", "gre9"):
        answer = listening().receive(device, "", encode(REQUEST), 0.0)
        assert answer is not None
        assert (answer.device, answer.mac) == (device, "")
        assert decode(answer.data) == REQUEST.reply()


@pytest.mark.parametrize(
    ("device", "mac", "request_"),
    [
        pytest.param("gre3", "", REQUEST, id="device"),
        pytest.param("gre2", "6e:63:0a:02:00:01", REQUEST, id="link-address"),
        pytest.param("gre2", "", attrs.evolve(REQUEST, source="10.3.0.1"), id="source"),
        pytest.param("gre2", "", attrs.evolve(REQUEST, source="10.2.0.2"), id="container"),
        pytest.param("gre2", "", attrs.evolve(REQUEST, destination="10.1.0.2"), id="destination"),
        pytest.param("vxlan3", "02:00:00:00:00:01", attrs.evolve(REQUEST, source="10.3.0.1"), id="mac"),
        pytest.param("gre2", "", attrs.evolve(REQUEST, kind="reply"), id="reply"),
    ],
)
def test_nobody_else_is_answered(device: str, mac: str, request_: Probe) -> None:
    assert listening().receive(device, mac, encode(request_), 0.0) is None


def test_right_ethernet_address_is_answered() -> None:
    request = attrs.evolve(REQUEST, source="10.3.0.1")
    assert listening().receive("vxlan3", "6e:63:0a:03:00:01", encode(request), 0.0) is not None


def test_ways_that_are_no_longer_probed_are_not_answered() -> None:
    probing = listening()
    probing.aim((target(1, 3, "vxlan"),), 1.0)
    assert probing.receive("gre2", "", encode(REQUEST), 1.0) is None
    assert probing.devices == {"vxlan3"}


def test_flood_is_answered_only_so_often_and_others_as_ever() -> None:
    probing = listening()
    answers = [probing.receive("gre2", "", encode(REQUEST), 5.0 + i / 10000) for i in range(5000)]
    assert sum(answer is not None for answer in answers) == REPLIES_PER_SECOND
    other = attrs.evolve(REQUEST, source="10.3.0.1")
    assert probing.receive("vxlan3", "6e:63:0a:03:00:01", encode(other), 5.6) is not None
    assert probing.receive("gre2", "", encode(REQUEST), 6.0) is not None


def test_made_up_replies_do_not_bring_a_way_up() -> None:
    net = ProbedNet()
    net.aim(1, target(1, 2))
    for step in range(200):
        net.run(0.05)
        made_up = Probe("10.2.0.1", "10.1.0.1", "reply", (2**40 + step).to_bytes(8), 1476)
        net.nodes[1].receive("gre2", "", encode(made_up), net.now)
    assert not state(net).up


def test_reply_of_another_size_does_not_count() -> None:
    net = ProbedNet()
    net.aim(1, target(1, 2))
    for _ in range(100):
        net.run(0.05)
        for _, _, packet in net.sent:
            probe = decode(packet.data)
            assert probe is not None
            shorter = attrs.evolve(probe.reply(), size=SMALL + 1)
            net.nodes[1].receive("gre2", "", encode(shorter), net.now)
    assert not state(net).up
