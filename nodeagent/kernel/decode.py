"""The little of rtnetlink's answers that we read, taken apart with `struct`.

A general decoder takes 2.4 ms a link; a thousand links must take a hundredth of a second. Layouts are
those of linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h and linux/neighbour.h.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Final

import attrs

_IFINFO = struct.Struct("=BxHiII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_ADDR = struct.Struct("=BBBBi")
_NEIGH = struct.Struct("=BxxxiHBB")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x3FFF

UP: Final = 1
PERMANENT: Final = 0x80

_IFLA_ADDRESS = 1
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_LINK = 5
_IFLA_MASTER = 10
_IFLA_LINKINFO = 18
_INFO_KIND = 1
_INFO_DATA = 2
_INFO_SLAVE_DATA = 5
_BRPORT_LEARNING = 8
_BRPORT_UNICAST_FLOOD = 9
_BRPORT_MCAST_FLOOD = 27
_BRPORT_GROUP_FWD_MASK = 31
_GRE_LOCAL = 6
_GRE_REMOTE = 7
_VXLAN_ID = 1
_VXLAN_GROUP = 2
_VXLAN_LOCAL = 4
_VXLAN_PORT = 15

ALL_GROUPS: Final = 0xFFFD
"""Forward frames to all bridge group addresses (01:80:c2:00:00:0x, one bit each) but the one for pauses,
which the kernel always drops. What is not forwarded goes past the bridge's rules (net/bridge/br_input.c)."""


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes of `data` from `offset` on, by number; the last of a number counts."""
    found: dict[int, bytes] = {}
    end = len(data)
    while offset + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:  # noqa: PLR2004 - an attribute's own header
            break
        found[kind & _NESTED] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def _number(data: bytes | None) -> int:
    return int.from_bytes(data, sys.byteorder) if data else 0


def _text(data: bytes | None) -> str:
    return data.rstrip(b"\0").decode(errors="replace") if data else ""


def _address(data: bytes | None) -> str:
    return socket.inet_ntoa(data) if data is not None and len(data) == 4 else ""  # noqa: PLR2004 - an IPv4 address


def _mac(data: bytes | None) -> str:
    return data.hex(":") if data is not None and len(data) == 6 else ""  # noqa: PLR2004 - an Ethernet address


@attrs.frozen
class Link:
    """One link.

    Attributes:
        master: Index of the bridge it is a port of; 0: of none.
        peer: Index of a veth's other end, in whatever namespace that is.
        kind: As in ``ip link add type``; empty for hardware.
        local: Of a tunnel, as `remote`, `vni` and `port`.
        guarded: Of a port of a bridge: see `nodeagent.kernel_state.ContainerPort`.
    """

    index: int
    name: str
    up: bool
    mtu: int
    mac: str
    master: int
    peer: int
    kind: str
    local: str = ""
    remote: str = ""
    vni: int = 0
    port: int = 0
    guarded: bool = False


def link(body: bytes) -> Link:
    """Read an RTM_NEWLINK or RTM_DELLINK."""
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = attributes(body, _IFINFO.size)
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    kind = _text(info.get(_INFO_KIND))
    local = remote = ""
    vni = port = 0
    if kind == "gre":
        data = attributes(info.get(_INFO_DATA, b""))
        local, remote = _address(data.get(_GRE_LOCAL)), _address(data.get(_GRE_REMOTE))
    elif kind == "vxlan":
        data = attributes(info.get(_INFO_DATA, b""))
        local, remote = _address(data.get(_VXLAN_LOCAL)), _address(data.get(_VXLAN_GROUP))
        vni, port = _number(data.get(_VXLAN_ID)), int.from_bytes(data.get(_VXLAN_PORT, b""), "big")
    return Link(
        index=index,
        name=_text(found.get(_IFLA_IFNAME)),
        up=bool(flags & UP),
        mtu=_number(found.get(_IFLA_MTU)),
        mac=_mac(found.get(_IFLA_ADDRESS)),
        master=_number(found.get(_IFLA_MASTER)),
        peer=_number(found.get(_IFLA_LINK)),
        kind=kind,
        local=local,
        remote=remote,
        vni=vni,
        port=port,
        guarded=_INFO_SLAVE_DATA in info and _guarded(attributes(info[_INFO_SLAVE_DATA])),
    )


def _guarded(port: dict[int, bytes]) -> bool:
    off = (_BRPORT_LEARNING, _BRPORT_UNICAST_FLOOD, _BRPORT_MCAST_FLOOD)
    return _number(port.get(_BRPORT_GROUP_FWD_MASK)) == ALL_GROUPS and all(
        port.get(number) == b"\0" for number in off
    )


def link_name(body: bytes) -> tuple[int, str]:
    """Return index and name of a link without reading the rest: the kernel puts the name first."""
    index = _IFINFO.unpack_from(body)[2]
    length, kind = _ATTRIBUTE.unpack_from(body, _IFINFO.size)
    if kind == _IFLA_IFNAME:
        return index, _text(body[_IFINFO.size + 4 : _IFINFO.size + length])
    return index, _text(attributes(body, _IFINFO.size).get(_IFLA_IFNAME))


def link_up(body: bytes) -> bool:
    """Tell whether a link is up, without reading the rest."""
    flags: int = _IFINFO.unpack_from(body)[3]
    return bool(flags & UP)


def family(body: bytes) -> int:
    """Return the address family of any of rtnetlink's messages."""
    return body[0]


@attrs.frozen
class LinkAddress:
    """One IPv4 address of a link, ``a.b.c.d/len``.

    Attributes:
        scope: RT_SCOPE_*, see rtnetlink(7): how far away it means something; 0: everywhere.
    """

    index: int
    address: str
    scope: int = 0


def link_address(body: bytes) -> LinkAddress:
    """Read an RTM_NEWADDR or RTM_DELADDR."""
    _, length, _, scope, index = _ADDR.unpack_from(body)
    found = attributes(body, _ADDR.size)
    local = found.get(2, found.get(1))  # IFA_LOCAL; IFA_ADDRESS is the far end of a point-to-point link
    return LinkAddress(index, f"{_address(local)}/{length}", scope)


@attrs.frozen
class KernelRoute:
    """One IPv4 route.

    Attributes:
        destination: ``a.b.c.d/len``.
        kind: RTN_*, see rtnetlink(7).
        index: Of the link it goes along; 0: of none.
    """

    destination: str
    table: int
    protocol: int
    kind: int
    index: int
    gateway: str
    source: str
    metric: int
    mtu: int


def route(body: bytes) -> KernelRoute:
    """Read an RTM_NEWROUTE or RTM_DELROUTE."""
    _, length, _, _, table, protocol, _, kind, _ = _RTMSG.unpack_from(body)
    found = attributes(body, _RTMSG.size)
    metrics = attributes(found.get(8, b""))
    return KernelRoute(
        destination=f"{_address(found.get(1)) or '0.0.0.0'}/{length}",  # noqa: S104 - the default route's form
        table=_number(found.get(15)) or table,
        protocol=protocol,
        kind=kind,
        index=_number(found.get(4)),
        gateway=_address(found.get(5)),
        source=_address(found.get(7)),
        metric=_number(found.get(6)),
        mtu=_number(metrics.get(2)),
    )


@attrs.frozen
class Neighbour:
    """One IPv4 neighbour."""

    index: int
    address: str
    mac: str
    permanent: bool


def neighbour(body: bytes) -> Neighbour:
    """Read an RTM_NEWNEIGH."""
    _, index, state, _, _ = _NEIGH.unpack_from(body)
    found = attributes(body, _NEIGH.size)
    return Neighbour(index, _address(found.get(1)), _mac(found.get(2)), bool(state & PERMANENT))
