"""How the messages of `nodeagent.helper_messages` cross the socket pair, descriptors beside them.

A message is one or more packets; the first byte of each says whether another follows. Descriptors come
with the last one. Kernel buffers take packets of some 200 KB; ours are smaller.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

from netctl.errors import UnavailableError
from netctl.wire.codec import decode_tagged, encode_tagged
from nodeagent.helper_messages import MESSAGES

MAX_HELPER_MESSAGE: Final = 64 * 2**20
"""Bytes of the largest message: the observed state of a full node, all its openings included."""

_PACKET = 96 * 2**10
_LAST = b"\0"
_MORE = b"\1"
_MAX_DESCRIPTORS = 3


def encode(message: Any) -> bytes:
    """Return the bytes of one message.

    Raises:
        InvalidError: It is too large.
    """
    return encode_tagged(message, MESSAGES, MAX_HELPER_MESSAGE)


def send(sock: socket.socket, message: Any, descriptors: Sequence[int] = ()) -> None:
    """Send one message, and wait until it is on its way.

    Raises:
        InvalidError: The message is too large.
        UnavailableError: The other side is gone, or does not read.
    """
    *first, last = packets(encode(message))
    for packet in first:
        send_packet(sock, packet)
    if not descriptors:
        send_packet(sock, last)
        return
    try:
        socket.send_fds(sock, [last], descriptors)
    except OSError as error:
        raise gone(error) from error


def packets(data: bytes) -> list[bytes]:
    """Return the packets that a message, as `encode` returned it, is sent in: one after the other."""
    parts = [data[start : start + _PACKET] for start in range(0, len(data), _PACKET)]
    return [*(_MORE + part for part in parts[:-1]), _LAST + parts[-1]]


def send_packet(sock: socket.socket, packet: bytes) -> None:
    """Send one packet, and wait until it is on its way.

    Raises:
        UnavailableError: The other side is gone, or does not read.
    """
    try:
        sock.send(packet)
    except OSError as error:
        raise gone(error) from error


def send_at_once(sock: socket.socket, packet: bytes) -> bool:
    """Send one packet without waiting; return whether there was room.

    Raises:
        UnavailableError: The other side is gone.
    """
    try:
        sock.send(packet, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError as error:
        raise gone(error) from error
    return True


def receive(sock: socket.socket, *, descriptors: bool) -> tuple[Any, tuple[int, ...]]:
    """Wait for one message; return it and what came beside it.

    Args:
        sock: One end of the pair.
        descriptors: Whether the other side is trusted to send descriptors; if not, the kernel drops them.

    Raises:
        ProtocolError: It is too large, or no message; the other side is of another version, or hostile.
        UnavailableError: The other side is gone, or did not answer in the socket's time.
    """
    parts: list[bytes] = []
    beside: list[int] = []
    size = 0
    try:
        while True:
            packet = _packet(sock, beside if descriptors else None)
            parts.append(packet[1:])
            size += len(packet)
            # One that is too large is not kept whole: the codec refuses what was read of it.
            if packet[:1] != _MORE or size > MAX_HELPER_MESSAGE:
                return decode_tagged(b"".join(parts), MESSAGES, MAX_HELPER_MESSAGE), tuple(beside)
    except OSError as error:
        close_all(beside)
        raise gone(error) from error
    except BaseException:
        close_all(beside)
        raise


def _packet(sock: socket.socket, beside: list[int] | None) -> bytes:
    if beside is None:
        packet = sock.recv(_PACKET + 1)
    else:
        packet, received, _, _ = socket.recv_fds(sock, _PACKET + 1, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        beside.extend(received)
    if not packet:
        raise ConnectionResetError
    return packet


def gone(error: OSError) -> UnavailableError:
    """Return the error for a socket pair whose other side is gone."""
    why = "did not answer in time" if isinstance(error, TimeoutError) else "is gone"
    return UnavailableError(f"the other half of the node agent {why}", "see the node agent's log")


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors, whatever state they are in."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
