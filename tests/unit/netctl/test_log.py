"""Log lines: where they go, what they may carry."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from netctl import log
from netctl.errors import InvalidError

ROOT = Path(__file__).parents[3]
METHODS = {"debug", "info", "warning", "error", "critical", "exception", "bind", "new"}
NAMES = {"log", "_log", "logger", "_logger", "LOG", "_LOG"}


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_object_a_line_with_time_level_and_program() -> None:
    stream = io.StringIO()
    log.setup("broker", level="info", stream=stream)
    log.get_logger().info("node joined", node="n1", revision=7)
    log.get_logger().debug("not written", node="n1")
    (line,) = lines(stream)
    assert line.pop("time")
    assert line == {"event": "node joined", "level": "info", "program": "broker", "node": "n1", "revision": 7}


def test_a_logger_made_before_the_setup_follows_it() -> None:
    early = log.get_logger()
    stream = io.StringIO()
    log.setup("nodeagent", level="warning", stream=stream)
    early.info("quiet")
    early.warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


def test_the_level_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setenv("NETCTL_LOG", "DEBUG")
    log.setup("broker", stream=stream)
    log.get_logger().debug("fine")
    assert [line["level"] for line in lines(stream)] == ["debug"]
    monkeypatch.setenv("NETCTL_LOG", "loud")
    with pytest.raises(InvalidError, match=r"'loud' is no level.*debug, info, warning"):
        log.setup("broker", stream=stream)


def test_stderr_is_the_default_and_stdout_stays_clean(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup("broker", level="info")
    log.get_logger().info("hello")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["event"] == "hello"


def test_a_traceback_is_text_without_local_variables() -> None:
    for as_json in (True, False):
        stream = io.StringIO()
        log.setup("broker", level="info", json=as_json, stream=stream)
        secret = "swordfish".upper()
        try:
            int("x" + secret[:0])
        except ValueError:
            log.get_logger().exception("failed")
        assert "ValueError" in stream.getvalue()
        assert "SWORDFISH" not in stream.getvalue()


def test_values_cannot_steer_a_terminal_or_forge_a_line() -> None:
    for as_json in (True, False):
        stream = io.StringIO()
        log.setup("broker", level="info", json=as_json, stream=stream)
        log.get_logger().info("refused", error="\x1b[2J\nforged line \x9b")
        assert stream.getvalue().count("\n") == 1
        assert "\x1b" not in stream.getvalue()
        assert "\x9b" not in stream.getvalue()
        assert "forged line" in stream.getvalue()


def fields_used(source: str) -> set[str]:
    return {
        keyword.arg
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in METHODS
        and (
            (isinstance(node.func.value, ast.Name) and node.func.value.id in NAMES)
            or (isinstance(node.func.value, ast.Attribute) and node.func.value.attr in NAMES)
        )
        for keyword in node.keywords
        if keyword.arg is not None
    } - {"exc_info"}


def test_fields_are_found_where_they_are_used() -> None:
    assert fields_used("_log.info('x', node=1)\nself._log.bind(bogus=2)\nother.info(c=3)") == {
        "node",
        "bogus",
    }


@pytest.mark.parametrize("package", ["netctl", "nodeagent", "firewall_rules"])
def test_every_field_that_is_logged_has_its_meaning_fixed(package: str) -> None:
    sources = list((ROOT / package).rglob("*.py"))
    assert sources
    unknown = {
        (str(path.relative_to(ROOT)), field)
        for path in sources
        for field in fields_used(path.read_text(encoding="utf-8")) - set(log.FIELDS)
    }
    assert unknown == set()
