from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from firewall_rules.backends.namespaces import Stamp
from firewall_rules.backends.records import Recorded, Records
from firewall_rules.change import ContainerChange
from firewall_rules.policy import ContainerPolicy, Opening

KEY = "0123456789abcdef"
POLICY = ContainerPolicy(
    address="10.1.0.2", gateway="10.1.0.1", inbound=frozenset({Opening("10.2.0.2", "tcp", 80, 12.5)})
)
CHANGE = ContainerChange(inbound_removed=(Opening("10.2.0.2", "tcp", 80),))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "records"


def records(directory: Path | None) -> Records:
    return Records(directory, ContainerPolicy, ContainerChange, "of-today")


def test_what_was_written_is_read_by_the_next_process(directory: Path) -> None:
    first = records(directory)
    first.write(KEY, Stamp(7, 1), POLICY)
    assert first.append(KEY, Stamp(7, 2), CHANGE)
    assert records(directory).load(KEY) == Recorded(Stamp(7, 2), POLICY, (CHANGE,))
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / KEY).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_change_that_was_cut_short_is_as_if_it_had_not_been_recorded(directory: Path, cut: int) -> None:
    first = records(directory)
    first.write(KEY, Stamp(7, 1), POLICY)
    first.append(KEY, Stamp(7, 2), CHANGE)
    path = directory / KEY
    path.write_bytes(path.read_bytes()[:-cut])
    assert records(directory).load(KEY) == Recorded(Stamp(7, 1), POLICY, ())


@pytest.mark.parametrize("content", [b"", b"\0" * 40, b"\xff" * 40, b"short"])
def test_a_file_that_is_no_record_is_none(directory: Path, content: bytes) -> None:
    directory.mkdir()
    (directory / KEY).write_bytes(content)
    assert records(directory).load(KEY) is None


def test_a_record_of_another_boot_is_none(directory: Path) -> None:
    first = records(directory)
    first._boot = "another"
    first.write(KEY, Stamp(7, 1), POLICY)
    assert records(directory).load(KEY) is None


def test_a_record_of_rules_of_another_form_is_none(directory: Path) -> None:
    Records(directory, ContainerPolicy, ContainerChange, "of-old").write(KEY, Stamp(7, 1), POLICY)
    assert records(directory).load(KEY) is None
    records(directory).write(KEY, Stamp(7, 1), POLICY)
    assert records(directory).load(KEY) == Recorded(Stamp(7, 1), POLICY, ())


def test_after_many_changes_the_whole_is_asked_for(directory: Path) -> None:
    first = records(directory)
    first.write(KEY, Stamp(7, 0), POLICY)
    appended = 0
    while first.append(KEY, Stamp(7, appended), CHANGE):
        appended += 1
        assert appended <= 2000
    first.write(KEY, Stamp(7, 5000), POLICY)
    assert records(directory).load(KEY) == Recorded(Stamp(7, 5000), POLICY, ())


def test_where_nothing_can_be_written_nothing_is_claimed(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("a file where the directory should be")
    first = records(tmp_path / "records")
    first.write(KEY, Stamp(7, 1), POLICY)
    assert records(tmp_path / "records").load(KEY) is None


def test_dropped_it_is_gone(directory: Path) -> None:
    first = records(directory)
    first.write(KEY, Stamp(7, 1), POLICY)
    first.drop(KEY)
    assert first.load(KEY) is None
    first.drop(KEY)


def test_without_a_directory_nothing_is_kept() -> None:
    none = records(None)
    none.write(KEY, Stamp(7, 1), POLICY)
    assert none.append(KEY, Stamp(7, 2), CHANGE)
    assert none.load(KEY) is None


@pytest.mark.parametrize("key", ["../etc", "", "a/b", "a" * 129, "."])
def test_a_key_is_no_path(directory: Path, key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        records(directory).load(key)


def test_stamps_follow_each_other_around_the_counters_end() -> None:
    assert Stamp(7, 1).following() == Stamp(7, 2)
    assert attrs.evolve(Stamp(7, 0xFFFFFFFF)).following() == Stamp(7, 0)
