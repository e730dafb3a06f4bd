"""What nodes report of the ways to their peers, and when which pair is to be looked at again. No I/O.

Reports are kept in memory alone: a node says all of them anew at the start of every session.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from netctl.broker.pairing import Heard, Side
from netctl.broker.snapshot import PairKey, pair_key
from netctl.model import Encapsulation, PathState

_NOTHING: Final[Side] = MappingProxyType({})


class Ways:
    """All that was reported since each node's session began."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, dict[Encapsulation, Heard]]] = {}
        self._changed: dict[PairKey, float] = {}
        self._again: dict[PairKey, float] = {}
        self._wake: float | None = None

    def side(self, source: str, destination: str) -> Side:
        """Return what one node says of the ways to another."""
        return self._of.get(source, {}).get(destination, _NOTHING)

    def take(
        self, source: str, paths: Iterable[PathState], known: Mapping[str, object], now: float
    ) -> set[PairKey]:
        """Note what a node reports.

        Args:
            source: The node.
            paths: What it says; of nodes that are not `known` it does not count.
            known: Names of nodes.
            now: Monotonic seconds.

        Returns:
            The pairs it said something new of.
        """
        told: set[PairKey] = set()
        for path in paths:
            if path.peer not in known or path.peer == source:
                continue
            side = self._of.setdefault(source, {}).setdefault(path.peer, {})
            old = side.get(path.encapsulation)
            if old is not None and old.path == path:
                continue
            stands = old is not None and old.path.up == path.up
            side[path.encapsulation] = Heard(path, old.since if old is not None and stands else now)
            told.add(pair_key(source, path.peer))
        return told

    def begin(self, source: str) -> None:
        """Forget what a node said: it says everything anew."""
        self._of.pop(source, None)

    def forget(self, node: str) -> None:
        """Forget a node that is gone, and what others said of it."""
        self.begin(node)
        for sides in self._of.values():
            sides.pop(node, None)
        for times in (self._changed, self._again):
            for key in [key for key in times if node in key]:
                del times[key]

    def changed(self, key: PairKey) -> float:
        """Return when a pair was last changed for what was reported (monotonic seconds)."""
        return self._changed.get(key, float("-inf"))

    def change(self, key: PairKey, now: float) -> None:
        """Note that a pair is changed for what was reported."""
        self._changed[key] = now

    def look_again(self, key: PairKey, when: float | None) -> None:
        """Have a pair looked at again at some time (monotonic seconds), or no more; see `due`."""
        if when is None:
            self._again.pop(key, None)
            return
        self._again[key] = when
        self._wake = when if self._wake is None else min(self._wake, when)

    def due(self, now: float) -> list[PairKey]:
        """Return the pairs that are to be looked at by now (monotonic seconds)."""
        if self._wake is None or now < self._wake:
            return []
        found = [key for key, when in self._again.items() if when <= now]
        for key in found:
            del self._again[key]
        self._wake = min(self._again.values(), default=None)
        return found

    def next_wake(self) -> float | None:
        """Return when `due` next may have something to say, in monotonic seconds."""
        return self._wake
