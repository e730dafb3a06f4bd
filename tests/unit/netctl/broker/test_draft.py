from __future__ import annotations

from netctl.broker.draft import Draft
from netctl.broker.snapshot import Delete, Held, Invite, Put
from tests.support.broker import World


def _draft() -> Draft:
    snapshot = World().snapshot
    return Draft(snapshot, 0.0, snapshot.revision + 1)


def test_each_record_is_changed_once_by_its_last_word() -> None:
    draft = _draft()
    first, last = Invite("t", "user", None, 1.0), Invite("t", "user", None, 2.0)
    draft.put(first)
    draft.put(last)
    assert draft.changes == (Put(last),)


def test_what_came_and_went_is_no_change() -> None:
    draft = _draft()
    held = Held("10.1.0.2", "n1", 1, frozenset({"n1"}))
    draft.put(held)
    draft.delete(held)
    assert draft.changes == ()
    assert draft.snapshot(draft.base.revision) == draft.base


def test_what_was_there_and_went_is_deleted() -> None:
    draft = _draft()
    admin = draft.base.accounts["admin"]
    draft.put(admin)
    draft.delete(admin)
    assert draft.changes == (Delete(admin),)


def test_the_snapshot_it_started_from_stays_as_it_was() -> None:
    draft = _draft()
    before = dict(draft.base.accounts)
    draft.delete(draft.base.accounts["admin"])
    assert dict(draft.base.accounts) == before
    assert not draft.snapshot(9).accounts
    assert draft.snapshot(9).revision == 9
