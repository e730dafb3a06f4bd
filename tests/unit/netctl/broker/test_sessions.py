"""The session table: who gets in, who is thrown out, and who is left alone."""

from __future__ import annotations

import itertools

import pytest

from netctl.broker.sessions import Ended, Limits, Opened, Peer, Reply, Sessions
from netctl.wire.identity import KeyPair
from netctl.wire.messages import Envelope, GetStatus, Hello, ListNodes, Ping, Pong
from netctl.wire.session import (
    DATA,
    RESTART,
    SECOND,
    ClientHandshake,
    Frame,
    Role,
    Session,
    parse_header,
    restart_frame,
)
from tests.support.hub import facts

KEYS = KeyPair.generate()
ALLOWED: dict[Role, frozenset[type]] = {
    "user": frozenset({GetStatus, ListNodes, Ping, Pong}),
    "node": frozenset({Hello, Ping, Pong}),
    "enrol": frozenset(),
}
HELLO = Hello(0, 0, "", facts(1))
ROUTES = (number.to_bytes(5, "big") for number in itertools.count())


def table(**limits: float) -> Sessions:
    return Sessions(KEYS, ALLOWED, Limits(**limits))  # type: ignore[arg-type]


class Client:
    """One connection to a table."""

    def __init__(self, sessions: Sessions, role: Role = "user", keys: KeyPair | None = None) -> None:
        self.sessions = sessions
        self.route = next(ROUTES)
        self._handshake = ClientHandshake(keys or KeyPair.generate(), KEYS.public, role)
        self.first = self._handshake.first()

    def shake_hands(self, now: float = 0.0) -> Session:
        (reply,) = self.give(self.first, now)
        assert isinstance(reply, Reply)
        assert parse_header(reply.frame.header).type == SECOND
        self.session = self._handshake.finish(reply.frame.header, reply.frame.body)
        return self.session

    def give(self, frame: Frame, now: float = 0.0) -> list[Reply | Opened | Ended]:
        return self.sessions.receive(self.route, [frame.header, frame.body], now)

    def say(self, message: object, now: float = 0.0) -> list[Reply | Opened | Ended]:
        return self.give(self.session.seal(Envelope(1, message)), now)

    def live(self) -> bool:
        events = self.say(Ping())
        return any(isinstance(event, Opened) for event in events)


def opened(sessions: Sessions, role: Role = "user", keys: KeyPair | None = None) -> Client:
    client = Client(sessions, role, keys)
    client.shake_hands()
    assert client.live()
    return client


def test_a_message_opens_as_its_senders() -> None:
    sessions = table()
    keys = KeyPair.generate()
    client = opened(sessions, keys=keys)
    (event,) = client.say(GetStatus())
    assert isinstance(event, Opened)
    assert (event.peer.key, event.peer.role) == (keys.public.hex(), "user")
    assert event.envelope == Envelope(1, GetStatus())
    assert len(sessions) == 1


def test_nothing_is_confirmed_before_the_first_sealed_message() -> None:
    sessions = table()
    client = Client(sessions)
    client.shake_hands()
    assert (len(sessions), sessions.half_open) == (0, 1)
    assert client.live()
    assert (len(sessions), sessions.half_open) == (1, 0)


def test_a_frame_of_an_unknown_session_is_answered_with_restart() -> None:
    sessions = table()
    client = opened(sessions)
    other = opened(table())
    frame = other.session.seal(Envelope(1, Ping()))
    (event,) = sessions.receive(b"elsewhere", [frame.header, frame.body], 0.0)
    assert event == Reply(b"elsewhere", restart_frame(other.session.id))
    assert parse_header(event.frame.header).type == RESTART
    assert client.live()


def test_a_session_cannot_be_used_or_ended_from_another_connection() -> None:
    sessions = table()
    victim = opened(sessions)
    frame = victim.session.seal(Envelope(1, GetStatus()))
    for body in (frame.body, b"", b"x" * 40):
        (event,) = sessions.receive(b"squatter", [frame.header, body], 0.0)
        assert event == Reply(b"squatter", restart_frame(victim.session.id))
    (event,) = victim.give(frame)
    assert isinstance(event, Opened)


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b""],
        [b"", b"", b""],
        [b"\x01", b""],
        [b"\x03\x02" + bytes(8), b""],
        [b"\x09\x01" + bytes(8), b""],
        [b"\x01\x01user\0\0\0\0", b"short"],
        [b"\x01\x01root\0\0\0\0", bytes(96)],
        [b"\x02\x01" + bytes(8), bytes(56)],
        [b"\x04\x01" + bytes(8), b""],
        [b"\x01\x01user\0\0\0\0", bytes(96)],
    ],
)
def test_a_malformed_frame_costs_its_sender_the_session_and_nobody_else_anything(parts: list[bytes]) -> None:
    sessions = table()
    sender, other = opened(sessions), opened(sessions)
    (event,) = sessions.receive(sender.route, parts, 0.0)
    assert isinstance(event, Ended)
    assert event.peer.route == sender.route
    assert not sender.live()
    assert other.live()
    assert sessions.receive(b"a stranger's", parts, 0.0) == []


def test_a_frame_that_does_not_open_costs_its_sender_the_session() -> None:
    sessions = table()
    sender, other = opened(sessions), opened(sessions)
    frame = sender.session.seal(Envelope(1, Ping()))
    (event,) = sender.give(Frame(frame.header, frame.body[:-1] + bytes([frame.body[-1] ^ 1])))
    assert isinstance(event, Ended)
    assert other.live()


def test_a_doubled_frame_costs_its_sender_the_session() -> None:
    sessions = table()
    sender = opened(sessions)
    frame = sender.session.seal(Envelope(1, Ping()))
    assert isinstance(sender.give(frame)[0], Opened)
    assert isinstance(sender.give(frame)[0], Ended)


@pytest.mark.parametrize(
    ("role", "message"), [("user", HELLO), ("node", GetStatus()), ("enrol", GetStatus())]
)
def test_a_role_cannot_send_what_is_another_roles(role: Role, message: object) -> None:
    sessions = table()
    client = Client(sessions, role)
    client.shake_hands()
    assert client.say(message) == []
    assert len(sessions) == 0


def test_a_nodes_newer_session_ends_its_older_one_once_it_has_spoken() -> None:
    sessions = table()
    keys = KeyPair.generate()
    old = opened(sessions, "node", keys)
    new = Client(sessions, "node", keys)
    new.shake_hands()
    assert old.live()
    ended, spoken = new.say(Ping())
    assert isinstance(ended, Ended)
    assert isinstance(spoken, Opened)
    assert ended.peer.route == old.route
    assert not old.live()
    assert new.live()


def test_a_replayed_first_message_ends_nobody() -> None:
    sessions = table()
    keys = KeyPair.generate()
    node = Client(sessions, "node", keys)
    node.shake_hands()
    assert node.live()
    recorded = [node.session.seal(Envelope(1, Ping()))]
    assert isinstance(node.give(recorded[0])[0], Opened)
    (reply,) = sessions.receive(b"replay", [node.first.header, node.first.body], 0.0)
    assert isinstance(reply, Reply)
    header = bytes([DATA, 1]) + parse_header(reply.frame.header).session_id
    # What was recorded of the victim does not open in the session that the replay began.
    assert sessions.receive(b"replay", [header, recorded[0].body], 0.0) == []
    assert node.live()
    assert len(sessions) == 1


def test_a_user_has_several_sessions_up_to_a_bound() -> None:
    sessions = table(sessions_per_key=3)
    keys = KeyPair.generate()
    clients = [opened(sessions, keys=keys) for _ in range(3)]
    assert clients[0].live()
    fourth = Client(sessions, keys=keys)
    fourth.shake_hands()
    ended = fourth.say(Ping())[0]
    assert isinstance(ended, Ended)
    assert ended.peer.route == clients[1].route
    assert [client.live() for client in (clients[0], clients[2], fourth)] == [True, True, True]


def test_a_session_that_waits_for_something_is_not_the_one_that_makes_room() -> None:
    sessions = table(sessions_per_key=3)
    keys = KeyPair.generate()
    following = opened(sessions, keys=keys)
    next(iter(sessions)).outstanding = 1
    commands = [opened(sessions, keys=keys) for _ in range(9)]
    assert following.live()
    assert [command.live() for command in commands] == [False] * 7 + [True] * 2
    for peer in sessions:
        peer.outstanding = 1
    opened(sessions, keys=keys)
    assert len(sessions) == 3


def test_half_open_handshakes_are_bounded_in_number() -> None:
    sessions = table(half_open=8)
    node = opened(sessions, "node")
    clients = [Client(sessions) for _ in range(50)]
    for client in clients:
        client.shake_hands()
    assert sessions.half_open == 8
    assert clients[-1].live()
    assert not clients[0].live()
    assert node.live()


def test_one_connection_has_one_half_open_handshake() -> None:
    sessions = table()
    client = Client(sessions)
    for _ in range(50):
        client.shake_hands()
        client._handshake = ClientHandshake(KeyPair.generate(), KEYS.public, "user")
        client.first = client._handshake.first()
    assert sessions.half_open == 1


def test_half_open_handshakes_are_bounded_in_time() -> None:
    sessions = table(half_open_seconds=10)
    client = Client(sessions)
    client.shake_hands(now=0.0)
    sessions.sweep(9.0)
    assert sessions.half_open == 1
    sessions.sweep(10.5)
    assert sessions.half_open == 0
    (event,) = client.say(Ping(), 11.0)
    assert isinstance(event, Reply)


def test_sessions_are_bounded_and_nodes_are_not_the_ones_that_make_room() -> None:
    sessions = table(sessions=3)
    node = opened(sessions, "node")
    users = [opened(sessions) for _ in range(4)]
    assert len(sessions) == 3
    assert [user.live() for user in users] == [False, False, True, True]
    assert node.live()


def test_a_silent_node_is_asked_and_then_ended() -> None:
    sessions = table(interval=5)
    node = opened(sessions, "node")
    assert sessions.sweep(4.0) == ([], [])
    ended, asked = sessions.sweep(5.0)
    assert (ended, [peer.route for peer in asked]) == ([], [node.route])
    assert sessions.sweep(7.0) == ([], [])
    assert len(sessions.sweep(10.0)[1]) == 1
    ended, _ = sessions.sweep(15.1)
    assert [event.peer.route for event in ended] == [node.route]


def test_a_node_that_answers_stays() -> None:
    sessions = table(interval=5)
    node = opened(sessions, "node")
    for now in (5.0, 10.0, 15.0, 20.0, 25.0):
        assert sessions.sweep(now)[0] == []
        node.say(Pong(), now)


def test_an_idle_user_is_left_alone_for_long_and_a_waiting_one_is_watched() -> None:
    sessions = table(interval=5, idle_seconds=600)
    idle = opened(sessions)
    waiting = opened(sessions)
    peers: dict[bytes, Peer] = {peer.route: peer for peer in sessions}
    peers[waiting.route].outstanding = 1
    ended, asked = sessions.sweep(16.0)
    assert [event.peer.route for event in ended] == [waiting.route]
    assert asked == []
    ended, _ = sessions.sweep(601.0)
    assert [event.peer.route for event in ended] == [idle.route]


def test_a_lost_connection_ends_its_session() -> None:
    sessions = table()
    client = opened(sessions)
    (event,) = sessions.lost(client.route, "closed")
    assert (event.peer.route, event.reason) == (client.route, "closed")
    assert sessions.lost(client.route, "closed") == []
