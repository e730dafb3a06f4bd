"""The node agent: wiring, one loop, and its timers.

    broker session --Reset/Update--> Desired --scope--> Reconciler --operations--> helper (privileged child)
          ^    ^                        |                    ^                        |
          |    |                     flush (a thread)        '---- what happened -----'
          |    '--Applied(revision, errors)--- durable and settled --- Report(states of containers)
          '------StreamData/End----------- Streams <---- descriptors of commands and output

It holds no right over the host: whatever touches it is done by the helper. With the broker away the last
desired state stays in force; with the helper gone a new one is started, and the host is looked at again.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Collection
from typing import Final, Protocol

from netctl.errors import NetctlError, UnavailableError
from netctl.log import get_logger
from netctl.model import ContainerStatus, digest
from netctl.wire.messages import (
    Applied,
    Done,
    Envelope,
    Failure,
    Hello,
    Message,
    NodeError,
    NodeOpenExec,
    NodeOpenLogs,
    Report,
    Reset,
    StreamCredit,
    StreamData,
    StreamEnd,
    StreamResize,
    Update,
)
from nodeagent.desired import Desired
from nodeagent.facts import EncapsulationChoice, lacking, node_facts, restricted
from nodeagent.flusher import Flusher
from nodeagent.found import Found
from nodeagent.helper_client import Helper
from nodeagent.helper_messages import Drifted, ExecEnded
from nodeagent.kernel_state import HostFacts
from nodeagent.reconcile import Reconciler
from nodeagent.session import Down, Ready, Up
from nodeagent.streams import Streams

RESYNC: Final = 10.0
"""Seconds between two looks at the whole host."""
LOOK_SHARE: Final = 100
"""A look is this many times rarer than it is long, so that big nodes do not spend themselves on looking."""
DRIFT_SHARE: Final = 10
"""The same where someone else changed something: others may write all the time to what is not ours."""
FIRST_RESPAWN: Final = 0.2
LAST_RESPAWN: Final = 10.0
ROUNDS: Final = 64
"""Steps of engines' events and operations taken in one turn, before the broker is listened to again."""
_LONGEST_WAIT: Final = 3600.0


class Link(Protocol):
    """What the agent needs of `nodeagent.session.BrokerSession`."""

    @property
    def connected(self) -> bool:
        """Whether messages can be sent."""

    def send(self, message: Message, number: int = 0) -> bool:
        """Send a message; return whether there is a session to send it in."""

    def receive(self) -> list[Up | Down | Envelope]:
        """Return what happened, without waiting."""

    def deadline(self) -> float:
        """Return when `receive` has something to do by itself."""

    def wait(self, readers: Collection[int], writers: Collection[int], timeout: float) -> Ready:
        """Wait for a frame or a descriptor."""

    def postpone(self, reason: str) -> None:
        """End the session, and begin the next one late."""


class Agent:
    """One node's agent.

    Args:
        link: The session with the broker.
        desired: Loaded already.
        found: Settings of the host as they were before us.
        spawn: Starts a privileged child.
        underlay: The node's address in the underlay; None: the default route's.
        encapsulation: What the operator allows.
        resync: Seconds between two looks at the whole host.
        monotonic: Seconds of a clock that is never set.

    Attributes:
        removed: The broker removed this node, and everything of ours is out of the host.
    """

    def __init__(
        self,
        link: Link,
        desired: Desired,
        found: Found,
        spawn: Callable[[], Helper],
        *,
        underlay: str | None = None,
        encapsulation: EncapsulationChoice = "auto",
        resync: float = RESYNC,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.removed = False
        self._link = link
        self._desired = desired
        self._found = found
        self._spawn = spawn
        self._underlay = underlay
        self._encapsulation: EncapsulationChoice = encapsulation
        self._resync = resync
        self._monotonic = monotonic
        self._helper: Helper | None = None
        self._host: Reconciler | None = None
        self._streams = Streams(self._say, self._runs)
        self._respawn_at = 0.0
        self._respawn_pause = FIRST_RESPAWN
        self._look_at = 0.0
        self._looked_at = 0.0
        self._hello_due = False
        self._welcome = False
        self._request = 0
        self._received_at = 0.0
        self._told: tuple[int, int, bool, tuple[NodeError, ...]] | None = None
        self._reported: dict[str, ContainerStatus] = {}
        self._all_reported: tuple[ContainerStatus, ...] = ()
        self._flusher = Flusher(desired)
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopping = False
        self._log = get_logger()

    # --- life ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Keep the node until `stop`, or until the broker has removed it.

        Raises:
            NetctlError: It cannot begin: the helper does not start, or the host is not as it must be.
        """
        self.begin()
        # What is held for good is not looked through again and again: on a big node that takes longer
        # than a connection may.
        gc.freeze()
        gc.enable()
        while not self._stopping and not self.removed:
            self.turn(_LONGEST_WAIT)

    def begin(self) -> None:
        """Start the helper, and apply the last desired state, before the broker is asked for a newer one.

        Raises:
            NetctlError: It cannot begin.
        """
        began = self._monotonic()
        self._start_helper()
        self._work()
        if self._host is not None and self._host.settled:
            duration = round((self._monotonic() - began) * 1000, 3)
            self._log.info("the host is as desired", count=self._host.writes, duration_ms=duration)

    def stop(self) -> None:
        """End `run` soon; may be called by a signal handler. Everything stays in force."""
        self._stopping = True
        os.write(self._wake_writer, b"\0")

    @property
    def wake_descriptor(self) -> int:
        """What `signal.set_wakeup_fd` may write to."""
        return self._wake_writer

    def close(self) -> None:
        """End the helper and the thread. Containers, links and rules stay."""
        self._streams.drop_all(None)
        self._lose_helper()
        self._flusher.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def turn(self, longest: float) -> None:
        """Wait for something to happen, `longest` seconds at most, and deal with it."""
        now = self._monotonic()
        readers = [self._wake_reader, *self._streams.readers()]
        if self._helper is not None:
            readers.append(self._helper.fileno())
        timeout = max(0.0, min(longest, self._deadline(now) - now))
        ready = self._link.wait(readers, self._streams.writers(), timeout)
        if self._wake_reader in ready.readable:
            os.read(self._wake_reader, 4096)
        for happened in self._link.receive():
            try:
                self._from_broker(happened)
            except UnavailableError as error:
                # What else was said is not lost by that.
                self._helper_lost(error)
        try:
            self._streams.pump(ready.readable, ready.writable, self._monotonic())
            self._flusher.begin()
            self._timers()
            self._work()
        except UnavailableError as error:
            self._helper_lost(error)
        self._flusher.end()
        self._say_hello()
        self._report()
        self._tell()

    def _deadline(self, now: float) -> float:
        times = [self._link.deadline()]
        if self._host is None:
            times.append(self._respawn_at)
        else:
            times.append(self._look_at)
            if self._host.deadline is not None:
                times.append(self._host.deadline)
        streams = self._streams.deadline(now)
        if streams is not None:
            times.append(streams)
        return min(times)

    def _timers(self) -> None:
        now = self._monotonic()
        if self._host is None:
            if now >= self._respawn_at:
                self._respawn()
        elif now >= self._look_at:
            self._host.doubt()
            # Set again once the look was taken, by how long that took.
            self._look_at = now + self._resync

    # --- the helper ---------------------------------------------------------------------------------

    def _start_helper(self) -> None:
        """Start a helper.

        Raises:
            NetctlError: It does not start, or the host is not as it must be.
        """
        self._helper = self._spawn()
        facts = self._facts(self._helper)
        why = lacking(facts)
        if why:
            self._log.error("this node can take no containers", reason=why)
        self._host = Reconciler(
            self._helper,
            facts,
            found=self._found.settings,
            remember=self._found.remember,
            monotonic=self._monotonic,
        )
        held = self._desired.held
        if held is not None:
            self._host.want(held.index)
        self._look_at = self._monotonic() + self._resync

    def _facts(self, helper: Helper) -> HostFacts:
        return restricted(helper.facts(self._underlay), self._encapsulation)

    def _respawn(self) -> None:
        try:
            self._start_helper()
        except NetctlError as error:
            self._helper_lost(error)
        else:
            self._respawn_pause = FIRST_RESPAWN
            self._log.info("the helper was started again")

    def _helper_lost(self, error: NetctlError) -> None:
        self._log.error("the helper is gone", error=error.message, delay_ms=int(self._respawn_pause * 1000))
        self._streams.end_execs("the node's helper ended")
        self._lose_helper()
        self._respawn_at = self._monotonic() + self._respawn_pause
        self._respawn_pause = min(LAST_RESPAWN, self._respawn_pause * 2)

    def _lose_helper(self) -> None:
        if self._helper is not None:
            self._helper.close()
        self._helper = self._host = None

    def _work(self) -> None:
        """Do what is to be done, and what engines' events then ask for.

        Raises:
            UnavailableError: The helper is gone.
        """
        helper, host = self._helper, self._host
        if helper is None or host is None:
            return
        for _ in range(ROUNDS):
            events = helper.events()
            for event in events:
                host.hear(event)
                if isinstance(event, ExecEnded):
                    self._streams.exec_ended(event)
                elif isinstance(event, Drifted):
                    self._log.warning("someone else changed what is ours", reason=event.what)
                    rest = DRIFT_SHARE * host.look_seconds
                    self._look_at = min(self._look_at, max(self._monotonic(), self._looked_at + rest))
            writes, looks = host.writes, host.looks
            host.work()
            if host.looks != looks:
                self._looked_at = self._monotonic()
                self._look_at = self._looked_at + max(self._resync, LOOK_SHARE * host.look_seconds)
            if not events and host.writes == writes:
                break

    # --- the broker ---------------------------------------------------------------------------------

    def _say(self, message: Message) -> None:
        self._link.send(message)

    def _from_broker(self, happened: Up | Down | Envelope) -> None:
        if isinstance(happened, Up):
            self._log.info("session with the broker", endpoint=happened.endpoint)
            self._hello_due, self._welcome, self._told = True, False, None
        elif isinstance(happened, Down):
            self._hello_due = self._welcome = False
            self._streams.drop_all(self._helper)
        else:
            self._hear(happened.message)

    def _hear(self, message: Message) -> None:
        match message:
            case Reset() | Update():
                self._take(message)
            case NodeOpenExec() | NodeOpenLogs() if self._helper is None:
                self._say(StreamEnd(message.stream, message="the node's helper is being started again"))
            case NodeOpenExec() if self._helper is not None:
                self._streams.open_exec(message, self._helper)
            case NodeOpenLogs() if self._helper is not None:
                self._streams.open_logs(message, self._helper)
            case StreamData() | StreamCredit() | StreamResize() | StreamEnd():
                self._streams.hear(message, self._helper)
            case Failure():
                self._refused(message)
            case Done():
                pass
            case _:
                self._log.warning("unexpected message", message=type(message).__name__)

    def _take(self, message: Reset | Update) -> None:
        taken = self._desired.take(message)
        if taken.outcome == "gap":
            # One that was on its way before our Hello is followed by the answer to that.
            self._hello_due = self._hello_due or self._welcome
            self._welcome = False
            return
        if taken.outcome == "older":
            self._log.warning("an older desired state is not looked at", revision=message.revision)
            return
        self._welcome = True
        self._received_at = self._monotonic()
        if taken.outcome == "known":
            # Told again: the broker may have lost what it was told.
            self._told = None
        elif self._host is not None and self._desired.held is not None:
            self._host.want(self._desired.held.index, taken.scope)

    def _refused(self, failure: Failure) -> None:
        held = self._desired.held
        if failure.code == "unauthorised" and held is not None and held.index.header.block is None:
            # It removed us, and has heard that we have gone.
            self.removed = self._host is not None and self._host.settled and not self._host.errors()
        remedy = failure.remedy
        if failure.code == "unauthorised":
            remedy = "if this node was removed, run `nodeagent leave` here; its containers stay until then"
        self._log.error("the broker refuses this node", error=failure.message, remedy=remedy)
        self._link.postpone(failure.message)

    def _say_hello(self) -> None:
        if not self._hello_due or self._helper is None or self._host is None:
            return
        try:
            facts = self._facts(self._helper)
        except UnavailableError as error:
            self._helper_lost(error)
            return
        except NetctlError as error:
            self._log.error("this host cannot be described", error=error.message, remedy=error.remedy)
            self._link.postpone(error.message)
            return
        self._host.use(facts)
        held = self._desired.held
        statuses = self._host.statuses()
        self._request = self._request % (2**31 - 1) + 1
        hello = Hello(
            epoch=0 if held is None else held.epoch,
            revision=0 if held is None else held.revision,
            digest="" if held is None else digest(held.index.state()),
            facts=node_facts(facts),
            containers=statuses,
        )
        self._hello_due = False
        self._reported = {status.id: status for status in statuses}
        self._all_reported = statuses
        self._link.send(hello, self._request)

    def _report(self) -> None:
        """Tell the broker which containers are in another state than it was told."""
        if not self._welcome or self._host is None or not self._link.connected:
            return
        statuses = self._host.statuses()
        if statuses is self._all_reported:
            return
        changed = tuple(s for s in statuses if self._reported.get(s.id) != s)
        if changed and not self._link.send(Report(changed)):
            return
        self._reported.update((status.id, status) for status in changed)
        self._all_reported = statuses

    def _tell(self) -> None:
        """Tell the broker what is applied, once it is so and durable."""
        held, host = self._desired.held, self._host
        if not self._welcome or held is None or host is None or not host.settled:
            return
        errors = host.errors()
        disk = self._flusher.error
        lasting = (NodeError("", disk, "make room on the node's disk"),) if disk else ()
        errors = (*errors, *lasting)
        told = (held.epoch, held.revision, host.leftovers, errors)
        if told == self._told:
            return
        duration = (self._monotonic() - self._received_at) * 1000
        if not self._link.send(Applied(held.epoch, held.revision, errors, host.leftovers, duration)):
            return
        host.told()
        self._told = (held.epoch, held.revision, host.leftovers, (*host.errors(), *lasting))
        self._log.debug("applied", revision=held.revision, duration_ms=round(duration, 3), count=len(errors))
        if held.index.header.block is None and not errors:
            self.removed = True

    def _runs(self, container: str) -> bool:
        return self._host is not None and self._host.may_write(container)
