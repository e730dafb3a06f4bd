"""What every encapsulation must do alike, between whole nodes with all their rules, on the real kernel.

A kernel that lacks one is no reason not to try the others: each runs where there is a kernel for it.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterable, Iterator, Sequence

import pytest

from netctl.model import Encapsulation, Permit, Port
from tests.support.agents import permit
from tests.support.carrying import MEGABYTE, Counted, Wire, carry
from tests.support.netns import PASSES_WITHIN, tcp_passes
from tests.support.pairs import Stream, Two
from tests.support.truth_table import Question, ask, every_question
from tests.support.whole_nodes import UNDERLAY, Overlay, overlay

WAYS: tuple[Encapsulation, ...] = ("gre", "vxlan", "wireguard", "direct")
MTUS = (1280, 1400, 1500, 9000)
DATABASE, DNS, PING = Port("tcp", 5432), Port("udp", 53), Port("icmp")
PORTS = (DATABASE, Port("tcp", 5433), DNS, Port("udp", 54), PING)
CONNECTIONS: tuple[Sequence[tuple[str, Port]], ...] = (
    [("there", DATABASE)],
    [("back", DNS)],
    [("there", PING)],
    [],
    [("there", Port("any"))],
    [("back", DATABASE), ("there", DNS)],
)
"""What the first pair of containers has, the second, ...: in turn."""
CARRIED = 10
MARKER = b"netctl-marker-in-clear-text"

pytestmark = pytest.mark.root


def _marks(way: Encapsulation) -> list[pytest.MarkDecorator]:
    return [] if way == "direct" else [pytest.mark.needs_kernel(way)]


def _cases() -> Iterator[object]:
    for way in WAYS:
        for nodes, mtu, full in (
            *((3, mtu, []) for mtu in (1280, 1500)),
            *((8, mtu, [pytest.mark.full, pytest.mark.timeout(600)]) for mtu in MTUS),
        ):
            yield pytest.param((way, nodes, mtu), id=f"{way}-{nodes}-{mtu}", marks=[*_marks(way), *full])


@pytest.fixture(scope="module", params=_cases())
def net(request: pytest.FixtureRequest) -> Iterator[Overlay]:
    way, nodes, mtu = request.param
    with overlay([way], nodes=nodes, containers=2 if nodes < 8 else 1, underlay_mtu=mtu) as made:
        yield made


@pytest.fixture(params=[pytest.param(way, marks=_marks(way)) for way in WAYS])
def three(request: pytest.FixtureRequest) -> Iterator[Overlay]:
    with overlay([request.param], nodes=3, containers=1) as made:
        yield made


def _pairs(net: Overlay) -> list[tuple[str, str]]:
    return list(itertools.combinations(net.containers, 2))


def _permits(net: Overlay) -> list[Permit]:
    permits = []
    for (one, other), wanted in zip(_pairs(net), itertools.cycle(CONNECTIONS), strict=False):
        for direction, port in wanted:
            permits.append(permit(*((one, other) if direction == "there" else (other, one)), port))
    return permits


def _opened(permits: Sequence[Permit]) -> frozenset[Question]:
    opened = set()
    for one in permits:
        if one.port.protocol == "any":
            opened.update(Question(one.source, one.destination, port) for port in PORTS)
            opened.update(Question(one.destination, one.source, port) for port in PORTS)
        else:
            opened.add(Question(one.source, one.destination, one.port))
    return frozenset(opened)


def _check(net: Overlay, permits: Sequence[Permit]) -> None:
    opened = _opened(permits)
    seen = ask(net.containers, every_question(net.containers, PORTS), opened)
    assert sorted(seen.answered) == sorted(opened)
    assert sorted(seen.arrived) == sorted(q for q in opened if q.port.protocol != "icmp")


def test_only_what_is_connected_passes(net: Overlay) -> None:
    permits = _permits(net)
    net.want(*permits)
    _check(net, permits)
    # The control: every question that went unanswered is answered when it may be.
    everything = [permit(one, other, Port("any")) for one, other in _pairs(net)]
    net.want(*everything)
    _check(net, everything)
    net.want()
    _check(net, [])


def test_ten_megabytes_arrive_between_all_nodes(net: Overlay) -> None:
    firsts = [address for address in net.containers if address.endswith(".2")]
    pairs = list(itertools.combinations(firsts, 2))
    net.want(*(permit(one, other, DATABASE) for one, other in pairs))
    payload = [os.urandom(MEGABYTE)] * CARRIED
    for one, other in pairs:
        carry(net.containers[one], net.containers[other], (other, DATABASE.number), payload)
    one, other = pairs[0]
    assert not tcp_passes(net.containers[one], net.containers[other], other, DATABASE.number + 1)


def test_disconnect_cuts_a_live_flow(three: Overlay) -> None:
    (one, web), (other, database), _ = three.containers.items()
    pair = Two(web, one, database, other)
    kept = permit(one, other, "1001/tcp")
    both = (permit(one, other, "1000/tcp"), kept)
    three.want(*both)
    cut, goes_on = Stream(pair, 1000), Stream(pair, 1001)
    try:
        assert cut.flows(PASSES_WITHIN)
        three.want(kept)
        assert not cut.flows(1.0)
        assert goes_on.flows(PASSES_WITHIN)
        three.want(*both)
        # The control: the flow was cut by rules alone, so it goes on when they allow it again.
        assert cut.flows(30.0)
    finally:
        cut.close()
        goes_on.close()


def _kinds(frames: Iterable[bytes]) -> set[str]:
    """Say what the frames from one node to another are, by their outermost headers alone; ARP left out."""
    kinds = set()
    for frame in frames:
        to_many, ethertype, protocol = frame[0] & 1, frame[12:14].hex(), frame[23]
        if to_many or ethertype == "0806":
            continue
        if ethertype != "0800":
            kinds.add(f"ethertype {ethertype}")
        elif protocol != socket.IPPROTO_UDP:
            kinds.add(f"protocol {protocol}")
        else:
            # The lower of its ports: the other one is of nobody's choosing.
            kinds.add(f"udp {min(int.from_bytes(frame[34:36]), int.from_bytes(frame[36:38]))}")
    return kinds


ON_THE_WIRE = {
    "gre": {"protocol 47"},
    "vxlan": {"udp 4789"},
    "wireguard": {"udp 51821"},
    "direct": {"protocol 6", "udp 53"},
}


def test_what_the_underlay_gets_to_see(three: Overlay) -> None:
    way = three.nodes[0].state.encapsulation
    (one, web), (other, database), _ = three.containers.items()
    three.want(permit(one, other, DATABASE), permit(one, other, DNS))
    payload = MARKER * (MEGABYTE // len(MARKER))
    with Wire(three.nodes[1].namespace, UNDERLAY) as wire:
        carry(web, database, (other, DATABASE.number), [payload])
        seen = ask(three.containers, [question := Question(one, other, DNS)], {question})
    assert seen.answered == {question}
    assert sum(map(len, wire.frames)) > len(payload), "the control: all of it went by here"
    assert _kinds(wire.frames) == ON_THE_WIRE[way]
    shown = sum(MARKER in frame for frame in wire.frames)
    assert (shown == 0) == (way == "wireguard"), f"{shown} of {len(wire.frames)} frames show the payload"


@pytest.mark.needs_kernel("gre", "wireguard")
def test_changing_one_pair_touches_no_other_pairs_flows() -> None:
    ways: tuple[Encapsulation, ...] = ("gre", "vxlan", "wireguard", "direct")
    with overlay(ways, nodes=3, containers=1) as net:
        (one, web), (other, database), (third, cache) = net.containers.items()
        permits = [permit(one, other, DNS), permit(one, third, "1000/udp"), permit(other, third, "1001/udp")]
        net.want(*permits)
        links = [_links(net, number) for number in range(3)]
        n1, n2, _ = net.nodes
        for way in ("vxlan", "wireguard", "direct", "gre"):
            with (
                Counted(web, cache, (third, 1000)) as ours,
                Counted(database, cache, (third, 1001)) as ours_too,
            ):
                n1.knows(n2.peer_of(n1, way))
                n2.knows(n1.peer_of(n2, way))
                net.want(*permits)
                assert (ours.lost(), ours_too.lost()) == ([], []), way
            question = Question(one, other, DNS)
            with Wire(n1.namespace, UNDERLAY) as wire:
                assert ask(net.containers, [question], {question}).answered == {question}
            wanted = {"udp 53"} if way == "direct" else ON_THE_WIRE[way]
            # Every WireGuard link says now and then that it is there.
            assert wanted <= _kinds(wire.frames) <= {*wanted, *ON_THE_WIRE["wireguard"]}
            assert [_links(net, number) for number in range(3)] == links, "no device comes or goes"


def _links(net: Overlay, number: int) -> list[str]:
    """Return a node's links by index and name."""
    lines = net.nodes[number].namespace.ip("-o", "link").splitlines()
    return sorted(line.split(": ")[0] + " " + line.split(": ")[1] for line in lines)
