"""Whether a port of this host can be had: asked of its kernel."""

from __future__ import annotations

import errno
import socket
from typing import Literal


def probe_port(protocol: Literal["tcp", "udp"], address: str, port: int) -> str:
    """Say why `port` cannot be had at `address` (empty: at all); empty: it can.

    A program that listens there would be cut off by the publication, without either noticing.
    """
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC) as sock:
        if protocol == "tcp":
            # Then only one that listens is in the way, not connections that ended a minute ago: socket(7).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "port is already allocated"
            return (error.strerror or str(error)).lower()
    return ""
