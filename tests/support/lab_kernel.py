"""Runs the tests marked `kernel(...)` where there is a kernel that has what they need.

`python -m tests.support.lab_kernel` runs them here if this host's kernel can do all of it; else in one boot
of the kernel that the script named by NETCTL_LAB_KERNEL_RUN starts (``SCRIPT [-w FOLDER] -- COMMAND``, which
exits with the command's status); else it says that they were skipped, and why, which is a failure in CI.
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


def command(features: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...] | str:
    """Return the command that runs the marked tests, or why they cannot run.

    Args:
        features: What this host's kernel can do.
        environment: Of this process.
    """
    if "gre" in features:
        return PYTEST
    script = environment.get(RUN)
    if not script:
        return f"this kernel has no GRE, and {RUN} names no script that boots one that has"
    return (script, "--", "env", "PYTHONDONTWRITEBYTECODE=1", *PYTEST)


def main() -> int:
    """Run the tests; return the exit status."""
    try:
        features: Sequence[str] = encapsulations()
    except KernelError:
        features = ()  # no right to make a namespace; the booted kernel gives it
    wanted = command(features, os.environ)
    if isinstance(wanted, str):
        sys.stdout.write(f"SKIPPED the tests marked kernel: {wanted}\n")
        return 1 if os.environ.get("CI") == "true" else 0
    return subprocess.run(wanted, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
