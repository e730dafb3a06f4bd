"""Streams between a user's session and a node's."""

from __future__ import annotations

import itertools

import pytest

from netctl.broker.sessions import Peer
from netctl.broker.streams import CREDIT, PER_USER, Streams
from netctl.errors import ExhaustedError, ProtocolError
from netctl.wire.identity import KeyPair
from netctl.wire.messages import StreamCredit, StreamData, StreamEnd, StreamResize
from netctl.wire.session import ClientHandshake, Role, accept_first

BROKER = KeyPair.generate()
NUMBERS = itertools.count()


def peer(role: Role, name: str) -> Peer:
    first = ClientHandshake(KeyPair.generate(), BROKER.public, role).first()
    _, session = accept_first(BROKER, first.header, first.body, next(NUMBERS).to_bytes(8, "big"))
    return Peer(b"route", session, 0.0, 0.0, name)


@pytest.fixture
def user() -> Peer:
    return peer("user", "admin")


@pytest.fixture
def node() -> Peer:
    return peer("node", "n1")


@pytest.fixture
def streams() -> Streams:
    return Streams()


def test_ids_are_each_sides_own(streams: Streams, user: Peer, node: Peer) -> None:
    streams.open(peer("user", "other"), node)
    opened, at_node = streams.open(user, node)
    assert (opened.stream, opened.credit, at_node) == (1, CREDIT, 2)
    assert streams.relay(user, StreamData(1, 0, b"in")) == (node, StreamData(2, 0, b"in"))
    assert streams.relay(node, StreamData(2, 1, b"out")) == (user, StreamData(1, 1, b"out"))
    assert streams.relay(user, StreamResize(1, 24, 80)) == (node, StreamResize(2, 24, 80))
    assert streams.relay(node, StreamCredit(2, 5)) == (user, StreamCredit(1, 5))


def test_a_session_reaches_only_its_own_streams(streams: Streams, user: Peer, node: Peer) -> None:
    streams.open(user, node)
    with pytest.raises(ProtocolError, match="never opened"):
        streams.relay(peer("user", "other"), StreamData(1, 0, b"x"))
    with pytest.raises(ProtocolError, match="never opened"):
        streams.relay(user, StreamData(2, 0, b"x"))


@pytest.mark.parametrize("end", [0, 1])
def test_either_side_ends_it_once(streams: Streams, user: Peer, node: Peer, end: int) -> None:
    streams.open(user, node)
    one, other = ((user, node), (node, user))[end]
    assert streams.relay(one, StreamEnd(1, 3)) == (other, StreamEnd(1, 3))
    assert len(streams) == 0
    assert streams.relay(other, StreamData(1, int(other is node), b"late")) is None  # type: ignore[arg-type]
    assert (user.outstanding, node.outstanding) == (0, 0)


@pytest.mark.parametrize("end", [0, 1])
def test_a_side_that_goes_away_ends_them_all(streams: Streams, user: Peer, node: Peer, end: int) -> None:
    for _ in range(3):
        streams.open(user, node)
    streams.open(peer("user", "x"), peer("node", "y"))
    one, other = ((user, node), (node, user))[end]
    told = streams.end(one, "went away")
    assert told == [(other, StreamEnd(number, message="went away")) for number in (1, 2, 3)]
    assert len(streams) == 1
    assert (user.outstanding, node.outstanding) == (0, 0)


def test_nobody_sends_more_than_there_is_credit_for(streams: Streams, user: Peer, node: Peer) -> None:
    streams.open(user, node)
    chunk = b"x" * 65536
    for _ in range(CREDIT // len(chunk)):
        assert streams.relay(node, StreamData(1, 1, chunk)) is not None
    with pytest.raises(ProtocolError, match="credit"):
        streams.relay(node, StreamData(1, 2, b"x"))


def test_credit_lets_more_pass(streams: Streams, user: Peer, node: Peer) -> None:
    streams.open(user, node)
    chunk = b"x" * 65536
    for _ in range(20):
        streams.relay(node, StreamData(1, 1, chunk))
        assert streams.relay(user, StreamCredit(1, len(chunk))) == (node, StreamCredit(1, len(chunk)))
    with pytest.raises(ProtocolError, match="credit"):
        streams.relay(user, StreamCredit(1, 2**31))


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ("user", StreamData(1, 1, b"forged output")),
        ("node", StreamData(1, 0, b"forged input")),
        ("node", StreamResize(1, 1, 1)),
        ("user", StreamData(1, 0, b"")),
    ],
)
def test_a_side_does_only_what_is_its_own(
    streams: Streams, user: Peer, node: Peer, side: str, message: StreamData | StreamResize
) -> None:
    streams.open(user, node)
    with pytest.raises(ProtocolError):
        streams.relay(user if side == "user" else node, message)


def test_streams_of_a_user_are_bounded(streams: Streams, user: Peer, node: Peer) -> None:
    for _ in range(PER_USER):
        streams.open(user, node)
    with pytest.raises(ExhaustedError):
        streams.open(user, node)
    streams.open(peer("user", "other"), node)
