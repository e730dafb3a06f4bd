"""A real broker process on loopback, and nodes on real sockets that apply all they are told."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import zmq

from netctl.broker import service
from netctl.delta import apply_delta
from netctl.enrolment import enrol
from netctl.model import ContainerStatus, NodeFacts, NodeState
from netctl.wire.identity import Identity
from netctl.wire.messages import (
    Applied,
    Envelope,
    Hello,
    Message,
    NodeOpenExec,
    Ping,
    Pong,
    Report,
    Reset,
    StreamCredit,
    StreamData,
    StreamEnd,
    Update,
)
from netctl.wire.session import ClientHandshake

START = 15.0
PROGRAM = """
import sys
from pathlib import Path
from netctl.broker import service

ready = lambda: print("ready", flush=True)
service.run(Path(sys.argv[1]), user=sys.argv[2] or None, ready=ready)
"""


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], bool], what: str, timeout: float = START) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        pause.wait(0.01)


class BrokerProcess:
    """`netctl broker run` in a process of its own, in `directory`.

    Args:
        directory: Made by this.
        user: Whom it becomes.
    """

    def __init__(self, directory: Path, user: str | None = None) -> None:
        self.directory = directory
        self.port = free_port()
        self.tcp = f"tcp://127.0.0.1:{self.port}"
        self.ipc = f"ipc://{directory}/socket"
        self.invite = service.init(directory, listen=(self.tcp, self.ipc), advertise=(self.ipc, self.tcp))
        self._user = user or ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """What the broker's processes wrote to stderr."""
        return (self.directory.parent / f"{self.directory.name}.log").read_text()

    @property
    def pid(self) -> int:
        """The process that runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the broker, and wait until it answers."""
        with (self.directory.parent / f"{self.directory.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(self.directory), self._user],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise AssertionError(f"the broker ended with {self._process.wait()}: {self.log}")

    def stop(self) -> int:
        """End the broker, and return its status."""
        if self._process is None:
            return 0
        self._process.terminate()
        assert self._process.stdout is not None
        self._process.stdout.close()
        status = self._process.wait(START)
        self._process = None
        return status

    def kill(self) -> None:
        """End the broker as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(START)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None


class SocketNode(threading.Thread):
    """A node's agent on a real socket: applies at once, echoes what comes on streams, and ends with `eof`."""

    def __init__(self, invite: str, number: int) -> None:
        super().__init__(daemon=True)
        self.facts = NodeFacts(f"192.168.7.{number}", "", 1500, ("gre",), "nftables", ("process",))
        self.identity: Identity = enrol(invite, f"n{number}", self.facts)
        self.state: NodeState | None = None
        self.holding = False
        self.progress: tuple[str, ...] = ()
        """What it says, each time before it has applied something, of the containers it then has."""
        self.applied = 0
        self.welcomed = threading.Event()
        self.ended: list[StreamEnd] = []
        self._windows: dict[int, int] = {}
        self._unsent: dict[int, list[StreamData | StreamEnd]] = {}
        self._stop_asked = threading.Event()
        self.start()

    def run(self) -> None:
        """Speak with the broker until `stop`."""
        with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.connect(self.identity.addresses[0])
            handshake = ClientHandshake(self.identity.keys, self.identity.broker_key, "node")
            first = handshake.first()
            dealer.send_multipart((first.header, first.body))
            header, body = dealer.recv_multipart()
            session = handshake.finish(header, body)

            def say(message: Message, number: int = 0) -> None:
                frame = session.seal(Envelope(number, message))
                dealer.send_multipart((frame.header, frame.body))

            say(Hello(0, 0, "", self.facts), 1)
            while not self._stop_asked.is_set():
                if dealer.poll(50):
                    header, body = dealer.recv_multipart()
                    self._take(session.open(header, body).message, say)

    def _take(self, message: Message, say: Callable[[Message], None]) -> None:
        match message:
            case Reset() | Update():
                self._become(message, say)
            case Ping():
                say(Pong())
            case NodeOpenExec(stream, _, argv):
                self._windows[stream] = 262144
                self._unsent[stream] = [StreamData(stream, 1, " ".join(argv).encode())]
                self._echo(stream, say)
            case StreamData(stream, _, data, eof):
                self._unsent[stream] += [StreamData(stream, 2, data)] if data else []
                self._unsent[stream] += [StreamEnd(stream, 42)] if eof else []
                self._echo(stream, say)
            case StreamCredit(stream, credit):
                self._windows[stream] += credit
                self._echo(stream, say)
            case StreamEnd():
                self.ended.append(message)

    def _become(self, message: Reset | Update, say: Callable[[Message], None]) -> None:
        if isinstance(message, Reset):
            self.state = message.state
        else:
            assert self.state is not None
            self.state = apply_delta(self.state, message.delta)
        for text in self.progress:
            say(
                Report(
                    tuple(ContainerStatus(each, "creating", message=text) for each in self.state.containers)
                )
            )
        if not self.holding:
            self.applied = message.revision
            say(Applied(message.epoch, message.revision))
        self.welcomed.set()

    def _echo(self, stream: int, say: Callable[[Message], None]) -> None:
        unsent = self._unsent[stream]
        while unsent:
            if isinstance(unsent[0], StreamData):
                size = len(unsent[0].data)
                if size > self._windows[stream]:
                    return
                self._windows[stream] -= size
                if unsent[0].channel == 2:
                    say(StreamCredit(stream, size))
            say(unsent.pop(0))

    def stop(self) -> None:
        """End the thread and its socket."""
        self._stop_asked.set()
        self.join(START)
