"""What every test may rely on: when it is skipped and why, and namespaces that end with it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog

from tests.support.docker_engine import why_no_engines
from tests.support.lab_kernel import LACKING, lacking, needs_of
from tests.support.netns import Namespace

ROOT = Path(__file__).parent.parent
ELSEWHERE = pytest.StashKey[set[str]]()
"""What tests that do not run here need of the kernel."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that `tests.support.lab_kernel` chooses its batch by."""
    parser.addoption(LACKING, help="run only what needs one of these features, which another kernel lacks")


def _why_no_root() -> str:
    """Say why tests with namespaces cannot run here; empty: they can."""
    if os.geteuid() != 0:
        return "needs root"
    try:
        Namespace().close()
    except (OSError, AssertionError, subprocess.SubprocessError) as error:
        return f"cannot make network namespaces: {error}"
    return ""


@pytest.fixture(scope="session", autouse=True)
def _signals_end_programs() -> None:
    """Have the programs under test end by signals as from a terminal, also where the tests run without one.

    What a shell runs in the background ignores Ctrl-C, what `nohup` runs a hang-up, and so do its children.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _no_account_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests from reading or writing what the user who runs them has joined."""
    before = {key: os.environ.get(key) for key in ("XDG_CONFIG_HOME", "NETCTL_LAB")}
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
    os.environ.pop("NETCTL_LAB", None)
    yield
    for key, value in before.items():
        os.environ.pop(key, None)
        if value is not None:
            os.environ[key] = value


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot run here, with its reason; in CI `pytest_runtest_makereport` makes it a failure."""
    full = os.environ.get("NETCTL_TEST_FULL") == "1"
    batch = config.getoption(LACKING)
    elsewhere = config.stash.setdefault(ELSEWHERE, set())
    selected, deselected = [], []
    reason: str | None = None
    for item in items:
        # What needs something of the kernel that this one lacks is a batch of its own, on one that has it;
        # the large counts run when asked for. Neither is a skip: `scripts/test` runs both.
        missing = lacking(needs_of(item))
        if batch is None:
            elsewhere.update(missing)
        if (missing if batch is None else needs_of(item).isdisjoint(batch.split(","))) or (
            item.get_closest_marker("full") and not full
        ):
            deselected.append(item)
            continue
        selected.append(item)
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"the lab kernel has no {', '.join(missing)}"))
        if item.get_closest_marker("root"):
            reason = _why_no_root() if reason is None else reason
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("docker") and (no_engines := why_no_engines()):
            item.add_marker(pytest.mark.skip(reason=no_engines))
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = selected


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say that there are tests which can only run elsewhere."""
    if needed := config.stash.get(ELSEWHERE, set()):
        terminalreporter.write_line(
            f"{', '.join(sorted(needed))}: not in this kernel; "
            "`python -m tests.support.lab_kernel [ARGUMENT...]` runs what needs it on the lab kernel"
        )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """In CI nothing may be skipped: a skip hides what it was to show."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped in CI: {report.longrepr}"


@pytest.fixture(autouse=True)
def _logs_go_where_this_test_sees_them() -> Iterator[None]:
    """Forget where a test had the log written: that stream ends with the test."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def namespaces() -> Iterator[Callable[[], Namespace]]:
    """Make network namespaces that end with the test."""
    made: list[Namespace] = []

    def make() -> Namespace:
        made.append(Namespace())
        return made[-1]

    yield make
    for namespace in made:
        namespace.close()
