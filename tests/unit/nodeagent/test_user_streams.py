"""From the broker's request to the engine and back: copies, output by a pipe, adoptions."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator

import pytest

from firewall_rules.backends.fake import FakeHostBackend
from netctl.errors import KernelError
from netctl.model import PlacedContainer, Workload
from netctl.wire.messages import (
    Message,
    NodeOpenAdopt,
    NodeOpenCopy,
    NodeOpenLogs,
    StreamData,
    StreamEnd,
)
from nodeagent.apply import Host
from nodeagent.engine.fake import FakeEngine
from nodeagent.engine.fake_docker import FakeDocker
from nodeagent.execs import Execs
from nodeagent.helper_fake import LocalHelper
from nodeagent.helper_messages import Adopt, DockerSeen, ExecEnded
from nodeagent.kernel.fake import FakeKernel
from nodeagent.streams import Streams

OURS, DOCKER_ID = "ab" * 16, "cd" * 32


class Node:
    def __init__(self) -> None:
        self.docker = FakeDocker()
        self.docker.foreign[DOCKER_ID] = DockerSeen(DOCKER_ID, "db", "postgres", "running")
        self.host = Host(FakeKernel(), None, FakeHostBackend(), [self.docker])
        self.docker.create(OURS, "web", "10.1.0.2", Workload("docker", (), image="x"), "10.1.0.0/16")
        self.docker.dispatch(lambda *_: None)
        self.helper = LocalHelper(self.host)
        self.sent: list[Message] = []
        self.streams = Streams(self.sent.append, lambda _: True)

    def pump(self) -> None:
        for event in self.helper.events():
            if isinstance(event, ExecEnded):
                self.streams.exec_ended(event, 0.0)
        poll = select.poll()
        for descriptor in self.streams.readers():
            poll.register(descriptor, select.POLLIN)
        readable = [descriptor for descriptor, _ in poll.poll(0)]
        self.streams.pump(readable, self.streams.writers(), time.monotonic())

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, self.sent
            self.pump()

    def end(self) -> StreamEnd:
        self.until(lambda: any(isinstance(one, StreamEnd) for one in self.sent))
        return next(one for one in self.sent if isinstance(one, StreamEnd))

    def output(self) -> bytes:
        return b"".join(one.data for one in self.sent if isinstance(one, StreamData))


@pytest.fixture
def node() -> Iterator[Node]:
    node = Node()
    yield node
    node.streams.drop_all(node.helper)
    node.docker.close()
    node.helper.close()


def test_an_archive_comes_out_and_ends(node: Node) -> None:
    node.streams.open_copy(NodeOpenCopy(1, OURS, "/etc", "out"), node.helper)
    ((handle, copy),) = node.docker.copies.items()
    assert (copy.path, copy.direction) == ("/etc", "out")
    os.write(copy.descriptor, b"archive")
    node.until(lambda: node.output() == b"archive")
    node.docker.end_copy(handle)
    assert node.end() == StreamEnd(1, 0)
    assert len(node.streams) == 0


def test_an_archive_goes_in_and_its_end_is_heard(node: Node) -> None:
    node.streams.open_copy(NodeOpenCopy(1, OURS, "/srv", "in"), node.helper)
    ((handle, copy),) = node.docker.copies.items()
    node.streams.hear(StreamData(1, 0, b"archive", eof=True), node.helper)
    node.pump()
    assert os.read(copy.descriptor, 100) == b"archive"
    assert os.read(copy.descriptor, 100) == b""
    node.docker.end_copy(handle, 1, "read-only file system")
    assert node.end() == StreamEnd(1, 1, "read-only file system")


def test_a_user_who_goes_away_ends_the_copy(node: Node) -> None:
    node.streams.open_copy(NodeOpenCopy(1, OURS, "/etc", "out"), node.helper)
    (copy,) = node.docker.copies.values()
    node.streams.hear(StreamEnd(1), node.helper)
    assert copy.killed
    assert len(node.streams) == 0


def test_output_comes_by_the_engines_pipe(node: Node) -> None:
    node.docker.write_output(OURS, 1, b"hello")
    node.streams.open_logs(NodeOpenLogs(1, OURS, tail=None, follow=False), node.helper)
    assert node.end() == StreamEnd(1, 0)
    assert node.output() == b"hello"


def test_what_concerns_a_container_that_is_not_here_is_refused(node: Node) -> None:
    node.streams.open_copy(NodeOpenCopy(1, "99" * 16, "/etc", "out"), node.helper)
    node.streams.open_logs(NodeOpenLogs(2, "99" * 16), node.helper)
    node.docker.go()
    node.streams.open_adopt(NodeOpenAdopt(3, "db"), node.helper, "10.1.0.0/16")
    ends = [one for one in node.sent if isinstance(one, StreamEnd)]
    assert [(one.stream, one.exit_code) for one in ends] == [(1, None), (2, None), (3, None)]
    assert all(one.message for one in ends)
    assert len(node.streams) == 0


def test_an_adoption_ends_with_what_is_recorded_or_the_reason(node: Node) -> None:
    node.streams.open_adopt(NodeOpenAdopt(1, "db"), node.helper, "10.1.0.0/16")
    ((handle, adoption),) = node.docker.adoptions.items()
    assert (adoption.container, adoption.block) == ("db", "10.1.0.0/16")
    assert len(node.streams) == 1
    node.docker.end_adoption(handle, 0, DOCKER_ID)
    node.pump()
    recorded: dict[str, PlacedContainer] = {}
    node.streams.adoptions.settle(recorded.get, 1.0)
    assert node.sent == []
    assert len(node.streams) == 1
    workload = Workload("docker", (), image="busybox")
    recorded[DOCKER_ID[:32]] = PlacedContainer(
        DOCKER_ID[:32], "db-n1", "10.1.0.7", workload, "running", 1, "engine"
    )
    node.streams.adoptions.settle(recorded.get, 2.0)
    assert node.end() == StreamEnd(1, 0, "db-n1 has joined at 10.1.0.7")
    assert len(node.streams) == 0
    node.sent.clear()
    node.streams.open_adopt(NodeOpenAdopt(2, "db"), node.helper, "10.1.0.0/16")
    (handle,) = node.docker.adoptions
    node.docker.end_adoption(handle, 125, "it has a network already")
    assert node.end() == StreamEnd(2, None, "it has a network already")


def test_an_adoption_that_nobody_records_ends_by_itself(node: Node) -> None:
    node.streams.open_adopt(NodeOpenAdopt(1, "db"), node.helper, "10.1.0.0/16")
    (handle,) = node.docker.adoptions
    node.docker.end_adoption(handle, 0, DOCKER_ID)
    node.pump()
    until = node.streams.deadline(0.0)
    assert until is not None
    node.streams.adoptions.settle(lambda _: None, until - 0.1)
    assert node.sent == []
    node.streams.adoptions.settle(lambda _: None, until)
    assert node.end().exit_code is None
    assert len(node.streams) == 0


def test_a_helper_that_ends_ends_adoptions_too(node: Node) -> None:
    node.streams.open_adopt(NodeOpenAdopt(1, "db"), node.helper, "10.1.0.0/16")
    node.streams.end_execs("the helper is gone")
    assert node.sent == [StreamEnd(1, message="the helper is gone")]
    assert len(node.streams) == 0


def test_a_node_without_docker_adopts_nothing() -> None:
    host = Host(FakeKernel(), None, FakeHostBackend(), [FakeEngine()])
    with pytest.raises(KernelError, match=r"[Dd]ocker"):
        Execs(host).adopt(Adopt("db", "10.1.0.0/16"), lambda _: None)
