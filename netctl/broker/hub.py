"""Everything between the frames that come in and the frames that go out. No sockets.

What a handler wants done after the commit it leaves as an `Effect`; `flush` commits everything that was
decided since the last one, and then runs the effects in their order. So answers and deltas leave only when
what they speak of is written, and several commands that came together cost one transaction.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal

import attrs

from netctl.broker import desk, diagnosing, rotating, tunnel_reports
from netctl.broker.commands import Expire, TopUpLeases
from netctl.broker.deferred import Deferred
from netctl.broker.examinations import Examination, Examinations
from netctl.broker.journal import FencedError, Journal
from netctl.broker.lookup import account_by_key, node_by_key
from netctl.broker.plan import node_state
from netctl.broker.sessions import Ended, Event, Limits, Opened, Peer, Reply, Sessions
from netctl.broker.snapshot import Container, Decision, Delete, Node
from netctl.broker.streams import Relayed, Streams
from netctl.broker.tunnel_reports import Refused
from netctl.broker.views import Live, LiveNode
from netctl.broker.waiting import Promise, Waiting
from netctl.broker.ways import Ways
from netctl.errors import ExhaustedError, InvalidError, NetctlError, ProtocolError, UnauthorisedError
from netctl.log import get_logger
from netctl.model import ContainerStatus
from netctl.wire.failures import failure_of
from netctl.wire.identity import KeyPair
from netctl.wire.messages import Envelope, Message, Ping, Pong, Progress, Reset, Update
from netctl.wire.session import Frame, Role, restart_frame

PENDING_PER_SESSION: Final = 256
"""Answers that one session may wait for at a time."""
LONGEST_WAIT: Final = 3600.0
"""Seconds an answer waits at most, whatever timeout the request asks for."""
_EXPIRY_INTERVAL: Final = 10.0
_FORGET_INTERVAL: Final = 600.0

Ticket = tuple[Peer, int]
Handler = Callable[["Hub", Peer, Envelope, float], None]


@attrs.frozen
class Effect:
    """What is to be done once what was decided is written, or turned out not to be.

    Attributes:
        written: Run after the commit.
        failed: Run instead where the commit failed.
    """

    written: Callable[[], None]
    failed: Callable[[NetctlError], None]


@attrs.frozen
class About:
    """What the hub needs to know of the broker it serves.

    Attributes:
        keys: The broker's.
        addresses: Where it can be reached, as invites name them.
        version: Of this program.
    """

    keys: KeyPair
    addresses: tuple[str, ...]
    version: str

    def addresses_for(self, kind: Literal["user", "node"]) -> tuple[str, ...]:
        """Return what an invite names: sockets in the broker's own file system are no use to other hosts."""
        remote = tuple(address for address in self.addresses if not address.startswith("ipc://"))
        return remote if kind == "node" and remote else self.addresses


class Hub:
    """The broker without its sockets.

    Args:
        about: Of the broker.
        journal: What is recorded.
        handlers: What is done with each role's messages.
        limits: Bounds.
        clock: Seconds since 1970.
        random: Makes that many random bytes.
    """

    def __init__(
        self,
        about: About,
        journal: Journal,
        handlers: Mapping[Role, Handler],
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.about = about
        self.journal = journal
        self.clock = clock
        self.random = random
        self.started = clock()
        self.limits = limits or Limits()
        self.seen: dict[str, LiveNode] = {}
        """What is known of each node, by name."""
        self.statuses: dict[str, ContainerStatus] = {}
        """What nodes last said of their containers, by id."""
        self.nodes: dict[str, Peer] = {}
        """The sessions of the nodes that were told their desired state, by name."""
        self.ahead: set[str] = set()
        """Nodes for which a new epoch was begun."""
        self.ways = Ways()
        self.refused: dict[str, Refused] = {}
        """What nodes said of themselves that is not recorded, by name."""
        self.something_freed = False
        """Something happened that may let go on what waited for nodes (`tunnel_reports.go_on`)."""
        self.streams = Streams()
        self.waiting: Waiting[Ticket] = Waiting(self.seen, self._rotating)
        self.deferred = Deferred()
        self.examinations: Examinations[Ticket] = Examinations()
        self.out: deque[tuple[bytes, Frame]] = deque()
        """Frames to send, each with the connection to send it over."""
        allowed: dict[Role, frozenset[type]] = {"user": desk.USER, "node": desk.NODE, "enrol": desk.ENROL}
        self.sessions = Sessions(about.keys, allowed, self.limits, random)
        self._handlers = handlers
        self._effects: list[Effect] = []
        self._tickets: dict[Peer, set[int]] = {}
        self._swept = self._expired = self._forgotten = float("-inf")
        self._log = get_logger()

    @property
    def live(self) -> Live:
        """What is known beyond the record; it follows what happens."""
        refused = {node: refused.error for node, refused in self.refused.items()}
        return Live(self.seen, self.statuses, self.ways, refused)

    # --- in and out ---------------------------------------------------------------------------------

    def receive(self, route: bytes, parts: list[bytes], now: float) -> None:
        """Take in what came over one connection, at `now` (monotonic seconds); see `flush`."""
        for event in self.sessions.receive(route, parts, now):
            self._happened(event, now)

    def flush(self) -> None:
        """Commit what was decided, then do what was to be done after it.

        Raises:
            FencedError: Another broker has taken over the store; everyone was answered so.
        """
        if not self._effects:
            return
        effects, self._effects = self._effects, []
        try:
            self.journal.commit()
        except NetctlError as error:
            self._log.error("commit failed", error=error.message, remedy=error.remedy, count=len(effects))
            for effect in effects:
                effect.failed(error)
            if isinstance(error, FencedError):
                raise
        else:
            for effect in effects:
                effect.written()

    def tick(self, now: float) -> None:
        """Do what time asks for: call it at `next_wake`, or earlier, when nothing more waits to come in."""
        for ticket, failure in self.waiting.overdue(now):
            self.settle(ticket, failure)
        for examination in self.examinations.overdue(now):
            self.diagnosed(examination)
        if self.something_freed:
            tunnel_reports.go_on(self)
        tunnel_reports.look_at(self, self.ways.due(now), now)
        for later in self.deferred.overdue(now):
            self.send(later.peer, later.number, failure_of(later.error))
        if now - self._swept >= self.limits.interval / 2:
            self._swept = now
            ended, silent = self.sessions.sweep(now)
            self._over(ended)
            for peer in silent:
                self.send(peer, 0, Ping())
        if now - self._expired >= _EXPIRY_INTERVAL:
            self._expired = now
            self.decide_alone(Expire())
        if now - self._forgotten >= _FORGET_INTERVAL:
            self._forgotten = now
            try:
                self.journal.forget(self.clock())
            except NetctlError as error:
                self._log.warning("answers not forgotten", error=error.message)

    def next_wake(self) -> float | None:
        """Return when `tick` next has something to do (monotonic seconds); None: not before a frame comes."""
        if self.something_freed:
            return float("-inf")
        wakes = [
            self.waiting.next_deadline(),
            self.deferred.next_deadline(),
            self.examinations.next_deadline(),
            self.ways.next_wake(),
        ]
        if len(self.sessions) or self.sessions.half_open:
            wakes.append(self._swept + self.limits.interval / 2)
        if self.journal.head.invites or self.journal.head.expiring:
            wakes.append(self._expired + _EXPIRY_INTERVAL)
        return min((wake for wake in wakes if wake is not None), default=None)

    def lost(self, route: bytes, reason: str) -> None:
        """End the session of a connection that takes no more frames."""
        self._over(self.sessions.lost(route, reason))

    # --- what handlers use --------------------------------------------------------------------------

    def send(self, peer: Peer, number: int, message: Message) -> None:
        """Seal a message for a session; nothing where it is over.

        Args:
            peer: The session.
            number: Id of the request that it answers; 0: of none.
            message: What to say.
        """
        if not self.sessions.is_live(peer):
            return
        try:
            frame = peer.session.seal(Envelope(number, message))
        except InvalidError as error:
            self._log.error("message too large", message=type(message).__name__, error=error.message)
            if number:
                self.send(peer, number, failure_of(ExhaustedError(error.message, error.remedy)))
            else:
                self.end(peer, error.message)
        except ProtocolError as error:
            self.end(peer, error.message)
        else:
            self.out.append((peer.route, frame))

    def end(self, peer: Peer, reason: str) -> None:
        """End a session, and tell its other side if that still listens."""
        self._over(self.sessions.end(peer, reason))

    def after(self, written: Callable[[], None], failed: Callable[[NetctlError], None]) -> None:
        """Have something done after the next commit."""
        self._effects.append(Effect(written, failed))

    def decide_alone(self, command: Expire | TopUpLeases) -> None:
        """Decide what nobody asked for and nobody is answered about."""
        decision = self.journal.decide(command, self.clock())
        if decision.changes:
            self.after(lambda: self.publish(decision), lambda _error: None)

    def publish(self, decision: Decision) -> None:
        """Tell nodes what became of them, once it is written."""
        snapshot = decision.snapshot
        for name, delta in decision.deltas.items():
            peer = self.nodes.get(name)
            # A node that said Hello since was told a whole state which has this in it.
            if peer is not None and peer.sent is not None and peer.sent < snapshot.revision:
                base, peer.sent = peer.sent, snapshot.revision
                self.send(peer, 0, Update(snapshot.epoch, base, snapshot.revision, delta))
        for change in decision.changes:
            if isinstance(change, Delete) and isinstance(change.record, Container):
                self.statuses.pop(change.record.id, None)
            elif isinstance(change, Delete) and isinstance(change.record, Node):
                self._node_gone(change.record.name)

    def reset(self, peer: Peer, number: int = 0) -> None:
        """Tell a node its whole desired state."""
        snapshot = self.journal.committed
        peer.sent = snapshot.revision
        state = node_state(snapshot, peer.name)
        self.send(peer, number, Reset(snapshot.epoch, snapshot.revision, state))

    def promise(self, ticket: Ticket, promise: Promise, deadline: float) -> None:
        """Answer a request when its promise is kept, or its deadline (monotonic seconds) has passed."""
        peer, number = ticket
        if not self.sessions.is_live(peer):
            return
        answer = self.waiting.add(ticket, promise, deadline)
        if answer is not None:
            self.send(peer, number, answer)
            return
        self.expect(ticket)

    def expect(self, ticket: Ticket) -> None:
        """Note that a session waits for an answer; see `settle`."""
        peer, number = ticket
        self._tickets.setdefault(peer, set()).add(number)
        peer.outstanding += 1

    def settle(self, ticket: Ticket, answer: Message) -> None:
        """Give the answer that a session waits for."""
        peer, number = ticket
        numbers = self._tickets[peer]
        numbers.discard(number)
        if not numbers:
            del self._tickets[peer]
        peer.outstanding -= 1
        self.send(peer, number, answer)

    def diagnosed(self, examination: Examination[Ticket]) -> None:
        """Answer a request to look for what is not as it should be, with what was found by now."""
        found = diagnosing.diagnose(
            self.journal.committed, self.live, examination.answers, examination.asked, self.about.version
        )
        self.settle(examination.ticket, found)

    def promised(self, peer: Peer) -> set[int]:
        """Return the ids of the requests that a session waits for."""
        return self._tickets.get(peer, set())

    def reported(self, node: str) -> None:
        """Answer whoever waited for what a node reported."""
        for ticket, answer in self.waiting.reported(node):
            self.settle(ticket, answer)

    def progressed(self, node: str, name: str, text: str) -> None:
        """Tell whoever waits for a node to start the container `name` how far it has come."""
        for peer in {peer for peer, _ in self.waiting.starting(node, name)}:
            self.send(peer, 0, Progress(name, text))

    def relay(self, relayed: Relayed | None) -> None:
        """Pass a stream's message on."""
        if relayed is not None:
            self.send(relayed[0], 0, relayed[1])

    # --- inside ----------------------------------------------------------------------------------------

    def _happened(self, event: Event, now: float) -> None:
        match event:
            case Reply(route, frame):
                self.out.append((route, frame))
            case Ended():
                self._over([event])
            case Opened(peer, envelope):
                try:
                    self._opened(peer, envelope, now)
                except FencedError:
                    raise
                except NetctlError as error:
                    self.end(peer, error.message)
                except Exception:  # noqa: BLE001 - a fault of ours that one sender met must not end the others
                    self._log.exception("message not handled", message=type(envelope.message).__name__)
                    self.end(peer, "an internal error")

    def _over(self, ended: Iterable[Ended]) -> None:
        for event in ended:
            self._ended(event.peer, event.reason)

    def _opened(self, peer: Peer, envelope: Envelope, now: float) -> None:
        if not peer.name and not self._identify(peer, envelope.id):
            return
        if isinstance(envelope.message, Ping):
            self.send(peer, envelope.id, Pong())
        elif not isinstance(envelope.message, Pong):
            self._handlers[peer.role](self, peer, envelope, now)

    def _identify(self, peer: Peer, number: int) -> bool:
        """Look a new session's key up; one that is not enrolled in its role is told so and ended."""
        head = self.journal.head
        if peer.role == "enrol":
            peer.name = "-"
            return True
        owner = node_by_key(head, peer.key) if peer.role == "node" else account_by_key(head, peer.key)
        if owner is None:
            error = UnauthorisedError(f"this key is no {peer.role}'s here", "join with an invite")
            self.send(peer, number, failure_of(error))
            self.end(peer, error.message)
            return False
        peer.name = owner.name
        self._log.debug("session began", role=peer.role, peer=peer.name, session=peer.session.id.hex())
        return True

    def _ended(self, peer: Peer, reason: str) -> None:
        self._log.debug("session ended", role=peer.role, peer=peer.name or peer.key, reason=reason)
        # So that it need not find out by silence.
        self.out.append((peer.route, restart_frame(peer.session.id)))
        for number in self._tickets.pop(peer, ()):
            self.waiting.drop((peer, number))
            self.examinations.drop((peer, number))
        gone = f"node {peer.name} went away" if peer.role == "node" else "the user went away"
        for relayed in self.streams.end(peer, gone):
            self.relay(relayed)
        if peer.role == "node":
            self.ways.begin(peer.name)
            self.refused.pop(peer.name, None)
        if self.nodes.get(peer.name) is peer and peer.role == "node":
            del self.nodes[peer.name]
            self.deferred.take_all(peer.name)
            self.seen[peer.name] = attrs.evolve(self.seen[peer.name], connected=False, last_seen=self.clock())
            self._log.info("node went away", node=peer.name, reason=reason)
            for examination in self.examinations.lost(peer.name):
                self.diagnosed(examination)

    def _node_gone(self, name: str) -> None:
        for ticket, answer in self.waiting.forget_node(name):
            self.settle(ticket, answer)
        peer = self.nodes.get(name)
        if peer is not None:
            self.end(peer, "the node was removed")
        self.seen.pop(name, None)
        self.ways.forget(name)
        self.something_freed = True

    def _rotating(self, node: str) -> frozenset[str] | None:
        """Return the nodes that the next step with a node's new key waits for; None: none is under way."""
        snapshot = self.journal.committed
        rotation = snapshot.rotations.get(node)
        return None if rotation is None else rotating.awaited(snapshot, rotation, self.nodes.keys())
