"""What the agent tells the broker of itself: who it is, how its containers are, what is applied."""

from __future__ import annotations

from collections.abc import Callable

from netctl.delta import digest
from netctl.log import get_logger
from netctl.model import ContainerStatus
from netctl.wire.messages import Applied, Facts, Hello, NodeError, Report
from nodeagent.desired import Desired
from nodeagent.docker_side import DockerSide
from nodeagent.facts import node_facts
from nodeagent.kernel_state import HostFacts
from nodeagent.latest import Latest
from nodeagent.reconcile import Reconciler
from nodeagent.session import Link
from nodeagent.shortfalls import MAX_ERRORS


class Reports:
    """What one session after the other is told.

    Args:
        link: The session with the broker.
        desired: What the broker wants.
        docker: Docker's side of the agent; None: it has none.
        number: Returns a number for a request to the broker that no other has.
        monotonic: Seconds of a clock that is never set.

    Attributes:
        hello_due: Hello is to be said.
        welcome: The broker has answered it, and listens.
    """

    def __init__(
        self,
        link: Link,
        desired: Desired,
        docker: DockerSide | None,
        number: Callable[[], int],
        monotonic: Callable[[], float],
    ) -> None:
        self.hello_due = False
        self.welcome = False
        self._link = link
        self._desired = desired
        self._docker = docker
        self._number = number
        self._monotonic = monotonic
        self._received_at = 0.0
        self._told: tuple[int, int, bool, tuple[NodeError, ...]] | None = None
        self._facts_told: HostFacts | None = None
        self._reported: dict[str, ContainerStatus] = {}
        self._all_reported: tuple[ContainerStatus, ...] = ()
        self._together = Latest(_together)
        self._log = get_logger()

    def begin(self) -> None:
        """A session begins: nothing that an older one was told holds."""
        self.hello_due, self.welcome, self._told = True, False, None

    def end(self) -> None:
        """The session is over."""
        self.hello_due = self.welcome = False

    def missed(self) -> None:
        """Something is missing of what the broker said."""
        # One that was on its way before our Hello is followed by the answer to that.
        self.hello_due = self.hello_due or self.welcome
        self.welcome = False

    def received(self, *, known: bool) -> None:
        """The broker said what it wants; `known`: again, since it may have lost what it was told."""
        self.welcome = True
        self._received_at = self._monotonic()
        if known:
            self._told = None

    def hello(self, facts: HostFacts, host: Reconciler) -> None:
        """Say who we are, what we hold, and what is here."""
        held = self._desired.held
        statuses = self._statuses(host)
        message = Hello(
            epoch=0 if held is None else held.epoch,
            revision=0 if held is None else held.revision,
            digest="" if held is None else digest(held.index.state()),
            facts=node_facts(facts),
            containers=statuses,
            docker=None if self._docker is None else self._docker.containers(),
        )
        self.hello_due = False
        self._reported = {status.id: status for status in statuses}
        self._all_reported = statuses
        self._facts_told = facts
        self._link.send(message, self._number())

    def facts(self, facts: HostFacts) -> None:
        """Tell what is true of the host by now, if that is not what was told."""
        if facts is self._facts_told or not self.welcome:
            return
        told = self._facts_told is not None and node_facts(self._facts_told) == node_facts(facts)
        if told or self._link.send(Facts(node_facts(facts))):
            self._facts_told = facts

    def _statuses(self, host: Reconciler) -> tuple[ContainerStatus, ...]:
        if self._docker is None:
            return host.statuses()
        held = self._desired.held
        return self._together(host.statuses(), self._docker.statuses(None if held is None else held.index))

    def report(self, host: Reconciler) -> None:
        """Tell which containers are in another state than was told."""
        if not self.welcome or not self._link.connected:
            return
        statuses = self._statuses(host)
        if statuses is self._all_reported:
            return
        changed = tuple(s for s in statuses if self._reported.get(s.id) != s)
        if changed and not self._link.send(Report(changed)):
            return
        self._reported.update((status.id, status) for status in changed)
        self._all_reported = statuses

    def applied(self, host: Reconciler, lasting: tuple[NodeError, ...]) -> bool:
        """Tell what is applied, once it is so and durable.

        Args:
            host: The node's.
            lasting: What is wrong with this node whatever is wanted of it.

        Returns:
            Whether the broker was just told that everything of ours is out of this host.
        """
        held = self._desired.held
        if not self.welcome or held is None or not host.settled:
            return False
        removed = held.index.header.block is None
        if self._docker is not None and not removed:
            lasting += self._docker.errors()
        errors = (*host.errors(), *lasting)[:MAX_ERRORS]
        told = (held.epoch, held.revision, host.leftovers, errors)
        if told == self._told:
            return False
        duration = (self._monotonic() - self._received_at) * 1000
        if not self._link.send(Applied(held.epoch, held.revision, errors, host.leftovers, duration)):
            return False
        host.told()
        now_left = (*host.errors(), *lasting)[:MAX_ERRORS]
        self._told = (held.epoch, held.revision, host.leftovers, now_left)
        self._log.debug("applied", revision=held.revision, duration_ms=round(duration, 3), count=len(errors))
        return removed and not errors


def _together(
    one: tuple[ContainerStatus, ...], other: tuple[ContainerStatus, ...]
) -> tuple[ContainerStatus, ...]:
    return (*one, *other)
