"""The broker's sockets and its loop. The only file of the broker that imports zmq.

                     one connection each: users (netctl.client), nodes (nodeagent.session)
                                              |
ROUTER  --recv-->  Sessions   handshakes; frame -> message, or the sender's session ends
                      |       (sessions.py, netctl.wire.session)
                   role: enrol -> users.enrol   user -> users.handle   node -> nodes.handle
                      |               (desk.py: request -> command; docker_reports.py: Docker's containers)
                   Journal    command -> decide -> head         (state.py, pure)
                      |
                   flush      one commit for all that came in together (store.py), and only then:
                      |         deltas -> node sessions           (plan.py, pure)
                      |         answers -> Waiting until the nodes concerned report Applied
ROUTER  <--send--  out        sealed frames, in their order
                      |
                   tick       deadlines, heartbeats, expiry

Streams relay the bytes of exec and logs between a user's and a node's session.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import zmq

from netctl.broker.hub import Hub
from netctl.errors import InvalidError, RefusedError
from netctl.log import get_logger

BATCH: Final = 256
"""Frames taken in before what they led to is committed and sent."""
MAX_FRAME: Final = 2 * 2**20
"""Bytes of a part that comes in, for whoever sends it: nobody is known before a frame is read."""
SEND_QUEUE: Final = 4096
"""Frames that wait for one slow reader; one more, and its session ends."""
RECEIVE_QUEUE: Final = 64


class Server:
    """The broker's socket, bound.

    Args:
        endpoints: As ``tcp://address:port`` or ``ipc:///path``.

    Raises:
        RefusedError: One cannot be bound; none is then.
    """

    def __init__(self, endpoints: tuple[str, ...]) -> None:
        self._paths: list[Path] = []
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.MAXMSGSIZE, MAX_FRAME),
            (zmq.SNDHWM, SEND_QUEUE),
            (zmq.RCVHWM, RECEIVE_QUEUE),
            (zmq.HANDSHAKE_IVL, 5000),
            (zmq.HEARTBEAT_IVL, 5000),
            (zmq.HEARTBEAT_TIMEOUT, 15000),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.BACKLOG, 1024),
        ):
            self._socket.setsockopt(option, value)
        try:
            for endpoint in endpoints:
                self._bind(endpoint)
        except BaseException:
            self.close()
            raise

    def _bind(self, endpoint: str) -> None:
        path = Path(endpoint.removeprefix("ipc://"))
        local = endpoint.startswith("ipc://")
        if local and path.exists():
            _remove_stale(path)
        # Who may speak is settled by keys; who may connect need not be settled by the socket's mode.
        mask = os.umask(0o000 if local else 0o077)
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise RefusedError(
                f"{endpoint} cannot be bound: {error.strerror or error}",
                "choose another with `--listen`, or stop what listens there",
            ) from error
        finally:
            os.umask(mask)
        if local:
            self._paths.append(path)

    @property
    def endpoint(self) -> str:
        """The endpoint bound last, with the port that was chosen for port 0."""
        return str(self._socket.getsockopt_string(zmq.LAST_ENDPOINT))

    def close(self) -> None:
        """Close the socket; what waits to be sent is dropped."""
        self._socket.close()
        self._context.term()
        for path in self._paths:
            # Where another user bound it, its directory may be closed to this one; the next start removes it.
            with suppress(OSError):
                path.unlink()

    def serve(self, hub: Hub, *, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM or SIGINT.

        Args:
            hub: The broker.
            ready: Called once signals are handled.

        Raises:
            FencedError: Another broker has taken over the store.
        """
        with _signals() as woken:
            poller = zmq.Poller()
            poller.register(self._socket, zmq.POLLIN)
            poller.register(woken, zmq.POLLIN)
            ready()
            pending = False
            while True:
                events = dict(poller.poll(0 if pending else _milliseconds(hub.next_wake())))
                if woken.fileno() in events:
                    return
                pending = self._turn(hub)

    def _turn(self, hub: Hub) -> bool:
        """Take in a batch, commit it, send what it led to; tell whether more may wait to come in."""
        taken = 0
        while taken < BATCH:
            try:
                route, *parts = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            hub.receive(route, parts, time.monotonic())
            taken += 1
        try:
            hub.flush()
            if taken < BATCH:
                # Only now is whoever seems silent known to have sent nothing.
                hub.tick(time.monotonic())
                hub.flush()
        finally:
            self._send(hub)
        return taken == BATCH

    def _send(self, hub: Hub) -> None:
        while hub.out:
            route, frame = hub.out.popleft()
            try:
                self._socket.send_multipart((route, frame.header, frame.body), zmq.DONTWAIT)
            except zmq.Again:
                hub.lost(route, "it does not read what it is sent")
            except zmq.ZMQError as error:
                if error.errno != zmq.EHOSTUNREACH:
                    raise
                hub.lost(route, "its connection is closed")


def _milliseconds(wake: float | None) -> int | None:
    return None if wake is None else math.ceil(max(0.0, wake - time.monotonic()) * 1000)


def _remove_stale(path: Path) -> None:
    """Remove the socket a dead broker left behind; the lock on the directory says that it is dead."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(str(path))
        raise RefusedError(f"something listens at {path} already", "stop it, or choose another `--listen`")
    if not path.is_socket():
        raise InvalidError(f"{path} is there and no socket", "move it away, or choose another `--listen`")
    path.unlink()


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Give a socket that becomes readable when this process is asked to end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    for number in before:
        signal.signal(number, lambda received, _frame: _note(received))
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        ours.close()
        theirs.close()


def _note(number: int) -> None:
    get_logger().info("asked to end", signal=signal.Signals(number).name)
