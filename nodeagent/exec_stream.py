"""One command, or one copy, for a user: its pipes or terminal on one side, messages on the other.

    broker --StreamData(0)--> feed --> stdin            (credit goes back as it is written)
    broker <--StreamData(1,2)-- pump <-- stdout, stderr     (no further than the window)

No descriptor blocks, and no buffer grows beyond the credit that was given.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import termios
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, Literal

from netctl.errors import ProtocolError
from netctl.wire.messages import Message, StreamCredit, StreamData, StreamEnd, StreamResize
from nodeagent.helper_messages import ExecEnded

CREDIT: Final = 262144
"""Bytes each side may send before it is given more (`netctl.wire.messages.StreamOpened`)."""
CHUNK: Final = 65536
"""Bytes of one StreamData at most (`netctl.wire.messages.Chunk`)."""
MAX_WINDOW: Final = 2**31
_END_OF_TRANSMISSION: Final = b"\x04"

Send = Callable[[Message], None]


class Exec:
    """A command that runs for a user.

    Args:
        stream: The stream's id.
        handle: The helper's name for the command.
        descriptors: With a terminal its master; else stdin, stdout and stderr, -1 for one that it has not,
            as a copy. Closed with this object.
        send: Sends one message to the broker.
    """

    def __init__(self, stream: int, handle: int, descriptors: tuple[int, ...], send: Send) -> None:
        self.stream = stream
        self.handle = handle
        self._send = send
        self._terminal = len(descriptors) == 1
        self._stdin = descriptors[0]
        channels: dict[int, Literal[1, 2]] = (
            {descriptors[0]: 1} if self._terminal else {descriptors[1]: 1, descriptors[2]: 2}
        )
        self._outputs = {descriptor: channel for descriptor, channel in channels.items() if descriptor >= 0}
        for descriptor in {self._stdin, *self._outputs} - {-1}:
            os.set_blocking(descriptor, False)
        self._window = CREDIT
        self._input: deque[bytes] = deque()
        self._input_bytes = 0
        self._input_ends = False
        self._written = 0
        self._ended: ExecEnded | None = None
        self.over = False

    def readers(self) -> Iterable[int]:
        """Return the descriptors to be read from when they are readable."""
        return list(self._outputs) if self._window > 0 else []

    def writers(self) -> Iterable[int]:
        """Return the descriptors to be written to when they are writable."""
        return [self._stdin] if self._stdin >= 0 and (self._input or self._input_ends) else []

    @property
    def busy(self) -> bool:
        """Whether `pump` is to be called whatever the descriptors say."""
        return self._ended is not None and self._window > 0

    def feed(self, message: StreamData) -> None:
        """Take in what the user sends to stdin.

        Raises:
            ProtocolError: It is more than there was credit for, or for another channel.
        """
        if message.channel != 0:
            raise ProtocolError("only stdin can be written to")
        self._input_bytes += len(message.data)
        if self._input_bytes > CREDIT:
            raise ProtocolError("more bytes on a stream than there was credit for")
        if message.data:
            self._input.append(message.data)
        self._input_ends = self._input_ends or message.eof
        self._write()

    def credit(self, message: StreamCredit) -> None:
        """The user has consumed output."""
        self._window = min(MAX_WINDOW, self._window + message.credit)

    def resize(self, message: StreamResize) -> None:
        """The user's terminal has a new size."""
        if self._terminal and self._stdin >= 0:
            # struct winsize of ioctl_tty(2).
            size = struct.pack("HHHH", message.rows, message.columns, 0, 0)
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._stdin, termios.TIOCSWINSZ, size)

    def ended(self, event: ExecEnded) -> None:
        """The command is over; what it wrote is still to be sent."""
        self._ended = event

    def pump(self, readable: Iterable[int], writable: Iterable[int]) -> None:
        """Move what can be moved: one slice of each descriptor."""
        if self._stdin in set(writable):
            self._write()
        ready = set(self._outputs) if self._ended is not None else set(readable) & set(self._outputs)
        drained = [self._read(descriptor) for descriptor in ready if self._window > 0]
        if self._ended is None or not all(drained) or (self._outputs and self._window <= 0):
            return
        # Whoever else holds the pipes, as a process left in the background, is not waited for.
        self._send(StreamEnd(self.stream, self._ended.exit_code, self._ended.message))
        self.over = True
        self.close()

    def _read(self, descriptor: int) -> bool:
        """Send one slice of output; return whether there was none for now."""
        channel = self._outputs[descriptor]
        try:
            data = os.read(descriptor, min(CHUNK, self._window))
        except BlockingIOError:
            return True
        except OSError as error:
            # What reading a terminal says once its other side is closed.
            if error.errno != errno.EIO:
                raise
            data = b""
        if data:
            self._window -= len(data)
            self._send(StreamData(self.stream, channel, data))
            return False
        self._send(StreamData(self.stream, channel, eof=True))
        del self._outputs[descriptor]
        if descriptor != self._stdin:
            os.close(descriptor)
        return True

    def _write(self) -> None:
        """Write what waits for stdin as far as it is taken, and give credit for it."""
        while self._input:
            data = self._input[0]
            taken = self._write_some(data) if self._stdin >= 0 else len(data)
            if taken == 0:
                break
            self._input[0] = data[taken:]
            if not self._input[0]:
                self._input.popleft()
            self._written += taken
        if self._written * 2 >= CREDIT or (self._written and not self._input):
            self._input_bytes -= self._written
            self._send(StreamCredit(self.stream, self._written))
            self._written = 0
        if self._input_ends and not self._input and self._stdin >= 0:
            self._end_input()

    def _write_some(self, data: bytes) -> int:
        """Return how many bytes were taken; a command that reads no more takes, and loses, all."""
        try:
            return os.write(self._stdin, data)
        except BlockingIOError:
            return 0
        except OSError:
            self._close_stdin()
            return len(data)

    def _end_input(self) -> None:
        if not self._terminal:
            self._close_stdin()
        elif self._write_some(_END_OF_TRANSMISSION):
            self._input_ends = False

    def _close_stdin(self) -> None:
        if self._stdin >= 0 and self._stdin not in self._outputs:
            os.close(self._stdin)
            self._stdin = -1

    def close(self) -> None:
        """Close the descriptors; the command hears of it by its pipes."""
        for descriptor in {self._stdin, *self._outputs} - {-1}:
            os.close(descriptor)
        self._stdin = -1
        self._outputs.clear()
