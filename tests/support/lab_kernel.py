"""Runs the tests marked `kernel(...)` where there is a kernel that has what they need.

`python -m tests.support.lab_kernel [RESULTS]` runs them here if this host's kernel can do all of it; else in
one boot of the kernel that the script named by NETCTL_LAB_KERNEL_RUN starts: ``SCRIPT [-w DIR] -- COMMAND``
exits with the command's status. Else it says that they were skipped, and why, which is a failure in CI.
With a file RESULTS, what came out is written there as `tests.support.results` does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from netctl.errors import KernelError
from nodeagent.kernel.host_facts import encapsulations

ROOT = Path(__file__).parent.parent.parent
RUN = "NETCTL_LAB_KERNEL_RUN"

# A guest discards writes, and every process costs it dearly: no cache.
PYTEST = (sys.executable, "-m", "pytest", "-q", "-m", "kernel", "-p", "no:cacheprovider", "tests/netns")


def command(
    features: Sequence[str], environment: Mapping[str, str], results: Path | None = None
) -> tuple[str, ...] | str:
    """Return the command that runs the marked tests, or why they cannot run.

    Args:
        features: What this host's kernel can do.
        environment: Of this process.
        results: Where to write what came out.
    """
    tests, shared = PYTEST, ()
    if results is not None:
        tests = (*PYTEST, "-p", "tests.support.results", "--results", str(results))
        shared = ("-w", str(results.parent))
    if "gre" in features:
        return tests
    script = environment.get(RUN)
    if not script:
        return f"this kernel has no GRE, and {RUN} names no script that boots one that has"
    return (script, *shared, "--", "env", "PYTHONDONTWRITEBYTECODE=1", *tests)


def host_features() -> Sequence[str]:
    """Return what this host's kernel can do, as far as we may ask it."""
    try:
        return encapsulations()
    except KernelError:
        return ()  # no right to make a namespace; the booted kernel gives it


def main(arguments: Sequence[str]) -> int:
    """Run the tests; return the exit status."""
    results = Path(arguments[0]).absolute() if arguments else None
    wanted = command(host_features(), os.environ, results)
    if isinstance(wanted, str):
        sys.stdout.write(f"SKIPPED the tests marked kernel: {wanted}\n")
        return 1 if os.environ.get("CI") == "true" else 0
    return subprocess.run(wanted, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
