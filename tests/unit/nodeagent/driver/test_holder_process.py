"""The holder as a real process: it always answers, whatever the agent or a client does."""

from __future__ import annotations

import contextlib
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.driver.holder import MAX_CLIENTS, SILENT
from nodeagent.driver.http import MAX_BODY
from tests.support.plugin_holder import DEADLINE, HolderProcess, PluginClient

JOIN = {"NetworkID": "a" * 64, "EndpointID": "b" * 64}
AWAY = "netctl: the node agent is not running; see: systemctl status netctl-node"
HUNG = "netctl: the node agent does not answer; see: systemctl status netctl-node"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[HolderProcess]:
    with HolderProcess(tmp_path) as process:
        yield process


def refused(answer: Any) -> str:
    """Return why; network drivers read one member, IPAM drivers the other."""
    assert answer["Err"] == answer["Error"]
    return str(answer["Err"])


def test_it_says_by_itself_what_the_plugin_is(holder: HolderProcess) -> None:
    client = holder.client()
    assert client.call("Plugin.Activate") == {"Implements": ["NetworkDriver", "IpamDriver"]}
    assert client.call("NetworkDriver.GetCapabilities") == {"Scope": "local", "ConnectivityScope": "local"}
    assert client.call("IpamDriver.GetCapabilities")["RequiresMACAddress"] is False
    spaces = client.call("IpamDriver.GetDefaultAddressSpaces")
    assert spaces["LocalDefaultAddressSpace"] == "netctl-local"
    assert client.call("NetworkDriver.DiscoverNew", {"DiscoveryType": 1}) == {}
    ports = "com.docker.network.portmap"
    assert client.call("NetworkDriver.ProgramExternalConnectivity", {"Options": {ports: []}}) == {}
    for asked in ({"Options": {ports: [{"Port": 80}]}}, {"Options": {}}, {"Options": []}, [], {}):
        answer = client.call("NetworkDriver.ProgramExternalConnectivity", asked)
        assert refused(answer), "there is no agent to publish it"
    assert client.call("NetworkDriver.EndpointOperInfo", {"EndpointID": "ab" * 32}) == {"Value": {}}
    assert client.call("NetworkDriver.DiscoverDelete", {"DiscoveryType": 1}) == {}


def test_without_an_agent_every_other_call_is_refused_at_once(holder: HolderProcess) -> None:
    client = holder.client()
    began = time.monotonic()
    for _ in range(20):
        assert refused(client.call("NetworkDriver.Join", JOIN)) == AWAY
    assert time.monotonic() - began < SILENT


def test_calls_go_to_the_agent_whole_and_its_answers_come_back_as_they_are(holder: HolderProcess) -> None:
    client = holder.client()
    with holder.connected_agent() as agent:
        client.ask("NetworkDriver.Join", JOIN)
        number, path, body = agent.next_call()
        assert path == "/NetworkDriver.Join"
        assert b'"EndpointID": "' + b"b" * 64 in body
        agent.answer(number, {"Gateway": "10.1.0.1"})
        assert client.answer() == {"Gateway": "10.1.0.1"}


def test_answers_find_their_calls_in_whatever_order_they_come(holder: HolderProcess) -> None:
    clients = [holder.client() for _ in range(8)]
    with holder.connected_agent() as agent:
        for index, client in enumerate(clients):
            client.ask("NetworkDriver.Leave", {"n": index})
        calls = [agent.next_call() for _ in clients]
        for number, _, body in reversed(calls):
            agent.answer(number, {"echo": body.decode()})
        for index, client in enumerate(clients):
            assert client.answer() == {"echo": f'{{"n": {index}}}'}


def test_a_silent_agent_counts_as_hung_and_costs_its_time_only_once(holder: HolderProcess) -> None:
    client = holder.client()
    with holder.connected_agent() as agent:
        began = time.monotonic()
        assert refused(client.call("NetworkDriver.Leave", JOIN)) == HUNG
        first = time.monotonic() - began
        assert SILENT <= first < SILENT + 1
        began = time.monotonic()
        for _ in range(20):
            assert refused(client.call("NetworkDriver.DeleteEndpoint", JOIN)) == HUNG
        assert time.monotonic() - began < SILENT
        # What was refused is not passed on later: one call came, and pings, which bring it back.
        assert agent.next_call(pong=False)[1] == "/NetworkDriver.Leave"
        agent.pong_until(lambda: "the agent answers again" in holder.events())
        client.ask("NetworkDriver.Leave", JOIN)
        number, path, _ = agent.next_call()
        assert path == "/NetworkDriver.Leave"
        agent.answer(number, {})
        assert client.answer() == {}


def test_an_answer_that_comes_after_the_refusal_is_dropped(holder: HolderProcess) -> None:
    client = holder.client()
    with holder.connected_agent() as agent:
        client.ask("NetworkDriver.Leave", {"n": 1})
        late, _, _ = agent.next_call(pong=False)
        assert refused(client.answer()) == HUNG
        agent.answer(late, {"late": True})
        agent.pong_until(lambda: "the agent answers again" in holder.events())
        client.ask("NetworkDriver.Leave", {"n": 2})
        number, _, _ = agent.next_call()
        agent.answer(number, {"n": 2})
        assert client.answer() == {"n": 2}


def test_an_agent_that_is_alive_may_take_longer_than_a_silent_one(holder: HolderProcess) -> None:
    client = holder.client()
    with holder.connected_agent() as agent:
        began = time.monotonic()
        client.ask("IpamDriver.RequestAddress", {})
        number, _, _ = agent.next_call()
        agent.pong_until(lambda: time.monotonic() - began > 2 * SILENT)
        assert not client.answered()
        agent.answer(number, {"Address": "10.1.0.2/16"})
        assert client.answer() == {"Address": "10.1.0.2/16"}


def test_an_agent_that_dies_in_a_call_refuses_it_at_once(holder: HolderProcess) -> None:
    client = holder.client()
    with holder.connected_agent() as agent:
        client.ask("NetworkDriver.Join", JOIN)
        agent.next_call()
        began = time.monotonic()
        agent.close()
        assert refused(client.answer()) == AWAY
        assert time.monotonic() - began < SILENT


def test_a_newer_agent_replaces_the_older(holder: HolderProcess) -> None:
    client = holder.client()
    with holder.connected_agent() as older:
        client.ask("NetworkDriver.Join", JOIN)
        older.next_call()
        with holder.connected_agent() as newer:
            assert "started again" in refused(client.answer())
            client.ask("NetworkDriver.Leave", JOIN)
            number, path, _ = newer.next_call()
            assert path == "/NetworkDriver.Leave"
            newer.answer(number, {})
            assert client.answer() == {}
            with pytest.raises(ConnectionError):
                older.next_call()


@pytest.mark.parametrize(
    "packet",
    [b"", b"\n", b"no json\n", b"[]\n", b'{"id":{}}\n', b'{"id":1e999}\n', b"[" * 4096 + b"\n", b"\0" * 9000],
)
def test_an_agent_that_talks_nonsense_harms_nobody(holder: HolderProcess, packet: bytes) -> None:
    client = holder.client()
    with holder.connected_agent() as agent:
        agent.sock.send(packet)
        with holder.connected_agent() as another:
            client.ask("NetworkDriver.Leave", JOIN)
            number, _, _ = another.next_call()
            another.answer(number, {})
            assert client.answer() == {}


GARBAGE = [
    b"\0" * 100_000,
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST / HTTP/9.9\r\n\r\n",
    b"POST /NetworkDriver.Join HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /NetworkDriver.Join HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /\xff\xfe HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
]


def test_whatever_clients_send_the_holder_goes_on(holder: HolderProcess) -> None:
    for garbage in GARBAGE:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(str(holder.plugin))
            sock.sendall(garbage)
            sock.shutdown(socket.SHUT_WR)
            # What it did not read it answers with a reset.
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(65536):
                    pass
    assert holder.process is not None
    assert holder.process.poll() is None
    assert holder.client().call("Plugin.Activate")["Implements"]


def test_a_call_that_is_too_long_is_refused_and_not_tried_again(holder: HolderProcess) -> None:
    with holder.connected_agent() as agent:
        client = holder.client()
        client.request("POST", "/NetworkDriver.Join", b" " * (MAX_BODY + 1))
        response = client.getresponse()
        assert response.status == 413
        assert b"too long" in response.read()
        longest = holder.client()
        longest.request("POST", "/NetworkDriver.Join", b" " * MAX_BODY)
        number, _, body = agent.next_call()
        assert len(body) == MAX_BODY
        agent.answer(number, {})
        assert longest.answer() == {}


def test_a_chunked_call_is_read_as_well(holder: HolderProcess) -> None:
    client = holder.client()
    with holder.connected_agent() as agent:
        client.request("POST", "/NetworkDriver.Leave", iter([b'{"a"', b": 1}"]), encode_chunked=True)
        number, _, body = agent.next_call()
        assert body == b'{"a": 1}'
        agent.answer(number, {})
        assert client.answer() == {}


def test_connections_are_bounded_and_idle_ones_make_place(holder: HolderProcess) -> None:
    idle = []
    for _ in range(MAX_CLIENTS + 50):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(holder.plugin))
        idle.append(sock)
    client = holder.client()
    assert client.call("Plugin.Activate")["Implements"]
    assert holder.process is not None
    assert len(list(Path(f"/proc/{holder.process.pid}/fd").iterdir())) < MAX_CLIENTS + 20
    for sock in idle:
        sock.close()


def test_a_client_that_goes_leaves_no_call_behind(holder: HolderProcess) -> None:
    with holder.connected_agent() as agent:
        client = holder.client()
        client.ask("NetworkDriver.Join", JOIN)
        number, _, _ = agent.next_call()
        client.close()
        agent.answer(number, {})
        other = holder.client()
        other.ask("NetworkDriver.Leave", JOIN)
        number, _, _ = agent.next_call()
        agent.answer(number, {"mine": True})
        assert other.answer() == {"mine": True}


def test_only_its_own_user_may_talk_to_it(holder: HolderProcess) -> None:
    for path in (holder.plugin, holder.agent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_stale_socket_is_replaced_and_a_clean_end_leaves_none(holder: HolderProcess) -> None:
    holder.kill()
    assert holder.plugin.exists()
    with pytest.raises(ConnectionRefusedError):
        holder.client().call("Plugin.Activate")
    holder.start()
    assert holder.client().call("Plugin.Activate")["Implements"]
    assert holder.end() == 0
    assert not holder.plugin.exists()
    assert not holder.agent.exists()
    assert list(holder.plugin.parent.iterdir()) == []


def test_one_that_ends_late_does_not_take_the_place_of_the_next(tmp_path: Path) -> None:
    with HolderProcess(tmp_path) as older, HolderProcess(tmp_path):
        assert older.end() == 0
        assert PluginClient(older.plugin).call("Plugin.Activate")["Implements"]


def test_it_is_small(holder: HolderProcess) -> None:
    holder.client().call("Plugin.Activate")
    assert holder.process is not None
    status = Path(f"/proc/{holder.process.pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident < 32 * 1024
    assert "Threads:\t1\n" in status
