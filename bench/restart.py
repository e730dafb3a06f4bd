"""An agent that starts again on a node where everything is as it should be."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from pathlib import Path

from bench.lab import Lab
from bench.statistics import Row, median

AIM = 1.0


def _pid(lab: Lab, name: str) -> int:
    processes = json.loads(lab.netctl("lab", "status", "--json"))["processes"]
    return int(next(row["pid"] for row in processes if row["name"] == name))


def _child(pid: int) -> int:
    """Return the one child of an agent, its helper."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _wait_gone(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        select.select([descriptor], [], [])
        os.close(descriptor)


def measure(lab: Lab, rounds: int, containers: int) -> Row:
    """Kill n1's agent and start it again, `rounds` times; time it until it reports that all is as desired.

    Args:
        lab: With `containers` containers on n1.
        rounds: How often.
        containers: Said in the report.
    """
    agent = _pid(lab, "n1")
    argv = Path(f"/proc/{agent}/cmdline").read_bytes().decode().split("\0")[:-1]
    namespace = os.open(f"/proc/{agent}/ns/net", os.O_RDONLY)
    seconds, operations = [], 0
    for _ in range(rounds):
        helper = _child(agent)
        os.kill(agent, signal.SIGKILL)
        _wait_gone(agent)
        _wait_gone(helper)
        begin = time.perf_counter()
        process = subprocess.Popen(
            ["nsenter", f"--net=/proc/self/fd/{namespace}", "--", *argv],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(namespace,),
            env={**os.environ, "NETCTL_LOG": "info"},
        )
        agent = process.pid
        if process.stderr is None:
            raise RuntimeError("no log")
        for line in process.stderr:
            if b"as desired" in line:
                operations += json.loads(line)["count"]
                break
        seconds.append(time.perf_counter() - begin)
    return Row(
        "an agent's restart with nothing to do",
        "",
        "s",
        seconds,
        (),
        "at most 1 s and zero writes",
        median(seconds) <= AIM and operations == 0,
        f"{containers} containers, {rounds} rounds, {operations} operations written",
    )
