"""Network namespaces and packets for tests: no names, no processes, nothing to clean up but descriptors.

A namespace lives as long as its descriptor (and what is inside it). Sockets made while a thread is
inside keep belonging to it, so a test opens them there and uses them from outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)

BLOCKED_AFTER = 0.4
"""Seconds without an arrival after which a packet counts as dropped: a local one takes microseconds."""
PASSES_WITHIN = 5.0
"""Seconds a packet that should pass may take on a busy machine."""


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Namespace:
    """One network namespace of a test's own, loopback up."""

    def __init__(self) -> None:
        made: list[int | OSError] = []

        def make() -> None:
            # In a thread of its own, since unshare changes the thread that calls it.
            try:
                _check(_libc.unshare(CLONE_NEWNET))
                made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        self.fd: int = made[0]
        self.ip("link", "set", "lo", "up")

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Have the calling thread inside the namespace for a while."""
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(self.fd, CLONE_NEWNET))
            try:
                yield
            finally:
                _check(_libc.setns(back, CLONE_NEWNET))
        finally:
            os.close(back)

    def run(self, *command: str, check: bool = True, text: str | None = None) -> str:
        """Run a command inside; return what it printed."""
        done = subprocess.run(
            ["nsenter", f"--net={self.path}", "--", *command],
            capture_output=True, text=True, input=text, check=False, timeout=60,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def ip(self, *arguments: str) -> str:
        return self.run("ip", *arguments)

    def nft(self, script: str) -> str:
        return self.run("nft", "-f", "-", text=script)

    def socket(self, *arguments: int) -> socket.socket:
        with self.entered():
            return socket.socket(*arguments)

    def sysctl(self, path: str, value: str | None = None) -> str:
        """Read or write a value below /proc/sys as this namespace sees it."""
        with self.entered():
            file = Path("/proc/sys", path)
            if value is not None:
                file.write_text(value)
            return file.read_text().strip()


def veth(one: Namespace, one_name: str, other: Namespace, other_name: str, mtu: int = 1500) -> None:
    """Join two namespaces by a veth pair, both ends down."""
    one.ip(
        "link", "add", one_name, "mtu", str(mtu), "type", "veth",
        "peer", "name", other_name, "mtu", str(mtu), "netns", other.path,
    )  # fmt: skip


def address(namespace: Namespace, link: str, *cidrs: str) -> None:
    """Give a link addresses and bring it up."""
    for cidr in cidrs:
        namespace.ip("addr", "add", cidr, "dev", link, *(["nodad"] if ":" in cidr else []))
    namespace.ip("link", "set", link, "up")


def wait_for(condition: Callable[[], bool], seconds: float = 10.0, what: str = "the condition") -> None:
    """Poll until `condition` holds; fail the test when it does not in time."""
    deadline = threading.Event()
    timer = threading.Timer(seconds, deadline.set)
    timer.start()
    try:
        while not condition():
            assert not deadline.wait(0.01), f"{what} did not come within {seconds} s"
    finally:
        timer.cancel()


def readable(sock: socket.socket, seconds: float) -> bool:
    return bool(select.select([sock], [], [], seconds)[0])


def tcp_passes(
    source: Namespace, target: Namespace, target_address: str, port: int, *, seconds: float = BLOCKED_AFTER
) -> bool:
    """Whether a TCP connection comes about and carries a byte each way."""
    with target.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", port))
        listener.listen()
        with source.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(seconds)
            try:
                client.connect((target_address, port))
            except OSError:
                return False
            served, _ = listener.accept()
            with served:
                client.sendall(b"a")
                served.settimeout(seconds)
                try:
                    assert served.recv(1) == b"a"
                    served.sendall(b"b")
                    return client.recv(1) == b"b"
                except TimeoutError:
                    return False


def udp_passes(
    source: Namespace,
    target: Namespace,
    target_address: str,
    port: int,
    *,
    size: int = 8,
    seconds: float = BLOCKED_AFTER,
    source_port: int = 0,
) -> bool:
    """Whether one datagram of `size` bytes arrives whole, and its answer comes back."""
    with (
        target.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        source.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        # Bound to the address, since an answer from a wildcard socket may leave from another one.
        server.bind((target_address, port))
        client.bind(("", source_port))
        payload = os.urandom(size)
        try:
            client.sendto(payload, (target_address, port))
        except OSError:
            return False
        if not readable(server, seconds):
            return False
        data, sender = server.recvfrom(65536)
        assert data == payload
        server.sendto(b"ok", sender)
        return readable(client, seconds) and client.recv(2) == b"ok"


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(identifier: int, sequence: int = 1, payload: bytes = b"netctl") -> bytes:
    """An ICMP echo request (RFC 792)."""
    head = struct.pack("!BBHHH", 8, 0, 0, identifier, sequence)
    return struct.pack("!BBHHH", 8, 0, checksum(head + payload), identifier, sequence) + payload


def ping_passes(source: Namespace, target_address: str, *, seconds: float = BLOCKED_AFTER) -> bool:
    """Whether an echo request is answered."""
    identifier = int.from_bytes(os.urandom(2)) or 1
    with source.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        try:
            sock.sendto(echo_request(identifier), (target_address, 0))
        except OSError:
            return False
        deadline = threading.Event()
        timer = threading.Timer(seconds, deadline.set)
        timer.start()
        try:
            while not deadline.is_set():
                if readable(sock, seconds):
                    packet = sock.recv(2048)
                    header = (packet[0] & 15) * 4
                    kind, _, _, seen = struct.unpack_from("!BBHH", packet, header)
                    if kind == 0 and seen == identifier:
                        return True
            return False
        finally:
            timer.cancel()


def ping6_passes(
    source: Namespace, target_address: str, link: str, *, seconds: float = BLOCKED_AFTER
) -> bool:
    """Whether an ICMPv6 echo request over `link` is answered (neighbour discovery included)."""
    with source.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        with source.entered():
            index = socket.if_nametoindex(link)
        identifier = int.from_bytes(os.urandom(2)) or 1
        # The kernel fills in the ICMPv6 checksum of raw sockets (RFC 3542, section 3.1).
        packet = struct.pack("!BBHHH", 128, 0, 0, identifier, 1) + b"netctl"
        try:
            sock.sendto(packet, (target_address, 0, 0, index))
        except OSError:
            return False
        deadline = threading.Event()
        timer = threading.Timer(seconds, deadline.set)
        timer.start()
        try:
            while not deadline.is_set():
                if readable(sock, seconds):
                    data = sock.recv(2048)
                    kind, _, _, seen = struct.unpack_from("!BBHH", data)
                    if kind == 129 and seen == identifier:
                        return True
            return False
        finally:
            timer.cancel()


class Capture:
    """Frames as they pass a link, both directions (AF_PACKET): what is really on the wire."""

    def __init__(self, namespace: Namespace, link: str) -> None:
        self._socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        self._socket.bind((link, 0x0003))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def until(self, wanted: Callable[[bytes], bool], seconds: float = PASSES_WITHIN) -> bytes | None:
        """Return the first frame that is `wanted`, or None after `seconds` of silence."""
        while readable(self._socket, seconds):
            frame = self._socket.recv(65536)
            if wanted(frame):
                return frame
        return None


def send_frames(namespace: Namespace, link: str, frames: Sequence[bytes]) -> None:
    """Put raw Ethernet frames on a link, past every firewall hook of the sending namespace."""
    with namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((link, 0))
        for frame in frames:
            sock.send(frame)


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ethernet(target: str, source: str, ethertype: int, payload: bytes) -> bytes:
    return mac_bytes(target) + mac_bytes(source) + struct.pack("!H", ethertype) + payload


def ipv4(source: str, target: str, protocol: int, payload: bytes, ttl: int = 64) -> bytes:
    """An IPv4 packet (RFC 791) without options."""
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 1, 0, ttl, protocol, 0,
        socket.inet_aton(source), socket.inet_aton(target),
    )  # fmt: skip
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def udp(source_port: int, target_port: int, payload: bytes) -> bytes:
    """A UDP datagram (RFC 768) without a checksum."""
    return struct.pack("!HHHH", source_port, target_port, 8 + len(payload), 0) + payload


def arp(operation: int, sender_mac: str, sender: str, target_mac: str, target: str) -> bytes:
    """An ARP packet (RFC 826) for IPv4 over Ethernet; `operation` 1 asks, 2 answers."""
    return (
        struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
        + mac_bytes(sender_mac) + socket.inet_aton(sender)
        + mac_bytes(target_mac) + socket.inet_aton(target)
    )  # fmt: skip
