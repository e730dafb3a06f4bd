"""Processes that are known again by pid and start time, so that a pid used anew is never signalled."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs


@attrs.frozen
class ProcessId:
    """One process, for good.

    Attributes:
        started: Clock ticks since boot (proc(5), field 22 of /proc/PID/stat).
    """

    pid: int
    started: int


@attrs.frozen
class _Stat:
    state: str
    parent: int
    started: int


def _stat(pid: int) -> _Stat | None:
    """Read /proc/PID/stat; None: there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The program's name comes second, in parentheses, and may hold anything: count from its end.
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(fields[0], int(fields[1]), int(fields[19]))


def _pids() -> Iterable[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())  # noqa: PTH208 - names, not paths


def identify(pid: int) -> ProcessId | None:
    """Return who has this pid now; None: nobody who still runs."""
    stat = _stat(pid)
    return None if stat is None or stat.state in "ZX" else ProcessId(pid, stat.started)


def alive(process: ProcessId) -> bool:
    """Return whether this very process still runs."""
    return identify(process.pid) == process


def children(pid: int) -> tuple[int, ...]:
    """Return the pids of the processes that `pid` started and that still run."""
    found = []
    for other in _pids():
        stat = _stat(other)
        if stat is not None and stat.parent == pid and stat.state not in "ZX":
            found.append(other)
    return tuple(sorted(found))


def in_namespaces(namespaces: Iterable[Path]) -> tuple[ProcessId, ...]:
    """Return who runs in one of these network namespaces, ourselves left out."""
    inodes = set()
    own = Path("/proc/self/ns/net").stat()
    for path in namespaces:
        with contextlib.suppress(OSError):
            stat = path.stat()
            # A file that is no namespace (its mount is gone) lies on another device than our own.
            if stat.st_dev == own.st_dev and stat.st_ino != own.st_ino:
                inodes.add(stat.st_ino)
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError):
            if pid != os.getpid() and Path(f"/proc/{pid}/ns/net").stat().st_ino in inodes:
                process = identify(pid)
                found += [process] if process is not None else []
    return tuple(found)


def with_argument_below(directory: Path, mention: str = "") -> tuple[ProcessId, ...]:
    """Return the processes, but ourselves, with an argument below `directory` and `mention` in one."""
    found = []
    prefix = os.fsencode(f"{directory}/")
    for pid in _pids():
        with contextlib.suppress(OSError):
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if (
                pid != os.getpid()
                and any(each.startswith(prefix) for each in arguments)
                and any(mention.encode() in each for each in arguments)
            ):
                process = identify(pid)
                found += [process] if process is not None else []
    return tuple(found)


def spawn(argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> ProcessId:
    """Start a process in a session of its own, its output appended to `log`; it outlives us.

    Raises:
        FileNotFoundError: There is no such program.
    """
    pid = os.posix_spawnp(
        argv[0],
        list(argv),
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGQUIT),
    )
    stat = _stat(pid)
    # A child stays visible until it is waited for, which nobody has done yet.
    return ProcessId(pid, stat.started if stat is not None else 0)


def _open(process: ProcessId) -> int | None:
    """Return a pidfd of this very process; None: it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Checked after opening: from here on the descriptor cannot come to mean another process.
    if alive(process):
        return descriptor
    _reap(descriptor)
    os.close(descriptor)
    return None


def _reap(descriptor: int) -> None:
    """Take the status of a child of ours that ended; for others there is nothing to do."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, descriptor, os.WEXITED | os.WNOHANG)


def _wait(waiting: dict[int, ProcessId], seconds: float) -> None:
    """Take out of `waiting` (by pidfd) who ended within `seconds`."""
    deadline = time.monotonic() + seconds
    poller = select.poll()
    for descriptor in waiting:
        poller.register(descriptor, select.POLLIN)
    while waiting:
        ready = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            return
        for descriptor, _ in ready:
            poller.unregister(descriptor)
            _reap(descriptor)
            os.close(descriptor)
            del waiting[descriptor]


def stop(stopping: Iterable[ProcessId], grace: float = 5.0) -> tuple[ProcessId, ...]:
    """End processes: SIGTERM to all, SIGKILL after `grace` seconds to those left; return who still runs."""
    waiting: dict[int, ProcessId] = {}
    for process in stopping:
        descriptor = _open(process)
        if descriptor is not None:
            waiting[descriptor] = process
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 2.0)):
        for descriptor in waiting:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
                # One that was halted takes no SIGTERM until it goes on.
                signal.pidfd_send_signal(descriptor, signal.SIGCONT)
        _wait(waiting, seconds)
    for descriptor in waiting:
        os.close(descriptor)
    return tuple(waiting.values())
