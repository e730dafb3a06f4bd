"""What a container with every right over its own network, and a node that was broken into, can send: nothing
that others would take for somebody else's.

Each packet that must not arrive has a control beside it: the honest one, from the same sender by the same
means, does.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import attrs
import pytest

from netctl.broker.overlay import vni
from netctl.lab import processes
from netctl.model import mac_of
from tests.support.lab import Lab
from tests.support.netns import (
    BLOCKED_AFTER,
    PASSES_WITHIN,
    Capture,
    Namespace,
    arp,
    ethernet,
    ipv4,
    ping6_passes,
    readable,
    send_frames,
    tcp_passes,
    udp,
    udp_passes,
    wait_for,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

OPEN = 5000
"""The one UDP port of every connection."""
OUTSIDE = "198.51.100.1"
BROADCAST, ZERO = "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"
GROUPS = [f"01:80:c2:00:00:{number:02x}" for number in range(16)]
"""Bridge group addresses (IEEE 802.1D, 7.12.6): the kernel treats frames to them in ways of their own."""
IPV4, ARP, IPV6, EXPERIMENTAL = 0x0800, 0x0806, 0x86DD, 0x88B5
UDP, GRE, IPIP = socket.IPPROTO_UDP, socket.IPPROTO_GRE, socket.IPPROTO_IPIP
VXLAN_PORT = 4789
NODES = {"n1": "172.31.1.1", "n2": "172.31.1.2", "n3": "172.31.1.3"}


@attrs.frozen
class Member:
    """One container and where it is."""

    name: str
    address: str
    namespace: Namespace

    @property
    def mac(self) -> str:
        return mac_of(self.address)


@attrs.frozen
class Cast:
    """`evil` and `near`, on n1, are connected, and each with `far`, on n2; `third`, on n3, with `near`.

    `alone` (n1) and `away` (n2) have no connection.
    """

    lab: Lab
    evil: Member
    near: Member
    alone: Member
    far: Member
    away: Member
    third: Member


PLACES = {"evil": "n1", "near": "n1", "alone": "n1", "far": "n2", "away": "n2", "third": "n3"}
CONNECTIONS = [("evil", "near"), ("evil", "far"), ("far", "evil"), ("far", "near"), ("third", "near")]


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    """Yield a lab with everybody in it; VXLAN, since its outer packets can be made by hand everywhere."""
    lab = Lab(tmp_path_factory.mktemp("lab"), "--nodes", "3", "--encapsulation", "vxlan", "--outside")
    lab.up()
    for name, node in PLACES.items():
        lab.run(name, "--node", node)
    for one, other in CONNECTIONS:
        lab.netctl("connect", one, other, "--port", f"{OPEN}/udp")
    rows = lab.containers()
    yield Cast(lab, *(Member(name, str(rows[name]["address"]), lab.namespace(name)) for name in PLACES))
    lab.down()


@contextlib.contextmanager
def halted(lab: Lab, *nodes: str) -> Iterator[None]:
    """Have nobody mend anything on these nodes for a while."""
    agents = [lab.pid(node) for node in nodes]
    everyone = [pid for agent in agents for pid in (agent, *processes.children(agent))]
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in everyone:
            os.kill(pid, signal.SIGCONT)
        for node in nodes:
            wait_for(lambda node=node: _whole(lab.host(node)), 30, f"{node} to be mended")


def _whole(node: Namespace) -> bool:
    tables = node.run("nft", "list", "tables")
    return "table inet netctl" in tables and "table bridge netctl" in tables


Send = Callable[[bytes], None]
"""Sends something that holds the mark it is given."""
Frame = Callable[[bytes], bytes]
"""Returns a frame that holds the mark it is given."""


def arriving(at: Namespace, link: str, sends: Mapping[str, Send], seconds: float) -> set[str]:
    """Return the names of those `sends` of which something is seen on a link; wait `seconds` for the next."""
    marks = {os.urandom(16): name for name in sends}
    seen: set[str] = set()

    def note(frame: bytes) -> bool:
        seen.update(name for mark, name in marks.items() if mark in frame)
        return len(seen) == len(marks)

    with Capture(at, link) as capture:
        for mark, name in marks.items():
            sends[name](mark)
        capture.until(note, seconds)
    return seen


def arrives(at: Namespace, link: str, send: Send) -> bool:
    """Whether what is sent arrives, as it should."""
    return bool(arriving(at, link, {"it": send}, PASSES_WITHIN))


def raw(sender: Member, frame: Frame) -> Send:
    """Return a sender of a raw frame, put on the sender's link past its own firewall."""
    return lambda mark: send_frames(sender.namespace, "eth0", [frame(mark)])


def reaching(sender: Member, receiver: Member, frames: Mapping[str, Frame]) -> set[str]:
    """Return the names of those raw frames that are seen on the receiver's link, though none should be."""
    sends = {name: raw(sender, frame) for name, frame in frames.items()}
    return arriving(receiver.namespace, "eth0", sends, BLOCKED_AFTER)


def reaches(sender: Member, receiver: Member, frame: Frame) -> bool:
    """Whether a raw frame is seen on the receiver's link, as it should be."""
    return arrives(receiver.namespace, "eth0", raw(sender, frame))


def datagram(source: str, target: str, mark: bytes) -> bytes:
    return ipv4(source, target, UDP, udp(OPEN, OPEN, mark))


# --- from inside a container --------------------------------------------------------------------------


def _tagged(tag: int, number: int, frame: bytes) -> bytes:
    return frame[:12] + struct.pack("!HH", tag, number) + frame[12:]


def _forgeries(cast: Cast) -> dict[str, Frame]:
    """Return frames that `evil` must not be able to send, not even to `near`."""
    evil, near, alone = cast.evil, cast.near, cast.alone
    own = evil.address

    def honest(mark: bytes) -> bytes:
        return ethernet(near.mac, evil.mac, IPV4, datagram(own, near.address, mark))

    return {
        "another's address": lambda m: ethernet(
            near.mac, evil.mac, IPV4, datagram(cast.far.address, near.address, m)
        ),
        "the gateway's address": lambda m: ethernet(
            near.mac, evil.mac, IPV4, datagram("10.1.0.1", near.address, m)
        ),
        "an address of the internet": lambda m: ethernet(
            near.mac, evil.mac, IPV4, datagram(OUTSIDE, near.address, m)
        ),
        "another's Ethernet address": lambda m: ethernet(
            near.mac, alone.mac, IPV4, datagram(own, near.address, m)
        ),
        "another's addresses, both": lambda m: ethernet(
            near.mac, cast.far.mac, IPV4, datagram(cast.far.address, near.address, m)
        ),
        "the bridge's Ethernet address": lambda m: ethernet(
            near.mac, mac_of("10.1.0.1"), IPV4, datagram(own, near.address, m)
        ),
        "a VLAN": lambda m: _tagged(0x8100, 1, honest(m)),
        "a priority alone": lambda m: _tagged(0x8100, 0, honest(m)),
        "a provider's VLAN": lambda m: _tagged(0x88A8, 1, honest(m)),
        "a VLAN in a VLAN": lambda m: _tagged(0x88A8, 0, _tagged(0x8100, 0, honest(m))),
        "IPv6": lambda m: ethernet(near.mac, evil.mac, IPV6, b"\x60" + bytes(39) + m),
        "an unknown type": lambda m: ethernet(near.mac, evil.mac, EXPERIMENTAL, m),
        "a length for a type": lambda m: ethernet(near.mac, evil.mac, 46, b"\x42\x42\x03" + m + bytes(27)),
    }


def test_a_forged_frame_does_not_reach_even_a_peer(cast: Cast) -> None:
    evil, near = cast.evil, cast.near
    frames = {
        f"{name} to {target}": to(target, frame)
        for name, frame in _forgeries(cast).items()
        for target in (near.mac, BROADCAST, *GROUPS)
    }
    assert reaching(evil, near, frames) == set()
    own = evil.address
    assert reaches(evil, near, lambda m: ethernet(near.mac, evil.mac, IPV4, datagram(own, near.address, m)))


def to(target: str, frame: Frame) -> Frame:
    """Return `frame` addressed to another Ethernet address."""
    return lambda mark: bytes.fromhex(target.replace(":", "")) + frame(mark)[6:]


def _packets(sender: Member, target: str, macs: Iterable[str], sources: Iterable[str]) -> dict[str, Frame]:
    """Return frames that are the sender's, but for the address inside."""

    def packet(source: str) -> Frame:
        return lambda m: ethernet(BROADCAST, sender.mac, IPV4, datagram(source, target, m))

    return {f"{source} to {mac}": to(mac, packet(source)) for source in sources for mac in macs}


@pytest.mark.parametrize("target", ["alone", "away"])
def test_raw_frames_do_not_reach_who_is_not_connected(cast: Cast, target: str) -> None:
    evil, gateway = cast.evil, mac_of("10.1.0.1")
    victim: Member = getattr(cast, target)
    friend = cast.near if target == "alone" else cast.far
    macs = (victim.mac, gateway, BROADCAST, *GROUPS)
    frames = _packets(evil, victim.address, macs, (evil.address, friend.address, OUTSIDE))
    assert reaching(evil, victim, frames) == set()
    way = friend.mac if target == "alone" else gateway
    body = partial(datagram, evil.address, friend.address)
    assert reaches(evil, friend, lambda m: ethernet(way, evil.mac, IPV4, body(m)))


def test_a_forged_source_does_not_leave_the_node(cast: Cast) -> None:
    evil, far, gateway = cast.evil, cast.far, mac_of("10.1.0.1")
    sources = (cast.near.address, cast.third.address, OUTSIDE, NODES["n1"], "10.1.0.1")
    assert reaching(evil, far, _packets(evil, far.address, (gateway, *GROUPS), sources)) == set()
    body = partial(datagram, evil.address, far.address)
    assert reaches(evil, far, lambda m: ethernet(gateway, evil.mac, IPV4, body(m)))


def test_arp_poisons_nobody(cast: Cast) -> None:
    evil = cast.evil
    node = cast.lab.host("n1")
    victims = ((cast.near.namespace, "eth0", cast.near), (cast.alone.namespace, "eth0", cast.alone))
    for namespace, link, victim in victims:
        # As gullible as a kernel can be made.
        namespace.sysctl(f"net/ipv4/conf/{link}/arp_accept", "1")
        namespace.ip("neigh", "flush", "dev", link)
        for claimed in ("10.1.0.1", cast.alone.address, cast.near.address, "10.1.0.99"):
            if claimed == victim.address:
                continue
            for operation in (1, 2):
                for mac in (victim.mac, BROADCAST, *GROUPS):
                    body = arp(operation, evil.mac, claimed, victim.mac, victim.address)
                    honest_sender = ethernet(mac, evil.mac, ARP, body)
                    gratuitous = ethernet(
                        mac, evil.mac, ARP, arp(operation, evil.mac, claimed, ZERO, claimed)
                    )
                    send_frames(evil.namespace, "eth0", [honest_sender, gratuitous])
        assert evil.mac not in namespace.ip("neigh")
    # The control: what is true is believed, where there is a connection.
    own = arp(1, evil.mac, evil.address, ZERO, cast.near.address)
    for sent in (cast.near, cast.alone):
        send_frames(evil.namespace, "eth0", [ethernet(BROADCAST, evil.mac, ARP, own)])
        assert evil.mac not in cast.alone.namespace.ip("neigh"), sent.name
    wait_for(lambda: evil.mac in cast.near.namespace.ip("neigh"), what="the honest request")
    # Nor does the node believe anything but what is bound.
    before = node.ip("neigh", "show", cast.near.address)
    for operation in (1, 2):
        for mac in (mac_of("10.1.0.1"), BROADCAST, *GROUPS):
            body = arp(operation, evil.mac, cast.near.address, mac_of("10.1.0.1"), "10.1.0.1")
            send_frames(evil.namespace, "eth0", [ethernet(mac, evil.mac, ARP, body)])
    assert evil.mac not in node.ip("neigh", "show", cast.near.address), before


def test_the_bridge_keeps_sending_to_whom_it_should(cast: Cast) -> None:
    evil, near, far = cast.evil, cast.near, cast.far
    for mac in (BROADCAST, mac_of("10.1.0.1"), *GROUPS):
        body = datagram(evil.address, OUTSIDE, b"learn me")
        send_frames(evil.namespace, "eth0", [ethernet(mac, near.mac, IPV4, body)])
    mark = os.urandom(16)
    with Capture(evil.namespace, "eth0") as stolen, Capture(near.namespace, "eth0") as received:
        with far.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(mark, (near.address, OPEN))
        assert received.until(lambda frame: mark in frame) is not None
        assert stolen.until(lambda frame: mark in frame, BLOCKED_AFTER) is None


def test_nobody_sees_what_is_for_another(cast: Cast) -> None:
    near, far, node = cast.near, cast.far, cast.lab.host("n1")
    # A receiver that never speaks is forgotten by a bridge that learns, which then sends to everyone.
    node.ip("link", "set", "netctl0", "type", "bridge", "fdb_flush")
    mark = os.urandom(16)
    with Capture(cast.alone.namespace, "eth0") as overheard, Capture(near.namespace, "eth0") as received:
        with far.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(mark, (near.address, OPEN))
        assert received.until(lambda frame: mark in frame) is not None
        assert overheard.until(lambda frame: mark in frame, BLOCKED_AFTER) is None


def test_group_addresses_lead_nowhere_on_the_node(cast: Cast) -> None:
    evil, node = cast.evil, cast.lab.host("n1")
    with node.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 7777))
        for group in (*GROUPS, BROADCAST, mac_of("10.1.0.1")):
            for source in (evil.address, cast.near.address, OUTSIDE, NODES["n2"]):
                for target in (NODES["n1"], "10.1.0.1", "255.255.255.255", "224.0.0.1"):
                    body = ipv4(source, target, UDP, udp(1, 7777, b"x"))
                    send_frames(evil.namespace, "eth0", [ethernet(group, evil.mac, IPV4, body)])
        assert not readable(sock, BLOCKED_AFTER)
        with cast.lab.host("n2").socket(socket.AF_INET, socket.SOCK_DGRAM) as honest:
            honest.sendto(b"x", (NODES["n1"], 7777))
        assert readable(sock, PASSES_WITHIN)


def test_a_container_cannot_speak_as_a_node(cast: Cast) -> None:
    # A VXLAN packet that the node took for a peer node's would carry any words of that node's containers.
    evil, near, far, node = cast.evil, cast.near, cast.far, cast.lab.host("n1")

    def outer(mark: bytes, source: str = NODES["n2"], target: str = NODES["n1"]) -> bytes:
        inner = ethernet(
            mac_of("10.1.0.1"), mac_of("10.2.0.1"), IPV4, datagram(far.address, near.address, mark)
        )
        return ipv4(source, target, UDP, udp(40000, VXLAN_PORT, _vxlan(vni(1, 2)) + inner))

    def packet(source: str) -> Frame:
        return lambda m: ethernet(BROADCAST, evil.mac, IPV4, outer(m, source))

    frames = {
        f"{source} to {group}": to(group, packet(source))
        for source in (NODES["n2"], evil.address)
        for group in (mac_of("10.1.0.1"), BROADCAST, *GROUPS)
    }
    assert reaching(evil, near, frames) == set()
    # The control: from the node whose address it has, the very same packet arrives.
    there, here = link_mac(cast.lab.host("n2"), "eth0"), link_mac(node, "eth0")
    assert arrives(
        near.namespace,
        "eth0",
        lambda mark: send_frames(cast.lab.host("n2"), "eth0", [ethernet(here, there, IPV4, outer(mark))]),
    )


def hears(at: Namespace, protocol: int, send: Send, seconds: float) -> bool:
    """Whether a host takes in what `send` sends: past its firewall, where its own programs hear it."""
    mark = os.urandom(16)
    with at.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as sock:
        send(mark)
        while readable(sock, seconds):
            if mark in sock.recv(65536):
                return True
    return False


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_outer_packets_do_not_reach_a_nodes_underlay(cast: Cast, node: str) -> None:
    evil, gateway = cast.evil, mac_of("10.1.0.1")
    payloads = {
        GRE: [struct.pack("!HH", 0, IPV4)],
        UDP: [struct.pack("!HHHH", 1, port, 32, 0) for port in (VXLAN_PORT, 2020, 53)],
        IPIP: [b""],
    }

    def packet(protocol: int, payload: bytes, target: str) -> Send:
        def frame(mark: bytes) -> bytes:
            return ethernet(gateway, evil.mac, IPV4, ipv4(evil.address, target, protocol, payload + mark))

        return raw(evil, frame)

    for protocol, several in payloads.items():
        for payload in several:
            sent = packet(protocol, payload, NODES[node])
            assert not hears(cast.lab.host(node), protocol, sent, BLOCKED_AFTER), (protocol, payload)
    # The control: to a host of the internet the same goes out.
    sent = packet(UDP, struct.pack("!HHHH", 1, VXLAN_PORT, 24, 0), OUTSIDE)
    assert hears(cast.lab.host("outside"), UDP, sent, PASSES_WITHIN)


def _vxlan(number: int) -> bytes:
    """Return a VXLAN header (RFC 7348)."""
    return struct.pack("!II", 0x08000000, number << 8)


def link_mac(namespace: Namespace, link: str) -> str:
    with namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((link, 0))
        return bytes(sock.getsockname()[4]).hex(":")


def test_ipv6_goes_nowhere(cast: Cast) -> None:
    evil, near, node = cast.evil, cast.near, cast.lab.host("n1")
    with halted(cast.lab, "n1"):
        for member in (evil, near):
            member.namespace.run("nft", "delete", "table", "inet", "netctl")
        assert not ping6_passes(evil.namespace, link_local(near.namespace, "eth0"), "eth0")
        port = next(word for word in node.ip("-o", "link").split() if word.startswith("ncp")).partition("@")[
            0
        ]
        # The node's end of the link has no such address by itself.
        assert "inet6" not in node.ip("-6", "-o", "addr", "show", "dev", port)
        node.ip("addr", "add", "fe80::a/64", "dev", port, "nodad")
        assert not ping6_passes(evil.namespace, "fe80::a", "eth0")
        node.ip("addr", "del", "fe80::a/64", "dev", port)
        for number, member in enumerate((evil, near), start=1):
            member.namespace.ip("addr", "add", f"fd00::{number}/64", "dev", "eth0", "nodad")
        assert not ping6_passes(evil.namespace, "fd00::2", "eth0")
        # The control: with their firewalls away these two pass everything that is not forged or IPv6.
        assert udp_passes(evil.namespace, near.namespace, near.address, OPEN + 1, seconds=PASSES_WITHIN)
        for number, member in enumerate((evil, near), start=1):
            member.namespace.ip("addr", "del", f"fd00::{number}/64", "dev", "eth0")
    wait_for(lambda: _closed(evil, near), 30, "layer 1 to be mended")


def _closed(*members: Member) -> bool:
    return all("netctl" in member.namespace.run("nft", "list", "tables") for member in members)


def link_local(namespace: Namespace, link: str) -> str:
    words = namespace.ip("-6", "-o", "addr", "show", "dev", link, "scope", "link").split()
    return words[words.index("inet6") + 1].partition("/")[0]


def test_layer_two_holds_where_layer_one_was_flushed(cast: Cast) -> None:
    evil, near, alone, far, away = cast.evil, cast.near, cast.alone, cast.far, cast.away
    with halted(cast.lab, "n1", "n2"):
        for member in (evil, near, alone, far, away):
            member.namespace.run("nft", "delete", "table", "inet", "netctl")
        for victim in (alone, away):
            assert not udp_passes(evil.namespace, victim.namespace, victim.address, OPEN)
            assert not tcp_passes(evil.namespace, victim.namespace, victim.address, 22)
            assert not udp_passes(victim.namespace, evil.namespace, evil.address, OPEN)
        # The control, and what layer 2 is known to leave open: a pair, ports not looked at.
        for friend in (near, far):
            assert tcp_passes(evil.namespace, friend.namespace, friend.address, 22, seconds=PASSES_WITHIN)
    wait_for(lambda: _closed(evil, near, alone, far, away), 30, "layer 1 to be mended")
    wait_for(
        lambda: not tcp_passes(evil.namespace, near.namespace, near.address, 22), 30, "the port to be closed"
    )


def test_addresses_and_routes_of_its_own_lead_nowhere(cast: Cast) -> None:
    evil, near, alone, far = cast.evil, cast.near, cast.alone, cast.far
    with halted(cast.lab, "n1"):
        evil.namespace.run("nft", "delete", "table", "inet", "netctl")
        evil.namespace.ip("addr", "add", f"{alone.address}/32", "dev", "eth0")
        evil.namespace.ip("addr", "add", "10.1.0.99/32", "dev", "eth0")
        for source in (alone.address, "10.1.0.99"):
            for victim in (near, far):

                def send(mark: bytes, source: str = source, victim: Member = victim) -> None:
                    with evil.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                        sock.bind((source, 0))
                        sock.sendto(mark, (victim.address, OPEN))

                assert not arriving(victim.namespace, "eth0", {"it": send}, BLOCKED_AFTER), (
                    source,
                    victim.name,
                )
        # Whoever it names as its router, the node decides.
        evil.namespace.ip("route", "add", "172.31.0.0/16", "dev", "eth0")
        evil.namespace.ip("route", "add", "192.0.2.0/24", "via", near.address)
        assert not tcp_passes(evil.namespace, cast.lab.host("n1"), NODES["n1"], 8080)
        assert not tcp_passes(evil.namespace, cast.lab.host("n2"), NODES["n2"], 8080)
        assert udp_passes(evil.namespace, near.namespace, near.address, OPEN, seconds=PASSES_WITHIN)
        for address in (alone.address, "10.1.0.99"):
            evil.namespace.ip("addr", "del", f"{address}/32", "dev", "eth0")
        for network in ("172.31.0.0/16", "192.0.2.0/24"):
            evil.namespace.ip("route", "del", network)
    wait_for(lambda: _closed(evil), 30, "layer 1 to be mended")


_SENDER = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try:
        sock.sendto(sys.argv[1].encode(), (sys.argv[2], int(sys.argv[3])))
    except OSError:
        pass
    time.sleep(0.002)
"""


def test_nothing_leaves_before_the_firewall_stands(cast: Cast) -> None:
    lab, node, mark = cast.lab, cast.lab.host("n1"), secrets.token_hex(16)
    # Unbound, it sees every frame on every link of the node, the new container's port from its first moment.
    with node.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)) as tap:
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        seen = Seen(tap, mark.encode())
        command = (sys.executable, "-c", _SENDER, mark, cast.near.address, str(OPEN))
        lab.run("eager", "--node", "n1", command=command)
        try:
            assert not seen.within(BLOCKED_AFTER)
            lab.netctl("connect", "eager", "near", "--port", f"{OPEN}/udp")
            assert seen.within(PASSES_WITHIN)
            lab.netctl("disconnect", "eager", "near")
            seen.forget()
            assert not seen.within(BLOCKED_AFTER)
            # Nor when it is started again.
            lab.netctl("stop", "eager")
            lab.netctl("start", "eager")
            assert not seen.within(BLOCKED_AFTER)
        finally:
            lab.netctl("rm", "--force", "eager")


class Seen:
    """Whether a mark was in anything that a socket took in."""

    def __init__(self, sock: socket.socket, mark: bytes) -> None:
        self._socket = sock
        self._mark = mark

    def within(self, seconds: float) -> bool:
        """Look at all that came until now, and for so many seconds more."""
        deadline = time.monotonic() + seconds
        while readable(self._socket, max(0.0, deadline - time.monotonic())):
            if self._mark in self._socket.recv(65536):
                return True
        return False

    def forget(self) -> None:
        """Take what came until now as not of interest."""
        while readable(self._socket, 0):
            self._socket.recv(65536)


def test_a_link_by_the_name_of_loopback_opens_nothing(cast: Cast) -> None:
    lab, near = cast.lab, cast.near
    lab.run("renamer", "--node", "n1")
    try:
        lab.netctl("connect", "renamer", "near", "--port", f"{OPEN}/udp")
        inside, address = lab.namespace("renamer"), lab.address("renamer")
        with halted(lab, "n1"):
            inside.ip("link", "set", "lo", "down")
            inside.ip("link", "set", "lo", "name", "was-lo")
            inside.ip("link", "set", "eth0", "down")
            inside.ip("link", "set", "eth0", "name", "lo")
            inside.ip("link", "set", "lo", "up")
            inside.ip("route", "add", "default", "via", "10.1.0.1")
            assert not tcp_passes(inside, near.namespace, near.address, 22)
            assert not udp_passes(near.namespace, inside, address, OPEN)
            assert udp_passes(inside, near.namespace, near.address, OPEN, seconds=PASSES_WITHIN)
    finally:
        lab.netctl("rm", "--force", "renamer")


# --- from a node that was broken into ----------------------------------------------------------------


@pytest.fixture
def broken(cast: Cast) -> Iterator[Namespace]:
    """Yield n2 with nothing of its own in the way of what it sends, and nobody there to mend it."""
    node = cast.lab.host("n2")
    with halted(cast.lab, "n2"):
        node.nft("delete table inet netctl\ndelete table bridge netctl\n")
        yield node


def through_tunnel(node: Namespace, source: str, target: str) -> Send:
    """Return a sender of packets with any inner source, through n2's own tunnel to n1."""

    def send(mark: bytes) -> None:
        body = datagram(source, target, mark)
        send_frames(node, "nctv0a010000", [ethernet(mac_of("10.1.0.1"), mac_of("10.2.0.1"), IPV4, body)])

    return send


def test_a_tunnel_brings_only_its_own_block(cast: Cast, broken: Namespace) -> None:
    near = cast.near
    for source in (cast.third.address, cast.evil.address, "10.1.0.1", OUTSIDE, NODES["n2"], "127.0.0.1"):
        send = through_tunnel(broken, source, near.address)
        assert not arriving(near.namespace, "eth0", {"it": send}, BLOCKED_AFTER), source
    # Nor to whom its own containers have no connection.
    send = through_tunnel(broken, cast.far.address, cast.alone.address)
    assert not arriving(cast.alone.namespace, "eth0", {"it": send}, BLOCKED_AFTER)
    assert arrives(near.namespace, "eth0", through_tunnel(broken, cast.far.address, near.address))


def test_a_tunnel_reaches_nothing_of_the_node_itself(cast: Cast, broken: Namespace) -> None:
    node, far = cast.lab.host("n1"), cast.far
    with node.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", OPEN))
        for target in ("10.1.0.1", NODES["n1"], "255.255.255.255", "224.0.0.1"):
            for source in (far.address, "10.2.0.1", NODES["n2"]):
                through_tunnel(broken, source, target)(b"x")
        assert not readable(sock, BLOCKED_AFTER)
        with broken.socket(socket.AF_INET, socket.SOCK_DGRAM) as honest:
            honest.sendto(b"x", (NODES["n1"], OPEN))
        assert readable(sock, PASSES_WITHIN)
    assert arrives(cast.near.namespace, "eth0", through_tunnel(broken, far.address, cast.near.address))


def test_a_tunnel_is_no_way_out(cast: Cast, broken: Namespace) -> None:
    far, outside = cast.far, cast.lab.host("outside")
    for source in (far.address, "10.2.0.1", cast.near.address):
        send = through_tunnel(broken, source, OUTSIDE)
        assert not arriving(outside, "eth0", {"it": send}, BLOCKED_AFTER), source
        send = through_tunnel(broken, source, NODES["n3"])
        assert not arriving(cast.lab.host("n3"), "eth0", {"it": send}, BLOCKED_AFTER), source
        # Into the next tunnel neither.
        send = through_tunnel(broken, source, cast.third.address)
        assert not arriving(cast.third.namespace, "eth0", {"it": send}, BLOCKED_AFTER), source
    # The controls: the sender's packets arrive where they may, and n1 does take its own containers out.
    assert arrives(cast.near.namespace, "eth0", through_tunnel(broken, far.address, cast.near.address))
    assert udp_passes(cast.near.namespace, outside, OUTSIDE, 123, seconds=PASSES_WITHIN)


def test_outer_packets_count_by_their_source_and_network(cast: Cast, broken: Namespace) -> None:
    near, far, third = cast.near, cast.far, cast.third
    own, theirs = link_mac(broken, "eth0"), link_mac(cast.lab.host("n1"), "eth0")

    def outer(source: str, network: int, inner: str) -> Send:
        def send(mark: bytes) -> None:
            frame = ethernet(
                mac_of("10.1.0.1"), mac_of("10.2.0.1"), IPV4, datagram(inner, near.address, mark)
            )
            body = ipv4(source, NODES["n1"], UDP, udp(40000, VXLAN_PORT, _vxlan(network) + frame))
            send_frames(broken, "eth0", [ethernet(theirs, own, IPV4, body)])

        return send

    for source, network, inner in (
        (NODES["n2"], vni(1, 3), third.address),
        (NODES["n2"], vni(1, 3), far.address),
        (NODES["n2"], vni(2, 3), far.address),
        (NODES["n2"], 0, far.address),
        ("172.31.1.9", vni(1, 2), far.address),
        (NODES["n3"], vni(1, 2), far.address),
        (NODES["n1"], vni(1, 2), far.address),
    ):
        sent = outer(source, network, inner)
        assert not arriving(near.namespace, "eth0", {"it": sent}, BLOCKED_AFTER), (source, network, inner)
    assert arrives(near.namespace, "eth0", outer(NODES["n2"], vni(1, 2), far.address))
