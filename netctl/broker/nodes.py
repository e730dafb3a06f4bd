"""What nodes report, and what they are told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import attrs

from netctl.broker import desk, docker_reports, tunnel_reports
from netctl.broker.commands import Acknowledge, RemoveNode
from netctl.broker.hub import Hub
from netctl.broker.plan import node_state
from netctl.broker.sessions import Peer
from netctl.broker.views import LiveNode
from netctl.delta import digest
from netctl.errors import NetctlError, ProtocolError
from netctl.log import get_logger
from netctl.model import ContainerStatus, NodeDelta, NodeFacts
from netctl.wire.failures import failure_of
from netctl.wire.messages import (
    Applied,
    Attach,
    Detach,
    Done,
    Envelope,
    Examined,
    Facts,
    Hello,
    Leave,
    Paths,
    Report,
    ReserveAddress,
    Update,
)

EPOCH_JUMP: Final = 2**20
"""How far ahead of this broker's a node's epoch may be: a hostile node must not use all epochs up."""


def handle(hub: Hub, peer: Peer, envelope: Envelope, now: float) -> None:
    """Take in what a node says.

    Args:
        hub: The broker.
        peer: The node's session.
        envelope: What it sent.
        now: Monotonic seconds.

    Raises:
        ProtocolError: The session is to be ended.
    """
    message = envelope.message
    if type(message) in desk.STREAM:
        hub.relay(hub.streams.relay(peer, message))
        return
    match message:
        case Hello():
            _hello(hub, peer, envelope.id, message, now)
        case Applied():
            _applied(hub, peer, message)
        case Report():
            _statuses(hub, peer, message.containers)
        case Paths():
            tunnel_reports.take_paths(hub, peer.name, message.paths, now)
        case Facts():
            _facts(hub, peer, message.facts)
        case Examined():
            _examined(hub, peer, envelope.id, message)
        case Attach() | Detach() | ReserveAddress():
            docker_reports.handle(hub, peer, envelope.id, message, now)
        case Leave():
            _leave(hub, peer, envelope.id, message)
        case _:
            raise ProtocolError(f"nothing is done with {type(message).__name__} from a node")


def _hello(hub: Hub, peer: Peer, number: int, hello: Hello, now: float) -> None:
    head = hub.journal.head
    if (hello.epoch, hello.revision) > (head.epoch, head.revision):
        _raise_epoch(hub, peer, hello)
    node = hub.journal.head.nodes.get(peer.name)
    if node is None:
        raise ProtocolError("the node was removed")
    decision = tunnel_reports.take_facts(hub, peer.name, hello.facts)

    def written() -> None:
        if decision is not None:
            hub.publish(decision)
        _welcome(hub, peer, number, hello)

    hub.after(written, lambda _error: _welcome(hub, peer, number, hello))
    if hello.docker is not None and not node.removing:
        docker_reports.sync(hub, peer, hello.docker, now)


def _facts(hub: Hub, peer: Peer, facts: NodeFacts) -> None:
    decision = tunnel_reports.take_facts(hub, peer.name, facts)
    if decision is not None:
        hub.after(lambda: hub.publish(decision), lambda _error: None)


def _examined(hub: Hub, peer: Peer, number: int, examined: Examined) -> None:
    done = hub.examinations.answered(number, peer.name, examined, hub.clock())
    if done is not None:
        hub.diagnosed(done)


def _raise_epoch(hub: Hub, peer: Peer, hello: Hello) -> None:
    """Begin an epoch beyond that of a node which is ahead: this broker's store was restored from a copy.

    Once for each node while this broker runs: within that time its store cannot go back.
    """
    if hello.epoch > hub.journal.head.epoch + EPOCH_JUMP or peer.name in hub.ahead:
        raise ProtocolError("a node's epoch is beyond what can be")
    hub.ahead.add(peer.name)
    hub.flush()
    epoch = max(hello.epoch, hub.journal.head.epoch) + 1
    get_logger().warning("a node is ahead of the store, a new epoch begins", node=peer.name, epoch=epoch)
    hub.journal.raise_epoch(epoch)
    for other in list(hub.nodes.values()):
        hub.reset(other)


def _welcome(hub: Hub, peer: Peer, number: int, hello: Hello) -> None:
    """Tell a node what it must be, whole or by its difference from what it holds."""
    snapshot = hub.journal.committed
    if peer.name not in snapshot.nodes or not hub.sessions.is_live(peer):
        return
    if peer.sent is None:
        get_logger().info("node came", node=peer.name, version=hello.facts.version)
    state = node_state(snapshot, peer.name)
    if hello.epoch == snapshot.epoch and hello.digest == digest(state):
        peer.sent = snapshot.revision
        update = Update(snapshot.epoch, hello.revision, snapshot.revision, NodeDelta())
        hub.send(peer, number, update)
    else:
        hub.reset(peer, number)
    hub.nodes[peer.name] = peer
    hub.something_freed = True
    hub.seen[peer.name] = LiveNode(connected=True, last_seen=hub.clock())
    for container in snapshot.containers_of.get(peer.name, ()):
        hub.statuses.pop(container, None)
    _statuses(hub, peer, hello.containers)


def _applied(hub: Hub, peer: Peer, applied: Applied) -> None:
    if peer.sent is None or hub.nodes.get(peer.name) is not peer:
        raise ProtocolError("a report before Hello")
    if applied.epoch != hub.journal.committed.epoch:
        # It crossed with the news of another epoch.
        return
    if applied.revision > peer.sent:
        raise ProtocolError("a report of a revision that was never sent")
    hub.seen[peer.name] = attrs.evolve(
        hub.seen[peer.name], applied=applied.revision, errors=applied.errors, last_seen=hub.clock()
    )
    if applied.leftovers:
        hub.after(lambda: hub.reported(peer.name), lambda _error: hub.reported(peer.name))
        return
    failed = frozenset(error.subject for error in applied.errors)
    decision = hub.journal.decide(Acknowledge(peer.name, applied.revision, failed), hub.clock())
    hub.something_freed |= bool(decision.snapshot.rotations)

    def written() -> None:
        # Whoever waited may look at once: what this made free must be free by then.
        hub.publish(decision)
        hub.reported(peer.name)

    hub.after(written, lambda _error: hub.reported(peer.name))
    docker_reports.freed(hub, decision)


def _statuses(hub: Hub, peer: Peer, statuses: Iterable[ContainerStatus]) -> None:
    # Of a container whose report came in with this one, too.
    snapshot = hub.journal.head
    for status in statuses:
        container = snapshot.containers.get(status.id)
        # What a node says of containers that are not its own does not count.
        if container is not None and container.node == peer.name:
            hub.statuses[status.id] = status
            if status.state == "creating" and status.message:
                hub.progressed(peer.name, container.name, status.message)


def _leave(hub: Hub, peer: Peer, number: int, leave: Leave) -> None:
    if number == 0:
        raise ProtocolError("a request without an id")
    try:
        command = RemoveNode(peer.name, leave.force, leaving=True, reachable=True)
        decision = hub.journal.decide(command, hub.clock())
    except NetctlError as error:
        hub.send(peer, number, failure_of(error))
        return

    def written() -> None:
        done = Done(decision.revision, tuple(sorted(decision.nodes)), decision.message)
        hub.send(peer, number, done)
        hub.publish(decision)
        hub.end(peer, "the node left")

    hub.after(written, lambda error: hub.send(peer, number, failure_of(error)))
