"""This process' stdin, stdout and stderr, joined to a stream of a container."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from netctl.cli import output
from netctl.errors import NetctlError
from netctl.wire.messages import StreamData, StreamEnd

if TYPE_CHECKING:
    from netctl.client import Client
    from netctl.stream import Stream

STDIN = 0
PIECE = 4096
"""Bytes written at once: what a pipe that polls as writable takes without blocking (PIPE_BUF, pipe(7))."""
POLL_SECONDS = 1.0
"""How often heartbeats are looked after when nothing else happens."""
BROKEN_PIPE_STATUS = 128 + signal.SIGPIPE


def size() -> tuple[int, int]:
    """Return this terminal's rows and columns; 24 and 80 where stdout is none."""
    try:
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return 24, 80
    return rows, columns


def run(client: Client, stream: Stream, *, stdin: bool, raw: bool) -> int:
    """Pass bytes both ways until the stream ends; return the command's exit status.

    Args:
        client: Whose stream it is.
        stream: The stream.
        stdin: Whether to pass stdin on; otherwise the command reads its end at once.
        raw: Whether to leave keys such as Ctrl-C to the command, which has a terminal of its own.

    Raises:
        NetctlError: It ended without a status; the message says why.
    """
    with _raw(enabled=raw), _wake_on_resize(enabled=raw) as resized:
        try:
            end = _Pump(client, stream, stdin=stdin, resized=resized).run()
        except BrokenPipeError:
            return BROKEN_PIPE_STATUS
        except OSError as error:
            raise NetctlError(f"the output cannot be written: {error.strerror}") from error
        finally:
            with contextlib.suppress(NetctlError):
                stream.close()
    if end.exit_code is None:
        raise NetctlError(
            end.message or "the stream ended without a status", "see the container with `netctl inspect`"
        )
    if end.message:
        # Why the status is not one of the command's: it could not be run, or the container ended.
        output.show_error(NetctlError(end.message), as_json=False)
    return end.exit_code


class _Pump:
    """Moves bytes as each side can take them, in one thread, without ever blocking on one of them."""

    def __init__(self, client: Client, stream: Stream, *, stdin: bool, resized: int | None) -> None:
        self._client = client
        self._stream = stream
        self._resized = resized
        self._input_open = stdin
        self._input = b""
        self._output: deque[tuple[int, bytes]] = deque()
        self._end: StreamEnd | None = None
        if not stdin:
            stream.close_input()

    def run(self) -> StreamEnd:
        while True:
            self._take_in()
            if self._end is not None and not self._output:
                return self._end
            if not self._send_input():
                # Only straight after having received everything does the client's descriptor tell of more.
                self._wait()

    def _take_in(self) -> None:
        """Receive all there is, unless what came before is not written yet: then credit holds it back."""
        while self._end is None:
            window = self._stream.window
            if self._output:
                # Heartbeats are answered in any case; data waits in the stream.
                if self._client.receive(0) is None and self._stream.window == window:
                    return
                continue
            piece = self._stream.receive(0)
            if isinstance(piece, StreamEnd):
                self._end = piece
            elif isinstance(piece, StreamData):
                if piece.data:
                    self._output.append((piece.channel, piece.data))
            elif self._stream.window == window:
                return

    def _send_input(self) -> bool:
        """Send what there is as far as its receiver gave credit; return whether that was anything."""
        if self._end is not None or not self._input or not self._stream.window:
            return False
        self._input = self._input[self._stream.send(self._input) :]
        return True

    def _wait(self) -> None:
        poller = select.poll()
        if self._end is None:
            poller.register(self._client.fileno(), select.POLLIN)
        if self._input_open and not self._input and self._end is None:
            poller.register(STDIN, select.POLLIN)
        if self._output:
            poller.register(self._output[0][0], select.POLLOUT)
        if self._resized is not None:
            poller.register(self._resized, select.POLLIN)
        for descriptor, _ in poller.poll(POLL_SECONDS * 1000):
            if self._output and descriptor == self._output[0][0]:
                self._write()
            elif descriptor == STDIN:
                self._read()
            elif descriptor == self._resized:
                os.read(descriptor, 64)
                self._stream.resize(*size())

    def _write(self) -> None:
        channel, data = self._output.popleft()
        written = os.write(channel, data[:PIECE])
        if written < len(data):
            self._output.appendleft((channel, data[written:]))

    def _read(self) -> None:
        try:
            self._input = os.read(STDIN, 65536)
        except OSError:
            # A terminal that hung up, or a job in the background: there is nothing more to read.
            self._input = b""
        if not self._input:
            self._input_open = False
            self._stream.close_input()


@contextlib.contextmanager
def _raw(*, enabled: bool) -> Iterator[None]:
    """Have the terminal on stdin pass every key on, and give it back as it was."""
    if not enabled or not os.isatty(STDIN):
        yield
        return
    before = termios.tcgetattr(STDIN)
    # Not flushed, as is usual: what was typed ahead belongs to the command.
    tty.setraw(STDIN, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _wake_on_resize(*, enabled: bool) -> Iterator[int | None]:
    """Yield a descriptor that becomes readable when the terminal's size changes."""
    if not enabled:
        yield None
        return
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    wakeup = signal.set_wakeup_fd(write)
    # A handler of its own: without one Python writes nothing to the descriptor.
    before = signal.signal(signal.SIGWINCH, lambda *_: None)
    try:
        yield read
    finally:
        signal.signal(signal.SIGWINCH, before)
        signal.set_wakeup_fd(wakeup)
        os.close(read)
        os.close(write)
