"""Connections and their end. Handlers of `netctl.broker.state`; pure."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from netctl.broker import lookup
from netctl.broker.commands import AddConnections, DropConnections, Expire
from netctl.broker.draft import Draft, pair
from netctl.broker.outcome import Outcome
from netctl.broker.snapshot import Connection, ConnectionKey, Container, Snapshot
from netctl.errors import InvalidError, NotFoundError
from netctl.model import ANY_PORT, Port


def connection_key(source: str, destination: str, port: Port) -> ConnectionKey:
    """Return the identity of a connection of two container ids; a portless one has no direction."""
    if port == ANY_PORT:
        source, destination = pair(source, destination)
    return (source, destination, port)


def add_connections(draft: Draft, command: AddConnections) -> Outcome:
    """Connect two containers; what is recorded already stays as it is.

    Raises:
        NotFoundError: A name is unknown.
        InvalidError: Both names mean the same container.
    """
    source, destination = _ends(draft, command)
    present: list[Connection] = []
    for port in sorted(set(command.ports)) or [ANY_PORT]:
        key = connection_key(source.id, destination.id, port)
        old = draft.connections.get(key)
        if old is not None and old.expires_at is None:
            present.append(old)
            if old.wished:
                # From now on it is the user's, and stays when the label that asked for it goes.
                draft.put(attrs.evolve(old, wished=False, created_by=command.account))
            continue
        draft.put(
            Connection(
                source=key[0],
                destination=key[1],
                port=port,
                revision=draft.revision,
                created_at=draft.now,
                created_by=command.account,
            )
        )
    if len(present) == len(set(command.ports) or {ANY_PORT}):
        since = max(connection.revision for connection in present)
        return Outcome("connected already", since, frozenset({source.node, destination.node}))
    return Outcome()


def drop_connections(draft: Draft, command: DropConnections) -> Outcome:
    """Disconnect two containers: the ports given, all of which must be there, or all.

    All are the records from source to destination and the portless one between them.

    Raises:
        NotFoundError: A name is unknown, or a connection is not there.
        InvalidError: Both names mean the same container.
    """
    source, destination = _ends(draft, command)
    between = draft.pairs.get(pair(source.id, destination.id), ())
    if command.ports:
        wanted = [connection_key(source.id, destination.id, port) for port in sorted(set(command.ports))]
        missing = [key[2] for key in wanted if key not in draft.connections]
    else:
        wanted = [key for key in between if key[2] == ANY_PORT or key[0] == source.id]
        missing = [] if wanted else [ANY_PORT]
    if missing:
        named = f" with port {', '.join(str(port) for port in missing)}" if command.ports else ""
        back = sorted(key[2] for key in between if key[2] != ANY_PORT and key[0] == destination.id)
        raise NotFoundError(
            f"{source.name} is not connected to {destination.name}{named}",
            f"there is {destination.name} to {source.name} with port {_some(back)}"
            if back
            else "`netctl connections` shows what there is",
        )
    wished = any(draft.connections[key].wished for key in wanted)
    for key in wanted:
        draft.delete(draft.connections[key])
    return Outcome(f"a label of {source.name} asks for it: it comes back with a new one" if wished else "")


def expire(draft: Draft, _: Expire) -> Outcome:
    """Drop invites and connections past their end."""
    for invite in draft.invites.values():
        if invite.expires_at <= draft.now:
            draft.delete(invite)
    for key, end in draft.expiring.items():
        if end <= draft.now:
            draft.delete(draft.connections[key])
    return Outcome()


def next_expiry(snapshot: Snapshot) -> float | None:
    """Return when `Expire` next has something to do, in seconds since 1970; None: nothing ends."""
    ends = (*(invite.expires_at for invite in snapshot.invites.values()), *snapshot.expiring.values())
    return min(ends, default=None)


def _ends(draft: Draft, command: AddConnections | DropConnections) -> tuple[Container, Container]:
    source = lookup.container(draft, command.account, command.source)
    destination = lookup.container(draft, command.account, command.destination)
    if source.id == destination.id:
        raise InvalidError(
            f"{source.name} cannot be connected to itself", "name two containers; its loopback is open to it"
        )
    return source, destination


def _some(ports: Iterable[Port]) -> str:
    return ", ".join([str(port) for port in ports][:3])
