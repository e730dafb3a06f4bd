"""`scripts/demo` tells its whole story on this machine."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from netctl.lab import network

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

SAID = (
    "web -> db TCP 5432: blocked",
    "web -> db ping: blocked",
    "web -> mate IPv6 ping, link-local: blocked",
    "web -> mate IPv6 ping, without the firewall: passes",
    "web -> mate IPv6 ping, after the repair: blocked",
    "$ netctl connect web db --port 5432/tcp",
    "web -> db TCP 5432: passes",
    "web -> db TCP 5433: blocked",
    "db -> web TCP 5432: blocked",
    "web -> db TCP stream: passes",
    "$ netctl disconnect web db",
    "1 s later",
    "attach",
    "connect, across nodes",
    "it left no namespace, link, table, process or file behind",
)


def test_every_step_comes_out_as_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "netctl.lab.demo", "--dir", str(tmp_path / "lab")],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    place = 0
    for text in SAID:
        place = done.stdout.find(text, place)
        assert place >= 0, f"{text!r} does not come, or not in its order:\n{done.stdout}"
    assert not (tmp_path / "lab").exists()


def test_interrupted_twice_it_still_takes_its_lab_down(tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    demo = subprocess.Popen(
        [sys.executable, "-m", "netctl.lab.demo", "--dir", str(lab)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert demo.stdout is not None
    said = ""
    for line in demo.stdout:
        said += line
        if "web runs on" in line:
            assert lab.exists()
            demo.send_signal(signal.SIGHUP)
        elif "taking the lab down" in line:
            demo.send_signal(signal.SIGINT)
    assert demo.wait(timeout=60) == 130, said
    assert "taking the lab down" in said
    assert not lab.exists()
    assert not network.own_namespaces(str(lab))
