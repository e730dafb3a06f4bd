"""Restarts, kills and removals by Docker's user, and an engine that stops, dies or dies while it creates."""

from __future__ import annotations

import subprocess
import time

import pytest

from netctl.lab.image import IMAGE
from tests.support.docker_lab import DockerLab
from tests.support.netns import wait_for

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.mark.parametrize("how", ["restart", "kill and start"])
def test_connections_follow_a_container_that_comes_again(docker_lab: DockerLab, how: str) -> None:
    lab = docker_lab
    with lab.pair("web", "db") as pair:
        lab.netctl("connect", "web", "db", "--port", "5432")
        assert pair.tcp(5432)
        for node, name in (("n1", "web"), ("n2", "db")):
            if how == "restart":
                lab.docker(node, "restart", "--time", "0", name)
            else:
                lab.docker(node, "kill", name)
                lab.wait_agreed()
                lab.docker(node, "start", name)
            lab.wait_agreed()
            again = lab.refreshed("web", "db")
            wait_for(lambda again=again: again.tcp(5432), 5, "the connection")
            assert not again.tcp(5433)
            assert not again.tcp_back(5432)


def test_remove_by_force_takes_everything_with_it(docker_lab: DockerLab) -> None:
    lab = docker_lab
    with lab.pair("web", "db"):
        lab.netctl("connect", "web", "db", "--port", "5432")
        lab.docker("n2", "rm", "--force", "db")
        lab.wait_agreed()
        assert not lab.netctl("connections", "--json").json
        placed = lab.start("n2", "db")
        # A new container of the name inherits nothing.
        assert not lab.refreshed("web", "db").tcp(5432)
        assert placed.address == lab.address("db")


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("live_restore", [False, True], ids=["containers end", "live-restore"])
def test_an_engine_that_comes_again(docker_lab: DockerLab, *, kill: bool, live_restore: bool) -> None:
    lab = docker_lab
    with (
        lab.live_restore("n1", on=live_restore),
        lab.pair("web", "db", ("n1", "n2"), "--restart", "always") as pair,
    ):
        lab.netctl("connect", "web", "db", "--port", "5432")
        assert pair.tcp(5432)
        before = lab.placed("n1", "web")
        lab.restart_engine("n1", kill=kill)
        lab.wait_agreed()
        if live_restore:
            assert lab.placed("n1", "web") == before
            assert pair.tcp(5432)
        wait_for(lambda: lab.placed("n1", "web").pid > 0, 5, "the container's return")
        again = lab.refreshed("web", "db")
        wait_for(lambda: again.tcp(5432), 5, "the connection")
        assert not again.tcp(5433)


def test_flows_go_on_while_the_engine_is_away(docker_lab: DockerLab) -> None:
    lab = docker_lab
    with lab.live_restore("n1"), lab.pair("web", "db") as pair:
        lab.netctl("connect", "web", "db", "--port", "5432")
        lab.end("n1 docker")
        assert pair.tcp(5432)
        assert not pair.tcp(5433)
        # Nobody can say now what became of it, so what is recorded stays.
        assert lab.containers()["web"]["node"] == "n1"
        lab.begin_engine("n1")
        lab.wait_agreed()
        assert pair.tcp(5432)


def test_an_engine_that_dies_while_it_creates(docker_lab: DockerLab) -> None:
    lab = docker_lab
    try:
        for number in range(4):
            client = subprocess.Popen(
                ["docker", "run", "--detach", "--name", f"cut{number}", "--network", "demo", IMAGE],
                env=lab.docker_environment("n1"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            # From before the endpoint is asked for until the process runs: starts take some 300 ms.
            time.sleep(0.03 + 0.09 * number)
            lab.restart_engine("n1", kill=True)
            client.wait(30)
            lab.wait_agreed()
    finally:
        for number in range(4):
            lab.docker("n1", "rm", "--force", f"cut{number}", status=None)
    lab.wait_agreed()
    wait_for(lambda: not [name for name in lab.containers() if name.startswith("cut")], 5, "the records' end")
