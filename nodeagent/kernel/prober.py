"""The sockets that probes go out by and come in by, and the thread that watches them.

AF_PACKET sockets (packet(7)), one for each device: what they get has passed no firewall hook of this host,
so no rule need let probes in, and the host's drop them after us. What they send passes none either until a
tunnel has wrapped it; then it is told from a user's forgery by our mark. Bound to
ETH_P_IP they see what comes in only. A filter in the kernel (socket(7), SO_ATTACH_FILTER) leaves everything
but probes out, so that other packets cost next to nothing.

It has a thread of its own: the peers' probes are answered at once whatever the privileged child is busy
with, since whoever is not answered takes the way for dead. The thread lives in the network namespace in
which the prober was made.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import resource
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from typing import Final

from firewall_rules import names
from netctl.model import PathState
from nodeagent.kernel_state import ProbeTarget
from nodeagent.probe_packets import LARGEST, MAGIC, MAGIC_AT, PROTOCOL
from nodeagent.probing import Packet, Probing

READS: Final = 32
"""Packets taken from one device before the others have their turn."""
PER_SECOND: Final = 500
"""Packets taken from one device in a second; whoever sends more is not listened to until it is over."""
REOPEN: Final = 0.5
"""Seconds between two tries to open the socket of a device that is not there."""

_ETH_P_IP: Final = 0x0800
_ARPHRD_ETHER: Final = 1
_PACKET_HOST: Final = 0
_SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h
_BUFFER: Final = 1 << 18
# Classic BPF (linux/filter.h), offsets from the IPv4 header: protocol is PROTOCOL, MAGIC follows a header
# without options; the whole packet, or nothing of it.
_FILTER: Final = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 9),
        (0x15, 0, 3, PROTOCOL),
        (0x20, 0, 0, MAGIC_AT),
        (0x15, 0, 1, int.from_bytes(MAGIC)),
        (0x06, 0, 0, LARGEST),
        (0x06, 0, 0, 0),
    )
)


class _Device:
    """The socket of one device.

    Args:
        name: The device's.

    Attributes:
        muted_until: Nothing is taken from it before this time; 0: it is listened to.

    Raises:
        OSError: There is no such device, or it is just going.
    """

    def __init__(self, name: str) -> None:
        self.muted_until = 0.0
        self._name = name
        self._second = 0
        self._count = 0
        # Protocol 0: nothing is taken before the filter is there.
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        try:
            program = ctypes.create_string_buffer(_FILTER, len(_FILTER))
            filled = struct.pack("@HP", len(_FILTER) // 8, ctypes.addressof(program))
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filled)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            # Once a tunnel has wrapped a probe, it passes the hooks of this host as a packet of our socket.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, names.OUTER_MARK)
            self.socket.bind((name, _ETH_P_IP))
        except OSError:
            self.socket.close()
            raise

    def read(self, now: float) -> tuple[str, bytes] | None:
        """Return the sender's Ethernet address (empty: the device has none) and the packet; None: no more.

        Raises:
            OSError: The device is down or gone.
        """
        if self._second != int(now):
            self._second, self._count = int(now), 0
        while self._count < PER_SECOND:
            self._count += 1
            try:
                data, (_, _, kind, hardware, sender) = self.socket.recvfrom(LARGEST)
            except BlockingIOError:
                self._count -= 1
                return None
            if kind == _PACKET_HOST:
                return sender.hex(":") if hardware == _ARPHRD_ETHER else "", data
        self.muted_until = self._second + 1.0
        return None

    def send(self, packet: Packet) -> None:
        """Send a packet. One that the device does not take is lost, as if on its way."""
        receiver = bytes.fromhex(packet.mac.replace(":", ""))
        with contextlib.suppress(OSError):
            self.socket.sendto(packet.data, (self._name, _ETH_P_IP, 0, 0, receiver))


class Prober:
    """Probes the ways to the peers, and answers theirs, from its making on until `close`."""

    def __init__(self) -> None:
        # A descriptor for each way: more than the usual soft limit, made for select(2), lets us.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._probing = Probing()
        self._devices: dict[str, _Device] = {}
        self._names: dict[int, str] = {}
        self._open_at = math.inf
        self._epoll = select.epoll()
        # What the two threads hand to each other.
        self._lock = threading.Lock()
        self._aimed: tuple[ProbeTarget, ...] | None = None
        self._changes: dict[tuple[str, str], PathState] = {}
        self._failure: Exception | None = None
        self._closing = False
        self._to_thread = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._from_thread = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._to_thread, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="prober", daemon=True)
        self._thread.start()

    # --- for the thread that made it ----------------------------------------------------------------

    def fileno(self) -> int:
        """Return the descriptor to poll; readable: call `changes`."""
        return self._from_thread

    def aim(self, targets: Sequence[ProbeTarget]) -> None:
        """Probe these ways from now on, and no others. Their devices may come and go."""
        with self._lock:
            self._aimed = tuple(targets)
        os.eventfd_write(self._to_thread, 1)

    def changes(self) -> tuple[PathState, ...]:
        """Return the ways that are found otherwise than said before.

        Raises:
            Exception: What ended the thread.
        """
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._from_thread)
        with self._lock:
            if self._failure is not None:
                raise self._failure
            changes, self._changes = self._changes, {}
        return tuple(changes.values())

    def close(self) -> None:
        """Stop probing and answering."""
        self._closing = True
        os.eventfd_write(self._to_thread, 1)
        self._thread.join()
        for name in tuple(self._devices):
            self._shut(name)
        self._epoll.close()
        os.close(self._to_thread)
        os.close(self._from_thread)

    # --- the thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                self._turn()
        except Exception as error:  # noqa: BLE001 - told to whoever asks next, who would else wait for ever
            with self._lock:
                self._failure = error
            os.eventfd_write(self._from_thread, 1)

    def _turn(self) -> None:
        wait = self._deadline() - time.monotonic()
        for descriptor, _ in self._epoll.poll(None if wait == math.inf else max(0.0, wait)):
            if descriptor == self._to_thread:
                os.eventfd_read(self._to_thread)
            else:
                self._read(self._names[descriptor])
        with self._lock:
            aimed, self._aimed = self._aimed, None
        now = time.monotonic()
        if aimed is not None:
            self._probing.aim(aimed, now)
            for name in self._devices.keys() - self._probing.devices:
                self._shut(name)
            self._open_at = now
        if now >= self._open_at:
            self._open_missing(now)
        self._listen_again(now)
        for packet in self._probing.turn(now):
            self._send(packet)
        changes = self._probing.changes(now)
        if changes:
            with self._lock:
                self._changes.update(((path.peer, path.encapsulation), path) for path in changes)
            os.eventfd_write(self._from_thread, 1)

    def _deadline(self) -> float:
        due = self._probing.deadline
        muted = (device.muted_until for device in self._devices.values() if device.muted_until)
        return min(self._open_at, math.inf if due is None else due, *muted, math.inf)

    def _read(self, name: str) -> None:
        device = self._devices[name]
        if device.muted_until:
            # Of one that is not listened to, nothing is told but that it failed.
            self._lost(name, time.monotonic())
            return
        for _ in range(READS):
            now = time.monotonic()
            try:
                received = device.read(now)
            except OSError:
                self._lost(name, now)
                return
            if received is None:
                break
            answer = self._probing.receive(name, *received, now)
            if answer is not None:
                self._send(answer)
        if device.muted_until:
            self._epoll.modify(device.socket, 0)

    def _lost(self, name: str, now: float) -> None:
        """A device is down, or gone, and a new one may be there by its name."""
        self._shut(name)
        self._open_at = min(self._open_at, now + REOPEN)

    def _send(self, packet: Packet) -> None:
        device = self._devices.get(packet.device)
        if device is not None:
            device.send(packet)

    def _listen_again(self, now: float) -> None:
        for device in self._devices.values():
            if 0.0 < device.muted_until <= now:
                device.muted_until = 0.0
                self._epoll.modify(device.socket, select.EPOLLIN)

    def _open_missing(self, now: float) -> None:
        self._open_at = math.inf
        for name in self._probing.devices - self._devices.keys():
            try:
                device = _Device(name)
            except OSError:
                self._open_at = now + REOPEN
                continue
            self._devices[name] = device
            self._names[device.socket.fileno()] = name
            self._epoll.register(device.socket, select.EPOLLIN)

    def _shut(self, name: str) -> None:
        device = self._devices.pop(name)
        del self._names[device.socket.fileno()]
        self._epoll.unregister(device.socket)
        device.socket.close()
