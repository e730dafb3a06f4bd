"""Searching the largest packet that a path takes, in few rounds of probes. Pure.

A round tries several sizes at once, since what does not come back costs a whole timeout: first those that
paths are known to have, each with the size above it, then sizes spread evenly over what is left.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import attrs

SIZES: Final = 8
"""How many sizes one round tries at most."""


@attrs.frozen
class MtuSearch:
    """What is known by now.

    Attributes:
        low: Bytes of a packet that came back.
        high: Bytes of one that did not, or of more than is worth trying; greater than `low`.
        guesses: Sizes that may well be the one searched, the likeliest first; used up by the first round.
    """

    low: int
    high: int
    guesses: tuple[int, ...] = ()

    @property
    def found(self) -> int | None:
        """The size searched, once it is known."""
        return self.low if self.high - self.low <= 1 else None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes to try in this round, rising; each lies between `low` and `high`."""
        chosen: set[int] = set()
        for guess in self.guesses:
            pair = {size for size in (guess, guess + 1) if self.low < size < self.high}
            if len(chosen | pair) <= SIZES:
                chosen |= pair
        places = SIZES - len(chosen)
        between = self.high - self.low
        chosen.update(self.low + between * number // (places + 1) for number in range(1, places + 1))
        return tuple(sorted(size for size in chosen if self.low < size < self.high))

    def after(self, came_back: Collection[int]) -> MtuSearch:
        """Return what is known after this round, given which of its sizes came back."""
        low = max((self.low, *(size for size in self.sizes if size in came_back)))
        high = min((self.high, *(size for size in self.sizes if size > low)))
        return MtuSearch(low, high)


class OuterSizes:
    """What outer packets' sizes paths were found to take lately: what one takes, others may take too."""

    def __init__(self) -> None:
        # Ethernet (IEEE 802.3), a common choice below it, PPPoE (RFC 2516), IPv6's least (RFC 8200).
        self._sizes = [1500, 1400, 1492, 1280]

    def guesses(self, overhead: int) -> tuple[int, ...]:
        """Return the inner sizes to try first with an encapsulation that adds `overhead` bytes."""
        return tuple(size - overhead for size in self._sizes)

    def found(self, size: int) -> None:
        """A path was found to take `size` bytes and no more."""
        kept = [other for other in self._sizes if other != size]
        self._sizes = [size, *kept][: SIZES // 2]
