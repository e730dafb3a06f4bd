"""WireGuard links on a kernel that has them: made, changed, mended, rotated under traffic, and taken out."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from firewall_rules import names
from netctl.model import WireguardEnd
from nodeagent.kernel import decode, netlink, wireguard
from nodeagent.kernel.channel import GENERIC, Channel
from nodeagent.kernel.wireguard_keys import WireguardKeys
from nodeagent.kernel_state import Route, WireguardLink, WireguardPeer
from nodeagent.ops import DeleteWireguard, SetRoute, SetSysctl, SetWireguard
from tests.support.kernels import KernelIn, OverlayNode
from tests.support.netns import PASSES_WITHIN, Capture, Namespace, address, ping_passes, veth, wait_for

pytestmark = [pytest.mark.root, pytest.mark.needs_kernel("wireguard")]

MTU = 1440
SETTLED_WITHIN = 20.0
"""Seconds until a handshake that was lost has been tried again."""

# linux/in.h
_IP_MTU_DISCOVER = 10
_IP_PMTUDISC_DO = 2

Make = Callable[[], Namespace]


class Node:
    """A node of WireGuard links alone."""

    def __init__(self, number: int, namespace: Namespace, directory: Path) -> None:
        self.namespace = namespace
        self.underlay = f"192.0.2.{number}"
        self.block = f"10.{number}.0.0/16"
        self.directory = directory
        self.overlay = OverlayNode(number, namespace, self.underlay, MTU, WireguardKeys(directory))
        self.peers: dict[str, WireguardPeer] = {}
        self.generations: tuple[int, ...] = (1,)

    @property
    def kernel(self) -> KernelIn:
        return self.overlay.kernel

    @property
    def links(self) -> dict[str, WireguardLink]:
        return dict(self.kernel.observe({}).wireguard)

    def end(self, generation: int) -> WireguardEnd:
        """Return what others need of our key of a generation."""
        return next(e for e in self.kernel.facts(self.underlay).wireguard if e.generation == generation)

    def link(self, generation: int) -> WireguardLink:
        """Return our link of a generation, as it should be."""
        return WireguardLink(
            names.wireguard_device(generation),
            generation,
            wireguard.listen_port(generation),
            MTU,
            frozenset(self.peers.values()),
        )

    def knows(self, other: Node, generation: int = 1) -> None:
        """Have a peer, by its key of a generation."""
        end = other.end(generation)
        self.peers[other.block] = WireguardPeer(other.block, end.key, other.underlay, end.port)

    def make(self, *generations: int) -> None:
        """Have exactly these links, and the routes along the first of them."""
        for generation in generations:
            link = self.link(generation)
            path = f"net/ipv4/conf/{link.device}/rp_filter"
            self.kernel.done(SetWireguard(link), SetSysctl(path, "2"))
        for block in self.peers:
            self.kernel.done(
                SetRoute(Route(block, names.wireguard_device(generations[0]), self.overlay.address))
            )
        for generation in set(self.generations) - set(generations):
            self.kernel.done(DeleteWireguard(names.wireguard_device(generation), generation))
        self.generations = generations


@pytest.fixture
def nodes(namespaces: Make, tmp_path: Path) -> Iterator[tuple[Node, Node]]:
    one, two = namespaces(), namespaces()
    veth(one, "up0", two, "up0")
    address(one, "up0", "192.0.2.1/24")
    address(two, "up0", "192.0.2.2/24")
    with contextlib.ExitStack() as stack:
        made = (Node(1, one, tmp_path / "one"), Node(2, two, tmp_path / "two"))
        for node in made:
            stack.callback(node.overlay.close)
        yield made


@pytest.fixture
def linked(nodes: tuple[Node, Node]) -> tuple[Node, Node]:
    """Return two nodes with a tunnel between them."""
    one, two = nodes
    one.knows(two)
    two.knows(one)
    one.make(1)
    two.make(1)
    return nodes


SOME = WireguardPeer("10.7.0.0/16", "ab" * 32, "192.0.2.7", 51820)


def handshakes(node: Node, device: str) -> dict[str, bytes]:
    """Return when each peer of a link last shook hands, by its key."""
    with node.namespace.entered(), Channel(protocol=GENERIC) as channel:
        (number,) = (wireguard.family(a.body) for a in channel.get(wireguard.get_family()) if a is not None)
        answers = channel.dump(wireguard.get_device(number, device))
    found = {}
    for answer in answers:
        peers, offset = decode.attributes(answer.body, 4).get(8, b""), 0
        while offset < len(peers):
            length = struct.unpack_from("=H", peers, offset)[0]
            peer = decode.attributes(peers[offset + 4 : offset + length])
            found[peer[1].hex()] = peer[6]  # WGPEER_A_LAST_HANDSHAKE_TIME
            offset += (length + 3) & ~3
    return found


# --- the link and its key ---------------------------------------------------------------------------


def test_the_first_facts_make_a_key_that_stays(nodes: tuple[Node, Node]) -> None:
    one, two = nodes
    facts = one.kernel.facts(one.underlay)
    assert "wireguard" in facts.encapsulations
    (end,) = facts.wireguard
    assert (end.generation, end.port) == (1, 51821)
    assert one.kernel.facts(one.underlay).wireguard == (end,)
    with contextlib.closing(KernelIn(one.namespace, WireguardKeys(one.directory))) as again:
        assert again.facts(one.underlay).wireguard == (end,)
    assert two.end(1).key != end.key
    # Without a place for keys the kernel's WireGuard is of no use.
    with contextlib.closing(KernelIn(one.namespace)) as without:
        assert "wireguard" not in without.facts(one.underlay).encapsulations
        assert without.facts(one.underlay).wireguard == ()
        assert without.apply([SetWireguard(one.link(1))], {}) != [""]


def test_a_link_comes_changes_and_goes(nodes: tuple[Node, Node]) -> None:
    kernel = nodes[0].kernel
    link = nodes[0].link(1)
    for changed in (
        link,
        attrs.evolve(link, peers=frozenset({SOME})),
        attrs.evolve(link, peers=frozenset({attrs.evolve(SOME, endpoint="192.0.2.8", port=51821)})),
        attrs.evolve(link, peers=frozenset({SOME, attrs.evolve(SOME, key="cd" * 32, block="10.8.0.0/16")})),
        attrs.evolve(link, peers=frozenset({attrs.evolve(SOME, block="10.8.0.0/16")}), mtu=1300),
        attrs.evolve(link, peers=frozenset({attrs.evolve(SOME, key="ef" * 32)})),
        link,
    ):
        kernel.done(SetWireguard(changed))
        assert nodes[0].links == {link.device: changed}
    assert kernel.observe({}).tunnels == {}
    for _ in range(2):
        kernel.done(DeleteWireguard(link.device, 1))
        assert nodes[0].links == {}
    assert not list(nodes[0].directory.iterdir())


def test_a_hundred_and_fifty_peers(nodes: tuple[Node, Node]) -> None:
    peers = frozenset(
        WireguardPeer(f"10.7.{number}.0/24", f"{number:02x}" * 32, f"198.51.100.{number}", 51820)
        for number in range(1, 151)
    )
    link = attrs.evolve(nodes[0].link(1), peers=peers)
    nodes[0].kernel.done(SetWireguard(link))
    assert nodes[0].links == {link.device: link}
    less = attrs.evolve(link, peers=frozenset(sorted(peers)[:10]))
    nodes[0].kernel.done(SetWireguard(less))
    assert nodes[0].links == {link.device: less}


def test_a_link_with_another_key_is_made_anew(nodes: tuple[Node, Node]) -> None:
    one = nodes[0]
    link = attrs.evolve(one.link(1), peers=frozenset({SOME}))
    one.kernel.done(SetWireguard(link))
    with one.namespace.entered(), Channel(protocol=GENERIC) as channel:
        (answer,) = channel.get(wireguard.get_family())
        assert answer is not None
        foreign = wireguard.set_device(
            wireguard.family(answer.body),
            link.device,
            wireguard.Seen(port=link.port, peers=link.peers),
            private_key=bytes(range(32)),
            port=link.port,
            peers=link.peers,
        )
        assert channel.send(foreign) == [None]
    assert one.links == {link.device: attrs.evolve(link, generation=0)}
    one.kernel.done(SetWireguard(link))
    assert one.links == {link.device: link}


@pytest.mark.parametrize("kind", ["dummy", "wireguard"])
def test_a_link_that_is_none_or_unfinished_is_replaced(nodes: tuple[Node, Node], kind: str) -> None:
    one = nodes[0]
    one.namespace.ip("link", "add", "nctw1", "type", kind)
    (seen,) = one.links.values()
    assert (seen.generation, seen.port, seen.peers) == (0, 0, frozenset())
    one.kernel.done(SetWireguard(one.link(1)))
    assert one.links == {"nctw1": one.link(1)}
    for damage in (("link", "set", "nctw1", "down"), ("address", "flush", "dev", "nctw1")):
        one.namespace.ip(*damage)
        assert one.links == {"nctw1": attrs.evolve(one.link(1), up=False)}
        one.kernel.done(SetWireguard(one.link(1)))
        assert one.links == {"nctw1": one.link(1)}


def test_a_generation_that_takes_a_links_turn_destroys_the_key_before_it(nodes: tuple[Node, Node]) -> None:
    one = nodes[0]
    first = one.end(1)
    one.kernel.done(SetWireguard(one.link(1)), SetWireguard(one.link(3)))
    (end,) = one.kernel.facts(one.underlay).wireguard
    assert (end.generation, end.port) == (3, first.port)
    assert end.key != first.key
    assert one.links == {"nctw1": one.link(3)}


def test_a_port_that_is_in_use_is_said(nodes: tuple[Node, Node]) -> None:
    one = nodes[0]
    with one.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("", 51821))
        (error,) = one.kernel.apply([SetWireguard(one.link(1))], {})
        assert "udp port 51821" in error
        assert one.links["nctw1"] != one.link(1)
    one.kernel.done(SetWireguard(one.link(1)))
    assert one.links == {"nctw1": one.link(1)}


# --- packets ----------------------------------------------------------------------------------------


def arrives(sender: Namespace, receiver: Namespace, target: str, payload: bytes) -> bool:
    """Tell whether one datagram, never fragmented, arrives as it is."""
    with (
        receiver.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        sender.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind((target, 9000))
        server.settimeout(PASSES_WITHIN)
        client.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
        client.sendto(payload.ljust(MTU - 28), (target, 9000))
        return server.recv(65535) == payload.ljust(MTU - 28)


def test_packets_pass_sealed_up_to_the_mtu(linked: tuple[Node, Node], namespaces: Make) -> None:
    one, two = linked
    web, database = namespaces(), namespaces()
    one.overlay.attach(web, 2)
    target = two.overlay.attach(database, 2)
    with Capture(two.namespace, "up0") as wire:
        assert ping_passes(web, target, seconds=SETTLED_WITHIN)
        assert arrives(web, database, target, b"plain text " * 127)
        sealed = wire.until(lambda frame: len(frame) > MTU and frame[36:38] == struct.pack(">H", 51821))
        # The control: the datagram went by here, and whole.
        assert sealed is not None
        assert len(sealed) == 14 + MTU + 60
    with Capture(two.namespace, "up0") as wire:
        assert arrives(web, database, target, b"plain text " * 127)
        assert wire.until(lambda frame: b"plain text" in frame, seconds=1.0) is None


def test_another_peer_comes_and_goes_and_nobody_shakes_hands_again(
    linked: tuple[Node, Node], namespaces: Make
) -> None:
    one, two = linked
    web, database = namespaces(), namespaces()
    one.overlay.attach(web, 2)
    target = two.overlay.attach(database, 2)
    assert ping_passes(web, target, seconds=SETTLED_WITHIN)
    key = two.end(1).key
    before = handshakes(one, "nctw1")[key]
    assert before != bytes(len(before))
    one.peers[SOME.block] = SOME
    one.make(1)
    assert handshakes(one, "nctw1")[key] == before
    del one.peers[SOME.block]
    one.make(1)
    assert ping_passes(web, target)
    assert handshakes(one, "nctw1")[key] == before


def test_a_new_peer_shakes_hands_without_being_sent_anything(linked: tuple[Node, Node]) -> None:
    one, two = linked
    key = two.end(1).key
    wait_for(lambda: any(handshakes(one, "nctw1")[key]), SETTLED_WITHIN)


class Datagrams:
    """Numbered datagrams from one container to another, a hundred a second, and which of them arrived."""

    def __init__(self, sender: Namespace, receiver: Namespace, target: str, port: int) -> None:
        self._out = sender.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._in = receiver.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._in.bind((target, port))
        self._in.settimeout(0.1)
        self._out.connect((target, port))
        self._ended = threading.Event()
        self.sent = 0
        self.arrived: set[int] = set()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._ended.wait(0.01):
            self._out.send(struct.pack("!I", self.sent))
            self.sent += 1

    def _receive(self) -> None:
        while not self._ended.is_set() or self.arrived_late():
            with contextlib.suppress(TimeoutError):
                self.arrived.add(struct.unpack("!I", self._in.recv(64))[0])

    def arrived_late(self) -> bool:
        """Tell whether something that was sent may still come."""
        return len(self.arrived) < self.sent and time.monotonic() < self._give_up

    _give_up = float("inf")

    def wait(self) -> None:
        """Wait until something that is sent from now on has arrived."""
        number = self.sent
        wait_for(lambda: max(self.arrived, default=-1) >= number, SETTLED_WITHIN, "what is sent now")

    def lost(self) -> set[int]:
        """End, and return what never arrived."""
        self._give_up = time.monotonic() + 5
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._in.close()
        self._out.close()
        return set(range(self.sent)) - self.arrived


@pytest.mark.parametrize("everywhere", ["0", "2"])
def test_a_key_is_rotated_and_nothing_is_lost(
    linked: tuple[Node, Node], namespaces: Make, everywhere: str
) -> None:
    one, two = linked
    for node in linked:
        # What a distribution sets for all links counts where it is more.
        node.namespace.sysctl("net/ipv4/conf/all/rp_filter", everywhere)
    web, database = namespaces(), namespaces()
    source = one.overlay.attach(web, 2)
    target = two.overlay.attach(database, 2)
    assert ping_passes(web, target, seconds=SETTLED_WITHIN)
    old = one.end(1)
    there, back = Datagrams(web, database, target, 9000), Datagrams(database, web, source, 9001)
    there.wait()
    back.wait()
    one.make(1, 2)  # the node has both keys, and sends by the old one
    there.wait()
    one.make(2, 1)  # it sends by the new one: that waits until the peer knows the key
    back.wait()
    two.knows(one, 2)
    two.make(1)
    there.wait()
    back.wait()
    one.make(2)
    there.wait()
    back.wait()
    assert there.lost() == set()
    assert back.lost() == set()
    assert set(one.links) == {"nctw0"}
    assert {peer.port for peer in two.links["nctw1"].peers} == {51820}
    assert one.end(2).key != old.key
    assert [path.name for path in one.directory.iterdir()] == ["2.key"]


def test_links_that_are_deleted_leave_nothing(linked: tuple[Node, Node]) -> None:
    one = linked[0]
    one.kernel.done(DeleteWireguard("nctw1", 1))
    links = one.kernel.observe({})
    assert links.wireguard == {}
    assert links.routes == {}
    assert not [path for path in links.sysctls if "nctw" in path]
    with one.namespace.entered(), Channel() as channel:
        assert channel.send([netlink.delete_link("nctw1")])[0] is not None
