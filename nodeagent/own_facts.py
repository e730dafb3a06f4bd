"""What is true of the host by now: asked of the helper again whenever it may have changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from netctl.errors import NetctlError, UnavailableError
from netctl.log import get_logger
from netctl.model import Encapsulation
from netctl.wire.messages import NodeError
from nodeagent.facts import restricted
from nodeagent.helper_client import Helper
from nodeagent.kernel_state import HostFacts
from nodeagent.retry import Retry

SHARE: Final = 10
"""Asking is this many times rarer than it is long: others may change their routes all the time."""


class OwnFacts:
    """The facts in force, which stay so while newer ones cannot be had.

    Args:
        underlay: The node's address in the underlay, or the link that has it; None: the default route's.
        allowed: Encapsulations that the operator allows (`nodeagent.facts.restricted`).
        monotonic: Seconds of a clock that is never set.

    Attributes:
        latest: The facts in force; None: never asked yet.
    """

    def __init__(
        self,
        underlay: str | None = None,
        allowed: Sequence[Encapsulation] = (),
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.latest: HostFacts | None = None
        self._error: NodeError | None = None
        self._underlay = underlay
        self._allowed = tuple(allowed)
        self._monotonic = monotonic
        self._retry = Retry(monotonic)
        self._next: float | None = None
        self._earliest = 0.0
        self._log = get_logger()

    def ask(self, helper: Helper) -> HostFacts:
        """Ask now; return the facts in force, which are the last ones where the host cannot be described.

        Raises:
            UnavailableError: The helper is gone.
            NetctlError: The host cannot be described, and never was.
        """
        began = self._monotonic()
        self._next = None
        try:
            facts = restricted(helper.facts(self._underlay), self._allowed)
        except UnavailableError:
            raise
        except NetctlError as error:
            if self.latest is None:
                raise
            self._keep(error)
            return self.latest
        now = self._monotonic()
        self._earliest = now + SHARE * (now - began)
        self._retry.over()
        self._error = None
        self.latest = facts
        return facts

    def _keep(self, error: NetctlError) -> None:
        if self._error is None:
            self._log.error("this host cannot be described", error=error.message, remedy=error.remedy)
        text = f"this node's place in the underlay is as it was: {error.message}"
        self._error = NodeError("", text[:4096], error.remedy)
        self._retry.later()

    def errors(self) -> tuple[NodeError, ...]:
        """Return why newer ones could not be had; empty: they could."""
        return () if self._error is None else (self._error,)

    def doubt(self) -> None:
        """They may be others by now: ask as soon as may be."""
        if self._next is None:
            self._next = max(self._monotonic(), self._earliest)

    @property
    def due(self) -> bool:
        """Whether to ask now."""
        return self._monotonic() >= self.deadline

    @property
    def deadline(self) -> float:
        """When (monotonic) to ask; infinite: not before they are doubted."""
        return min(at for at in (self._next, self._retry.at, float("inf")) if at is not None)
