"""A shim's one loop over descriptors, child processes and deadlines. Standard library only, no threads."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable


class Loop:
    """Calls who waits for what. Nobody it calls may block."""

    def __init__(self) -> None:
        """Take over SIGCHLD and SIGTERM of this process."""
        self._poll = select.poll()
        self._readable: dict[int, Callable[[], None]] = {}
        self._writable: dict[int, Callable[[], None]] = {}
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        self._signals = b""
        self.watch(reader, lambda: self._note(os.read(reader, 4096)))

    def watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever the descriptor is readable."""
        self._readable[descriptor] = handler
        self._poll.register(descriptor, select.POLLIN)

    def watch_writable(self, descriptor: int, handler: Callable[[], None] | None) -> None:
        """Call `handler` whenever the descriptor, which is watched, can be written; None: no longer."""
        if handler is None:
            self._writable.pop(descriptor, None)
        else:
            self._writable[descriptor] = handler
        self._poll.modify(descriptor, select.POLLIN | (select.POLLOUT if handler else 0))

    def forget(self, descriptor: int) -> None:
        """Watch the descriptor no longer; to be called before it is closed."""
        self._writable.pop(descriptor, None)
        if self._readable.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def run_once(
        self, deadline: float | None, reaped: Callable[[int, int], None], terminate: Callable[[], None]
    ) -> None:
        """Wait for something, and have it handled.

        Args:
            deadline: When to give up waiting (monotonic seconds); None: never.
            reaped: Called with pid and wait status of each child that ended.
            terminate: Called when SIGTERM came.
        """
        wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000 + 1
        for descriptor, what in self._poll.poll(wait):
            # One that an earlier one of this round has closed is no longer there.
            if what & select.POLLOUT and descriptor in self._writable:
                self._writable[descriptor]()
            if what & ~select.POLLOUT and descriptor in self._readable:
                self._readable[descriptor]()
        numbers, self._signals = self._signals, b""
        if signal.SIGTERM in numbers:
            terminate()
        if signal.SIGCHLD in numbers:
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    reaped(*ended)

    def _note(self, numbers: bytes) -> None:
        self._signals += numbers
