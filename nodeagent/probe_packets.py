"""Probes as bytes: IPv4 packets that ask the other end of a way to send the same number of bytes back. Pure.

    IPv4 header (RFC 791), 20 bytes: protocol 253 (RFC 3692), don't fragment, time to live 255
    magic, 4 bytes | version, 1 | kind, 1 | total length, 2 | nonce, 8 | zeros up to the total length

A time to live of 255 on arrival says that no router has forwarded it (RFC 5082): it came in by the link it
was sent on.
"""

from __future__ import annotations

import socket
import struct
from typing import Final, Literal

import attrs

PROTOCOL: Final = 253
"""For experimentation and testing (RFC 3692, section 2.1)."""
MAGIC: Final = b"nctp"
MAGIC_AT: Final = 20
"""Bytes of the packet before MAGIC."""
SMALL: Final = 64
"""Bytes of the smallest probe, which any path takes."""
LARGEST: Final = 65535
NONCE_BYTES: Final = 8

_VERSION: Final = 1
_PLAIN: Final = 0x45  # version 4, no options
_DONT_FRAGMENT: Final = 0x4000
_TIME_TO_LIVE: Final = 255
_KINDS: Final[tuple[Kind, ...]] = ("request", "reply")
_HEADER = struct.Struct("!BBHHHBBH4s4s")
_BODY = struct.Struct(f"!4sBBH{NONCE_BYTES}s")

Kind = Literal["request", "reply"]


@attrs.frozen
class Probe:
    """One probe.

    Attributes:
        source: Address of its sender's bridge.
        destination: That of the bridge it is for.
        kind: A request is answered by a reply of the same size with the same nonce.
        nonce: NONCE_BYTES that nobody can guess who has not seen the request.
        size: Bytes of the whole IP packet, SMALL to LARGEST.
    """

    source: str
    destination: str
    kind: Kind
    nonce: bytes
    size: int

    def reply(self) -> Probe:
        """Return the answer to this request."""
        return Probe(self.destination, self.source, "reply", self.nonce, self.size)


def encode(probe: Probe) -> bytes:
    """Return the packet, from its IPv4 header on."""
    addresses = socket.inet_aton(probe.source), socket.inet_aton(probe.destination)
    fields = (_PLAIN, 0, probe.size, 0, _DONT_FRAGMENT, _TIME_TO_LIVE, PROTOCOL)
    header = _HEADER.pack(*fields, checksum(_HEADER.pack(*fields, 0, *addresses)), *addresses)
    body = _BODY.pack(MAGIC, _VERSION, 1 + _KINDS.index(probe.kind), probe.size, probe.nonce)
    return (header + body).ljust(probe.size, b"\0")


def decode(packet: bytes) -> Probe | None:
    """Return the probe that a packet is; None: it is none, or not whole."""
    if len(packet) < SMALL:
        return None
    form, _, total, _, fragment, ttl, protocol, _, source, destination = _HEADER.unpack_from(packet)
    magic, version, kind, length, nonce = _BODY.unpack_from(packet, _HEADER.size)
    if (
        (form, fragment, ttl, protocol) != (_PLAIN, _DONT_FRAGMENT, _TIME_TO_LIVE, PROTOCOL)
        or (magic, version) != (MAGIC, _VERSION)
        or not SMALL <= total == length <= len(packet)
        or not 1 <= kind <= len(_KINDS)
        or checksum(packet[: _HEADER.size])
    ):
        return None
    return Probe(socket.inet_ntoa(source), socket.inet_ntoa(destination), _KINDS[kind - 1], nonce, total)


def checksum(header: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes; 0: the one inside is right."""
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
