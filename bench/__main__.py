"""`python -m bench`: every measurement in one run, as a table on stdout and as data in bench/report.json."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs

from bench import attach, by_hand, control, docker, joins, restart, traffic, tunnels
from bench.lab import Lab, lab
from bench.statistics import Row, markdown, median, p99, ratio
from tests.support.docker_engine import BUSYBOX
from tests.support.lab import Lab as LabUnderTest

HERE = Path(__file__).parent
NAMES = ("attach", "control", "join", "traffic", "tunnels", "restart", "docker")


def machine() -> str:
    """Return one line about when and where."""
    commit = subprocess.run(
        ["git", "-C", str(HERE.parent), "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    today = dt.datetime.now(dt.UTC).date()
    return (
        f"{today}, commit {commit or 'unknown'}, {os.cpu_count()} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}, all nodes on one machine"
    )


def _up(up: Lab, count: int, nodes: int) -> None:
    for number in range(count):
        up.run(f"c{number}", f"n{number % nodes + 1}")


def _run(only: set[str], *, quick: bool, scratch: Path) -> list[Row]:
    rows: list[Row] = []
    if "attach" in only:
        rows.append(attach.measure(30 if quick else 300, scratch))
    if "join" in only:
        (scratch / "join").mkdir()
        rows.append(joins.measure(20 if quick else 100, 2 if quick else 9, scratch / "join"))
    if only & {"control", "traffic"}:
        containers = 30 if quick else 300
        with lab(scratch / "three") as three:
            _up(three, containers, 3)
            if "control" in only:
                rows += control.measure(three, 100 if quick else 1000, containers)
            if "traffic" in only:
                finder = LabUnderTest(scratch / "three")
                overlay = by_hand.Path(finder.namespace("c0"), finder.namespace("c1"), three.address("c1"))
                encapsulation = json.loads(three.netctl("node", "list", "--json"))[0]["encapsulation"]
                rows += traffic.measure(three, overlay, encapsulation, 3 if quick else 9)
    if "tunnels" in only:
        rows += tunnels.measure(3 if quick else 12)
    if "docker" in only:
        (scratch / "docker").mkdir()
        rows += docker.measure(5 if quick else 40, scratch / "docker", BUSYBOX)
    if "restart" in only:
        containers = 50 if quick else 500
        with lab(scratch / "one", "--nodes", "1") as one:
            _up(one, containers, 1)
            rows.append(restart.measure(one, 3 if quick else 9, containers))
    return rows


def main() -> int:
    """Measure, print, write; exit 0 whatever was measured."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds and containers: a look, no figures")
    parser.add_argument("--only", action="append", choices=NAMES, help="only this; may be repeated")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nb-") as scratch:
        rows = _run(set(options.only or NAMES), quick=options.quick, scratch=Path(scratch))
    where = machine()
    sys.stdout.write(markdown(rows, where))
    report = {
        "machine": where,
        "rows": [
            {**attrs.asdict(row), "median": median(row.samples), "p99": p99(row.samples)}
            | ({"ratio": ratio(row)} if row.floor else {})
            for row in rows
        ],
    }
    (HERE / "report.json").write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
