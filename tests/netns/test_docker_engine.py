"""The engine `docker` on real engines: hard defaults as a process sees them, terminals, crashes, latency."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import statistics
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firewall_rules.backends.fake import FakeHostBackend
from netctl.model import Workload
from nodeagent.apply import Host
from nodeagent.engine.base import ExecRequest
from nodeagent.engine.docker_http import get_stream
from nodeagent.execs import Execs
from nodeagent.helper_messages import DockerAway, DockerChanged, DockerListed, ExecEnded, OpenExec
from nodeagent.kernel.fake import FakeKernel
from tests.support.docker_engine import IMAGE, VERSIONS, DockerEngine, Version
from tests.support.engines import BLOCK, DockerRig, execute, new_id, running, until, until_state
from tests.support.netns import wait_for

pytestmark = [pytest.mark.root, pytest.mark.docker]


@pytest.fixture(scope="module", params=VERSIONS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerEngine]:
    version: Version = request.param
    with DockerEngine(tmp_path_factory.mktemp("engine"), version) as engine:
        yield engine


@pytest.fixture
def rig(real: DockerEngine, tmp_path: Path) -> Iterator[DockerRig]:
    rig = DockerRig(tmp_path, real)
    yield rig
    rig.close()


def test_a_container_has_no_right_that_it_was_not_given(rig: DockerRig) -> None:
    container = running(rig)
    script = (
        "grep -E 'Cap(Eff|Bnd)|NoNewPrivs|Seccomp:|^Uid' /proc/self/status; "
        "touch /x; touch /run/x /tmp/x; cat /proc/1/comm"
    )
    code, out, err, _ = execute(rig.engine, container, ("sh", "-c", script))
    assert code == 0
    seen = dict(line.split(":\t", 1) for line in out.splitlines() if ":\t" in line)
    assert seen["CapBnd"] == seen["CapEff"] == "0" * 16
    assert seen["NoNewPrivs"] == "1"
    assert seen["Seccomp"] == "2"
    assert seen["Uid"].split() == ["65534"] * 4
    assert err == "touch: /x: Read-only file system\n"
    assert out.splitlines()[-1] == "docker-init"


def test_what_was_loosened_is_loose_and_nothing_else(rig: DockerRig) -> None:
    container = new_id()
    workload = Workload(
        "docker", ("sleep", "1000"), image=IMAGE, user="root", cap_add=("CHOWN",),
        loosened=("root-user", "writable-root"), memory=64 * 2**20, cpus=0.5,
    )  # fmt: skip
    rig.engine.create(container, "loose", "10.1.0.7", workload, BLOCK)
    until_state(rig.engine, container, "created")
    rig.engine.start(container, 1)
    until_state(rig.engine, container, "running")
    script = "touch /x && chown 5 /x && grep -E 'CapEff|NoNewPrivs' /proc/self/status"
    code, out, err, _ = execute(rig.engine, container, ("sh", "-c", script))
    assert (code, err) == (0, "")
    assert out == "CapEff:\t0000000000000001\nNoNewPrivs:\t1\n"
    host = json.loads(rig.real.docker("inspect", "loose", "--format", "{{json .HostConfig}}").out)
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (64 * 2**20, 500_000_000, 1024)


def test_a_terminal_is_one_and_follows_its_users_size(rig: DockerRig) -> None:
    container = running(rig)
    ended: list[ExecEnded] = []
    execs = Execs(Host(FakeKernel(), None, FakeHostBackend(), [rig.engine]))
    began = time.monotonic()
    _, (master,) = execs.open(OpenExec(container, ("sh",), tty=True, rows=33, columns=77), ended.append)
    assert time.monotonic() - began < 1.0

    def shown(text: bytes) -> None:
        out = b""
        deadline = time.monotonic() + 15
        while text not in out:
            assert time.monotonic() < deadline, out
            if select.select([master], [], [], 0.2)[0]:
                out += os.read(master, 4096)

    os.write(master, b"tty; while :; do stty size; sleep 0.1; done\n")
    shown(b"/dev/pts/")
    shown(b"33 77")
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    shown(b"40 100")
    os.write(master, b"\x03\nexit 9\n")
    until(rig.engine, lambda: bool(ended))
    assert ended == [ExecEnded(1, 9)]
    os.close(master)


def test_a_command_whose_user_went_away_leaves_no_process(rig: DockerRig) -> None:
    container = running(rig)
    ended: list[tuple[int, str]] = []
    stdin, to_stdin = os.pipe()
    out, to_out = os.pipe()
    script = "trap '' HUP; sleep 777 & echo ready; wait"
    request = ExecRequest(("sh", "-c", script), (), "", tty=False, stdin=stdin, stdout=to_out, stderr=to_out)
    handle = rig.engine.exec(container, request, lambda *end: ended.append(end))
    os.close(stdin)
    os.close(to_out)
    assert os.read(out, 10) == b"ready\n"
    assert "sleep 777" in execute(rig.engine, container, ("ps",))[1]
    rig.engine.kill_exec(handle)
    until(rig.engine, lambda: bool(ended))
    assert ended[0][0] >= 128
    assert "sleep 777" not in execute(rig.engine, container, ("ps",))[1]
    os.close(to_stdin)
    os.close(out)


def test_a_command_that_docker_cannot_run_says_why(rig: DockerRig) -> None:
    code, out, _, message = execute(rig.engine, running(rig), ("nosuch",))
    assert code in (126, 127)
    assert out == ""
    assert "nosuch" in message


def test_an_engine_killed_and_started_again_is_taken_up_where_it_is(rig: DockerRig) -> None:
    news: list[object] = []
    rig.engine.listen(news.append)
    container = running(rig)
    rig.real.kill()
    until_state(rig.engine, container, "unknown")
    assert isinstance(news[-1], DockerAway)
    rig.real.start()
    began = time.monotonic()
    until_state(rig.engine, container, "running", "exited")
    assert time.monotonic() - began < 5
    status = rig.real.docker("inspect", "web", "--format", "{{.State.Status}}").out.strip()
    seen = rig.engine.containers()[container]
    assert (seen.state, seen.generation) == (status, 1)
    assert isinstance(next(one for one in reversed(news) if isinstance(one, DockerListed)), DockerListed)


def test_an_engine_killed_in_the_middle_of_creating_ends_with_the_container_once_or_not_at_all(
    rig: DockerRig,
) -> None:
    containers = [new_id() for _ in range(6)]
    for number, container in enumerate(containers):
        rig.engine.create(container, f"c{number}", f"10.1.0.{number + 2}", rig.workload(container), BLOCK)
    until(rig.engine, lambda: any(one.state == "created" for one in rig.engine.containers().values()))
    rig.real.kill()
    rig.real.start()
    # What the agent does: what is gone is made again.
    deadline = time.monotonic() + 15
    while {c for c, one in rig.engine.containers().items() if one.state == "created"} != set(containers):
        assert time.monotonic() < deadline, dict(rig.engine.containers())
        select.select(rig.engine.descriptors(), [], [], 0.1)
        rig.engine.dispatch(lambda *_: None)
        for number, container in enumerate(containers):
            if container not in rig.engine.containers():
                with contextlib.suppress(Exception):
                    rig.engine.create(container, f"c{number}", f"10.1.0.{number + 2}", rig_workload(), BLOCK)
    made = rig.real.docker(
        "ps", "-a", "--filter", "label=netctl.id", "--format", '{{.Label "netctl.id"}}'
    ).out
    assert sorted(made.split()) == sorted(containers)


def rig_workload() -> Workload:
    return Workload("docker", ("sleep", "1000"), image=IMAGE)


def test_a_container_without_a_network_is_adopted_and_another_is_left_alone(rig: DockerRig) -> None:
    for name, network in (("lone", "none"), ("social", "bridge")):
        rig.real.docker("run", "--detach", "--name", name, "--network", network, IMAGE)
    try:
        results = {}
        for name in ("lone", "social", "nosuch"):
            ended: list[tuple[int, str]] = []
            rig.engine.adopt(name, BLOCK, lambda *end, ended=ended: ended.append(end))  # type: ignore[misc]
            until(rig.engine, lambda ended=ended: bool(ended))  # type: ignore[misc]
            results[name] = ended[0]
        docker_id = rig.real.docker("inspect", "lone", "--format", "{{.Id}}").out.strip()
        assert results["lone"] == (0, docker_id)
        assert "has a network already: bridge" in results["social"][1]
        assert results["nosuch"][0] != 0
        assert "inet 10.1.0." in rig.real.docker("exec", "lone", "ip", "-4", "addr").out
    finally:
        rig.real.docker("rm", "--force", "lone", "social")


def test_news_of_a_container_come_long_before_its_first_process(rig: DockerRig) -> None:
    """Measured from the event's own time: Docker's part of it is not ours to shorten."""
    rig.real.docker("network", "create", "demo")
    heard: dict[str, float] = {}
    happened: dict[str, float] = {}
    response, sock = get_stream(
        str(rig.real.files.socket), "/v1.41/events", {"filters": '{"type":["network"]}'}, 5
    )

    def listen() -> None:
        while line := response.readline():
            event = json.loads(line)
            if event["Action"] == "connect":
                happened[event["Actor"]["Attributes"]["container"]] = event["timeNano"] / 1e9

    def hear(news: object) -> None:
        if isinstance(news, DockerChanged) and news.container is not None and news.container.endpoint:
            heard.setdefault(news.docker_id, time.time())

    threading.Thread(target=listen, daemon=True).start()
    rig.engine.listen(hear)
    made: list[str] = []

    def start() -> None:
        for _ in range(15):
            arguments = ["docker", "--host", rig.real.url, "run", "--detach", "--network", "demo", IMAGE]
            made.append(subprocess.run(arguments, capture_output=True, check=True, text=True).stdout.strip())

    thread = threading.Thread(target=start)
    thread.start()
    try:
        until(rig.engine, lambda: len(made) == 15 and set(made) <= set(heard), seconds=60)
        wait_for(lambda: set(made) <= set(happened))
        delays = [(heard[one] - happened[one]) * 1000 for one in made]
        assert statistics.median(delays) < 10, delays
    finally:
        thread.join()
        sock.shutdown(2)
        rig.real.docker("rm", "--force", *made)
        rig.real.docker("network", "rm", "demo")
