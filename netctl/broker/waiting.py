"""Answers that wait until every node concerned has applied what was recorded. No I/O.

A promise is what a command led to; it is kept until each of its nodes has reported the promise's revision,
or its deadline passes. A node that reports the revision with errors that concern the promise keeps it
waiting, since agents try again; the errors are then the reasons in the answer ``pending``. Only the start
of a container fails as soon as its node says that it failed; what is under way may take what it takes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import attrs

from netctl.broker.views import LiveNode
from netctl.model import Name, Revision, Text
from netctl.wire.messages import Done, Failure, NodeError

Ticket = TypeVar("Ticket")
_UNSEEN = LiveNode()


@attrs.frozen
class Promise:
    """What was recorded, and what an answer about it waits for.

    Attributes:
        revision: That each of `nodes` must report.
        nodes: Names of the nodes concerned.
        message: Of the answer, when all is well.
        subjects: Names of containers and nodes whose errors concern this.
        starts: The container that must run for all to be well; empty: none.
        rotates: The node whose new key must be in use everywhere; then `revision` is of the last step. Empty:
            none.
    """

    revision: Revision
    nodes: tuple[Name, ...] = ()
    message: Text = ""
    subjects: frozenset[str] = frozenset()
    starts: str = ""
    rotates: str = ""

    def done(self) -> Done:
        """Return the answer when all is well."""
        return Done(self.revision, self.nodes, self.message)


@attrs.define(eq=False)
class _Wait(Generic[Ticket]):
    ticket: Ticket
    promise: Promise
    deadline: float
    missing: set[str]


class Waiting(Generic[Ticket]):
    """All promises that are not kept yet, by whatever the caller knows them by.

    Args:
        nodes: What is known of each node now, by name; the caller keeps it up to date.
        rotating: The nodes that the next step with a node's new key waits for; None: no new key is under way.
    """

    def __init__(
        self,
        nodes: Mapping[str, LiveNode],
        rotating: Callable[[str], frozenset[str] | None] = lambda _node: None,
    ) -> None:
        self._nodes = nodes
        self._rotating = rotating
        self._waits: dict[Ticket, _Wait[Ticket]] = {}
        self._of_node: dict[str, OrderedDict[Ticket, None]] = {}

    def __len__(self) -> int:
        return len(self._waits)

    def add(self, ticket: Ticket, promise: Promise, deadline: float) -> Done | Failure | None:
        """Wait for a promise to be kept.

        Args:
            ticket: Names it in what the other methods return; of no other that waits.
            promise: What was recorded.
            deadline: Monotonic seconds.

        Returns:
            The answer where there is nothing to wait for.
        """
        if promise.rotates and self._rotating(promise.rotates) is None:
            promise = attrs.evolve(promise, rotates="")
        wait = _Wait(ticket, promise, deadline, set(promise.nodes))
        for node in promise.nodes:
            broken = self._look(wait, node)
            if broken is not None:
                return broken
        if not wait.missing:
            return promise.done()
        self._waits[ticket] = wait
        for node in wait.missing:
            self._of_node.setdefault(node, OrderedDict())[ticket] = None
        return None

    def reported(self, node: str) -> list[tuple[Ticket, Done | Failure]]:
        """Look again at what waits for a node; return the answers this leads to."""
        answers: list[tuple[Ticket, Done | Failure]] = []
        for ticket in list(self._of_node.get(node, ())):
            wait = self._waits[ticket]
            answer: Done | Failure | None = self._look(wait, node)
            if answer is None and not wait.missing:
                answer = wait.promise.done()
            if answer is not None:
                self.drop(ticket)
                answers.append((ticket, answer))
            elif node not in wait.missing:
                self._unlist(node, ticket)
        return answers

    def rotated(self, node: str, revision: Revision) -> None:
        """Note that a node's new key is in use everywhere; the old one goes with what `revision` says."""
        for ticket in self._of_node.get(node, ()):
            wait = self._waits[ticket]
            if wait.promise.rotates == node:
                wait.promise = attrs.evolve(wait.promise, revision=revision, rotates="")

    def starting(self, node: str, name: str) -> list[Ticket]:
        """Return what waits for a node to start the container `name`."""
        return [t for t in self._of_node.get(node, ()) if self._waits[t].promise.starts == name]

    def forget_node(self, node: str) -> list[tuple[Ticket, Done | Failure]]:
        """Wait for a node no longer, since it is gone; return the answers this leads to."""
        answers: list[tuple[Ticket, Done | Failure]] = []
        for ticket in self._of_node.pop(node, OrderedDict()):
            wait = self._waits[ticket]
            wait.missing.discard(node)
            if wait.promise.rotates:
                self.drop(ticket)
                answers.append((ticket, Failure("failed", f"node {node} was removed", nodes=(node,))))
            elif not wait.missing:
                self.drop(ticket)
                answers.append((ticket, wait.promise.done()))
        return answers

    def drop(self, ticket: Ticket) -> None:
        """Wait no longer, since nobody is there to be answered."""
        wait = self._waits.pop(ticket, None)
        for node in wait.promise.nodes if wait is not None else ():
            self._unlist(node, ticket)

    def overdue(self, now: float) -> list[tuple[Ticket, Failure]]:
        """Return the answer ``pending`` for every promise whose deadline (monotonic seconds) has passed."""
        late = [wait for wait in self._waits.values() if wait.deadline <= now]
        for wait in late:
            self.drop(wait.ticket)
        return [(wait.ticket, self._pending(wait)) for wait in late]

    def next_deadline(self) -> float | None:
        """Return when `overdue` next has something to say, in monotonic seconds."""
        return min((wait.deadline for wait in self._waits.values()), default=None)

    def _look(self, wait: _Wait[Ticket], node: str) -> Failure | None:
        """Take a node off a promise's list if it has kept its part; return why the promise is broken."""
        known = self._nodes.get(node, _UNSEEN)
        if known.applied < wait.promise.revision or wait.promise.rotates:
            return None
        errors = _concerning(wait.promise, known)
        starts = wait.promise.starts
        failed = next((e for e in errors if starts and e.subject == starts and not e.under_way), None)
        if failed is not None:
            remedy = failed.remedy or f"take it out with `netctl rm --force {starts}`, or see its logs"
            return Failure("failed", failed.message, remedy, (node,), wait.promise.revision)
        if not errors:
            wait.missing.discard(node)
        return None

    def _pending(self, wait: _Wait[Ticket]) -> Failure:
        reasons = []
        remedy = "it is applied when they can; see `netctl node list`"
        # With a new key the next step may be others' to take.
        hindering = self._rotating(wait.promise.rotates) if wait.promise.rotates else None
        missing = sorted(hindering or wait.missing)
        for node in missing:
            known = self._nodes.get(node, _UNSEEN)
            errors = _concerning(wait.promise, known)
            if not known.connected:
                reasons.append(f"{node} is unreachable")
            elif not hindering and known.applied < wait.promise.revision:
                reasons.append(f"{node} has not applied it yet")
            else:
                reasons.append(f"{node}: {errors[0].message}" if errors else f"{node} is not done")
                remedy = next((e.remedy for e in errors if e.remedy), remedy)
        text = f"recorded, but not applied everywhere in time: {'; '.join(reasons)}"
        return Failure("pending", text[:4096], remedy, tuple(missing), wait.promise.revision)

    def _unlist(self, node: str, ticket: Ticket) -> None:
        tickets = self._of_node.get(node)
        if tickets is not None:
            tickets.pop(ticket, None)
            if not tickets:
                del self._of_node[node]


def _concerning(promise: Promise, known: LiveNode) -> list[NodeError]:
    """Return the errors that are about the node itself or about what the promise is about."""
    return [e for e in known.errors if not e.subject or e.subject in promise.subjects]
