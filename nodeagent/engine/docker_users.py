"""What users have done in Docker's containers: commands, copies, logs. Each on a thread of its own."""

from __future__ import annotations

import contextlib
import http.client
import os
import posixpath
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from netctl.errors import KernelError
from nodeagent.engine.base import Direction, Ended, ExecRequest
from nodeagent.engine.docker_api import AnswerError, AwayError, DockerApi
from nodeagent.engine.docker_http import get_stream, hijack
from nodeagent.engine.docker_jobs import ASK_SECONDS, reason_of
from nodeagent.engine.docker_streams import (
    Pump,
    Size,
    Stop,
    StoppedError,
    open_terminal,
    pass_log_on,
    read_pieces,
    write_all,
)
from nodeagent.engine.docker_views import hint
from nodeagent.engine.process_copy import copy_by_tar

MOST: Final = 256
"""Threads at a time."""
HANG_UP_AFTER: Final = 2.0
"""Seconds between SIGHUP and SIGKILL when the user of a command went away."""
COPY_SILENCE: Final = 120.0
EXIT_SECONDS: Final = 10.0
"""How long Docker may take to know that a command has ended whose output has."""
NOT_RUN: Final = 125
KILLED: Final = 128 + signal.SIGKILL
_PAUSE: Final = 0.05

Connect = Callable[[], DockerApi]
Work = Callable[[DockerApi, Stop], tuple[int, str]]


class Users:
    """All that runs for users now.

    Args:
        connect: Makes a way to ask Docker, for one thread.
        post: Has something called on the main thread.
    """

    def __init__(self, connect: Connect, post: Callable[[Callable[[], None]], None]) -> None:
        self._connect = connect
        self._post = post
        self._running: dict[int, Stop] = {}
        self._last = 0

    def run(self, work: Work, descriptors: tuple[int, ...], ended: Ended) -> int:
        """Do `work` on a thread; close `descriptors` after it, then call `ended`; return a handle.

        Raises:
            KernelError: Too much runs already; the descriptors are closed.
        """
        if len(self._running) >= MOST:
            _close(descriptors)
            raise KernelError(f"{MOST} streams are open on this node's Docker already", "end some")
        self._last += 1
        handle, stop = self._last, Stop()
        self._running[handle] = stop

        def finish(exit_code: int, message: str) -> None:
            del self._running[handle]
            ended(exit_code, message)

        def thread() -> None:
            try:
                code, message = _done(work, self._connect, stop)
            finally:
                _close(descriptors)
                stop.close()
            self._post(lambda: finish(code, message))

        threading.Thread(target=thread, name="docker-user", daemon=True).start()
        return handle

    def kill(self, handle: int) -> None:
        """The user of something went away."""
        if (stop := self._running.get(handle)) is not None:
            stop.ask()

    def close(self) -> None:
        """End everything."""
        for stop in list(self._running.values()):
            stop.ask()

    # --- the kinds of it --------------------------------------------------------------------------------

    def exec(self, docker_id: str, request: ExecRequest, ended: Ended) -> int:
        """Run a command; see `nodeagent.engine.base.Engine.exec`.

        Raises:
            KernelError: It cannot be tried.
        """
        if not request.argv:
            raise KernelError("there is no command to run", "name one after --")
        if not request.tty:
            descriptors = tuple(os.dup(one) for one in (request.stdin, request.stdout, request.stderr))
            own = attrs.evolve(request, stdin=descriptors[0], stdout=descriptors[1], stderr=descriptors[2])
        else:
            try:
                # At once, whatever Docker does: whoever asked waits for it.
                descriptors = (open_terminal(request.stdin, (request.rows, request.columns)),)
            except OSError as error:
                raise KernelError(f"the node has no terminal for it: {error}") from error
            own = attrs.evolve(request, stdin=descriptors[0])
        return self.run(lambda api, stop: _exec(api, docker_id, own, stop), descriptors, ended)

    def logs(self, docker_id: str, tail: int | None, *, follow: bool, ended: Ended) -> tuple[int, int]:
        """Read a container's log; see `nodeagent.engine.base.Engine.logs`."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        query = {
            "stdout": 1,
            "stderr": 1,
            "follow": int(follow),
            "tail": "all" if tail is None else tail,
        }
        try:
            handle = self.run(lambda api, stop: _logs(api, docker_id, query, writer, stop), (writer,), ended)
        except BaseException:
            os.close(reader)
            raise
        return handle, reader

    def copy(self, docker_id: str, path: str, direction: Direction, descriptor: int, ended: Ended) -> int:
        """Copy files; see `nodeagent.engine.base.Engine.copy`.

        Raises:
            KernelError: The path is not absolute.
        """
        if not path.startswith("/") or "\0" in path:
            raise KernelError(f"{path[:80]!r} is no absolute path", "write CONTAINER:/PATH")
        one = _Copy(docker_id, path, direction, os.dup(descriptor))
        return self.run(lambda api, stop: _copy(api, one, stop), (one.descriptor,), ended)


def _done(work: Work, connect: Connect, stop: Stop) -> tuple[int, str]:
    try:
        return work(connect(), stop)
    except StoppedError:
        return KILLED, ""
    except (KernelError, AnswerError, AwayError) as error:
        return NOT_RUN, reason_of(error)
    except (OSError, ValueError, http.client.HTTPException) as error:
        broke = f"the connection to Docker broke: {error or type(error).__name__}"
        return (KILLED, "") if stop.asked else (NOT_RUN, broke)


# --- commands -------------------------------------------------------------------------------------------


def _exec(api: DockerApi, docker_id: str, request: ExecRequest, stop: Stop) -> tuple[int, str]:
    body = {
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": request.tty,
        "Cmd": list(request.argv),
        "Env": [f"{name}={value}" for name, value in request.env],
        "User": request.user,
    }
    exec_id = api.make_exec(docker_id, body, ASK_SECONDS)
    if stop.asked:
        raise StoppedError
    sock, received = hijack(
        api.path,
        f"/v{api.version}/exec/{exec_id}/start",
        {"Detach": False, "Tty": request.tty},
        ASK_SECONDS,
    )

    def resize(size: Size) -> bool:
        try:
            api.resize_exec(exec_id, *size, ASK_SECONDS)
        except AnswerError:
            # It does not run yet, or no more.
            return False
        return True

    with contextlib.closing(sock):
        pump = Pump(
            sock,
            received,
            stdin=request.stdin,
            outputs=None if request.tty else {1: request.stdout, 2: request.stderr},
            stop=stop,
            resize=resize,
        )
        try:
            pump.run()
        except StoppedError:
            return _hang_up(api, exec_id), ""
    code = _exit_code(api, exec_id, time.monotonic() + EXIT_SECONDS)
    return code, str(KernelError(*hint(pump.complaint))) if pump.complaint else ""


def _exit_code(api: DockerApi, exec_id: str, deadline: float) -> int:
    """Return a command's exit code, once Docker knows it."""
    while True:
        state = api.exec_state(exec_id, ASK_SECONDS)
        if state is None:
            # Its container was removed.
            return KILLED
        code = state.get("ExitCode")
        if not state.get("Running") and isinstance(code, int):
            return code & 0xFF
        if time.monotonic() > deadline:
            raise ValueError("it does not say how the command ended")
        time.sleep(_PAUSE)


def _hang_up(api: DockerApi, exec_id: str) -> int:
    """End a command whose user went away: SIGHUP, then SIGKILL, to its process group."""
    signals = [signal.SIGHUP, signal.SIGKILL]
    deadline = time.monotonic()
    while signals:
        state = api.exec_state(exec_id, ASK_SECONDS)
        if state is None or (not state.get("Running") and state.get("ExitCode") is not None):
            break
        if time.monotonic() >= deadline:
            _signal(api, exec_id, state.get("Pid"), signals.pop(0))
            deadline = time.monotonic() + HANG_UP_AFTER
        else:
            time.sleep(_PAUSE)
    with contextlib.suppress(ValueError):
        return _exit_code(api, exec_id, time.monotonic() + HANG_UP_AFTER)
    return KILLED


def _signal(api: DockerApi, exec_id: str, pid: object, number: signal.Signals) -> None:
    """Send a signal to a command that Docker says has `pid` here."""
    if not isinstance(pid, int) or pid <= 1:
        return
    with contextlib.suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            # Asked again with the process held: its number is still its own.
            state = api.exec_state(exec_id, ASK_SECONDS)
            if state is not None and state.get("Running") and state.get("Pid") == pid:
                if os.getpgid(pid) == pid:
                    os.killpg(pid, number)
                else:
                    signal.pidfd_send_signal(process, number)
        finally:
            os.close(process)


# --- logs -------------------------------------------------------------------------------------------


def _logs(
    api: DockerApi, docker_id: str, query: Mapping[str, Any], descriptor: int, stop: Stop
) -> tuple[int, str]:
    answer = api.inspect(docker_id, ASK_SECONDS)
    if answer is None:
        raise KernelError("the container is gone from Docker")
    terminal = (answer.get("Config") or {}).get("Tty") is True
    response, sock = get_stream(api.path, f"/v{api.version}/containers/{docker_id}/logs", query, ASK_SECONDS)
    with contextlib.closing(response), contextlib.closing(sock):
        stop.call = lambda: sock.shutdown(2)
        if stop.asked:
            raise StoppedError
        complaint = pass_log_on(response, descriptor, stop, terminal=terminal)
    return (NOT_RUN, complaint) if complaint else (0, "")


# --- copies -----------------------------------------------------------------------------------------


@attrs.frozen
class _Copy:
    docker_id: str
    path: str
    direction: Direction
    descriptor: int


def _copy(api: DockerApi, one: _Copy, stop: Stop) -> tuple[int, str]:
    answer = api.inspect(one.docker_id, ASK_SECONDS)
    if answer is None:
        raise KernelError("the container is gone from Docker")
    if _within_only(answer, one.path, one.direction):
        return _copy_by_tar(api, one, stop)
    try:
        if one.direction == "in":
            api.put_archive(one.docker_id, one.path, read_pieces(one.descriptor, stop), COPY_SILENCE)
            return 0, ""
        os.set_blocking(one.descriptor, False)
        for piece in api.archive(one.docker_id, one.path, COPY_SILENCE):
            if not write_all(one.descriptor, piece, stop):
                raise StoppedError
    except AnswerError as error:
        # What a symbolic link leads to in memory is there for the container alone.
        if one.direction == "out" and error.status == http.HTTPStatus.NOT_FOUND and _runs(answer):
            return _copy_by_tar(api, one, stop)
        raise
    return 0, ""


def _within_only(answer: Mapping[str, Any], path: str, direction: Direction) -> bool:
    """Tell whether a path must be copied by a command in the container.

    Docker's archives leave out what is mounted in memory, and it puts none into a read-only root.
    """
    host = answer.get("HostConfig") or {}
    whole = posixpath.normpath(path)
    if any(_lies_in(whole, folder) for folder in host.get("Tmpfs") or {}):
        if not _runs(answer):
            raise KernelError(
                f"{path[:80]} is in the memory of a container that does not run", "start it first"
            )
        return True
    if direction == "out" or not host.get("ReadonlyRootfs") or not _runs(answer):
        return False
    mounts = [one.get("Destination") for one in answer.get("Mounts") or () if isinstance(one, Mapping)]
    return not any(isinstance(folder, str) and _lies_in(whole, folder) for folder in mounts)


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _runs(answer: Mapping[str, Any]) -> bool:
    return (answer.get("State") or {}).get("Running") is True


def _copy_by_tar(api: DockerApi, one: _Copy, stop: Stop) -> tuple[int, str]:
    ended: list[tuple[int, str]] = []

    def run(request: ExecRequest, tell: Ended) -> int:
        code, message = _exec(api, one.docker_id, request, stop)
        # runc's codes for a program that cannot be run, or is not there.
        tell(*((127, "") if code in (126, 127) else (code, message)))
        return 0

    copy_by_tar(
        run, one.path, one.direction, one.descriptor, lambda code, message: ended.append((code, message))
    )
    return ended[0]


def _close(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
