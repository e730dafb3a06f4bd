"""`scripts/install` puts everything where the units look for it, and `scripts/uninstall` leaves nothing."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
pytestmark = pytest.mark.timeout(600)


def script(name: str, *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [str(SCRIPTS / name), *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stderr


def tree(root: Path) -> set[str]:
    """List what is there, the virtual environment's insides left out."""
    found = set()
    for folder, folders, files in os.walk(root):
        if folder.endswith("/venv"):
            folders.clear()
            continue
        found |= {str(Path(folder, name).relative_to(root)) for name in (*folders, *files)}
    return found


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield a host with both roles, on which a program of ours' name was before."""
    root = tmp_path_factory.mktemp("host")
    theirs = root / "usr/local/bin/nodeagent"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    before = tree(root)
    script("install", "--root", str(root), "broker")
    assert "left alone" in script("install", "--root", str(root), "node", "--docker")
    yield root
    script("uninstall", "--root", str(root))
    assert tree(root) == before
    assert theirs.read_text() == "theirs"


def test_installing_again_changes_nothing(host: Path) -> None:
    before = tree(host)
    assert {"var/lib/netctl/broker", "var/lib/netctl/node", "usr/local/bin/netctl"} <= before
    script("install", "--root", str(host), "node")
    assert tree(host) == before


def test_state_is_its_owners_alone(host: Path) -> None:
    for role in ("broker", "node"):
        assert (host / "var/lib/netctl" / role).stat().st_mode & 0o777 == 0o700


def test_units_start_programs_that_are_there_and_run(host: Path) -> None:
    for role, program in (("broker", "netctl"), ("node", "nodeagent"), ("driver", "nodeagent-driver")):
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment]  # keys of units are case-sensitive
        unit.read(host / f"etc/systemd/system/netctl-{role}.service")
        started = Path(unit["Service"]["ExecStart"].split()[0])
        assert started.name == program
        link = host / str(started).lstrip("/")
        assert link.resolve() == (host / "opt/netctl/venv/bin" / program)
        assert link.read_text().startswith("#!/opt/netctl/venv/bin/python")
    python = host / "opt/netctl/venv/bin/python"
    # Away from the checkout, so that it is the installed package that runs.
    shown = subprocess.run(
        [str(python), "-m", "netctl.cli.main", "version"],
        cwd=host, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.startswith("netctl ")


def test_the_broker_has_no_right(host: Path) -> None:
    lines = (host / "etc/systemd/system/netctl-broker.service").read_text().splitlines()
    for line in ("User=netctl", "CapabilityBoundingSet=", "AmbientCapabilities=", "NoNewPrivileges=yes"):
        assert line in lines


def test_the_driver_is_ready_before_docker_and_has_no_right(host: Path) -> None:
    lines = (host / "etc/systemd/system/netctl-driver.service").read_text().splitlines()
    for line in ("Before=docker.service", "Type=notify", "Restart=always", "CapabilityBoundingSet="):
        assert line in lines
    # Its sockets lie in folders that others use as well.
    assert "RuntimeDirectoryPreserve=yes" in lines


def test_systemd_understands_every_unit(host: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    # Where there is no systemd, nothing reads the units.
    for role in ("broker", "node", "driver") if analyze is not None else ():
        unit = f"/etc/systemd/system/netctl-{role}.service"
        checked = subprocess.run(
            [str(analyze), "verify", "--man=no", "--recursive-errors=no", f"--root={host}", unit],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def test_the_agents_restart_spares_containers(host: Path) -> None:
    lines = (host / "etc/systemd/system/netctl-node.service").read_text().splitlines()
    assert "KillMode=mixed" in lines
    assert "RuntimeDirectoryPreserve=yes" in lines


def test_an_installation_that_did_not_finish_is_taken_out(tmp_path: Path) -> None:
    (tmp_path / "opt/netctl/venv/bin").mkdir(parents=True)
    (tmp_path / "opt/netctl/made").write_text("/opt/netctl\n/opt\n")
    assert "uninstalled" in script("uninstall", "--root", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_wrong_usage(tmp_path: Path) -> None:
    assert "broker or node" in script("install", "--root", str(tmp_path), status=2)
    assert "goes with the role node" in script("install", "broker", "--docker", status=2)
    assert "'rocket'" in script("install", "rocket", status=2)
    assert "nothing is installed" in script("uninstall", "--root", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
