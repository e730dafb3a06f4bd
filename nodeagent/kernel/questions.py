"""The rtnetlink questions we ask, as bytes; sequence numbers are the channel's to fill in.

They are few and plain, and made here by hand: what only looks, as every start of the node agent does, then
needs no encoder, which takes a tenth of a second to load. Layouts and numbers are those of rtnetlink(7),
linux/rtnetlink.h, linux/if_link.h and linux/neighbour.h.
"""

from __future__ import annotations

import functools
import struct
from typing import Final

NEWLINK: Final = 16
GETLINK: Final = 18
GETADDR: Final = 22
GETROUTE: Final = 26
GETNEIGH: Final = 30

_REQUEST = 0x1
_DUMP = 0x300
_CREATE = 0x400
_AF_INET = 2
_TABLE_MAIN = 254
_SKIP_STATS = 1 << 3  # RTEXT_FILTER_SKIP_STATS: counters are most of a link's dump

_IFLA_IFNAME = 3
_IFLA_LINKINFO = 18
_IFLA_EXT_MASK = 29
_INFO_KIND = 1
_INFO_DATA = 2
_GRE_REMOTE = 7
_VXLAN_ID = 1

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


def _message(number: int, modifiers: int, head: bytes, *attributes: bytes) -> bytes:
    body = head + b"".join(attributes)
    return _HEADER.pack(_HEADER.size + len(body), number, _REQUEST | modifiers, 0, 0) + body


def _attribute(number: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), number) + value + bytes(-len(value) % 4)


def _link_head(index: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, 0, 0)


def _name(device: str) -> bytes:
    return _attribute(_IFLA_IFNAME, device.encode() + b"\0")


_WITHOUT_COUNTERS: Final = _attribute(_IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATS))


@functools.lru_cache(maxsize=64)
def get_link(device: str) -> bytes:
    """Ask for one link."""
    return _message(GETLINK, 0, _link_head(), _WITHOUT_COUNTERS, _name(device))


@functools.cache
def get_loopback() -> bytes:
    """Ask for loopback, whatever its name is now: it has index 1 in every namespace."""
    return _message(GETLINK, 0, _link_head(1), _WITHOUT_COUNTERS)


@functools.cache
def dump_links() -> bytes:
    """Ask for every link, without counters."""
    return _message(GETLINK, _DUMP, _link_head(), _WITHOUT_COUNTERS)


@functools.lru_cache(maxsize=64)
def dump_addresses(index: int = 0) -> bytes:
    """Ask for every IPv4 address, or for those of the link of `index`."""
    return _message(GETADDR, _DUMP, struct.pack("=BBBBi", _AF_INET, 0, 0, 0, index))


@functools.cache
def dump_routes(protocol: int = 0, table: int = _TABLE_MAIN) -> bytes:
    """Ask for the IPv4 routes of a table (0: of all tables), of one protocol where given."""
    return _message(GETROUTE, _DUMP, struct.pack("=BBBBBBBBI", _AF_INET, 0, 0, 0, table, protocol, 0, 0, 0))


@functools.cache
def dump_neighbours() -> bytes:
    """Ask for every IPv4 neighbour."""
    return _message(GETNEIGH, _DUMP, struct.pack("=BBHiHBB", _AF_INET, 0, 0, 0, 0, 0, 0))


_TRIED: Final = {
    "gre": _attribute(_GRE_REMOTE, bytes((192, 0, 2, 2))),
    "vxlan": _attribute(_VXLAN_ID, b"\1\0\0\0"),
    "wireguard": b"",
}


def try_kind(kind: str) -> bytes:
    """Make a link of `kind` (gre, vxlan, wireguard) with the fewest settings, to see if the kernel can."""
    info = _attribute(_INFO_KIND, kind.encode() + b"\0") + _attribute(_INFO_DATA, _TRIED[kind])
    return _message(NEWLINK, _CREATE, _link_head(), _name("try-" + kind), _attribute(_IFLA_LINKINFO, info))
