"""The processes a shim forks: a container's first one, which walls itself in, and commands run inside later.

They are forks of the shim, so they start in milliseconds. None of them returns: each ends in an exec or
an exit. Before a process can be seen from inside the container it has closed every descriptor of the shim
and given up every privilege the container does not have, so there is nothing to take from it.

A report pipe tells the shim how it went: JSON lines, ``{"pid": N}`` or ``{"exit_code": N, "message":
"..."}``; end of file without a message means that the command runs. Standard library only.
"""

# ruff: noqa: PTH123
from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import termios
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from nodeagent import shim_mounts
from nodeagent import shim_syscalls as syscalls

NOT_FOUND = 127
NOT_EXECUTABLE = 126
NOT_SET_UP = 125
KILLED_BY = 128
"""Added to a signal's number in the exit code of a process that it ended; all four as in sh(1)."""
MOST_PROCESSES = 4096
"""Processes and threads of one container: a fork bomb takes down its own container alone."""
_REPORT = 3
_TIOCSPTLCK, _TIOCGPTPEER = 0x4004_5431, 0x5441
"""Unlock a terminal's other side, and open it by its master rather than by a path: ioctl_tty(2)."""
_LIMITS = {
    resource.RLIMIT_CORE: (0, 0),
    resource.RLIMIT_NOFILE: (1024, 524288),
    resource.RLIMIT_MEMLOCK: (8 * 2**20, 8 * 2**20),
    resource.RLIMIT_NPROC: (MOST_PROCESSES, MOST_PROCESSES),
}
"""Soft and hard limits: no core dumps; as many processes (of its user; of root the container's cgroup counts
them); for the others systemd's defaults."""


class Command(NamedTuple):
    """What to run, and as whom.

    Attributes:
        env: The whole environment.
        capabilities: Bit mask of the bounding set; root holds them, others none.
        workdir: Directory to start in, as seen inside.
    """

    argv: list[str]
    env: dict[str, str]
    uid: int
    gid: int
    capabilities: int
    workdir: str


class Walls(NamedTuple):
    """What is made around a container's command.

    Attributes:
        hostname: The container's name.
        masked: Absolute paths to hide.
        pid_namespace: Descriptor of the shim's own.
    """

    hostname: str
    masked: list[str]
    pid_namespace: int


class Streams(NamedTuple):
    """Descriptors of a command, and of the report about it. stdin -1: nothing to read."""

    stdin: int
    stdout: int
    stderr: int
    report: int


class TerminalSize(NamedTuple):
    """Rows and columns; 0: not known."""

    rows: int
    columns: int


def exit_code_of(status: int) -> int:
    """Return the exit code of a wait status, waitpid(2)."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else KILLED_BY - code


def fork_container(command: Command, walls: Walls, streams: Streams) -> int:
    """Start a container's first process, and it the command; return its pid.

    It is init in a new pid namespace: when it ends, everything in the container ends. It ends with the
    command, with its exit code, and hands signals on to it.
    """
    syscalls.unshare(syscalls.CLONE_NEWPID)
    try:
        return _fork(lambda: _first_process(command, walls, streams), streams.report)
    finally:
        # Later forks are to be ours again.
        syscalls.setns(walls.pid_namespace, syscalls.CLONE_NEWPID)


def fork_exec(
    command: Command, first_process: int, streams: Streams, terminal: TerminalSize | None = None
) -> int:
    """Start a command beside the one that runs in a container; return the pid of the process that waits.

    Args:
        command: What to run.
        first_process: A pidfd of the container's first process.
        streams: The command's; with `terminal` three times the socket to send a terminal's master by.
        terminal: The size of the terminal to make in the container, and to be controlled by.
    """
    return _fork(lambda: _enter(command, first_process, streams, terminal), streams.report)


def _fork(child: Callable[[], NoReturn], report: int) -> int:
    everything = signal.valid_signals()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, everything)
    pid = os.fork()
    if pid == 0:
        try:
            # Blocked signals wait for whoever is to answer them.
            signal.set_wakeup_fd(-1)
            child()
        except BaseException as error:  # noqa: BLE001 - a fork must never run on into its parent's code
            _tell_failure(report, NOT_SET_UP, str(error) or type(error).__name__)
        finally:
            os._exit(NOT_SET_UP)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _first_process(command: Command, walls: Walls, streams: Streams) -> NoReturn:
    os.chdir("/")
    os.umask(0o022)
    _arrange(streams)
    syscalls.die_with_parent(signal.SIGKILL)
    _be_killed_first()
    syscalls.unshare(
        syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWCGROUP
    )
    socket.sethostname(walls.hostname)
    shim_mounts.build(walls.masked)
    _drop_privileges(command)
    syscalls.set_name("init")
    pid = os.fork()
    if pid == 0:
        _become(command, tty=False)
    _close_all()
    _serve_as_init(pid)


def _serve_as_init(command: int) -> NoReturn:
    """Reap whatever ends, pass signals to the command, end when it ends."""
    everything = signal.valid_signals()
    while True:
        number = signal.sigwaitinfo(everything).si_signo
        if number != signal.SIGCHLD:
            os.kill(command, number)
            continue
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == command:
                os._exit(exit_code_of(status))
            if pid == 0:
                break


def _enter(command: Command, first_process: int, streams: Streams, terminal: TerminalSize | None) -> NoReturn:
    _be_killed_first()
    syscalls.setns(
        first_process,
        syscalls.CLONE_NEWNS
        | syscalls.CLONE_NEWUTS
        | syscalls.CLONE_NEWIPC
        | syscalls.CLONE_NEWCGROUP
        | syscalls.CLONE_NEWPID,
    )
    _arrange(streams)
    _drop_privileges(command)
    if terminal is not None:
        try:
            _take_terminal(terminal)
        except OSError as error:
            _tell_failure(_REPORT, NOT_SET_UP, f"cannot make a terminal: {error.strerror}")
            os._exit(NOT_SET_UP)
    # This process stays outside the container's pid namespace; its child is inside.
    told, to_tell = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        syscalls.die_with_parent(signal.SIGKILL)
        os.close(to_tell)
        # Not before the shim can know whom to end: what the command starts would be out of its reach. Nor if
        # the one who waits was killed before our own death was tied to its.
        if not os.read(told, 1):
            os._exit(NOT_SET_UP)
        _become(command, tty=terminal is not None)
    _tell(_REPORT, {"pid": pid})
    os.write(to_tell, b"1")
    os.closerange(0, to_tell + 1)
    _, status = os.waitpid(pid, 0)
    os._exit(exit_code_of(status))


def _take_terminal(size: TerminalSize) -> None:
    """Make a terminal in the container's own devpts, send its master by descriptor 0, be on its other side.

    Its owner is the container's user, whose privileges we have by now. The name of the master is one that
    nobody in the container can put something else at.
    """
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
    # struct winsize of ioctl_tty(2).
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))
    with socket.socket(fileno=os.dup(0)) as sock:
        socket.send_fds(sock, [b"t"], [master])
    os.close(master)
    for target in range(_REPORT):
        os.dup2(slave, target)
    os.close(slave)


def _become(command: Command, *, tty: bool) -> NoReturn:
    """Be the command. Its report ends with the exec, since the pipe is closed by it."""
    try:
        try:
            os.setsid()
            if tty:
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            os.chdir(command.workdir)
        except OSError as error:
            _tell_failure(_REPORT, NOT_EXECUTABLE, f"cannot start in {command.workdir}: {error.strerror}")
            os._exit(NOT_EXECUTABLE)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            os.execvpe(command.argv[0], command.argv, command.env)  # noqa: S606 - running commands is what it is for
        except OSError as error:
            code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
            _tell_failure(_REPORT, code, f"cannot run {command.argv[0][:200]}: {error.strerror}")
            os._exit(code)
    finally:
        os._exit(NOT_SET_UP)


def _drop_privileges(command: Command) -> None:
    """Hold what the container may, and nothing else. Each step needs what the next one drops."""
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    kept = command.capabilities & ((1 << last + 1) - 1)
    syscalls.join_new_keyring()
    for kind, limits in _LIMITS.items():
        most = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, limits if most < 0 else (min(limits[0], most), min(limits[1], most)))
    os.umask(0o022)
    syscalls.limit_capabilities(kept, last)
    os.setgroups([])
    os.setresgid(command.gid, command.gid, command.gid)
    os.setresuid(command.uid, command.uid, command.uid)
    syscalls.set_capabilities(kept if command.uid == 0 else 0)
    syscalls.forbid_new_privileges()
    syscalls.forbid_inspection()
    # Changed ids undid it, and the shim may have ended in between: then nobody reads the report any more.
    syscalls.die_with_parent(signal.SIGKILL)
    watch = select.poll()
    watch.register(_REPORT, 0)
    if watch.poll(0):
        os._exit(NOT_SET_UP)


def _be_killed_first() -> None:
    """Undo what protects the agent when memory runs out."""
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("0")


def _arrange(streams: Streams) -> None:
    """Have the three streams and the report as descriptors 0 to 3, and no other."""
    stdin = os.open("/dev/null", os.O_RDONLY) if streams.stdin < 0 else streams.stdin
    wanted = (stdin, streams.stdout, streams.stderr, streams.report)
    # Out of the way first: any of them may be a number that another one is to have.
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64) for descriptor in wanted]
    for target, descriptor in enumerate(high):
        os.dup2(descriptor, target, inheritable=target != _REPORT)
    os.closerange(_REPORT + 1, os.sysconf("SC_OPEN_MAX"))


def _close_all() -> None:
    os.closerange(0, _REPORT + 1)


def _tell(report: int, line: dict[str, int | str]) -> None:
    try:
        os.write(report, json.dumps(line).encode() + b"\n")
    except OSError:
        sys.exit(NOT_SET_UP)


def _tell_failure(report: int, exit_code: int, message: str) -> None:
    _tell(report, {"exit_code": exit_code, "message": message[:1000]})
