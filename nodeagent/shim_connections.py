"""The engines that listen to a shim: messages as JSON over SOCK_SEQPACKET, both ways bounded.

Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from nodeagent.shim_loop import Loop
from nodeagent.shim_records import decode

MESSAGE_BYTES = 16384
_DESCRIPTORS = 4
_CONNECTIONS = 8
_QUEUED = 64


class Connection:
    """One engine that listens."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.queue: deque[tuple[bytes, list[int]]] = deque()


class Connections:
    """All of them. One that does not read what it is told is hung up on, and may come again."""

    def __init__(
        self,
        loop: Loop,
        listener: socket.socket,
        greet: Callable[[Connection], None],
        request: Callable[[Connection, dict[str, Any], list[int]], None],
        gone: Callable[[Connection], None],
    ) -> None:
        """Listen.

        Args:
            loop: Calls us.
            listener: Bound and listening.
            greet: Called with each new connection.
            request: Called with each message and its descriptors, which are closed afterwards. ValueError,
                KeyError, TypeError and OSError refuse the message.
            gone: Called with each connection that ended.
        """
        self._loop = loop
        self._listener = listener
        self._greet = greet
        self._request = request
        self._gone = gone
        self._open: dict[int, Connection] = {}
        listener.setblocking(False)
        loop.watch(listener.fileno(), self._accept)

    def send(
        self, connection: Connection, message: dict[str, Any], descriptors: list[int] | None = None
    ) -> None:
        """Send a message as soon as it goes."""
        if connection.sock.fileno() not in self._open:
            return
        if len(connection.queue) >= _QUEUED:
            self._hang_up(connection)
            return
        connection.queue.append((json.dumps(message).encode(), descriptors or []))
        self._flush(connection)

    def send_all(self, message: dict[str, Any]) -> None:
        """Send a message to everyone."""
        for connection in list(self._open.values()):
            self.send(connection, message)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            sock, _ = self._listener.accept()
            if len(self._open) >= _CONNECTIONS:
                sock.close()
                return
            sock.setblocking(False)
            connection = Connection(sock)
            self._open[sock.fileno()] = connection
            self._loop.watch(sock.fileno(), lambda: self._receive(connection))
            self._greet(connection)

    def _flush(self, connection: Connection) -> None:
        try:
            while connection.queue:
                data, descriptors = connection.queue[0]
                socket.send_fds(connection.sock, [data], descriptors)
                connection.queue.popleft()
        except BlockingIOError:
            self._loop.watch_writable(connection.sock.fileno(), lambda: self._flush(connection))
        except OSError:
            self._hang_up(connection)
        else:
            self._loop.watch_writable(connection.sock.fileno(), None)

    def _hang_up(self, connection: Connection) -> None:
        descriptor = connection.sock.fileno()
        if self._open.pop(descriptor, None) is not None:
            self._loop.forget(descriptor)
            connection.sock.close()
            self._gone(connection)

    def _receive(self, connection: Connection) -> None:
        descriptors: list[int] = []
        try:
            flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
            data, descriptors, told, _ = socket.recv_fds(connection.sock, MESSAGE_BYTES, _DESCRIPTORS, flags)
            if not data:
                self._hang_up(connection)
            elif not told & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                self._request(connection, decode(data, MESSAGE_BYTES), descriptors)
        except BlockingIOError:
            return
        except ConnectionError:
            self._hang_up(connection)
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            sys.stderr.write(f"refused a request: {error}\n")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
