"""An agent dead or hung: Docker goes on as without us, and nothing opens; back, it takes everything up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from netctl.lab.image import IMAGE
from tests.support.docker_engine import DockerEngine
from tests.support.docker_lab import SETTLED_SECONDS, DockerLab
from tests.support.netns import wait_for

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.timeout(300)]

START_LATER = 1.0
"""Seconds by which an engine's start may be later than without netctl."""
STOP_LATER = 2.0
"""Seconds by which `docker stop` and `docker rm` may take longer."""
AWAY = pytest.mark.parametrize("hung", [False, True], ids=["dead", "hung"])


@pytest.fixture(scope="module")
def usual_start(docker_lab: DockerLab, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Return how long an engine without netctl takes to start again, in seconds: the best of three."""
    with DockerEngine(tmp_path_factory.mktemp("usual"), docker_lab.version) as engine:
        taken = []
        for _ in range(3):
            engine.stop()
            started = time.monotonic()
            engine.start()
            taken.append(time.monotonic() - started)
    return min(taken)


@pytest.fixture
def lab(docker_lab: DockerLab) -> Iterator[DockerLab]:
    yield docker_lab
    for name in ("web", "db", "boot", "usual"):
        for node in docker_lab.nodes:
            docker_lab.docker(node, "rm", "--force", name, status=None)
    docker_lab.wait_agreed(10)


@AWAY
def test_the_engine_starts_as_soon_as_without_us(lab: DockerLab, usual_start: float, *, hung: bool) -> None:
    lab.start("n1", "boot", "--restart", "always")
    with lab.without_agent("n1", hung=hung):
        taken = lab.restart_engine("n1")
        assert taken < usual_start + START_LATER
        refused = lab.docker("n1", "run", "--name", "web", "--network", "demo", IMAGE, "true", status=None)
        assert refused.status != 0
        assert "netctl" in refused.err
        assert "agent" in refused.err
        assert lab.placed("n1", "boot").pid == 0
    # What could not start while nobody was there to let it in.
    wait_for(lambda: lab.placed("n1", "boot").pid > 0, SETTLED_SECONDS, "restart=always")
    lab.wait_agreed()


@AWAY
def test_stop_and_remove_take_no_longer(lab: DockerLab, *, hung: bool) -> None:
    def taken(name: str) -> float:
        started = time.monotonic()
        lab.docker("n1", "stop", "--time", "0", name)
        lab.docker("n1", "rm", name)
        return time.monotonic() - started

    lab.start("n1", "usual", network="none")
    usual = taken("usual")
    lab.start("n1", "web")
    lab.start("n1", "db")
    with lab.without_agent("n1", hung=hung):
        assert taken("web") < usual + STOP_LATER
        started = time.monotonic()
        lab.docker("n1", "rm", "--force", "db")
        assert time.monotonic() - started < usual + STOP_LATER
    lab.wait_agreed()
    assert not {"web", "db"} & set(lab.containers())


@AWAY
def test_flows_go_on_and_what_changed_meanwhile_is_taken_up(lab: DockerLab, *, hung: bool) -> None:
    with lab.pair("web", "db", ("n1", "n2"), "--restart", "always") as pair:
        lab.netctl("connect", "web", "db", "--port", "5432")
        before = lab.placed("n1", "web")
        with lab.without_agent("n1", hung=hung):
            assert pair.tcp(5432)
            assert not pair.tcp(5433)
            # Its process ends, and Docker cannot start it again.
            os.kill(before.pid, signal.SIGKILL)
            wait_for(lambda: lab.placed("n1", "web").pid != before.pid, 5, "the process's end")
        wait_for(lambda: lab.placed("n1", "web").pid > 0, SETTLED_SECONDS, "its return")
        lab.wait_agreed()
        again = lab.refreshed("web", "db")
        wait_for(lambda: again.tcp(5432), 5, "the connection")


def test_a_holder_that_is_killed_comes_back(lab: DockerLab) -> None:
    with lab.pair("web", "db") as pair:
        lab.netctl("connect", "web", "db", "--port", "5432")
        lab.end("n1 driver")
        assert pair.tcp(5432)
        lab.begin("n1 driver")
        wait_for(
            lambda: lab.docker("n1", "restart", "--time", "0", "web", status=None).status == 0, 30, "a start"
        )
        lab.wait_agreed()
        assert lab.refreshed("web", "db").tcp(5432)


def test_with_the_broker_away_containers_start_closed_and_are_recorded_later(lab: DockerLab) -> None:
    lab.start("n2", "db")
    lab.end("broker")
    try:
        web = lab.start("n1", "web")
        assert web.address.startswith("10.1.")
        assert not lab.refreshed("web", "db").tcp(5432)
        assert not lab.refreshed("web", "db").ping()
    finally:
        lab.begin("broker")
    wait_for(lambda: lab.netctl("ps", status=None).status == 0, 10, "the broker")
    lab.wait_agreed(10)
    lab.netctl("connect", "web", "db", "--port", "5432")
    assert lab.refreshed("web", "db").tcp(5432)
