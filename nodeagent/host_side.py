"""The host's side of the agent: its helper, what the host is, and when the whole of it is looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from netctl.errors import NetctlError
from netctl.log import get_logger
from nodeagent.desired_index import DesiredIndex
from nodeagent.facts import lacking
from nodeagent.found import Found
from nodeagent.helper_client import Helper
from nodeagent.kernel_state import HostFacts
from nodeagent.own_facts import OwnFacts
from nodeagent.reconcile import Reconciler

RESYNC: Final = 10.0
"""Seconds between two looks at the whole host."""
LOOK_SHARE: Final = 100
"""A look is this many times rarer than it is long, so that big nodes do not spend themselves on looking."""
DRIFT_SHARE: Final = 10
"""The same where someone else changed something: others may write all the time to what is not ours."""
FIRST_RESPAWN: Final = 0.2
LAST_RESPAWN: Final = 10.0


class HostSide:
    """What the agent does with its host in every turn.

    Args:
        spawn: Starts a privileged child.
        found: Settings of the host as they were before us.
        facts: What is true of the host.
        resync: Seconds between two looks at the whole host.
        monotonic: Seconds of a clock that is never set.

    Attributes:
        helper: The privileged child; None: it is gone, and will be started again.
        reconciler: What keeps the host by it; None: likewise.
        facts: See above.
    """

    def __init__(
        self,
        spawn: Callable[[], Helper],
        found: Found,
        facts: OwnFacts,
        *,
        resync: float,
        monotonic: Callable[[], float],
    ) -> None:
        self.helper: Helper | None = None
        self.reconciler: Reconciler | None = None
        self.facts = facts
        self._spawn = spawn
        self._found = found
        self._resync = resync
        self._monotonic = monotonic
        self._respawn_at = 0.0
        self._respawn_pause = FIRST_RESPAWN
        self._look_at = 0.0
        self._looked_at = 0.0
        self._log = get_logger()

    # --- the helper ---------------------------------------------------------------------------------

    def start(self, desired: DesiredIndex | None) -> Reconciler:
        """Start a helper, and begin to keep the host as the broker wants it.

        Raises:
            NetctlError: It does not start, or the host is not as it must be.
        """
        self.helper = self._spawn()
        facts = self.facts.ask(self.helper)
        why = lacking(facts)
        if why:
            self._log.error("this node can take no containers", reason=why)
        self.reconciler = Reconciler(
            self.helper,
            facts,
            found=self._found.settings,
            remember=self._found.remember,
            monotonic=self._monotonic,
        )
        if desired is not None:
            self.reconciler.want(desired)
        self._look_at = self._monotonic() + self._resync
        return self.reconciler

    def started_again(self) -> None:
        """A helper that came after one that was lost has begun."""
        self._respawn_pause = FIRST_RESPAWN
        self._log.info("the helper was started again")

    def lose(self, error: NetctlError) -> None:
        """The helper is gone: another one is due, after a pause that grows with every try."""
        self._log.error("the helper is gone", error=error.message, delay_ms=int(self._respawn_pause * 1000))
        self.close()
        self._respawn_at = self._monotonic() + self._respawn_pause
        self._respawn_pause = min(LAST_RESPAWN, self._respawn_pause * 2)

    def close(self) -> None:
        """End the helper. Containers, links and rules stay."""
        if self.helper is not None:
            self.helper.close()
        self.helper = self.reconciler = None

    @property
    def start_due(self) -> bool:
        """Whether there is no helper, and one is to be started now."""
        return self.reconciler is None and self._monotonic() >= self._respawn_at

    @property
    def deadline(self) -> float:
        """When (monotonic) `tend`, `start` or `work` has something to do by itself."""
        if self.reconciler is None:
            return self._respawn_at
        at = min(self._look_at, self.facts.deadline)
        return at if self.reconciler.deadline is None else min(at, self.reconciler.deadline)

    # --- the host -----------------------------------------------------------------------------------

    def tend(self) -> None:
        """Do what is due: ask for newer facts, have the whole host looked at.

        Raises:
            UnavailableError: The helper is gone.
        """
        if self.reconciler is None:
            return
        if self.facts.due:
            self.ask_facts()
        now = self._monotonic()
        if now >= self._look_at:
            self.reconciler.doubt()
            # Set again once the look was taken, by how long that took.
            self._look_at = now + self._resync

    def ask_facts(self) -> HostFacts | None:
        """Ask for newer facts, and keep the host by them; return those in force, None: there is no helper.

        Raises:
            UnavailableError: The helper is gone.
        """
        if self.helper is None or self.reconciler is None:
            return None
        facts = self.facts.ask(self.helper)
        self.reconciler.use(facts)
        return facts

    def doubt_facts(self) -> None:
        """The helper says that the host's links, addresses or routes are others by now."""
        self.facts.doubt()
        if self.reconciler is not None and self.reconciler.shares_link:
            # Routes of ours go with a link that goes down, and the kernel tells of none (fib_frontend.c).
            self._look_soon(self.reconciler)

    def drifted(self, what: str) -> None:
        """Someone else changed something of ours."""
        self._log.warning("someone else changed what is ours", reason=what)
        if self.reconciler is not None:
            self._look_soon(self.reconciler)

    def _look_soon(self, host: Reconciler) -> None:
        rest = DRIFT_SHARE * host.look_seconds
        self._look_at = min(self._look_at, max(self._monotonic(), self._looked_at + rest))

    def work(self) -> bool:
        """Do what there is to do now; return whether anything was written.

        Raises:
            UnavailableError: The helper is gone.
        """
        host = self.reconciler
        if host is None:
            return False
        writes, looks, keys = host.writes, host.looks, _generations(host)
        host.work()
        if host.looks != looks:
            self._looked_at = self._monotonic()
            self._look_at = self._looked_at + max(self._resync, LOOK_SHARE * host.look_seconds)
        if _generations(host) != keys:
            self.facts.doubt()
        return host.writes != writes


def _generations(host: Reconciler) -> frozenset[int]:
    """Return the generations of the node's keys that its WireGuard links hold: its facts tell of each."""
    return frozenset(link.generation for link in host.observed.wireguard.values())
