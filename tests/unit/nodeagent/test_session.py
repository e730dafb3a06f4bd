"""The agent's session against a broker that a test plays, frame by frame, on a real socket."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
import zmq

from netctl.errors import RefusedError, UnavailableError
from netctl.model import NodeDelta
from netctl.wire.identity import Identity, KeyPair
from netctl.wire.invite import Invite
from netctl.wire.messages import Done, Enrol, Enrolled, Envelope, Failure, Leave, Ping, Pong, Update
from netctl.wire.session import Session, accept_first, restart_frame
from nodeagent import membership
from nodeagent.facts import node_facts
from nodeagent.session import ANEW, FIRST_PAUSE, HANDSHAKE_SECONDS, LAST_PAUSE, BrokerSession, Down, Up
from tests.support.agents import FULL_FACTS

HEARTBEAT = 5.0


class Broker:
    """The other side, doing nothing by itself."""

    def __init__(self, endpoint: str) -> None:
        self.keys = KeyPair.generate()
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.bind(endpoint)
        self.endpoint = self.socket.get_string(zmq.LAST_ENDPOINT)
        self.route = b""
        self.session: Session | None = None
        self.handshakes = 0

    def serve(self) -> Envelope | None:
        """Answer a handshake, or return what was said; None: nothing came within a short while."""
        if not self.socket.poll(20):
            return None
        route, header, body = self.socket.recv_multipart()
        if self.session is None or route != self.route:
            frame, self.session = accept_first(self.keys, header, body, secrets.token_bytes(8))
            self.route = route
            self.handshakes += 1
            self.raw(frame)
            return None
        return self.session.open(header, body)

    def say(self, message: object, number: int = 0) -> None:
        assert self.session is not None
        self.raw(self.session.seal(Envelope(number, message)))

    def raw(self, frame: tuple[bytes, bytes]) -> None:
        self.socket.send_multipart([self.route, *frame])

    def close(self) -> None:
        self.socket.close()
        self.context.term()


@attrs.define
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(f"ipc://{tmp_path}/broker.sock")
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def session(broker: Broker, clock: Clock) -> Iterator[BrokerSession]:
    made = BrokerSession(identity(broker), heartbeat=HEARTBEAT, monotonic=clock)
    yield made
    made.close()


def identity(broker: Broker, *more: str) -> Identity:
    return Identity(
        kind="node",
        name="n1",
        private_key=KeyPair.generate().private,
        addresses=(*more, broker.endpoint),
        broker_key=broker.keys.public,
    )


def until(condition: Callable[[], object], session: BrokerSession, broker: Broker | None) -> list[object]:
    """Let both sides go on until `condition` holds; return what happened on the agent's side."""
    happened: list[object] = []
    for _ in range(200):
        happened += session.receive()
        if condition():
            return happened
        session.wait((), (), 0.02)
        if broker is not None:
            said = broker.serve()
            if said is not None:
                happened.append(("said", said))
    pytest.fail(f"it never happened; {happened}")


def up(session: BrokerSession, broker: Broker) -> None:
    """Begin a session that the broker has confirmed."""
    happened = until(lambda: session.connected, session, broker)
    assert happened[-1] == Up(broker.endpoint)
    session.send(Ping())
    until(lambda: broker.session is not None and broker.session.confirmed, session, broker)


def test_a_session_begins_and_carries_messages_both_ways(session: BrokerSession, broker: Broker) -> None:
    assert not session.send(Ping())
    up(session, broker)
    broker.say(Update(1, 1, 2, NodeDelta()), 3)
    happened: list[object] = []
    while not happened:
        session.wait((), (), 1.0)
        happened = list(session.receive())
    assert happened == [Envelope(3, Update(1, 1, 2, NodeDelta()))]


def test_heartbeats_both_ways(session: BrokerSession, broker: Broker, clock: Clock) -> None:
    up(session, broker)
    broker.say(Ping())
    said: list[object] = []
    answer = None
    for _ in range(50):
        session.wait((), (), 0.02)
        said += session.receive()
        answer = broker.serve()
        if answer is not None:
            break
    assert answer == Envelope(0, Pong())
    assert said == []
    clock.now = session.deadline()
    assert session.receive() == []
    assert broker.serve() == Envelope(0, Ping())
    # Asked once in an interval.
    assert session.receive() == []
    assert broker.serve() is None


def test_a_silent_broker_is_left_and_another_session_begun(
    session: BrokerSession, broker: Broker, clock: Clock
) -> None:
    up(session, broker)
    clock.now += 3 * HEARTBEAT + 1
    (down,) = session.receive()
    assert isinstance(down, Down)
    assert "silent" in down.reason
    assert not session.connected
    assert clock.now < session.deadline() <= clock.now + FIRST_PAUSE
    clock.now = session.deadline()
    broker.session = None
    until(lambda: session.connected, session, broker)
    assert broker.handshakes == 2


def test_a_restart_frame_ends_the_session(session: BrokerSession, broker: Broker, clock: Clock) -> None:
    up(session, broker)
    assert broker.session is not None
    broker.raw(restart_frame(broker.session.id))
    happened = until(lambda: not session.connected, session, None)
    assert [type(event) for event in happened] == [Down]
    clock.now = session.deadline()
    broker.session = None
    until(lambda: session.connected, session, broker)


@pytest.mark.parametrize("change", ["body", "header", "replay", "parts"])
def test_a_frame_that_does_not_open_ends_the_session(
    session: BrokerSession, broker: Broker, change: str
) -> None:
    up(session, broker)
    assert broker.session is not None
    header, body = broker.session.seal(Envelope(0, Ping()))
    if change == "body":
        body = bytes([body[0] ^ 1]) + body[1:]
    elif change == "header":
        header = header[:2] + bytes([header[2] ^ 1]) + header[3:]
    if change == "parts":
        broker.socket.send_multipart([broker.route, header, body, b""])
    else:
        broker.raw((header, body))
        if change == "replay":
            broker.raw((header, body))
    happened = until(lambda: not session.connected, session, None)
    assert [type(event) for event in happened] == [Down]


def test_a_broker_that_goes_away_is_noticed_at_once(session: BrokerSession, broker: Broker) -> None:
    up(session, broker)
    broker.socket.close()
    happened = until(lambda: not session.connected, session, None)
    assert "closed" in happened[-1].reason  # type: ignore[attr-defined]


def test_pauses_grow_while_there_is_no_broker(broker: Broker, clock: Clock, tmp_path: Path) -> None:
    nobody = f"ipc://{tmp_path}/nobody.sock"
    session = BrokerSession(attrs.evolve(identity(broker), addresses=(nobody,)), monotonic=clock)
    pauses = []
    for _ in range(12):
        clock.now = session.deadline()
        session.receive()
        clock.now += HANDSHAKE_SECONDS
        session.receive()
        pauses.append(session.deadline() - clock.now)
    session.close()
    assert 0.5 * FIRST_PAUSE <= pauses[0] <= FIRST_PAUSE
    assert all(0.5 * LAST_PAUSE <= pause <= LAST_PAUSE for pause in pauses[-3:])


def test_the_addresses_are_tried_in_turn(broker: Broker, clock: Clock, tmp_path: Path) -> None:
    session = BrokerSession(identity(broker, f"ipc://{tmp_path}/nobody.sock"), monotonic=clock)
    session.receive()
    clock.now += HANDSHAKE_SECONDS
    session.receive()
    clock.now = session.deadline()
    until(lambda: session.connected, session, broker)
    session.close()


def test_another_broker_at_the_address_is_not_spoken_to(broker: Broker, clock: Clock) -> None:
    wrong = attrs.evolve(identity(broker), broker_key=KeyPair.generate().public)
    session = BrokerSession(wrong, monotonic=clock)
    session.receive()
    assert broker.socket.poll(2000)
    route, header, body = broker.socket.recv_multipart()
    # It cannot even read the first message; say what it likes, no session comes of it.
    broker.socket.send_multipart([route, header, body])
    until(lambda: session.deadline() != clock.now + HANDSHAKE_SECONDS, session, None)
    assert not session.connected
    session.close()


@pytest.fixture
def by_tcp(clock: Clock) -> Iterator[tuple[BrokerSession, Broker]]:
    broker = Broker("tcp://127.0.0.1:*")
    session = BrokerSession(identity(broker), heartbeat=HEARTBEAT, monotonic=clock)
    up(session, broker)
    yield session, broker
    session.close()
    broker.close()


def test_a_session_from_an_address_that_is_gone_is_made_anew_at_once(
    by_tcp: tuple[BrokerSession, Broker], clock: Clock
) -> None:
    session, broker = by_tcp
    assert session._local is not None
    family, address = session._local
    assert address[0] == "127.0.0.1"
    session.check_address()
    assert session.connected  # the control: the address is there
    session._local = family, ("192.0.2.77", address[1])
    session.check_address()
    assert not session.connected
    assert [type(one) for one in session.receive()] == [Down]
    clock.now += FIRST_PAUSE
    up(session, broker)
    assert broker.handshakes == 2


def test_a_session_that_has_no_address_of_the_hosts_is_kept(session: BrokerSession, broker: Broker) -> None:
    up(session, broker)
    session.check_address()
    assert session.connected


def test_a_try_is_not_put_off_for_long_once_addresses_changed(clock: Clock, tmp_path: Path) -> None:
    nobody = Broker(f"ipc://{tmp_path}/broker.sock")
    session = BrokerSession(identity(nobody), monotonic=clock)
    nobody.close()
    for _ in range(12):
        session.receive()
        session.wait((), (), 0.02)
        session.receive()
        clock.now = max(clock.now, session.deadline())
    assert session.deadline() - clock.now <= 0
    session.receive()
    session.wait((), (), 0.1)
    session.receive()
    before = session.deadline()
    assert before > clock.now + ANEW  # the control: it would be long
    session.check_address()
    assert clock.now < session.deadline() <= clock.now + ANEW
    session.close()


def test_a_handshake_that_is_not_answered_is_given_up_sooner_once_addresses_changed(
    session: BrokerSession, broker: Broker, clock: Clock
) -> None:
    session.receive()
    assert session.deadline() == clock.now + HANDSHAKE_SECONDS
    session.check_address()
    assert session.deadline() == clock.now + ANEW
    clock.now += ANEW
    session.receive()
    clock.now += LAST_PAUSE
    up(session, broker)


def test_a_postponed_session_stays_so_when_addresses_change(
    session: BrokerSession, broker: Broker, clock: Clock
) -> None:
    up(session, broker)
    session.postpone("not yet")
    at = session.deadline()
    assert at >= clock.now + LAST_PAUSE / 2
    session.check_address()
    assert session.deadline() == at


def test_a_postponed_session_comes_back_late(session: BrokerSession, broker: Broker, clock: Clock) -> None:
    up(session, broker)
    session.postpone("not known")
    assert session.receive() == [Down("not known")]
    assert session.deadline() >= clock.now + 0.5 * LAST_PAUSE


# --- joining and leaving ----------------------------------------------------------------------------


def answering(broker: Broker, *answers: object) -> Callable[[], object]:
    """Answer requests from a thread, as long as there are answers; return what joins it."""
    asked: list[object] = []

    def work() -> None:
        for answer in answers:
            for _ in range(500):
                envelope = broker.serve()
                if envelope is not None:
                    asked.append(envelope.message)
                    broker.say(answer, envelope.id)
                    break

    thread = threading.Thread(target=work)
    thread.start()

    def joined() -> object:
        thread.join(20)
        return asked

    return joined


def invite(broker: Broker) -> Invite:
    return Invite("node", None, (broker.endpoint,), broker.keys.public, "token", 2e9)


def test_enrolling(broker: Broker) -> None:
    joined = answering(broker, Enrolled("node", "n7", "10.7.0.0/16", "10.0.0.0/8"))
    facts = node_facts(FULL_FACTS)
    made = membership.enrol(invite(broker), "n7", facts)
    assert joined() == [Enrol("token", "n7", facts)]
    assert (made.kind, made.name, made.block, made.supernet) == ("node", "n7", "10.7.0.0/16", "10.0.0.0/8")
    assert made.addresses == (broker.endpoint,)


def test_enrolling_refused(broker: Broker) -> None:
    joined = answering(broker, Failure("refused", "the block overlaps", "free it"))
    with pytest.raises(RefusedError, match="the block overlaps"):
        membership.enrol(invite(broker), "n7", node_facts(FULL_FACTS))
    joined()


def test_leaving(broker: Broker) -> None:
    joined = answering(broker, Done(3))
    assert membership.tell_leaving(identity(broker), force=True)
    assert joined() == [Leave(force=True)]


def test_leaving_a_broker_that_does_not_know_us(broker: Broker) -> None:
    joined = answering(broker, Failure("unauthorised", "this key is no node's here"))
    assert not membership.tell_leaving(identity(broker), force=False)
    joined()


def test_leaving_without_a_broker(broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "PATIENCE", 0.3)
    alone = attrs.evolve(identity(broker), addresses=(f"ipc://{tmp_path}/nobody.sock",))
    with pytest.raises(UnavailableError):
        membership.tell_leaving(alone, force=False)
