"""The commands that run in a container beside its own, from the shim's side. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any, Protocol

from nodeagent.shim_process import NOT_SET_UP, Streams, TerminalSize, exit_code_of, fork_exec
from nodeagent.shim_records import COMMAND_BYTES, command_of, decode, make_pipe, read_report

HANG_UP_AFTER = 2.0
"""Seconds between SIGHUP and SIGKILL when the user of a command went away."""
MOST = 256
"""Commands at a time."""
Owner = object
"""Whom a command belongs to: the connection it came by."""
Ended = Callable[[int, int, str], None]
"""Called with a command's handle, its exit code and why it could not run."""


class Watch(Protocol):
    """What the shim's loop offers."""

    def watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        """Call `handler` whenever the descriptor is readable."""

    def forget(self, descriptor: int) -> None:
        """Stop doing so."""


class _Exec:
    def __init__(self, owner: Owner, handle: int, ended: Ended, waiter: int, report: int) -> None:
        self.owner = owner
        self.handle = handle
        self.ended = ended
        self.waiter = waiter
        self.report = report
        self.told: dict[str, Any] = {}
        self.kill_at: float | None = None


class Execs:
    """Every command that runs, by the pid of the process that waits for it."""

    def __init__(self, loop: Watch) -> None:
        self._loop = loop
        self._running: dict[int, _Exec] = {}

    def __len__(self) -> int:
        return len(self._running)

    def run(
        self,
        owner: Owner,
        handle: int,
        ended: Ended,
        first_process: int,
        descriptors: list[int],
        *,
        terminal: TerminalSize | None,
    ) -> None:
        """Run a command; `ended` is called once, at once if it cannot run.

        Args:
            owner: Whom it belongs to.
            handle: The owner's name for it.
            ended: See `Ended`.
            first_process: A pidfd of the container's first process.
            descriptors: A file that holds the command as JSON, stdin, stdout, stderr.
            terminal: The command is to have one of this size, and the last three are the socket that its
                master is sent by.
        """
        if len(self._running) >= MOST:
            ended(handle, NOT_SET_UP, f"{MOST} commands run in the container already")
            return
        report, to_report = make_pipe()
        try:
            file, stdin, stdout, stderr = descriptors
            command = command_of(decode(os.pread(file, COMMAND_BYTES + 1, 0), COMMAND_BYTES))
            streams = Streams(stdin, stdout, stderr, to_report)
            waiter = fork_exec(command, first_process, streams, terminal)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            os.close(report)
            ended(handle, NOT_SET_UP, f"cannot run a command: {error}")
            return
        finally:
            os.close(to_report)
        one = self._running[waiter] = _Exec(owner, handle, ended, waiter, report)
        self._loop.watch(report, lambda: self._hear(one))

    def reaped(self, pid: int, status: int) -> None:
        """Take notice that a child of the shim ended."""
        if (one := self._running.pop(pid, None)) is None:
            return
        if one.report >= 0:
            self._hear(one)
        self._close_report(one)
        exit_code = one.told.get("exit_code", exit_code_of(status))
        one.ended(one.handle, int(exit_code), str(one.told.get("message", ""))[:1000])

    def end(self, owner: Owner, handle: int | None = None) -> None:
        """End the owner's command `handle`, or all of them: SIGHUP, and SIGKILL later."""
        for one in self._running.values():
            if one.owner is owner and handle in (None, one.handle) and one.kill_at is None:
                one.kill_at = time.monotonic() + HANG_UP_AFTER
                if one.report >= 0:
                    self._hear(one)
                _signal(one, signal.SIGHUP)

    def deadlines(self) -> list[float]:
        """Return when `kill_overdue` has something to do (monotonic seconds)."""
        return [one.kill_at for one in self._running.values() if one.kill_at is not None]

    def kill_overdue(self, now: float) -> None:
        """Kill what was to end before `now` and has not."""
        for one in self._running.values():
            if one.kill_at is not None and now >= one.kill_at:
                one.kill_at = now + HANG_UP_AFTER
                _signal(one, signal.SIGKILL)

    def _hear(self, one: _Exec) -> None:
        told, over = read_report(one.report)
        one.told.update(told)
        if over:
            self._close_report(one)

    def _close_report(self, one: _Exec) -> None:
        if one.report >= 0:
            self._loop.forget(one.report)
            os.close(one.report)
            one.report = -1


def _signal(one: _Exec, number: signal.Signals) -> None:
    pid = one.told.get("pid")
    with contextlib.suppress(ProcessLookupError):
        if not isinstance(pid, int) or _parent_of(pid) != one.waiter:
            # Not told yet, so the command has not begun (or not to be believed): it dies with its waiter.
            os.kill(one.waiter, signal.SIGKILL)
            return
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            os.kill(pid, number)


def _parent_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - pathlib would cost every shim memory
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError):
        return 0
