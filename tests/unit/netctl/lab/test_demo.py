"""The demo succeeds only if every step came out as said, and clears away in any case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from netctl.errors import UnavailableError
from netctl.lab import demo
from netctl.lab.demo_story import Story, UnexpectedError


class Told:
    """Stands where the story stands, and ends as the test says."""

    ending: BaseException | None = None

    def __init__(self, *_: object) -> None:
        return

    def tell(self) -> None:
        if self.ending is not None:
            raise self.ending


@pytest.fixture
def cleared(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the directories that were cleared away; nothing on this machine is touched."""
    done: list[Path] = []
    monkeypatch.setattr(demo, "Story", Told)
    monkeypatch.setattr(demo, "_clear_away", done.append)
    monkeypatch.setattr(demo, "_listing", lambda _: {"link": frozenset({"lo"})})
    return done


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (None, 0),
        (UnexpectedError("web -> db: passes, and should be: blocked"), 1),
        (UnavailableError("n1 ended", "see its log"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_status_says_how_it_came_out(
    cleared: list[Path], ending: BaseException | None, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Told, "ending", ending)
    assert demo.main(["--dir", "/nowhere"]) == status
    assert cleared == [Path("/nowhere")] * 2


def test_what_is_left_behind_is_a_failure(cleared: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    listings: list[Any] = [{"link": frozenset({"lo"})}, {"link": frozenset({"lo", "netctl0"})}]
    monkeypatch.setattr(demo, "_listing", lambda _: listings.pop(0))
    assert demo.main([]) == 1
    assert len(cleared) == 2


def test_keep_leaves_the_lab_and_says_what_to_try(
    cleared: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo.main(["--keep", "--dir", "/srv/lab"]) == 0
    assert len(cleared) == 1
    assert "export NETCTL_LAB=/srv/lab" in capsys.readouterr().out


def test_an_observation_that_was_not_said_stops_the_story(capsys: pytest.CaptureFixture[str]) -> None:
    story = Story(Console(), Path("/nowhere"))
    story._check("web -> db", expected=False, actual=False)
    assert "ok  web -> db: blocked" in capsys.readouterr().out
    with pytest.raises(UnexpectedError, match="web -> db: passes, and should be: blocked"):
        story._check("web -> db", expected=False, actual=True)
    assert "WRONG" in capsys.readouterr().out
