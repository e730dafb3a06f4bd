"""How many examples Hypothesis tries: ten times as many when the large counts are asked for."""

from __future__ import annotations

import os

TIMES = 10


def examples(count: int) -> int:
    """Return `count`, or ten times that with NETCTL_TEST_FULL=1."""
    return count * TIMES if os.environ.get("NETCTL_TEST_FULL") == "1" else count
