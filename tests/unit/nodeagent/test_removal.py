from __future__ import annotations

from pathlib import Path

from nodeagent.desired_index import DesiredIndex
from nodeagent.diff import plan
from nodeagent.helper_client import Event
from nodeagent.helper_fake import LocalHelper
from nodeagent.removal import take_out
from tests.support.agents import state
from tests.support.docker_nodes import DockerNode, endpoint, endpoints, foreign, placed_by_docker
from tests.unit.nodeagent.test_endpoint_plans import FACTS, NOW

MINE, THEIRS = placed_by_docker(3), endpoint(2)


def come_up(node: DockerNode, helper: LocalHelper) -> None:
    desired = DesiredIndex.of(state([MINE, foreign(2)]))
    node.folder.make(THEIRS.sandbox)
    for _ in range(6):
        operations = plan(desired, FACTS, helper.observe(), NOW, endpoints=endpoints(THEIRS))
        assert not any(helper.apply(operations))
        helper.events()
    assert operations == ()


class Slow(LocalHelper):
    """A child whose Docker has removed what it was asked to by the time somebody asks for events again."""

    def events(self) -> list[Event]:
        for container in list(self.node.docker.containers()):
            self.node.docker.finish_removal(container)
        return super().events()

    node: DockerNode


def test_an_engine_that_takes_its_time_is_waited_for(tmp_path: Path) -> None:
    node = DockerNode(tmp_path)
    before = node.observed()
    helper = Slow(node.host)
    helper.node = node
    come_up(node, helper)
    node.docker.auto = False
    helper.wake()
    taken = take_out(helper, {"net/ipv4/ip_forward": "0"})
    assert taken.left == ()
    assert taken.observed == before
    # What Docker's user made stays, cut off.
    assert THEIRS.sandbox in node.folder.namespaces
    helper.close()


def test_one_that_does_not_end_is_told_of(tmp_path: Path) -> None:
    node = DockerNode(tmp_path)
    helper = node.helper()
    come_up(node, helper)
    node.docker.auto = False
    taken = take_out(helper, {"net/ipv4/ip_forward": "0"}, patience=0.0)
    assert taken.left == ("1 containers are still being removed",)
    # The rest is gone all the same.
    assert (taken.observed.ports, taken.observed.sandboxes) == ({}, {})
    assert taken.observed.host_policy is None
    node.docker.finish_removal(MINE.id)
    helper.events()
    assert take_out(helper, {"net/ipv4/ip_forward": "0"}, patience=0.0).left == ()
    helper.close()
