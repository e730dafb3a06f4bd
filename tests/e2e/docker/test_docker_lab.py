"""Labs with Docker: engines of their own, and nothing left of them, in whatever state `down` finds them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from netctl.lab import mounts, processes, topology
from netctl.lab.image import IMAGE
from tests.support.docker_engine import VERSIONS, DockerEngine, Version
from tests.support.docker_lab import DockerLab
from tests.support.lab import listing

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.timeout(300)]


def left(directory: Path) -> list[str]:
    """List what is there of an engine in `directory` or of a lab: mounts, cgroups, processes, folders."""
    namespaces = Path("/run/netns").glob(f"{topology.namespace_prefix(str(directory))}*")
    inside = processes.in_namespaces(namespaces) + processes.with_argument_below(directory)
    return [
        *(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(directory) in line),
        *(
            str(path)
            for path in Path("/sys/fs/cgroup").glob(f"*/{topology.namespace_prefix(str(directory))}*")
        ),
        *(Path(f"/proc/{each.pid}/cmdline").read_text() for each in inside),
        *([str(directory)] if directory.exists() else []),
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_an_engine_in_a_namespace_leaves_nothing(version: Version, tmp_path: Path) -> None:
    before = listing()
    folders = {folder: folder.exists() for folder in mounts.FOLDERS}
    with DockerEngine(tmp_path / "engine", version, live_restore=True) as engine:
        assert engine.docker("version", "--format", "{{.Server.Version}}").out.startswith(version)
        engine.docker("run", "--detach", "--restart", "always", "--name", "one", IMAGE)
        engine.kill()
        engine.start()
        engine.restart()
        assert engine.docker("ps", "--format", "{{.Names}} {{.Status}}").out.startswith("one Up")
        assert "docker0" in engine.namespace.ip("-o", "link")
    assert left(tmp_path / "engine") == []
    assert {folder: folder.exists() for folder in mounts.FOLDERS} == folders
    # Others may be at work on this machine, but nobody else there is called after Docker.
    now = {line for line in listing().network.splitlines() if "docker" in line.lower()}
    assert now <= {*before.network.splitlines()}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[DockerLab]:
    """Yield a lab of one node with Docker that is not up yet."""
    made = DockerLab(tmp_path / "lab", "20.10", nodes=1)
    yield made
    if made.directory.exists():
        made.down()
    assert left(made.directory) == []


def test_up_twice_is_up_once_and_what_ended_is_started_again(lab: DockerLab) -> None:
    lab.up()
    first = {row["name"]: row["pid"] for row in lab.state()["processes"]}
    assert {"n1 mounts", "n1 driver", "n1 docker", "n1", "n1 helper", "broker"} == set(first)
    lab.up()
    assert {row["name"]: row["pid"] for row in lab.state()["processes"]} == first
    lab.furnish()
    placed = lab.start("n1", "web", "--restart", "always")
    assert placed.address.startswith("10.1.")
    assert lab.netctl("lab", "docker", "n1", "--", "ps", "-q").out.strip() == placed.id[:12]
    for process in ("n1 mounts", "n1 driver", "n1 docker", "n1"):
        lab.end(process)
    lab.up()
    again = {row["name"]: row["pid"] for row in lab.state()["processes"]}
    assert not {again[name] for name in ("n1 mounts", "n1 driver", "n1 docker", "n1")} & {*first.values()}
    lab.wait_agreed(10)


def test_a_lab_whose_processes_were_killed_goes_with_its_containers(lab: DockerLab) -> None:
    lab.up()
    lab.furnish()
    lab.start("n1", "web", "--restart", "always")
    for row in lab.state()["processes"]:
        if row["name"] != "broker":
            os.kill(row["pid"], signal.SIGKILL)
    lab.down()
    assert left(lab.directory) == []


def test_a_lab_without_docker_says_so(lab: DockerLab) -> None:
    lab._options = ("--nodes", "1")
    lab.up()
    refused = lab.netctl("lab", "docker", "n1", "--", "ps", status=1)
    assert "--docker" in refused.err
    missing = lab.netctl("lab", "docker", "n7", "--", "ps", status=1)
    assert "n1" in missing.err
