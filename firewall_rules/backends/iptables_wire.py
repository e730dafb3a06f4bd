"""What the iptables backend and its worker process say to each other.

A request is 4 bytes of length with the namespace's descriptor beside them (SCM_RIGHTS), then msgpack; so is
an answer, without a descriptor.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

import attrs

from firewall_rules.backends.iptables_rules import IpsetSet, IptablesTables

LENGTH: Final = struct.Struct(">I")
MESSAGE_LIMIT: Final = 1 << 28

Element = tuple[tuple[str, ...], float | None]


@attrs.frozen
class Install:
    """Put everything in place, whole.

    Attributes:
        elements: Of each set, with the seconds they have left.
        forgotten: Peers to which no tracked flow may remain.
    """

    tables: IptablesTables
    elements: dict[str, list[Element]]
    forgotten: frozenset[str]


@attrs.frozen
class Change:
    """Change elements: for each set those that must be gone, and those that must be there."""

    sets: tuple[tuple[IpsetSet, list[tuple[str, ...]], list[Element]], ...]
    forgotten: frozenset[str]


@attrs.frozen
class List:
    """Say what is there of ours, in `sets` and in the chains."""

    sets: tuple[IpsetSet, ...]


@attrs.frozen
class Remove:
    """Take everything of ours out."""


@attrs.frozen
class Listed:
    """What is there.

    Attributes:
        rules: As `firewall_rules.backends.iptables.listed` gives them.
        elements: By set; None: there is no such set.
    """

    rules: list[Any]
    elements: dict[str, list[Element] | None]


@attrs.frozen
class Answer:
    """What came of a request.

    Attributes:
        error: Empty: it was done.
        listed: Of a `List`.
    """

    error: str = ""
    listed: Listed | None = None


REQUESTS: Final[dict[str, type]] = {kind.__name__: kind for kind in (Install, Change, List, Remove)}


def receive(sock: socket.socket, size: int) -> bytes:
    """Return exactly `size` bytes.

    Raises:
        EOFError: The other end closed.
    """
    data = bytearray()
    while len(data) < size:
        part = sock.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
