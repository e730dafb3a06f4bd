"""Operations per command x crashes run, as a table: what the tests with crashes recorded.

`python -m tests.support.crash_report` runs them and prints it (with NETCTL_TEST_FULL=1 the large counts too);
given files that `tests.support.results` wrote, it only prints what is in them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.support.results import Result, read_results

TESTS = ("tests/scenarios/test_agent_crashes.py", "tests/netns/test_crashes.py")


def crash_table(results: Iterable[Result]) -> list[str]:
    """Return the table's lines, in Markdown: one row for each command and kind of crash."""
    rows = [
        (
            "the real kernel" if result.id.startswith("tests/netns/") else "the fakes",
            str(result.properties["crash"]),
            str(result.properties["command"]),
            int(result.properties["operations"]),
            int(result.properties["crashes"]),
            result.outcome,
        )
        for result in results
        if "crashes" in result.properties
    ]
    lines = [
        "| on | crash | command | operations | crashes run | |",
        "| --- | --- | --- | ---: | ---: | --- |",
    ]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    lines.append(f"| | all | {len(rows)} | | {sum(row[4] for row in rows)} | |")
    return lines


def main(files: Sequence[str]) -> int:
    """Print the table; return the exit status of the tests."""
    if files:
        results = [result for file in files for result in read_results(Path(file))]
        status = 0
    else:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "results.json")
            status = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-p",
                    "tests.support.results",
                    "--results",
                    path,
                    *TESTS,
                ],
                check=False,
            ).returncode
            results = read_results(path)
    sys.stdout.write("\n".join(crash_table(results)) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
