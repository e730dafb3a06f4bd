"""`nodeagent-driver` as a process, what Docker does with it, and an agent that can hang, die or be late."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nodeagent.driver.frames import MAX_FRAME, frame, parse_frame

DEADLINE = 15.0
PROGRAM = [sys.executable, "-m", "nodeagent.driver.holder"]


class PluginClient(http.client.HTTPConnection):
    """One connection of Docker's; kept alive from call to call."""

    def __init__(self, path: Path) -> None:
        super().__init__("plugin", timeout=DEADLINE)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(str(self.path))

    def ask(self, name: str, body: Any = None) -> None:
        """Send a call without waiting for its answer."""
        self.request("POST", f"/{name}", json.dumps({} if body is None else body).encode())

    def answer(self) -> Any:
        """Wait for the answer to the last `ask`."""
        response = self.getresponse()
        return json.loads(response.read())

    def call(self, name: str, body: Any = None) -> Any:
        self.ask(name, body)
        return self.answer()

    def answered(self) -> bool:
        """Tell whether something of the answer is there already."""
        return bool(select.select([self.sock], [], [], 0)[0])


class StandInAgent:
    """The agent's end, which does only what it is told to."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(str(path))
        self.pings = 0

    def read(self) -> tuple[dict[str, Any], bytes]:
        """Wait for one packet."""
        data = self.sock.recv(MAX_FRAME)
        if not data:
            raise ConnectionResetError
        return parse_frame(data)

    def next_call(self, *, pong: bool = True) -> tuple[int, str, bytes]:
        """Wait for a call; pings that come before it are answered, or not."""
        while True:
            line, body = self.read()
            if "ping" in line:
                self.pings += 1
                if pong:
                    self.sock.send(frame({"pong": line["ping"]}))
                continue
            return line["id"], line["path"], body

    def pong_until(self, done: Any) -> None:
        """Answer pings, and nothing else, until `done` says so."""
        until = time.monotonic() + DEADLINE
        while not done():
            assert time.monotonic() < until, "it never came"
            if select.select([self.sock], [], [], 0.02)[0]:
                line, _ = self.read()
                if "ping" in line:
                    self.pings += 1
                    self.sock.send(frame({"pong": line["ping"]}))

    def answer(self, number: int, body: Any) -> None:
        self.sock.send(frame({"id": number}, json.dumps(body).encode()))

    def close(self) -> None:
        self.sock.close()


class HolderProcess:
    """The process, its sockets below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.plugin = folder / "plugins" / "netctl.sock"
        self.agent = folder / "agent" / "driver.sock"
        self.log = folder / "holder.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        known = self.events().count("holding the socket") if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*PROGRAM, "--listen", str(self.plugin), "--agent", str(self.agent)], stderr=log
            )
        until = time.monotonic() + DEADLINE
        while self.events().count("holding the socket") == known:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, "the holder never listened"
            select.select([], [], [], 0.01)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE)

    def end(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(DEADLINE)

    def events(self) -> list[str]:
        """Return what it logged, in order."""
        return [json.loads(line)["event"] for line in self.log.read_text().splitlines()]

    def client(self) -> PluginClient:
        return PluginClient(self.plugin)

    @contextlib.contextmanager
    def connected_agent(self) -> Iterator[StandInAgent]:
        """Connect an agent, and wait until the holder knows it."""
        known = self.events().count("the agent is connected")
        agent = StandInAgent(self.agent)
        until = time.monotonic() + DEADLINE
        while self.events().count("the agent is connected") == known:
            assert time.monotonic() < until, "the holder did not take the agent"
            select.select([], [], [], 0.01)
        try:
            yield agent
        finally:
            agent.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
