"""A pytest plugin that keeps what came out: `-p tests.support.results --results FILE` writes it as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import attrs
import msgspec
import pytest

Outcome = Literal["passed", "failed", "skipped"]


@attrs.frozen
class Result:
    """One test.

    Attributes:
        id: pytest's, e.g. ``tests/unit/test_imports.py::test_x[y]``.
        seconds: Setup, call and teardown together.
        reason: Why it was skipped; empty otherwise.
        properties: What the test recorded with `record_property`.
    """

    id: str
    outcome: Outcome
    seconds: float
    reason: str = ""
    properties: Mapping[str, str | int | float] = attrs.field(factory=dict)


class Keeper:
    """Collects reports; a test has one for each of its phases."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._results: dict[str, Result] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take one phase of one test in."""
        before = self._results.get(report.nodeid, Result(report.nodeid, "passed", 0.0))
        outcome = report.outcome if before.outcome == "passed" else before.outcome
        if report.failed:
            outcome = "failed"
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else before.reason
        self._results[report.nodeid] = Result(
            report.nodeid,
            outcome,
            before.seconds + report.duration,
            reason,
            {**before.properties, **dict(report.user_properties)},
        )

    def pytest_sessionfinish(self) -> None:
        """Write what came out."""
        self._path.write_bytes(msgspec.json.encode(list(self._results.values())))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--results", type=Path, default=None, help="write what came out to this file, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    """Collect if asked to."""
    path = config.getoption("--results")
    if path is not None:
        config.pluginmanager.register(Keeper(path))


def read_results(path: Path) -> list[Result]:
    """Return what a run of tests wrote."""
    return msgspec.json.decode(path.read_bytes(), type=list[Result])
