"""Decisions on their way into the store: made one by one, written in groups.

    decide, decide, ...  ->  head          what the next command is decided on
    commit               ->  committed     what nodes and users are told

Nothing that was decided may leave the broker before `commit` has returned. Where it fails, everything since
the last one is as if it had never been asked for.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Protocol

import attrs

from netctl.broker.commands import Command
from netctl.broker.snapshot import Change, Decision, Snapshot
from netctl.broker.state import decide
from netctl.errors import InvalidError, UnavailableError

ANSWERS_KEPT: Final = 10_000
"""Answers to idempotency keys, of all accounts together."""
ANSWERS_AGE: Final = 3600.0
"""Seconds an answer is kept."""


class FencedError(UnavailableError):
    """Another broker has written to this store since this one read it."""


@attrs.frozen
class Remembered:
    """The first answer to one idempotency key of one account.

    Attributes:
        request: Digest of the request, so that a key used for something else is noticed.
        answer: Encoded by whoever remembers (`netctl.broker.desk`).
        created_at: Seconds since 1970.
    """

    account: str
    key: str
    request: bytes
    answer: bytes
    created_at: float


class Writer(Protocol):
    """The part of `netctl.broker.store.Store` that a journal writes to."""

    def commit(
        self,
        changes: list[Change],
        *,
        before: tuple[int, int],
        after: tuple[int, int],
        answers: list[Remembered],
    ) -> None:
        """Write everything or nothing; see `netctl.broker.store.Store.commit`."""

    def forget(self, before: float, keep: int) -> None:
        """Drop old answers; see `netctl.broker.store.Store.forget`."""


class Journal:
    """The broker's memory and its store, kept in step.

    Args:
        store: Where to write.
        snapshot: What the store holds.
        answers: The answers it remembers, oldest first.
    """

    def __init__(self, store: Writer, snapshot: Snapshot, answers: list[Remembered]) -> None:
        self.head = snapshot
        """What is decided; the next command is decided on it."""
        self.committed = snapshot
        """What is written, and may be told."""
        self._store = store
        self._changes: list[Change] = []
        self._answers = OrderedDict(((answer.account, answer.key), answer) for answer in answers)
        self._new_answers: list[Remembered] = []

    def decide(self, command: Command, now: float) -> Decision:
        """Decide a command on what was decided before it.

        Args:
            command: What is asked.
            now: Seconds since 1970.

        Raises:
            NetctlError: The command is refused; nothing changed.
        """
        decision = decide(self.head, command, now)
        self.head = decision.snapshot
        self._changes.extend(decision.changes)
        return decision

    def recall(self, account: str, key: str, request: bytes, now: float) -> bytes | None:
        """Return the first answer to an idempotency key, if there was one.

        Raises:
            InvalidError: The key was used for another request.
        """
        remembered = self._answers.get((account, key))
        if remembered is None or remembered.created_at < now - ANSWERS_AGE:
            return None
        if remembered.request != request:
            raise InvalidError("this idempotency key was used for another request", "choose another key")
        return remembered.answer

    def remember(self, answer: Remembered) -> None:
        """Keep an answer, from the next commit on."""
        self._answers[answer.account, answer.key] = answer
        self._new_answers.append(answer)

    def commit(self) -> None:
        """Write what was decided since the last commit.

        Raises:
            NetctlError: It was not written, and is not decided any more either.
        """
        if not self._changes and not self._new_answers:
            # What a node acknowledged is kept in memory only.
            self.committed = self.head
            return
        changes, answers = self._changes, self._new_answers
        self._changes, self._new_answers = [], []
        try:
            self._store.commit(
                changes, before=_place(self.committed), after=_place(self.head), answers=answers
            )
        except BaseException:
            self.head = self.committed
            for answer in answers:
                self._answers.pop((answer.account, answer.key), None)
            raise
        self.committed = self.head

    def raise_epoch(self, epoch: int) -> None:
        """Begin another epoch with what is recorded now.

        Raises:
            NetctlError: It was not written.
        """
        self.commit()
        self._store.commit(
            [], before=_place(self.committed), after=(epoch, self.committed.revision), answers=[]
        )
        self.head = self.committed = attrs.evolve(self.committed, epoch=epoch)

    def forget(self, now: float) -> None:
        """Drop answers that are too old or too many.

        Raises:
            NetctlError: The store still has them.
        """
        while self._answers and (
            len(self._answers) > ANSWERS_KEPT
            or next(iter(self._answers.values())).created_at < now - ANSWERS_AGE
        ):
            self._answers.popitem(last=False)
        self._store.forget(now - ANSWERS_AGE, ANSWERS_KEPT)


def _place(snapshot: Snapshot) -> tuple[int, int]:
    return (snapshot.epoch, snapshot.revision)
