"""The messages we send, byte for byte, those for kernels that the machine at hand is not included.

`NETCTL_UPDATE_GOLDEN=1` writes the file anew; read its difference before committing it.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from netctl.model import mac_of
from nodeagent.kernel import decode, netlink, ports, questions
from nodeagent.kernel_state import Bridge, ContainerEnd, ContainerPort, Route, Tunnel

GOLDEN = Path(__file__).parent / "netlink_messages.txt"

GRE = Tunnel("nct0a020000", "gre", "192.0.2.1", "192.0.2.2", 1476)
VXLAN = Tunnel("nct0a020000", "vxlan", "192.0.2.1", "192.0.2.2", 1450, 0xABCDE, 4789, mac_of("10.1.0.1"))
GRE_ROUTE = Route("10.2.0.0/16", "nct0a020000", "10.1.0.1", mtu=1476)
VXLAN_ROUTE = Route("10.2.0.0/16", "nct0a020000", "10.1.0.1", via="10.2.0.1", via_mac=mac_of("10.2.0.1"))
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
    assert link[3] == b"nct0a020000\0"
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
        netlink.create_tunnel(Tunnel("nct0a020000", "direct", "192.0.2.1", "192.0.2.2", 1500))


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
