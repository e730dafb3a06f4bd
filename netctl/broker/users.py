"""What users ask for, and how they are answered; how an unknown key becomes a user or node."""

from __future__ import annotations

import msgspec

from netctl.broker import desk, lookup
from netctl.broker.commands import AddInvite, EnrolNode, EnrolUser
from netctl.broker.hub import LONGEST_WAIT, PENDING_PER_SESSION, Hub
from netctl.broker.journal import Remembered
from netctl.broker.sessions import Peer
from netctl.broker.snapshot import Decision
from netctl.broker.waiting import Promise
from netctl.errors import ExhaustedError, NetctlError, ProtocolError, UnavailableError
from netctl.model import check_name
from netctl.wire import invite
from netctl.wire.failures import failure_of
from netctl.wire.messages import (
    CreateInvite,
    Diagnose,
    Enrol,
    Enrolled,
    Envelope,
    Examine,
    InviteCreated,
    Message,
    NodeOpenAdopt,
    NodeOpenCopy,
    NodeOpenExec,
    NodeOpenLogs,
    OpenAdopt,
    OpenCopy,
    OpenExec,
    OpenLogs,
)

_CONTAINER_ID_BYTES = 16
_WAIT = 10.0
"""Seconds an answer waits whose request says nothing about it."""


def handle(hub: Hub, peer: Peer, envelope: Envelope, now: float) -> None:
    """Do what a user asks.

    Args:
        hub: The broker.
        peer: The user's session.
        envelope: What it sent.
        now: Monotonic seconds.

    Raises:
        ProtocolError: The session is to be ended.
    """
    message = envelope.message
    kind = type(message)
    if kind in desk.STREAM:
        hub.relay(hub.streams.relay(peer, message))
        return
    _check_id(hub, peer, envelope.id)
    try:
        if kind in desk.QUERIES:
            hub.send(peer, envelope.id, _answer(hub, peer, message))
        elif kind is CreateInvite:
            _create_invite(hub, peer, envelope.id, message)
        elif kind is Diagnose:
            _diagnose(hub, peer, envelope.id, message, now)
        elif kind in desk.CHANGES:
            _change(hub, peer, envelope.id, message, now)
        else:
            _open_stream(hub, peer, envelope.id, message)
    except ProtocolError:
        raise
    except NetctlError as error:
        hub.send(peer, envelope.id, failure_of(error))


def enrol(hub: Hub, peer: Peer, envelope: Envelope, _now: float) -> None:
    """Let an unknown key become a user or node, by an invite's token; then its session is over.

    Raises:
        ProtocolError: The session is to be ended.
    """
    _check_id(hub, peer, envelope.id)
    request: Enrol = envelope.message
    token_hash = invite.token_hash(request.token)
    try:
        if request.facts is None:
            decision = hub.journal.decide(EnrolUser(token_hash, request.name, peer.key), hub.clock())
        else:
            decision = hub.journal.decide(
                EnrolNode(token_hash, request.name, peer.key, request.facts), hub.clock()
            )
    except NetctlError as error:
        hub.send(peer, envelope.id, failure_of(error))
        hub.end(peer, error.message)
        return
    node = decision.snapshot.nodes.get(request.name) if request.facts is not None else None
    answer = (
        Enrolled("user", request.name)
        if node is None
        else Enrolled("node", node.name, node.block, decision.snapshot.supernet)
    )

    def written() -> None:
        hub.publish(decision)
        hub.send(peer, envelope.id, answer)
        hub.end(peer, "it has joined")

    def failed(error: NetctlError) -> None:
        hub.send(peer, envelope.id, failure_of(error))
        hub.end(peer, error.message)

    hub.after(written, failed)


def _check_id(hub: Hub, peer: Peer, number: int) -> None:
    if number == 0:
        raise ProtocolError("a request without an id")
    if number in hub.promised(peer):
        raise ProtocolError("a request with the id of one that is not answered yet")


def _situation(hub: Hub, peer: Peer, *, decided: bool) -> desk.Situation:
    snapshot = hub.journal.head if decided else hub.journal.committed
    return desk.Situation(peer.name, snapshot, hub.live, hub.random(_CONTAINER_ID_BYTES).hex())


def _answer(hub: Hub, peer: Peer, query: Message) -> Message:
    return desk.answer_to(
        query,
        _situation(hub, peer, decided=False),
        version=hub.about.version,
        uptime=hub.clock() - hub.started,
        sessions=len(hub.sessions),
    )


def _create_invite(hub: Hub, peer: Peer, number: int, request: CreateInvite) -> None:
    if request.name is not None:
        check_name(request.name)
    token = invite.new_token(hub.random(invite.TOKEN_BYTES))
    expires_at = hub.clock() + request.ttl
    text = invite.format(
        invite.Invite(
            kind=request.kind,
            name=request.name,
            addresses=hub.about.addresses_for(request.kind),
            broker_key=hub.about.keys.public,
            token=token,
            expires_at=expires_at,
        )
    )
    decision = hub.journal.decide(
        AddInvite(invite.token_hash(token), request.kind, request.name, expires_at), hub.clock()
    )

    def written() -> None:
        hub.publish(decision)
        hub.send(peer, number, InviteCreated(text, expires_at))

    hub.after(written, lambda error: hub.send(peer, number, failure_of(error)))


def _diagnose(hub: Hub, peer: Peer, number: int, request: Diagnose, now: float) -> None:
    """Ask every node that can be reached how its host is; the answer follows when they have told."""
    asked = dict(hub.nodes)
    examination = hub.examinations.begin(
        (peer, number), asked, clock=hub.clock(), deadline=now + min(request.timeout, LONGEST_WAIT)
    )
    hub.expect(examination.ticket)
    for node in asked.values():
        hub.send(node, examination.number, Examine())
    if not asked:
        hub.diagnosed(examination)


def _change(hub: Hub, peer: Peer, number: int, request: Message, now: float) -> None:
    if len(hub.promised(peer)) >= PENDING_PER_SESSION:
        raise ExhaustedError("too many requests wait for an answer", "wait for some of them first")
    deadline = now + min(getattr(request, "timeout", _WAIT), LONGEST_WAIT)
    digest = desk.digest_of(request) if request.key else b""
    first = hub.journal.recall(peer.name, request.key, digest, hub.clock()) if request.key else None
    decision: Decision | None = None
    if first is not None:
        promise = msgspec.msgpack.decode(first, type=Promise)
    else:
        command = desk.command_of(request, _situation(hub, peer, decided=True))
        decision = hub.journal.decide(command, hub.clock())
        promise = desk.promise_of(request, decision)
        if request.key:
            hub.journal.remember(
                Remembered(peer.name, request.key, digest, msgspec.msgpack.encode(promise), hub.clock())
            )

    def written() -> None:
        if decision is not None:
            hub.publish(decision)
        hub.promise((peer, number), promise, deadline)

    hub.after(written, lambda error: hub.send(peer, number, failure_of(error)))


def _open_stream(
    hub: Hub, peer: Peer, number: int, request: OpenExec | OpenLogs | OpenCopy | OpenAdopt
) -> None:
    container = ""
    if isinstance(request, OpenAdopt):
        name = desk.adopting_node(request, _situation(hub, peer, decided=False))
    else:
        found = lookup.container(hub.journal.committed, peer.name, request.name)
        name, container = found.node, found.id
    node = hub.nodes.get(name)
    if node is None:
        raise UnavailableError(f"node {name} is unreachable", "start its agent with `nodeagent run`", (name,))
    opened, stream = hub.streams.open(peer, node)
    hub.send(node, 0, _opening(request, stream, container))
    hub.send(peer, number, opened)


def _opening(request: OpenExec | OpenLogs | OpenCopy | OpenAdopt, stream: int, container: str) -> Message:
    """Return what a node is told of a stream that a user opened."""
    match request:
        case OpenLogs():
            return NodeOpenLogs(stream, container, request.tail, request.follow)
        case OpenCopy():
            return NodeOpenCopy(stream, container, request.path, request.direction)
        case OpenAdopt():
            return NodeOpenAdopt(stream, request.container)
        case OpenExec():
            return NodeOpenExec(
                stream,
                container,
                request.argv,
                request.env,
                request.user,
                request.tty,
                request.rows,
                request.columns,
            )
