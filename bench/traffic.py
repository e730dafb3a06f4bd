"""Bulk TCP and small UDP between two nodes: the overlay with its firewalls beside the same tunnel by hand."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import attrs

from bench.lab import Lab
from bench.statistics import Row, ratio
from netctl.model import Port
from netctl.wire.messages import Connect
from tests.support.netns import Namespace, address, veth

MEBIBYTE = 1 << 20
BULK = 512 * MEBIBYTE
DATAGRAMS = 50_000
DATAGRAM = b"x" * 64
PORT = 5432
AIM_BULK = 0.95


@attrs.frozen
class Path:
    """Two ends that packets go between."""

    source: Namespace
    target: Namespace
    address: str


@contextmanager
def by_hand(encapsulation: str, mtu: int) -> Iterator[Path]:
    """Yield two containers' namespaces, with bridges, a tunnel and an underlay as in the lab; no firewall.

    Args:
        encapsulation: gre or vxlan.
        mtu: Bytes, of the underlay.
    """
    underlay, one, other, web, db = (Namespace() for _ in range(5))
    inner = mtu - {"gre": 24, "vxlan": 50}[encapsulation]
    underlay.ip("link", "add", "underlay", "mtu", str(mtu), "type", "bridge")
    underlay.ip("link", "set", "underlay", "up")
    for number, (node, container) in enumerate(((one, web), (other, db)), start=1):
        far = 3 - number
        veth(underlay, f"n{number}", node, "eth0", mtu)
        underlay.ip("link", "set", f"n{number}", "master", "underlay", "up")
        address(node, "eth0", f"172.31.1.{number}/16")
        node.ip("link", "add", "bridge", "mtu", str(inner), "type", "bridge")
        address(node, "bridge", f"10.{number}.0.1/16")
        ends = ("local", f"172.31.1.{number}", "remote", f"172.31.1.{far}")
        extra = ("id", "4098", "dstport", "4789", "nolearning") if encapsulation == "vxlan" else ()
        node.ip("link", "add", "tunnel", "mtu", str(inner), "type", encapsulation, *ends, *extra)
        node.ip("link", "set", "tunnel", "address", f"6e:63:00:00:00:0{number}") if extra else None
        node.ip("link", "set", "tunnel", "up")
        if extra:
            mac = f"6e:63:00:00:00:0{far}"
            node.ip("neigh", "add", f"10.{far}.0.1", "lladdr", mac, "dev", "tunnel", "nud", "permanent")
        via = ("via", f"10.{far}.0.1", "dev", "tunnel", "onlink") if extra else ("dev", "tunnel")
        node.ip("route", "add", f"10.{far}.0.0/16", *via)
        node.sysctl("net/ipv4/ip_forward", "1")
        veth(node, "port", container, "eth0", inner)
        node.ip("link", "set", "port", "master", "bridge", "up")
        address(container, "eth0", f"10.{number}.0.2/16")
        container.ip("route", "add", "default", "via", f"10.{number}.0.1")
    try:
        yield Path(web, db, "10.2.0.2")
    finally:
        for namespace in (web, db, one, other, underlay):
            namespace.close()


def _in_child(work: Callable[[], None]) -> int:
    """Run `work` in a process of its own, so that both ends do not share one interpreter."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def bulk(path: Path) -> float:
    """Return Gbit/s of one TCP stream."""
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
                for _ in range(BULK // MEBIBYTE):
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
    if seen != BULK:
        raise RuntimeError(f"{seen} of {BULK} bytes arrived")
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
    with by_hand(encapsulation, 1500) as bare:
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
