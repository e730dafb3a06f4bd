"""The engine `docker` against an API that fails in every way; the real one is in tests/contract."""

from __future__ import annotations

import io
import os
import select
import stat
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netctl.errors import KernelError
from netctl.model import Workload
from nodeagent.engine import docker_jobs
from nodeagent.engine.base import Docker, DockerNews
from nodeagent.engine.docker import DockerEngine
from nodeagent.helper_messages import DockerAway, DockerChanged, DockerListed, DockerSeen
from nodeagent.kernel_state import EngineContainer
from tests.support.engines import BLOCK, new_id, records, until, until_state
from tests.support.fake_docker import FakeDockerApi, Fault, frame

WORKLOAD = Workload("docker", ("sleep", "9"), image="busybox:1")


class Node:
    """An engine over the fake API, and what it told."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.api = FakeDockerApi(directory / "docker.sock")
        self.api.images["busybox:1"] = {"Config": {}}
        self.api.open()
        self.news: list[DockerNews] = []
        self.engine = self._start()

    def _start(self) -> DockerEngine:
        engine = DockerEngine(self.directory / "docker.sock", self.directory / "state")
        engine.listen(self.news.append)
        return engine

    def heard(self) -> None:
        """Wait until Docker has been listed."""
        self.until(lambda: any(isinstance(one, DockerListed) for one in self.news))

    def again(self) -> None:
        """As after a restart of the agent."""
        self.engine.close()
        self.news.clear()
        self.engine = self._start()

    def until(self, condition: Callable[[], bool]) -> list[tuple[str, str]]:
        return until(self.engine, condition)

    def make(self, workload: Workload = WORKLOAD, name: str = "web", address: str = "10.1.0.2") -> str:
        container = new_id()
        self.engine.create(container, name, address, workload, BLOCK)
        return container

    def made(self, workload: Workload = WORKLOAD) -> str:
        container = self.make(workload)
        until_state(self.engine, container, "created")
        return container

    def running(self, workload: Workload = WORKLOAD) -> str:
        container = self.made(workload)
        self.engine.start(container, 1)
        until_state(self.engine, container, "running")
        return container

    def state(self, container: str) -> str:
        return self.engine.containers()[container].state

    def seen(self, name: str) -> DockerSeen | None:
        """What was told last of a container."""
        last: dict[str, DockerSeen] = {}
        for one in self.news:
            if isinstance(one, DockerListed):
                last = {seen.docker_id: seen for seen in one.containers}
            elif isinstance(one, DockerChanged) and one.container is not None:
                last[one.docker_id] = one.container
            elif isinstance(one, DockerChanged):
                last.pop(one.docker_id, None)
        return next((seen for seen in last.values() if seen.name == name), None)

    def close(self) -> None:
        self.engine.close()
        self.api.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    node.heard()
    yield node
    node.close()


def test_it_is_what_the_helper_looks_for(node: Node) -> None:
    assert isinstance(node.engine, Docker)
    assert node.engine.removes_later


def test_the_network_is_made_once_with_the_nodes_block(node: Node) -> None:
    first = node.made()
    second = node.make(name="db", address="10.1.0.3")
    until_state(node.engine, second, "created")
    (network,) = node.api.networks.values()
    assert (network["Name"], network["Driver"]) == ("netctl", "netctl")
    assert network["IPAM"]["Config"][0]["Subnet"] == BLOCK
    assert network["IPAM"]["Config"][0]["Gateway"] == "10.1.0.1"
    made = node.api.find("web")
    assert made is not None
    assert made.body["NetworkingConfig"]["EndpointsConfig"]["netctl"]["IPAMConfig"] == {
        "IPv4Address": "10.1.0.2"
    }
    assert made.labels["netctl.id"] == first


def test_a_network_of_another_block_is_a_clear_error(node: Node) -> None:
    node.api.network("netctl", subnet="10.9.0.0/16")
    container = node.make()
    until_state(node.engine, container, "failed")
    message = node.engine.containers()[container].message
    assert "10.9.0.0/16" in message
    assert "docker network rm netctl" in message


def test_a_taken_name_gets_some_digits_of_the_id(node: Node) -> None:
    node.api.make("web", {"Image": "x"})
    container = node.made()
    assert node.api.find(f"web-{container[:6]}") is not None


def test_a_container_that_docker_made_though_the_answer_was_lost_is_found_again(node: Node) -> None:
    node.api.faults["POST /containers/create"] = Fault(die=True, times=1)
    container = node.make()
    assert until_state(node.engine, container, "created")[-1] == (container, "created")
    assert len(node.api.containers) == 1


def test_a_container_that_docker_did_not_make_is_told_gone_and_made_again(node: Node) -> None:
    node.api.faults["POST /containers/create"] = Fault(die=False, times=1)
    container = node.make()
    assert until_state(node.engine, container, "gone")[-1] == (container, "gone")
    node.engine.create(container, "web", "10.1.0.2", WORKLOAD, BLOCK)
    until_state(node.engine, container, "created")


def test_docker_dying_in_the_middle_of_a_create_leaves_all_in_agreement(node: Node) -> None:
    hang = threading.Event()
    node.api.faults["POST /containers/create"] = Fault(hang=hang, die=False, times=1)
    container = node.make()
    node.until(lambda: "POST /containers/create" in node.api.requests)
    node.api.close()
    node.until(lambda: isinstance(node.news[-1], DockerAway))
    with pytest.raises(KernelError, match="cannot be reached"):
        node.make(name="other")
    node.api.open()
    assert until_state(node.engine, container, "gone")[-1] == (container, "gone")
    listed = [one for one in node.news if isinstance(one, DockerListed)]
    assert listed[-1].fresh
    node.engine.create(container, "web", "10.1.0.2", WORKLOAD, BLOCK)
    until_state(node.engine, container, "created")


@pytest.mark.parametrize("restarted", [False, True])
def test_a_label_makes_nobody_the_brokers_container(node: Node, *, restarted: bool) -> None:
    container = node.running()
    own = node.api.find("web")
    assert own is not None
    forged = node.api.run("forged", "netctl", {"netctl.id": container})
    # As an image that was made of another container of the broker's has it.
    strange = node.api.run("strange", "netctl", {"netctl.id": "ab" * 16})
    if restarted:
        node.again()
        node.heard()
    node.until(lambda: node.seen("strange") is not None and node.seen("forged") is not None)
    seen = {name: node.seen(name) for name in ("web", "forged", "strange")}
    assert {name: one.ours for name, one in seen.items() if one is not None} == {
        "web": container,
        "forged": "",
        "strange": "",
    }
    assert set(node.engine.containers()) == {container}
    node.engine.remove(container)
    until_state(node.engine, container, "gone")
    assert set(node.api.containers) == {forged.id, strange.id}


def test_a_container_whose_making_was_never_answered_is_known_by_its_label_until_it_is_recorded(
    node: Node,
) -> None:
    node.api.faults["POST /containers/create"] = Fault(die=True, times=1)
    container = node.make()
    until_state(node.engine, container, "created")
    forged = node.api.run("forged", "netctl", {"netctl.id": container})
    node.again()
    node.heard()
    until_state(node.engine, container, "created")
    seen = node.seen("forged")
    assert seen is not None
    assert seen.ours == ""
    node.engine.remove(container)
    until_state(node.engine, container, "gone")
    assert set(node.api.containers) == {forged.id}


def test_while_docker_is_away_its_containers_are_unknown_and_nothing_is_asked_of_it(node: Node) -> None:
    container = node.running()
    node.api.close()
    until_state(node.engine, container, "unknown")
    assert node.engine.containers()[container].generation == 1
    for call in (
        lambda: node.engine.stop(container),
        lambda: node.engine.remove(container),
        lambda: node.engine.start(container, 2),
        lambda: node.engine.logs(container, None, follow=False, ended=lambda *_: None),
    ):
        with pytest.raises(KernelError):
            call()
    node.api.open()
    assert until_state(node.engine, container, "running") == [(container, "running")]
    assert node.engine.containers()[container].generation == 1


def test_an_agent_that_starts_before_docker_does_not_take_its_containers_for_gone(node: Node) -> None:
    container = node.running()
    node.api.close()
    node.again()
    assert node.state(container) == "unknown"
    node.until(lambda: any(isinstance(one, DockerAway) for one in node.news))
    assert node.state(container) == "unknown"
    node.engine.create(container, "web", "10.1.0.2", WORKLOAD, BLOCK)
    node.api.open()
    until_state(node.engine, container, "running")
    assert len(node.api.containers) == 1


def test_a_container_removed_by_hand_is_gone_at_once_and_after_a_restart(node: Node) -> None:
    container = node.running()
    made = node.api.find("web")
    assert made is not None
    node.api.remove(made)
    assert until_state(node.engine, container, "gone")[-1] == (container, "gone")
    other = node.running()
    node.engine.close()
    made = node.api.find("web")
    assert made is not None
    node.api.remove(made)
    node.again()
    assert node.state(other) == "unknown"
    assert until_state(node.engine, other, "gone") == [(other, "gone")]


def test_a_command_that_ended_does_not_run_again_because_the_agent_started_anew(node: Node) -> None:
    container = node.running()
    made = node.api.find("web")
    assert made is not None
    node.api.exit(made, 7)
    until_state(node.engine, container, "exited")
    node.again()
    until_state(node.engine, container, "exited")
    seen = node.engine.containers()[container]
    assert (seen.generation, seen.exit_code) == (1, 7)
    node.engine.start(container, 1)
    node.engine.start(container, 2)
    until_state(node.engine, container, "running")
    assert (node.engine.containers()[container].generation, made.starts) == (2, 2)


def test_a_start_that_docker_never_heard_of_is_told_as_not_having_been(node: Node) -> None:
    container = node.made()
    node.api.faults["/start"] = Fault(die=False, times=1)
    node.engine.start(container, 1)
    # Told in between, so that whoever asked hears that it may not have been done.
    assert until_state(node.engine, container, "unknown") == [(container, "unknown")]
    until_state(node.engine, container, "created")
    assert node.engine.containers()[container].generation == 0
    node.engine.start(container, 1)
    until_state(node.engine, container, "running")


def test_a_start_that_docker_heard_though_its_answer_was_lost_is_not_done_twice(node: Node) -> None:
    container = node.made()
    node.api.faults["/start"] = Fault(die=True, times=1)
    node.engine.start(container, 1)
    until_state(node.engine, container, "running")
    assert node.engine.containers()[container].generation == 1
    made = node.api.find("web")
    assert made is not None
    assert made.starts == 1


def test_a_start_that_fails_is_kept_with_dockers_reason_until_the_next_one(node: Node) -> None:
    container = node.made()
    node.api.on_start = lambda _: (
        'OCI runtime create failed: exec: "nosuch": executable file not found in $PATH'
    )
    node.engine.start(container, 1)
    until_state(node.engine, container, "failed")
    seen = node.engine.containers()[container]
    assert seen.generation == 1
    assert seen.message.startswith('exec: "nosuch"')
    assert "check the command" in seen.message
    node.again()
    until_state(node.engine, container, "failed")
    assert node.engine.containers()[container] == seen
    node.api.on_start = lambda _: ""
    node.engine.start(container, 2)
    until_state(node.engine, container, "running")


def test_a_pull_shows_how_far_it_is(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_jobs, "TOLD_SECONDS", 0.0)
    node.api.registry["127.0.0.1:5000/app:2"] = [
        {"status": "Pulling fs layer", "id": "a", "progressDetail": {}},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": 10, "total": 100}},
        {"status": "Downloading", "id": "b", "progressDetail": {"current": 35, "total": 100}},
        "nonsense",
        {"status": 7, "id": ["x"], "progressDetail": "much"},
        {"status": "Downloading", "id": "a", "progressDetail": {"current": "all", "total": 0}},
        {"status": "Download complete", "id": "a", "progressDetail": {}},
    ]
    node.make(Workload("docker", ("x",), image="127.0.0.1:5000/app:2"))
    told: list[tuple[str, str]] = []

    def changed(_: str, state: EngineContainer | None) -> None:
        assert state is not None
        told.append((state.state, state.message))

    deadline = time.monotonic() + 10
    while ("created", "") not in told:
        assert time.monotonic() < deadline
        select.select(node.engine.descriptors(), [], [], 0.1)
        node.engine.dispatch(changed)
    percents = ["pulling", "pulling 10 %", "pulling 22 %", "pulling 67 %"]
    assert told == [*(("creating", text) for text in percents), ("created", "")]


def test_a_pull_that_fails_says_so_and_is_tried_once_for_each_start(node: Node) -> None:
    container = node.make(Workload("docker", ("x",), image="nosuch"))
    until_state(node.engine, container, "failed")
    seen = node.engine.containers()[container]
    assert seen.generation == 0
    assert "pull access denied" in seen.message
    assert "docker login" in seen.message
    node.api.registry["late:1"] = [{"error": "toomanyrequests: slow down"}]
    node.engine.start(container, 1)
    node.until(lambda: node.engine.containers()[container].generation == 1)
    assert node.state(container) == "failed"
    node.api.images["nosuch"] = {"Config": {}}
    node.engine.start(container, 2)
    until_state(node.engine, container, "running")


def test_a_pull_is_given_up_when_the_container_is_removed(node: Node) -> None:
    never = threading.Event()
    node.api.registry["big:1"] = [{"status": "Downloading"}, never, {"status": "Downloading"}]
    container = node.make(Workload("docker", ("x",), image="big:1"))
    node.until(lambda: node.engine.containers()[container].message == "pulling")
    node.engine.remove(container)
    never.set()
    until_state(node.engine, container, "gone")
    assert node.api.containers == {}


def test_removing_goes_on_until_docker_has_nothing_of_it(node: Node) -> None:
    container = node.running()
    node.api.faults["DELETE"] = Fault(status=500, message="device or resource busy", times=2)
    node.engine.remove(container)
    node.engine.remove(container)
    until_state(node.engine, container, "gone")
    assert node.api.containers == {}
    assert list((node.directory / "state" / "docker").iterdir()) == []


def test_a_removal_that_docker_refuses_says_why_and_can_be_asked_for_again(node: Node) -> None:
    container = node.running()
    node.api.faults["DELETE"] = Fault(status=403, message="no")
    node.engine.remove(container)
    until_state(node.engine, container, "failed")
    assert node.engine.containers()[container].message == "no"
    # Whatever else becomes of it: that it is not gone is what counts.
    made = node.api.find("web")
    assert made is not None
    node.api.exit(made, 3)
    node.until(lambda: node.engine.containers()[container].exit_code == 3)
    assert node.state(container) == "failed"
    assert node.engine.containers()[container].message == "no"
    node.api.faults.clear()
    node.engine.remove(container)
    until_state(node.engine, container, "gone")


def test_stopping_keeps_docker_from_starting_it_again_and_starting_gives_the_policy_back(node: Node) -> None:
    container = node.running(Workload("docker", ("x",), image="busybox:1", restart="always"))
    made = node.api.find("web")
    assert made is not None
    assert made.body["HostConfig"]["RestartPolicy"]["Name"] == "always"
    node.engine.stop(container)
    until_state(node.engine, container, "exited")
    assert made.body["HostConfig"]["RestartPolicy"]["Name"] == "no"
    node.engine.start(container, 2)
    until_state(node.engine, container, "running")
    assert made.body["HostConfig"]["RestartPolicy"]["Name"] == "always"


def test_a_container_that_docker_restarts_by_itself_keeps_its_generation(node: Node) -> None:
    container = node.running()
    made = node.api.find("web")
    assert made is not None
    node.api.exit(made, 1)
    node.api.start(made)
    node.until(lambda: node.state(container) == "running" and made.starts == 2)
    assert node.engine.containers()[container].generation == 1


# --- what must not stop the helper --------------------------------------------------------------------


def test_a_docker_that_answers_nothing_holds_up_nobody(node: Node) -> None:
    hang = threading.Event()
    node.api.faults["/containers/create|/networks|/json"] = Fault(hang=hang)
    began = time.monotonic()
    containers = [node.make(name=f"c{n}", address=f"10.1.0.{n + 2}") for n in range(100)]
    for container in containers:
        node.engine.remove(container)
    node.engine.list_docker()
    node.engine.revive()
    node.engine.dispatch(lambda *_: None)
    assert time.monotonic() - began < 1.0
    assert threading.active_count() < 150
    node.api.faults.clear()
    hang.set()
    node.until(lambda: not node.engine.containers())


@pytest.mark.parametrize(
    "raw", [b"{", b"[]", b"null", b'"x"', b'{"Id": 5}', b'{"State": 7, "Config": []}', b"\xff\xfe"]
)
def test_garbage_from_docker_is_no_state_and_harms_nobody(node: Node, raw: bytes) -> None:
    container = node.running()
    made = node.api.find("web")
    assert made is not None
    node.api.faults["GET /(containers|networks)"] = Fault(raw=raw)
    node.api.exit(made, 3)
    node.api.run("foreign", node.api.network("demo"))
    node.engine.list_docker()
    node.until(lambda: sum("json" in one for one in node.api.requests) > 3)
    node.api.faults.clear()
    node.engine.list_docker()
    node.until(lambda: node.state(container) == "exited" and node.seen("foreign") is not None)
    assert node.engine.containers()[container].exit_code == 3


def test_garbage_among_the_events_is_passed_over(node: Node) -> None:
    for line in (
        b"{\n",
        b"[1]\n",
        b'{"Type": "container"}\n',
        b"\n",
        b'{"Type": [], "Actor": 5}\n',
        b"\xff\n",
    ):
        node.api.tell_raw(line)
    node.api.tell_raw(
        b'{"Type":"network","Action":"connect","Actor":{"ID":"zz","Attributes":{"type":"netctl"}}}\n'
    )
    node.api.run("web", node.api.network("demo"))
    node.until(lambda: node.seen("web") is not None)
    assert not any(isinstance(one, DockerAway) for one in node.news)


def test_endless_rubbish_instead_of_events_ends_the_contact(node: Node) -> None:
    for _ in range(30):
        node.api.tell_raw(b"x" * 65536)
    node.until(lambda: any(isinstance(one, DockerAway) for one in node.news))
    node.until(lambda: isinstance(node.news[-1], DockerListed))


def test_an_engine_that_is_too_old_is_said_to_be(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.api.close()
    node.api.version = "1.40"
    node.api.open()
    node.again()
    node.until(lambda: any(isinstance(one, DockerAway) and "1.40" in one.reason for one in node.news))
    node.close()


# --- Docker's own users' containers -------------------------------------------------------------------


def test_an_end_counts_while_dockers_list_is_behind_it(node: Node) -> None:
    node.api.network("demo")
    made = node.api.run("web", "demo")
    node.until(lambda: (seen := node.seen("web")) is not None and seen.state == "running")
    node.api.tell("container", "die", made, exitCode="137")
    node.until(lambda: (seen := node.seen("web")) is not None and seen.state == "exited")
    listed = sum(isinstance(one, DockerListed) for one in node.news)
    node.engine.list_docker()
    node.until(lambda: sum(isinstance(one, DockerListed) for one in node.news) > listed)
    seen = node.seen("web")
    assert seen is not None
    assert (seen.state, seen.exit_code) == ("exited", 137)
    node.api.tell("container", "start", made)
    node.until(lambda: (seen := node.seen("web")) is not None and seen.state == "running")


def test_containers_of_dockers_users_are_told_as_they_come_and_go(node: Node) -> None:
    network = node.api.network("demo")
    labels = {"netctl.connect": "db:5432/tcp", "com.docker.compose.service": "web", "other": "x"}
    made = node.api.run("web", "demo", labels)
    node.until(lambda: (seen := node.seen("web")) is not None and seen.state == "running")
    seen = node.seen("web")
    assert seen is not None
    assert seen.docker_id == made.id
    assert seen.endpoint == made.endpoints["demo"]
    assert seen.address == "10.1.0.2"
    assert seen.labels == (("com.docker.compose.service", "web"), ("netctl.connect", "db:5432/tcp"))
    assert (seen.ours, seen.connected) == ("", True)
    assert node.engine.containers() == {}
    node.api.exit(made, 4)
    node.until(lambda: (seen := node.seen("web")) is not None and not seen.endpoint)
    seen = node.seen("web")
    assert seen is not None
    assert (seen.state, seen.exit_code, seen.connected) == ("exited", 4, True)
    node.api.start(made)
    node.until(
        lambda: (seen := node.seen("web")) is not None and bool(seen.endpoint) and seen.state == "running"
    )
    node.api.remove(made)
    node.until(lambda: node.seen("web") is None)
    assert node.api.networks[network]["Name"] == "demo"


def test_what_an_image_is_labelled_with_asks_for_nothing(node: Node) -> None:
    node.api.network("demo")
    project, service = "com.docker.compose.project", "com.docker.compose.service"
    wish = "netctl.connect"
    labels = {wish: "db:5432/tcp", project: "shop", service: "db"}
    node.api.images["busybox"] = {"Config": {"Labels": labels}}
    node.api.run("plain", "demo")
    node.api.run("own", "demo", {wish: "cache:6379/tcp"})
    # Compose labels the images that it builds, too, and their containers with more.
    node.api.run("built", "demo", {project: "shop", service: "db", "com.docker.compose.oneoff": "False"})
    node.until(lambda: node.seen("built") is not None)
    seen = {name: node.seen(name) for name in ("plain", "own", "built")}
    assert {name: dict(one.labels) for name, one in seen.items() if one is not None} == {
        "plain": {},
        "own": {wish: "cache:6379/tcp"},
        "built": {project: "shop", service: "db"},
    }


@pytest.mark.parametrize("fault", [Fault(status=404), Fault(status=500)])
def test_of_an_image_that_cannot_be_looked_at_nobody_knows_which_labels_it_has(
    node: Node, fault: Fault
) -> None:
    node.api.network("demo")
    node.api.faults["GET /images/busybox/json"] = fault
    node.api.run("web", "demo", {"netctl.connect": "db:5432/tcp"})
    node.until(lambda: node.seen("web") is not None)
    seen = node.seen("web")
    assert seen is not None
    assert (seen.labels, seen.connected) == ((), True)
    del node.api.faults["GET /images/busybox/json"]
    node.engine.list_docker()
    node.until(lambda: (seen := node.seen("web")) is not None and bool(seen.labels))


def test_a_container_that_joins_later_and_leaves_again(node: Node) -> None:
    node.api.network("demo")
    made = node.api.make("late", {"Image": "busybox"})
    node.api.start(made)
    assert node.seen("late") is None
    node.api.connect(made, "demo")
    node.until(lambda: node.seen("late") is not None)
    node.api.disconnect(made, "demo")
    node.until(lambda: node.seen("late") is None)


def test_who_is_on_other_networks_alone_is_nobodys_business(node: Node) -> None:
    node.api.network("bridge", driver="bridge")
    node.api.network("netctl2", driver="netctl2")
    node.api.run("a", "bridge")
    node.api.run("b", "netctl2")
    node.api.network("demo")
    node.api.run("c", "demo")
    node.until(lambda: node.seen("c") is not None)
    assert node.seen("a") is None
    assert node.seen("b") is None
    node.news.clear()
    node.engine.list_docker()
    node.until(lambda: bool(node.news))
    (listed,) = node.news
    assert isinstance(listed, DockerListed)
    assert [one.name for one in listed.containers] == ["c"]
    assert [one.name for one in listed.networks] == ["demo"]
    assert not listed.fresh


def test_after_a_break_everything_is_listed(node: Node) -> None:
    node.api.network("demo")
    made = node.api.run("web", "demo")
    node.until(lambda: node.seen("web") is not None)
    node.api.close()
    node.until(lambda: isinstance(node.news[-1], DockerAway))
    node.api.remove(made)
    node.api.run("new", "demo")
    node.api.open()
    node.until(lambda: isinstance(node.news[-1], DockerListed))
    assert isinstance(node.news[-1], DockerListed)
    assert node.news[-1].fresh
    assert [one.name for one in node.news[-1].containers] == ["new"]


def test_what_could_not_start_without_us_is_started_again(node: Node) -> None:
    node.api.network("demo")
    refused = "remote: netctl: the agent is away"
    always = {"RestartPolicy": {"Name": "always"}, "NetworkMode": "demo"}
    made = {
        name: node.api.make(
            name, {"HostConfig": host, "NetworkingConfig": {"EndpointsConfig": {network: {}}}}
        )
        for name, host, network in (
            ("ours", always, "demo"),
            ("once", {"RestartPolicy": {"Name": "no"}}, "demo"),
            ("broken", always, "demo"),
            ("elsewhere", always, "other"),
        )
    }
    for name, container in made.items():
        container.status, container.error = "exited", "no such file" if name == "broken" else refused
    node.engine.list_docker()
    node.until(lambda: (seen := node.seen("broken")) is not None and seen.state == "exited")
    node.engine.revive()
    node.until(lambda: made["ours"].status == "running")
    node.until(
        lambda: sum(f"GET /containers/{one.id}/json" in node.api.requests for one in made.values()) == 3
    )
    assert {name for name, one in made.items() if one.starts} == {"ours"}


# --- adopting -----------------------------------------------------------------------------------------


def adopt(node: Node, name: str) -> tuple[int, str]:
    ended: list[tuple[int, str]] = []
    node.engine.adopt(name, BLOCK, lambda *end: ended.append(end))
    node.until(lambda: bool(ended))
    return ended[0]


def lone(node: Node) -> Any:
    node.api.network("none", driver="null")
    made = node.api.make("lone", {"HostConfig": {"NetworkMode": "none"}})
    made.networks["none"] = ""
    node.api.start(made)
    return made


def test_adopting_moves_a_container_from_no_network_to_ours(node: Node) -> None:
    made = lone(node)
    assert adopt(node, "lone") == (0, made.id)
    assert set(made.networks) == {"netctl"}
    assert adopt(node, "lone") == (0, made.id), "again it is no error"
    node.until(lambda: node.seen("lone") is not None)


def test_a_container_that_cannot_be_adopted_is_left_as_it_was(node: Node) -> None:
    made = lone(node)
    node.api.faults["/networks/netctl/connect"] = Fault(
        status=500, message="remote: netctl: no address is free"
    )
    code, message = adopt(node, "lone")
    assert code != 0
    assert message == "netctl: no address is free"
    assert set(made.networks) == {"none"}


@pytest.mark.parametrize(
    ("mode", "status", "why"),
    [("bridge", "running", "has a network already"), ("none", "exited", "does not run")],
)
def test_only_what_runs_without_a_network_can_be_adopted(
    node: Node, mode: str, status: str, why: str
) -> None:
    made = node.api.make("web", {"HostConfig": {"NetworkMode": mode}})
    made.status = status
    code, message = adopt(node, "web")
    assert code != 0
    assert why in message
    assert adopt(node, "nosuch")[0] != 0
    assert not any("connect" in one for one in node.api.requests)


# --- logs and copies ----------------------------------------------------------------------------------


def test_a_log_comes_as_records_however_long_it_is(node: Node) -> None:
    container = node.running()
    made = node.api.find("web")
    assert made is not None
    made.log = b"".join(frame(1 + n % 2, b"%d " % n * 50) for n in range(20_000))
    ended: list[tuple[int, str]] = []
    _, descriptor = node.engine.logs(container, None, follow=False, ended=lambda *end: ended.append(end))
    found = records(descriptor)
    node.until(lambda: bool(ended))
    assert ended == [(0, "")]
    for stream in (1, 2):
        expected = b"".join(b"%d " % n * 50 for n in range(20_000) if 1 + n % 2 == stream)
        assert b"".join(data for number, data in found if number == stream) == expected


def test_a_log_that_nobody_reads_any_more_is_let_go(node: Node) -> None:
    container = node.running()
    made = node.api.find("web")
    assert made is not None
    made.log = frame(1, b"x" * 1_000_000) * 20
    ended: list[tuple[int, str]] = []
    handle, descriptor = node.engine.logs(container, None, follow=True, ended=lambda *end: ended.append(end))
    assert os.read(descriptor, 100)
    node.engine.kill_exec(handle)
    node.until(lambda: bool(ended))
    os.close(descriptor)
    assert ended == [(137, "")]


def test_a_damaged_log_ends_with_a_reason(node: Node) -> None:
    container = node.running()
    made = node.api.find("web")
    assert made is not None
    made.log = frame(1, b"good") + b"\xff" * 100
    ended: list[tuple[int, str]] = []
    _, descriptor = node.engine.logs(container, None, follow=False, ended=lambda *end: ended.append(end))
    assert records(descriptor) in ([(1, b"good")], [])
    node.until(lambda: bool(ended))
    assert ended[0][0] != 0
    assert "damaged" in ended[0][1]


def archive(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), stat.S_IRUSR
        tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def test_copies_of_a_stopped_container_stream_through_the_descriptor(node: Node) -> None:
    container = node.made(Workload("docker", ("x",), image="busybox:1", loosened=("writable-root",)))
    data = archive("big", os.urandom(3_000_000))
    ended: list[tuple[int, str]] = []
    reader, writer = os.pipe()
    node.engine.copy(container, "/data", "in", reader, lambda *end: ended.append(end))
    os.close(reader)
    with os.fdopen(writer, "wb") as file:
        file.write(data)
    node.until(lambda: bool(ended))
    assert ended == [(0, "")]
    assert node.api.archives["/data"] == data
    reader, writer = os.pipe()
    node.engine.copy(container, "/data", "out", writer, lambda *end: ended.append(end))
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == data
    node.until(lambda: len(ended) == 2)
    assert ended[1] == (0, "")


def test_a_copy_whose_user_goes_away_ends(node: Node) -> None:
    container = node.made(Workload("docker", ("x",), image="busybox:1", loosened=("writable-root",)))
    ended: list[tuple[int, str]] = []
    reader, writer = os.pipe()
    handle = node.engine.copy(container, "/data", "in", reader, lambda *end: ended.append(end))
    os.close(reader)
    os.write(writer, b"half")
    node.until(lambda: any(one.startswith("GET /containers") for one in node.api.requests))
    node.engine.kill_exec(handle)
    node.until(lambda: bool(ended))
    os.close(writer)
    assert ended[0][0] == 137


def test_what_is_in_the_memory_of_a_stopped_container_cannot_be_copied(node: Node) -> None:
    container = node.made()
    ended: list[tuple[int, str]] = []
    with Path("/dev/null").open("wb") as null:
        node.engine.copy(container, "/run/x", "out", null.fileno(), lambda *end: ended.append(end))
    node.until(lambda: bool(ended))
    assert ended[0][0] != 0
    assert "start it first" in ended[0][1]
    with pytest.raises(KernelError, match="no absolute path"):
        node.engine.copy(container, "x", "out", 0, lambda *_: None)


def test_a_missing_path_is_said_to_be_missing(node: Node) -> None:
    container = node.made()
    ended: list[tuple[int, str]] = []
    with Path("/dev/null").open("wb") as null:
        node.engine.copy(container, "/nosuch", "out", null.fileno(), lambda *end: ended.append(end))
    node.until(lambda: bool(ended))
    assert ended[0][0] != 0
    assert "/nosuch" in ended[0][1]
