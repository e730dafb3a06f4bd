"""The switches of the fake engine; that it behaves like a real one is shown in tests/contract."""

from __future__ import annotations

import os
import select

import pytest

from netctl.errors import KernelError
from netctl.model import Workload
from nodeagent.engine.base import ExecRequest
from nodeagent.engine.fake import FakeEngine
from nodeagent.kernel_state import EngineContainer
from tests.support.engines import until_state

WORKLOAD = Workload("process", ("sh",))


def engine_with(container: str, **options: bool) -> FakeEngine:
    engine = FakeEngine(**options)  # type: ignore[arg-type]
    engine.create(container, "web", "10.1.0.2", WORKLOAD)
    if engine.auto:
        until_state(engine, container, "created")
    return engine


def test_a_failure_is_for_one_method_and_as_often_as_said() -> None:
    engine = engine_with("a")
    engine.fail("start", "no memory", times=2)
    for _ in range(2):
        with pytest.raises(KernelError, match="no memory"):
            engine.start("a", 1)
    assert engine.calls == [("create", "a")]
    engine.start("a", 1)
    until_state(engine, "a", "running")


def test_a_failure_can_be_for_one_container() -> None:
    engine = engine_with("a")
    engine.fail("create", "no space", container="c")
    engine.create("b", "db", "10.1.0.3", WORKLOAD)
    with pytest.raises(KernelError, match="no space"):
        engine.create("c", "cache", "10.1.0.4", WORKLOAD)
    assert set(engine.containers()) == {"a", "b"}


def test_a_crash_before_changes_nothing_and_one_after_everything() -> None:
    class Crash(BaseException):
        pass

    when = "before"

    def hook(_method: str, _container: str, place: str) -> None:
        if place == when:
            raise Crash

    engine = FakeEngine(hook=hook)
    with pytest.raises(Crash):
        engine.create("a", "web", "10.1.0.2", WORKLOAD)
    assert engine.containers() == {}
    when = "after"
    with pytest.raises(Crash):
        engine.create("a", "web", "10.1.0.2", WORKLOAD)
    assert engine.containers() == {"a": EngineContainer("creating")}


def test_without_auto_a_test_says_what_comes_next() -> None:
    engine = engine_with("a", auto=False)
    engine.dispatch(lambda *change: pytest.fail(f"changed: {change}"))
    engine.become("a", EngineContainer("created"))
    assert engine.containers()["a"].state == "creating"
    engine.dispatch(lambda *_: None)
    assert engine.containers()["a"].state == "created"
    engine.start("a", 1)
    engine.dispatch(lambda *change: pytest.fail(f"changed: {change}"))
    engine.become("a", EngineContainer("failed", 1, 127, "no such program"))
    until_state(engine, "a", "failed")


def test_one_that_vanishes_is_told_as_gone() -> None:
    engine = engine_with("a")
    engine.vanish("a")
    told: list[object] = []
    engine.dispatch(lambda *change: told.append(change))
    assert told == [("a", None)]
    assert engine.containers() == {}


def test_its_descriptor_is_readable_exactly_while_something_waits() -> None:
    engine = engine_with("a")
    (descriptor,) = engine.descriptors()
    engine.dispatch(lambda *_: None)
    assert select.select([descriptor], [], [], 0)[0] == []
    engine.start("a", 1)
    assert select.select([descriptor], [], [], 0)[0] == [descriptor]
    engine.dispatch(lambda *_: None)
    assert select.select([descriptor], [], [], 0)[0] == []
    engine.close()


def test_an_exec_is_played_by_the_test() -> None:
    engine = engine_with("a")
    engine.start("a", 1)
    until_state(engine, "a", "running")
    out, to_out = os.pipe()
    ended: list[tuple[int, str]] = []
    request = ExecRequest(("id",), (), "", tty=False, stdin=to_out, stdout=to_out, stderr=to_out)
    handle = engine.exec("a", request, lambda *end: ended.append(end))
    os.close(to_out)
    os.write(engine.execs[handle].stdout, b"played")
    assert os.read(out, 100) == b"played"
    engine.end_exec(handle, 3)
    assert ended == []
    engine.dispatch(lambda *_: None)
    assert ended == [(3, "")]
    assert os.read(out, 100) == b""
    os.close(out)
