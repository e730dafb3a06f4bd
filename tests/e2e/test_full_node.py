"""A node with 500 containers: more descriptors than select(2) takes, and nothing to do after a restart."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest

from netctl.client import Client
from netctl.lab.runner import identity_file
from netctl.model import Workload
from netctl.wire.identity import load
from netctl.wire.messages import RunContainer
from tests.support.lab import Lab
from tests.support.netns import wait_for
from tests.support.pairs import two

pytestmark = [pytest.mark.root, pytest.mark.full, pytest.mark.timeout(1200)]

CONTAINERS = 500
AS_DESIRED = "the host is as desired"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Yield a lab of two nodes, the first of which is full."""
    made = Lab(tmp_path_factory.mktemp("lab"), "--nodes", "2")
    made.up()
    with Client(load(identity_file(made.directory))) as client:
        for number in range(CONTAINERS):
            workload = Workload("process", ("sleep", "1000000"))
            client.request(RunContainer(f"c{number}", workload, "n1", timeout=60.0))
    yield made
    made.down()


def helper_of(agent: int) -> int:
    with open(f"/proc/{agent}/task/{agent}/children") as file:  # noqa: PTH123 - one line of the kernel's
        return int(file.read().split()[0])


def test_its_agent_comes_back_and_writes_nothing(lab: Lab) -> None:
    helper = helper_of(lab.pid("n1"))
    assert len(os.listdir(f"/proc/{helper}/fd")) > 1024  # noqa: PTH208 - a count, not paths
    os.kill(lab.pid("n1"), signal.SIGKILL)
    mark = len(lab.log("n1"))
    lab.up()
    wait_for(lambda: AS_DESIRED in lab.log("n1")[mark:], 60, "the first look")
    told = json.loads(next(line for line in lab.log("n1")[mark:].splitlines() if AS_DESIRED in line))
    assert told["count"] == 0


def test_its_helper_goes_on_writing_firewalls(lab: Lab) -> None:
    wait_for(
        lambda: {row["state"] for row in lab.netctl("node", "list", "--json").json} == {"ready"},
        30,
        "the nodes",
    )
    helper = helper_of(lab.pid("n1"))
    with two(lab, "web", "db") as pair:
        assert not pair.tcp(5432)
        lab.netctl("connect", "web", "db", "--port", "5432")
        assert pair.tcp(5432)
        lab.netctl("disconnect", "web", "db")
        assert not pair.tcp(5432)
    # Nobody had to start it again.
    assert helper_of(lab.pid("n1")) == helper
