"""The node agent: wiring, one loop, and its timers.

    broker session --Reset/Update--> Desired --scope--> Reconciler --operations--> helper (privileged child)
        ^   ^   ^                       |                 ^  ^                        |
        |   |   |                    flush (a thread)     |  '---- what happened -----'
        |   |   '--Reports: Applied (durable and settled), Report(states of containers)
        |   '------DockerSide: Attach, Detach --- Driver -'---- Docker's endpoints
        '----------Streams: StreamData/End <---- descriptors of commands and output

It holds no right over the host: whatever touches it is done by the helper. With the broker away the last
desired state stays in force; with the helper gone a new one is started, and the host is looked at again.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from netctl.errors import NetctlError, UnavailableError
from netctl.log import get_logger
from netctl.model import Encapsulation, PlacedContainer
from netctl.wire.messages import (
    Done,
    Envelope,
    Examine,
    Failure,
    Message,
    NodeOpenAdopt,
    NodeOpenCopy,
    NodeOpenExec,
    NodeOpenLogs,
    Reset,
    StreamCredit,
    StreamData,
    StreamEnd,
    StreamResize,
    Update,
)
from nodeagent.desired import Desired
from nodeagent.desired_index import DesiredIndex
from nodeagent.docker_side import DockerSide, Driver
from nodeagent.examination import examined
from nodeagent.flusher import Flusher
from nodeagent.found import Found
from nodeagent.helper_client import Event, Helper
from nodeagent.helper_messages import Drifted, ExecEnded, FactsChanged
from nodeagent.host_side import RESYNC, HostSide
from nodeagent.own_facts import OwnFacts
from nodeagent.reconcile import Reconciler
from nodeagent.reports import Reports
from nodeagent.session import Down, Link, Up
from nodeagent.streams import Streams
from nodeagent.ways import Ways

ROUNDS: Final = 64
"""Steps of engines' events and operations taken in one turn, before the broker is listened to again."""
_LONGEST_WAIT: Final = 3600.0


class Agent:
    """One node's agent.

    Args:
        link: The session with the broker.
        desired: Loaded already.
        found: Settings of the host as they were before us.
        spawn: Starts a privileged child.
        driver: Docker's, where its engine is on offer; it is closed with the agent.
        underlay: The node's address in the underlay, or the link that has it; None: the default route's.
        encapsulations: What the operator allows of them (`nodeagent.facts.restricted`).
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
        driver: Driver | None = None,
        underlay: str | None = None,
        encapsulations: Sequence[Encapsulation] = (),
        resync: float = RESYNC,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.removed = False
        self._link = link
        self._desired = desired
        self._monotonic = monotonic
        facts = OwnFacts(underlay, encapsulations, monotonic=monotonic)
        self._host = HostSide(spawn, found, facts, resync=resync, monotonic=monotonic)
        self._streams = Streams(self._say, self._runs)
        self._ways = Ways(link)
        self._request = 0
        self._docker = None if driver is None else DockerSide(driver, link, self._number, monotonic)
        self._reports = Reports(link, desired, self._docker, self._number, monotonic)
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
        host = self._host.reconciler
        if host is not None and host.settled:
            duration = round((self._monotonic() - began) * 1000, 3)
            self._log.info("the host is as desired", count=host.writes, duration_ms=duration)

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
        if self._docker is not None:
            self._docker.close()
        self._host.close()
        self._flusher.close()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def turn(self, longest: float) -> None:
        """Wait for something to happen, `longest` seconds at most, and deal with it."""
        now = self._monotonic()
        readers = [self._wake_reader, *self._streams.readers()]
        if self._host.helper is not None:
            readers.append(self._host.helper.fileno())
        if self._docker is not None:
            readers += self._docker.readers()
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
        if self._docker is not None:
            self._docker.receive(self._index, welcome=self._reports.welcome)
        try:
            self._streams.pump(ready.readable, ready.writable, self._monotonic())
            self._flusher.begin()
            if self._host.start_due:
                self._respawn()
            self._host.tend()
            self._work()
        except UnavailableError as error:
            self._helper_lost(error)
        self._streams.adoptions.settle(self._recorded, self._monotonic())
        self._flusher.end()
        self._tell()

    def _deadline(self, now: float) -> float:
        times = [self._link.deadline(), self._host.deadline]
        if self._docker is not None:
            times.append(self._docker.deadline())
        streams = self._streams.deadline(now)
        if streams is not None:
            times.append(streams)
        return min(times)

    # --- the helper ---------------------------------------------------------------------------------

    def _start_helper(self) -> None:
        """Start a helper.

        Raises:
            NetctlError: It does not start, or the host is not as it must be.
        """
        host = self._host.start(self._index)
        if self._docker is not None:
            self._docker.attach(host)

    def _respawn(self) -> None:
        try:
            self._start_helper()
        except NetctlError as error:
            self._helper_lost(error)
        else:
            self._host.started_again()

    def _helper_lost(self, error: NetctlError) -> None:
        self._streams.end_execs("the node's helper ended")
        if self._docker is not None:
            self._docker.lose_helper("the node's helper ended")
        self._host.lose(error)

    def _work(self) -> None:
        """Do what is to be done, and what engines' events then ask for.

        Raises:
            UnavailableError: The helper is gone.
        """
        helper, host = self._host.helper, self._host.reconciler
        if helper is None or host is None:
            return
        for _ in range(ROUNDS):
            events = helper.events()
            for event in events:
                self._happened(event, host)
            if self._docker is not None:
                self._docker.attach(host)
            wrote = self._host.work()
            if not events and not wrote:
                break
        if self._docker is not None:
            self._docker.settle(host, helper, welcome=self._reports.welcome)
        self._ways.settle(host.observed, helper, self._index, self._host.facts.latest)

    def _happened(self, event: Event, host: Reconciler) -> None:
        host.hear(event)
        self._ways.hear(event)
        if self._docker is not None:
            self._docker.hear(event, host)
        if isinstance(event, ExecEnded):
            self._streams.exec_ended(event, self._monotonic())
        elif isinstance(event, Drifted):
            self._host.drifted(event.what)
        elif isinstance(event, FactsChanged):
            self._host.doubt_facts()
            self._link.check_address()

    # --- the broker ---------------------------------------------------------------------------------

    def _say(self, message: Message) -> None:
        self._link.send(message)

    def _from_broker(self, happened: Up | Down | Envelope) -> None:
        if isinstance(happened, Up):
            self._log.info("session with the broker", endpoint=happened.endpoint)
            self._reports.begin()
        elif isinstance(happened, Down):
            self._reports.end()
            if self._docker is not None:
                self._docker.lose_broker()
            self._streams.drop_all(self._host.helper)
        elif isinstance(happened.message, Examine):
            host = self._host
            self._link.send(examined(host.helper, host.facts.latest, self._index), happened.id)
        elif self._docker is None or not self._docker.answers(happened.id, happened.message):
            self._hear(happened.message)

    def _hear(self, message: Message) -> None:
        match message:
            case Reset() | Update():
                self._take(message)
            case NodeOpenExec() | NodeOpenLogs() | NodeOpenCopy() | NodeOpenAdopt():
                self._open(message)
            case StreamData() | StreamCredit() | StreamResize() | StreamEnd():
                self._streams.hear(message, self._host.helper)
            case Failure():
                self._refused(message)
            case Done():
                pass
            case _:
                self._log.warning("unexpected message", message=type(message).__name__)

    def _open(self, message: NodeOpenExec | NodeOpenLogs | NodeOpenCopy | NodeOpenAdopt) -> None:
        """Begin a stream.

        Raises:
            UnavailableError: The helper is gone.
        """
        helper, index = self._host.helper, self._index
        if helper is None:
            self._say(StreamEnd(message.stream, message="the node's helper is being started again"))
        elif isinstance(message, NodeOpenExec):
            self._streams.open_exec(message, helper)
        elif isinstance(message, NodeOpenLogs):
            self._streams.open_logs(message, helper)
        elif isinstance(message, NodeOpenCopy):
            self._streams.open_copy(message, helper)
        elif index is None or index.header.block is None:
            self._say(StreamEnd(message.stream, message="this node has no block of addresses"))
        else:
            self._streams.open_adopt(message, helper, index.header.block)

    @property
    def _index(self) -> DesiredIndex | None:
        held = self._desired.held
        return None if held is None else held.index

    def _number(self) -> int:
        """Return a number for a request to the broker."""
        self._request = self._request % (2**31 - 1) + 1
        return self._request

    def _take(self, message: Reset | Update) -> None:
        taken = self._desired.take(message)
        if taken.outcome == "gap":
            self._reports.missed()
            return
        if taken.outcome == "older":
            self._log.warning("an older desired state is not looked at", revision=message.revision)
            return
        self._reports.received(known=taken.outcome == "known")
        host = self._host.reconciler
        if taken.outcome == "taken" and host is not None and self._desired.held is not None:
            host.want(self._desired.held.index, taken.scope)

    def _refused(self, failure: Failure) -> None:
        held = self._desired.held
        if failure.code == "unauthorised" and held is not None and held.index.header.block is None:
            # It removed us, and has heard that we have gone.
            host = self._host.reconciler
            self.removed = host is not None and host.settled and not host.errors()
        remedy = failure.remedy
        if failure.code == "unauthorised":
            remedy = "if this node was removed, run `nodeagent leave` here; its containers stay until then"
        self._log.error("the broker refuses this node", error=failure.message, remedy=remedy)
        self._link.postpone(failure.message)

    def _tell(self) -> None:
        """Tell the broker what is to be told."""
        if self._reports.hello_due:
            self._say_hello()
        host, facts = self._host.reconciler, self._host.facts
        if host is None or facts.latest is None:
            return
        self._reports.facts(facts.latest)
        self._reports.report(host)
        self._ways.tell(welcome=self._reports.welcome)
        if self._docker is not None and self._reports.welcome:
            self._docker.ask()
        removed = self._index is not None and self._index.header.block is None
        lasting = self._flusher.errors() + (() if removed else facts.errors())
        if self._reports.applied(host, lasting):
            self.removed = True

    def _say_hello(self) -> None:
        try:
            facts = self._host.ask_facts()
        except UnavailableError as error:
            self._helper_lost(error)
        else:
            if facts is not None and self._host.reconciler is not None:
                self._reports.hello(facts, self._host.reconciler)

    def _recorded(self, container: str) -> PlacedContainer | None:
        return None if self._index is None else self._index.containers.get(container)

    def _runs(self, container: str) -> bool:
        host = self._host.reconciler
        return host is not None and host.may_write(container)
