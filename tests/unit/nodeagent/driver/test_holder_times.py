"""The holder's bounds in time, with a clock that the test moves."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.driver.holder import LONGEST_CALL, PING, SILENT, SLOW, Holder, listen
from tests.support.plugin_holder import PluginClient, StandInAgent


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A holder in this process."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.plugin = folder / "netctl.sock"
        self.agent_path = folder / "driver.sock"
        self.sockets = (
            listen(self.plugin, socket.SOCK_STREAM),
            listen(self.agent_path, socket.SOCK_SEQPACKET),
        )
        self.holder = Holder(*self.sockets, self.clock)
        self.client = PluginClient(self.plugin)
        self.agent = StandInAgent(self.agent_path)
        self.holder.turn()

    def ask(self) -> int:
        """Have a call reach the agent; return its number."""
        self.client.ask("NetworkDriver.Leave", {})
        # One turn takes the connection, one what came by it.
        self.holder.turn()
        self.holder.turn()
        line, _ = self.agent.read()
        return int(line["id"])

    def pass_time(self, seconds: float, *, pong: bool) -> None:
        """Let time pass in steps of a ping, each of which the agent answers, or not."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + PING)
            self.holder.turn()
            if pong and select.select([self.agent.sock], [], [], 0)[0]:
                line, _ = self.agent.read()
                self.agent.sock.send(json.dumps({"pong": line["ping"]}).encode() + b"\n")
                self.holder.turn()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for sock in (*made.sockets, made.agent.sock, made.client.sock):
        sock.close()


def test_silence_is_borne_for_a_moment_and_no_longer(bench: Bench) -> None:
    bench.ask()
    bench.pass_time(SILENT - 0.01, pong=False)
    assert not bench.client.answered()
    bench.pass_time(0.01, pong=False)
    assert "does not answer" in bench.client.answer()["Err"]


def test_even_a_living_agent_may_not_take_for_ever(bench: Bench) -> None:
    bench.ask()
    bench.pass_time(LONGEST_CALL - 0.01, pong=True)
    assert not bench.client.answered()
    bench.pass_time(0.01, pong=True)
    assert "was not done in time" in bench.client.answer()["Err"]


def test_the_agent_is_told_until_when_it_is_waited_for(bench: Bench) -> None:
    bench.client.ask("NetworkDriver.Leave", {})
    bench.holder.turn()
    bench.holder.turn()
    line, _ = bench.agent.read()
    assert line["until"] == bench.clock.now + SILENT


def test_an_agent_that_answers_again_is_told_how_much_was_refused_meanwhile(bench: Bench) -> None:
    bench.ask()
    bench.pass_time(SILENT, pong=False)
    bench.client.answer()
    for _ in range(2):
        bench.client.ask("NetworkDriver.Leave", {})
        bench.holder.turn()
        assert "does not answer" in bench.client.answer()["Err"]
    # Pings that it did not read are older than the last refusal.
    while select.select([bench.agent.sock], [], [], 0)[0]:
        bench.agent.read()
    bench.agent.sock.send(json.dumps({"pong": 0}).encode() + b"\n")
    bench.holder.turn()
    line, _ = bench.agent.read()
    assert line["refused"] == 3
    # So is the next agent.
    bench.agent.sock.close()
    bench.agent = StandInAgent(bench.agent_path)
    bench.holder.turn()
    line, _ = bench.agent.read()
    assert line["refused"] == 3


def test_a_client_that_sends_half_a_call_is_cut_off(bench: Bench) -> None:
    bench.client.connect()
    bench.client.sock.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
    bench.holder.turn()
    bench.holder.turn()
    bench.clock.now += SLOW - 0.01
    bench.client.sock.sendall(b"a")
    bench.holder.turn()
    assert not bench.client.answered()
    bench.clock.now += 0.01
    bench.holder.turn()
    assert bench.client.sock.recv(1) == b""
