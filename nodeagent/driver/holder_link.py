"""The agent's end of its connection with the process that holds the plugin's socket."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs

from netctl.log import get_logger
from nodeagent.driver.frames import MAX_FRAME, frame, make_room, parse_frame

AGAIN: Final = 0.5
"""Seconds between two tries to connect."""
MAX_FRAMES: Final = 64
"""Packets taken in one turn."""


@attrs.frozen
class Frame:
    """One of Docker's calls.

    Attributes:
        number: For the answer.
        until: When the holder may have given it up, by the host's monotonic clock.
    """

    number: int
    path: str
    body: bytes
    until: float


class HolderLink:
    """The connection, made again whenever it is lost.

    Args:
        path: Of the socket where the holder takes the agent's connection.
        monotonic: Seconds of the host's monotonic clock.

    Attributes:
        losses: How often it was lost: numbers of calls from before mean nothing any more.
        error: Why there is none; empty: there is one.
        refused: How many calls the holder refused for want of an agent that answers, as it said last.
    """

    def __init__(self, path: Path, monotonic: Callable[[], float]) -> None:
        self.losses = 0
        self.error = ""
        self.refused = 0
        self._path = path
        self._monotonic = monotonic
        self._socket: socket.socket | None = None
        self._more = False
        self._again_at = 0.0
        self._log = get_logger()

    def fileno(self) -> int | None:
        """Return the descriptor to wait for; None: there is no connection."""
        return None if self._socket is None else self._socket.fileno()

    def deadline(self) -> float:
        """Return when `receive` has something to do by itself."""
        if self._more:
            return 0.0
        return self._again_at if self._socket is None else float("inf")

    def receive(self) -> list[Frame]:
        """Return calls that came in, at most `MAX_FRAMES` at once; pings are answered. Does not wait."""
        if self._socket is None and self._monotonic() >= self._again_at:
            self._connect()
        calls: list[Frame] = []
        self._more = False
        for _ in range(MAX_FRAMES):
            if self._socket is None:
                break
            try:
                data = self._socket.recv(MAX_FRAME)
                if not data:
                    raise ConnectionResetError("it is gone")
                line, body = parse_frame(data)
                call = self._call(line, body)
            except BlockingIOError:
                break
            except (OSError, ValueError, RecursionError) as error:
                self._lose(error)
                break
            if call is not None:
                calls.append(call)
        else:
            self._more = True
        return calls

    def answer(self, number: int, body: bytes) -> None:
        """Answer a call."""
        self._send(frame({"id": number}, body))

    def close(self) -> None:
        """End the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self) -> None:
        sock = socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        try:
            sock.connect(str(self._path))
        except OSError as error:
            sock.close()
            why = error.strerror or str(error)
            if why != self.error:
                self._log.error("Docker's calls cannot be heard", path=str(self._path), error=why)
            self.error = why
            self._again_at = self._monotonic() + AGAIN
            return
        make_room(sock)
        self._socket = sock
        self.error = ""
        self._log.info("Docker's calls are heard", path=str(self._path))

    def _call(self, line: dict[str, object], body: bytes) -> Frame | None:
        ping = line.get("ping")
        if ping is not None:
            refused = line.get("refused")
            if isinstance(refused, int):
                self.refused = refused
            self._send(frame({"pong": ping}))
            return None
        number, path, until = line.get("id"), line.get("path"), line.get("until")
        if not isinstance(number, int) or not isinstance(path, str) or not isinstance(until, int | float):
            raise ValueError("a packet that is neither call nor ping")  # noqa: TRY004 - as all of `parse_frame`
        return Frame(number, path, body, until)

    def _send(self, data: bytes) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send(data)
        except OSError as error:
            # One that does not read its answers cannot be helped; a new connection begins anew.
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self._log.warning("Docker's calls cannot be heard", path=str(self._path), error=str(error))
        self.close()
        self.losses += 1
        self.error = str(error)
        self._again_at = self._monotonic() + AGAIN
