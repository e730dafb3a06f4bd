from __future__ import annotations

import os
import struct

import pytest

from netctl.errors import KernelError, ProtocolError
from netctl.wire.messages import Message, StreamCredit, StreamData, StreamEnd
from nodeagent.exec_stream import CREDIT
from nodeagent.helper_messages import ExecEnded
from nodeagent.log_streams import PipedLogs


class Piped:
    def __init__(self) -> None:
        self.sent: list[Message] = []
        reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.logs = PipedLogs(3, 9, reader, self.sent.append)

    def write(self, stream: int, data: bytes) -> None:
        os.write(self.writer, struct.pack(">BI", stream, len(data)) + data)

    def pump(self, times: int = 1) -> None:
        for _ in range(times):
            self.logs.pump(self.logs.readers(), ())

    def output(self, channel: int) -> bytes:
        return b"".join(m.data for m in self.sent if isinstance(m, StreamData) and m.channel == channel)


def test_output_is_sent_by_stream_and_ends_after_the_engine_has() -> None:
    piped = Piped()
    piped.write(1, b"out ")
    piped.write(2, b"err")
    piped.write(1, b"more")
    piped.pump(3)
    assert piped.output(1) == b"out more"
    assert piped.output(2) == b"err"
    piped.logs.ended(ExecEnded(9, 0))
    piped.pump(3)
    assert not piped.logs.over
    piped.write(1, b"!")
    os.close(piped.writer)
    piped.pump(3)
    assert piped.output(1) == b"out more!"
    assert piped.logs.over
    assert piped.sent[-1] == StreamEnd(3, 0)


def test_a_record_in_parts_is_one() -> None:
    piped = Piped()
    record = struct.pack(">BI", 2, 5) + b"parts"
    for at in range(len(record)):
        os.write(piped.writer, record[at : at + 1])
        piped.pump()
    assert piped.output(2) == b"parts"


def test_it_is_read_no_further_than_the_user_reads() -> None:
    piped = Piped()
    written = 0
    while True:
        try:
            piped.write(1, b"x" * 4000)
        except BlockingIOError:
            break
        written += 4000
        piped.pump()
        if not piped.logs.readers() and written > CREDIT + 200_000:
            break
    assert len(piped.output(1)) == CREDIT
    assert list(piped.logs.readers()) == []
    assert not piped.logs.busy
    piped.logs.credit(StreamCredit(3, 1000))
    assert piped.logs.busy
    piped.pump(2)
    assert len(piped.output(1)) == CREDIT + 1000


def test_an_engine_that_failed_says_why() -> None:
    piped = Piped()
    piped.write(1, b"half")
    os.close(piped.writer)
    piped.logs.ended(ExecEnded(9, 125, "the connection to Docker broke"))
    piped.pump(3)
    assert piped.output(1) == b"half"
    assert piped.sent[-1] == StreamEnd(3, None, "the connection to Docker broke")


def test_what_is_no_output_is_damage_and_input_is_refused() -> None:
    piped = Piped()
    with pytest.raises(ProtocolError):
        piped.logs.feed(StreamData(3, 0, b"x"))
    os.write(piped.writer, b"\xff" * 20)
    with pytest.raises(KernelError):
        piped.pump()
    piped.logs.close()
    piped.logs.close()
