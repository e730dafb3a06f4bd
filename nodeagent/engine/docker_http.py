"""Requests to Docker whose answer is a stream of bytes both ways or without end, over its UNIX socket.

The docker SDK reads ahead when it hands over an upgraded connection, and loses what came with the answer's
head; and it does not say which stream a piece of a container's log is of. So these two are spoken here, as
the Engine API has them (docs.docker.com/reference/api/engine, "Attach to a container": hijacking, format).
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from nodeagent.engine.docker_api import AnswerError

MOST_HEAD: Final = 65536
"""Bytes of an answer's head."""
MOST_ERROR: Final = 65536
"""Bytes of an answer that says what went wrong."""
CONNECT_SECONDS: Final = 5.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a UNIX socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket.

        Raises:
            OSError: Nobody listens there.
        """
        self.sock = _connected(self._path, self.timeout)


def _connected(path: str, timeout: float | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_SECONDS)
        sock.connect(path)
        sock.settimeout(timeout)
    except BaseException:
        sock.close()
        raise
    return sock


def message_of(body: bytes) -> str:
    """Return the text of an error's answer: ``{"message": "..."}``, or whatever it is."""
    try:
        message = json.loads(body)["message"]
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace")
    return " ".join(str(message).split())[:4000]


def get_stream(
    path: str, resource: str, query: Mapping[str, Any], timeout: float
) -> tuple[http.client.HTTPResponse, socket.socket]:
    """Ask for a stream; read it with ``read1``, which waits as long as it takes.

    Returns:
        The answer, and a second socket of its connection: shut that down to end the waiting.

    Args:
        path: Of Docker's socket.
        resource: Path of the URL, version included.
        query: Its parameters.
        timeout: Seconds until the answer's head.

    Raises:
        AnswerError: Docker refuses.
        OSError: It cannot be reached or does not answer.
        http.client.HTTPException: What comes is no HTTP.
    """
    connection = UnixConnection(path, timeout)
    try:
        connection.request("GET", f"{resource}?{urlencode(query)}")
        sock = connection.sock
        response = connection.getresponse()
        if response.status == http.HTTPStatus.OK:
            sock.settimeout(None)
            return response, sock.dup()
        error = AnswerError(response.status, message_of(response.read(MOST_ERROR)))
    except BaseException:
        connection.close()
        raise
    connection.close()
    raise error


def hijack(path: str, resource: str, body: Mapping[str, Any], timeout: float) -> tuple[socket.socket, bytes]:
    """Post a request whose connection becomes a stream; return the socket, and what came already.

    Args:
        path: Of Docker's socket.
        resource: Path of the URL, version included.
        body: Of the request.
        timeout: Seconds until the answer's head.

    Raises:
        AnswerError: Docker refuses.
        OSError: It cannot be reached or does not answer.
    """
    content = json.dumps(dict(body)).encode()
    head = (
        f"POST {resource} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    )
    sock = _connected(path, timeout)
    try:
        sock.sendall(head.encode("ascii") + content)
        answer, rest = _head(sock)
        status = _status(answer)
        # 200 without an upgrade is how engines answered before 1.12, and proxies still do.
        if status in (http.HTTPStatus.SWITCHING_PROTOCOLS, http.HTTPStatus.OK):
            sock.settimeout(None)
            return sock, rest
        sock.settimeout(1.0)
        error = AnswerError(status, message_of(_error_body(sock, answer, rest)))
    except BaseException:
        sock.close()
        raise
    sock.close()
    raise error


def _head(sock: socket.socket) -> tuple[bytes, bytes]:
    """Return the head of an answer, and what came after it."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = sock.recv(4096)
        if not piece or len(received) > MOST_HEAD:
            raise OSError("Docker ended the connection in the middle of its answer")
        received += piece
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, rest


def _status(head: bytes) -> int:
    parts = head.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():  # noqa: PLR2004 - a status line's
        raise OSError("Docker's answer is no HTTP")
    return int(parts[1])


def _error_body(sock: socket.socket, head: bytes, rest: bytes) -> bytes:
    """Return the body of an answer that is an error, as far as it comes within a moment."""
    length = MOST_ERROR
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:") and line[15:].strip().isdigit():
            length = min(length, int(line[15:]))
    try:
        while len(rest) < length and (piece := sock.recv(4096)):
            rest += piece
    except TimeoutError:
        pass
    return rest[:length]
