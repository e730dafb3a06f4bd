"""The client, against a real broker on loopback."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import zmq

from netctl.client import Client
from netctl.enrolment import enrol
from netctl.errors import (
    InvalidError,
    NotFoundError,
    PendingError,
    UnauthorisedError,
    UnavailableError,
)
from netctl.model import Port, Workload
from netctl.wire import invite
from netctl.wire.identity import Identity, KeyPair
from netctl.wire.messages import (
    BrokerStatus,
    Connect,
    ConnectionList,
    ContainerList,
    CreateInvite,
    Done,
    GetStatus,
    InviteCreated,
    ListConnections,
    ListContainers,
    ListNodes,
    NodeList,
    OpenExec,
    OpenLogs,
    Progress,
    RunContainer,
    StreamData,
    StreamEnd,
)
from netctl.wire.session import ClientHandshake
from tests.support.broker_process import BrokerProcess, SocketNode, free_port, until

WORKLOAD = Workload("process", ("sleep", "inf"))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with BrokerProcess(tmp_path_factory.mktemp("c") / "b") as broker:
        yield broker


@pytest.fixture(scope="module")
def identity(broker: BrokerProcess) -> Identity:
    return enrol(broker.invite)


@pytest.fixture(scope="module")
def nodes(broker: BrokerProcess, identity: Identity) -> Iterator[list[SocketNode]]:
    assert broker.pid
    made = []
    with Client(identity) as client:
        for number in (1, 2):
            created = client.request(CreateInvite("node"))
            assert isinstance(created, InviteCreated)
            made.append(SocketNode(created.invite, number))
            assert made[-1].welcomed.wait(15)
        for number, name in enumerate(("web", "db"), 1):
            assert isinstance(client.request(RunContainer(name, WORKLOAD, f"n{number}")), Done)
    yield made
    for node in made:
        node.stop()


@pytest.fixture
def client(identity: Identity) -> Iterator[Client]:
    with Client(identity) as client:
        yield client


def test_enrolling_makes_the_key_here_and_uses_the_invite_up(
    broker: BrokerProcess, identity: Identity
) -> None:
    made = invite.parse(broker.invite)
    assert (identity.kind, identity.name, identity.broker_key) == ("user", "admin", made.broker_key)
    with pytest.raises(UnauthorisedError, match="used up"):
        enrol(broker.invite)


def test_an_invite_without_a_name_wants_one(client: Client) -> None:
    created = client.request(CreateInvite("user"))
    assert isinstance(created, InviteCreated)
    with pytest.raises(InvalidError, match="no name"):
        enrol(created.invite)
    bob = enrol(created.invite, "bob")
    with Client(bob) as other:
        status = other.request(GetStatus())
    assert isinstance(status, BrokerStatus)
    assert status.account == "bob"


def test_a_damaged_invite_is_told_from_a_refused_one(broker: BrokerProcess) -> None:
    with pytest.raises(InvalidError, match="incomplete"):
        enrol(broker.invite[:-5])


def test_an_error_is_rebuilt_with_its_remedy(client: Client, nodes: list[SocketNode]) -> None:
    assert nodes
    with pytest.raises(NotFoundError) as caught:
        client.request(Connect("webb", "db"))
    assert caught.value.message == "no container is called 'webb'"
    assert "did you mean web" in caught.value.remedy


def test_what_no_broker_reads_is_refused_at_once_and_costs_no_session(client: Client) -> None:
    before = client.request(GetStatus())
    assert isinstance(before, BrokerStatus)
    for long in (
        attrs.evolve(WORKLOAD, env=(("A", "a" * 4097),)),
        attrs.evolve(WORKLOAD, argv=("a" * 4000,) * 80),
    ):
        with pytest.raises(InvalidError):
            client.request(RunContainer("long", long))
    after = client.request(GetStatus())
    assert isinstance(after, BrokerStatus)
    assert (after.sessions, after.containers) == (before.sessions, before.containers)


def test_connect_returns_when_both_nodes_have_applied_it(client: Client, nodes: list[SocketNode]) -> None:
    done = client.request(Connect("web", "db", (Port("tcp", 5432),)))
    assert isinstance(done, Done)
    assert [node.applied for node in nodes] == [done.revision] * 2


def test_pending_names_the_nodes_and_the_revision(client: Client, nodes: list[SocketNode]) -> None:
    nodes[1].holding = True
    try:
        with pytest.raises(PendingError) as caught:
            client.request(Connect("web", "db", (Port("udp", 53),), timeout=0.2))
    finally:
        nodes[1].holding = False
    assert caught.value.nodes == ("n2",)
    assert caught.value.exit_status == 3
    assert caught.value.revision == nodes[0].applied
    connections = client.request(ListConnections())
    assert isinstance(connections, ConnectionList)
    assert "53/udp" in [c.port for c in connections.connections if c.state == "pending"]


def test_progress_is_told_before_the_answer(client: Client, nodes: list[SocketNode]) -> None:
    told: list[Progress] = []
    nodes[0].progress = ("pulling 5 %", "pulling 95 %")
    try:
        done = client.request(RunContainer("slow", WORKLOAD, "n1"), progress=told.append)
        # Whoever does not ask to be told is not, and finds nothing of it later.
        assert isinstance(client.request(RunContainer("slow-too", WORKLOAD, "n1")), Done)
    finally:
        nodes[0].progress = ()
    assert isinstance(done, Done)
    assert told == [Progress("slow", "pulling 5 %"), Progress("slow", "pulling 95 %")]
    assert client.receive(0.1) is None


def test_several_requests_may_be_under_way(client: Client) -> None:
    client.connect()
    numbers = [client.send(message) for message in (ListNodes(), ListContainers(), GetStatus())]
    answers = {}
    while len(answers) < 3:
        envelope = client.receive(10)
        assert envelope is not None
        answers[envelope.id] = type(envelope.message)
    assert answers == dict(zip(numbers, (NodeList, ContainerList, BrokerStatus), strict=True))


def test_the_descriptor_tells_of_what_comes(client: Client) -> None:
    client.connect()
    while client.receive(0) is not None:
        pass
    client.send(GetStatus())
    envelope = client.receive(0)
    while envelope is None:
        assert select.select([client.fileno()], [], [], 10)[0]
        envelope = client.receive(0)
    assert isinstance(envelope.message, BrokerStatus)


def test_bytes_of_a_command_go_both_ways_with_credit(client: Client, nodes: list[SocketNode]) -> None:
    assert nodes
    data = os.urandom(700_000)
    stream = client.open(OpenExec("web", ("echo", "me")))
    output: dict[int, bytes] = {1: b"", 2: b""}
    sent = 0
    while True:
        if sent < len(data):
            sent += stream.send(data[sent:])
            if sent == len(data):
                stream.close_input()
        piece = stream.receive(10)
        if isinstance(piece, StreamEnd):
            break
        if isinstance(piece, StreamData):
            output[piece.channel] += piece.data
    assert output == {1: b"echo me", 2: data}
    assert piece.exit_code == 42
    assert stream.receive(0) is piece
    assert isinstance(client.request(GetStatus()), BrokerStatus)


def test_closing_a_stream_tells_the_node(client: Client, nodes: list[SocketNode]) -> None:
    before = len(nodes[0].ended)
    stream = client.open(OpenExec("web", ("x",)))
    stream.close()
    until(lambda: len(nodes[0].ended) > before, "the node to hear of the end")


def test_closing_a_client_ends_its_streams(identity: Identity, nodes: list[SocketNode]) -> None:
    before = len(nodes[1].ended)
    with Client(identity) as client:
        client.open(OpenLogs("db", follow=True))
        stream = client.open(OpenExec("db", ("x",)))
    assert isinstance(stream.ended, StreamEnd)
    until(lambda: len(nodes[1].ended) >= before + 2, "the node to hear of the end", 4)


def test_a_client_that_is_killed_ends_its_streams(identity: Identity, nodes: list[SocketNode]) -> None:
    before = len(nodes[1].ended)
    pid = os.fork()
    if pid == 0:
        with Client(identity) as client:
            client.open(OpenExec("db", ("x",)))
            os._exit(0)
    os.waitpid(pid, 0)
    # The broker finds out by its next heartbeat.
    until(lambda: len(nodes[1].ended) > before, "the node to hear of the end", 20)


def test_a_caller_that_was_away_finds_its_session(identity: Identity) -> None:
    pause = threading.Event()
    with Client(identity, interval=0.1) as client:
        assert isinstance(client.request(GetStatus()), BrokerStatus)
        first = client.fileno()
        pause.wait(0.5)
        assert client.receive(0) is None
        pause.wait(0.5)
        assert isinstance(client.request(GetStatus()), BrokerStatus)
        assert client.fileno() == first


def test_a_silent_broker_is_noticed_while_waiting(tmp_path: Path) -> None:
    with (
        BrokerProcess(tmp_path / "b") as broker,
        Client(enrol(broker.invite), interval=0.1) as client,
    ):
        client.connect()
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            with pytest.raises(UnavailableError, match="silent"):
                client.receive(10)
        finally:
            os.kill(broker.pid, signal.SIGCONT)


def test_no_broker_is_said_at_once_with_what_to_do(identity: Identity) -> None:
    nowhere = attrs.evolve(
        identity, addresses=("ipc:///nonexistent/socket", f"tcp://127.0.0.1:{free_port()}")
    )
    with Client(nowhere) as client, pytest.raises(UnavailableError) as caught:
        client.request(ListNodes(), timeout=5)
    assert "no such socket here" in caught.value.message
    assert "netctl broker run" in caught.value.remedy


def test_addresses_are_tried_in_their_order(identity: Identity) -> None:
    later = attrs.evolve(identity, addresses=(f"tcp://127.0.0.1:{free_port()}", identity.addresses[1]))
    with Client(later) as client:
        assert isinstance(client.request(GetStatus()), BrokerStatus)


def test_a_port_that_never_answers_is_given_up(identity: Identity) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        mute = attrs.evolve(identity, addresses=(f"tcp://127.0.0.1:{silent.getsockname()[1]}",))
        with Client(mute) as client, pytest.raises(UnavailableError):
            client.connect(0.3)


def test_another_brokers_key_is_not_spoken_to(identity: Identity) -> None:
    other = attrs.evolve(identity, broker_key=KeyPair.generate().public)
    with Client(other) as client, pytest.raises(UnavailableError):
        client.connect(0.3)


def test_an_unknown_key_is_told_so(identity: Identity) -> None:
    stranger = attrs.evolve(identity, private_key=KeyPair.generate().private)
    with Client(stranger) as client, pytest.raises(UnauthorisedError, match="join with an invite"):
        client.request(ListNodes())


def test_requests_survive_the_brokers_restart(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "b") as broker:
        identity = enrol(broker.invite)
        with Client(identity) as client:
            assert isinstance(client.request(GetStatus()), BrokerStatus)
            broker.stop()
            with pytest.raises(UnavailableError):
                client.request(GetStatus(), timeout=1)
            broker.start()
            status = client.request(GetStatus())
            assert isinstance(status, BrokerStatus)
            assert status.account == "admin"
            broker.kill()
            broker.start()
            assert isinstance(client.request(ListNodes()), NodeList)


def test_hostile_frames_disturb_nobody(
    broker: BrokerProcess, client: Client, identity: Identity, nodes: list[SocketNode]
) -> None:
    assert isinstance(client.request(GetStatus()), BrokerStatus)
    first = ClientHandshake(KeyPair.generate(), identity.broker_key, "user").first()
    with zmq.Context() as context, context.socket(zmq.DEALER) as hostile:
        hostile.setsockopt(zmq.LINGER, 0)
        hostile.connect(broker.tcp)
        for parts in (
            [b""], [b"", b""], [b"x" * 100, b""], [b"\x03\x01" + bytes(8), b"x" * 1000],
            [b"\x01\x01node\0\0\0\0", bytes(96)], [b"\0"] * 20, [b"\x04\x01" + bytes(8), b""],
        ):  # fmt: skip
            hostile.send_multipart(parts)
        for _ in range(600):
            hostile.send_multipart((first.header, first.body))
        assert hostile.poll(10_000)
        hostile.send_multipart([b"\x03\x01" + bytes(8), bytes(3 * 2**20)])
        with socket.create_connection(("127.0.0.1", broker.port)) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
            assert isinstance(client.request(Connect("web", "db")), Done)
    assert all(node.is_alive() for node in nodes)
    status = client.request(GetStatus())
    assert isinstance(status, BrokerStatus)
    assert status.nodes == {"ready": 2}


def test_a_routing_id_grants_nothing(broker: BrokerProcess, client: Client) -> None:
    assert isinstance(client.request(GetStatus()), BrokerStatus)
    with zmq.Context() as context:
        squatters = []
        for _ in range(2):
            squatter = context.socket(zmq.DEALER)
            squatter.setsockopt(zmq.LINGER, 0)
            squatter.setsockopt(zmq.ROUTING_ID, b"the same")
            squatter.connect(broker.tcp)
            squatter.send_multipart([b"\x03\x01" + bytes(8), b"x"])
            squatters.append(squatter)
        assert isinstance(client.request(GetStatus()), BrokerStatus)
        for squatter in squatters:
            squatter.close()
