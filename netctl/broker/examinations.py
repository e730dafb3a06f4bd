"""Requests to look for what is not as it should be, until every node that was asked has told. No I/O."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final, Generic, TypeVar

import attrs

from netctl.errors import ExhaustedError
from netctl.model import Finding
from netctl.wire.messages import Examined

Ticket = TypeVar("Ticket")
AT_ONCE: Final = 16
"""Requests under way at most: each of them asks every node."""
_NUMBERS: Final = 2**31 - 1


@attrs.frozen
class Answer:
    """What a node told of its host.

    Attributes:
        ahead: Seconds by which its clock is ahead of the broker's, if its answer took as long to come as the
            question to get there.
        unsure: Seconds by which `ahead` may be wrong, since it may not have.
    """

    findings: tuple[Finding, ...]
    ahead: float
    unsure: float


@attrs.define(eq=False)
class Examination(Generic[Ticket]):
    """One request.

    Attributes:
        number: That the nodes answer with.
        asked: The nodes that have not told yet.
        clock: When they were asked (seconds since 1970, by the broker's clock).
        deadline: Monotonic seconds.
        answers: Of the others, by node name.
    """

    ticket: Ticket
    number: int
    asked: set[str]
    clock: float
    deadline: float
    answers: dict[str, Answer] = attrs.field(factory=dict)


class Examinations(Generic[Ticket]):
    """All requests that are under way, by whatever the caller knows them by."""

    def __init__(self) -> None:
        self._of: dict[int, Examination[Ticket]] = {}
        self._numbers = itertools.count(1)

    def begin(
        self, ticket: Ticket, nodes: Iterable[str], *, clock: float, deadline: float
    ) -> Examination[Ticket]:
        """Begin with one.

        Args:
            ticket: Names the request.
            nodes: Names of the nodes that are asked; none: it is over.
            clock: Now (seconds since 1970).
            deadline: When it is over whoever has not told (monotonic seconds).

        Raises:
            ExhaustedError: Too many are under way.
        """
        if len(self._of) >= AT_ONCE:
            raise ExhaustedError("too many are looking at all nodes at once", "wait for some of them first")
        number = next(self._numbers) % _NUMBERS + 1
        begun = Examination(ticket, number, set(nodes), clock, deadline)
        if begun.asked:
            self._of[number] = begun
        return begun

    def answered(
        self, number: int, node: str, examined: Examined, clock: float
    ) -> Examination[Ticket] | None:
        """Note what a node told; return the request that is over by that.

        Args:
            number: That it answers with; of a request that is not under way it does not count.
            node: Its name.
            examined: What it told.
            clock: Now (seconds since 1970).
        """
        found = self._of.get(number)
        if found is None or node not in found.asked:
            return None
        unsure = max(0.0, clock - found.clock) / 2
        found.answers[node] = Answer(examined.findings, examined.clock - (found.clock + unsure), unsure)
        return self._without(found, node)

    def lost(self, node: str) -> list[Examination[Ticket]]:
        """Wait for a node no longer; return the requests that are over by that."""
        asking = [found for found in self._of.values() if node in found.asked]
        return [found for found in asking if self._without(found, node) is not None]

    def drop(self, ticket: Ticket) -> None:
        """Forget a request, since nobody is there to be answered."""
        for number in [number for number, found in self._of.items() if found.ticket == ticket]:
            del self._of[number]

    def overdue(self, now: float) -> list[Examination[Ticket]]:
        """Return the requests whose deadline (monotonic seconds) has passed; they are over."""
        late = [found for found in self._of.values() if found.deadline <= now]
        for found in late:
            del self._of[found.number]
        return late

    def next_deadline(self) -> float | None:
        """Return when `overdue` next has something to say, in monotonic seconds."""
        return min((found.deadline for found in self._of.values()), default=None)

    def _without(self, found: Examination[Ticket], node: str) -> Examination[Ticket] | None:
        found.asked.discard(node)
        if found.asked:
            return None
        del self._of[found.number]
        return found
