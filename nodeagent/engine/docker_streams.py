"""Bytes between users and Docker's containers: a command's, and those of a container's log.

Each runs in a thread of its own, which waits as its user does: nothing is read that cannot be passed on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import termios
import threading
import tty
from collections.abc import Callable, Iterable
from http.client import HTTPResponse
from typing import Final

from nodeagent.output_reader import MAX_RECORD

SLICE: Final = 65536
LOOK_SECONDS: Final = 0.25
"""How often the size of a user's terminal is compared: nobody tells us of a change."""
_FRAME: Final = struct.Struct(">BxxxI")
"""Head of a piece of output, as Docker sends it ("Stream format" in the Engine API's reference)."""
_RECORD: Final = struct.Struct(">BI")
"""Head of a piece of output, as `nodeagent.output_reader` reads it."""
_WINDOW: Final = struct.Struct("HHHH")
"""``struct winsize`` of ioctl_tty(2)."""
_NOT_RUN: Final = b"OCI runtime exec failed: "
"""Begins what Docker writes in the place of the output of a command that it could not run."""
_SYSTEM_ERROR: Final = 3
"""The stream of a frame in which Docker says why there is no more."""

Size = tuple[int, int]
"""Rows and columns."""


class Stop:
    """Tells a thread that its user went away."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lock = threading.Lock()
        self._closed = False
        self.asked = False
        self.call: Callable[[], None] | None = None
        """Ends what the thread may be waiting for, where that is not waited for by `fileno`."""

    def fileno(self) -> int:
        """Return a descriptor that is readable once it was asked."""
        return self._descriptor

    def ask(self) -> None:
        """Ask; from any thread, as often as one likes."""
        with self._lock:
            self.asked = True
            if not self._closed:
                os.eventfd_write(self._descriptor, 1)
                if self.call is not None:
                    with contextlib.suppress(OSError):
                        self.call()

    def close(self) -> None:
        """Nobody waits for it any more."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._descriptor)


class StoppedError(Exception):
    """The user went away."""


def write_all(descriptor: int, data: bytes, stop: Stop) -> bool:
    """Write to a descriptor that does not block; return False if nobody reads there any more.

    Raises:
        StoppedError: The user went away first.
    """
    view = memoryview(data)
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.register(stop, select.POLLIN)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
            continue
        except BlockingIOError:
            pass
        except OSError:
            return False
        if any(ready == stop.fileno() for ready, _ in poll.poll()):
            raise StoppedError
    return True


def read_pieces(descriptor: int, stop: Stop) -> Iterable[bytes]:
    """Yield what comes on a descriptor, until its end or the user's.

    Raises:
        StoppedError: The user went away first.
    """
    os.set_blocking(descriptor, False)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(stop, select.POLLIN)
    while True:
        if any(ready == stop.fileno() for ready, _ in poll.poll()):
            raise StoppedError
        with contextlib.suppress(BlockingIOError):
            piece = os.read(descriptor, SLICE)
            if not piece:
                return
            yield piece


class Frames:
    """Takes Docker's frames apart as they come."""

    def __init__(self) -> None:
        self._buffer = b""

    def split(self, data: bytes) -> list[tuple[int, bytes]]:
        """Return stream and data of what is there; a long frame comes in parts.

        Raises:
            ValueError: These are no frames.
        """
        buffer, at = self._buffer + data, 0
        self._buffer = b""
        found: list[tuple[int, bytes]] = []
        while len(buffer) - at >= _FRAME.size:
            stream, length = _FRAME.unpack_from(buffer, at)
            if stream > _SYSTEM_ERROR:
                raise ValueError("Docker's output is damaged")
            part = buffer[at + _FRAME.size : at + _FRAME.size + length]
            if length and not part:
                break
            found.append((stream, part))
            at += _FRAME.size + len(part)
            if len(part) < length:
                # What is still to come of a frame gets a head of its own.
                self._buffer = _FRAME.pack(stream, length - len(part))
        self._buffer += buffer[at:]
        return found


def records(stream: int, data: bytes) -> bytes:
    """Return data as records of a container's output."""
    return b"".join(
        _RECORD.pack(stream, len(part)) + part
        for part in (data[at : at + MAX_RECORD] for at in range(0, len(data), MAX_RECORD))
    )


def pass_log_on(response: HTTPResponse, descriptor: int, stop: Stop, *, terminal: bool) -> str:
    """Pass a container's log on as records; return what Docker says went wrong, empty: nothing.

    Args:
        response: The log.
        descriptor: Of a pipe.
        stop: Of its user.
        terminal: The container has one, so that its output comes bare, all of it stdout's.

    Raises:
        StoppedError: The user went away.
        ValueError: What comes is no log.
    """
    os.set_blocking(descriptor, False)
    frames = Frames()
    while data := response.read1(SLICE):
        for stream, part in [(1, data)] if terminal else frames.split(data):
            if stream == _SYSTEM_ERROR:
                return part.decode(errors="replace").strip()
            if not write_all(descriptor, records(2 if stream == 2 else 1, part), stop):  # noqa: PLR2004 - stderr
                raise StoppedError
    return ""


def open_terminal(through: int, size: Size) -> int:
    """Make a terminal that passes every byte as it is; send its master through a socket.

    Returns:
        Its other side, which does not block.

    Raises:
        OSError: There are no more terminals.
    """
    master, slave = os.openpty()
    try:
        tty.setraw(slave)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, _WINDOW.pack(*size, 0, 0))
        os.set_blocking(slave, False)
        with socket.socket(fileno=os.dup(through)) as sock:
            socket.send_fds(sock, [b"t"], [master])
    except BaseException:
        os.close(slave)
        raise
    finally:
        os.close(master)
    return slave


class Pump:
    """Moves the bytes of one command between its user's descriptors and Docker's connection.

    Args:
        sock: Docker's connection.
        received: What came on it already.
        stdin: Of the user; with a terminal its inner side.
        outputs: Descriptor by stream; with a terminal, None.
        stop: Of the user.
        resize: Tells Docker the size of the terminal; False: it could not be told yet.

    Attributes:
        complaint: What Docker wrote of a command that it could not run.
    """

    def __init__(
        self,
        sock: socket.socket,
        received: bytes,
        *,
        stdin: int,
        outputs: dict[int, int] | None,
        stop: Stop,
        resize: Callable[[Size], bool],
    ) -> None:
        self._sock = sock
        self._stdin = stdin
        self._outputs = outputs
        self._stop = stop
        self._resize = resize
        self.complaint = ""
        self._told: Size | None = None
        self._quiet = True
        self._frames = Frames()
        self._waiting: list[tuple[int, bytes]] = []
        self._input = b""
        self._input_over = False
        self._half_closed = False
        sock.setblocking(False)
        os.set_blocking(stdin, False)
        for descriptor in (outputs or {}).values():
            os.set_blocking(descriptor, False)
        self._take(received)

    def run(self) -> None:
        """Move bytes until Docker ends the connection.

        Raises:
            StoppedError: The user went away.
            ValueError: What Docker sends are no frames.
        """
        over = False
        while not (over and not self._waiting):
            self._follow_size()
            ready = self._wait(over=over)
            if self._stop.fileno() in ready:
                raise StoppedError
            self._write_output()
            if self._sock.fileno() in ready and not self._waiting and not over:
                over = not self._read_output()
            if self._stdin in ready and not self._input and not self._input_over:
                self._read_input()
            self._write_input()

    def _wait(self, *, over: bool) -> set[int]:
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        wanted = 0 if self._waiting or over else select.POLLIN
        if self._input:
            wanted |= select.POLLOUT
        if wanted and not over:
            poll.register(self._sock, wanted)
        if self._waiting:
            poll.register(self._waiting[0][0], select.POLLOUT)
        if not self._input and not self._input_over:
            poll.register(self._stdin, select.POLLIN)
        timeout = LOOK_SECONDS * 1000 if self._outputs is None else None
        return {descriptor for descriptor, _ in poll.poll(timeout)}

    def _read_output(self) -> bool:
        """Take in what Docker has; return whether more may come."""
        try:
            data = self._sock.recv(SLICE)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._take(data)
        return bool(data)

    def _take(self, data: bytes) -> None:
        pieces = self._frames.split(data) if self._outputs is not None else [(1, data)] if data else []
        if self._quiet and pieces:
            self._quiet = False
            if pieces[0][1].startswith(_NOT_RUN):
                self.complaint = pieces[0][1].decode(errors="replace")
                return
        if self._outputs is None:
            self._waiting.extend((self._stdin, part) for _, part in pieces)
            return
        for stream, part in pieces:
            descriptor = self._outputs.get(2 if stream >= 2 else 1)  # noqa: PLR2004 - stderr, and Docker's own complaints
            if descriptor is not None:
                self._waiting.append((descriptor, part))

    def _write_output(self) -> None:
        while self._waiting:
            descriptor, data = self._waiting[0]
            try:
                written = os.write(descriptor, data)
            except BlockingIOError:
                return
            except OSError:
                # Nobody reads there any more; the command goes on.
                written = len(data)
            if written < len(data):
                self._waiting[0] = (descriptor, data[written:])
            else:
                del self._waiting[0]

    def _read_input(self) -> None:
        try:
            self._input = os.read(self._stdin, SLICE)
        except BlockingIOError:
            return
        except OSError:
            self._input = b""
        self._input_over = not self._input

    def _write_input(self) -> None:
        if self._input:
            try:
                self._input = self._input[self._sock.send(self._input) :]
            except BlockingIOError:
                return
            except OSError:
                # The command reads no more; what it wrote is still to come.
                self._input, self._input_over = b"", True
        if self._input_over and not self._input and not self._half_closed:
            self._half_closed = True
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    def _follow_size(self) -> None:
        if self._outputs is not None:
            return
        with contextlib.suppress(OSError):
            rows, columns, _, _ = _WINDOW.unpack(
                fcntl.ioctl(self._stdin, termios.TIOCGWINSZ, bytes(_WINDOW.size))
            )
            size = (rows, columns)
            if size not in (self._told, (0, 0)) and self._resize(size):
                self._told = size
