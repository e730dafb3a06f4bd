"""Where tests run that need something of the kernel: here, or in one boot of the lab kernel.

A test marked ``needs_kernel("gre")`` runs with all others where this host's kernel has that: see
tests/conftest.py. The rest is one batch: `python -m tests.support.lab_kernel [--results FILE] [ARGUMENT...]`
runs it on the lab kernel (`scripts/kernel-lab run`), with pytest's own arguments if there are any. Where
there is no lab kernel it says that they were skipped, which is a failure in CI. With FILE, what came out is
written there as `tests.support.results` does.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.netns import Namespace

ROOT = Path(__file__).parent.parent.parent
KERNEL_LAB = ROOT / "scripts" / "kernel-lab"
LACKING = "--kernel-lacks"
"""The option by which the batch is chosen: what the host's kernel, not the one it runs on, does not have."""
MEMORY = "2G"
Start = Callable[[Sequence[str]], int]


def _link(kind: str, *options: str) -> tuple[str, ...]:
    return ("ip", "link", "add", "probe0", "type", kind, *options)


FEATURES: Mapping[str, tuple[str, ...]] = {
    "gre": _link("gre", "local", "192.0.2.1", "remote", "192.0.2.2"),
    "vxlan": _link("vxlan", "id", "1", "remote", "192.0.2.2", "dstport", "4789"),
    "wireguard": _link("wireguard"),
    "netem": ("tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"),
}
"""What a test may need, and a command that succeeds in a fresh namespace of a kernel that has it."""


@functools.cache
def has(feature: str) -> bool:
    """Tell whether this kernel has a feature, as far as we may ask it.

    Raises:
        KeyError: There is no such feature among `FEATURES`.
    """
    command = FEATURES[feature]
    try:
        namespace = Namespace()
    except (OSError, AssertionError):
        return False  # no right to make one; the lab kernel gives it
    try:
        namespace.run(*command)
    except (AssertionError, OSError):
        return False
    finally:
        namespace.close()
    return True


def lacking(needs: Iterable[str]) -> tuple[str, ...]:
    """Return which of the features this kernel does not have."""
    return tuple(feature for feature in needs if not has(feature))


def needs_of(item: pytest.Item) -> frozenset[str]:
    """Return the features that a test needs, by its markers.

    Raises:
        pytest.UsageError: One that nobody knows.
    """
    needs = frozenset(feature for mark in item.iter_markers("needs_kernel") for feature in mark.args)
    if unknown := needs - FEATURES.keys():
        raise pytest.UsageError(f"{item.nodeid} needs {sorted(unknown)} of the kernel; known: {[*FEATURES]}")
    return needs


def marked_files() -> tuple[str, ...]:
    """Return the files of the batch: to collect all others would take long on the lab kernel."""
    return tuple(
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "mark.needs_kernel(" in path.read_text()
    )


def command(lacks: Sequence[str], results: Path | None, arguments: Sequence[str]) -> tuple[str, ...]:
    """Return the command that runs the batch.

    Args:
        lacks: What this host's kernel has not.
        results: Where to write what came out.
        arguments: For pytest; if they name no file or folder: the whole batch.
    """
    guest: list[str] = ["run", "-m", MEMORY]
    # What a guest writes is lost, so there is nothing to cache; its output is always a terminal's.
    color = "yes" if sys.stdout.isatty() else "no"
    pytest_options = ["-q", "-p", "no:cacheprovider", f"--color={color}", f"{LACKING}={','.join(lacks)}"]
    if results is not None:
        guest += ["-w", str(results.parent)]
        pytest_options += ["-p", "tests.support.results", "--results", str(results)]
    named = any((ROOT / argument.partition("::")[0]).exists() for argument in arguments)
    where = () if named else marked_files()
    python = ("env", "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-m", "pytest")
    return (str(KERNEL_LAB), *guest, "--", *python, *pytest_options, *arguments, *where)


def main(arguments: Sequence[str], lacks: Sequence[str], environment: Mapping[str, str], start: Start) -> int:
    """Run the batch; return the exit status.

    Args:
        arguments: Of the command line.
        lacks: What this host's kernel has not.
        environment: Of this process.
        start: Runs a command and returns its status.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path)
    options, rest = parser.parse_known_args(arguments)
    if not lacks:
        sys.stdout.write("this host's kernel has all that tests need: they run with all others\n")
        return 0
    if start((str(KERNEL_LAB), "which")) != 0:
        sys.stdout.write(f"SKIPPED the tests that need {', '.join(lacks)}: there is no kernel that has it\n")
        return 1 if environment.get("CI") == "true" else 0
    results = None if options.results is None else options.results.absolute()
    return start(command(lacks, results, rest))


def _start(command: Sequence[str]) -> int:
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], lacking(FEATURES), os.environ, _start))
