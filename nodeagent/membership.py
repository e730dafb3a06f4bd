"""Joining a broker, and telling it that this node leaves: one request each, in a session of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import attrs

from netctl.errors import (
    BY_CODE,
    InvalidError,
    NetctlError,
    ProtocolError,
    UnauthorisedError,
    UnavailableError,
)
from netctl.model import NodeFacts
from netctl.wire.identity import Identity, KeyPair
from netctl.wire.invite import Invite
from netctl.wire.messages import Enrol, Enrolled, Envelope, Failure, Leave, Message
from netctl.wire.session import Role
from nodeagent.session import BrokerSession, Up

PATIENCE: Final = 10.0
"""Seconds to wait for the broker."""
_REQUEST: Final = 1


def enrol(invite: Invite, name: str, facts: NodeFacts) -> Identity:
    """Make a key pair, have the broker enrol it as a node, and return the identity; nothing is saved.

    Raises:
        InvalidError: The invite is for a user.
        NetctlError: What the broker answered, rebuilt.
        UnavailableError: No address of the invite answers.
    """
    if invite.kind != "node":
        raise InvalidError("this invite is for a user", "use it there: `netctl join INVITE`")
    identity = Identity(
        kind="node",
        name=name,
        private_key=KeyPair.generate().private,
        addresses=invite.addresses,
        broker_key=invite.broker_key,
    )
    enrolled = _ask(identity, "enrol", Enrol(invite.token, name, facts))
    if not isinstance(enrolled, Enrolled) or enrolled.block is None:
        raise ProtocolError(f"the broker answered {type(enrolled).__name__} to Enrol")
    return attrs.evolve(identity, name=enrolled.name, block=enrolled.block, supernet=enrolled.supernet)


def tell_leaving(identity: Identity, *, force: bool) -> bool:
    """Have the broker take this node off its record; return whether it had it there.

    Args:
        identity: The node's.
        force: Its containers with it.

    Raises:
        NetctlError: What the broker answered, rebuilt: it has containers here.
        UnavailableError: It cannot be reached.
    """
    try:
        _ask(identity, "node", Leave(force))
    except UnauthorisedError:
        return False
    return True


def _ask(
    identity: Identity, role: Role, request: Message, monotonic: Callable[[], float] = time.monotonic
) -> Message:
    """Send one request and return its answer, in as many sessions as it takes."""
    session = BrokerSession(identity, role)
    deadline = monotonic() + PATIENCE
    try:
        while (left := deadline - monotonic()) > 0:
            session.wait((), (), min(left, max(0.0, session.deadline() - monotonic())))
            for happened in session.receive():
                if isinstance(happened, Up):
                    session.send(request, _REQUEST)
                elif isinstance(happened, Envelope) and happened.id == _REQUEST:
                    return _checked(happened.message)
    finally:
        session.close()
    raise UnavailableError(
        f"the broker cannot be reached at {', '.join(identity.addresses)}",
        "check that `netctl broker run` runs there and that its port is open to this host",
    )


def _checked(answer: Message) -> Message:
    if isinstance(answer, Failure):
        kind = BY_CODE.get(answer.code, NetctlError)
        raise kind(answer.message, answer.remedy, answer.nodes)
    return answer
