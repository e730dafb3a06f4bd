"""A host whose address, MTU or link changes under its agent: the overlay follows, and nothing is left."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from netctl.model import OVERHEAD, Encapsulation
from netctl.wire.identity import Identity, KeyPair
from netctl.wire.session import accept_first
from nodeagent.session import BrokerSession, Down, Up
from tests.support.living_nodes import UNDERLAY, LivingNode, LivingNodes
from tests.support.netns import (
    BLOCKED_AFTER,
    PASSES_WITHIN,
    Namespace,
    address,
    udp_passes,
    veth,
)
from tests.support.pairs import Stream, Two

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

CONVERGES = 5.0
"""Seconds within which peers follow a node that moved."""
RECOVERS = 10.0
"""Seconds within which flows go on after the underlay takes less."""
OLD, NEW = "192.0.2.11", "192.0.2.77"
PORT = 1000
IPV4_AND_UDP = 28
"""Bytes of the two headers."""
WAYS = (
    pytest.param("gre", marks=pytest.mark.needs_kernel("gre")),
    "vxlan",
    pytest.param("wireguard", marks=pytest.mark.needs_kernel("wireguard")),
    "direct",
)

Make = Callable[[], Namespace]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Encapsulation:
    found: Encapsulation = request.param
    return found


@pytest.fixture
def living(way: Encapsulation, namespaces: Make, tmp_path: Path) -> Iterator[LivingNodes]:
    """Yield three nodes that use one encapsulation."""
    with contextlib.closing(LivingNodes(namespaces, tmp_path, 3, way)) as made:
        yield made


@pytest.fixture
def pair(living: LivingNodes) -> Two:
    """Yield containers of the first two nodes."""
    return living.pair(living.nodes[0], living.nodes[1], f"{PORT}/tcp")


@pytest.fixture
def stream(pair: Two) -> Iterator[Stream]:
    """Yield a flow from the first node to the second."""
    with contextlib.closing(Stream(pair, PORT)) as made:
        assert made.flows(PASSES_WITHIN)
        yield made


def lose_address(node: LivingNode, old: str = OLD) -> None:
    node.namespace.ip("addr", "del", f"{old}/24", "dev", UNDERLAY)


def gain_address(node: LivingNode, new: str = NEW) -> None:
    node.namespace.ip("addr", "add", f"{new}/24", "dev", UNDERLAY)


def nothing_is_left_to_do(living: LivingNodes) -> None:
    """Show that what stands is what would be made from nothing: a look at everything finds nothing to do."""
    writes = [node.reconciler.writes for node in living.nodes]
    for node in living.nodes:
        node.reconciler.doubt()
    living.settle()
    assert [node.reconciler.writes for node in living.nodes] == writes


def test_peers_follow_a_node_that_moves_and_keep_nothing_of_where_it_was(
    living: LivingNodes, stream: Stream
) -> None:
    assert all(OLD in node.traces() for node in living.nodes), "the control: it is everywhere"
    lose_address(living.nodes[0])
    gain_address(living.nodes[0])
    living.until(lambda: stream.flows(0.05), "the flow", CONVERGES)
    living.settle()
    assert not any(OLD in node.traces() for node in living.nodes)
    assert all(NEW in node.traces() for node in living.nodes)
    nothing_is_left_to_do(living)


def test_a_node_comes_back_elsewhere_after_it_had_no_address(
    living: LivingNodes, stream: Stream, way: Encapsulation
) -> None:
    node = living.nodes[0]
    before = node.observed()
    lose_address(node)
    living.until(lambda: bool(node.link.applied and node.link.applied.errors), "the error")
    assert node.link.applied is not None
    assert [error.subject for error in node.link.applied.errors] == [""]
    assert f"the link {UNDERLAY} has no IPv4 address" in node.link.applied.errors[0].message
    # Nothing but direct gets on without an address: neighbours know each other for a while.
    assert way == "direct" or not stream.flows(0.5)
    # The last facts stay in force: nothing was taken away, or opened.
    after = node.observed()
    assert (after.tunnels, after.wireguard, after.host_policy) == (
        before.tunnels,
        before.wireguard,
        before.host_policy,
    )
    gain_address(node)
    living.until(lambda: stream.flows(0.05), "the flow", CONVERGES)
    living.settle()
    assert not any(OLD in node.traces() for node in living.nodes)
    nothing_is_left_to_do(living)


def test_a_node_takes_the_place_that_another_one_left(living: LivingNodes, stream: Stream) -> None:
    one, two, three = living.nodes
    third = "192.0.2.31"
    lose_address(three, third)
    lose_address(one)
    # The broker hears of the one that comes before it hears of the one that went.
    gain_address(one, third)
    one_says(living, third)
    gain_address(three)
    living.until(lambda: stream.flows(0.05), "the flow", CONVERGES)
    living.settle()
    assert not any(OLD in node.traces() for node in living.nodes)
    policy = two.observed().host_policy
    assert policy is not None
    assert {tunnel.block: tunnel.outer for tunnel in policy.tunnels} == {
        "10.1.0.0/16": third,
        "10.3.0.0/16": NEW,
    }
    nothing_is_left_to_do(living)


def one_says(living: LivingNodes, underlay: str) -> None:
    """Let the first node live until its agent has told the broker of its new place."""
    node = living.nodes[0]
    living.until(
        lambda: (
            node.agent._host.facts.latest is not None
            and node.agent._host.facts.latest.underlay == underlay
            and node.agent._reports._facts_told is node.agent._host.facts.latest
        ),
        "the new place",
    )


def mtu_towards(node: LivingNode, block: str) -> int:
    """Return the bytes of the largest packet that a node sends to a block without a word."""
    observed = node.observed()
    route = observed.routes[block]
    devices = (*observed.tunnels.values(), *observed.wireguard.values())
    return min(mtu for mtu in (route.mtu, *(d.mtu for d in devices if d.device == route.device)) if mtu)


def test_packets_of_full_size_arrive_when_the_nodes_own_link_takes_less_and_then_more(
    living: LivingNodes, way: Encapsulation
) -> None:
    one, two, _ = living.nodes
    pair = living.pair(two, one, "9000/udp")
    full = 1500 - OVERHEAD[way] - IPV4_AND_UDP

    def passes(seconds: float) -> bool:
        return udp_passes(pair.one, pair.other, pair.other_address, 9000, size=full, seconds=seconds)

    def follows(mtu: int) -> bool:
        inner = mtu - OVERHEAD[way]
        end = pair.other.ip("link", "show", "dev", "eth0")
        return f" mtu {inner} " in end and mtu_towards(two, "10.1.0.0/16") == inner

    assert passes(PASSES_WITHIN)
    assert follows(1500)
    one.namespace.ip("link", "set", UNDERLAY, "mtu", "1400")
    assert not passes(BLOCKED_AFTER), "the control: without the agents it is lost"
    living.until(lambda: passes(0.1), "a packet of full size", RECOVERS)
    living.until(lambda: follows(1400), "the smaller MTU")
    one.namespace.ip("link", "set", UNDERLAY, "mtu", "1500")
    living.until(lambda: follows(1500), "the larger MTU", RECOVERS)
    living.settle()
    assert passes(PASSES_WITHIN)
    nothing_is_left_to_do(living)


def test_a_link_that_goes_down_and_comes_back_takes_no_route_along(
    living: LivingNodes, stream: Stream
) -> None:
    node = living.nodes[0]
    node.namespace.ip("link", "set", UNDERLAY, "down")
    began = time.monotonic()
    living.until(lambda: time.monotonic() - began > 1.0, "a second")
    assert not stream.flows(0.2)
    node.namespace.ip("link", "set", UNDERLAY, "up")
    living.until(lambda: stream.flows(0.05), "the flow", CONVERGES)
    living.settle()
    nothing_is_left_to_do(living)


def test_a_session_with_the_broker_follows_a_node_that_moves(namespaces: Make) -> None:
    broker_space, node_space = namespaces(), namespaces()
    veth(broker_space, "up0", node_space, "up0")
    address(broker_space, "up0", "192.0.2.1/24")
    address(node_space, "up0", f"{OLD}/24")
    keys = KeyPair.generate()
    with contextlib.ExitStack() as stack:
        with broker_space.entered():
            # A context's threads, and so its sockets, belong to the namespace where the first socket is made.
            context = stack.enter_context(zmq.Context())
            router = context.socket(zmq.ROUTER)
            stack.callback(router.close, 0)
            router.bind("tcp://192.0.2.1:2020")
        identity = Identity("node", "n1", KeyPair.generate().private, ("tcp://192.0.2.1:2020",), keys.public)
        stack.enter_context(node_space.entered())
        session = stack.enter_context(contextlib.closing(BrokerSession(identity)))
        sources: list[str] = []

        def until_up() -> None:
            began = time.monotonic()
            while not any(isinstance(one, Up) for one in session.receive()):
                assert time.monotonic() - began < CONVERGES, "no session"
                session.wait((), (), 0.02)
                if router.poll(0):
                    frames = router.recv_multipart(copy=False)
                    sources.append(frames[2].get("Peer-Address"))
                    route, header, body = (frame.bytes for frame in frames)
                    answer, _ = accept_first(keys, header, body, secrets.token_bytes(8))
                    router.send_multipart([route, *answer])

        until_up()
        session.check_address()
        assert session.connected, "the control: its address is there"
        # One of the same length would go with the first.
        node_space.ip("addr", "add", f"{NEW}/25", "dev", "up0")
        session.check_address()
        assert session.connected, "the control: another one that comes costs no session"
        node_space.ip("addr", "del", f"{OLD}/24", "dev", "up0")
        session.check_address()
        assert not session.connected
        assert any(isinstance(one, Down) for one in session.receive())
        until_up()
        assert sources == [OLD, NEW]
