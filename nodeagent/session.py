"""The agent's session with the broker: the only file of the agent that imports zmq.

A session lives on a socket of its own and ends with it: an automatic reconnect would deliver frames that
were sealed for a session the broker no longer has. Its end is seen by the socket's monitor, by silence, by
a frame that does not open, or by the broker's word that it does not know the session; then, after a pause
that grows with every try (and is never the same for two nodes), the next of the broker's addresses is tried.
"""

from __future__ import annotations

import errno
import os
import random
import socket as sockets
import struct
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Protocol

import attrs
import zmq

from netctl.errors import NetctlError, ProtocolError
from netctl.log import get_logger
from netctl.wire.identity import Identity
from netctl.wire.messages import Envelope, Message, Ping, Pong
from netctl.wire.session import MAX_BODY_BYTES, RESTART, ClientHandshake, Role, Session, parse_header

HEARTBEAT: Final = 5.0
"""Seconds of silence after which the broker is asked whether it is there; after three of them it is not."""
HANDSHAKE_SECONDS: Final = 5.0
FIRST_PAUSE: Final = 0.1
LAST_PAUSE: Final = 5.0
"""Seconds before the next try: doubled from the first to the last, then cut short at random by up to half."""
FAREWELL_MILLISECONDS: Final = 2000
ANEW: Final = 1.0
"""Seconds that a try gets, at least, before it is given up because the host's addresses changed."""
_MONITOR_EVENT = struct.Struct("=Hi")  # zmq_socket_monitor(3): the event, and its value
_HIGH_WATER: Final = 1000
_BATCH: Final = 256
_NEVER: Final = -1


@attrs.frozen
class Up:
    """A session has begun: nothing of an older one holds."""

    endpoint: str


@attrs.frozen
class Down:
    """The session is over."""

    reason: str


@attrs.frozen
class Ready:
    """What `wait` came back with: descriptors that can be read, and written."""

    readable: frozenset[int]
    writable: frozenset[int]


class Link(Protocol):
    """What the agent needs of a session with the broker; see `BrokerSession`."""

    @property
    def connected(self) -> bool:
        """Whether messages can be sent."""

    def send(self, message: Message, number: int = 0) -> bool:
        """Send a message; return whether there is a session to send it in."""

    def receive(self) -> list[Up | Down | Envelope]:
        """Return what happened, without waiting."""

    def deadline(self) -> float:
        """Return when `receive` has something to do by itself."""

    def wait(self, readers: Collection[int], writers: Collection[int], timeout: float) -> Ready:
        """Wait for a frame or a descriptor."""

    def postpone(self, reason: str) -> None:
        """End the session, and begin the next one late."""

    def check_address(self) -> None:
        """The host's addresses are others by now: end a session that came from one that is gone."""


class BrokerSession:
    """The session with the broker, made again whenever it ends.

    Args:
        identity: Who speaks, and to whom.
        role: ``node``, or ``enrol`` for a key that is not known yet.
        heartbeat: Seconds; see HEARTBEAT.
        monotonic: Seconds of a clock that is never set.
    """

    def __init__(
        self,
        identity: Identity,
        role: Role = "node",
        *,
        heartbeat: float = HEARTBEAT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity = identity
        self._role: Role = role
        self._heartbeat = heartbeat
        self._monotonic = monotonic
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._polled: dict[int, int] = {}
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._handshake: ClientHandshake | None = None
        self._session: Session | None = None
        self._tries = 0
        self._pause = FIRST_PAUSE
        self._next_try = 0.0
        self._heard = 0.0
        self._asked = 0.0
        self._give_up_at = 0.0
        self._postponed = False
        # The family and the local address of the connection, once it stands.
        self._local: tuple[int, tuple[Any, ...]] | None = None
        self._endpoint = ""
        self._lost: list[Down] = []
        self._log = get_logger()

    @property
    def connected(self) -> bool:
        """Whether messages can be sent."""
        return self._session is not None

    def send(self, message: Message, number: int = 0) -> bool:
        """Send a message; return whether there is a session to send it in.

        Args:
            message: What to say.
            number: The id of a request; 0 for what is not answered.
        """
        if self._session is None or self._socket is None:
            return False
        try:
            self._socket.send_multipart(self._session.seal(Envelope(number, message)), zmq.DONTWAIT)
        except zmq.Again:
            self._end("the broker takes no more frames")
        except (NetctlError, zmq.ZMQError) as error:
            self._end(f"a {type(message).__name__} could not be sent: {error}")
        return self._session is not None

    def receive(self) -> list[Up | Down | Envelope]:
        """Return what happened, without waiting; begin the next session where that is due."""
        now = self._monotonic()
        happened: list[Up | Down | Envelope] = []
        if self._socket is None:
            if now >= self._next_try:
                self._begin(now)
        else:
            self._receive_frames(happened, now)
            self._watch(now)
        happened += self._lost
        self._lost = []
        return happened

    def deadline(self) -> float:
        """Return when `receive` has something to do by itself (monotonic seconds)."""
        if self._socket is None:
            return self._next_try
        if self._session is None:
            return self._give_up_at
        return max(self._heard, self._asked) + self._heartbeat

    def wait(self, readers: Collection[int], writers: Collection[int], timeout: float) -> Ready:
        """Wait for a frame or a descriptor, `timeout` seconds at most."""
        wanted: dict[int, int] = dict.fromkeys(readers, zmq.POLLIN)
        for descriptor in writers:
            wanted[descriptor] = wanted.get(descriptor, 0) | zmq.POLLOUT
        for descriptor in self._polled.keys() - wanted.keys():
            self._poller.unregister(descriptor)
        for descriptor, events in wanted.items():
            if self._polled.get(descriptor) != events:
                self._poller.register(descriptor, events)
        self._polled = wanted
        # Rounded up, so that a deadline has passed when poll comes back for it.
        ready: Mapping[Any, int] = dict(self._poller.poll(max(0, int(timeout * 1000 + 0.999))))
        found = {key: events for key, events in ready.items() if isinstance(key, int)}
        return Ready(
            frozenset(key for key, events in found.items() if events & ~zmq.POLLOUT),
            frozenset(key for key, events in found.items() if events & ~zmq.POLLIN),
        )

    def postpone(self, reason: str) -> None:
        """End the session, and begin the next one late: the broker will not change its mind at once."""
        self._pause = LAST_PAUSE
        self._end(reason)
        self._postponed = True

    def check_address(self) -> None:
        """The host's addresses are others by now: end a session that came from one that is gone.

        What is sent from such an address is answered by nobody, and it would take three heartbeats to see
        that. Where there is no session, the next try is not put off for long: it may work from here.
        """
        if self._session is not None:
            if self._local is not None and _is_gone(*self._local):
                self._end("this host has lost the address that the session came from")
        elif not self._postponed:
            self._pause = FIRST_PAUSE
            at = self._heard + ANEW
            self._next_try = min(self._next_try, at)
            self._give_up_at = min(self._give_up_at, at)

    def close(self, *, farewell: bool = False) -> None:
        """End the session for good. With `farewell`, what was sent gets two seconds to leave."""
        self._drop(FAREWELL_MILLISECONDS if farewell else 0)
        self._context.term()

    # --- one session --------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        addresses = self._identity.addresses
        self._endpoint = addresses[self._tries % len(addresses)]
        self._tries += 1
        socket = self._context.socket(zmq.DEALER)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RECONNECT_IVL, _NEVER)
        socket.set(zmq.SNDHWM, _HIGH_WATER)
        socket.set(zmq.RCVHWM, _HIGH_WATER)
        socket.set(zmq.MAXMSGSIZE, MAX_BODY_BYTES)
        monitor = socket.get_monitor_socket(
            zmq.EVENT_CONNECTED
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_CLOSED
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        self._socket, self._monitor = socket, monitor
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(monitor, zmq.POLLIN)
        self._heard = self._asked = now
        self._give_up_at = now + HANDSHAKE_SECONDS
        self._postponed = False
        try:
            self._handshake = ClientHandshake(self._identity.keys, self._identity.broker_key, self._role)
            socket.connect(self._endpoint)
            socket.send_multipart(self._handshake.first(), zmq.DONTWAIT)
        except (NetctlError, zmq.ZMQError) as error:
            self._end(f"cannot reach {self._endpoint}: {error}")

    def _receive_frames(self, happened: list[Up | Down | Envelope], now: float) -> None:
        for _ in range(_BATCH):
            socket = self._socket
            if socket is None:
                return
            try:
                parts = socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                self._take(parts, happened, now)
            except ProtocolError as error:
                self._end(str(error))

    def _take(self, parts: list[bytes], happened: list[Up | Down | Envelope], now: float) -> None:
        if len(parts) != 2:  # noqa: PLR2004 - a frame is a header and a body
            raise ProtocolError(f"the broker sent a frame of {len(parts)} parts instead of 2")
        if parse_header(parts[0]).type == RESTART:
            raise ProtocolError("the broker does not know this session any more")
        if self._session is None:
            if self._handshake is None:
                raise ProtocolError("the broker answered no handshake of ours")
            self._session = self._handshake.finish(parts[0], parts[1])
            self._handshake = None
            self._heard = now
            happened.append(Up(self._endpoint))
            return
        envelope = self._session.open(parts[0], parts[1])
        self._heard = now
        # Only now is it known that the broker has taken the session, not just its first frame.
        self._pause = FIRST_PAUSE
        if isinstance(envelope.message, Ping):
            self.send(Pong())
        elif not isinstance(envelope.message, Pong):
            happened.append(envelope)

    def _watch(self, now: float) -> None:
        """End a session that is silent or whose connection closed; ask one that is quiet."""
        if self._is_closed():
            self._end(f"the connection to {self._endpoint} is closed")
        elif self._session is None:
            if self._socket is not None and now >= self._give_up_at:
                self._end(f"no answer from {self._endpoint}")
        elif now - self._heard > 3 * self._heartbeat:
            self._end(f"{self._endpoint} is silent for {now - self._heard:.0f} seconds")
        elif now - max(self._heard, self._asked) >= self._heartbeat:
            self._asked = now
            self.send(Ping())

    def _is_closed(self) -> bool:
        """Take what the monitor says; return whether the connection is closed."""
        while self._monitor is not None:
            try:
                event, value = _MONITOR_EVENT.unpack(self._monitor.recv_multipart(zmq.DONTWAIT)[0])
            except zmq.Again:
                return False
            if event != zmq.EVENT_CONNECTED:
                return True
            self._local = _local_address(value)
        return False

    def _end(self, reason: str) -> None:
        if self._session is not None:
            self._lost.append(Down(reason))
            if self._role == "node":
                self._log.warning("session with the broker ended", reason=reason)
        else:
            self._log.debug("no session with the broker", reason=reason)
        self._drop(0)
        # A random part, so that a broker that comes back does not meet all its nodes at once.
        self._next_try = self._monotonic() + self._pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        self._pause = min(LAST_PAUSE, self._pause * 2)

    def _drop(self, linger: int) -> None:
        self._session = self._handshake = None
        if self._socket is None:
            return
        for socket in (self._socket, self._monitor):
            if socket is not None:
                self._poller.unregister(socket)
        self._socket.disable_monitor()
        if self._monitor is not None:
            self._monitor.close(0)
        self._socket.close(linger)
        self._socket = self._monitor = self._local = None


def _local_address(descriptor: int) -> tuple[int, tuple[Any, ...]] | None:
    """Return family and address of our end of a connection; None: it has none, or is closed already."""
    try:
        # The descriptor is the library's, whose thread may close it at any time.
        with sockets.socket(fileno=os.dup(descriptor)) as copy:
            address = copy.getsockname()
    except OSError:
        return None
    return (copy.family, address) if isinstance(address, tuple) else None


def _is_gone(family: int, address: tuple[Any, ...]) -> bool:
    """Tell whether an address is no longer one of this host's: nothing can be bound to it then."""
    with sockets.socket(family, sockets.SOCK_DGRAM) as probe:
        try:
            probe.bind((address[0], 0, *address[2:]))
        except OSError as failure:
            return failure.errno == errno.EADDRNOTAVAIL
    return False
