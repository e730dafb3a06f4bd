from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import struct
import termios
from pathlib import Path

import pytest

from netctl.errors import KernelError, ProtocolError
from netctl.wire.messages import Message, StreamCredit, StreamData, StreamEnd, StreamResize
from nodeagent.exec_stream import CREDIT, Exec
from nodeagent.helper_messages import ExecEnded
from nodeagent.log_streams import FOLLOW_SECONDS, Logs
from nodeagent.output_reader import MAX_RECORD, OutputReader, Tail
from nodeagent.shim_output import Output, open_at_first_record


class Playing:
    """A command that a test plays at the far end of three pipes."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.stdin, to_stdin = os.pipe()
        from_stdout, self.stdout = os.pipe()
        from_stderr, self.stderr = os.pipe()
        self.exec = Exec(1, 5, (to_stdin, from_stdout, from_stderr), self.sent.append)

    def pump(self, times: int = 1) -> None:
        for _ in range(times):
            poll = select.poll()
            for descriptor in self.exec.readers():
                poll.register(descriptor, select.POLLIN)
            for descriptor in self.exec.writers():
                poll.register(descriptor, select.POLLOUT)
            ready = [descriptor for descriptor, _ in poll.poll(0)]
            self.exec.pump(ready, ready)

    def output(self, channel: int) -> bytes:
        return b"".join(m.data for m in self.sent if isinstance(m, StreamData) and m.channel == channel)

    def credits(self) -> int:
        return sum(m.credit for m in self.sent if isinstance(m, StreamCredit))


@pytest.fixture
def playing() -> Playing:
    return Playing()


def test_output_stops_at_the_window_and_goes_on_with_credit(playing: Playing) -> None:
    os.set_blocking(playing.stdout, False)
    written = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            written += os.write(playing.stdout, b"x" * 65536)
            playing.pump()
    assert written > CREDIT
    assert len(playing.output(1)) == CREDIT
    assert list(playing.exec.readers()) == []
    playing.exec.credit(StreamCredit(1, 1000))
    playing.pump(3)
    assert len(playing.output(1)) == CREDIT + 1000
    assert all(len(m.data) <= 65536 for m in playing.sent if isinstance(m, StreamData))


def test_the_end_comes_after_all_output_even_where_credit_is_short(playing: Playing) -> None:
    playing.exec.credit(StreamCredit(1, 1))
    os.set_blocking(playing.stdout, False)
    total = 0
    while total < CREDIT + 20000:
        total += os.write(playing.stdout, b"y" * 30000)
        playing.pump()
    os.close(playing.stdout)
    os.close(playing.stderr)
    playing.exec.ended(ExecEnded(5, 9))
    playing.pump(5)
    assert not playing.exec.over
    playing.exec.credit(StreamCredit(1, CREDIT))
    playing.pump(5)
    assert playing.exec.over
    assert len(playing.output(1)) == total
    assert playing.sent[-1] == StreamEnd(1, 9)


def test_a_background_process_that_holds_the_pipes_is_not_waited_for(playing: Playing) -> None:
    os.write(playing.stdout, b"bye")
    playing.exec.ended(ExecEnded(5, 0))
    playing.pump(3)
    assert playing.output(1) == b"bye"
    assert playing.sent[-1] == StreamEnd(1, 0)


def test_input_waits_for_a_command_that_reads_slowly(playing: Playing) -> None:
    data = random.Random(4).randbytes(CREDIT + 65536)
    for start in range(0, len(data), 65536):
        playing.exec.feed(StreamData(1, 0, data[start : start + 65536]))
    # What the pipe took at once was credited at once; the rest waits, and more than that is too much.
    assert playing.credits() == 65536
    with pytest.raises(ProtocolError):
        playing.exec.feed(StreamData(1, 0, b"one too many"))
    got = b""
    while len(got) < len(data):
        got += os.read(playing.stdin, 50000)
        playing.pump()
    assert got == data
    playing.pump(2)
    assert playing.credits() == len(data)


def test_credit_comes_back_so_that_input_never_ends(playing: Playing) -> None:
    window, total = CREDIT, 0
    while total < 4 * CREDIT:
        size = min(window, 30000)
        playing.exec.feed(StreamData(1, 0, b"z" * size))
        window -= size
        total += len(os.read(playing.stdin, 65536))
        playing.pump()
        window += sum(m.credit for m in playing.sent if isinstance(m, StreamCredit))
        playing.sent.clear()
    assert total >= 4 * CREDIT


def test_input_for_a_command_that_reads_no_more_is_lost_and_credited(playing: Playing) -> None:
    os.close(playing.stdin)
    playing.exec.feed(StreamData(1, 0, b"a" * 1000))
    playing.exec.feed(StreamData(1, 0, b"b" * 1000))
    assert playing.credits() == 2000


def test_only_stdin_can_be_written_to(playing: Playing) -> None:
    with pytest.raises(ProtocolError):
        playing.exec.feed(StreamData(1, 1, b"x"))


def test_a_terminal(playing: Playing) -> None:
    del playing
    sent: list[Message] = []
    master, slave = os.openpty()
    running = Exec(2, 6, (master,), sent.append)
    running.resize(StreamResize(2, 33, 77))
    size = struct.unpack("HHHH", fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8)))
    assert size[:2] == (33, 77)
    running.feed(StreamData(2, 0, b"ls\n", eof=True))
    assert os.read(slave, 99) == b"ls\n"
    assert os.read(slave, 99) == b""  # the end of input, as typed with Control-D
    os.write(slave, b"file\n")
    seen = b""
    while b"file" not in seen:
        assert select.select([master], [], [], 10)[0]
        running.pump([master], [])
        seen = b"".join(m.data for m in sent if isinstance(m, StreamData) and m.channel == 1)
    os.close(slave)
    running.ended(ExecEnded(6, 130))
    running.pump([], [])
    running.pump([], [])
    assert sent[-1] == StreamEnd(2, 130)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(master)


# --- kept output ------------------------------------------------------------------------------------


class Kept:
    """Kept output, and a user who reads it."""

    def __init__(self, path: Path, tail: int | None = None) -> None:
        self.output = Output(str(path))
        self.path = path
        self.sent: list[Message] = []
        self.runs = True
        self.tail = tail
        self._logs: Logs | None = None

    @property
    def logs(self) -> Logs:
        if self._logs is None:
            reader = OutputReader(open_at_first_record(str(self.path)))
            self._logs = Logs(1, reader, tail=self.tail, goes_on=lambda: self.runs, send=self.sent.append)
        return self._logs

    def read(self, times: int = 400) -> list[tuple[int, bytes]]:
        now = 0.0
        for _ in range(times):
            if self.logs.over:
                break
            now = self.logs.deadline(now) or now + 1
            self.logs.pump(now)
        return [(m.channel, m.data) for m in self.sent if isinstance(m, StreamData)]


def joined(pieces: list[tuple[int, bytes]], channel: int) -> bytes:
    return b"".join(data for number, data in pieces if number == channel)


def test_all_output_then_the_end(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "output")
    for number in range(500):
        kept.output.write(1 + number % 2, b"line %d\n" % number)
    kept.runs = False
    pieces = kept.read()
    assert joined(pieces, 1) == b"".join(b"line %d\n" % n for n in range(0, 500, 2))
    assert joined(pieces, 2) == b"".join(b"line %d\n" % n for n in range(1, 500, 2))
    assert kept.sent[-1] == StreamEnd(1, 0)


def test_no_output_at_all(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "output")
    kept.runs = False
    assert kept.read() == []
    assert kept.sent == [StreamEnd(1, 0)]


def test_following_goes_on_until_the_container_ends_and_loses_nothing(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "output")
    kept.output.write(1, b"one\n")
    kept.logs.pump(0.0)
    kept.logs.pump(0.0)
    assert kept.logs.deadline(0.0) == FOLLOW_SECONDS
    kept.output.write(1, b"two\n")
    kept.logs.pump(0.05)
    assert len(kept.sent) == 1
    kept.logs.pump(FOLLOW_SECONDS)
    assert [m.data for m in kept.sent if isinstance(m, StreamData)] == [b"one\n", b"two\n"]
    kept.output.write(1, b"last words\n")
    kept.runs = False
    kept.read()
    assert [type(m) for m in kept.sent] == [StreamData] * 3 + [StreamEnd]


@pytest.mark.parametrize("tail", [0, 1, 3, 1000])
def test_the_last_lines(tmp_path: Path, tail: int) -> None:
    kept = Kept(tmp_path / "output", tail)
    for number in range(20):
        kept.output.write(1, b"line %d\n" % number)
    kept.output.write(1, b"unfinished")
    kept.runs = False
    lines = [b"line %d\n" % n for n in range(20)] + [b"unfinished"]
    assert joined(kept.read(), 1) == b"".join(lines[-tail:] if tail else [])
    assert kept.sent[-1] == StreamEnd(1, 0)


def test_a_tail_is_bounded_whatever_is_written() -> None:
    tail = Tail(2)
    for _ in range(50):
        tail.feed([(1, b"x" * 60000)])
    assert sum(len(data) for _, data in tail.lines()) < 400000


def test_output_waits_for_credit(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "output")
    for _ in range(10):
        kept.output.write(1, b"x" * 60000)
    kept.runs = False
    assert len(joined(kept.read(), 1)) == CREDIT
    assert kept.logs.deadline(5.0) is None
    kept.logs.credit(StreamCredit(1, 10**6))
    assert len(joined(kept.read(), 1)) == 600000
    assert kept.sent[-1] == StreamEnd(1, 0)


def test_a_reader_that_was_overtaken_goes_on_where_output_begins(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "output")
    kept.output.write(1, b"early\n")
    kept.logs.pump(0.0)
    for number in range(300):
        kept.output.write(2, b"%06d" % number * 10000)
    kept.runs = False
    kept.logs.credit(StreamCredit(1, 2**30))
    pieces = kept.read(5000)
    assert joined(pieces, 1) == b"early\n"
    rest = joined(pieces, 2)
    assert rest.endswith(b"000299")
    assert 0 < len(rest) < 300 * 60000


def test_damaged_output_is_said_to_be_so(tmp_path: Path) -> None:
    for data in (b"\x09garbage..", struct.pack(">BI", 1, MAX_RECORD + 1)):
        path = tmp_path / "output"
        path.write_bytes(data)
        reader = OutputReader(os.open(path, os.O_RDONLY))
        with pytest.raises(KernelError, match="damaged"):
            reader.read()
        reader.close()
