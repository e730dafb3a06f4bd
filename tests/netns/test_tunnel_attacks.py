"""What a node that was broken into, or a stranger on the underlay, gets through the tunnels of another node.

Each attack is tried with every encapsulation, beside a control that passes. docs/security.md has the table.
Where an attack arrives without our rules is said too: what it does not, the encapsulation itself holds.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from firewall_rules.names import OUTER_MARK
from firewall_rules.policy import Pair
from netctl.model import mac_of
from nodeagent.kernel_state import WireguardLink, WireguardPeer
from tests.support.netns import (
    BLOCKED_AFTER,
    PASSES_WITHIN,
    Capture,
    Namespace,
    ethernet,
    ipv4,
    mac_bytes,
    readable,
    send_frames,
)
from tests.support.underlay import (
    FAR,
    FAR_OTHER,
    FAR_ROUTER,
    GATEWAY,
    GENERATION,
    INTERNET,
    IPV4,
    LINK,
    MACS,
    MARKER,
    NODE,
    ONE,
    PEER,
    PORT,
    STRANGER,
    THIRD,
    THIRDS,
    UDP,
    VNIS,
    WIREGUARD_PORT,
    Underlay,
    give_end,
    make_underlay,
    packet,
    reaches,
    take_key,
)

pytestmark = pytest.mark.root

WAYS = (
    pytest.param("gre", marks=pytest.mark.needs_kernel("gre")),
    pytest.param("vxlan"),
    pytest.param("wireguard", marks=pytest.mark.needs_kernel("wireguard")),
    pytest.param("direct"),
)
IN_THE_CLEAR = tuple(way for way in WAYS if way.values != ("wireguard",))
ENCRYPTED = tuple(way for way in WAYS if way.values == ("wireguard",))
WITH_A_DEVICE = tuple(way for way in WAYS if way.values != ("direct",))
OF_NOBODYS_BLOCK, OF_OUR_BLOCK = "10.9.0.5", "10.1.0.77"
FOREIGN = (THIRDS, OF_OUR_BLOCK, OF_NOBODYS_BLOCK, INTERNET)
PROBE = 253
"""The protocol of probes (RFC 3692)."""


@pytest.fixture
def net(
    request: pytest.FixtureRequest, namespaces: Callable[[], Namespace], tmp_path: Path
) -> Iterator[Underlay]:
    made = make_underlay(namespaces, request.param, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("net", WAYS, indirect=True)
def test_a_node_speaks_for_its_own_block_alone(net: Underlay) -> None:
    assert net.speaks()
    for source in FOREIGN:
        # WireGuard itself lets a key speak for its own block alone.
        arrived = net.reaches_container(net.sent(packet(source, ONE)), BLOCKED_AFTER)
        assert arrived == (net.way != "wireguard"), f"without our rules: {source}"
    # Its connections are not what keeps them out.
    net.install(net.policy(*FOREIGN))
    for source in FOREIGN:
        assert not net.reaches_container(net.sent(packet(source, ONE))), source
    assert net.speaks(FAR)
    assert net.speaks(THIRDS, by=THIRD)


@pytest.mark.parametrize("net", ENCRYPTED, indirect=True)
def test_the_rules_hold_a_wireguard_link_to_its_peers_blocks_by_themselves(net: Underlay) -> None:
    public = net.keys[PEER].make(GENERATION).public
    anywhere = WireguardPeer("0.0.0.0/0", public, PEER, WIREGUARD_PORT)
    net.give_wireguard(NODE, WireguardLink(LINK, GENERATION, WIREGUARD_PORT, 1420, frozenset({anywhere})))
    strangers = tuple(source for source in FOREIGN if source != THIRDS)
    assert net.speaks()
    for source in strangers:
        assert net.reaches_container(net.sent(packet(source, ONE)), PASSES_WITHIN), "the control"
    net.install(net.policy(*FOREIGN))
    for source in strangers:
        assert not net.reaches_container(net.sent(packet(source, ONE))), source
    # Between peers on one link they cannot tell: that is what the keys are for.
    assert net.speaks(THIRDS, by=PEER)


@pytest.mark.parametrize("net", WAYS, indirect=True)
def test_who_is_no_node_is_not_taken_for_one(net: Underlay) -> None:
    assert net.speaks()
    if net.way == "wireguard":
        # Even with a peer's key.
        take_key(net, STRANGER, PEER)
        give_end(net, STRANGER)
    net.install(net.policy())
    for _ in range(3):
        assert not net.reaches_container(net.sent(packet(FAR, ONE), by=STRANGER))
    assert net.speaks()
    net.remove_rules()
    if net.way == "gre":
        # Such a device is bound to its far end by itself.
        assert not net.reaches_container(net.sent(packet(FAR, ONE), by=STRANGER)), "without our rules neither"
    else:
        assert net.speaks(by=STRANGER), "the control: it arrives without our rules"


@pytest.mark.parametrize("net", WAYS, indirect=True)
@pytest.mark.parametrize("target", [GATEWAY, NODE])
def test_through_the_tunnel_nothing_reaches_the_node_itself(net: Underlay, target: str) -> None:
    assert net.speaks()

    def heard(seconds: float) -> bool:
        with net.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
            receiver.bind(("", PORT))
            net.sent(packet(FAR, target))()
            return readable(receiver, seconds)

    assert heard(PASSES_WITHIN), "the control: it arrives without our rules"
    net.install(net.policy())
    assert not heard(BLOCKED_AFTER)
    assert net.speaks()


@pytest.mark.parametrize("net", WAYS, indirect=True)
def test_through_the_tunnel_nothing_leaves_by_the_node(net: Underlay) -> None:
    assert net.speaks()
    beyond = {
        INTERNET: (STRANGER, "eth0"),
        STRANGER: (STRANGER, "eth0"),
        THIRDS: (THIRD, LINK if net.way == "wireguard" else "eth0"),
    }

    def leaves(target: str, seconds: float) -> bool:
        host, link = beyond[target]
        return reaches(net.hosts[host], link, net.sent(packet(FAR, target)), seconds)

    assert net.speaks(THIRDS, by=THIRD)
    for target in beyond:
        assert leaves(target, PASSES_WITHIN), f"the control: without our rules to {target}"
    # Were there a connection between the two, still not by this node.
    pairs = net.policy().pairs | {Pair(*sorted((FAR, target))) for target in beyond}
    net.install(attrs.evolve(net.policy(), pairs=pairs))
    for target in beyond:
        assert not leaves(target, BLOCKED_AFTER), target
    assert net.speaks()


@pytest.mark.parametrize("net", [way for way in WAYS if way.values != ("direct",)], indirect=True)
def test_a_container_is_not_heard_outside_its_tunnel(net: Underlay) -> None:
    bare = ethernet(MACS[NODE], MACS[PEER], IPV4, packet(FAR, ONE))

    def send() -> None:
        send_frames(net.hosts[PEER], "eth0", [bare])

    assert net.reaches_container(send, PASSES_WITHIN), "the control: it arrives without our rules"
    net.install(net.policy())
    assert not net.reaches_container(send)
    assert net.speaks()


# Where the underlay is not what one thinks


@pytest.mark.parametrize("net", WAYS, indirect=True)
def test_who_listens_on_the_underlay_reads_all_that_wireguard_does_not_carry(net: Underlay) -> None:
    net.install(net.policy())
    assert net.speaks()
    with Capture(net.node, "eth0") as wire:
        assert net.reaches_container(net.sent(packet(FAR, ONE)), PASSES_WITHIN)
        frame = wire.until(lambda frame: MARKER in frame, BLOCKED_AFTER)
    assert (frame is not None) == (net.way != "wireguard")


@pytest.mark.parametrize("net", IN_THE_CLEAR, indirect=True)
def test_who_forges_a_nodes_address_speaks_for_its_containers_where_nothing_is_signed(net: Underlay) -> None:
    """Not a defence: this shows what an underlay must not let happen, and what holds even then."""
    net.install(net.policy(THIRDS))
    assert net.speaks()

    def forged(source: str, target: str) -> Callable[[], None]:
        mac = MACS[PEER] if net.way == "direct" else ""
        return net.sent(packet(source, target), by=STRANGER, outer=PEER, mac=mac)

    assert net.reaches_container(forged(FAR, ONE), PASSES_WITHIN), "it does arrive"
    # The answer goes to the real node; but a switch that learns sends it to who has just used its MAC.
    answer = ethernet(mac_of(GATEWAY), mac_of(ONE), IPV4, packet(ONE, FAR))
    receiver, other = (STRANGER, PEER) if net.way == "direct" else (PEER, STRANGER)
    with Capture(net.hosts[receiver], "eth0") as here, Capture(net.hosts[other], "eth0") as there:
        send_frames(net.container, "eth0", [answer])
        assert here.until(_is_for_the_peer) is not None
        assert there.until(_is_for_the_peer, BLOCKED_AFTER) is None
    # What the peer's own containers may not, the forger may not either.
    assert not net.reaches_container(forged(FAR_OTHER, ONE))
    assert not net.reaches_container(forged(THIRDS, ONE))
    assert not reaches(net.hosts[STRANGER], "eth0", forged(FAR, INTERNET), BLOCKED_AFTER)
    with net.node.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("", PORT))
        for target in (GATEWAY, NODE):
            forged(FAR, target)()
        assert not readable(receiver, BLOCKED_AFTER)


def _is_for_the_peer(frame: bytes) -> bool:
    return frame[:6] == mac_bytes(MACS[PEER]) and MARKER in frame


@pytest.mark.parametrize("net", ["vxlan"], indirect=True)
def test_who_forges_a_nodes_address_must_know_the_pairs_network_identifier(net: Underlay) -> None:
    net.install(net.policy(THIRDS))

    def forged(vni: int) -> Callable[[], None]:
        return net.sent(packet(FAR, ONE), by=STRANGER, outer=PEER, vni=vni)

    for vni in (0, VNIS[PEER] + 100, VNIS[THIRD]):
        assert not net.reaches_container(forged(vni))
    assert net.reaches_container(forged(VNIS[PEER]), PASSES_WITHIN), (
        "which is no secret: it stands in every packet"
    )


@pytest.mark.parametrize("net", ["direct"], indirect=True)
def test_who_forges_a_containers_address_must_forge_its_nodes_mac_too(net: Underlay) -> None:
    net.install(net.policy())
    assert not net.reaches_container(net.sent(packet(FAR, ONE), by=STRANGER))
    assert not net.reaches_container(net.sent(packet(FAR, ONE), by=STRANGER, mac=MACS[THIRD]))
    assert net.reaches_container(net.sent(packet(FAR, ONE), by=STRANGER, mac=MACS[PEER]), PASSES_WITHIN), (
        "which is no secret: it stands in every frame"
    )


@pytest.mark.parametrize("net", ENCRYPTED, indirect=True)
def test_who_forges_a_nodes_address_and_has_not_its_key_is_not_heard_by_wireguard(net: Underlay) -> None:
    net.install(net.policy())
    with Capture(net.node, "eth0") as wire:
        assert net.speaks()
        net.sent(packet(FAR, ONE))()
        genuine = wire.until(_is_data)
    assert genuine is not None
    assert MARKER not in genuine
    assert net.speaks()
    for forged in (genuine, _with_another_counter(genuine), _with_another_counter(genuine, 1 << 32)):
        frame = ethernet(MACS[NODE], MACS[STRANGER], IPV4, forged[14:])

        def send(frame: bytes = frame) -> None:
            send_frames(net.hosts[STRANGER], "eth0", [frame])

        assert not net.reaches_container(send), "a packet of the peer's once more, or changed"
    # The peer's very address, with a key of one's own.
    give_end(net, STRANGER)
    for host, commands in (
        (PEER, ("link set eth0 down",)),
        (STRANGER, (f"addr add {PEER}/24 dev eth0", f"route replace {NODE}/32 dev eth0 src {PEER}")),
    ):
        net.hosts[host].run("ip", "-batch", "-", text="\n".join(commands))
    net.node.ip("neigh", "replace", PEER, "lladdr", MACS[STRANGER], "dev", "eth0")
    with Capture(net.node, "eth0") as wire:
        net.sent(packet(FAR, ONE), by=STRANGER)()
        assert wire.until(lambda frame: _is_wireguard(frame, 1)) is not None, "it asks for a session"
        assert not net.reaches_container(net.sent(packet(FAR, ONE), by=STRANGER), 2.0)
    take_key(net, STRANGER, PEER)
    net.hosts[STRANGER].ip("link", "del", LINK)
    give_end(net, STRANGER)
    assert net.speaks(by=STRANGER), "the control: with the key it is the peer, wherever it comes from"


def _is_wireguard(frame: bytes, kind: int) -> bool:
    """Tell whether a frame is from `PEER` to WireGuard, of one kind (protocol.md of WireGuard: 1 begins)."""
    return (
        frame[12:14] == b"\x08\x00"
        and frame[23] == UDP
        and frame[26:30] == socket.inet_aton(PEER)
        and frame[36:38] == WIREGUARD_PORT.to_bytes(2, "big")
        and frame[42:46] == kind.to_bytes(4, "little")
    )


def _is_data(frame: bytes) -> bool:
    # A keepalive has 32 bytes and no inner packet.
    return _is_wireguard(frame, 4) and len(frame) > 42 + 32


def _with_another_counter(frame: bytes, more: int = 1000) -> bytes:
    counter = int.from_bytes(frame[50:58], "little") + more
    return frame[:50] + counter.to_bytes(8, "little") + frame[58:]


# Probes


@pytest.mark.parametrize("net", WITH_A_DEVICE, indirect=True)
@pytest.mark.parametrize("routed", [True, False], ids=["routed", "not-routed"])
def test_probes_go_both_ways_and_into_no_host(net: Underlay, *, routed: bool) -> None:
    assert net.speaks()
    net.install(net.policy(routed=routed))
    out = ipv4(GATEWAY, FAR_ROUTER, PROBE, MARKER)

    def sent(mark: int) -> Callable[[], None]:
        def send() -> None:
            # Cooked, where the link has Ethernet addresses; a raw socket on one that has none.
            with net.node.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                mac = b"\xff" * 6 if net.way == "vxlan" else b""
                sock.sendto(out, (net.device(), IPV4, 0, 0, mac))

        return send

    link = LINK if net.way == "wireguard" else "eth0"
    assert reaches(net.hosts[PEER], link, sent(OUTER_MARK), PASSES_WITHIN)
    # WireGuard marks all it sends, so this one leaves; a probe is all that could have been put in there.
    assert reaches(net.hosts[PEER], link, sent(0), BLOCKED_AFTER) == (net.way == "wireguard")
    back = net.sent(ipv4(FAR_ROUTER, GATEWAY, PROBE, MARKER))
    with net.node.socket(socket.AF_INET, socket.SOCK_RAW, PROBE) as receiver:
        assert reaches(net.node, net.device(), back, PASSES_WITHIN)
        assert not readable(receiver, BLOCKED_AFTER), "seen before the firewall, which drops it"
