"""Labs that are up are found by their registry files, and only while they are labs."""

from __future__ import annotations

from pathlib import Path

from netctl.lab import registry


def make(root: Path) -> str:
    root.mkdir()
    (root / registry.SPEC_FILE).touch()
    return str(root)


def test_labs_are_listed_while_they_are_up(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "labs"
    assert registry.labs_up(folder) == ()
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    with registry.registered(other, folder):
        assert registry.labs_up(folder) == (other,)
        with registry.registered(one, folder) as file:
            assert registry.labs_up(folder) == (one, other)
            registry.forget(file)
        assert registry.labs_up(folder) == (other,)


def test_the_last_lab_leaves_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "labs"
    with registry.registered("/somewhere", folder) as file:
        registry.forget(file)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_lab_is_not_listed(tmp_path: Path) -> None:
    folder = tmp_path / "labs"
    folder.mkdir()
    (folder / "gone").write_text(f"{tmp_path}/gone\n")
    (folder / "relative").write_text("lab\n")
    (folder / "binary").write_bytes(b"\xff\xfe")
    assert registry.labs_up(folder) == ()


def test_files_of_labs_that_are_gone_go_with_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "labs"
    with registry.registered("/removed/under/it", folder):
        pass
    with registry.registered("/at/work", folder), registry.registered("/somewhere", folder) as file:
        registry.forget(file)
        # One that a command is at work on is no lab yet, and stays.
        assert [entry.read_text() for entry in folder.iterdir()] == ["/at/work\n"]
