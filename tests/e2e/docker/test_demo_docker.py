"""`scripts/demo --docker` tells its whole story on this machine, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.docker_engine import BUSYBOX, COMPOSE, TRIED, Version, search_path

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.timeout(300)]

SAID = (
    "$ netctl lab up --nodes 2 --docker",
    "n1$ docker network create -d netctl --ipam-driver netctl demo",
    "n1$ docker run -d --name web --network demo",
    "web -> db TCP 5432: blocked",
    "$ netctl connect web db --port 5432/tcp",
    "web -> db TCP 5432: passes",
    "web -> db ping: blocked",
    "n1$ docker restart",
    "web -> db TCP 5432: passes",
    "$ netctl disconnect web db",
    "web -> db TCP 5432: blocked",
    "n1$ docker compose",
    "the node being bound to no account: blocked",
    "$ netctl node bind n1 admin",
    "web -> api -> db, the node being bound to an account: passes",
    "web -> db, which no label asks for: blocked",
    "$ netctl run cache --image",
    "--allow-unsafe",
    "web -> cache TCP 5432: passes",
    "$ netctl adopt old",
    "old -> db TCP 5432: passes",
    "no container is recorded any more",
    "it left no namespace, link, table, process or file behind",
)


@pytest.mark.parametrize("version", TRIED)
def test_every_step_comes_out_as_said(version: Version, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "netctl.lab.demo", "--dir", str(tmp_path / "lab"),
            "--docker", "--busybox", str(BUSYBOX), "--compose", str(COMPOSE),
        ],
        capture_output=True, text=True, check=False, timeout=280,
        env={**os.environ, "PATH": search_path(version), "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    place = 0
    for text in SAID:
        found = done.stdout.find(text, place)
        assert found >= 0, f"{text!r} does not come, or not in its order:\n{done.stdout}"
        place = found
    assert not (tmp_path / "lab").exists()
