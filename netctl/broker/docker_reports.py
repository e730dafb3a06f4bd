"""What nodes report of the containers that Docker's users make, and what that leads to."""

from __future__ import annotations

from netctl.broker import leasing
from netctl.broker.commands import (
    AttachContainer,
    DetachContainer,
    LeaseAddress,
    SyncContainers,
    TopUpLeases,
)
from netctl.broker.deferred import ATTACH_SECONDS, LEASE_SECONDS, Later
from netctl.broker.hub import Hub
from netctl.broker.leasing import HeldError
from netctl.broker.sessions import Peer
from netctl.broker.snapshot import Decision, Delete, Held
from netctl.errors import NetctlError, ProtocolError, RefusedError
from netctl.log import get_logger
from netctl.model import DockerContainer
from netctl.wire.failures import failure_of
from netctl.wire.messages import Attach, Detach, Done, ReserveAddress


def handle(hub: Hub, peer: Peer, number: int, message: Attach | Detach | ReserveAddress, now: float) -> None:
    """Record what a node reports, and answer it once that is written.

    Args:
        hub: The broker.
        peer: The node's session.
        number: Of the request.
        message: The request.
        now: Monotonic seconds.

    Raises:
        ProtocolError: The request has no id.
    """
    if number == 0:
        raise ProtocolError("a request without an id")
    match message:
        case Attach(container):
            _overtake(hub, hub.deferred.take(peer.name, container.id))
            _try(hub, peer, number, AttachContainer(peer.name, container), now + ATTACH_SECONDS)
        case Detach(identity):
            _overtake(hub, hub.deferred.take(peer.name, identity))
            _try(hub, peer, number, DetachContainer(peer.name, identity), now)
        case ReserveAddress(address):
            _overtake(hub, hub.deferred.take(peer.name, address))
            _try(hub, peer, number, LeaseAddress(peer.name, address), now + LEASE_SECONDS)


def sync(hub: Hub, peer: Peer, containers: tuple[DockerContainer, ...], now: float) -> None:
    """Record a node's whole list, what it has an address for that is not free yet as soon as that is.

    Args:
        hub: The broker.
        peer: The node's session.
        containers: All that Docker's users have there on our networks.
        now: Monotonic seconds.

    Raises:
        NetctlError: The node is not recorded, or is being removed.
    """
    for later in hub.deferred.take_all(peer.name):
        _overtake(hub, later)
    decision = hub.journal.decide(SyncContainers(peer.name, containers), hub.clock())
    if decision.message:
        get_logger().warning("containers not recorded", node=peer.name, error=decision.message[:1000])
    if decision.changes:
        hub.after(lambda: hub.publish(decision), lambda _error: None)
    for container in containers:
        recorded = decision.snapshot.containers.get(container.id)
        if container.address in decision.snapshot.held and (recorded is None or recorded.docker != container):
            _try(hub, peer, 0, AttachContainer(peer.name, container), now + ATTACH_SECONDS)


def freed(hub: Hub, decision: Decision) -> None:
    """Decide what waited for what an acknowledgement has freed."""
    nodes = set()
    for change in decision.changes:
        if isinstance(change, Delete) and isinstance(change.record, Held):
            nodes.add(change.record.node)
            for later in hub.deferred.take_for(change.record.node, change.record.subject):
                _try(hub, later.peer, later.number, later.command, later.deadline)
    for node in sorted(nodes):
        if leasing.is_low(hub.journal.head, node):
            hub.decide_alone(TopUpLeases(node))


def _try(
    hub: Hub,
    peer: Peer,
    number: int,
    command: AttachContainer | DetachContainer | LeaseAddress,
    deadline: float,
) -> None:
    """Decide a node's request, now or, where its address is not free yet, when that is.

    Args:
        hub: The broker.
        peer: The node's session.
        number: Of the request; 0: nobody waits for an answer.
        command: What the request stands for.
        deadline: When the node is to be told that it cannot be decided yet (monotonic seconds).
    """
    try:
        decision = hub.journal.decide(command, hub.clock())
    except NetctlError as error:
        waits = (
            isinstance(error, HeldError)
            and not isinstance(command, DetachContainer)
            and hub.deferred.put(Later(peer, number, command, deadline, error))
        )
        if not waits:
            _refuse(hub, peer, number, error)
        return
    done = Done(decision.revision, message=decision.message)

    def written() -> None:
        hub.publish(decision)
        if number:
            hub.send(peer, number, done)

    hub.after(written, lambda error: _refuse(hub, peer, number, error))


def _overtake(hub: Hub, later: Later | None) -> None:
    if later is not None:
        _refuse(
            hub, later.peer, later.number, RefusedError("a later report overtook this one", "none is needed")
        )


def _refuse(hub: Hub, peer: Peer, number: int, error: NetctlError) -> None:
    if number:
        hub.send(peer, number, failure_of(error))
