"""How a user, or a program that sets up nodes, turns an invite into an identity."""

from __future__ import annotations

import attrs

from netctl.client import REQUEST_TIMEOUT, Client
from netctl.errors import InvalidError, ProtocolError
from netctl.model import NodeFacts
from netctl.wire.identity import Identity, KeyPair
from netctl.wire.invite import Invite
from netctl.wire.invite import parse as parse_invite
from netctl.wire.messages import Enrol, Enrolled


def enrol(invite: Invite | str, name: str | None = None, facts: NodeFacts | None = None) -> Identity:
    """Make a key pair, have the broker enrol it, and return the identity; nothing is saved here.

    Args:
        invite: As printed by ``netctl invite``, or parsed.
        name: Of the account or node; None: the one the invite fixes.
        facts: For a node.

    Raises:
        InvalidError: The invite is damaged, or neither it nor the caller names who joins.
        UnauthorisedError: The token is unknown, used or expired.
        UnavailableError: No address of the invite answers.
    """
    if isinstance(invite, str):
        invite = parse_invite(invite)
    name = name or invite.name
    if name is None:
        raise InvalidError("this invite fixes no name", "say which name to join under with `--name`")
    identity = Identity(
        kind=invite.kind,
        name=name,
        private_key=KeyPair.generate().private,
        addresses=invite.addresses,
        broker_key=invite.broker_key,
    )
    with Client(identity, role="enrol") as client:
        enrolled = client.request(Enrol(invite.token, name, facts), REQUEST_TIMEOUT)
    if not isinstance(enrolled, Enrolled):
        raise ProtocolError(f"the broker answered {type(enrolled).__name__} to Enrol")
    return attrs.evolve(identity, name=enrolled.name, block=enrolled.block, supernet=enrolled.supernet)
