"""The rtnetlink messages we send, as bytes; sequence numbers are the channel's to fill in.

Those that concern containers' ports are in `nodeagent.kernel.ports`.

Encoding is pyroute2's (its own sockets fork, or take a millisecond a call). Meanings are those of
rtnetlink(7) and linux/if_link.h, linux/rtnetlink.h, linux/if_tunnel.h. Nothing here talks to a kernel.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

from firewall_rules import names
from nodeagent.kernel_state import Bridge, Route, Tunnel, WireguardLink

NEWLINK: Final = 16
DELLINK: Final = 17
NEWADDR: Final = 20
DELADDR: Final = 21
NEWROUTE: Final = 24
DELROUTE: Final = 25
NEWNEIGH: Final = 28
DELNEIGH: Final = 29

REQUEST = 0x1
REPLACE = 0x100
EXCL = 0x200
CREATE = 0x400

IFF_UP = 1
_AF_INET = 2
_TABLE_MAIN = 254
_SCOPE_LINK = 253
_UNICAST = 1
_PROTOCOL_BOOT = 3
_ONLINK = 4
_NUD_PERMANENT = 0x80
_TTL = 64  # fixed, since a tunnel that inherits the inner TTL cannot have its path MTU discovered

Attributes = Sequence[tuple[str, Any]]


@functools.cache
def _encoders() -> Mapping[str, Any]:
    """Load pyroute2: a tenth of a second, which a start that finds nothing to change does without."""
    from pyroute2.netlink import rtnl  # noqa: PLC0415 - see above

    return {
        "ifaddrmsg": rtnl.ifaddrmsg.ifaddrmsg,
        "ifinfmsg": rtnl.ifinfmsg.ifinfmsg,
        "ndmsg": rtnl.ndmsg.ndmsg,
        "rtmsg": rtnl.rtmsg.rtmsg,
    }


def load() -> None:
    """Load the encoder now rather than with the first message."""
    _encoders()


def message(kind: str, number: int, modifiers: int, attributes: Attributes, **fields: int) -> bytes:
    """Return a message of a `kind` of `_encoders`."""
    encoder = _encoders()[kind]()
    encoder["header"]["type"] = number
    encoder["header"]["flags"] = REQUEST | modifiers
    for name, value in fields.items():
        encoder[name] = value
    encoder["attrs"] = list(attributes)
    encoder.encode()
    return bytes(encoder.data)


def link(number: int, flags: int, attributes: Attributes, *, up: bool = False, index: int = 0) -> bytes:
    """Return a message about one link; with `up` it is brought up."""
    state = {"flags": IFF_UP, "change": IFF_UP} if up else {}
    return message("ifinfmsg", number, flags, attributes, index=index, **state)


def link_info(kind: str, data: Attributes) -> tuple[str, Any]:
    """Return the attribute that says what kind of link it is."""
    return (
        "IFLA_LINKINFO",
        {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", {"attrs": list(data)})]},
    )


class Template:
    """A message encoded once for all that differ in values of fixed lengths only: a fiftieth of the time.

    Args:
        message: With placeholders.
        placeholders: What stands where a value belongs, at one place or several.
    """

    def __init__(self, message: bytes, *placeholders: bytes) -> None:
        self._message = message
        self._values = [(len(one), _places(message, one)) for one in placeholders]

    def fill(self, *values: bytes) -> bytes:
        """Return the message with `values` in the placeholders' order.

        Raises:
            ValueError: A value has another length than its placeholder.
        """
        filled = bytearray(self._message)
        for value, (length, places) in zip(values, self._values, strict=True):
            if len(value) != length:
                raise ValueError(f"{value!r} has not {length} bytes")
            for place in places:
                filled[place : place + length] = value
        return bytes(filled)


def _places(message: bytes, placeholder: bytes) -> list[int]:
    return [place for place in range(len(message)) if message.startswith(placeholder, place)]


# --- links ------------------------------------------------------------------------------------------


def set_bridge(bridge: Bridge) -> bytes:
    """Make the bridge if it is missing, and give it its fixed settings.

    Without MTU, which a create message sets in a way that the kernel does not hold against the next
    port's: `set_link` follows.
    """
    return link(
        NEWLINK,
        CREATE,
        [
            ("IFLA_IFNAME", names.BRIDGE),
            ("IFLA_ADDRESS", bridge.mac),
            link_info(
                "bridge",
                # VLAN filtering is off in a new bridge, and not every kernel has the switch.
                [("IFLA_BR_STP_STATE", 0), ("IFLA_BR_MCAST_SNOOPING", 0)],
            ),
        ],
    )


@functools.lru_cache(maxsize=64)
def set_link(device: str, *, mtu: int = 0, mac: str = "") -> bytes:
    """Bring a link up; with `mtu` and `mac` where given."""
    attributes: list[tuple[str, Any]] = [("IFLA_IFNAME", device)]
    if mtu:
        attributes.append(("IFLA_MTU", mtu))
    if mac:
        attributes.append(("IFLA_ADDRESS", mac))
    return link(NEWLINK, 0, attributes, up=True)


def create_tunnel(tunnel: Tunnel) -> bytes:
    """Make a tunnel device, up, without an address.

    Raises:
        ValueError: `tunnel.encapsulation` has no device.
    """
    if tunnel.encapsulation == "gre":
        info = link_info(
            "gre",
            [
                ("IFLA_GRE_LOCAL", tunnel.local),
                ("IFLA_GRE_REMOTE", tunnel.remote),
                ("IFLA_GRE_TTL", _TTL),
                ("IFLA_GRE_PMTUDISC", 1),
            ],
        )
    elif tunnel.encapsulation == "vxlan":
        info = link_info(
            "vxlan",
            [
                ("IFLA_VXLAN_ID", tunnel.vni),
                ("IFLA_VXLAN_GROUP", tunnel.remote),
                ("IFLA_VXLAN_LOCAL", tunnel.local),
                ("IFLA_VXLAN_TTL", _TTL),
                ("IFLA_VXLAN_LEARNING", 0),
                ("IFLA_VXLAN_PORT", tunnel.port),
            ],
        )
    else:
        raise ValueError(f"{tunnel.encapsulation} has no tunnel device")
    attributes: list[tuple[str, Any]] = [("IFLA_IFNAME", tunnel.device), ("IFLA_MTU", tunnel.mtu)]
    if tunnel.mac:
        attributes.append(("IFLA_ADDRESS", tunnel.mac))
    return link(NEWLINK, CREATE | EXCL, [*attributes, info], up=True)


def create_wireguard(wanted: WireguardLink) -> bytes:
    """Make a WireGuard link, down: it comes up once it has its key and its peers."""
    kind = ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "wireguard")]})
    attributes = [("IFLA_IFNAME", wanted.device), ("IFLA_MTU", wanted.mtu), kind]
    return link(NEWLINK, CREATE | EXCL, attributes)


def delete_link(device: str) -> bytes:
    """Take one link out, and with a veth its far end."""
    return link(DELLINK, 0, [("IFLA_IFNAME", device)])


def doom_link(device: str) -> bytes:
    """Put a link among those that `delete_doomed` takes out."""
    return link(NEWLINK, 0, [("IFLA_IFNAME", device), ("IFLA_GROUP", names.LINK_GROUP_DOOMED)])


@functools.cache
def delete_doomed() -> bytes:
    """Take out every doomed link at once: the kernel waits for its readers once, not once a link."""
    return link(DELLINK, 0, [("IFLA_GROUP", names.LINK_GROUP_DOOMED)])


@functools.cache
def loopback_up() -> bytes:
    """Bring loopback up, which has index 1 in every namespace."""
    return link(NEWLINK, 0, [], up=True, index=1)


# --- addresses, routes, neighbours ------------------------------------------------------------------


def add_address(index: int, address: str) -> bytes:
    """Give the link of `index` an address, ``a.b.c.d/len``."""
    return _address(NEWADDR, CREATE | REPLACE, index, address)


def delete_address(index: int, address: str) -> bytes:
    """Take an address from the link of `index`."""
    return _address(DELADDR, 0, index, address)


_SOME_ADDRESS = "254.253.252.251"


def _address(number: int, modifiers: int, index: int, address: str) -> bytes:
    plain, _, length = address.partition("/")
    return _address_template(number, modifiers, index, int(length)).fill(socket.inet_aton(plain))


@functools.lru_cache(maxsize=64)
def _address_template(number: int, modifiers: int, index: int, length: int) -> Template:
    encoded = message(
        "ifaddrmsg",
        number,
        modifiers,
        [("IFA_LOCAL", _SOME_ADDRESS), ("IFA_ADDRESS", _SOME_ADDRESS)],
        family=_AF_INET,
        prefixlen=length,
        index=index,
    )
    return Template(encoded, socket.inet_aton(_SOME_ADDRESS))


@functools.lru_cache(maxsize=64)
def set_default_route(index: int, gateway: str) -> bytes:
    """Route everything by `gateway` along the link of `index`."""
    return message(
        "rtmsg",
        NEWROUTE,
        CREATE | REPLACE,
        [("RTA_GATEWAY", gateway), ("RTA_OIF", index)],
        family=_AF_INET,
        table=_TABLE_MAIN,
        proto=_PROTOCOL_BOOT,
        type=_UNICAST,
    )


def set_route(route: Route, index: int, *, replace: bool) -> bytes:
    """Route a block along the link of `index`; with `replace` False a route that is there is refused."""
    block, _, length = route.block.partition("/")
    attributes: list[tuple[str, Any]] = [
        ("RTA_DST", block),
        ("RTA_OIF", index),
        ("RTA_PREFSRC", route.source),
    ]
    if route.via:
        attributes.append(("RTA_GATEWAY", route.via))
    if route.mtu:
        attributes.append(("RTA_METRICS", {"attrs": [("RTAX_MTU", route.mtu)]}))
    return message(
        "rtmsg",
        NEWROUTE,
        CREATE | (REPLACE if replace else EXCL),
        attributes,
        family=_AF_INET,
        dst_len=int(length),
        table=_TABLE_MAIN,
        proto=names.ROUTE_PROTOCOL,
        scope=0 if route.via else _SCOPE_LINK,
        type=_UNICAST,
        flags=_ONLINK if route.via else 0,
    )


def delete_route(block: str) -> bytes:
    """Take our own route to a block out."""
    plain, _, length = block.partition("/")
    return message(
        "rtmsg",
        DELROUTE,
        0,
        [("RTA_DST", plain)],
        family=_AF_INET,
        dst_len=int(length),
        table=_TABLE_MAIN,
        proto=names.ROUTE_PROTOCOL,
        scope=255,  # RT_SCOPE_NOWHERE: of any scope
    )


def set_neighbour(index: int, address: str, mac: str) -> bytes:
    """Fix the Ethernet address of `address` on the link of `index`."""
    return message(
        "ndmsg",
        NEWNEIGH,
        CREATE | REPLACE,
        [("NDA_DST", address), ("NDA_LLADDR", mac)],
        family=_AF_INET,
        ifindex=index,
        state=_NUD_PERMANENT,
    )


def delete_neighbour(index: int, address: str) -> bytes:
    """Take a fixed neighbour out."""
    return message("ndmsg", DELNEIGH, 0, [("NDA_DST", address)], family=_AF_INET, ifindex=index)
