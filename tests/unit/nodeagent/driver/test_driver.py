"""The driver's part of the agent, with a holder, an engine and a broker that the test plays."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netctl.wire.messages import Attach, Detach, Done, Failure, ReserveAddress
from nodeagent.driver.addresses import HELD_SECONDS
from nodeagent.driver.frames import MAX_FRAME, frame, parse_frame
from nodeagent.driver.holder_link import AGAIN
from nodeagent.driver.identity import SETTLE_SECONDS
from nodeagent.driver.reporting import RETRY_SECONDS
from nodeagent.driver.service import LIST_SECONDS, LONGEST_WAIT, REFUSED_SECONDS, UNKNOWN_SECONDS, Driver
from nodeagent.driver.view import DriverView
from nodeagent.helper_messages import DockerAway, DockerChanged, DockerListed
from tests.support.docker_calls import NETWORK, RESERVE, docker_id, network, placed, recorded, seen, view

DEADLINE = 10.0
IDS = {"NetworkID": NETWORK, "EndpointID": docker_id(2)}
KEY = docker_id(2)[:32]
CONTAINER = docker_id(100)[:32]


class Bench:
    """A driver, and the holder's end of its connection."""

    def __init__(self, folder: Path) -> None:
        self.now = 1000.0
        self.folder = folder
        self.files = (folder / "docker-networks.json", folder / "docker-endpoints.json")
        self.exec_root = folder / "exec"
        self.path = folder / "driver.sock"
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.listener.settimeout(DEADLINE)
        self.holder = self.listener
        self.view = view()
        self.number = 0
        self.driver = self.begin()

    def begin(self) -> Driver:
        """Start a driver, and take its connection."""
        driver = Driver(
            *self.files, self.path, self.exec_root, monotonic=lambda: self.now, probe=lambda *_: ""
        )
        driver.receive(self.view)
        self.holder, _ = self.listener.accept()
        self.holder.settimeout(DEADLINE)
        return driver

    def again(self) -> None:
        """Kill the agent, and start the next."""
        self.driver.close()
        self.holder.close()
        self.driver = self.begin()

    def ask(self, name: str, late: float = -0.8, **body: Any) -> int:
        """Have the driver hear a call; return its number."""
        self.number += 1
        line = {"id": self.number, "path": f"/{name}", "until": self.now - late}
        self.holder.send(frame(line, json.dumps(body).encode()))
        self.driver.receive(self.view)
        return self.number

    def answers(self) -> dict[int, Any]:
        """Return what was answered since the last time, by number."""
        found: dict[int, Any] = {}
        while select.select([self.holder], [], [], 0)[0]:
            line, body = parse_frame(self.holder.recv(MAX_FRAME))
            number = line["id"]
            assert isinstance(number, int)
            found[number] = json.loads(body)
        return found

    def call(self, name: str, **body: Any) -> Any:
        number = self.ask(name, **body)
        answers = self.answers()
        assert set(answers) == {number}
        return answers[number]

    def network(self) -> None:
        pools = [{"Gateway": "10.1.0.1/16"}]
        assert self.call("NetworkDriver.CreateNetwork", NetworkID=NETWORK, IPv4Data=pools, Options={}) == {}

    def endpoint(self, number: int = 2) -> str:
        """Have an endpoint made; return its address."""
        address = str(self.call("IpamDriver.RequestAddress", PoolID="p")["Address"])
        ids = IDS | {"EndpointID": docker_id(number)}
        made = self.call("NetworkDriver.CreateEndpoint", **ids, Interface={"Address": address})
        assert "Interface" in made
        return address.partition("/")[0]

    def join(self) -> int:
        return self.ask("NetworkDriver.Join", **IDS, SandboxKey=f"{self.exec_root}/netns/abcdef", Options={})

    def started(self) -> str:
        """Have a container of Docker's user on the overlay; return its address."""
        self.network()
        address = self.endpoint()
        number = self.join()
        self.driver.settle(lambda _: "")
        assert "InterfaceName" in self.answers()[number]
        return address

    def requests(self) -> list[Attach | Detach | ReserveAddress]:
        """Return what the broker is asked; it agrees to everything."""
        messages = []
        for token, message in self.driver.requests():
            self.driver.heard(token, Done(1))
            messages.append(message)
        return messages

    def recorded(self, address: str, origin: Any = "engine") -> DriverView:
        return recorded(placed(CONTAINER, address, origin=origin))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.driver.close()
    made.holder.close()
    made.listener.close()


# --- Docker's calls -----------------------------------------------------------------------------------


def test_a_join_is_answered_once_its_port_stands(bench: Bench) -> None:
    bench.network()
    bench.endpoint()
    number = bench.join()
    assert bench.driver.endpoints.by_key[KEY].sandbox == "abcdef"
    bench.driver.settle(lambda key: None if key == KEY else "")
    assert bench.answers() == {}
    bench.driver.settle(lambda key: "" if key == KEY else None)
    answer = bench.answers()[number]
    assert answer["InterfaceName"] == {"SrcName": f"nce{KEY[:12]}", "DstPrefix": "eth"}
    bench.driver.settle(lambda _: "must not be asked again")
    assert bench.answers() == {}


def test_a_port_that_fails_refuses_the_join_and_leaves_the_namespace(bench: Bench) -> None:
    bench.network()
    bench.endpoint()
    number = bench.join()
    bench.driver.settle(lambda _: "no such bridge")
    assert bench.answers()[number]["Err"] == "netctl: no such bridge"
    assert bench.driver.endpoints.by_key[KEY].sandbox == ""


def test_a_port_that_takes_too_long_refuses_the_join(bench: Bench) -> None:
    bench.network()
    bench.endpoint()
    number = bench.join()
    assert bench.driver.deadline() <= bench.now + LONGEST_WAIT
    bench.now += LONGEST_WAIT - 0.1
    bench.driver.receive(bench.view)
    bench.driver.settle(lambda _: None)
    assert bench.answers() == {}
    bench.now += 0.1
    bench.driver.receive(bench.view)
    assert "in time" in bench.answers()[number]["Err"]
    assert bench.driver.endpoints.by_key[KEY].sandbox == ""


def test_both_kinds_of_drivers_are_told_what_is_refused(bench: Bench) -> None:
    answer = bench.call("IpamDriver.RequestPool", Pool="10.9.0.0/16")
    assert answer["Err"] == answer["Error"]
    assert answer["Err"].startswith("netctl: 10.9.0.0/16 is not this node's block")
    assert "no call" in bench.call("NetworkDriver.Nonsense")["Err"]
    assert "cannot be read" in bench.call("NetworkDriver.Leave", NetworkID=7)["Err"]


def test_a_call_that_was_given_up_is_not_done_any_more(bench: Bench) -> None:
    bench.driver.hear(DockerListed((), (), fresh=True))
    assert not bench.driver.wants_list()
    bench.ask("IpamDriver.RequestAddress", late=0.1, PoolID="p")
    assert bench.answers() == {}
    assert bench.driver.wants_list()
    # The address is still the first.
    assert bench.call("IpamDriver.RequestAddress", PoolID="p")["Address"] == "10.1.0.2/16"


def test_what_the_holder_refused_for_us_is_looked_after_at_once(bench: Bench) -> None:
    bench.driver.hear(DockerListed((), (), fresh=True))
    assert not bench.driver.wants_list()
    for refused in (2, 3):
        bench.holder.send(frame({"ping": 1, "refused": refused}))
        bench.driver.receive(bench.view)
        assert bench.driver.wants_list()
        bench.driver.receive(bench.view)
        assert not bench.driver.wants_list()
        bench.now += REFUSED_SECONDS
    bench.holder.send(frame({"ping": 1, "refused": 3}))
    bench.driver.receive(bench.view)
    assert not bench.driver.wants_list()


def test_pings_are_answered(bench: Bench) -> None:
    bench.holder.send(frame({"ping": 5}))
    bench.driver.receive(bench.view)
    assert parse_frame(bench.holder.recv(MAX_FRAME)) == ({"pong": 5}, b"")


def test_many_calls_are_taken_in_turns_and_none_is_lost(bench: Bench) -> None:
    # With a timeout Python would wait until most of the buffer is free.
    bench.holder.setblocking(False)
    for number in range(100):
        body = json.dumps({"PoolID": "p"}).encode()
        line = {"id": number, "path": "/IpamDriver.ReleasePool", "until": bench.now + 1}
        bench.holder.send(frame(line, body))
    bench.driver.receive(bench.view)
    assert bench.driver.deadline() == 0.0
    bench.driver.receive(bench.view)
    assert set(bench.answers()) == set(range(100))
    assert bench.driver.deadline() > bench.now


def test_a_holder_that_went_is_found_again_and_its_calls_are_forgotten(bench: Bench) -> None:
    bench.network()
    bench.endpoint()
    number = bench.join()
    bench.holder.close()
    bench.driver.receive(bench.view)
    assert bench.driver.readers() == ()
    assert [error.subject for error in bench.driver.errors()] == ["Docker's driver"]
    assert bench.driver.deadline() == bench.now + AGAIN
    bench.now += AGAIN
    bench.driver.receive(bench.view)
    bench.holder, _ = bench.listener.accept()
    assert bench.driver.errors() == ()
    bench.driver.settle(lambda _: "")
    assert number not in bench.answers()
    # Docker asks again; what was done stays done.
    number = bench.join()
    bench.driver.settle(lambda _: "")
    assert "InterfaceName" in bench.answers()[number]


# --- addresses from the broker ------------------------------------------------------------------------


def test_an_address_that_is_not_on_lease_is_asked_of_the_broker(bench: Bench) -> None:
    number = bench.ask("IpamDriver.RequestAddress", PoolID="p", Address="10.1.0.90")
    ((token, message),) = bench.driver.requests()
    assert message == ReserveAddress("10.1.0.90")
    assert bench.driver.requests() == ()
    bench.view = view(reserve=RESERVE | {"10.1.0.90"})
    bench.driver.heard(token, Done(2))
    assert bench.driver.deadline() == 0.0
    bench.driver.receive(bench.view)
    assert bench.answers()[number]["Address"] == "10.1.0.90/16"


def test_an_address_that_the_broker_refuses_is_refused(bench: Bench) -> None:
    number = bench.ask("IpamDriver.RequestAddress", PoolID="p", Address="10.1.0.90")
    ((token, _),) = bench.driver.requests()
    bench.driver.heard(token, Failure("refused", "10.1.0.90 is held", "wait"))
    bench.driver.receive(bench.view)
    assert bench.answers()[number]["Error"] == "netctl: 10.1.0.90 is held; wait"


def test_an_address_is_not_waited_for_when_the_session_ends(bench: Bench) -> None:
    number = bench.ask("IpamDriver.RequestAddress", PoolID="p", Address="10.1.0.90")
    bench.driver.requests()
    bench.driver.broker_gone()
    bench.driver.receive(view(connected=False))
    assert "cannot be asked" in bench.answers()[number]["Error"]


def test_a_lease_that_is_used_up_is_waited_for_but_not_for_ever(bench: Bench) -> None:
    bench.view = view(reserve=frozenset())
    number = bench.ask("IpamDriver.RequestAddress", PoolID="p")
    other = bench.ask("IpamDriver.RequestAddress", PoolID="p")
    assert bench.driver.requests() == ()
    assert bench.answers() == {}
    bench.view = view(reserve={"10.1.0.2"})
    bench.driver.receive(bench.view)
    assert bench.answers()[number]["Address"] == "10.1.0.2/16"
    bench.now += LONGEST_WAIT
    bench.driver.receive(bench.view)
    assert "in time" in bench.answers()[other]["Error"]


# --- keeping ------------------------------------------------------------------------------------------


def test_the_next_agent_knows_networks_endpoints_and_addresses(bench: Bench) -> None:
    address = bench.started()
    given = bench.call("IpamDriver.RequestAddress", PoolID="p")["Address"]
    bench.again()
    assert bench.driver.endpoints.by_key[KEY].address == address
    assert bench.driver.endpoints.by_key[KEY].sandbox == "abcdef"
    assert bench.call("IpamDriver.RequestAddress", PoolID="p")["Address"] not in (f"{address}/16", given)
    # Its network leads out, as it did.
    bench.call(
        "NetworkDriver.CreateEndpoint",
        NetworkID=NETWORK,
        EndpointID=docker_id(3),
        Interface={"Address": given},
    )
    assert not bench.driver.endpoints.by_key[docker_id(3)[:32]].internal


def test_an_address_that_nobody_used_is_free_again_however_often_the_agent_is_killed(bench: Bench) -> None:
    bench.view = view(reserve={"10.1.0.2"})
    assert bench.call("IpamDriver.RequestAddress", PoolID="p")["Address"] == "10.1.0.2/16"
    for _ in range(3):
        # Docker was told that the agent is being started again: it never says that it does not want it.
        bench.ask("IpamDriver.RequestAddress", PoolID="p")
        assert bench.answers() == {}
        bench.now += HELD_SECONDS / 3
        bench.again()
    assert bench.call("IpamDriver.RequestAddress", PoolID="p")["Address"] == "10.1.0.2/16"


def test_a_reboot_takes_endpoints_and_leaves_networks(bench: Bench) -> None:
    bench.started()
    bench.files[1].unlink()
    bench.again()
    assert len(bench.driver.endpoints.by_key) == 0
    bench.endpoint()
    assert not bench.driver.endpoints.by_key[KEY].internal


@pytest.mark.parametrize("damage", [b"", b"{", b'{"endpoints": 5}', b'{"internal": {"a": "b"}}', b"\xff"])
def test_damaged_files_are_set_aside(bench: Bench, damage: bytes) -> None:
    bench.started()
    for path in bench.files:
        path.write_bytes(damage)
    bench.again()
    aside = [path.with_name(path.name + ".corrupt") for path in bench.files]
    assert any(path.exists() for path in aside)
    assert len(bench.driver.endpoints.by_key) == 0
    # It goes on, closed where it does not know.
    bench.endpoint()
    assert bench.driver.endpoints.by_key[KEY].internal


def test_what_cannot_be_kept_is_refused_and_not_done(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.network()
    before = bench.driver.endpoints

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("nodeagent.driver.keeping._write", full)
        assert "cannot keep" in bench.call("IpamDriver.RequestAddress", PoolID="p")["Error"]
    assert bench.driver.endpoints is before
    assert bench.call("IpamDriver.RequestAddress", PoolID="p")["Address"] == "10.1.0.2/16"


# --- the engine and the broker ------------------------------------------------------------------------


def test_a_container_is_told_of_with_its_address_once_docker_says_whose_it_is(bench: Bench) -> None:
    address = bench.started()
    assert bench.requests() == []
    bench.driver.hear(DockerChanged(docker_id(100), seen(100, 2)))
    assert bench.driver.endpoints.by_key[KEY].container == CONTAINER
    (message,) = bench.requests()
    assert isinstance(message, Attach)
    assert (message.container.id, message.container.address) == (CONTAINER, address)
    bench.view = bench.recorded(address)
    bench.driver.receive(bench.view)
    assert bench.requests() == []
    (status,) = bench.driver.statuses()
    assert (status.id, status.state) == (CONTAINER, "running")
    assert bench.driver.statuses() is bench.driver.statuses()


def test_one_that_changes_while_the_broker_is_asked_is_told_of_again(bench: Bench) -> None:
    bench.started()
    bench.driver.hear(DockerChanged(docker_id(100), seen(100, 2)))
    ((token, _),) = bench.driver.requests()
    bench.driver.hear(DockerChanged(docker_id(100), seen(100, 2, name="renamed")))
    assert bench.driver.requests() == ()
    bench.driver.heard(token, Done(1))
    (message,) = bench.requests()
    assert isinstance(message, Attach)
    assert message.container.name == "renamed"


def test_a_refusal_is_an_error_of_the_node_and_is_tried_again(bench: Bench) -> None:
    bench.started()
    bench.driver.hear(DockerChanged(docker_id(100), seen(100, 2)))
    ((token, _),) = bench.driver.requests()
    bench.driver.heard(token, Failure("exhausted", "the bridge is full", "use another node"))
    (error,) = bench.driver.errors()
    assert (error.subject, error.message) == ("c100", "the bridge is full")
    assert bench.driver.errors() is bench.driver.errors()
    assert bench.requests() == []
    assert bench.driver.deadline() <= bench.now + RETRY_SECONDS
    bench.now += RETRY_SECONDS
    assert len(bench.requests()) == 1
    assert bench.driver.errors() == ()


def test_one_that_the_broker_lost_is_told_of_again(bench: Bench) -> None:
    address = bench.started()
    bench.driver.hear(DockerChanged(docker_id(100), seen(100, 2)))
    assert len(bench.requests()) == 1
    bench.driver.receive(bench.recorded(address))
    assert bench.requests() == []
    bench.now += RETRY_SECONDS
    bench.driver.receive(view())
    assert len(bench.requests()) == 1


def test_what_is_gone_is_told_of_only_once_everything_is_known(bench: Bench) -> None:
    bench.view = bench.recorded("10.1.0.9")
    bench.driver.receive(bench.view)
    assert bench.driver.containers() is None
    assert bench.requests() == []
    bench.driver.hear(DockerListed((), (), fresh=True))
    assert bench.requests() == [Detach(CONTAINER)]
    bench.driver.receive(view())
    assert bench.requests() == []
    bench.driver.hear(DockerAway("it was stopped"))
    bench.driver.receive(bench.view)
    assert bench.requests() == []


def test_the_brokers_own_containers_are_not_told_of(bench: Bench) -> None:
    address = bench.started()
    ours = "ab" * 16
    bench.view = recorded(placed(ours, address))
    bench.driver.hear(DockerListed((seen(100, 2, ours=ours),), (network(2),), fresh=True))
    bench.driver.receive(bench.view)
    assert bench.driver.endpoints.by_key[KEY].container == ours
    assert bench.requests() == []
    assert bench.driver.containers() == ()
    assert bench.driver.statuses() == ()


def test_hello_says_all_and_after_it_only_changes_are_told(bench: Bench) -> None:
    address = bench.started()
    bench.driver.hear(DockerListed((seen(100, 2), seen(101)), (network(2),), fresh=True))
    bench.driver.broker_gone()
    told = bench.driver.containers()
    assert told is not None
    assert {container.id for container in told} == {CONTAINER, docker_id(101)[:32]}
    bench.driver.receive(bench.recorded(address))
    assert bench.requests() == []
    bench.driver.broker_gone()
    assert len(bench.requests()) == 2


def test_a_container_that_is_removed_gives_its_endpoint_back(bench: Bench) -> None:
    address = bench.started()
    bench.driver.hear(DockerListed((seen(100, 2),), (network(2),), fresh=True))
    bench.requests()
    bench.driver.hear(DockerChanged(docker_id(100), None))
    assert len(bench.driver.endpoints.by_key) == 0
    bench.driver.receive(bench.recorded(address))
    assert bench.requests() == [Detach(CONTAINER)]


def test_what_went_is_told_before_what_came(bench: Bench) -> None:
    address = bench.started()
    bench.driver.hear(DockerListed((seen(100, 2),), (network(2),), fresh=True))
    bench.requests()
    bench.driver.hear(DockerChanged(docker_id(101), seen(101)))
    bench.driver.hear(DockerChanged(docker_id(100), None))
    bench.driver.receive(bench.recorded(address))
    # The new one may have the name of the old one.
    assert [type(message) for message in bench.requests()] == [Detach, Attach]


def test_a_fresh_list_settles_what_the_last_agent_left(bench: Bench) -> None:
    bench.started()
    bench.again()
    assert KEY in bench.driver.endpoints.by_key
    bench.endpoint(3)
    bench.driver.hear(DockerListed((), (network(),), fresh=True))
    # What was made since the agent is there may be missing in a list that was begun earlier.
    assert set(bench.driver.endpoints.by_key) == {docker_id(3)[:32]}
    bench.now += SETTLE_SECONDS
    bench.driver.hear(DockerListed((), (network(),), fresh=False))
    assert len(bench.driver.endpoints.by_key) == 0


def test_docker_is_asked_about_an_endpoint_that_it_says_nothing_about(bench: Bench) -> None:
    bench.driver.hear(DockerListed((), (), fresh=True))
    bench.started()
    assert not bench.driver.wants_list()
    assert bench.driver.deadline() <= bench.now + UNKNOWN_SECONDS
    bench.now += UNKNOWN_SECONDS
    assert bench.driver.wants_list()
    assert not bench.driver.wants_list()
    bench.now += LIST_SECONDS
    assert bench.driver.wants_list()
    bench.now += LIST_SECONDS
    bench.driver.hear(DockerAway("it was stopped"))
    assert not bench.driver.wants_list()
    assert bench.driver.deadline() > bench.now
    bench.driver.hear(DockerListed((seen(100, 2),), (network(2),), fresh=True))
    assert not bench.driver.wants_list()


def test_a_bad_label_is_said_and_is_no_containers_error(bench: Bench) -> None:
    bench.started()
    labels = (("netctl.connect", "db:x"),)
    bench.driver.hear(DockerChanged(docker_id(100), seen(100, 2, labels=labels)))
    (error,) = bench.driver.errors()
    assert error.subject == "c100 (label)"


def test_an_idle_driver_waits_for_nothing(bench: Bench) -> None:
    bench.driver.hear(DockerListed((), (), fresh=True))
    bench.requests()
    bench.driver.receive(bench.view)
    assert bench.driver.deadline() == float("inf")
