"""Where the tests run that need something of the kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.lab_kernel import KERNEL_LAB, LACKING, command, main, marked_files

OURS = "tests/netns/test_gre.py"


class Started:
    """Commands that were started, none of them for real."""

    def __init__(self, which: int = 0, batch: int = 0) -> None:
        self._statuses = {"which": which, "run": batch}
        self.batches: list[Sequence[str]] = []

    def __call__(self, command: Sequence[str]) -> int:
        assert command[0] == str(KERNEL_LAB)
        if command[1] == "run":
            self.batches.append(command)
        return self._statuses[command[1]]


def test_nothing_is_a_batch_where_the_kernel_has_everything() -> None:
    started = Started()
    assert main((), (), {}, started) == 0
    assert started.batches == []


@pytest.mark.parametrize("status", [0, 1, 125])
def test_what_the_kernel_lacks_is_one_batch_and_its_status_counts(status: int) -> None:
    started = Started(batch=status)
    assert main((), ("gre", "netem"), {}, started) == status
    assert len(started.batches) == 1
    assert f"{LACKING}=gre,netem" in started.batches[0]
    assert OURS in started.batches[0]


def test_arguments_are_for_pytest() -> None:
    started = Started()
    main((OURS, "-k", "mtu"), ("gre",), {}, started)
    assert started.batches[0][-3:] == (OURS, "-k", "mtu")


def test_arguments_that_name_no_file_are_for_the_whole_batch() -> None:
    started = Started()
    main(("-k", "mtu"), ("gre",), {}, started)
    assert started.batches[0][-len(marked_files()) :] == marked_files()


@pytest.mark.parametrize(("ci", "status"), [("true", 1), ("", 0)])
def test_a_skip_says_so_and_is_a_failure_in_ci(
    capsys: pytest.CaptureFixture[str], ci: str, status: int
) -> None:
    started = Started(which=125)
    assert main((), ("gre",), {"CI": ci}, started) == status
    assert started.batches == []
    assert capsys.readouterr().out.startswith("SKIPPED the tests that need gre")


def test_results_are_written_where_the_guest_may_write(tmp_path: Path) -> None:
    wanted = command(("gre",), tmp_path / "kernel.json", (OURS,))
    assert wanted[wanted.index("-w") + 1] == str(tmp_path)
    assert wanted.index("-w") < wanted.index("--")
    assert wanted[wanted.index("--results") + 1] == str(tmp_path / "kernel.json")


def test_only_files_with_the_marker_are_collected() -> None:
    assert OURS in marked_files()
    assert "tests/unit/test_imports.py" not in marked_files()


@pytest.mark.parametrize("arguments", [(), ("run",), ("run", "--"), ("start",), ("run", "-x", "--", "true")])
def test_the_script_says_how_it_is_used(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([KERNEL_LAB, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "scripts/kernel-lab run" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "kernel", "message"),
    [
        (("run", "--", "true"), "/nonexistent", "NETCTL_LAB_KERNEL names /nonexistent, which cannot be read"),
        (("which",), "/etc/passwd", "NETCTL_LAB_KERNEL names /etc/passwd, which is no program"),
        (("run", "--", "true"), "", "build one with `scripts/kernel-lab build`"),
        (("run", "-w", "/nonexistent", "--", "true"), "", "there is no folder /nonexistent"),
        (("run", "-w", "/", "--", "true"), "", "-w wants a folder below the root"),
        (("run", "-m", "much", "--", "true"), "/bin/true", "much is no amount of memory"),
    ],
)
def test_the_script_says_what_is_wrong(
    tmp_path: Path, arguments: tuple[str, ...], kernel: str, message: str
) -> None:
    done = subprocess.run(
        [KERNEL_LAB, *arguments],
        env={"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path), "NETCTL_LAB_KERNEL": kernel},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 125
    assert message in done.stderr


def test_a_kernel_that_does_not_boot_is_told_from_a_command_that_fails(tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_text("#!/bin/sh\necho it went wrong\nexit 3\n")
    kernel.chmod(0o755)
    done = subprocess.run(
        [KERNEL_LAB, "run", "--", "true"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "NETCTL_LAB_KERNEL": str(kernel)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 125
    assert "it went wrong" in done.stderr
    assert "did not run to its end" in done.stderr
