"""What a container sends that says everything at once: `python3 FILE ADDRESS...`, standard library only.

To every address go TCP, UDP and ICMP; then IPv6 to everybody on the link, and frames past its own firewall's
output hooks (AF_PACKET). It goes on for half a second, since a firewall could stand late.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import time

SECONDS = 0.5
PORT = 7777
MARK = b"first-words"


def echo_request() -> bytes:
    """An ICMP echo request (RFC 792) that holds the mark."""
    data = MARK + b"\0" * (len(MARK) % 2)
    words = struct.unpack(f"!{len(data) // 2}H", data)
    total = 0x0800 + sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBHHH", 8, 0, ~total & 0xFFFF, 0, 0) + data


def speak(addresses: list[str]) -> None:
    """Send one of everything."""
    for address in addresses:
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.setblocking(False)
        with contextlib.suppress(OSError):
            client.connect((address, PORT))
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(MARK, (address, PORT))
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_RAW, 1) as sock:
            sock.sendto(echo_request(), (address, 0))
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.sendto(MARK, ("ff02::1", PORT, 0, socket.if_nametoindex("eth0")))
    with contextlib.suppress(OSError), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind(("eth0", 0))
        source = sock.getsockname()[4]
        for ethertype in (0x0800, 0x86DD, 0x0806, 0x88B5):
            sock.send(b"\xff" * 6 + source + struct.pack("!H", ethertype) + MARK.ljust(64, b"\0"))


def main() -> None:
    """Speak for a while."""
    end = time.monotonic() + SECONDS
    while True:
        speak(sys.argv[1:])
        if time.monotonic() > end:
            return
        time.sleep(0.005)


if __name__ == "__main__":
    main()
