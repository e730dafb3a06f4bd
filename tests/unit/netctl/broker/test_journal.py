"""Decisions on their way into the store."""

from __future__ import annotations

import pytest

from netctl.broker.commands import AddInvite, Expire
from netctl.broker.journal import ANSWERS_AGE, ANSWERS_KEPT, FencedError, Journal, Remembered
from netctl.broker.state import empty
from netctl.errors import InvalidError, UnavailableError
from tests.support.hub import FakeStore


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def journal(store: FakeStore) -> Journal:
    return Journal(store, empty("10.0.0.0/8", 16), [])


def invite(number: int) -> AddInvite:
    return AddInvite(f"{number:064x}", "user", None, 100.0)


def answer(key: str, created_at: float = 0.0) -> Remembered:
    return Remembered("admin", key, b"digest", b"answer", created_at)


def test_decisions_build_on_each_other_and_are_told_after_the_commit(
    store: FakeStore, journal: Journal
) -> None:
    before = journal.committed
    journal.decide(invite(1), 0.0)
    journal.decide(invite(2), 0.0)
    assert len(journal.head.invites) == 2
    assert journal.committed is before
    journal.commit()
    assert journal.committed is journal.head
    assert len(store.commits) == 1
    assert store.place == (1, 2)


def test_nothing_is_written_where_nothing_was_decided(store: FakeStore, journal: Journal) -> None:
    journal.decide(Expire(), 0.0)
    journal.commit()
    assert store.commits == []


def test_a_failed_commit_takes_the_whole_group_back(store: FakeStore, journal: Journal) -> None:
    journal.decide(invite(1), 0.0)
    journal.commit()
    before = journal.committed
    journal.decide(invite(2), 0.0)
    journal.decide(invite(3), 0.0)
    journal.remember(answer("k"))
    store.fail = True
    with pytest.raises(UnavailableError):
        journal.commit()
    assert journal.head is journal.committed is before
    assert journal.recall("admin", "k", b"digest", 0.0) is None
    store.fail = False
    journal.commit()
    journal.decide(invite(2), 0.0)
    journal.commit()
    assert store.place == (1, 2)
    assert len(journal.committed.invites) == 2


def test_an_epoch_begins_with_what_was_decided_before_it(store: FakeStore, journal: Journal) -> None:
    journal.decide(invite(1), 0.0)
    journal.raise_epoch(5)
    assert store.place == (5, 1)
    assert journal.head is journal.committed
    assert (journal.head.epoch, len(journal.head.invites)) == (5, 1)
    journal.decide(invite(2), 0.0)
    journal.commit()
    assert store.place == (5, 2)


def test_a_fenced_journal_decides_nothing_that_lasts(store: FakeStore, journal: Journal) -> None:
    store.place = (2, 0)
    before = journal.committed
    journal.decide(invite(1), 0.0)
    with pytest.raises(FencedError):
        journal.commit()
    assert journal.head is before


def test_an_answer_is_recalled_for_the_same_request_for_a_while(journal: Journal) -> None:
    journal.remember(answer("k", 1000.0))
    assert journal.recall("admin", "k", b"digest", 1000.0 + ANSWERS_AGE) == b"answer"
    assert journal.recall("admin", "k", b"digest", 1001.0 + ANSWERS_AGE) is None
    assert journal.recall("bob", "k", b"digest", 1000.0) is None
    with pytest.raises(InvalidError):
        journal.recall("admin", "k", b"another", 1000.0)


def test_answers_are_bounded(store: FakeStore, journal: Journal) -> None:
    for number in range(ANSWERS_KEPT + 10):
        journal.remember(answer(str(number), float(number)))
    journal.commit()
    journal.forget(0.0)
    assert journal.recall("admin", "9", b"digest", 0.0) is None
    assert journal.recall("admin", "10", b"digest", 0.0) == b"answer"
    journal.forget(ANSWERS_AGE + 100.0)
    assert journal.recall("admin", "99", b"digest", 0.0) is None
    assert journal.recall("admin", "100", b"digest", 0.0) == b"answer"
    assert store.forgotten == [(-ANSWERS_AGE, ANSWERS_KEPT), (100.0, ANSWERS_KEPT)]


def test_answers_from_before_a_restart_are_recalled(store: FakeStore) -> None:
    journal = Journal(store, empty("10.0.0.0/8", 16), [answer("k")])
    assert journal.recall("admin", "k", b"digest", 0.0) == b"answer"
