"""Labs: up twice is up once, two do not meet, and down leaves nothing, in whatever state it finds them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from netctl.lab import processes, registry, topology
from tests.support.lab import PROGRAMS, Lab
from tests.support.netns import ping_passes, wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@attrs.frozen
class Trace:
    """Everything on this machine that is one lab's."""

    namespaces: tuple[str, ...]
    processes: tuple[int, ...]
    registered: bool
    directory: bool
    cgroups: tuple[str, ...]


def trace(lab: Lab, containers: tuple[str, ...] = ()) -> Trace:
    prefix = topology.namespace_prefix(str(lab.directory))
    spaces = sorted(path for path in Path("/run/netns").glob(f"{prefix}*"))
    cgroups = [path for name in containers for path in Path("/sys/fs/cgroup").rglob(name)]
    inside = processes.in_namespaces(spaces) + processes.with_argument_below(lab.directory)
    return Trace(
        tuple(path.name for path in spaces),
        tuple(sorted({process.pid for process in inside})),
        str(lab.directory) in registry.labs_up(),
        lab.directory.exists(),
        tuple(str(path) for path in cgroups),
    )


NOTHING = Trace((), (), registered=False, directory=False, cgroups=())


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Yield a lab of one node that is not up yet, and take it down if the test has not."""
    made = Lab(tmp_path / "lab", "--nodes", "1")
    yield made
    if made.directory.exists():
        made.down()
    assert trace(made) == NOTHING


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Yield a lab of one node that is up, for tests that need no other."""
    made = Lab(tmp_path_factory.mktemp("standing"), "--nodes", "1")
    made.up()
    yield made
    made.down()
    assert trace(made) == NOTHING


def host_links() -> str:
    return subprocess.run(["ip", "-o", "link", "show"], capture_output=True, text=True, check=True).stdout


def test_up_twice_is_up_once_and_a_lab_grows(lab: Lab) -> None:
    links = host_links()
    lab.up()
    first, state = trace(lab), lab.state()
    files = {path.name for path in lab.directory.iterdir()}
    lab.up()
    assert trace(lab) == first
    assert lab.state()["processes"] == state["processes"]
    assert {path.name for path in lab.directory.iterdir()} == files

    refused = lab.netctl("lab", "up", "--dir", str(lab.directory), "--mtu", "1400", status=1)
    assert "netctl lab down" in refused.err
    assert trace(lab) == first

    lab.netctl("lab", "up", "--dir", str(lab.directory), "--nodes", "2")
    rows = lab.netctl("node", "list", "--json").json
    assert [(row["name"], row["block"]) for row in rows] == [("n1", "10.1.0.0/16"), ("n2", "10.2.0.0/16")]
    grown = {row["name"]: row["pid"] for row in lab.state()["processes"]}
    assert {name: grown[name] for name in ("broker", "n1")} == {
        row["name"]: row["pid"] for row in state["processes"] if row["name"] in ("broker", "n1")
    }
    assert ping_passes(lab.host("n1"), "172.31.1.2")
    assert host_links() == links
    lab.down()
    assert trace(lab) == NOTHING


def test_what_ended_is_started_again(standing: Lab) -> None:
    before = {row["name"]: row["pid"] for row in standing.state()["processes"]}
    os.kill(before["broker"], signal.SIGKILL)
    standing.up()
    after = {row["name"]: row["pid"] for row in standing.state()["processes"]}
    assert after["broker"] not in (None, before["broker"])
    assert after["n1"] == before["n1"]


def test_the_broker_has_no_right_at_all(standing: Lab) -> None:
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{standing.pid('broker')}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert {status[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert standing.directory.joinpath("broker").stat().st_mode & 0o777 == 0o700


def test_two_labs_do_not_meet(lab: Lab, tmp_path: Path) -> None:
    other = Lab(tmp_path / "other", "--nodes", "1")
    lab.up()
    try:
        other.up()
        lab.run("web")
        assert lab.address("web") == "10.1.0.2"
        other.run("db")
        assert other.address("db") == "10.1.0.2"
        assert list(lab.containers()) == ["web"]
        # The same addresses in both, and each reaches only its own broker.
        assert not set(trace(lab).namespaces) & set(trace(other).namespaces)

        environment = {key: value for key, value in os.environ.items() if key != "NETCTL_LAB"}
        done = subprocess.run(
            [str(PROGRAMS / "netctl"), "ps"], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert str(lab.directory) in done.stderr
        assert str(other.directory) in done.stderr
        assert lab.netctl("--lab", str(other.directory), "inspect", "db", "--json").json["name"] == "db"
    finally:
        other.down()
    assert trace(other) == NOTHING
    assert lab.containers()["web"]["state"] == "running"


def test_a_lab_whose_processes_were_all_killed_goes_too(lab: Lab) -> None:
    lab.up()
    lab.run("web")
    container = str(lab.netctl("inspect", "web", "--json").json["id"])
    running = trace(lab, (container,))
    assert running.cgroups
    for row in lab.state()["processes"]:
        os.kill(row["pid"], signal.SIGKILL)
    # Without its identity the node cannot even leave in order.
    (lab.directory / "n1" / "state" / "identity").unlink()
    lab.down()
    assert trace(lab, (container,)) == NOTHING
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in running.processes), 5, "their end")


def test_a_lab_whose_files_were_removed_goes_too(lab: Lab) -> None:
    lab.up()
    lab.run("web")
    shutil.rmtree(lab.directory)
    assert trace(lab).processes
    lab.down()
    assert trace(lab) == NOTHING


def test_a_shell_in_a_nodes_namespace(standing: Lab) -> None:
    shown = standing.netctl("lab", "shell", "n1", "--", "ip", "-br", "addr", "show", "eth0")
    assert "172.31.1.1/16" in shown.out
    assert standing.netctl("lab", "shell", "n1", "--", "sh", "-c", "exit 7", status=7).out == ""
    assert "n1" in standing.netctl("lab", "shell", "n9", status=1).err


def test_a_directory_that_is_something_else_is_left_alone(lab: Lab) -> None:
    lab.directory.mkdir()
    precious = lab.directory / "precious"
    precious.touch()
    refused = lab.netctl("lab", "up", "--dir", str(lab.directory), status=1)
    assert "not empty" in refused.err
    assert "no lab" in lab.netctl("lab", "down", "--dir", str(lab.directory), status=1).err
    assert [path.name for path in lab.directory.iterdir()] == ["precious"]
    precious.unlink()
    lab.directory.rmdir()
