"""The messages we send, byte for byte, those for kernels that the machine at hand is not included.

`NETCTL_UPDATE_GOLDEN=1` writes the file anew; read its difference before committing it.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import attrs
import pytest

from firewall_rules import names
from netctl.model import mac_of
from nodeagent.kernel import decode, netlink, ports, questions, wireguard
from nodeagent.kernel_state import (
    Bridge,
    ContainerEnd,
    ContainerPort,
    Route,
    Tunnel,
    WireguardLink,
    WireguardPeer,
)

GOLDEN = Path(__file__).parent / "netlink_messages.txt"

GRE = Tunnel("nctg0a020000", "gre", "192.0.2.1", "192.0.2.2", 1476)
VXLAN = Tunnel("nctv0a020000", "vxlan", "192.0.2.1", "192.0.2.2", 1450, 0xABCDE, 4789, mac_of("10.1.0.1"))
GRE_ROUTE = Route("10.2.0.0/16", "nctg0a020000", "10.1.0.1", mtu=1476)
VXLAN_ROUTE = Route("10.2.0.0/16", "nctv0a020000", "10.1.0.1", via="10.2.0.1", via_mac=mac_of("10.2.0.1"))
PEER = WireguardPeer("10.2.0.0/16", "ab" * 32, "192.0.2.2", 51821)
WIREGUARD = WireguardLink("nctw1", 1, 51821, 1440, frozenset({PEER}))
PRIVATE = bytes(range(32))
NEW_LINK = wireguard.set_device(
    33, "nctw1", wireguard.Seen(), private_key=PRIVATE, port=51821, peers=WIREGUARD.peers
)
MOVED = wireguard.set_device(
    33,
    "nctw1",
    wireguard.Seen("cd" * 32, 51821, names.OUTER_MARK, WIREGUARD.peers),
    private_key=b"",
    port=51821,
    peers=frozenset({attrs.evolve(PEER, endpoint="192.0.2.9")}),
)
REKEYED = wireguard.set_device(
    33,
    "nctw1",
    wireguard.Seen("cd" * 32, 51821, names.OUTER_MARK, WIREGUARD.peers),
    private_key=b"",
    port=51821,
    peers=frozenset({attrs.evolve(PEER, key="ef" * 32)}),
)
PORT = ContainerPort("ncp0123456789ab", 1450)
END = ContainerEnd("10.1.0.2/16", "10.1.0.1", 1450, mac_of("10.1.0.2"))

MESSAGES = {
    "bridge": netlink.set_bridge(Bridge("10.1.0.1/16", 1450, mac_of("10.1.0.1"))),
    "bridge up": netlink.set_link("netctl0", mtu=1450, mac=mac_of("10.1.0.1")),
    "port": ports.create_port(PORT, END, bridge=5, namespace=9),
    "endpoint": ports.create_endpoint(PORT, "0123456789ab" + "c" * 20, END.mac, bridge=5),
    "port down": ports.port_down(PORT, 5),
    "port silenced": ports.silence_port(PORT),
    "port guarded": ports.guard_port(PORT),
    "port's address": ports.fix_port_address(6, END.mac),
    "port doomed": netlink.doom_link(PORT.device),
    "the doomed deleted": netlink.delete_doomed(),
    "tunnel gre": netlink.create_tunnel(GRE),
    "tunnel vxlan": netlink.create_tunnel(VXLAN),
    "wireguard": netlink.create_wireguard(WIREGUARD),
    "wireguard's number": wireguard.get_family(),
    "wireguard asked": wireguard.get_device(33, "nctw1"),
    "wireguard set": NEW_LINK[0],
    "wireguard peer moved": MOVED[0],
    "wireguard peer with a new key": REKEYED[0],
    "tunnel deleted": netlink.delete_link(GRE.device),
    "route gre": netlink.set_route(GRE_ROUTE, 7, replace=False),
    "route vxlan": netlink.set_route(VXLAN_ROUTE, 7, replace=True),
    "route deleted": netlink.delete_route("10.2.0.0/16"),
    "neighbour": netlink.set_neighbour(7, "10.2.0.1", mac_of("10.2.0.1")),
    "neighbour deleted": netlink.delete_neighbour(7, "10.2.0.1"),
    "loopback up": netlink.loopback_up(),
    "address": netlink.add_address(2, "10.1.0.2/16"),
    "address deleted": netlink.delete_address(2, "10.1.0.2/16"),
    "default route": netlink.set_default_route(2, "10.1.0.1"),
    "links": questions.dump_links(),
    "routes": questions.dump_routes(protocol=110),
}


def test_messages_are_as_recorded() -> None:
    text = "".join(f"{name}: {message.hex(' ', -4)}\n" for name, message in MESSAGES.items())
    if os.environ.get("NETCTL_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def _info(message: bytes) -> tuple[dict[int, bytes], str, dict[int, bytes]]:
    """Take a link message apart: its attributes, its kind, and the kind's own attributes."""
    link = decode.attributes(message, 32)
    info = decode.attributes(link[18])
    return link, info[1].rstrip(b"\0").decode(), decode.attributes(info[2])


def test_gre_says_what_rfc_2784_and_the_kernel_need() -> None:
    link, kind, data = _info(MESSAGES["tunnel gre"])
    assert kind == "gre"
    assert link[3] == b"nctg0a020000\0"
    assert link[4] == struct.pack("=I", 1476)
    # linux/if_tunnel.h: 6 local, 7 remote, 8 ttl, 10 pmtudisc; neither key nor sequence nor checksum flags.
    assert data == {6: bytes([192, 0, 2, 1]), 7: bytes([192, 0, 2, 2]), 8: b"\x40", 10: b"\x01"}


def test_vxlan_says_what_rfc_7348_and_the_kernel_need() -> None:
    link, kind, data = _info(MESSAGES["tunnel vxlan"])
    assert kind == "vxlan"
    assert link[1] == bytes.fromhex("6e630a010001")
    # linux/if_link.h: 1 id, 2 group, 4 local, 5 ttl, 7 learning, 15 port (big-endian).
    assert data == {
        1: struct.pack("=I", 0xABCDE),
        2: bytes([192, 0, 2, 2]),
        4: bytes([192, 0, 2, 1]),
        5: b"\x40",
        7: b"\x00",
        15: struct.pack(">H", 4789),
    }


def test_direct_has_no_device() -> None:
    with pytest.raises(ValueError, match="direct"):
        netlink.create_tunnel(Tunnel("nctd0a020000", "direct", "192.0.2.1", "192.0.2.2", 1500))


@pytest.mark.parametrize("wanted", [GRE, VXLAN], ids=["gre", "vxlan"])
def test_what_is_asked_for_is_read_back_alike(wanted: Tunnel) -> None:
    name = "tunnel gre" if wanted.encapsulation == "gre" else "tunnel vxlan"
    # A link's answer has the form of the message that makes it: index and flags are the kernel's.
    link = decode.link(MESSAGES[name][16:])
    assert (link.name, link.kind, link.local, link.remote, link.mtu, link.vni, link.port, link.mac) == (
        wanted.device,
        wanted.encapsulation,
        wanted.local,
        wanted.remote,
        wanted.mtu,
        wanted.vni,
        wanted.port,
        wanted.mac,
    )
    assert link.up


def test_far_end_of_a_port_is_made_down_in_its_namespace() -> None:
    link, kind, data = _info(MESSAGES["port"])
    assert kind == "veth"
    assert link[10] == struct.pack("=I", 5)
    peer = data[1]
    assert peer[:16] == bytes(16)  # no flags, so not up
    inner = decode.attributes(peer, 16)
    assert inner[3] == b"eth0\0"
    assert inner[1] == bytes.fromhex("6e630a010002")
    assert inner[28] == struct.pack("=I", 9)
    assert link[1] != inner[1]


def test_far_end_of_an_endpoint_is_made_down_beside_its_port_in_its_group() -> None:
    link, kind, data = _info(MESSAGES["endpoint"])
    assert kind == "veth"
    assert link[3] == b"ncp0123456789ab\0"
    peer = data[1]
    assert peer[:16] == bytes(16)
    inner = decode.attributes(peer, 16)
    assert inner[3] == b"nce0123456789ab\0"
    assert inner[1] == bytes.fromhex("6e630a010002")
    assert inner[4] == struct.pack("=I", 1450)
    # linux/if_link.h: 27 group, 28 net_ns_fd.
    assert inner[27] == struct.pack("=I", 0x6E64)
    assert 28 not in inner
    assert link[1] != inner[1]


def test_a_port_is_silenced_by_its_ipv6_alone() -> None:
    link = decode.attributes(MESSAGES["port silenced"], 32)
    assert link.keys() == {3, 26}  # linux/if_link.h: name, af_spec
    assert decode.attributes(decode.attributes(link[26])[10]) == {8: b"\x01"}  # AF_INET6, addr_gen_mode


# --- WireGuard ---------------------------------------------------------------------------------------


def _generic(message: bytes) -> tuple[int, int, dict[int, bytes]]:
    """Take a generic netlink message apart: its type, its command, its attributes."""
    kind, command = struct.unpack_from("=H", message, 4)[0], message[16]
    return kind, command, decode.attributes(message, 20)


def _listed(data: bytes) -> list[dict[int, bytes]]:
    """Return the attributes of each entry of a list."""
    found, offset = [], 0
    while offset < len(data):
        length = struct.unpack_from("=H", data, offset)[0]
        found.append(decode.attributes(data[offset + 4 : offset + length]))
        offset += (length + 3) & ~3
    return found


def test_a_wireguard_link_is_made_down() -> None:
    link = decode.attributes(MESSAGES["wireguard"], 32)
    assert decode.attributes(link[18]) == {1: b"wireguard\0"}
    assert link[4] == struct.pack("=I", 1440)
    assert MESSAGES["wireguard"][24:32] == bytes(8)  # neither flags nor a change of them


def test_a_new_wireguard_link_says_what_its_header_and_the_kernel_need() -> None:
    kind, command, found = _generic(MESSAGES["wireguard set"])
    assert (kind, command) == (33, 1)  # linux/wireguard.h: WG_CMD_SET_DEVICE
    # 2 ifname, 3 private key, 6 listen port, 7 fwmark, 8 peers.
    assert found.keys() == {2, 3, 6, 7, 8}
    assert (found[2], found[3]) == (b"nctw1\0", PRIVATE)
    assert found[6] == struct.pack("=H", 51821)
    assert found[7] == struct.pack("=I", names.OUTER_MARK)
    (peer,) = _listed(found[8])
    # 1 public key, 3 flags, 4 endpoint, 5 keepalive, 9 allowed IPs.
    assert peer.keys() == {1, 3, 4, 5, 9}
    assert peer[1] == bytes.fromhex("ab" * 32)
    assert peer[3] == struct.pack("=I", 2)  # WGPEER_F_REPLACE_ALLOWEDIPS
    assert peer[4] == struct.pack("=H", 2) + struct.pack(">H", 51821) + bytes([192, 0, 2, 2]) + bytes(8)
    assert peer[5] == struct.pack("=H", 25)
    (allowed,) = _listed(peer[9])
    assert allowed == {1: struct.pack("=H", 2), 2: bytes([10, 2, 0, 0]), 3: b"\x10"}


def test_a_peer_that_moved_keeps_its_session_and_its_networks() -> None:
    _, _, found = _generic(MESSAGES["wireguard peer moved"])
    assert found.keys() == {2, 8}
    (peer,) = _listed(found[8])
    assert peer.keys() == {1, 4, 5}


def test_a_peer_with_a_new_key_takes_the_block_over_before_the_old_one_goes() -> None:
    _, _, found = _generic(MESSAGES["wireguard peer with a new key"])
    new, old = _listed(found[8])
    assert (new[1], new[3]) == (bytes.fromhex("ef" * 32), struct.pack("=I", 2))
    assert old == {1: bytes.fromhex("ab" * 32), 3: struct.pack("=I", 1)}  # WGPEER_F_REMOVE_ME


def test_a_link_that_is_as_it_should_be_is_told_nothing() -> None:
    seen = wireguard.Seen("cd" * 32, 51821, names.OUTER_MARK, WIREGUARD.peers)
    assert wireguard.set_device(33, "nctw1", seen, private_key=b"", port=51821, peers=WIREGUARD.peers) == []


def test_many_peers_fill_several_messages_that_are_read_back_as_one_link() -> None:
    peers = frozenset(
        WireguardPeer(f"10.{number // 250}.{number % 250}.0/24", f"{number:064x}", "192.0.2.2", 51820)
        for number in range(1, 201)
    )
    messages = wireguard.set_device(
        33, "nctw0", wireguard.Seen(), private_key=PRIVATE, port=51820, peers=peers
    )
    assert len(messages) == 4
    assert all(len(message) < 16384 for message in messages)
    assert [3 in _generic(message)[2] for message in messages] == [True, False, False, False]
    # An answer has the form of the message that sets a link; the public key is the kernel's to tell.
    assert wireguard.seen(message[16:] for message in messages) == wireguard.Seen(
        "", 51820, names.OUTER_MARK, peers
    )


def test_what_is_no_network_of_ours_is_read_as_what_it_is() -> None:
    both = WireguardPeer("10.2.0.0/16,10.3.0.0/16", "ab" * 32, "192.0.2.2", 51821)
    one, other = (
        wireguard.set_device(
            33,
            "nctw1",
            wireguard.Seen(),
            private_key=b"",
            port=0,
            peers=frozenset({attrs.evolve(PEER, block=b)}),
        )[0]
        for b in both.block.split(",")
    )
    # A peer that goes on in the next answer, as the kernel splits one.
    assert wireguard.seen([one[16:], other[16:]]).peers == {both}
