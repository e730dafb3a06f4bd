"""Waiting for conditions, each with a deadline, and telling what for when it takes long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

NOTICE_AFTER: Final = 1.0
"""Seconds of waiting after which the user is told what for."""
PAUSE: Final = 0.03

Tell = Callable[[str], None]


class Wait:
    """One wait.

    Args:
        tell: Told what is being waited for, once, if that takes over a second.
        seconds: After which to give up.
        what: For the user, after "waiting for".
    """

    def __init__(self, tell: Tell, seconds: float, what: str) -> None:
        self._tell, self._what = tell, what
        self._started = time.monotonic()
        self._deadline = self._started + seconds
        self._told = False

    def again(self) -> bool:
        """Pause briefly; return False once the time is up."""
        now = time.monotonic()
        if not self._told and now - self._started > NOTICE_AFTER:
            self._told = True
            self._tell(f"waiting for {self._what}")
        if now >= self._deadline:
            return False
        time.sleep(PAUSE)
        return True
