"""GRE between two nodes, on a kernel that has it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import attrs
import pytest

from nodeagent.kernel_state import Tunnel
from nodeagent.ops import DeleteTunnel, SetSysctl, SetTunnel
from tests.support.kernels import OverlayNode
from tests.support.netns import (
    BLOCKED_AFTER,
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

pytestmark = [pytest.mark.root, pytest.mark.needs_kernel("gre")]

PROTOCOL_GRE = 47
MTU = 1476

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
