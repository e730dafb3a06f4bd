"""Answers that wait for nodes."""

from __future__ import annotations

import pytest

from netctl.broker.views import LiveNode
from netctl.broker.waiting import Promise, Waiting
from netctl.wire.messages import Done, Failure, NodeError

PROMISE = Promise(7, ("n1", "n2"), "all is well", frozenset({"web", "db", "n1", "n2"}))


@pytest.fixture
def nodes() -> dict[str, LiveNode]:
    return {"n1": LiveNode(connected=True, applied=6), "n2": LiveNode(connected=True, applied=6)}


@pytest.fixture
def waiting(nodes: dict[str, LiveNode]) -> Waiting[str]:
    return Waiting(nodes)


def test_the_answer_comes_when_every_node_has_reported(
    nodes: dict[str, LiveNode], waiting: Waiting[str]
) -> None:
    assert waiting.add("a", PROMISE, 10.0) is None
    nodes["n1"] = LiveNode(connected=True, applied=7)
    assert waiting.reported("n1") == []
    assert waiting.reported("n1") == []
    nodes["n2"] = LiveNode(connected=True, applied=9)
    assert waiting.reported("n2") == [("a", Done(7, ("n1", "n2"), "all is well"))]
    assert len(waiting) == 0
    assert waiting.next_deadline() is None


def test_an_older_report_answers_nothing(nodes: dict[str, LiveNode], waiting: Waiting[str]) -> None:
    waiting.add("a", PROMISE, 10.0)
    nodes["n1"] = nodes["n2"] = LiveNode(connected=True, applied=6)
    assert waiting.reported("n1") + waiting.reported("n2") == []


def test_what_was_reported_before_counts(nodes: dict[str, LiveNode], waiting: Waiting[str]) -> None:
    nodes["n1"] = nodes["n2"] = LiveNode(connected=True, applied=7)
    assert waiting.add("a", PROMISE, 10.0) == PROMISE.done()
    assert waiting.add("b", Promise(7), 10.0) == Done(7)


def test_the_deadline_names_the_nodes_and_why(nodes: dict[str, LiveNode], waiting: Waiting[str]) -> None:
    waiting.add("a", Promise(7, ("n1", "n2", "n3", "n4"), subjects=frozenset({"web"})), 10.0)
    error = NodeError("web", "the kernel refused", "load a module")
    nodes["n1"] = LiveNode(connected=True, applied=7, errors=(error,))
    nodes["n3"] = LiveNode(connected=False, applied=7)
    nodes["n4"] = LiveNode(connected=True, applied=7)
    for node in nodes:
        assert waiting.reported(node) == []
    assert waiting.next_deadline() == 10.0
    assert waiting.overdue(9.9) == []
    ((ticket, failure),) = waiting.overdue(10.0)
    assert ticket == "a"
    assert (failure.code, failure.nodes, failure.revision) == ("pending", ("n1", "n2"), 7)
    assert "n1: the kernel refused" in failure.message
    assert "n2 has not applied it yet" in failure.message
    assert failure.remedy == "load a module"


def test_an_unreachable_node_is_said_to_be(nodes: dict[str, LiveNode], waiting: Waiting[str]) -> None:
    nodes["n2"] = LiveNode(connected=False, applied=3)
    nodes["n1"] = LiveNode(connected=True, applied=7)
    waiting.add("a", PROMISE, 1.0)
    ((_, failure),) = waiting.overdue(2.0)
    assert failure.nodes == ("n2",)
    assert "n2 is unreachable" in failure.message


def test_an_error_about_something_else_does_not_hold_an_answer_up(
    nodes: dict[str, LiveNode], waiting: Waiting[str]
) -> None:
    waiting.add("a", PROMISE, 10.0)
    other = NodeError("cache", "its command is not there")
    nodes["n1"] = nodes["n2"] = LiveNode(connected=True, applied=7, errors=(other,))
    assert waiting.reported("n1") == []
    assert waiting.reported("n2") == [("a", PROMISE.done())]


@pytest.mark.parametrize("subject", ["", "web", "n2"])
def test_an_error_that_concerns_it_holds_an_answer_up_until_it_is_gone(
    nodes: dict[str, LiveNode], waiting: Waiting[str], subject: str
) -> None:
    waiting.add("a", PROMISE, 10.0)
    nodes["n2"] = LiveNode(connected=True, applied=7)
    waiting.reported("n2")
    nodes["n1"] = LiveNode(connected=True, applied=7, errors=(NodeError(subject, "no"),))
    assert waiting.reported("n1") == []
    nodes["n1"] = LiveNode(connected=True, applied=7)
    assert waiting.reported("n1") == [("a", PROMISE.done())]


def test_a_container_that_does_not_start_fails_at_once(
    nodes: dict[str, LiveNode], waiting: Waiting[str]
) -> None:
    promise = Promise(7, ("n1",), subjects=frozenset({"web"}), starts="web")
    waiting.add("a", promise, 10.0)
    nodes["n1"] = LiveNode(connected=True, applied=7, errors=(NodeError("web", "no such file", "name one"),))
    failure = Failure("failed", "no such file", "name one", ("n1",), 7)
    assert waiting.reported("n1") == [("a", failure)]
    assert waiting.add("b", promise, 10.0) == failure
    nodes["n1"] = LiveNode(connected=True, applied=7, errors=(NodeError("web", "no such file"),))
    unexplained = waiting.add("c", promise, 10.0)
    assert isinstance(unexplained, Failure)
    assert "netctl rm --force web" in unexplained.remedy


def test_what_is_under_way_holds_up_whoever_waits_for_it_and_nobody_else(
    nodes: dict[str, LiveNode], waiting: Waiting[str]
) -> None:
    waiting.add("web", Promise(7, ("n1",), subjects=frozenset({"web"}), starts="web"), 10.0)
    waiting.add("db", Promise(7, ("n1",), subjects=frozenset({"db"})), 10.0)
    pulling = NodeError("web", "it is being pulled", under_way=True)
    nodes["n1"] = LiveNode(connected=True, applied=7, errors=(pulling,))
    assert [ticket for ticket, _ in waiting.reported("n1")] == ["db"]
    assert waiting.starting("n1", "web") == ["web"]
    assert waiting.starting("n1", "db") == waiting.starting("n2", "web") == []
    ((_, late),) = waiting.overdue(10.0)
    assert (late.code, "it is being pulled" in late.message) == ("pending", True)
    assert waiting.starting("n1", "web") == []


def test_a_node_that_is_gone_is_not_waited_for(nodes: dict[str, LiveNode], waiting: Waiting[str]) -> None:
    waiting.add("a", PROMISE, 10.0)
    waiting.add("b", Promise(7, ("n2",)), 10.0)
    assert waiting.forget_node("n2") == [("b", Done(7, ("n2",)))]
    nodes["n1"] = LiveNode(connected=True, applied=7)
    assert waiting.reported("n1") == [("a", PROMISE.done())]


def test_nobody_is_answered_who_went_away(nodes: dict[str, LiveNode], waiting: Waiting[str]) -> None:
    waiting.add("a", PROMISE, 10.0)
    nodes["n1"] = LiveNode(connected=True, applied=7)
    waiting.reported("n1")
    waiting.drop("a")
    waiting.drop("a")
    nodes["n2"] = LiveNode(connected=True, applied=7)
    assert waiting.reported("n1") + waiting.reported("n2") + waiting.overdue(99.0) == []
