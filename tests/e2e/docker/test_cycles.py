"""Containers come and go while the agent is killed at any moment: nothing of them is left anywhere."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from netctl.lab.image import IMAGE
from tests.support.docker_lab import DockerLab
from tests.support.netns import wait_for

pytestmark = [pytest.mark.root, pytest.mark.docker]


HEARD = "Docker's calls are heard"
MOST_TRIES = 5
"""Starts tried for each that must succeed: about every other one meets an agent that was just killed."""


def left(lab: DockerLab) -> dict[str, object]:
    """Say what of containers there is on n1, in the kernel, in Docker and at the broker."""
    node = lab.host("n1")
    mounted = Path(f"/proc/{lab.pid('n1 mounts')}/mountinfo").read_text()
    return {
        "links": [
            line.split(":")[1]
            for line in node.ip("-o", "link").splitlines()
            if " nc" in line and " nct" not in line
        ],
        "bridge table": node.run("nft", "list", "table", "bridge", "netctl"),
        "inet table": node.run("nft", "list", "table", "inet", "netctl"),
        # Docker removes the files they were mounted on once a minute.
        "namespaces": sorted(line.split()[4] for line in mounted.splitlines() if " nsfs " in line),
        "endpoints": lab.docker("n1", "network", "inspect", "demo", "--format", "{{json .Containers}}").json,
        "containers": sorted(lab.docker("n1", "ps", "--all", "--quiet").out.split()),
        "recorded": sorted(lab.containers()),
    }


class Killer:
    """Kills the agent of n1 at random moments, and starts it again at once."""

    def __init__(self, lab: DockerLab, seed: int) -> None:
        self._lab, self._random = lab, random.Random(seed)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.killed = 0
        self.failures: list[BaseException] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._end.wait(self._random.uniform(0.0, 3.0)):
                self._lab.end("n1")
                self._end.wait(self._random.uniform(0.0, 0.3))
                mark = len(self._lab.log("n1"))
                self._lab.begin("n1")
                self.killed += 1
                wait_for(lambda mark=mark: HEARD in self._lab.log("n1")[mark:], 20, "the agent's return")
        except BaseException as error:  # noqa: BLE001 - told by the test, whose thread this is not
            self.failures.append(error)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(50, marks=pytest.mark.timeout(400)),
        pytest.param(1000, marks=[pytest.mark.full, pytest.mark.timeout(3600)]),
    ],
)
def test_nothing_is_left(
    docker_lab: DockerLab, count: int, record_property: Callable[[str, object], None]
) -> None:
    lab = docker_lab
    lab.wait_agreed(10)
    before = left(lab)
    choose = random.Random(count)
    started = tried = 0
    with Killer(lab, count) as killer:
        while started < count:
            tried += 1
            assert tried < MOST_TRIES * count, f"only {started} of {tried - 1} started"
            name = f"cycle{tried}"
            done = lab.docker(
                "n1", "run", "--detach", "--name", name, "--network", "demo", IMAGE, status=None
            )
            started += done.status == 0
            if choose.random() < 0.3:
                lab.docker("n1", "restart", "--time", "0", name, status=None)
            if choose.random() < 0.3:
                lab.docker("n1", "network", "disconnect", "demo", name, status=None)
            lab.docker("n1", "rm", "--force", name, status=None)
    assert not killer.failures, killer.failures
    record_property("agents killed", killer.killed)
    record_property("containers started", started)
    record_property("starts tried", tried)
    assert killer.killed > count / 20
    assert tried > started
    lab.wait_agreed(10)
    deadline = time.monotonic() + 10
    while (now := left(lab)) != before:
        assert time.monotonic() < deadline, {key: now[key] for key in now if now[key] != before[key]}
    # And the node works on.
    with lab.pair("web", "db") as pair:
        lab.netctl("connect", "web", "db", "--port", "5432")
        assert pair.tcp(5432)
