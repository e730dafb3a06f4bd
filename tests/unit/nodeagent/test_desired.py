from __future__ import annotations

import random
from pathlib import Path

import pytest

from netctl.delta import apply_delta
from netctl.model import NodeDelta, NodeState
from netctl.wire.messages import Reset, Update
from nodeagent.desired import COMPACT_BYTES, Desired
from nodeagent.desired_index import Scope
from tests.support.agents import container, peer, permit, state

ONE = state([container(2)], [peer(2)], [permit("10.1.0.2", "10.2.0.2")])


def delta(number: int) -> NodeDelta:
    return NodeDelta(permits=(permit("10.1.0.2", f"10.2.{number // 200}.{number % 200 + 1}", "80/tcp"),))


def update(number: int, epoch: int = 1) -> Update:
    """The update to revision `number`; 10 is where `held` begins."""
    return Update(epoch, number - 1, number, delta(number))


def held(directory: Path) -> Desired:
    desired = Desired(directory)
    desired.load()
    assert desired.take(Reset(1, 10, ONE)).outcome == "taken"
    desired.flush()
    return desired


def reloaded(directory: Path) -> Desired:
    desired = Desired(directory)
    desired.load()
    return desired


def after_updates(last: int) -> NodeState:
    result = ONE
    for number in range(11, last + 1):
        result = apply_delta(result, delta(number))
    return result


def test_nothing_is_held_at_first(tmp_path: Path) -> None:
    assert reloaded(tmp_path).held is None


def test_what_was_taken_is_there_in_the_next_run(tmp_path: Path) -> None:
    desired = held(tmp_path)
    for number in (11, 12, 13):
        assert desired.take(update(number)).outcome == "taken"
    # Written, if not durable yet: a process that is killed has lost nothing.
    again = reloaded(tmp_path).held
    assert again is not None
    assert (again.epoch, again.revision) == (1, 13)
    assert again.index.state() == after_updates(13)
    desired.flush()
    assert not desired.dirty
    desired.close()


def test_a_whole_state_is_durable_with_the_flush_and_not_before(tmp_path: Path) -> None:
    desired = held(tmp_path)
    desired.take(Reset(2, 1, after_updates(11)))
    assert desired.dirty
    desired.flush()
    again = reloaded(tmp_path).held
    assert again is not None
    assert (again.epoch, again.revision, again.index.state()) == (2, 1, after_updates(11))


@pytest.mark.parametrize(
    ("message", "outcome"),
    [
        (update(10), "known"),
        (update(9), "older"),
        (update(12), "gap"),
        (update(11, epoch=2), "gap"),
        (Update(0, 10, 99, delta(11)), "older"),
        (Reset(1, 9, ONE), "older"),
        (Reset(0, 99, ONE), "older"),
        (Reset(1, 10, ONE), "taken"),
        (Reset(2, 1, ONE), "taken"),
    ],
)
def test_only_what_is_newer_and_fits_is_taken(tmp_path: Path, message: Reset | Update, outcome: str) -> None:
    desired = held(tmp_path)
    before = desired.held
    assert desired.take(message).outcome == outcome
    assert (desired.held == before) == (outcome != "taken" or message.revision == 10)


def test_updates_doubled_reordered_and_old_change_nothing(tmp_path: Path) -> None:
    seeded = random.Random(7)
    for _ in range(20):
        directory = tmp_path / str(_)
        directory.mkdir()
        desired = held(directory)
        noise = [update(seeded.randint(5, 16)) for _ in range(60)]
        for message in [*noise, *(update(number) for number in range(11, 17))]:
            desired.take(message)
        assert desired.held is not None
        assert desired.held.revision == 16
        assert desired.held.index.state() == after_updates(16)
        again = reloaded(directory).held
        assert again == desired.held
        desired.close()


def test_an_update_says_what_it_can_touch(tmp_path: Path) -> None:
    desired = held(tmp_path)
    scope = desired.take(update(11)).scope
    assert isinstance(scope, Scope)
    assert [*scope.pairs] == [("10.1.0.2", "10.2.0.12")]
    assert desired.take(Update(1, 11, 12, NodeDelta(peers=(peer(3),)))).scope is None


def test_compacting_keeps_what_is_held_and_empties_the_log(tmp_path: Path) -> None:
    desired = held(tmp_path)
    number = 11
    while not desired.compact_due:
        desired.take(update(number))
        number += 1
    assert (tmp_path / "desired.log").stat().st_size > COMPACT_BYTES
    desired.compact()
    assert not (tmp_path / "desired.log").exists()
    desired.take(update(number))
    again = reloaded(tmp_path).held
    assert again is not None
    assert again.revision == number
    assert again.index.state() == after_updates(number)


def test_a_crash_between_state_and_log_of_a_compaction_is_harmless(tmp_path: Path) -> None:
    desired = held(tmp_path)
    for number in (11, 12):
        desired.take(update(number))
    log = (tmp_path / "desired.log").read_bytes()
    desired.compact()
    (tmp_path / "desired.log").write_bytes(log)
    again = reloaded(tmp_path).held
    assert again is not None
    assert again.revision == 12
    assert again.index.state() == after_updates(12)


def test_an_update_cut_short_is_dropped_and_the_next_one_fits(tmp_path: Path) -> None:
    desired = held(tmp_path)
    desired.take(update(11))
    whole = (tmp_path / "desired.log").read_bytes()
    desired.take(update(12))
    longer = (tmp_path / "desired.log").read_bytes()
    for cut in range(len(whole) + 1, len(longer)):
        (tmp_path / "desired.log").write_bytes(longer[:cut])
        again = reloaded(tmp_path)
        assert again.held is not None
        assert again.held.revision == 11
        assert again.take(update(12)).outcome == "taken"
        again.close()
        assert (tmp_path / "desired.log").read_bytes() == longer


@pytest.mark.parametrize("name", ["desired.state", "desired.log"])
def test_damage_anywhere_sets_the_files_aside_and_never_goes_on_from_an_older_state(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    desired = held(tmp_path)
    for number in (11, 12):
        desired.take(update(number))
    state_bytes = (tmp_path / "desired.state").read_bytes()
    log_bytes = (tmp_path / "desired.log").read_bytes()
    path = tmp_path / name
    data = path.read_bytes()
    seeded = random.Random(1)
    for place in sorted(seeded.sample(range(len(data)), min(60, len(data)))):
        (tmp_path / "desired.state").write_bytes(state_bytes)
        (tmp_path / "desired.log").write_bytes(log_bytes)
        damaged = bytearray(data)
        damaged[place] ^= 0x40
        path.write_bytes(bytes(damaged))
        again = reloaded(tmp_path)
        assert again.held is None
        assert path.with_name(f"{name}.corrupt").read_bytes() == bytes(damaged)
        assert not path.exists()
        assert "corrupt" in "".join(capfd.readouterr())


@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"\x00\x00\x00\x00", random.Random(3).randbytes(5000)])
def test_anything_else_on_the_disk_is_set_aside(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "desired.state").write_bytes(data)
    again = reloaded(tmp_path)
    assert again.held is None
    assert (tmp_path / "desired.state.corrupt").read_bytes() == data
    assert again.take(Reset(1, 1, ONE)).outcome == "taken"


def test_looking_touches_nothing(tmp_path: Path) -> None:
    held(tmp_path)
    (tmp_path / "desired.log").write_bytes(b"\0\0")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    desired = Desired(tmp_path)
    desired.peek()
    assert desired.held is not None
    (tmp_path / "desired.state").write_bytes(b"damaged")
    desired.peek()
    assert desired.held is None
    before["desired.state"] = b"damaged"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_forgetting_leaves_no_file(tmp_path: Path) -> None:
    desired = held(tmp_path)
    desired.take(update(11))
    desired.forget()
    assert list(tmp_path.iterdir()) == []
    assert desired.held is None


def test_a_disk_that_takes_no_update_is_told_by_the_flush(tmp_path: Path) -> None:
    desired = held(tmp_path)
    (tmp_path / "desired.log").mkdir()
    assert desired.take(update(11)).outcome == "taken"
    assert desired.take(update(12)).outcome == "taken"
    with pytest.raises(OSError, match="directory"):
        desired.flush()
    assert desired.dirty
    (tmp_path / "desired.log").rmdir()
    desired.flush()
    again = reloaded(tmp_path).held
    assert again is not None
    assert again.revision == 12
    assert again.index.state() == after_updates(12)
