"""The broker as a process: what it becomes, what it keeps, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import stat
from pathlib import Path

import attrs
import pytest

from netctl.broker import service
from netctl.client import Client
from netctl.enrolment import enrol
from netctl.errors import RefusedError, UnavailableError
from netctl.model import Workload
from netctl.wire import invite
from netctl.wire.messages import (
    BrokerStatus,
    Connect,
    ConnectionList,
    CreateInvite,
    Done,
    GetStatus,
    InviteCreated,
    ListConnections,
    RunContainer,
)
from tests.support.broker_process import BrokerProcess, SocketNode, until


def status(client: Client) -> BrokerStatus:
    answer = client.request(GetStatus())
    assert isinstance(answer, BrokerStatus)
    return answer


def test_what_was_answered_is_there_after_a_crash(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "b") as broker, Client(enrol(broker.invite)) as client:
        created = client.request(CreateInvite("node"))
        assert isinstance(created, InviteCreated)
        node = SocketNode(created.invite, 1)
        assert node.welcomed.wait(15)
        workload = Workload("process", ("sleep", "inf"))
        for name in ("web", "db"):
            client.request(RunContainer(name, workload))
        done = client.request(Connect("web", "db", key="once"))
        assert isinstance(done, Done)
        node.stop()
        broker.kill()
        broker.start()
        listed = client.request(ListConnections())
        assert isinstance(listed, ConnectionList)
        (connection,) = listed.connections
        assert {connection.source, connection.destination} == {"web", "db"}
        assert connection.revision == done.revision
        assert status(client).revision == done.revision
        with pytest.raises(UnavailableError, match="in time"):
            # The same answer waits for the same node, of which nothing has been heard since.
            client.request(Connect("web", "db", timeout=60, key="once"), timeout=0.3)
        assert status(client).revision == done.revision


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_when_asked(tmp_path: Path, number: signal.Signals) -> None:
    broker = BrokerProcess(tmp_path / "b")
    broker.start()
    os.kill(broker.pid, number)
    assert broker.stop() == 0
    assert {path.name for path in broker.directory.iterdir()} == {
        "broker.toml", "broker.key", "broker.sqlite", "broker.lock",
    }  # fmt: skip


def test_two_brokers_do_not_share_a_directory_or_an_endpoint(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "b") as broker:
        with pytest.raises(RefusedError, match="runs on"):
            service.run(broker.directory)
        other = tmp_path / "c"
        service.init(other, listen=(broker.tcp,))
        with pytest.raises(RefusedError, match="cannot be bound"):
            service.run(other)
        with pytest.raises(RefusedError, match="listens at"):
            service.run(other, listen=(broker.ipc,))
        with Client(enrol(broker.invite)) as client:
            assert status(client).revision == 2


def test_a_socket_left_by_a_crash_is_no_obstacle(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "b") as broker:
        broker.kill()
        assert stat.S_ISSOCK((broker.directory / "socket").stat().st_mode)
        broker.start()
        with Client(enrol(broker.invite)) as client:
            assert status(client).sessions == 1


def test_settings_that_the_operator_changed_reach_the_record(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "b") as broker, Client(enrol(broker.invite)) as client:
        before = status(client).revision
        broker.stop()
        path = broker.directory / "broker.toml"
        path.write_text(re.sub(r"advertise = \[", r'advertise = ["tcp://192.0.2.9:2020", ', path.read_text()))
        broker.start()
        assert status(client).revision == before + 1
        broker.stop()
        broker.start()
        assert status(client).revision == before + 1
        created = client.request(CreateInvite("node"))
        assert isinstance(created, InviteCreated)
        node = SocketNode(client_invite(created.invite, broker), 1)
        assert node.welcomed.wait(15)
        assert node.state is not None
        assert "192.0.2.9/32" in node.state.closed
        node.stop()


def client_invite(text: str, broker: BrokerProcess) -> str:
    """Return an invite that names the loopback endpoint only."""
    return invite.format(attrs.evolve(invite.parse(text), addresses=(broker.tcp,)))


def test_a_broker_whose_store_was_taken_over_steps_down(tmp_path: Path) -> None:
    with BrokerProcess(tmp_path / "b") as broker, Client(enrol(broker.invite)) as client:
        status(client)
        with sqlite3.connect(broker.directory / "broker.sqlite") as other:
            other.execute("UPDATE meta SET epoch = epoch + 1")
        other.close()
        with pytest.raises(UnavailableError, match="taken over"):
            client.request(CreateInvite("node"))
        assert broker.stop() != 0
        assert "taken over" in broker.log


@pytest.mark.root
def test_started_as_root_it_becomes_another_user_without_capabilities(tmp_path: Path) -> None:
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    with BrokerProcess(tmp_path / "b", user="nobody") as broker, Client(enrol(broker.invite)) as client:
        assert status(client).revision == 2
        lines = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{broker.pid}/status").read_text().splitlines()
        )
        assert set(lines["Uid"].split()) != {"0"}
        assert "0" not in lines["Uid"].split()
        assert lines["Groups"].strip() == ""
        for name in ("CapPrm", "CapEff", "CapAmb"):
            assert int(lines[name], 16) == 0
        assert broker.directory.stat().st_uid == int(lines["Uid"].split()[0])
        assert broker.stop() == 0
        broker.start()
        until(lambda: status(client).sessions >= 1, "the broker to answer")
