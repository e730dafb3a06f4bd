"""A TCP forwarder that is slow in one direction, so that what takes a moment takes long enough to be seen."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Self

from tests.support.netns import Namespace

_PIECE = 1 << 18


class SlowForwarder:
    """Passes on what comes to a port of a namespace's loopback to another of its ports; answers come slowly.

    Args:
        namespace: Of both ports.
        port: Where it listens.
        target: Where it passes on to.
        rate: Bytes a second that answers come with.
    """

    def __init__(self, namespace: Namespace, port: int, target: int, rate: float) -> None:
        self._namespace, self._target, self._pause = namespace, target, _PIECE / rate
        self._listener = namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", port))
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = self._namespace.socket(socket.AF_INET, socket.SOCK_STREAM)
            server.connect(("127.0.0.1", self._target))
            for source, sink, pause in ((client, server, 0.0), (server, client, self._pause)):
                threading.Thread(target=_pass_on, args=(source, sink, pause), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket, pause: float) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_PIECE):
            sink.sendall(data)
            time.sleep(pause * len(data) / _PIECE)
        sink.shutdown(socket.SHUT_WR)
