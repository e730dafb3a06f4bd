"""Much through a connection, and what it looks like on the wire meanwhile."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Sequence
from typing import Self

from tests.support.netns import BLOCKED_AFTER, Namespace, readable

MEGABYTE = 1 << 20
PATIENCE = 60.0
"""Seconds without any progress after which a flow counts as stuck."""
_CAPTURED = 64 * MEGABYTE
_RCVBUFFORCE = 33  # SO_RCVBUFFORCE, asm-generic/socket.h


def carry(source: Namespace, target: Namespace, to: tuple[str, int], payload: Sequence[bytes]) -> None:
    """Send all of `payload` through one TCP connection, and see that it arrives as it was.

    Args:
        source: Where the connection is opened.
        target: Where it leads.
        to: The target's address, and a port.
        payload: What to send, one after the other.
    """
    with (
        target.socket(socket.AF_INET, socket.SOCK_STREAM) as listener,
        source.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(to)
        listener.listen()
        client.settimeout(PATIENCE)
        client.connect(to)
        served, _ = listener.accept()

        def send() -> None:
            for one in payload:
                client.sendall(one)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        seen, count = hashlib.sha256(), 0
        with served:
            served.settimeout(PATIENCE)
            while chunk := served.recv(MEGABYTE):
                seen.update(chunk)
                count += len(chunk)
        sender.join()
    assert count == sum(map(len, payload))
    assert seen.digest() == hashlib.sha256(b"".join(payload)).digest()


class Counted:
    """Numbered datagrams from one container to another, a steady stream of them while this is entered."""

    def __init__(self, source: Namespace, target: Namespace, to: tuple[str, int]) -> None:
        self._server = target.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._server.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, MEGABYTE)
        self._server.bind(to)
        self._client = source.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._client.connect(to)
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._sent = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
        self._client.close()
        self._server.close()

    def _send(self) -> None:
        while not self._left.wait(0.005):
            self._client.send(self._sent.to_bytes(4))
            self._sent += 1

    def lost(self) -> list[int]:
        """End the stream; return the numbers of those that were sent and did not arrive."""
        self._left.set()
        self._thread.join()
        arrived = set()
        while readable(self._server, BLOCKED_AFTER):
            arrived.add(int.from_bytes(self._server.recv(4)))
        assert arrived, "the control: some did arrive"
        return sorted({*range(self._sent)} - arrived)


class Wire:
    """Every frame that passes a link while this is entered, both directions (AF_PACKET).

    Attributes:
        frames: As they passed; complete once it is left.
    """

    def __init__(self, namespace: Namespace, link: str) -> None:
        self.frames: list[bytes] = []
        self._socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        # Room for all of it: what does not fit is lost to the one who looks, not to whom it is for.
        self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, _CAPTURED)
        self._socket.bind((link, 0x0003))
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        # Once it is left, what is there already is still taken in.
        while readable(self._socket, 0.05) or not self._left.is_set():
            if readable(self._socket, 0):
                self.frames.append(self._socket.recv(1 << 17))
