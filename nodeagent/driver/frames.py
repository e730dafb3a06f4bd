"""What the holder of the plugin's socket and the agent say to each other, one packet (SOCK_SEQPACKET) each.

A packet is one line of JSON, then, after its newline, the body of one of Docker's calls or of its answer as
it is. Holder to agent: ``{"id", "path", "until"}`` with a call's body, or ``{"ping": number, "refused":
count}``. Agent to holder: ``{"id"}`` with the answer's body, or ``{"pong": number}``.

`until` is when the holder may have given the call up, in seconds of the host's monotonic clock: one that is
read later was refused already. `refused` counts the calls that were refused because no agent answered,
since the holder's start: an agent that hears of new ones looks what became of them.
"""

from __future__ import annotations

import json
import socket
from typing import Final

MAX_FRAME: Final = 320 * 1024
"""Bytes of the longest packet: the longest body, and its line."""
MAX_LINE: Final = 4096


def frame(line: dict[str, object], body: bytes = b"") -> bytes:
    """Return one packet."""
    return json.dumps(line).encode() + b"\n" + body


def parse_frame(data: bytes) -> tuple[dict[str, object], bytes]:
    """Return a packet's line and body.

    Raises:
        ValueError: It is none.
    """
    line, newline, body = data.partition(b"\n")
    if not newline or len(line) > MAX_LINE:
        raise ValueError("a packet without its line")
    head = json.loads(line)
    if not isinstance(head, dict):
        raise ValueError("a packet's line is no object")  # noqa: TRY004 - to the caller all of it is one error
    return head, body


def make_room(sock: socket.socket) -> None:
    """Let the largest packet be sent; the kernel's default may be smaller (`net.core.wmem_default`)."""
    # Without the right to go beyond net.core.wmem_max, that is what one gets; its usual value suffices.
    option = socket.SO_SNDBUF
    if sock.getsockopt(socket.SOL_SOCKET, option) < 2 * MAX_FRAME:
        sock.setsockopt(socket.SOL_SOCKET, option, 2 * MAX_FRAME)
