"""When what failed is tried again: ever more slowly, until it works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

FIRST_RETRY: Final = 0.5
LAST_RETRY: Final = 30.0
"""Seconds between two tries of what failed: doubled from the first to the last."""


class Retry:
    """The next try.

    Args:
        monotonic: Seconds of a clock that is never set.

    Attributes:
        at: When it is due, by that clock; None: nothing is to be tried again.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.at: float | None = None
        self._monotonic = monotonic
        self._delay = FIRST_RETRY

    def later(self) -> None:
        """It failed (again)."""
        self.at = self._monotonic() + self._delay
        self._delay = min(LAST_RETRY, self._delay * 2)

    def take(self) -> bool:
        """Return whether the next try is due; it counts as begun then."""
        if self.at is None or self._monotonic() < self.at:
            return False
        self.at = None
        return True

    def over(self) -> None:
        """It worked."""
        self.at = None
        self._delay = FIRST_RETRY
