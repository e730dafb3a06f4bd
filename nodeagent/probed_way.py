"""One way to one peer: when it is probed by what, and what its answers mean. No input or output, no clock.

    CHECK   three steps, a small probe and a full one each: a way begins with it, and a loss is followed by it
      |       nothing comes back         -> down
      |       small ones alone           -> SEARCH
      |       a full one                 -> up
    SEARCH  rounds of sizes (`nodeagent.mtu_search`) -> up, with the MTU found
    REST    now and then one probe: as large as the way takes where it is up, else a small one;
            on a way that takes less than it might, larger ones too
    GROWN   a larger one came back: a moment for the largest to do so too, else -> SEARCH

A full probe proves everything at once, so one packet is enough as long as all is well.
"""

from __future__ import annotations

import enum
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Final

import attrs

from netctl.model import OVERHEAD, PathState
from nodeagent.kernel_state import ProbeTarget
from nodeagent.mtu_search import SIZES, MtuSearch, OuterSizes
from nodeagent.probe_packets import SMALL

STEPS: Final = 3
"""Small probes that must be lost in a row before a way is down."""
STEP_SECONDS: Final = 0.15
"""Between two steps of a check."""
PATIENCE: Final = 0.5
"""Seconds, beside four round trips, after which a probe counts as lost."""
LONGEST_PATIENCE: Final = 3.0
ROUND_PATIENCE: Final = 0.25
"""The same for a round of a search: small probes have just come back, so the path is not slow."""
LATE: Final = 5.0
"""Seconds after which an answer means nothing any more."""
PROOF: Final = 2
"""Small probes of one check that must come back before a way that was down is up again."""
BEGINNING: Final = 3.0
"""Seconds that a new way may be silent before it is down: the peer may be making its end just now."""
BEGINNING_PAUSE: Final = 0.3
GROWTH: Final = 5.0
"""Seconds between two tries of a larger size on a way that takes less than it might."""
GROWTH_IN_DOUBT: Final = 1.0
"""The same after a search on a way that loses some: it may have found too little."""
LOSSY: Final = 4.0
"""A routed way that loses some is probed so many times as often, to see how much that is."""
SIGN_PAUSE: Final = 0.5
"""A way that is down is not checked more often than this because its peer's probes come in."""
SAMPLES: Final = 20
"""Probes that the loss is measured over."""
ROUND_TRIPS: Final = 7
"""Probes that the round trip is measured over."""
COPIES: Final = 2
"""Probes of each size in a search, on a way that loses some."""
MAX_BATCH: Final = COPIES * (SIZES + 1)
"""Probes that `Way.send` asks for at once, at most."""


class _Phase(enum.Enum):
    CHECK = enum.auto()
    SEARCH = enum.auto()
    REST = enum.auto()
    GROWN = enum.auto()


@attrs.frozen
class _Sent:
    at: float
    size: int


class Way:
    """One way.

    Args:
        target: What to probe.
        sizes: What paths were found to take; shared with other ways.
        now: Seconds of the caller's clock, which never goes back.

    Attributes:
        target: The same.
        at: When `send` has something to do.
        down_at: When it was last found down.
    """

    def __init__(self, target: ProbeTarget, sizes: OuterSizes, now: float) -> None:
        self.target = target
        self.at = now
        self.down_at = 0.0
        self._sizes = sizes
        self._up: bool | None = None
        self._mtu = 0
        self._round_trips: deque[float] = deque(maxlen=ROUND_TRIPS)
        self._samples: deque[bool] = deque(maxlen=SAMPLES)
        self._flying: dict[bytes, _Sent] = {}
        self._began_at = now
        self._sent_at = now
        self._grow_at = now
        self._interval = 0.0
        self._phase = _Phase.CHECK
        # Of a check: steps taken, and whether a probe that was lost is the reason for it.
        self._step = 0
        self._after_loss = False
        # Checks in a row in which no full probe came back.
        self._narrow = 0
        # At rest: whether a probe's answer is waited for.
        self._waiting = False
        self._search = MtuSearch(SMALL, target.mtu + 1)
        # Sizes that came back since the check, or the round of the search, began.
        self._back: list[int] = []

    # --- what is known ------------------------------------------------------------------------------

    @property
    def state(self) -> PathState | None:
        """How the way is found; None: not known yet, or its MTU is being searched."""
        if self._up is None or self._phase in (_Phase.SEARCH, _Phase.GROWN):
            return None
        target = self.target
        if not self._up:
            return PathState(target.peer, target.encapsulation, up=False, loss_permille=1000)
        lost = self._samples.count(False)
        return PathState(
            target.peer,
            target.encapsulation,
            up=True,
            mtu=self._mtu,
            rtt_us=round(self._round_trip * 1e6),
            loss_permille=round(1000 * lost / len(self._samples)) if self._samples else 0,
        )

    @property
    def is_undecided(self) -> bool:
        """Whether what is known may be about to change."""
        return self._phase is not _Phase.REST

    @property
    def is_suspect(self) -> bool:
        """Whether the way was up, and a probe was lost just now."""
        return self._phase is _Phase.CHECK and self._after_loss

    @property
    def _is_lossy(self) -> bool:
        return False in self._samples

    @property
    def _round_trip(self) -> float:
        return statistics.median(self._round_trips) if self._round_trips else 0.0

    @property
    def _patience(self) -> float:
        return min(PATIENCE + 4 * self._round_trip, LONGEST_PATIENCE)

    @property
    def _full(self) -> int:
        """The size that a check tries beside the small one."""
        return self._mtu if self._up else self.target.mtu

    # --- what others want ---------------------------------------------------------------------------

    def aim(self, target: ProbeTarget, now: float) -> None:
        """Go on with a target that is the same way to the same peer."""
        before, self.target = self.target, target
        if attrs.evolve(before, chosen=target.chosen, also=target.also) != target:
            if self._up:
                self._mtu = min(self._mtu, target.mtu)
            self._grow_at = now
            self._check(now)
        elif target.chosen and not before.chosen:
            self.check(now)

    def check(self, now: float) -> None:
        """Look at once, where that is not being done already."""
        if self._phase is _Phase.REST:
            self._check(now)

    def sign_of_life(self, now: float) -> None:
        """A probe of the peer's came in by this way."""
        pausing = self._phase is _Phase.REST or (self._phase is _Phase.CHECK and self._step == 0)
        if not self._up and pausing and self._sent_at + SIGN_PAUSE <= now < self.at:
            self._check(now)

    # --- sending ------------------------------------------------------------------------------------

    def send(self, now: float, interval: float) -> Sequence[int]:
        """Take the next step, once `at` has come; return the sizes of the probes to send, or none.

        Call `sent` for each of them.

        Args:
            now: Seconds of the caller's clock.
            interval: Seconds between two probes of a way at rest.
        """
        self._interval = interval
        for nonce in [nonce for nonce, probe in self._flying.items() if now - probe.at > LATE]:
            del self._flying[nonce]
        sizes = self._next(now)
        if sizes:
            self._sent_at = now
        return sizes

    def sent(self, nonce: bytes, size: int, now: float) -> None:
        """Take note of a probe that `send` asked for."""
        self._flying[nonce] = _Sent(now, size)

    def _next(self, now: float) -> Sequence[int]:
        if self._phase is _Phase.REST:
            return self._next_at_rest(now)
        if self._phase is _Phase.GROWN:
            return self._begin_search(now, self._mtu, self.target.mtu + 1)
        if self._phase is _Phase.SEARCH:
            return self._next_round(now)
        if self._step == STEPS:
            return self._verdict(now)
        self._step += 1
        self.at = now + (self._patience if self._step == STEPS else STEP_SECONDS)
        return (SMALL, self._full)

    def _next_at_rest(self, now: float) -> Sequence[int]:
        if self._waiting:
            self._waiting = False
            if self._up:
                self._check(now, after_loss=True)
                return self._next(now)
            self._rest()
            if now < self.at:
                return ()
        self._waiting = True
        self.at = now + self._patience
        if not self._up:
            return (SMALL,)
        if self._mtu >= self.target.mtu or now < self._grow_at:
            return (self._mtu,)
        self._grow_at = now + GROWTH
        # Any path that takes more than before takes one byte more.
        return tuple(dict.fromkeys((self._mtu, self._mtu + 1, self.target.mtu)))

    # --- answers ------------------------------------------------------------------------------------

    def received(self, nonce: bytes, size: int, now: float) -> None:
        """Take an answer that came by this way, whoever made it up."""
        probe = self._flying.get(nonce)
        if probe is None or probe.size != size:
            return
        del self._flying[nonce]
        self._round_trips.append(now - probe.at)
        self._back.append(size)
        if self._phase is _Phase.CHECK:
            # After a loss all steps are taken: they show how much is lost.
            if self._is_proven and not self._after_loss:
                self._samples.append(True)
                self._up_with(self._full)
        elif self._phase is _Phase.SEARCH:
            if {SMALL, *self._search.sizes} <= set(self._back):
                self.at = now
        elif not self._up:
            self._check(now)
        elif size > self._mtu:
            self._grow(size, now)
        elif self._waiting and size == self._mtu:
            self._samples.append(True)
            self._rest()

    def _grow(self, size: int, now: float) -> None:
        self._mtu = min(size, self.target.mtu)
        if self._mtu == self.target.mtu:
            self._rest()
        else:
            self._phase = _Phase.GROWN
            self.at = now + ROUND_PATIENCE + 4 * self._round_trip

    # --- phases -------------------------------------------------------------------------------------

    def _rest(self) -> None:
        self._phase = _Phase.REST
        self._waiting = False
        hurry = LOSSY if self._is_lossy and self.target.chosen else 1.0
        self.at = self._sent_at + self._interval / hurry

    def _check(self, now: float, *, after_loss: bool = False, pause: float = 0.0) -> None:
        self._phase = _Phase.CHECK
        self._waiting = False
        self._step = 0
        self._after_loss = after_loss
        self._back = []
        self.at = now + pause

    @property
    def _small_back(self) -> int:
        return self._back.count(SMALL)

    @property
    def _small_enough(self) -> bool:
        return self._small_back >= (PROOF if self._up is False else 1)

    @property
    def _is_proven(self) -> bool:
        """Whether this check has shown that the way is up and takes what it was thought to take."""
        return max(self._back, default=0) >= self._full and (bool(self._up) or self._small_enough)

    def _verdict(self, now: float) -> Sequence[int]:
        """End a check whose last probes are no longer waited for."""
        back = min(self._small_back, STEPS)
        samples = [True] * back + [False] * (STEPS - back)
        if self._is_proven:
            self._samples.extend([False] * self._after_loss + samples)
            self._up_with(self._full)
        elif self._small_enough and self._is_lossy and not self._narrow:
            # The full ones may just have been lost, too.
            self._narrow += 1
            self._samples.extend(samples)
            self._check(now, after_loss=self._after_loss)
        elif self._small_enough:
            # The full ones were too large, not lost: they say nothing about the loss.
            self._samples.extend(samples)
            return self._begin_search(now, SMALL, self._full)
        elif self._up is None and now < self._began_at + BEGINNING:
            self._check(now, pause=BEGINNING_PAUSE)
        else:
            self._found_down(now)
        return ()

    def _up_with(self, mtu: int) -> None:
        self._up = True
        self._mtu = mtu
        self._narrow = 0
        self._rest()

    def _found_down(self, now: float) -> None:
        if self._up is not False:
            self.down_at = now
        self._up = False
        self._mtu = 0
        self._narrow = 0
        self._samples.clear()
        self._rest()

    def _begin_search(self, now: float, low: int, high: int) -> Sequence[int]:
        self._phase = _Phase.SEARCH
        guesses = self._sizes.guesses(OVERHEAD[self.target.encapsulation])
        self._search = MtuSearch(low, high, (self.target.mtu, *guesses))
        return self._round(now)

    def _round(self, now: float) -> Sequence[int]:
        self._back = []
        self.at = now + ROUND_PATIENCE + 4 * self._round_trip
        copies = COPIES if self._is_lossy else 1
        return (SMALL, *self._search.sizes) * copies

    def _next_round(self, now: float) -> Sequence[int]:
        if not self._back:
            # Not even a small one came back: this is no matter of size.
            self._check(now, after_loss=bool(self._up))
            return self._next(now)
        self._search = self._search.after(self._back)
        if self._search.found is None:
            return self._round(now)
        self._sizes.found(self._search.found + OVERHEAD[self.target.encapsulation])
        self._grow_at = now + (GROWTH_IN_DOUBT if self._is_lossy else GROWTH)
        self._up_with(self._search.found)
        return ()
