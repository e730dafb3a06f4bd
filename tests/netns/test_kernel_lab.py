"""`scripts/kernel-lab run`: a command on the lab kernel, as its caller sees it."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from tests.support.lab_kernel import KERNEL_LAB

LEFT = """
uname -r
pwd
echo "$NOTED"
echo kept >"$1/kept"
echo lost >"$2/lost"
head -c 2000000 /dev/zero
echo 'to the other stream' >&2
exit 7
"""


@pytest.fixture(autouse=True)
def _a_kernel() -> None:
    if subprocess.run([KERNEL_LAB, "which"], capture_output=True, check=False).returncode != 0:
        pytest.skip("there is no lab kernel; scripts/kernel-lab build makes one")


def test_a_command_runs_as_here_but_leaves_nothing(tmp_path: Path) -> None:
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    other.mkdir()
    done = subprocess.run(
        [KERNEL_LAB, "run", "-m", "256M", "-w", shared, "--", "bash", "-c", LEFT, "job", shared, other],
        cwd=tmp_path,
        env={**os.environ, "NOTED": "two words"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr.decode()
    release, folder, noted, zeros = done.stdout.split(b"\n", 3)
    assert release.decode() != platform.release(), "the control: it is another kernel"
    assert (folder.decode(), noted) == (str(tmp_path), b"two words")
    assert zeros == bytes(2_000_000)
    assert done.stderr == b"to the other stream\n"
    assert (shared / "kept").read_text() == "kept\n"
    assert not (other / "lost").exists()
