"""Forgetting tracked flows that begin at a port which leads elsewhere now.

The messages are those of linux/netfilter/nfnetlink_conntrack.h.

A flow is translated where it begins and stays so for as long as anything is sent. A UDP client that goes on
sending from one port would never come to a container that took over its server's port, nor to one that came
later than its first datagram. TCP clients begin anew by themselves.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final

import attrs

from firewall_rules.backends.base import FirewallError
from firewall_rules.policy import Publication

_HEAD: Final = struct.Struct("=IHHIIBBH")
"""nlmsghdr and nfgenmsg."""
_ATTRIBUTE: Final = struct.Struct("=HH")
_TYPE_MASK: Final = 0x3FFF
_NESTED: Final = 0x8000
_NETLINK_NETFILTER: Final = 12
_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ERROR, _DONE = 2, 3
_TUPLE_ORIG, _TUPLE_REPLY, _FILTER = 1, 2, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_V4_SRC, _V4_DST = 1, 2
_PROTO_NUM, _SRC_PORT, _DST_PORT = 1, 2, 3
_FILTER_ORIG_FLAGS: Final = 1
_BY_PROTOCOL_AND_PORT: Final = (1 << 3) | (1 << 5)
"""CTA_FILTER_FLAG of CTA_PROTO_NUM and CTA_PROTO_DST_PORT, which kernels from 5.8 on look at."""
_UDP: Final = socket.IPPROTO_UDP
_TIMEOUT: Final = 5.0
_BUFFER: Final = 1 << 16


@attrs.frozen
class _Ends:
    """Source and destination of one direction of a flow, with their ports."""

    source: tuple[str, int]
    destination: tuple[str, int]


def forget_flows(publications: Iterable[Publication]) -> None:
    """Forget the UDP flows of this namespace that begin at one of `publications`, and lead to it or nowhere.

    Raises:
        FirewallError: The kernel refused.
    """
    touched = [one for one in publications if one.protocol == "udp"]
    if not touched:
        return
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
        ) as asked:
            asked.settimeout(_TIMEOUT)
            for host_port in {one.host_port for one in touched}:
                ours = [one for one in touched if one.host_port == host_port]
                # All are heard before one is deleted: a dump goes on while it is read.
                for original in list(_stale(asked, host_port, ours)):
                    _delete(asked, original)
    except (OSError, struct.error) as error:
        raise FirewallError(f"tracked flows cannot be forgotten: {error}") from error


def _stale(asked: socket.socket, host_port: int, ours: list[Publication]) -> Iterator[bytes]:
    """Yield the first tuple, as the kernel gave it, of each flow that is to be forgotten."""
    for attributes in _flows_to(asked, host_port):
        forth, back = _ends(attributes.get(_TUPLE_ORIG, b"")), _ends(attributes.get(_TUPLE_REPLY, b""))
        if forth is None or back is None or forth.destination[1] != host_port:
            continue
        nowhere = back == _Ends(forth.destination, forth.source)
        if any(
            one.host_address in {"", forth.destination[0]}
            and (nowhere or back.source == (one.address, one.port))
            for one in ours
        ):
            yield attributes[_TUPLE_ORIG]


def _flows_to(asked: socket.socket, port: int) -> Iterator[dict[int, bytes]]:
    protocol = _attribute(_PROTO_NUM, bytes([_UDP])) + _attribute(_DST_PORT, struct.pack("!H", port))
    body = _attribute(_TUPLE_ORIG | _NESTED, _attribute(_TUPLE_PROTO | _NESTED, protocol))
    wanted = _attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", _BY_PROTOCOL_AND_PORT))
    body += _attribute(_FILTER | _NESTED, wanted)
    asked.send(_message(_GET, _REQUEST | _DUMP, body))
    while True:
        for kind, message in _messages(asked.recv(_BUFFER)):
            if kind == _DONE:
                return
            if kind == _ERROR:
                _raise_for(message)
            yield dict(_attributes(message[4:]))


def _delete(asked: socket.socket, original: bytes) -> None:
    asked.send(_message(_DELETE, _REQUEST | _ACK, _attribute(_TUPLE_ORIG | _NESTED, original)))
    for kind, message in _messages(asked.recv(_BUFFER)):
        if kind == _ERROR:
            try:
                _raise_for(message)
            except FileNotFoundError:
                # It ended by itself in between, which is what was wanted.
                continue


def _raise_for(message: bytes) -> None:
    (number,) = struct.unpack_from("=i", message)
    if number:
        raise OSError(-number, "conntrack")


def _ends(flow: bytes) -> _Ends | None:
    """Return the ends of a tuple, None where it is none of UDP over IPv4."""
    parts = dict(_attributes(flow))
    addresses, protocol = (
        dict(_attributes(parts.get(_TUPLE_IP, b""))),
        dict(_attributes(parts.get(_TUPLE_PROTO, b""))),
    )
    if protocol.get(_PROTO_NUM) != bytes([_UDP]) or not {_V4_SRC, _V4_DST} <= addresses.keys():
        return None
    source, destination = (int.from_bytes(protocol[port]) for port in (_SRC_PORT, _DST_PORT))
    return _Ends(
        (socket.inet_ntoa(addresses[_V4_SRC]), source), (socket.inet_ntoa(addresses[_V4_DST]), destination)
    )


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return _HEAD.pack(_HEAD.size + len(body), kind, flags, 0, 0, socket.AF_INET, 0, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the kind and what follows the nlmsghdr (16 bytes) of each message."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        yield kind, data[offset + 16 : offset + length]
        offset += max(16, (length + 3) & ~3)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        yield kind & _TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += max(_ATTRIBUTE.size, (length + 3) & ~3)
