"""`netctl adopt` waits for what its node says, and no longer than it was told to."""

from __future__ import annotations

import json
import time
from collections import deque

import attrs
import pytest

from netctl.errors import RefusedError
from netctl.wire.messages import OpenAdopt, StreamEnd
from tests.unit.netctl.cli.conftest import Broker, Netctl, Outcome


@attrs.define
class Adoption:
    """Stands where `netctl.stream.Stream` stands; without an end nothing ever comes."""

    pieces: deque[StreamEnd | None]

    def receive(self, timeout: float | None = 0.0) -> StreamEnd | None:
        assert timeout is not None
        if self.pieces:
            return self.pieces.popleft()
        time.sleep(timeout)
        return None


def test_it_says_what_became_of_it(broker: Broker, netctl: Netctl) -> None:
    ended = StreamEnd(1, 0, "backup is recorded as backup at 10.1.0.9")
    broker.answers[OpenAdopt] = [Adoption(deque((None, ended))), Adoption(deque((ended,)))]
    assert netctl("adopt", "backup") == Outcome(0, f"{ended.message}\n", "")
    shown = netctl("adopt", "4f1c0d", "--node", "n2", "--json").out
    assert json.loads(shown) == {"container": "4f1c0d", "message": ended.message}
    assert broker.asked == [OpenAdopt("backup", None), OpenAdopt("4f1c0d", "n2")]


@pytest.mark.parametrize("exit_code", [None, 1])
def test_it_says_why_not(broker: Broker, netctl: Netctl, exit_code: int | None) -> None:
    refused = StreamEnd(1, exit_code, "backup is not on --network none")
    broker.answers[OpenAdopt] = Adoption(deque((refused,)))
    outcome = netctl("adopt", "backup")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err == f"error: {refused.message}; see `netctl ps`\n"
    broker.answers[OpenAdopt] = RefusedError("several nodes have docker", "say which with --node")
    assert netctl("adopt", "backup").err == "error: several nodes have docker; say which with --node\n"


def test_it_waits_no_longer_than_told(broker: Broker, netctl: Netctl) -> None:
    broker.answers[OpenAdopt] = Adoption(deque())
    outcome = netctl("adopt", "backup", "--timeout", "0.05", "--json")
    assert (outcome.status, json.loads(outcome.err)["code"]) == (1, "unavailable")
    assert "within 0.05 s" in json.loads(outcome.err)["message"]
