"""Bytes of a stream reach stdout and stderr apart, stdin goes the other way, and the status comes through."""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from typing import Any, cast

import attrs
import pytest

from netctl.cli import terminal
from netctl.errors import NetctlError
from netctl.wire.messages import StreamData, StreamEnd


@attrs.define
class Line:
    """A client and its only stream, over an eventfd instead of a socket.

    Attributes:
        window: Bytes that stdin may send.
        echo: Sends stdin back on stdout, and ends with 0 after its end.
    """

    window: int = 1 << 18
    echo: bool = False
    pieces: deque[StreamData | StreamEnd] = attrs.field(factory=deque)
    sent: bytearray = attrs.field(factory=bytearray)
    input_closed: bool = False
    closed: bool = False
    sizes: list[tuple[int, int]] = attrs.field(factory=list)
    ready: int = attrs.field(factory=lambda: os.eventfd(0, os.EFD_NONBLOCK))

    def fileno(self) -> int:
        return self.ready

    def come(self, *pieces: StreamData | StreamEnd) -> None:
        self.pieces.extend(pieces)
        os.eventfd_write(self.ready, 1)

    def receive(self, timeout: float) -> StreamData | StreamEnd | None:
        assert timeout == 0
        return self.pieces.popleft() if self.pieces else None

    def send(self, data: bytes) -> int:
        taken = data[: self.window]
        self.window -= len(taken)
        self.sent += taken
        if self.echo:
            self.come(StreamData(1, 1, taken))
            self.window += len(taken)
        return len(taken)

    def close_input(self) -> None:
        self.input_closed = True
        if self.echo:
            self.come(StreamEnd(1, 0))

    def resize(self, rows: int, columns: int) -> None:
        self.sizes.append((rows, columns))

    def close(self) -> None:
        self.closed = True


class Heartbeat:
    """The client's side: what came is for the stream only."""

    def __init__(self, line: Line) -> None:
        self.fileno = line.fileno

    def receive(self, timeout: float) -> None:
        assert timeout == 0


def run(line: Line, *, stdin: bool = False) -> int:
    return terminal.run(cast("Any", Heartbeat(line)), cast("Any", line), stdin=stdin, raw=False)


def test_outputs_stay_apart_and_the_status_comes_through(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    line = Line()
    line.come(
        StreamData(1, 1, b"out"), StreamData(1, 2, b"err"), StreamData(1, 1, b"", eof=True), StreamEnd(1, 7)
    )
    assert run(line) == 7
    assert capfdbinary.readouterr() == (b"out", b"err")
    assert (line.input_closed, line.closed) == (True, True)


def test_everything_is_written_before_the_end(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    line = Line()
    big = os.urandom(65536)
    line.come(*[StreamData(1, 1, big)] * 4, StreamEnd(1, 0))
    assert run(line) == 0
    assert capfdbinary.readouterr().out == big * 4


def test_stdin_goes_in_and_comes_back(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    monkeypatch.setattr(terminal, "STDIN", read)
    payload = os.urandom(300_000)

    def feed() -> None:
        with os.fdopen(write, "wb") as pipe:
            pipe.write(payload)

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert run(Line(echo=True), stdin=True) == 0
    feeder.join()
    os.close(read)
    assert capfdbinary.readouterr().out == payload


def test_no_more_is_read_from_stdin_than_may_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    monkeypatch.setattr(terminal, "STDIN", read)
    os.write(write, b"x" * 50_000)
    line = Line(window=10)
    threading.Timer(0.3, lambda: line.come(StreamEnd(1, 0))).start()
    assert run(line, stdin=True) == 0
    assert line.sent == b"x" * 10
    os.close(read)
    os.close(write)


def test_without_a_status_it_is_an_error() -> None:
    line = Line()
    line.come(StreamEnd(1, None, "the node went away"))
    with pytest.raises(NetctlError, match="the node went away"):
        run(line)


def test_why_a_command_could_not_be_run_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    line = Line()
    line.come(StreamEnd(1, 127, "cannot run nosuch: No such file or directory"))
    assert run(line) == 127
    assert capfd.readouterr() == ("", "error: cannot run nosuch: No such file or directory\n")


def test_output_that_cannot_be_written_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()
    line.come(StreamData(1, 1, b"out"))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(terminal.os, "write", full)
    with pytest.raises(NetctlError, match="cannot be written: No space left on device"):
        run(line)
    assert line.closed


def test_a_reader_that_went_away_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()
    line.come(StreamData(1, 1, b"out"))

    def broken(*_: object) -> int:
        raise BrokenPipeError

    monkeypatch.setattr(terminal.os, "write", broken)
    assert run(line) == 141
    assert line.closed
