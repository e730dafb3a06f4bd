"""The rtnetlink messages that make and guard containers' ports, as bytes.

Encoding and meanings: see `nodeagent.kernel.netlink`. A message's values change from container to container
and its form does not, so each is encoded once.
"""

from __future__ import annotations

import functools
import struct

from firewall_rules import names
from nodeagent.kernel.decode import ALL_GROUPS
from nodeagent.kernel.netlink import (
    CREATE,
    EXCL,
    IFF_UP,
    NEWLINK,
    NEWNEIGH,
    REPLACE,
    Template,
    link,
    link_info,
    message,
)
from nodeagent.kernel_state import ContainerEnd, ContainerPort

_AF_BRIDGE = 7
_NUD_NOARP = 0x40
_NTF_MASTER = 0x04
_ADDR_GEN_MODE_NONE = 1  # IN6_ADDR_GEN_MODE_NONE of linux/if_link.h

_SOME_DEVICE = names.port_device("f" * 32)
_SOME_FAR_DEVICE = names.endpoint_link("f" * 32)
_SOME_MACS = ("fe:fe:fe:fe:fe:fd", "fe:fe:fe:fe:fe:fc")
_SOME_NAMESPACE = 0x7E7D7C7B


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def create_port(port: ContainerPort, end: ContainerEnd, bridge: int, namespace: int) -> bytes:
    """Make a veth pair, both ends down: near end on the bridge of index `bridge`, far end in `namespace`.

    The far end must not be up here (the kernel answers ENOTCONN), the near end not before `guard_port` has
    brought it up: a port that comes up takes what it is sent. The near end has an address of its
    own choosing by us too, since udev replaces random ones a moment later.

    Raises:
        ValueError: The device's name has another length than all of ours.
    """
    return _port_template(port.mtu, end.mtu, bridge).fill(
        port.device.encode(), _mac(near_mac(end.mac)), _mac(end.mac), struct.pack("=I", namespace)
    )


@functools.lru_cache(maxsize=16)
def _port_template(mtu: int, end_mtu: int, bridge: int) -> Template:
    near, far = _SOME_MACS
    peer = [
        ("IFLA_IFNAME", names.CONTAINER_LINK),
        ("IFLA_MTU", end_mtu),
        ("IFLA_ADDRESS", far),
        ("IFLA_NET_NS_FD", _SOME_NAMESPACE),
    ]
    namespace = struct.pack("=I", _SOME_NAMESPACE)
    return Template(_pair(mtu, bridge, peer), _SOME_DEVICE.encode(), _mac(near), _mac(far), namespace)


def _pair(mtu: int, bridge: int, peer: list[tuple[str, object]]) -> bytes:
    return link(
        NEWLINK,
        CREATE | EXCL,
        [
            ("IFLA_IFNAME", _SOME_DEVICE),
            ("IFLA_MTU", mtu),
            ("IFLA_ADDRESS", _SOME_MACS[0]),
            ("IFLA_MASTER", bridge),
            link_info("veth", [("VETH_INFO_PEER", {"attrs": peer})]),
        ],
    )


def create_endpoint(port: ContainerPort, key: str, mac: str, bridge: int) -> bytes:
    """Make a Docker endpoint's veth pair as `create_port` does, but with the far end in the same namespace.

    It is called `names.endpoint_link` until Docker moves it, and keeps its group wherever it goes.

    Raises:
        ValueError: The device's name has another length than all of ours.
    """
    return _endpoint_template(port.mtu, bridge).fill(
        port.device.encode(), names.endpoint_link(key).encode(), _mac(near_mac(mac)), _mac(mac)
    )


@functools.lru_cache(maxsize=16)
def _endpoint_template(mtu: int, bridge: int) -> Template:
    near, far = _SOME_MACS
    peer = [
        ("IFLA_IFNAME", _SOME_FAR_DEVICE),
        ("IFLA_MTU", mtu),
        ("IFLA_ADDRESS", far),
        ("IFLA_GROUP", names.OVERLAY_GROUP),
    ]
    devices = (_SOME_DEVICE.encode(), _SOME_FAR_DEVICE.encode())
    return Template(_pair(mtu, bridge, peer), *devices, _mac(near), _mac(far))


def port_down(port: ContainerPort, bridge: int) -> bytes:
    """Bring a port down, with its MTU, on the bridge of index `bridge`: `guard_port` follows."""
    attributes = [("IFLA_IFNAME", port.device), ("IFLA_MTU", port.mtu), ("IFLA_MASTER", bridge)]
    return message("ifinfmsg", NEWLINK, 0, attributes, change=IFF_UP)


def guard_port(port: ContainerPort) -> bytes:
    """Bring a port up, with the settings that leave a container no way past the bridge's rules.

    A frame to a bridge group address would otherwise go to the host itself, past every rule, and the bridge
    would believe its source; a frame for an address that the bridge does not know, to every container.
    """
    return _guard_template().fill(port.device.encode())


@functools.cache
def _guard_template() -> Template:
    settings = [
        ("IFLA_BRPORT_LEARNING", 0),
        ("IFLA_BRPORT_UNICAST_FLOOD", 0),
        ("IFLA_BRPORT_MCAST_FLOOD", 0),
        ("IFLA_BRPORT_GROUP_FWD_MASK", ALL_GROUPS),
    ]
    as_port = [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", {"attrs": settings})]
    attributes = [("IFLA_IFNAME", _SOME_DEVICE), ("IFLA_LINKINFO", {"attrs": as_port})]
    return Template(link(NEWLINK, 0, attributes, up=True), _SOME_DEVICE.encode())


def silence_port(port: ContainerPort) -> bytes:
    """Leave a port without an IPv6 address of its own, before it is up: it would look for routers by it.

    Refused with EAFNOSUPPORT where the kernel, or a link with so small an MTU, has no IPv6.
    """
    return _silence_template().fill(port.device.encode())


@functools.cache
def _silence_template() -> Template:
    mode = ("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_MODE_NONE)
    attributes = [
        ("IFLA_IFNAME", _SOME_DEVICE),
        ("IFLA_AF_SPEC", {"attrs": [("AF_INET6", {"attrs": [mode]})]}),
    ]
    return Template(link(NEWLINK, 0, attributes), _SOME_DEVICE.encode())


def fix_port_address(index: int, mac: str) -> bytes:
    """Have the bridge know that `mac` is behind the port of `index`, and behind no other."""
    return _port_address_template().fill(struct.pack("=i", index), _mac(mac))


@functools.cache
def _port_address_template() -> Template:
    encoded = message(
        "ndmsg",
        NEWNEIGH,
        CREATE | REPLACE,
        [("NDA_LLADDR", _SOME_MACS[0])],
        family=_AF_BRIDGE,
        ifindex=_SOME_NAMESPACE,
        state=_NUD_NOARP,
        flags=_NTF_MASTER,
    )
    return Template(encoded, struct.pack("=i", _SOME_NAMESPACE), _mac(_SOME_MACS[0]))


def near_mac(end_mac: str) -> str:
    """Return the Ethernet address of the near end of a pair: the far end's with the next second byte."""
    first, second, rest = end_mac.split(":", 2)
    return f"{first}:{(int(second, 16) + 1) % 256:02x}:{rest}"
