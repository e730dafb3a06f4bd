"""Threads, queues and pumps of the engine `docker`."""

from __future__ import annotations

import fcntl
import os
import random
import select
import socket
import struct
import termios
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netctl.errors import KernelError
from nodeagent.engine import docker_work
from nodeagent.engine.docker_streams import (
    Frames,
    Pump,
    Size,
    Stop,
    StoppedError,
    open_terminal,
    read_pieces,
    write_all,
)
from nodeagent.engine.docker_work import Lanes, Outbox
from tests.support.fake_docker import frame
from tests.support.netns import wait_for


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    lanes = Lanes("test", threads=4)
    yield lanes
    lanes.close()


def test_jobs_of_one_lane_are_done_in_order_and_lanes_side_by_side(lanes: Lanes) -> None:
    gate = threading.Event()
    done: list[str] = []
    lanes.submit("a", lambda: gate.wait(10) and done.append("a1"))
    for number in range(2, 50):
        lanes.submit("a", lambda number=number: done.append(f"a{number}"))  # type: ignore[misc]
    lanes.submit("b", lambda: done.append("b"))
    wait_for(lambda: done == ["b"])
    gate.set()
    wait_for(lambda: len(done) == 50)
    assert done[1:] == [f"a{number}" for number in range(1, 50)]


def test_a_job_that_raises_takes_nobody_along(lanes: Lanes) -> None:
    done: list[int] = []
    for _ in range(10):
        lanes.submit("a", lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    lanes.submit("a", lambda: done.append(1))
    wait_for(lambda: done == [1])


def test_more_lanes_than_threads_all_get_their_turn(lanes: Lanes) -> None:
    done: set[int] = set()
    # Those of an earlier test may still be ending.
    others = set(threading.enumerate())
    for number in range(200):
        lanes.submit(f"lane {number}", lambda number=number: done.add(number))  # type: ignore[misc]
    wait_for(lambda: len(done) == 200)
    assert sum(thread.name == "test" for thread in set(threading.enumerate()) - others) <= 4


def test_jobs_that_wait_are_bounded(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_work, "MOST_JOBS", 10)
    gate = threading.Event()
    for number in range(10):
        lanes.submit(f"{number % 3}", gate.wait)  # type: ignore[arg-type]
    with pytest.raises(KernelError, match="wait for Docker"):
        lanes.submit("x", gate.wait)  # type: ignore[arg-type]
    gate.set()
    done: list[int] = []

    def taken() -> bool:
        try:
            lanes.submit("x", lambda: done.append(1))
        except KernelError:
            return False
        return True

    wait_for(taken)
    wait_for(lambda: bool(done))


def test_results_are_run_in_order_by_whoever_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_work, "MOST_RESULTS", 5)
    outbox = Outbox()
    got: list[int] = []

    def post() -> None:
        for number in range(100):
            outbox.post(lambda number=number: got.append(number))  # type: ignore[misc]

    thread = threading.Thread(target=post)
    thread.start()
    while len(got) < 100:
        assert select.select([outbox.fileno()], [], [], 10)[0]
        before = len(got)
        outbox.run()
        assert len(got) - before <= 5
    thread.join(10)
    assert got == list(range(100))
    outbox.close()
    outbox.post(lambda: got.append(-1))
    assert got[-1] == 99


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=300)), max_size=20),
    st.lists(st.integers(1, 40), min_size=1, max_size=50),
)
def test_frames_are_the_same_however_they_come_in(pieces: list[tuple[int, bytes]], cuts: list[int]) -> None:
    data = b"".join(frame(stream, part) for stream, part in pieces)
    frames, found, at, turn = Frames(), [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        found += frames.split(data[at : at + size])
        at, turn = at + size, turn + 1
    for stream in (1, 2):
        expected = b"".join(part for number, part in pieces if number == stream)
        assert b"".join(part for number, part in found if number == stream) == expected
    runs = [number for number, part in found if part]
    order = [number for number, part in pieces if part]
    assert [n for n, before in zip(runs, [0, *runs], strict=False) if n != before] == [
        n for n, before in zip(order, [0, *order], strict=False) if n != before
    ]


def test_what_are_no_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="damaged"):
        Frames().split(b"plain text of somebody")


class Command:
    """The far ends of a command that a `Pump` serves: Docker's socket, and the user's pipes."""

    def __init__(self, *, terminal: bool = False, received: bytes = b"") -> None:
        self.docker, ours = socket.socketpair()
        self.docker.settimeout(10)
        self.stop = Stop()
        self.sizes: list[Size] = []
        self.taken = False
        self.failure: BaseException | None = None
        outputs: dict[int, int] | None = None
        if terminal:
            user, through = socket.socketpair()
            stdin = open_terminal(through.fileno(), (24, 80))
            _, (self.master,), _, _ = socket.recv_fds(user, 1, 1)
        else:
            stdin, self.stdin = os.pipe()
            self.stdout, out = os.pipe()
            self.stderr, err = os.pipe()
            outputs = {1: out, 2: err}
        self.ours = [stdin, *(outputs or {}).values()]
        pump = Pump(ours, received, stdin=stdin, outputs=outputs, stop=self.stop, resize=self.resize)

        def run() -> None:
            try:
                pump.run()
            except (StoppedError, ValueError) as error:
                self.failure = error
            ours.close()
            for descriptor in self.ours:
                os.close(descriptor)

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    def resize(self, size: Size) -> bool:
        self.sizes.append(size)
        return self.taken

    def over(self) -> None:
        self.thread.join(10)
        assert not self.thread.is_alive()


def read_all(descriptor: int) -> bytes:
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


def test_a_commands_bytes_go_both_ways_and_its_input_ends() -> None:
    command = Command(received=frame(1, b"came with the answer "))
    data = random.Random(5).randbytes(500_000)
    echoed = b""

    def echo() -> None:
        nonlocal echoed
        while piece := command.docker.recv(65536):
            echoed += piece
        command.docker.sendall(frame(1, b"got all") + frame(2, b"complaint"))
        command.docker.close()

    thread = threading.Thread(target=echo)
    thread.start()
    with os.fdopen(command.stdin, "wb") as file:
        file.write(data)
    assert read_all(command.stdout) == b"came with the answer got all"
    assert read_all(command.stderr) == b"complaint"
    thread.join(10)
    command.over()
    assert echoed == data


def test_output_that_nobody_reads_is_not_taken_from_docker() -> None:
    command = Command()
    command.docker.setblocking(False)
    sent = 0
    while True:
        if not select.select([], [command.docker], [], 0.5)[1]:
            break
        sent += command.docker.send(frame(1, b"x" * 4088))
    assert sent < 4_000_000
    command.docker.setblocking(True)
    command.docker.shutdown(socket.SHUT_WR)
    assert len(read_all(command.stdout)) == sent - 8 * (sent // 4096)
    command.over()


def test_a_command_goes_on_when_its_output_is_not_wanted() -> None:
    command = Command()
    os.close(command.stdout)
    for _ in range(100):
        command.docker.sendall(frame(1, b"x" * 60000))
    command.docker.sendall(frame(2, b"done"))
    command.docker.close()
    assert read_all(command.stderr) == b"done"
    command.over()


def test_a_user_who_goes_away_ends_the_pump_whatever_it_waits_for() -> None:
    command = Command()
    command.stop.ask()
    command.stop.ask()
    command.over()
    assert isinstance(command.failure, StoppedError)
    command.stop.close()
    command.stop.ask()


def test_a_terminal_passes_every_byte_and_follows_its_users_size() -> None:
    command = Command(terminal=True)
    os.write(command.master, b"\x03\x04ls\r")
    got = b""
    while len(got) < 5:
        got += command.docker.recv(100)
    assert got == b"\x03\x04ls\r"
    command.docker.sendall(b"a\nb\x1b[6n")
    out = b""
    while len(out) < 7:
        out += os.read(command.master, 100)
    assert out == b"a\nb\x1b[6n"
    wait_for(lambda: len(command.sizes) > 1)
    assert set(command.sizes) == {(24, 80)}
    command.taken = True
    fcntl.ioctl(command.master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    wait_for(lambda: command.sizes[-1] == (40, 100))
    count = len(command.sizes)
    command.docker.sendall(b".")
    assert os.read(command.master, 1) == b"."
    assert len(command.sizes) == count
    command.docker.close()
    command.over()
    with pytest.raises(OSError, match="Input/output error"):
        os.read(command.master, 1)
    os.close(command.master)


@pytest.mark.parametrize(
    "work", [lambda w, s: write_all(w, b"x" * 1_000_000, s), lambda w, s: list(read_pieces(w, s))]
)
def test_waiting_for_a_pipe_ends_with_its_user(work: Callable[[int, Stop], object]) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    stop = Stop()
    threading.Timer(0.05, stop.ask).start()
    with pytest.raises(StoppedError):
        work(writer, stop)
    os.close(reader)
    os.close(writer)
