"""A session takes the next frame of its own peer and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netctl.errors import InvalidError, ProtocolError
from netctl.model import Port, Workload
from netctl.wire import session as sealed
from netctl.wire.codec import MAX_CLIENT_MESSAGE, MAX_MESSAGE
from netctl.wire.identity import KeyPair
from netctl.wire.messages import Connect, Done, Envelope, Ping, Pong, RunContainer
from netctl.wire.session import ClientHandshake, Frame, Role, Session, accept_first
from tests.support.examples import examples

BROKER, CLIENT = KeyPair(b"\1" * 32), KeyPair(b"\2" * 32)
SESSION_ID = b"\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8"
CONNECT = Envelope(1, Connect("web", "db", (Port("tcp", 5432),)))
ROLES: tuple[Role, ...] = ("user", "node", "enrol")


def pair(role: Role = "user", session_id: bytes = SESSION_ID) -> tuple[Session, Session]:
    """Return the client's and the broker's session after a handshake."""
    handshake = ClientHandshake(CLIENT, BROKER.public, role)
    answer, broker = accept_first(BROKER, *handshake.first(), session_id)
    return handshake.finish(*answer), broker


def confirmed_pair(role: Role = "user") -> tuple[Session, Session]:
    client, broker = pair(role)
    assert broker.open(*client.seal(Envelope(0, Ping()))) == Envelope(0, Ping())
    return client, broker


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


@pytest.mark.parametrize("role", ROLES)
def test_both_sides_come_to_know_each_other(role: Role) -> None:
    client, broker = pair(role)
    assert (client.role, broker.role) == (role, role)
    assert (client.id, broker.id) == (SESSION_ID, SESSION_ID)
    assert (client.peer_key, broker.peer_key) == (BROKER.public, CLIENT.public)
    assert broker.open(*client.seal(CONNECT)) == CONNECT
    assert client.open(*broker.seal(Envelope(1, Done(5)))) == Envelope(1, Done(5))


def test_the_broker_side_is_confirmed_by_the_first_message_that_opens_and_says_nothing_before() -> None:
    client, broker = pair()
    assert (client.confirmed, broker.confirmed) == (True, False)
    with pytest.raises(ProtocolError, match="proven"):
        broker.seal(Envelope(0, Ping()))
    frame = client.seal(CONNECT)
    with pytest.raises(ProtocolError):
        broker.open(frame.header, flipped(frame.body, 3))
    assert not broker.confirmed
    broker.open(*frame)
    assert broker.confirmed
    assert client.open(*broker.seal(Envelope(0, Ping()))) == Envelope(0, Ping())


def test_a_replayed_first_message_leads_to_a_session_that_nobody_can_confirm() -> None:
    handshake = ClientHandshake(CLIENT, BROKER.public, "user")
    first = handshake.first()
    answer, one = accept_first(BROKER, *first, SESSION_ID)
    client = handshake.finish(*answer)
    _, two = accept_first(BROKER, *first, b"another.")
    frames = [client.seal(CONNECT), client.seal(CONNECT)]
    for frame in frames:
        with pytest.raises(ProtocolError):
            two.open(two._header, frame.body)
    assert not two.confirmed
    assert [one.open(*frame) for frame in frames] == [CONNECT, CONNECT]


def test_handshakes_share_no_keys() -> None:
    client_one, _ = pair()
    client_two, _ = pair()
    assert client_one.seal(CONNECT).body != client_two.seal(CONNECT).body


def test_every_changed_byte_of_the_handshake_is_refused() -> None:
    handshake = ClientHandshake(CLIENT, BROKER.public, "node")
    first = handshake.first()
    for place in range(len(first.header)):
        with pytest.raises(ProtocolError):
            accept_first(BROKER, flipped(first.header, place), first.body, SESSION_ID)
    for place in range(len(first.body)):
        with pytest.raises(ProtocolError):
            accept_first(BROKER, first.header, flipped(first.body, place), SESSION_ID)
    second, _ = accept_first(BROKER, *first, SESSION_ID)
    frames = [Frame(flipped(second.header, place), second.body) for place in range(len(second.header))]
    frames += [Frame(second.header, flipped(second.body, place)) for place in range(len(second.body))]
    for frame in frames:
        again = ClientHandshake(CLIENT, BROKER.public, "node")
        again._noise = _copy_of(handshake)
        with pytest.raises(ProtocolError):
            again.finish(*frame)
    assert handshake.finish(*second).id == SESSION_ID


def _copy_of(handshake: ClientHandshake) -> sealed.Initiator:
    """Return the handshake's state after its first message, to try one more answer with."""
    noise = handshake._noise
    copy = sealed.Initiator(
        prologue=b"netctl/1/node",
        static=noise._static,
        ephemeral=noise._ephemeral,
        remote_static=noise._remote_static,
    )
    copy.write_first()
    return copy


def test_another_role_in_the_clear_opens_nothing() -> None:
    headers = {role: ClientHandshake(CLIENT, BROKER.public, role).first().header for role in ROLES}
    for role in ROLES:
        first = ClientHandshake(CLIENT, BROKER.public, role).first()
        for claimed in ROLES:
            if claimed == role:
                assert accept_first(BROKER, headers[claimed], first.body, SESSION_ID)[1].role == role
            else:
                with pytest.raises(ProtocolError, match="does not open"):
                    accept_first(BROKER, headers[claimed], first.body, SESSION_ID)


def test_the_version_is_bound_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "VERSION", 2)
    later = ClientHandshake(CLIENT, BROKER.public, "user").first()
    monkeypatch.undo()
    with pytest.raises(ProtocolError, match="speaks version 2 of the protocol, this one 1"):
        accept_first(BROKER, *later, SESSION_ID)
    with pytest.raises(ProtocolError, match="does not open"):
        accept_first(BROKER, later.header[:1] + b"\1" + later.header[2:], later.body, SESSION_ID)


def test_another_broker_cannot_answer() -> None:
    handshake = ClientHandshake(CLIENT, BROKER.public, "user")
    first = handshake.first()
    with pytest.raises(ProtocolError):
        accept_first(KeyPair(b"\3" * 32), *first, SESSION_ID)
    other = ClientHandshake(CLIENT, KeyPair(b"\3" * 32).public, "user")
    answer, _ = accept_first(KeyPair(b"\3" * 32), *other.first(), SESSION_ID)
    with pytest.raises(ProtocolError):
        handshake.finish(*answer)


def test_a_broker_key_of_low_order_is_refused() -> None:
    with pytest.raises(ProtocolError, match="low order"):
        ClientHandshake(CLIENT, bytes(32), "user").first()


def test_a_first_message_of_another_length_is_refused() -> None:
    first = ClientHandshake(CLIENT, BROKER.public, "user").first()
    assert len(first.body) == sealed.FIRST_BODY_BYTES
    for body in (first.body[:-1], first.body + b"\0", b"", b"\0" * 100_000):
        with pytest.raises(ProtocolError, match="no first message"):
            accept_first(BROKER, first.header, body, SESSION_ID)


def test_the_answer_is_no_longer_than_the_question() -> None:
    first = ClientHandshake(CLIENT, BROKER.public, "user").first()
    second, _ = accept_first(BROKER, *first, SESSION_ID)
    assert len(second.body) == sealed.SECOND_BODY_BYTES < len(first.body)


def test_every_changed_byte_of_a_frame_is_refused_and_costs_the_session_nothing() -> None:
    client, broker = confirmed_pair()
    frame = client.seal(CONNECT)
    for place in range(len(frame.header)):
        with pytest.raises(ProtocolError, match="header"):
            broker.open(flipped(frame.header, place), frame.body)
    for place in range(len(frame.body)):
        with pytest.raises(ProtocolError, match="does not open"):
            broker.open(frame.header, flipped(frame.body, place))
    for length in range(len(frame.body)):
        with pytest.raises(ProtocolError):
            broker.open(frame.header, frame.body[:length])
    with pytest.raises(ProtocolError):
        broker.open(frame.header, frame.body + b"\0")
    assert broker.open(*frame) == CONNECT


def test_doubled_reordered_and_lost_frames_do_not_open() -> None:
    client, broker = confirmed_pair()
    one, two, three = (client.seal(Envelope(n, Ping())) for n in (1, 2, 3))
    with pytest.raises(ProtocolError):
        broker.open(*two)
    assert broker.open(*one).id == 1
    with pytest.raises(ProtocolError):
        broker.open(*one)
    with pytest.raises(ProtocolError):
        broker.open(*three)
    assert broker.open(*two).id == 2
    assert broker.open(*three).id == 3


def test_reflected_frames_do_not_open() -> None:
    client, broker = confirmed_pair()
    with pytest.raises(ProtocolError):
        client.open(*client.seal(CONNECT))
    with pytest.raises(ProtocolError):
        broker.open(*broker.seal(CONNECT))


def test_frames_of_another_session_do_not_open() -> None:
    client_one, _ = pair(session_id=b"session1")
    client_two, broker_two = pair(session_id=b"session2")
    frame = client_one.seal(CONNECT)
    with pytest.raises(ProtocolError, match="header"):
        broker_two.open(*frame)
    with pytest.raises(ProtocolError, match="does not open"):
        broker_two.open(client_two.seal(CONNECT).header, frame.body)


def test_the_header_in_the_clear_is_bound_to_what_is_sealed() -> None:
    client, broker = confirmed_pair()
    frame = client.seal(CONNECT)
    broker._header = flipped(frame.header, 9)
    with pytest.raises(ProtocolError, match="does not open"):
        broker.open(broker._header, frame.body)


def test_only_what_is_allowed_is_taken() -> None:
    client, broker = confirmed_pair()
    assert broker.open(*client.seal(CONNECT), allowed={Connect}) == CONNECT
    with pytest.raises(ProtocolError, match="may not be sent"):
        broker.open(*client.seal(CONNECT), allowed={Ping, Pong})


def test_unknown_fields_are_counted_over_the_session() -> None:
    client, broker = confirmed_pair()
    for count in (1, 2):
        body = b"\x83\xa1t\xa4Ping\xa1i\x00\xa1b" + bytes([0x80 + count])
        body += b"".join(b"\xa1" + bytes([97 + n]) + b"\xc0" for n in range(count))
        sealed_body = client._transport.send.encrypt(client._header, body)
        assert broker.open(client._header, sealed_body) == Envelope(0, Ping())
    assert broker.unknown_fields == 3


@pytest.mark.parametrize(
    ("role", "limit"), [("user", MAX_CLIENT_MESSAGE), ("enrol", MAX_CLIENT_MESSAGE), ("node", MAX_MESSAGE)]
)
def test_sizes_are_bounded_by_role_on_both_sides(role: Role, limit: int) -> None:
    client, broker = confirmed_pair(role)
    assert (client.send_limit, broker.receive_limit) == (limit, limit)
    assert (client.receive_limit, broker.send_limit) == (MAX_MESSAGE, MAX_MESSAGE)
    with pytest.raises(ProtocolError, match="larger than"):
        broker.open(broker._header, bytes(limit + 17))
    with pytest.raises(ProtocolError, match="does not open"):
        broker.open(broker._header, bytes(limit + 16))


def test_a_message_that_is_too_large_leaves_the_session_usable() -> None:
    client, broker = confirmed_pair()
    with pytest.raises(InvalidError):
        client.seal(Envelope(1, RunContainer("web", Workload("process", ("x" * 4096,) * 100))))
    assert broker.open(*client.seal(CONNECT)) == CONNECT


def test_a_session_ends_before_its_counter_is_near_its_end() -> None:
    client, broker = confirmed_pair()
    client._transport.send.nonce = broker._transport.receive.nonce = sealed.MAX_FRAMES - 1
    last = client.seal(CONNECT)
    with pytest.raises(ProtocolError, match="carried all"):
        client.seal(CONNECT)
    assert broker.open(*last) == CONNECT
    with pytest.raises(ProtocolError, match="carried all"):
        broker.open(*last)


def test_headers() -> None:
    restart = sealed.restart_frame(SESSION_ID)
    assert restart.body == b""
    assert sealed.parse_header(restart.header) == sealed.Header(sealed.RESTART, SESSION_ID)
    client, _ = pair()
    assert sealed.parse_header(client.seal(CONNECT).header) == sealed.Header(sealed.DATA, SESSION_ID)
    for header in (
        b"",
        restart.header[:-1],
        restart.header + b"\0",
        b"\0" + restart.header[1:],
        b"\5" + restart.header[1:],
    ):
        with pytest.raises(ProtocolError):
            sealed.parse_header(header)


def test_a_restart_frame_is_no_frame_of_the_session() -> None:
    client, broker = confirmed_pair()
    with pytest.raises(ProtocolError):
        client.open(*sealed.restart_frame(SESSION_ID))
    handshake = ClientHandshake(CLIENT, BROKER.public, "user")
    handshake.first()
    with pytest.raises(ProtocolError, match="no second message"):
        handshake.finish(*sealed.restart_frame(SESSION_ID))
    assert client.open(*broker.seal(CONNECT)) == CONNECT


@settings(max_examples=examples(200), deadline=None)
@given(st.binary(max_size=12), st.binary(max_size=200))
def test_random_frames_never_raise_anything_else(header: bytes, body: bytes) -> None:
    client, broker = pair()
    handshake = ClientHandshake(CLIENT, BROKER.public, "user")
    first = handshake.first()
    for parts in ((header, body), (client._header, body), (first.header, body)):
        with pytest.raises(ProtocolError):
            broker.open(*parts)
        with pytest.raises(ProtocolError):
            accept_first(BROKER, *parts, SESSION_ID)
        with pytest.raises(ProtocolError):
            handshake.finish(*parts)


def test_no_key_shows_in_a_repr() -> None:
    client, broker = pair()
    for session in (client, broker):
        assert "CipherState" not in repr(session)
        assert "transport" not in repr(session)
