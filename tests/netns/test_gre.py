"""GRE between two nodes, on a kernel that has it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

import attrs
import pytest

from nodeagent.kernel_state import Tunnel
from nodeagent.ops import DeleteTunnel, SetSysctl, SetTunnel
from tests.support.agents import permit
from tests.support.kernels import OverlayNode
from tests.support.netns import (
    BLOCKED_AFTER,
    PASSES_WITHIN,
    Capture,
    Namespace,
    address,
    ipv4,
    ping_passes,
    readable,
    udp,
    udp_passes,
    veth,
)
from tests.support.pairs import Stream, Two
from tests.support.whole_nodes import WholeNode

pytestmark = [pytest.mark.root, pytest.mark.needs_kernel("gre")]

PROTOCOL_GRE = 47
MTU = 1476
MEGABYTES = 10

Make = Callable[[], Namespace]


@pytest.fixture
def nodes(namespaces: Make) -> Iterator[tuple[OverlayNode, OverlayNode]]:
    one, two = namespaces(), namespaces()
    veth(one, "up0", two, "up0")
    address(one, "up0", "192.0.2.1/24")
    address(two, "up0", "192.0.2.2/24")
    with contextlib.ExitStack() as stack:
        made = (OverlayNode(1, one, "192.0.2.1", MTU), OverlayNode(2, two, "192.0.2.2", MTU))
        for node in made:
            stack.callback(node.close)
        yield made


def test_kernel_is_found_able(nodes: tuple[OverlayNode, OverlayNode]) -> None:
    def links() -> list[str]:
        # Names only: a bridge notices by itself that it has no carrier, whenever it gets to it.
        return sorted(line.split()[0] for line in nodes[0].namespace.ip("-br", "link").splitlines())

    before = links()
    assert nodes[0].kernel.facts("192.0.2.1").encapsulations == ("gre", "vxlan", "direct")
    assert links() == before


def test_tunnel_comes_changes_and_goes(nodes: tuple[OverlayNode, OverlayNode]) -> None:
    kernel = nodes[0].kernel
    tunnel = nodes[0].tunnel_to(nodes[1], "gre")
    for changed in (
        attrs.evolve(tunnel, mtu=1400),
        attrs.evolve(tunnel, remote="192.0.2.3"),
        Tunnel(tunnel.device, "vxlan", "192.0.2.1", "192.0.2.2", 1450, 7, 4789, "6e:63:0a:01:00:01"),
        tunnel,
    ):
        kernel.done(SetTunnel(changed))
        assert kernel.observe({}).tunnels == {changed.device: changed}
    kernel.done(DeleteTunnel(tunnel.device))
    assert kernel.observe({}).tunnels == {}


def test_packets_pass_as_protocol_47_up_to_the_mtu(
    nodes: tuple[OverlayNode, OverlayNode], namespaces: Make
) -> None:
    one, two = nodes
    web, database = namespaces(), namespaces()
    one.attach(web, 2)
    target = two.attach(database, 2)
    assert not ping_passes(web, target)  # the control: no tunnel yet
    one.tunnel_to(two, "gre")
    two.tunnel_to(one, "gre")
    with Capture(two.namespace, "up0") as wire:
        assert ping_passes(web, target, seconds=5)
        frame = wire.until(lambda frame: frame[12:14] == b"\x08\x00" and frame[23] == PROTOCOL_GRE)
    assert frame is not None
    assert frame[34:38] == b"\0\0\x08\0"  # RFC 2784: no checksum, no key; protocol type IPv4
    assert udp_passes(web, database, target, 9000, size=MTU - 28, seconds=5)
    assert udp_passes(web, database, target, 9000, size=4000, seconds=5)


def test_inner_source_of_a_foreign_block_is_dropped_by_strict_reverse_path(
    nodes: tuple[OverlayNode, OverlayNode], namespaces: Make
) -> None:
    one, two = nodes
    database = namespaces()
    target = two.attach(database, 2)
    one.tunnel_to(two, "gre")
    device = two.tunnel_to(one, "gre").device

    def arrives(source: str) -> bool:
        inner = ipv4(source, target, socket.IPPROTO_UDP, udp(5, 9000, b"hello"))
        with (
            database.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
            one.namespace.socket(socket.AF_INET, socket.SOCK_RAW, PROTOCOL_GRE) as sender,
        ):
            server.bind(("", 9000))
            sender.sendto(b"\0\0\x08\0" + inner, (two.underlay, 0))
            return readable(server, BLOCKED_AFTER)

    assert arrives("10.1.0.77")  # the control: the peer's own block
    assert not arrives("10.3.0.77")
    two.kernel.done(SetSysctl(f"net/ipv4/conf/{device}/rp_filter", "0"))
    assert arrives("10.3.0.77")  # so it was the filter


@pytest.fixture(params=[1500])
def whole(request: pytest.FixtureRequest, namespaces: Make) -> Iterator[tuple[WholeNode, WholeNode]]:
    """Yield n1 and n2 with all their rules, and an underlay of the MTU asked for between them."""
    one, two = namespaces(), namespaces()
    veth(one, "up0", two, "up0", request.param)
    address(one, "up0", "192.0.2.1/24")
    address(two, "up0", "192.0.2.2/24")
    with contextlib.ExitStack() as stack:
        made = (WholeNode(1, one, "gre", request.param), WholeNode(2, two, "gre", request.param))
        for node in made:
            stack.callback(node.close)
        made[0].knows(made[1].peer)
        made[1].knows(made[0].peer)
        yield made


@pytest.mark.parametrize("whole", [1280, 1400, 1500, 9000], indirect=True)
def test_ten_megabytes_arrive_through_both_firewalls(
    whole: tuple[WholeNode, WholeNode], namespaces: Make
) -> None:
    one, two = whole
    web, database = namespaces(), namespaces()
    source, target = one.add(2, web), two.add(2, database)
    pair = Two(web, source, database, target)
    for node in whole:
        node.want()
    assert not pair.tcp(5432)
    for node in whole:
        node.want(permit(source, target, "5432/tcp"))
    assert f"mtu {one.state.mtu} " in web.ip("link", "show", "dev", "eth0")
    payload = os.urandom(1 << 20)
    with (
        database.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
        web.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        listener.bind((target, 5432))
        listener.listen()
        client.settimeout(30)
        client.connect((target, 5432))
        served, _ = listener.accept()

        def send() -> None:
            for _ in range(MEGABYTES):
                client.sendall(payload)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        seen, count = hashlib.sha256(), 0
        with served:
            served.settimeout(30)
            while chunk := served.recv(1 << 20):
                seen.update(chunk)
                count += len(chunk)
        sender.join()
    assert count == MEGABYTES << 20
    assert seen.digest() == hashlib.sha256(payload * MEGABYTES).digest()
    assert not pair.tcp(5433)


def test_disconnect_cuts_a_live_flow(whole: tuple[WholeNode, WholeNode], namespaces: Make) -> None:
    one, two = whole
    web, database = namespaces(), namespaces()
    pair = Two(web, one.add(2, web), database, two.add(2, database))
    kept = permit(pair.one_address, pair.other_address, "1001/tcp")
    both = (permit(pair.one_address, pair.other_address, "1000/tcp"), kept)
    for node in whole:
        node.want(*both)
    cut, goes_on = Stream(pair, 1000), Stream(pair, 1001)
    try:
        assert cut.flows(PASSES_WITHIN)
        for node in whole:
            node.want(kept)
        assert not cut.flows(1.0)
        assert goes_on.flows(PASSES_WITHIN)
        for node in whole:
            node.want(*both)
        # The control: the flow was cut by rules alone, so it goes on when they allow it again.
        assert cut.flows(30.0)
    finally:
        cut.close()
        goes_on.close()


def test_a_source_out_of_another_nodes_block_is_dropped_with_all_rules(
    whole: tuple[WholeNode, WholeNode], namespaces: Make
) -> None:
    one, two = whole
    database = namespaces()
    target = two.add(2, database)
    # A third node, played by the first one's other address.
    one.namespace.ip("addr", "add", "192.0.2.3/24", "dev", "up0")
    two.knows(one.peer, attrs.evolve(one.peer, name="n3", block="10.3.0.0/16", underlay="192.0.2.3"))
    two.want(permit("10.1.0.77", target, "9000/udp"), permit("10.3.0.77", target, "9000/udp"))

    def arrives(outer: str, inner: str, seconds: float) -> bool:
        packet = ipv4(inner, target, socket.IPPROTO_UDP, udp(5, 9000, b"hello"))
        with (
            database.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
            one.namespace.socket(socket.AF_INET, socket.SOCK_RAW, PROTOCOL_GRE) as sender,
        ):
            server.bind((target, 9000))
            sender.bind((outer, 0))
            sender.sendto(b"\0\0\x08\0" + packet, (two.underlay, 0))
            return readable(server, seconds)

    for outer, own, foreign in (
        ("192.0.2.1", "10.1.0.77", "10.3.0.77"),
        ("192.0.2.3", "10.3.0.77", "10.1.0.77"),
    ):
        assert arrives(outer, own, PASSES_WITHIN), "the control: a node speaks for its own block"
        assert not arrives(outer, foreign, BLOCKED_AFTER)
