"""Container engines for tests: rigs over the fake, over real processes and over Docker, all handled alike."""

from __future__ import annotations

import os
import secrets
import select
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from netctl.model import Workload
from nodeagent.engine.base import Engine, ExecRequest
from nodeagent.engine.docker import DockerEngine
from nodeagent.engine.fake import FakeEngine
from nodeagent.engine.process import ProcessEngine
from nodeagent.kernel_state import EngineContainer
from tests.support import docker_engine
from tests.support.docker_engine import IMAGE

BLOCK = "10.1.0.0/16"
_BY_FIFO = 'exec 3<>{fifo}; while read -r line <&3; do eval "$line"; done'


class EngineRig(Protocol):
    """An engine, and a hand on the commands that run in it."""

    engine: Engine

    def workload(self, container: str) -> Workload:
        """A command that does as `say` and `end` say."""

    def say(self, container: str, stream: Literal[1, 2], text: str) -> None:
        """Have the container's command write a line."""

    def end(self, container: str, exit_code: int) -> None:
        """Have it end."""

    def close(self) -> None: ...


class FakeRig:
    def __init__(self, engine: FakeEngine | None = None) -> None:
        self.engine = FakeEngine() if engine is None else engine

    def workload(self, container: str) -> Workload:
        return Workload("process", ("sh", "-c", container))

    def say(self, container: str, stream: Literal[1, 2], text: str) -> None:
        self.engine.write_output(container, stream, text.encode() + b"\n")

    def end(self, container: str, exit_code: int) -> None:
        self.engine.end(container, exit_code)

    def close(self) -> None:
        self.engine.close()


class ProcessRig:
    """Commands are shells that read what to do from a FIFO."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.engine = ProcessEngine(directory / "state", root=True)

    def workload(self, container: str) -> Workload:
        fifo = self.directory / f"{container}.fifo"
        os.mkfifo(fifo)
        return Workload("process", ("sh", "-c", _BY_FIFO.format(fifo=fifo)))

    def say(self, container: str, stream: Literal[1, 2], text: str) -> None:
        self._command(container, f"echo {text} >&{stream}")

    def end(self, container: str, exit_code: int) -> None:
        self._command(container, f"exit {exit_code}")

    def again(self) -> None:
        """Let go of the engine and make a new one, as after a restart."""
        self.engine.close()
        self.engine = ProcessEngine(self.directory / "state", root=True)

    def close(self) -> None:
        for container in list(self.engine.containers()):
            self.engine.remove(container)
        self.engine.close()

    def _command(self, container: str, line: str) -> None:
        with (self.directory / f"{container}.fifo").open("w") as fifo:
            fifo.write(line + "\n")


class DockerRig:
    """Like `ProcessRig`, over a real engine and its own bridge driver: ours needs an agent."""

    def __init__(self, directory: Path, real: docker_engine.DockerEngine) -> None:
        self.directory = directory
        self.real = real
        self.engine = self._start()

    def _start(self) -> DockerEngine:
        state = self.directory / "state"
        return DockerEngine(self.real.files.socket, state, driver="bridge", ipam="default", network="ours")

    def workload(self, container: str) -> Workload:
        fifo = self.directory / f"{container}.fifo"
        os.mkfifo(fifo)
        # Of a user of its own in there.
        fifo.chmod(0o666)
        self.directory.chmod(0o755)
        return Workload(
            "docker",
            ("sh", "-c", _BY_FIFO.format(fifo="/fifo")),
            image=IMAGE,
            volumes=(f"{fifo}:/fifo",),
        )

    def say(self, container: str, stream: Literal[1, 2], text: str) -> None:
        self._command(container, f"echo {text} >&{stream}")

    def end(self, container: str, exit_code: int) -> None:
        self._command(container, f"exit {exit_code}")

    def again(self) -> None:
        """Let go of the engine and make a new one, as after a restart."""
        self.engine.close()
        self.engine = self._start()

    def close(self) -> None:
        for container in list(self.engine.containers()):
            self.engine.remove(container)
        until(self.engine, lambda: not self.engine.containers())
        self.engine.close()

    def _command(self, container: str, line: str) -> None:
        with (self.directory / f"{container}.fifo").open("w") as fifo:
            fifo.write(line + "\n")


def new_id() -> str:
    return secrets.token_hex(16)


def until(engine: Engine, condition: Callable[[], bool], seconds: float = 15.0) -> list[tuple[str, str]]:
    """Dispatch until `condition` holds; return (container, state) of every change on the way."""
    changes: list[tuple[str, str]] = []

    def changed(container: str, state: EngineContainer | None) -> None:
        changes.append((container, "gone" if state is None else state.state))

    deadline = time.monotonic() + seconds
    while not condition():
        rest = deadline - time.monotonic()
        assert rest > 0, f"not within {seconds} s: {dict(engine.containers())}"
        select.select(engine.descriptors(), [], [], min(rest, 0.2))
        engine.dispatch(changed)
    return changes


def until_state(engine: Engine, container: str, *states: str) -> list[tuple[str, str]]:
    def reached() -> bool:
        seen = engine.containers().get(container)
        return ("gone" if seen is None else seen.state) in states

    return until(engine, reached)


def made(rig: EngineRig, name: str = "web", address: str = "10.1.0.2") -> str:
    """Make a container whose command does as the rig says; return its id."""
    container = new_id()
    rig.engine.create(container, name, address, rig.workload(container), BLOCK)
    until_state(rig.engine, container, "created")
    return container


def running(rig: EngineRig, name: str = "web", address: str = "10.1.0.2") -> str:
    container = made(rig, name, address)
    rig.engine.start(container, 1)
    until_state(rig.engine, container, "running")
    return container


def ran(
    engine: Engine, container: str, *argv: str, user: str = "", env: tuple[tuple[str, str], ...] = ()
) -> str:
    """Run a command in a running container, check that it succeeds, and return what it wrote to stdout."""
    code, out, err, message = execute(engine, container, argv, user=user, env=env)
    assert code == 0, f"{argv}: {code} {message} {err}"
    return out


def execute(
    engine: Engine,
    container: str,
    argv: tuple[str, ...],
    *,
    stdin: bytes = b"",
    user: str = "",
    env: tuple[tuple[str, str], ...] = (),
) -> tuple[int, str, str, str]:
    """Run a command in a running container; return exit code, stdout, stderr and the engine's message."""
    pipes = [os.pipe() for _ in range(3)]
    (child_in, to_in), (out, child_out), (err, child_err) = pipes
    ended: list[tuple[int, str]] = []
    request = ExecRequest(argv, env, user, tty=False, stdin=child_in, stdout=child_out, stderr=child_err)
    try:
        engine.exec(container, request, lambda code, message: ended.append((code, message)))
    finally:
        for descriptor in (child_in, child_out, child_err):
            os.close(descriptor)
    os.write(to_in, stdin)
    os.close(to_in)
    texts = []
    for descriptor in (out, err):
        with os.fdopen(descriptor, "rb") as file:
            texts.append(file.read().decode())
    until(engine, lambda: bool(ended))
    return ended[0][0], texts[0], texts[1], ended[0][1]


def records(descriptor: int) -> list[tuple[int, bytes]]:
    """Read a descriptor of kept output to its end, and close it."""
    with os.fdopen(descriptor, "rb") as file:
        data = file.read()
    found, offset = [], 0
    while offset < len(data):
        stream, length = struct.unpack_from(">BI", data, offset)
        found.append((stream, data[offset + 5 : offset + 5 + length]))
        offset += 5 + length
    return found


def output_of(engine: Engine, container: str) -> int:
    """Return a descriptor of a container's output until now."""
    _, descriptor = engine.logs(container, None, follow=False, ended=lambda *_: None)
    return descriptor


def said(engine: Engine, container: str, stream: int = 1) -> str:
    kept = records(output_of(engine, container))
    return b"".join(data for number, data in kept if number == stream).decode()
