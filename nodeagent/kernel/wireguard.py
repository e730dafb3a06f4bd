"""WireGuard's generic netlink messages, as bytes, and what its answers say. Talks to no kernel.

Layouts and numbers are those of linux/wireguard.h, linux/genetlink.h and linux/netlink.h; keys are 32 bytes
of Curve25519. They are made by hand, since they are three.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import attrs

from firewall_rules import names
from nodeagent.kernel.decode import attributes
from nodeagent.kernel_state import WireguardPeer

FIRST_PORT: Final = 51820
"""UDP port of a link whose key's generation is even: WireGuard's customary one. The next one: odd."""
KEEPALIVE: Final = 25
"""Seconds between packets to a peer that is sent nothing else, so that whatever stands between keeps the way
open. That it is set also has a new peer's handshake begin at once (set_peer, drivers/net/wireguard)."""

_CONTROLLER = 16  # GENL_ID_CTRL
_GETFAMILY = 3
_FAMILY_ID = 1
_FAMILY_NAME = 2
_GET_DEVICE = 0
_SET_DEVICE = 1
_VERSION = 1

_REQUEST = 0x1
_DUMP = 0x300
_NESTED = 0x8000

_IFNAME = 2
_PRIVATE_KEY = 3
_PUBLIC_KEY = 4
_LISTEN_PORT = 6
_MARK = 7
_PEERS = 8

_PEER_KEY = 1
_PEER_FLAGS = 3
_PEER_ENDPOINT = 4
_PEER_KEEPALIVE = 5
_PEER_ALLOWED = 9
_REMOVE = 0x1
_REPLACE_ALLOWED = 0x2

_ALLOWED_FAMILY = 1
_ALLOWED_ADDRESS = 2
_ALLOWED_LENGTH = 3

_PEERS_A_MESSAGE = 64
"""A nested attribute holds 64 KiB; a peer of ours takes about 120 bytes."""

_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBxx")
_SOCKET_ADDRESS = struct.Struct("=H2s4s8x")  # struct sockaddr_in; the port's bytes are big-endian


def listen_port(generation: int) -> int:
    """Return the UDP port of the link that holds the node's key of `generation`: two take turns."""
    return FIRST_PORT + generation % 2


@attrs.frozen
class Seen:
    """What a kernel says of one WireGuard link.

    Attributes:
        key: Public half of the key it holds, in hexadecimal; empty: it holds none.
        port: UDP port it listens at.
        mark: Packet mark of what it sends.
    """

    key: str = ""
    port: int = 0
    mark: int = 0
    peers: frozenset[WireguardPeer] = frozenset()


def get_family() -> bytes:
    """Ask for WireGuard's number, which `family` reads out of the answer."""
    return _message(_CONTROLLER, _GETFAMILY, 0, _attribute(_FAMILY_NAME, b"wireguard\0"))


def family(body: bytes) -> int:
    """Return the type of WireGuard's messages; 0: the kernel has no WireGuard."""
    return int.from_bytes(attributes(body, _GENERIC.size).get(_FAMILY_ID, b""), sys.byteorder)


def get_device(family_number: int, device: str) -> bytes:
    """Ask for everything of one link."""
    return _message(family_number, _GET_DEVICE, _DUMP, _name(device))


def seen(bodies: Iterable[bytes]) -> Seen:
    """Read the answers to `get_device`, over which a link with many peers is spread."""
    own: dict[int, bytes] = {}
    peers: dict[str, tuple[tuple[str, int], list[str]]] = {}
    for body in bodies:
        found = attributes(body, _GENERIC.size)
        own = found | own
        for peer in map(attributes, _each(found.get(_PEERS, b""))):
            # A peer that did not fit goes on in the next answer, with its key and the rest of its networks.
            known = peers.setdefault(peer[_PEER_KEY].hex(), (_endpoint(peer), []))
            known[1].extend(map(_network, map(attributes, _each(peer.get(_PEER_ALLOWED, b"")))))
    return Seen(
        own.get(_PUBLIC_KEY, b"").hex(),
        int.from_bytes(own.get(_LISTEN_PORT, b""), sys.byteorder),
        int.from_bytes(own.get(_MARK, b""), sys.byteorder),
        frozenset(
            WireguardPeer(",".join(sorted(networks)), peer, *endpoint)
            for peer, (endpoint, networks) in peers.items()
        ),
    )


def _endpoint(peer: Mapping[int, bytes]) -> tuple[str, int]:
    data = peer.get(_PEER_ENDPOINT, b"")
    if len(data) != _SOCKET_ADDRESS.size:
        return "", 0  # none, or an IPv6 one, which we never set
    _, port, address = _SOCKET_ADDRESS.unpack(data)
    return socket.inet_ntoa(address), int.from_bytes(port, "big")


def _network(allowed: Mapping[int, bytes]) -> str:
    address = allowed.get(_ALLOWED_ADDRESS, b"")
    family_of_address = socket.AF_INET if len(address) == 4 else socket.AF_INET6  # noqa: PLR2004 - an IPv4 address
    length = int.from_bytes(allowed.get(_ALLOWED_LENGTH, b""), sys.byteorder)
    return f"{socket.inet_ntop(family_of_address, address)}/{length}"


def set_device(
    family_number: int,
    device: str,
    before: Seen,
    *,
    private_key: bytes,
    port: int,
    peers: frozenset[WireguardPeer],
) -> list[bytes]:
    """Return what brings one link to this form; nothing is said of what stays.

    A peer whose key is new takes its block over before the one that had it goes, so that there is no moment
    at which nobody has it.

    Args:
        family_number: From `family`.
        device: The link's name.
        before: What it is now.
        private_key: 32 bytes, set where the link has no key; empty: it has ours.
        port: UDP port to listen at.
        peers: All of them.
    """
    own = [_attribute(_PRIVATE_KEY, private_key)] if private_key else []
    if before.mark != names.OUTER_MARK:
        own.append(_attribute(_MARK, struct.pack("=I", names.OUTER_MARK)))
    if port != before.port:
        own.append(_attribute(_LISTEN_PORT, struct.pack("=H", port)))
    known = {peer.key: peer for peer in before.peers}
    wanted = {peer.key for peer in peers}
    entries = [_peer(one, known.get(one.key)) for one in sorted(peers - before.peers)]
    entries += [_gone(key) for key in sorted(known.keys() - wanted)]
    parts = [entries[start : start + _PEERS_A_MESSAGE] for start in range(0, len(entries), _PEERS_A_MESSAGE)]
    if not parts:
        return [_message(family_number, _SET_DEVICE, 0, _name(device), *own)] if own else []
    return [
        _message(
            family_number,
            _SET_DEVICE,
            0,
            _name(device),
            *(own if number == 0 else ()),
            _nested(_PEERS, part),
        )
        for number, part in enumerate(parts)
    ]


def _peer(wanted: WireguardPeer, known: WireguardPeer | None) -> bytes:
    """Return one peer's entry; what its link has of it already is left as it is."""
    parts = [_attribute(_PEER_KEY, bytes.fromhex(wanted.key))]
    if known is None or known.block != wanted.block:
        parts.append(_attribute(_PEER_FLAGS, struct.pack("=I", _REPLACE_ALLOWED)))
    if known is None or (known.endpoint, known.port) != (wanted.endpoint, wanted.port):
        port, address = wanted.port.to_bytes(2, "big"), socket.inet_aton(wanted.endpoint)
        parts.append(_attribute(_PEER_ENDPOINT, _SOCKET_ADDRESS.pack(socket.AF_INET, port, address)))
    parts.append(_attribute(_PEER_KEEPALIVE, struct.pack("=H", KEEPALIVE)))
    if known is None or known.block != wanted.block:
        address_text, _, length = wanted.block.partition("/")
        allowed = (
            _attribute(_ALLOWED_FAMILY, struct.pack("=H", socket.AF_INET)),
            _attribute(_ALLOWED_ADDRESS, socket.inet_aton(address_text)),
            _attribute(_ALLOWED_LENGTH, bytes((int(length),))),
        )
        parts.append(_nested(_PEER_ALLOWED, [b"".join(allowed)]))
    return b"".join(parts)


def _gone(key: str) -> bytes:
    return _attribute(_PEER_KEY, bytes.fromhex(key)) + _attribute(_PEER_FLAGS, struct.pack("=I", _REMOVE))


# --- forms ------------------------------------------------------------------------------------------


def _message(kind: int, command: int, modifiers: int, *parts: bytes) -> bytes:
    body = _GENERIC.pack(command, _VERSION) + b"".join(parts)
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | modifiers, 0, 0) + body


def _attribute(number: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), number) + value + bytes(-len(value) % 4)


def _nested(number: int, entries: Sequence[bytes]) -> bytes:
    return _attribute(number | _NESTED, b"".join(_attribute(_NESTED, entry) for entry in entries))


def _name(device: str) -> bytes:
    return _attribute(_IFNAME, device.encode() + b"\0")


def _each(data: bytes) -> Iterator[bytes]:
    """Yield the values of a list's entries, whose numbers mean nothing."""
    offset = 0
    while offset + 4 <= len(data):
        length, _ = struct.unpack_from("=HH", data, offset)
        if length < 4:  # noqa: PLR2004 - an attribute's own header
            return
        yield data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
