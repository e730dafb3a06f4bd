"""Bulk TCP and small UDP between two nodes: the overlay with its firewalls beside the same tunnel by hand."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

import attrs

from bench.by_hand import Path, by_hand
from bench.lab import Lab
from bench.statistics import Row, ratio
from netctl.model import Port
from netctl.wire.messages import Connect

MEBIBYTE = 1 << 20
BULK = 512 * MEBIBYTE
DATAGRAMS = 50_000
DATAGRAM = b"x" * 64
PORT = 5432
AIM_BULK = 0.95


def _in_child(work: Callable[[], None]) -> int:
    """Run `work` in a process of its own, so that both ends do not share one interpreter."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def bulk(path: Path, size: int = BULK) -> float:
    """Return Gbit/s of one TCP stream of `size` bytes, whole MiB."""
    with path.target.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((path.address, PORT))
        listener.listen()
        with path.source.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(10)
            client.connect((path.address, PORT))
            client.settimeout(None)

            def send() -> None:
                chunk = bytes(MEBIBYTE)
                for _ in range(size // MEBIBYTE):
                    client.sendall(chunk)
                client.shutdown(socket.SHUT_WR)

            pid = _in_child(send)
        served, _ = listener.accept()
        begin = time.perf_counter()
        buffer, seen = bytearray(MEBIBYTE), 0
        while count := served.recv_into(buffer):
            seen += count
        seconds = time.perf_counter() - begin
        served.close()
        os.waitpid(pid, 0)
    if seen != size:
        raise RuntimeError(f"{seen} of {size} bytes arrived")
    return seen * 8 / seconds / 1e9


def datagrams(path: Path) -> float:
    """Return microseconds a datagram costs its sender; on one machine that is the whole way of it."""
    with (
        path.target.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        path.source.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind((path.address, PORT))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.connect((path.address, PORT))
        client.send(DATAGRAM)
        if server.recv(100) != DATAGRAM:
            raise RuntimeError("the datagram did not arrive")
        begin = time.perf_counter()
        for _ in range(DATAGRAMS):
            client.send(DATAGRAM)
        return (time.perf_counter() - begin) / DATAGRAMS * 1e6


def round_trip(path: Path, count: int) -> float:
    """Return microseconds until a datagram's answer is there, on average of `count`, one after the other."""
    with (
        path.target.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        path.source.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        server.bind((path.address, PORT))
        client.connect((path.address, PORT))
        for sock in (server, client):
            sock.settimeout(10)
        client.send(DATAGRAM)
        server.connect(server.recvfrom(100)[1])
        begin = time.perf_counter()
        for _ in range(count):
            server.send(DATAGRAM)
            client.recv(100)
            client.send(DATAGRAM)
            server.recv(100)
        return (time.perf_counter() - begin) / count * 1e6


def measure(lab: Lab, overlay: Path, encapsulation: str, rounds: int) -> list[Row]:
    """Measure both ways in turn.

    Args:
        lab: With containers c0 and c1 on two nodes.
        overlay: Their namespaces.
        encapsulation: In use between the nodes.
        rounds: How often.
    """
    lab.client.request(Connect("c0", "c1", (Port("tcp", PORT), Port("udp", PORT))))
    ours, hand, small, small_hand = [], [], [], []
    with by_hand(encapsulation, 1500) as made:
        bare = made.containers
        for _ in range(rounds):
            ours.append(bulk(overlay))
            hand.append(bulk(bare))
            small.append(datagrams(overlay))
            small_hand.append(datagrams(bare))
    note = f"{encapsulation}, {rounds} rounds"
    tcp = Row(
        "bulk TCP, one stream", "the same tunnel by hand, no firewall", "Gbit/s", ours, hand,
        f"at least {AIM_BULK}", False, f"{note} of {BULK // MEBIBYTE} MiB",
    )  # fmt: skip
    return [
        attrs.evolve(tcp, met=ratio(tcp) >= AIM_BULK),
        Row(
            "64-byte UDP, time a datagram", "the same tunnel by hand, no firewall", "µs", small, small_hand,
            "none set", True, f"{note} of {DATAGRAMS}",
        ),
    ]  # fmt: skip
