"""What the demo runs inside containers: a server, probes and a stream. Standard library only, one file.

As a script: ``serve`` answers on its ports for ever; ``probe WHAT...`` prints a JSON object that says for
each of ``tcp:ADDRESS:PORT``, ``udp:ADDRESS:PORT``, ``icmp:ADDRESS`` and ``icmp6:ADDRESS%LINK`` whether it
was answered; ``stream ADDRESS PORT`` sends for ever; ``received PORT`` prints how many bytes a server there
has received on its first port.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import sys
import threading
import time

OPEN_PORT = 5432
OTHER_PORT = 5433
COUNT_PORT = 5434
PATIENCE = 0.7
"""Seconds without an answer after which a probe counts as blocked; an answer takes under a millisecond."""


class Server:
    """Answers on TCP and UDP ports, and counts what it receives."""

    def __init__(self) -> None:
        self.received = 0
        self._selector = selectors.DefaultSelector()
        for port in (OPEN_PORT, OTHER_PORT, COUNT_PORT):
            listener = socket.create_server(("0.0.0.0", port))  # noqa: S104 - inside a container, that is the point
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, port)
            datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            datagrams.bind(("0.0.0.0", port))  # noqa: S104 - the same
            self._selector.register(datagrams, selectors.EVENT_READ, "udp")

    def run(self) -> None:
        """Serve until the process is ended."""
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)  # noqa: S101 - nothing else is registered
                if key.data == "udp":
                    data, sender = sock.recvfrom(65536)
                    sock.sendto(data, sender)
                elif key.data == "peer":
                    self._receive(sock)
                else:
                    self._accept(sock, key.data)

    def _accept(self, listener: socket.socket, port: int) -> None:
        peer, _ = listener.accept()
        if port == COUNT_PORT:
            peer.sendall(str(self.received).encode())
            peer.close()
            return
        peer.sendall(b"hello")
        self._selector.register(peer, selectors.EVENT_READ, "peer")

    def _receive(self, peer: socket.socket) -> None:
        try:
            data = peer.recv(65536)
        except OSError:
            data = b""
        self.received += len(data)
        if not data:
            self._selector.unregister(peer)
            peer.close()


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _echo(sock: socket.socket, target: tuple[object, ...], kinds: tuple[int, int], header: bool) -> bool:  # noqa: FBT001 - private, called twice
    """Send an echo request (RFC 792, RFC 4443) and wait for its answer."""
    request, reply = kinds
    identifier = int.from_bytes(os.urandom(2), "big")
    packet = struct.pack("!BBHHH", request, 0, 0, identifier, 1)
    packet = packet[:2] + struct.pack("!H", _checksum(packet)) + packet[4:]
    sock.sendto(packet, target)
    deadline = time.monotonic() + PATIENCE
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        data = sock.recv(2048)
        start = (data[0] & 15) * 4 if header else 0
        kind, _, _, seen = struct.unpack_from("!BBHH", data, start)
        if (kind, seen) == (reply, identifier):
            return True
    return False


def answered(what: str) -> bool:
    """Return whether one probe was answered."""
    protocol, _, rest = what.partition(":")
    try:
        if protocol == "icmp":
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
                return _echo(sock, (rest, 0), (8, 0), header=True)
        if protocol == "icmp6":
            address, _, link = rest.partition("%")
            with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.getprotobyname("ipv6-icmp")) as sock:
                return _echo(sock, (address, 0, 0, socket.if_nametoindex(link)), (128, 129), header=False)
        address, _, port = rest.rpartition(":")
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.settimeout(PATIENCE)
            sock.connect((address, int(port)))
            if protocol == "udp":
                sock.send(b"hello")
            return sock.recv(5) == b"hello"
    except OSError:
        return False


def probe(what: list[str]) -> dict[str, bool]:
    """Return which probes were answered; all are sent at once."""
    results: dict[str, bool] = {}

    def one(each: str) -> None:
        results[each] = answered(each)

    threads = [threading.Thread(target=one, args=(each,)) for each in what]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def stream(address: str, port: int) -> None:
    """Send for ever, about half a megabyte a second."""
    with socket.create_connection((address, port)) as sock:
        while True:
            sock.sendall(bytes(8192))
            time.sleep(0.015)


def received(port: int) -> int:
    """Return the count of the server on this host."""
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        return int(sock.recv(64))


def link_local() -> str:
    """Return this host's own IPv6 link-local address on eth0 (proc(5), /proc/net/if_inet6); empty: none."""
    with open("/proc/net/if_inet6", encoding="ascii") as table:  # noqa: PTH123 - nothing but this is needed of files
        for line in table:
            digits, _, _, scope, _, link = line.split()
            if (scope, link) == ("20", "eth0"):
                return ":".join(digits[start : start + 4] for start in range(0, 32, 4))
    return ""


def main(arguments: list[str]) -> None:
    """Do what the first argument says."""
    action, *rest = arguments
    if action == "serve":
        Server().run()
    elif action == "probe":
        print(json.dumps(probe(rest)))  # noqa: T201 - its output is its purpose
    elif action == "stream":
        stream(rest[0], int(rest[1]))
    elif action == "received":
        print(received(int(rest[0])))  # noqa: T201 - the same
    else:
        # Which namespace, and which address in it: what the demo needs for its control.
        print(json.dumps([os.readlink("/proc/self/ns/net"), link_local()]))  # noqa: T201, PTH115 - the same


if __name__ == "__main__":
    main(sys.argv[1:])
