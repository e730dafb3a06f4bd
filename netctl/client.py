"""What the command line and other programs use to talk to a broker.

A `Client` speaks for one identity over one sealed session. Every session has a socket of its own, which
is thrown away with it: an automatic reconnect would deliver frames that were sealed for a session the
broker no longer has. Requests that change something carry an idempotency key, so they are sent again,
over a new session, when the old one ended before their answer came.

A `Client` belongs to one thread.
"""

from __future__ import annotations

import os
import secrets
import select
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self, TypeVar

import attrs
import zmq
from zmq.utils.monitor import recv_monitor_message

from netctl.errors import InvalidError, ProtocolError, UnavailableError
from netctl.stream import Stream, StreamTable
from netctl.wire import codec
from netctl.wire.failures import error_of
from netctl.wire.identity import Identity
from netctl.wire.messages import (
    CreateInvite,
    Enrol,
    Envelope,
    Failure,
    Message,
    OpenAdopt,
    OpenCopy,
    OpenExec,
    OpenLogs,
    Ping,
    Pong,
    Progress,
    StreamOpened,
)
from netctl.wire.session import MAX_BODY_BYTES, RESTART, ClientHandshake, Frame, Role, Session, parse_header

CONNECT_TIMEOUT: Final = 5.0
REQUEST_TIMEOUT: Final = 10.0
ANSWER_MARGIN: Final = 5.0
"""Seconds a request waits beyond the timeout it carries, for the broker's answer that this has passed."""
LOST_TRIES: Final = 5
"""Sessions that may end under one request: more, and the request itself is what ends them."""
HANDSHAKE_TRY: Final = 3.0
"""Seconds one address gets before the next is tried."""


StreamRequest = OpenExec | OpenLogs | OpenCopy | OpenAdopt
"""What `Client.open` asks for."""

T = TypeVar("T")


class _LostError(Exception):
    """The session ended before what was waited for came."""


class _Link:
    """One socket and the one session that lives on it."""

    def __init__(self, address: str, identity: Identity, role: Role, deadline: float) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._socket.setsockopt(zmq.SNDHWM, 256)
        self._socket.setsockopt(zmq.RCVHWM, 256)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_BODY_BYTES)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, int(HANDSHAKE_TRY * 1000))
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._epoll = select.epoll()
        self._epoll.register(self._socket.getsockopt(zmq.FD), select.EPOLLIN)
        self._epoll.register(self._monitor.getsockopt(zmq.FD), select.EPOLLIN)
        try:
            self.session = self._shake_hands(address, identity, role, deadline)
        except BaseException:
            self.close()
            raise

    def _shake_hands(self, address: str, identity: Identity, role: Role, deadline: float) -> Session:
        self._socket.connect(address)
        handshake = ClientHandshake(identity.keys, identity.broker_key, role)
        self._send(handshake.first())
        parts = self._receive(deadline)
        if parts is None:
            raise _LostError("no answer to the handshake")
        return handshake.finish(*parts)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def _send(self, frame: Frame) -> None:
        try:
            self._socket.send_multipart((frame.header, frame.body), zmq.DONTWAIT)
        except zmq.Again:
            raise _LostError("the broker takes no more frames") from None

    def _receive(self, deadline: float) -> tuple[bytes, bytes] | None:
        """Return the next frame, or None once `deadline` has passed."""
        while True:
            try:
                parts = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                parts = []
            if parts:
                if len(parts) != 2:  # noqa: PLR2004 - a frame is a header and a body
                    raise ProtocolError("the broker sent a frame of another form")
                return parts[0], parts[1]
            left = deadline - time.monotonic()
            ready = dict(self._poller.poll(max(0, int(left * 1000 + 0.999))))
            if self._socket in ready:
                continue
            if self._monitor in ready:
                recv_monitor_message(self._monitor, zmq.DONTWAIT)
                raise _LostError("the connection closed")
            if left <= 0:
                return None

    def send(self, envelope: Envelope) -> None:
        self._send(self.session.seal(envelope))

    def receive(self, deadline: float) -> Envelope | None:
        parts = self._receive(deadline)
        if parts is None:
            return None
        if parse_header(parts[0]).type == RESTART:
            raise _LostError("the broker does not know this session any more")
        return self.session.open(*parts)

    def close(self) -> None:
        self._epoll.close()
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close()


class Client:
    """A way to one broker, speaking for one identity.

    Args:
        identity: Who speaks, and which broker to; see `netctl.wire.identity.load`.
        interval: Seconds of silence after which the broker is asked whether it is there; after three of
            them the session counts as ended. Noticed while waiting in one of the methods.
        role: What the session asks to be; `enrol` is for `netctl.enrolment.enrol`.
    """

    def __init__(self, identity: Identity, *, interval: float = 5.0, role: Role = "user") -> None:
        self._identity = identity
        self._interval = interval
        self._role = role
        self._link: _Link | None = None
        self._last_id = 0
        self._heard = 0.0
        self._asked = 0.0
        self._inbox: deque[Envelope] = deque()
        self._abandoned: set[int] = set()
        self._streams = StreamTable(self._send_for_stream, self._wait_for_stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session and its streams. The client may be used again; it then makes a new session."""
        # So that nodes need not wait for the broker to miss this client.
        with suppress(UnavailableError):
            self._streams.close()
        self._drop("the client was closed")

    def connect(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Make a session, unless there is one, trying the broker's addresses in their order.

        Args:
            timeout: Seconds, for all addresses together.

        Raises:
            UnavailableError: No address answered; the remedy says what to check.
        """
        if self._link is not None:
            return
        deadline = time.monotonic() + timeout
        reasons = []
        for address in self._identity.addresses:
            path = address.removeprefix("ipc://")
            if path != address and not os.access(path, os.R_OK | os.W_OK):
                # An invite names sockets that only processes on the broker's own host can reach.
                reasons.append(f"{address}: no such socket here")
                continue
            until = min(deadline, time.monotonic() + HANDSHAKE_TRY)
            try:
                self._link = _Link(address, self._identity, self._role, until)
            except (_LostError, ProtocolError, zmq.ZMQError) as error:
                reasons.append(f"{address}: {error}")
                continue
            self._heard = self._asked = time.monotonic()
            return
        raise UnavailableError(
            f"the broker cannot be reached ({'; '.join(reasons) or 'no address is known'})",
            "check that `netctl broker run` runs there and that its port is open to this host",
        )

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when something came in; of the current session.

        It tells of arrivals once: call `receive(0)` until it returns None before waiting on it, also after
        every `send` and `request`.
        """
        return self._connected().fileno()

    def send(self, message: Message) -> int:
        """Send one request and return its id; `receive` brings the answer.

        Raises:
            UnavailableError: There is no session, or it ended.
        """
        number = self._number()
        self._transmit(Envelope(number, message))
        return number

    def receive(self, timeout: float | None = 0.0) -> Envelope | None:
        """Return what the broker sent next; heartbeats and what belongs to a `Stream` are handled inside.

        Args:
            timeout: Seconds to wait; 0 does not wait, None waits without end.

        Returns:
            None when nothing came in time, or when only stream messages did (see `Stream.receive`).

        Raises:
            UnavailableError: The session ended.
        """
        if self._inbox:
            return self._inbox.popleft()
        try:
            return self._next(None if timeout is None else time.monotonic() + timeout)
        except _LostError as lost:
            raise self._unavailable(lost) from None

    def request(
        self,
        message: Message,
        timeout: float | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Message:
        """Send a request and return its answer.

        Args:
            message: One with an empty `key` is given a random one.
            timeout: Seconds to wait in all; None: what the message says itself, and a margin.
            progress: Called with each Progress that comes before the answer; None: nobody wants to know.

        Raises:
            NetctlError: What the broker answered, rebuilt: `PendingError` names the nodes and the revision.
            InvalidError: A value is out of the bounds of every broker.
            UnavailableError: The broker cannot be reached, or did not answer in time.
        """
        if getattr(message, "key", None) == "":
            message = attrs.evolve(message, key=secrets.token_hex(16))
        _check(message)
        if timeout is None:
            timeout = float(getattr(message, "timeout", REQUEST_TIMEOUT)) + ANSWER_MARGIN
        deadline = time.monotonic() + timeout
        repeatable = not isinstance(message, CreateInvite | Enrol | StreamRequest)
        pause = 0.0
        tries = 0
        while True:
            self._take_in()
            try:
                self.connect(max(0.0, min(CONNECT_TIMEOUT, deadline - time.monotonic())))
            except UnavailableError:
                # A broker that was there a moment ago may be starting again; one that never was is reported.
                if not tries or time.monotonic() + pause >= deadline:
                    raise
                time.sleep(pause)
                pause = min(1.0, pause * 2)
                continue
            try:
                return self._ask(message, deadline, progress)
            except _LostError as lost:
                tries += 1
                if not repeatable or tries == LOST_TRIES:
                    raise self._unavailable(lost) from None
                pause = 0.05

    def open(self, message: StreamRequest, timeout: float = REQUEST_TIMEOUT) -> Stream:
        """Run a command in a container, read its output, copy its files, or have it join.

        Raises:
            NetctlError: What the broker answered, rebuilt.
            UnavailableError: The broker cannot be reached, or did not answer in time.
        """
        opened = self.request(message, timeout)
        if not isinstance(opened, StreamOpened):
            raise ProtocolError(f"the broker answered {type(opened).__name__} to {type(message).__name__}")
        return self._streams.open(opened)

    def _number(self) -> int:
        self._last_id = self._last_id % (2**31 - 1) + 1
        return self._last_id

    def _take_in(self) -> None:
        """Notice what came since the last call: also that the session ended meanwhile."""
        try:
            while self._link is not None:
                envelope = self._next(0.0)
                if envelope is None:
                    return
                self._inbox.append(envelope)
        except _LostError:
            return

    def _connected(self) -> _Link:
        if self._link is None:
            raise UnavailableError("there is no session with the broker", "connect first")
        return self._link

    def _transmit(self, envelope: Envelope) -> None:
        try:
            self._guarded(lambda link: link.send(envelope))
        except _LostError as lost:
            raise self._unavailable(lost) from None

    def _ask(self, message: Message, deadline: float, progress: Callable[[Progress], None] | None) -> Message:
        number = self._number()
        self._guarded(lambda link: link.send(Envelope(number, message)))
        while True:
            envelope = self._next(deadline)
            if envelope is None:
                if time.monotonic() >= deadline:
                    self._abandoned.add(number)
                    raise UnavailableError(
                        "the broker did not answer in time", "check what became of it with `netctl status`"
                    )
                continue
            if isinstance(envelope.message, Progress):
                # Kept for nobody: it is out of date once somebody could look at it.
                if progress is not None:
                    progress(envelope.message)
                continue
            if envelope.id != number:
                self._inbox.append(envelope)
                continue
            if isinstance(envelope.message, Failure):
                raise error_of(envelope.message)
            return envelope.message

    def _next(self, deadline: float | None) -> Envelope | None:
        """Return the next envelope that is for the caller; None: the deadline, or something for a stream."""
        while True:
            asked = self._asked > self._heard
            wake = self._asked + 2 * self._interval if asked else self._heard + self._interval
            envelope = self._receive_until(wake if deadline is None else min(wake, deadline))
            now = time.monotonic()
            if envelope is None:
                # Only what is not there when it is looked for is missing: the caller may have been away.
                if now >= wake:
                    self._ask_whether_there(now, asked=asked)
                if deadline is not None and now >= deadline:
                    return None
                continue
            self._heard = now
            if isinstance(envelope.message, Ping):
                self._guarded(lambda link: link.send(Envelope(0, Pong())))
            elif self._streams.take(envelope.message):
                return None
            elif not isinstance(envelope.message, Pong) and envelope.id not in self._abandoned:
                return envelope

    def _ask_whether_there(self, now: float, *, asked: bool) -> None:
        if asked:
            self._drop("the broker is silent")
            raise _LostError("the broker is silent")
        self._asked = now
        self._guarded(lambda link: link.send(Envelope(0, Ping())))

    def _guarded(self, act: Callable[[_Link], T]) -> T:
        """Act on the session; whatever goes wrong with it ends it."""
        try:
            return act(self._connected())
        except (_LostError, ProtocolError, zmq.ZMQError) as error:
            self._drop(f"the connection to the broker was lost: {error}")
            raise _LostError(str(error)) from None

    def _receive_until(self, deadline: float) -> Envelope | None:
        return self._guarded(lambda link: link.receive(deadline))

    def _drop(self, reason: str) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        self._inbox.clear()
        self._abandoned.clear()
        self._streams.end(reason)

    def _send_for_stream(self, message: Message) -> None:
        self._transmit(Envelope(0, message))

    def _wait_for_stream(self, timeout: float | None) -> None:
        """Take in what came; what is for nobody's stream waits for `receive`."""
        try:
            envelope = self._next(None if timeout is None else time.monotonic() + timeout)
        except _LostError:
            return
        if envelope is not None:
            self._inbox.append(envelope)

    def _unavailable(self, lost: _LostError) -> UnavailableError:
        return UnavailableError(
            f"the session with the broker ended: {lost}",
            "try again; whether the last request was done shows in the listings",
        )


def _check(message: Message) -> None:
    """Refuse a request that no broker would read, before it costs the session.

    Raises:
        InvalidError: Something in it is too long, or there is too much of it.
    """
    data = codec.encode(Envelope(0, message), codec.MAX_CLIENT_MESSAGE)
    try:
        codec.decode(data)
    except ProtocolError as error:
        raise InvalidError(
            f"the broker reads no such request: {error.message}", "correct that value"
        ) from None
