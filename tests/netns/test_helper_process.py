"""The privileged child as a process of its own, over the real kernel, firewall and engine."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from firewall_rules import names
from netctl.errors import UnavailableError
from netctl.model import Workload
from nodeagent.helper_client import Event, HelperClient
from nodeagent.helper_messages import ContainerChanged, Drifted, ExecEnded, OpenExec
from nodeagent.ops import (
    DeleteBridge,
    DeleteHostRules,
    DeletePort,
    RemoveContainer,
    SetContainerRules,
    SetEnd,
    SetPort,
)
from tests.support.hosts import BRIDGE, CONTAINER, PREPARING, attaching, creating
from tests.support.netns import Namespace, ping_passes

pytestmark = pytest.mark.root

DEVICE = names.port_device(CONTAINER)


class Node:
    """A namespace as a node, and the child that manages it, which can be started again."""

    def __init__(self, namespace: Namespace, directory: Path) -> None:
        self.namespace = namespace
        self._arguments = (
            "--state-dir",
            str(directory / "state"),
            "--run-dir",
            str(directory / "run"),
            "--process-engine",
            "--process-root",
        )
        self.helper = self.start()

    def start(self) -> HelperClient:
        with self.namespace.entered():
            self.helper = HelperClient.spawn(self._arguments)
        return self.helper

    def until(self, wanted: Callable[[Event], bool], seconds: float = 20.0) -> Event:
        """Wait for an event."""
        while True:
            for event in self.helper.events():
                if wanted(event):
                    return event
            assert select.select([self.helper], [], [], seconds)[0], "the event did not come"

    def attach(self) -> None:
        assert self.helper.apply([*PREPARING, creating()]) == ("",) * 3
        self.until(lambda event: _state(event) == "created")
        assert self.helper.apply(attaching()) == ("",) * 4
        self.until(lambda event: _state(event) == "running")


def _state(event: Event) -> str:
    return event.state.state if isinstance(event, ContainerChanged) and event.state is not None else ""


@pytest.fixture
def node(namespaces: Callable[[], Namespace], tmp_path: Path) -> Iterator[Node]:
    node = Node(namespaces(), tmp_path)
    yield node
    with contextlib.suppress(UnavailableError):
        node.helper.apply([RemoveContainer(CONTAINER)])
    node.helper.close()


def test_container_comes_runs_and_goes_without_a_trace(node: Node) -> None:
    def listed() -> str:
        return node.namespace.ip("-br", "link") + node.namespace.run("nft", "list", "ruleset")

    before = listed()
    node.attach()
    state = node.helper.observe()
    rules, port, end, _ = attaching()
    assert isinstance(rules, SetContainerRules)
    assert isinstance(port, SetPort)
    assert isinstance(end, SetEnd)
    assert state.bridge == BRIDGE
    assert state.ports == {DEVICE: port.port}
    assert state.ends == {CONTAINER: end.end}
    assert state.container_policies == {CONTAINER: rules.policy}
    assert state.containers[CONTAINER].state == "running"
    assert (
        node.helper.apply([RemoveContainer(CONTAINER), DeletePort(DEVICE), DeleteBridge(), DeleteHostRules()])
        == ("",) * 4
    )
    assert listed() == before


def test_exec_runs_in_the_containers_namespace(node: Node) -> None:
    node.attach()
    handle, (stdin, stdout, stderr) = node.helper.open_exec(
        OpenExec(CONTAINER, ("sh", "-c", "cat /sys/class/net/eth0/address; cat >&2; exit 3"))
    )
    os.write(stdin, b"to stderr")
    os.close(stdin)
    with os.fdopen(stdout, "rb") as out, os.fdopen(stderr, "rb") as err:
        assert out.read() == b"6e:63:0a:01:00:02\n"
        assert err.read() == b"to stderr"
    assert node.until(lambda event: isinstance(event, ExecEnded)) == ExecEnded(handle, 3)


def test_child_that_is_killed_and_started_again_sees_the_same(node: Node) -> None:
    node.attach()
    before = node.helper.observe()
    node.helper.facts("127.0.0.1")
    os.kill(node.helper.pid, signal.SIGKILL)
    with pytest.raises(UnavailableError, match="gone"):
        node.until(lambda _: False)
    node.helper.close()
    node.start()
    assert node.helper.observe() == before


def test_child_ends_with_the_agent_and_leaves_what_runs(node: Node) -> None:
    node.attach()
    pid = node.helper.pid
    node.helper.close()
    assert not Path(f"/proc/{pid}").exists()
    assert node.namespace.ip("-br", "link", "show", DEVICE)
    node.start()
    assert node.helper.observe().containers[CONTAINER].state == "running"


def test_own_work_is_no_drift_and_that_of_others_is(node: Node) -> None:
    node.attach()
    node.helper.observe()
    # Longer than the timer's second, so that it has looked at the firewalls at least once.
    assert not select.select([node.helper], [], [], 1.5)[0] or node.helper.events() == []
    node.namespace.run("nft", "delete", "table", "bridge", names.TABLE)
    drifted = node.until(lambda event: isinstance(event, Drifted), seconds=5)
    assert "firewall" in str(drifted)
    assert node.helper.observe().host_policy is None
    node.namespace.ip("link", "set", DEVICE, "down")
    drifted = node.until(lambda event: isinstance(event, Drifted) and DEVICE in event.what, seconds=5)
    assert "changed" in str(drifted)


def test_layer_one_stands_in_the_container(node: Node) -> None:
    node.attach()
    host, container = f"{BRIDGE.address.partition('/')[0]}", "10.1.0.2"
    assert not ping_passes(node.namespace, container)
    assert node.helper.apply([RemoveContainer(CONTAINER)]) == ("",)
    # The control: the sender works, and reaches what is not guarded.
    assert ping_passes(node.namespace, host)


def test_container_that_ends_by_itself_is_told(node: Node) -> None:
    short = attrs.evolve(creating(), workload=Workload("process", ("sh", "-c", "exit 7")))
    assert node.helper.apply([*PREPARING, short]) == ("",) * 3
    node.until(lambda event: _state(event) == "created")
    assert node.helper.apply(attaching()) == ("",) * 4
    event = node.until(lambda event: _state(event) == "exited")
    assert isinstance(event, ContainerChanged)
    assert event.state is not None
    assert event.state.exit_code == 7
    # It keeps its namespace, link and rules.
    state = node.helper.observe()
    assert (state.ends.keys(), state.container_policies.keys()) == ({CONTAINER}, {CONTAINER})
