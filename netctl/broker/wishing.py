"""Connections that containers' labels ask for: granted, taken back, and explained. Pure.

A wish ``db:5432/tcp`` of a container that Docker's user made concerns every container of its own account
that is recorded as ``db``, or is of the service ``db`` in its own Compose project on its own node. It is
granted as soon as both ends are recorded, whichever comes first; where the node is bound to no account,
nothing is. A connection made by a wish goes with the wish, with either end, and with the binding. What a
user connected stays, and what a user disconnected is not granted again until one of the two changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from immutables import Map

from netctl.broker.connecting import connection_key
from netctl.broker.draft import Draft, service_key
from netctl.broker.snapshot import Connection, Container, Snapshot
from netctl.model import ANY_PORT, Port, Wish
from netctl.wire.messages import WishView

MOST: Final = 4096
"""Connections a container has when no more are granted to its wishes: labels must not fill the record."""


def grant(draft: Draft, container: Container) -> None:
    """Record what the container's wishes ask for, and what others' wishes ask for with it."""
    if not container.account:
        return
    for wish in _wishes(container):
        for destination in _destinations(draft, container, wish):
            _put(draft, container, destination, wish.port)
    wishing = set(draft.wishes.get(container.name, ()))
    service = service_key(container)
    if service is not None:
        wishing.update(draft.wishes.get(service[2], ()))
    for identity in sorted(wishing):
        source = draft.containers[identity]
        for wish in _wishes(source):
            if _concerns(wish, source, container):
                _put(draft, source, container, wish.port)


def take_back(draft: Draft, container: Container) -> None:
    """Drop the container's connections, either way, that a wish made and that no wish asks for now."""
    for key in draft.connections_of.get(container.id, ()):
        connection = draft.connections[key]
        if connection.wished and not _is_asked_for(draft, connection):
            draft.delete(connection)


def explain(snapshot: Snapshot, container: Container) -> tuple[WishView, ...]:
    """Return each wish of a container with what became of it."""
    return tuple(_view(snapshot, container, wish) for wish in _wishes(container))


def _wishes(container: Container) -> tuple[Wish, ...]:
    return tuple(sorted(set(container.docker.wishes))) if container.docker is not None else ()


def _concerns(wish: Wish, source: Container, destination: Container) -> bool:
    """Return whether a wish of `source` is granted with `destination`."""
    if source.id == destination.id or not source.account or source.account != destination.account:
        return False
    # A label opens ports; everything, both ways, is for users to say.
    if wish.port == ANY_PORT:
        return False
    own, other = service_key(source), service_key(destination)
    return destination.name == wish.destination or (
        own is not None and other is not None and other == (*own[:2], wish.destination)
    )


def _destinations(state: Draft | Snapshot, source: Container, wish: Wish) -> Iterator[Container]:
    own = service_key(source)
    found = Map[str, None]() if own is None else state.services.get((*own[:2], wish.destination), Map())
    named = state.bare_names.get(wish.destination)
    candidates: Iterable[str] = found if named is None else found.set(named, None)
    for identity in sorted(candidates):
        if _concerns(wish, source, state.containers[identity]):
            yield state.containers[identity]


def _is_asked_for(draft: Draft, connection: Connection) -> bool:
    source, destination = draft.containers[connection.source], draft.containers[connection.destination]
    return any(
        wish.port == connection.port and _concerns(wish, source, destination) for wish in _wishes(source)
    )


def _put(draft: Draft, source: Container, destination: Container, port: Port) -> None:
    key = connection_key(source.id, destination.id, port)
    if key in draft.connections or len(draft.connections_of.get(source.id, ())) >= MOST:
        return
    draft.put(
        Connection(
            source=source.id,
            destination=destination.id,
            port=port,
            revision=draft.revision,
            created_at=draft.now,
            created_by=source.account,
            wished=True,
        )
    )


def _view(snapshot: Snapshot, source: Container, wish: Wish) -> WishView:
    missing = [
        destination.name
        for destination in _destinations(snapshot, source, wish)
        if connection_key(source.id, destination.id, wish.port) not in snapshot.connections
    ]
    reason = ""
    if not source.account:
        reason = f"node {source.node} is bound to no account: `netctl node bind {source.node} ACCOUNT`"
    elif wish.port == ANY_PORT:
        reason = "a label opens ports only; connect with `netctl connect`"
    elif next(_destinations(snapshot, source, wish), None) is None:
        reason = f"no container of {source.account} is called so, nor a service of the same project here"
    elif missing and len(snapshot.connections_of.get(source.id, ())) >= MOST:
        reason = f"it has {MOST} connections already"
    elif missing:
        reason = f"disconnected from {', '.join(missing[:3])} by a user: `netctl connect` opens it again"
    return WishView(wish.destination, str(wish.port), granted=not reason, reason=reason)
