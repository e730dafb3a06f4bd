"""Processes are ended by pid and start time, and by nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import attrs

from netctl.lab import processes
from tests.support.netns import wait_for

SLEEP = ("/bin/sleep", "1000")
STUBBORN = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
signal.pause()
"""


def spawn(tmp_path: Path, *argv: str) -> processes.ProcessId:
    return processes.spawn(argv, tmp_path / "log", {"PATH": os.environ["PATH"]})


def test_a_process_is_known_until_it_ends(tmp_path: Path) -> None:
    process = spawn(tmp_path, *SLEEP)
    assert processes.alive(process)
    assert processes.identify(process.pid) == process
    assert process.pid in processes.children(os.getpid())
    assert processes.stop([process]) == ()
    assert not processes.alive(process)
    assert processes.identify(process.pid) is None


def test_another_process_with_the_same_pid_is_left_alone(tmp_path: Path) -> None:
    process = spawn(tmp_path, *SLEEP)
    earlier = attrs.evolve(process, started=process.started - 1)
    assert not processes.alive(earlier)
    assert processes.stop([earlier]) == ()
    assert processes.alive(process)
    processes.stop([process])


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    process = spawn(tmp_path, sys.executable, "-c", STUBBORN)
    wait_for(lambda: "ready" in (tmp_path / "log").read_text(), 10, "its start")
    assert processes.stop([process], grace=0.1) == ()
    assert not processes.alive(process)


def test_one_that_was_halted_still_ends_in_order(tmp_path: Path) -> None:
    process = spawn(tmp_path, *SLEEP)
    os.kill(process.pid, signal.SIGSTOP)
    assert processes.stop([process], grace=5.0) == ()
    assert not processes.alive(process)


def test_output_is_appended_to_the_log(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    process = spawn(tmp_path, "/bin/sh", "-c", "echo out; echo err >&2")
    wait_for(lambda: not processes.alive(process), 10, "its end")
    assert (tmp_path / "log").read_text() == "before\nout\nerr\n"
    processes.stop([process])


def test_only_processes_with_an_argument_below_the_directory_are_found(tmp_path: Path) -> None:
    shim, pause = "import signal  # a shim\nsignal.pause()", "import signal; signal.pause()"
    inside = spawn(tmp_path, sys.executable, "-c", shim, f"{tmp_path}/lab/n1")
    beside = spawn(tmp_path, sys.executable, "-c", shim, f"{tmp_path}/laboratory/n1")
    other = spawn(tmp_path, sys.executable, "-c", pause, f"{tmp_path}/lab/n1")
    try:
        assert processes.with_argument_below(tmp_path / "lab", "a shim") == (inside,)
        assert set(processes.with_argument_below(tmp_path / "lab")) == {inside, other}
    finally:
        processes.stop([inside, beside, other])


def test_nobody_is_in_a_namespace_that_is_none(tmp_path: Path) -> None:
    # A name whose mount is gone is a plain file; our own namespace must never be taken for a lab's.
    plain = tmp_path / "file"
    plain.touch()
    assert processes.in_namespaces([plain, tmp_path / "missing", Path("/proc/self/ns/net")]) == ()


def test_a_name_with_parentheses_is_read_right(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 1 (b"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(program), "1000"])
    try:
        found = processes.identify(process.pid)
        assert found is not None
        assert process.pid in processes.children(os.getpid())
    finally:
        process.kill()
        process.wait()
