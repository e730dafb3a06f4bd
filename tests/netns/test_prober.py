"""Probes over real devices: what is found of a way, how fast, and who is answered."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import attrs
import pytest

from firewall_rules import names
from firewall_rules.backends.nftables import NftablesHostBackend
from firewall_rules.policy import HostPolicy, TunnelPolicy
from netctl.model import OVERHEAD, Encapsulation, PathState, mac_of
from nodeagent.helper_client import HelperClient
from nodeagent.helper_messages import PathsChanged
from nodeagent.kernel.prober import PER_SECOND, Prober
from nodeagent.kernel.wireguard import listen_port
from nodeagent.kernel.wireguard_keys import WireguardKeys
from nodeagent.kernel_state import ProbeTarget, WireguardLink, WireguardPeer
from nodeagent.ops import DeleteTunnel, SetWireguard
from nodeagent.probe_packets import Probe, decode, encode
from tests.support.kernels import OverlayNode
from tests.support.netns import (
    BLOCKED_AFTER,
    PASSES_WITHIN,
    Namespace,
    address,
    ipv4,
    mac_bytes,
    readable,
    veth,
    wait_for,
)

pytestmark = pytest.mark.root

OUTER = 1500
FOUND_WITHIN = 4.0
"""Seconds in which a loss or a smaller MTU must be found, a busy machine included."""
ETH_P_IP = 0x0800
WAYS = {"vxlan": "udp dport 4789", "gre": "ip protocol gre", "wireguard": "udp dport 51821"}
"""Each way's outer packets, in nft's words."""

Make = Callable[[], Namespace]


class Probed(OverlayNode):
    """A node that probes."""

    def __init__(self, number: int, namespace: Namespace, directory: Path) -> None:
        self.keys = WireguardKeys(directory / str(number))
        super().__init__(number, namespace, f"192.0.2.{number}", OUTER - OVERHEAD["vxlan"], self.keys)
        self.found: dict[tuple[str, str], PathState] = {}
        with namespace.entered():
            self.prober = Prober()
            self.rules = NftablesHostBackend(directory)

    def close(self) -> None:
        self.prober.close()
        super().close()

    def guard(self, other: Probed, *ways: Encapsulation) -> None:
        """Put our host rules in place, as they are where the first of these ways is routed."""
        targets = [self.target(other, way) for way in ways]
        policy = HostPolicy(
            names.BRIDGE,
            self.address,
            f"10.{self.number}.0.0/16",
            "10.0.0.0/8",
            tunnels=frozenset(
                TunnelPolicy(
                    device=target.device,
                    block=f"10.{other.number}.0.0/16",
                    encapsulation=target.encapsulation,
                    outer=other.underlay,
                    vni=self.number * other.number if target.encapsulation == "vxlan" else 0,
                    mac=target.mac if target.encapsulation == "direct" else "",
                    routed=target.encapsulation == ways[0],
                )
                for target in targets
            ),
            wireguard_ports=frozenset((listen_port(1),)),
        )
        with self.namespace.entered():
            self.rules.install(policy)

    def wireguard(self, other: Probed) -> None:
        """Make the WireGuard link, with one peer."""
        (end,) = other.kernel.facts(other.underlay).wireguard
        peer = WireguardPeer(f"10.{other.number}.0.0/16", end.key, other.underlay, end.port)
        link = WireguardLink(
            names.wireguard_device(1), 1, listen_port(1), OUTER - OVERHEAD["wireguard"], frozenset((peer,))
        )
        self.kernel.done(SetWireguard(link))

    def target(self, other: Probed, way: Encapsulation, *, chosen: bool = True) -> ProbeTarget:
        block = f"10.{other.number}.0.0/16"
        devices = {"wireguard": names.wireguard_device(1), "direct": "up0"}
        return ProbeTarget(
            peer=f"n{other.number}",
            encapsulation=way,
            device=devices.get(way) or names.tunnel_device(block, way),
            source=self.address,
            destination=other.address,
            mac={"vxlan": mac_of(other.address), "direct": other.link_address}.get(way, ""),
            mtu=OUTER - OVERHEAD[way],
            chosen=chosen,
        )

    @property
    def link_address(self) -> str:
        """Of the underlay's link."""
        return self.namespace.ip("-br", "link", "show", "up0").split()[2]

    def until(self, wanted: Callable[[dict[str, PathState]], Any], seconds: float = PASSES_WITHIN) -> float:
        """Wait until what is found of the ways, by encapsulation, is as wanted; return how long it took."""
        began = time.monotonic()
        while not wanted({way: state for (_, way), state in self.found.items()}):
            left = seconds - (time.monotonic() - began)
            assert left > 0, f"not within {seconds} s; found: {self.found}"
            if select.select([self.prober], [], [], left)[0]:
                for path in self.prober.changes():
                    self.found[path.peer, path.encapsulation] = path
        return time.monotonic() - began


@pytest.fixture
def two(namespaces: Make, tmp_path: Path) -> Iterator[tuple[Probed, Probed]]:
    """Two nodes on one link."""
    one, other = namespaces(), namespaces()
    veth(one, "up0", other, "up0")
    address(one, "up0", "192.0.2.1/24")
    address(other, "up0", "192.0.2.2/24")
    with contextlib.ExitStack() as stack:
        nodes = Probed(1, one, tmp_path), Probed(2, other, tmp_path)
        for node in nodes:
            stack.callback(node.close)
        yield nodes


def join(nodes: tuple[Probed, Probed], *ways: Encapsulation) -> None:
    """Make these ways, and probe them; the first is routed."""
    for node, other in (nodes, nodes[::-1]):
        for way in ways:
            if way in ("gre", "vxlan"):
                node.mtu = OUTER - OVERHEAD[way]
                node.tunnel_to(other, way)
            elif way == "wireguard":
                node.wireguard(other)
        node.guard(other, *ways)
    for node, other in (nodes, nodes[::-1]):
        node.prober.aim([node.target(other, way, chosen=way == ways[0]) for way in ways])
    for node in nodes:
        node.until(lambda found: all(way in found and found[way].up for way in ways))


def drop(node: Probed, what: str) -> None:
    """Drop outer packets as they reach a node, before anything else sees them."""
    node.namespace.nft(f"""
        table netdev broken {{
            chain ingress {{
                type filter hook ingress device "up0" priority -500;
                {what} drop
            }}
        }}
    """)


def mend(node: Probed) -> None:
    node.namespace.nft("delete table netdev broken")


# --- what is found ----------------------------------------------------------------------------------

EACH = pytest.mark.parametrize(
    "way",
    [
        pytest.param("vxlan", marks=pytest.mark.needs_kernel("vxlan")),
        pytest.param("gre", marks=pytest.mark.needs_kernel("gre")),
        pytest.param("wireguard", marks=pytest.mark.needs_kernel("wireguard")),
        "direct",
    ],
)
TUNNELS = pytest.mark.parametrize(
    "way",
    [
        pytest.param("vxlan", marks=pytest.mark.needs_kernel("vxlan")),
        pytest.param("gre", marks=pytest.mark.needs_kernel("gre")),
        pytest.param("wireguard", marks=pytest.mark.needs_kernel("wireguard")),
    ],
)


@EACH
def test_way_is_found_up_with_all_it_takes(two: tuple[Probed, Probed], way: Encapsulation) -> None:
    join(two, way)
    for node, other in (two, two[::-1]):
        found = node.found[f"n{other.number}", way]
        assert (found.mtu, found.loss_permille) == (OUTER - OVERHEAD[way], 0)
        assert 0 < found.rtt_us < 1_000_000


@TUNNELS
def test_way_that_breaks_is_found_down_and_up_again(two: tuple[Probed, Probed], way: Encapsulation) -> None:
    join(two, way)
    drop(two[1], WAYS[way])
    assert two[0].until(lambda found: not found[way].up, 10.0) < FOUND_WITHIN
    assert two[1].until(lambda found: not found[way].up, 10.0) < FOUND_WITHIN
    mend(two[1])
    # WireGuard may have begun another handshake, which it tries again after five seconds.
    two[0].until(lambda found: found[way].up, 15.0)
    assert two[0].found["n2", way].mtu == OUTER - OVERHEAD[way]


@TUNNELS
def test_smaller_mtu_on_the_path_is_found(two: tuple[Probed, Probed], way: Encapsulation) -> None:
    join(two, way)
    # Nobody says so: only what is too long is lost. WireGuard pads to 16 bytes.
    drop(two[1], f"{WAYS[way]} ip length > 1400")
    least, most = 1400 - OVERHEAD[way] - (15 if way == "wireguard" else 0), 1400 - OVERHEAD[way]
    for node in two:
        assert node.until(lambda found: found[way].mtu < OUTER - OVERHEAD[way], 10.0) < FOUND_WITHIN
        node.until(lambda found: least <= found[way].mtu <= most)
        assert next(iter(node.found.values())).up
    mend(two[1])
    for node in two:
        node.until(lambda found: found[way].mtu == OUTER - OVERHEAD[way], 15.0)


@pytest.mark.needs_kernel("gre", "netem")
def test_loss_is_found(two: tuple[Probed, Probed]) -> None:
    join(two, "gre", "vxlan")
    one = two[0]
    one.namespace.run("tc", "qdisc", "add", "dev", "up0", "root", "netem", "loss", "40%")
    one.until(lambda found: found["gre"].loss_permille > 100, 15.0)
    one.namespace.run("tc", "qdisc", "change", "dev", "up0", "root", "netem", "loss", "100%")
    assert one.until(lambda found: not found["gre"].up and not found["vxlan"].up, 10.0) < 2 * FOUND_WITHIN


def test_one_way_that_breaks_leaves_the_others_up(two: tuple[Probed, Probed]) -> None:
    join(two, "vxlan", "direct")
    drop(two[1], WAYS["vxlan"])
    assert two[0].until(lambda found: not found["vxlan"].up, 10.0) < FOUND_WITHIN
    assert two[0].found["n2", "direct"].up


def test_device_may_go_and_come(two: tuple[Probed, Probed]) -> None:
    join(two, "vxlan")
    one, other = two
    device = names.tunnel_device("10.2.0.0/16", "vxlan")
    one.kernel.done(DeleteTunnel(device))
    one.until(lambda found: not found["vxlan"].up, 10.0)
    one.tunnel_to(other, "vxlan")
    one.until(lambda found: found["vxlan"].up, 10.0)
    one.namespace.ip("link", "set", device, "down")
    one.until(lambda found: not found["vxlan"].up, 10.0)
    one.namespace.ip("link", "set", device, "up")
    one.until(lambda found: found["vxlan"].up, 10.0)


def test_device_may_come_after_its_target(two: tuple[Probed, Probed]) -> None:
    one, other = two
    for node, peer in ((one, other), (other, one)):
        node.prober.aim([node.target(peer, "vxlan")])
    one.until(lambda found: "vxlan" in found and not found["vxlan"].up, 10.0)
    for node, peer in ((one, other), (other, one)):
        node.tunnel_to(peer, "vxlan")
    one.until(lambda found: found["vxlan"].up, 10.0)


def test_probes_need_no_rule_of_a_firewall(two: tuple[Probed, Probed]) -> None:
    for node in two:
        node.namespace.nft("""
            table inet closed {
                chain input { type filter hook input priority 0; udp dport 4789 accept; drop; }
                chain output { type filter hook output priority 0; udp dport 4789 accept; drop; }
                chain early { type filter hook prerouting priority -300; udp dport 4789 accept; drop; }
            }
        """)
    # Only the outer addresses must be found.
    for node, other in (two, two[::-1]):
        node.namespace.ip("neigh", "replace", other.underlay, "lladdr", other.link_address, "dev", "up0")
    join(two, "vxlan")


# --- who is answered --------------------------------------------------------------------------------


class Raw:
    """A packet socket of a test's on one device, which sends and gets what it likes."""

    def __init__(self, namespace: Namespace, device: str) -> None:
        self._device = device
        self._socket = namespace.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self._socket.bind((device, ETH_P_IP))

    def send(self, data: bytes, mac: str) -> None:
        self._socket.sendto(data, (self._device, ETH_P_IP, 0, 0, mac_bytes(mac)))

    def answer(self, nonce: bytes, seconds: float) -> Probe | None:
        """Return the reply with this nonce, if one comes."""
        end = time.monotonic() + seconds
        while readable(self._socket, max(0.0, end - time.monotonic())):
            probe = decode(self._socket.recv(65535))
            if probe is not None and (probe.kind, probe.nonce) == ("reply", nonce):
                return probe
        return None

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def raw(two: tuple[Probed, Probed]) -> Iterator[Raw]:
    """The first node's end of a vxlan way, of which only the second node's end probes."""
    one, other = two
    for node, peer in ((one, other), (other, one)):
        node.tunnel_to(peer, "vxlan")
    other.prober.aim([other.target(one, "vxlan")])
    made = Raw(one.namespace, names.tunnel_device("10.2.0.0/16", "vxlan"))
    yield made
    made.close()


REQUEST = Probe("10.1.0.1", "10.2.0.1", "request", b"12345678", 1000)
FAR = mac_of("10.2.0.1")


def answered(raw: Raw, data: bytes = encode(REQUEST), mac: str = FAR) -> bool:
    """Whether the second node answers, which it takes a moment to begin with."""
    raw.send(data, mac)
    return raw.answer(REQUEST.nonce, BLOCKED_AFTER) is not None


def test_request_is_answered_with_its_size(raw: Raw) -> None:
    wait_for(lambda: answered(raw))
    raw.send(encode(REQUEST), FAR)
    assert raw.answer(REQUEST.nonce, PASSES_WITHIN) == REQUEST.reply()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(attrs.evolve(REQUEST, source="10.3.0.1")), id="source"),
        pytest.param(encode(attrs.evolve(REQUEST, source="10.1.0.2")), id="container"),
        pytest.param(encode(attrs.evolve(REQUEST, destination="10.2.0.2")), id="destination"),
        pytest.param(encode(REQUEST)[:-1], id="cut"),
        pytest.param(encode(REQUEST)[:24] + b"\2" + encode(REQUEST)[25:], id="version"),
        pytest.param(ipv4("10.1.0.1", "10.2.0.1", 253, encode(REQUEST)[20:]), id="may-be-fragmented"),
    ],
)
def test_others_are_not_answered(raw: Raw, data: bytes) -> None:
    wait_for(lambda: answered(raw))
    assert not answered(raw, data)
    assert answered(raw)


def test_frame_for_everybody_is_not_answered(raw: Raw) -> None:
    wait_for(lambda: answered(raw))
    assert not answered(raw, mac="ff:ff:ff:ff:ff:ff")
    assert answered(raw)


def test_way_that_is_not_probed_any_more_is_not_answered(two: tuple[Probed, Probed], raw: Raw) -> None:
    wait_for(lambda: answered(raw))
    two[1].prober.aim(())
    wait_for(lambda: not answered(raw))


def test_flood_is_bounded_and_over_when_it_is_over(two: tuple[Probed, Probed], raw: Raw) -> None:
    wait_for(lambda: answered(raw))
    packet = encode(attrs.evolve(REQUEST, nonce=b"floods--"))
    for _ in range(20 * PER_SECOND):
        raw.send(packet, FAR)
    two[1].prober.changes()
    wait_for(lambda: answered(raw))


def test_privileged_child_probes_and_answers_whatever_it_is_busy_with(
    two: tuple[Probed, Probed], tmp_path: Path
) -> None:
    one, other = two
    for node, peer in ((one, other), (other, one)):
        node.tunnel_to(peer, "vxlan")
    with one.namespace.entered():
        directories = ("--state-dir", str(tmp_path / "state"), "--run-dir", str(tmp_path / "run"))
        helper = HelperClient.spawn(directories)
    try:
        helper.set_probes((one.target(other, "vxlan"),))
        other.prober.aim((other.target(one, "vxlan"),))
        other.until(lambda found: "vxlan" in found and found["vxlan"].up)
        told: list[object] = []

        def heard() -> bool:
            told.extend(event for event in helper.events() if isinstance(event, PathsChanged))
            return bool(told)

        wait_for(heard)
        (path,) = cast("PathsChanged", told[0]).paths
        assert (path.peer, path.up, path.mtu) == ("n2", True, OUTER - OVERHEAD["vxlan"])
        # Looking at the host all the time keeps its main thread busy.
        end = time.monotonic() + FOUND_WITHIN
        found: list[PathState] = []
        while time.monotonic() < end:
            helper.observe()
            found += other.prober.changes()
        assert all(path.up for path in found)
    finally:
        helper.close()
