"""One per process container: holds its network namespace, runs its command, keeps its status and output.

The engine starts it as ``python -I -S`` with the standard library alone, in a session and cgroups of its
own; from then on it depends on nobody, and the engine finds it again by the socket in its directory:

    engine --- shim.sock (SOCK_SEQPACKET, JSON) --- shim --fork--> init of a new pid namespace --> command
                                                      |                (new at every start)
                                                      '--fork--> one process per exec --> command inside

    in the directory:  spec.json  what to run (by the engine)      shim.sock  listened on before we start
                       status.json  the state, replaced whole      output     see `shim_output`

Requests: ``{"do": "start", "generation": N}``, ``{"do": "stop"}``, ``{"do": "quit"}``, ``{"do": "exec",
"handle": N, "tty": B, "rows": R, "columns": C}`` with four descriptors (a file that holds the command as
JSON, stdin, stdout, stderr; with `tty`, the last three are the socket that a terminal's master is sent by),
``{"do": "kill", "handle": N}``. Events: ``{"event": "status", ...}``, the first on each connection with two
descriptors (the network namespace, a pidfd of ours), and ``{"event": "ended", "handle": N, ...}``.
A request that makes no sense is answered with nothing and changes nothing. An exec belongs to the
connection it came by, and ends with it.

pathlib is left out of the shim's files: it would cost every container memory and time.
"""

# ruff: noqa: PTH105, PTH110, PTH123
from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from typing import Any

from nodeagent import shim_syscalls as syscalls
from nodeagent.shim_connections import MESSAGE_BYTES, Connection, Connections
from nodeagent.shim_execs import Execs
from nodeagent.shim_loop import Loop
from nodeagent.shim_output import Output
from nodeagent.shim_process import NOT_SET_UP, Streams, TerminalSize, Walls, exit_code_of, fork_container
from nodeagent.shim_records import COMMAND_BYTES, command_of, make_pipe, read_json, read_report

LISTENER = 3
"""The descriptor of the listening socket we are started with."""
STOP_AFTER = 8.0
"""Seconds between SIGTERM and SIGKILL of a stop: fewer than `netctl stop` waits by default."""
_READ = 65536
_PIPE_READS = 16
"""Reads that empty a full pipe (1 MiB at most for a user without privileges, pipe(7))."""


class Shim:
    """A container: what state it is in, and who may hear of it."""

    def __init__(self, listener: socket.socket) -> None:
        """Make the namespace and read where an earlier shim of this container stood.

        Raises:
            OSError: A namespace cannot be made.
            ValueError: The specification or the status is not one; so do KeyError, TypeError, AttributeError.
        """
        spec = read_json("spec.json", COMMAND_BYTES)
        self._command = command_of(spec)
        self._walls = Walls(
            hostname=str(spec["name"]),
            masked=[str(path) for path in spec["masked"]],
            pid_namespace=os.open("/proc/self/ns/pid", os.O_RDONLY),
        )
        self._status: dict[str, Any] = {"state": "created", "generation": 0, "exit_code": None, "message": ""}
        if os.path.exists("status.json"):
            self._status = read_json("status.json", MESSAGE_BYTES)
        self._generation = int(self._status["generation"])
        syscalls.unshare(syscalls.CLONE_NEWNET)
        # As Docker has it: without capabilities, ping works and every port can be bound.
        _write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
        _write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
        self._handed_out = [os.open("/proc/self/ns/net", os.O_RDONLY), os.pidfd_open(os.getpid())]
        self._output = Output("output")
        self._loop = Loop()
        self._execs = Execs(self._loop)
        self._connections = Connections(self._loop, listener, self._greet, self._request, self._execs.end)
        self._first = 0
        self._first_pidfd = -1
        self._first_told: dict[str, Any] = {}
        self._streams: dict[int, int] = {}
        self._report = -1
        self._kill_at: float | None = None
        self._ending = False
        self._save()

    def run(self) -> None:
        """Serve until told to quit, or until the host shuts down."""
        while not self._ending or self._first or self._execs:
            deadlines = self._execs.deadlines()
            if self._kill_at is not None:
                deadlines.append(self._kill_at)
            self._loop.run_once(min(deadlines, default=None), self._reaped, self._host_shuts_down)
            now = time.monotonic()
            self._execs.kill_overdue(now)
            if self._kill_at is not None and now >= self._kill_at:
                self._kill_at = None
                self._signal(signal.SIGKILL)

    def _greet(self, connection: Connection) -> None:
        self._connections.send(connection, {"event": "status", **self._status}, self._handed_out)

    def _request(self, connection: Connection, request: dict[str, Any], descriptors: list[int]) -> None:
        match request["do"]:
            case "start":
                self._start(int(request["generation"]))
            case "stop":
                self._stop()
            case "quit":
                self._ending = True
                self._signal(signal.SIGKILL)
            case "exec":
                terminal = None
                if request["tty"]:
                    terminal = TerminalSize(int(request["rows"]), int(request["columns"]))
                self._exec(connection, int(request["handle"]), descriptors, terminal)
            case "kill":
                self._execs.end(connection, int(request["handle"]))

    def _exec(
        self, connection: Connection, handle: int, descriptors: list[int], terminal: TerminalSize | None
    ) -> None:
        def ended(handle: int, exit_code: int, message: str) -> None:
            event = {"event": "ended", "handle": handle, "exit_code": exit_code, "message": message}
            self._connections.send(connection, event)

        if not self._first or self._status["state"] != "running":
            ended(handle, NOT_SET_UP, "the container is not running")
        else:
            self._execs.run(connection, handle, ended, self._first_pidfd, descriptors, terminal=terminal)

    def _start(self, generation: int) -> None:
        if self._first or self._ending or generation <= self._generation:
            return
        self._generation = generation
        self._first_told = {}
        (out, to_out), (err, to_err), (report, to_report) = (make_pipe() for _ in range(3))
        try:
            self._first = fork_container(self._command, self._walls, Streams(-1, to_out, to_err, to_report))
            self._first_pidfd = os.pidfd_open(self._first)
        except OSError as error:
            for descriptor in (out, err, report):
                os.close(descriptor)
            self._set_status("failed", NOT_SET_UP, f"cannot make the container's processes: {error.strerror}")
            return
        finally:
            for descriptor in (to_out, to_err, to_report):
                os.close(descriptor)
        self._streams = {out: 1, err: 2}
        self._loop.watch(out, lambda: self._keep_output(out))
        self._loop.watch(err, lambda: self._keep_output(err))
        self._report = report
        self._loop.watch(report, self._hear_report)

    def _stop(self) -> None:
        if self._first and self._kill_at is None:
            self._signal(signal.SIGTERM)
            self._kill_at = time.monotonic() + STOP_AFTER

    def _signal(self, number: signal.Signals) -> None:
        if self._first:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first_pidfd, number)

    def _host_shuts_down(self) -> None:
        """End, but leave the status as it is, so that the container runs again when the host is back."""
        self._ending = True
        self._stop()

    def _hear_report(self) -> None:
        told, over = read_report(self._report)
        self._first_told.update(told)
        if not over:
            return
        self._loop.forget(self._report)
        os.close(self._report)
        self._report = -1
        if "exit_code" not in self._first_told and not self._ending:
            self._set_status("running", None, "")

    def _keep_output(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, _READ)
        except BlockingIOError:
            return
        if data:
            self._output.write(self._streams[descriptor], data)
        else:
            self._close_stream(descriptor)

    def _close_stream(self, descriptor: int) -> None:
        if self._streams.pop(descriptor, None) is not None:
            self._loop.forget(descriptor)
            os.close(descriptor)

    def _reaped(self, pid: int, status: int) -> None:
        if pid != self._first:
            self._execs.reaped(pid, status)
            return
        # Nobody is left in the container, so what is in the pipes is all that comes. (Unless a descriptor
        # was handed out of it: hence the bound.)
        for descriptor in list(self._streams):
            for _ in range(_PIPE_READS):
                if descriptor not in self._streams or not select.select([descriptor], [], [], 0)[0]:
                    break
                self._keep_output(descriptor)
            self._close_stream(descriptor)
        if self._report >= 0:
            self._hear_report()
        os.close(self._first_pidfd)
        self._first, self._first_pidfd, self._kill_at = 0, -1, None
        if self._ending:
            return
        if "exit_code" in self._first_told:
            self._set_status("failed", int(self._first_told["exit_code"]), str(self._first_told["message"]))
        else:
            self._set_status("exited", exit_code_of(status), "")

    def _set_status(self, state: str, exit_code: int | None, message: str) -> None:
        self._status = {
            "state": state,
            "generation": self._generation,
            "exit_code": exit_code,
            "message": message,
        }
        self._save()
        self._connections.send_all({"event": "status", **self._status})

    def _save(self) -> None:
        # A disk that takes nothing must not cost the container its life; should we crash as well, then
        # the container counts as gone.
        with contextlib.suppress(OSError):
            with open("status.tmp", "w", encoding="utf-8") as file:
                json.dump(self._status, file)
                if self._status["exit_code"] is not None:
                    file.flush()
                    os.fdatasync(file.fileno())
            os.replace("status.tmp", "status.json")


def _write(path: str, text: str) -> None:
    with contextlib.suppress(FileNotFoundError), open(path, "w", encoding="ascii") as file:
        file.write(text)


def main() -> None:
    """Be a container's shim; the last argument is its directory, descriptor 3 its listening socket."""
    os.closerange(LISTENER + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir(sys.argv[-1])
    os.umask(0o077)
    syscalls.set_name("netctl-shim")
    syscalls.forbid_inspection()
    try:
        shim = Shim(socket.socket(fileno=LISTENER))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        sys.exit(f"cannot make the container: {error}")
    # What is there now stays for good: not to look at it again keeps the forks' memory shared.
    gc.freeze()
    shim.run()
