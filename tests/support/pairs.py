"""Two containers of a lab, how packets fare between them, and a flow that does not end by itself."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import attrs

from tests.support.lab import Lab
from tests.support.netns import (
    BLOCKED_AFTER,
    PASSES_WITHIN,
    Namespace,
    ping_passes,
    readable,
    tcp_passes,
    udp_passes,
)


@attrs.frozen
class Two:
    """Two containers, and how packets fare between them."""

    one: Namespace
    one_address: str
    other: Namespace
    other_address: str

    def tcp(self, port: int, *, seconds: float = BLOCKED_AFTER) -> bool:
        return tcp_passes(self.one, self.other, self.other_address, port, seconds=seconds)

    def tcp_back(self, port: int) -> bool:
        return tcp_passes(self.other, self.one, self.one_address, port)

    def udp(self, port: int, size: int = 8) -> bool:
        return udp_passes(self.one, self.other, self.other_address, port, size=size)

    def ping(self) -> bool:
        return ping_passes(self.one, self.other_address)


@contextlib.contextmanager
def two(lab: Lab, one: str, other: str, nodes: tuple[str, str] = ("n1", "n2")) -> Iterator[Two]:
    """Run two containers, on two nodes unless told otherwise, and remove them."""
    lab.run(one, "--node", nodes[0])
    lab.run(other, "--node", nodes[1])
    try:
        yield Two(lab.namespace(one), lab.address(one), lab.namespace(other), lab.address(other))
    finally:
        lab.netctl("rm", "--force", one, status=None)
        lab.netctl("rm", "--force", other, status=None)


class Stream:
    """A TCP flow that sends without end, and a count of what arrives."""

    def __init__(self, pair: Two, port: int) -> None:
        self._listener = pair.other.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("", port))
        self._listener.listen()
        self._client = pair.one.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._client.settimeout(PASSES_WITHIN)
        self._client.connect((pair.other_address, port))
        self._served, _ = self._listener.accept()
        self._client.settimeout(0.2)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                self._client.send(b"x" * 4096)

    def flows(self, seconds: float) -> bool:
        """Whether anything arrives that was not there already."""
        # What the socket holds came before; the question is what comes after it.
        self._served.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self._served.recv(1 << 20):
                pass
        return readable(self._served, seconds)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        for sock in (self._client, self._served, self._listener):
            sock.close()


def check_that_disconnect_cuts(lab: Lab, pair: Two) -> None:
    """Show that a running flow between web and db ends with its record, and one on another port goes on."""
    lab.netctl("connect", "web", "db", "--port", "1000", "--port", "1001")
    cut, kept = Stream(pair, 1000), Stream(pair, 1001)
    try:
        assert cut.flows(PASSES_WITHIN)
        assert kept.flows(PASSES_WITHIN)
        lab.netctl("disconnect", "web", "db", "--port", "1000")
        assert not cut.flows(1.0)
        assert kept.flows(PASSES_WITHIN)
        lab.netctl("connect", "web", "db", "--port", "1000")
        # The control: the flow was cut by rules alone, so it goes on when they allow it again.
        assert cut.flows(30.0)
    finally:
        cut.close()
        kept.close()
