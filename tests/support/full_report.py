"""Writes docs/test-report.md after `scripts/test --full`.

`python -m tests.support.full_report RESULTS [FAILED-STEP...]`, where RESULTS is the folder into which the
steps wrote ``tests.json`` and ``kernel.json`` (`tests.support.results`).
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.support.crash_report import crash_table
from tests.support.lab_kernel import FEATURES, ROOT, has, lacking
from tests.support.results import Result, read_results

REPORT = ROOT / "docs" / "test-report.md"
SLOWEST = 10


def folder_of(result: Result) -> str:
    """Return the folder below tests/ that a test is counted in, e.g. ``unit``."""
    return result.id.split("/")[1]


def counts(results: Iterable[Result]) -> list[str]:
    """Return the lines of a table with a row for each folder."""
    folders: defaultdict[str, list[Result]] = defaultdict(list)
    for result in results:
        folders[folder_of(result)].append(result)
    lines = ["| folder | passed | failed | skipped | seconds |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [_row(f"tests/{name}", folders[name]) for name in sorted(folders)]
    lines.append(_row("all", [result for found in folders.values() for result in found]))
    return lines


def _row(name: str, results: Sequence[Result]) -> str:
    numbers = [sum(one.outcome == outcome for one in results) for outcome in ("passed", "failed", "skipped")]
    seconds = sum(result.seconds for result in results)
    return f"| {name} | {' | '.join(map(str, numbers))} | {seconds:.0f} |"


def machine() -> list[str]:
    """Return what the tests ran on, as a list's lines."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    features = ", ".join(filter(has, FEATURES)) or "none"
    return [
        f"- machine: {len(os.sched_getaffinity(0))} cores ({model}), {memory:.1f} GiB",
        f"- kernel: {platform.system()} {platform.release()}; of {', '.join(FEATURES)} it has {features}",
        f"- Python {platform.python_version()}, {platform.freedesktop_os_release().get('PRETTY_NAME', '')}",
    ]


def commit() -> str:
    """Return the commit that was tested, and whether the tree had changes beside it."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    report = REPORT.relative_to(ROOT)
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{report}").strip()
    return git("rev-parse", "HEAD").strip() + (" and changes not committed" if changed else "")


def kernel_lines(results: Sequence[Result] | None, failed: Sequence[str]) -> list[str]:
    """Return what became of the tests that need what this host's kernel lacks."""
    lacks = ", ".join(lacking(FEATURES))
    if not lacks:
        return ["This host's kernel has all that tests need: they are among those above."]
    if results is None and failed:
        return ["They did not run to their end: see the failed steps."]
    if results is None:
        return [f"Not run: this host's kernel has no {lacks}, and there is no lab kernel."]
    return [f"Run in one boot of the lab kernel, for {lacks}.", "", *counts(results)]


def report(tests: Sequence[Result], kernel: Sequence[Result] | None, failed: Sequence[str]) -> str:
    """Return the whole report, in Markdown."""
    everything = [*tests, *(kernel or ())]
    slowest = sorted(everything, key=lambda result: -result.seconds)[:SLOWEST]
    troubles = [result for result in everything if result.outcome != "passed"]
    lines = [
        "# Test report",
        "",
        "What the last `scripts/test --full` found; that command writes this file.",
        "",
        f"- date: {dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
        f"- commit: {commit()}",
        *machine(),
        f"- failed steps: {', '.join(failed) or 'none'}",
        "",
        "## Tests",
        "",
        *counts(tests),
        "",
        "## Tests that need what this host's kernel lacks",
        "",
        *kernel_lines(kernel, failed),
        "",
        "## Failed and skipped",
        "",
        *([f"- {one.id}: {one.outcome} {one.reason}".rstrip() for one in troubles] or ["None."]),
        "",
        "## Crashes of the agent",
        "",
        "Operations of each command, and how often it was cut short. Passed: each time the next run ended in",
        "the state of a run without a crash.",
        "",
        *crash_table(tests),
        "",
        "## The slowest",
        "",
        "| test | seconds |",
        "| --- | ---: |",
        *(f"| {result.id.replace('|', '/')} | {result.seconds:.1f} |" for result in slowest),
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the report; return the exit status."""
    folder, failed = Path(arguments[0]), arguments[1:]
    kernel = folder / "kernel.json"
    tests = read_results(folder / "tests.json") if (folder / "tests.json").exists() else []
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(report(tests, read_results(kernel) if kernel.exists() else None, failed))
    sys.stdout.write(f"wrote {REPORT.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
