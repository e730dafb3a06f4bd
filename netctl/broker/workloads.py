"""Containers come, start, stop and go. Handlers of `netctl.broker.state`; pure."""

from __future__ import annotations

import attrs

from netctl.broker import holding, ipam, lookup, placement
from netctl.broker.commands import AddContainer, DropContainer, SetWanted
from netctl.broker.draft import Draft
from netctl.broker.outcome import Outcome
from netctl.broker.snapshot import Container
from netctl.errors import ExistsError, RefusedError, UnauthorisedError
from netctl.model import check_name


def add_container(draft: Draft, command: AddContainer) -> Outcome:
    """Record a container with its node and address.

    Raises:
        InvalidError: The name is no DNS label.
        ExistsError: The name is taken, in whatever account, or the id is.
        UnauthorisedError: The account is not recorded.
        NotFoundError: The node named does not exist.
        UnavailableError: It is not ready, or no node is.
        RefusedError: No node may take it; the message says why.
        ExhaustedError: No address or no port of a bridge is left.
    """
    check_name(command.name)
    if command.account not in draft.accounts:
        raise UnauthorisedError(f"no account is called {command.account[:80]!r}", "join with `netctl join`")
    # Bare names are unique across accounts, so that whoever names a container means one only.
    if command.name in draft.bare_names:
        raise ExistsError(
            f"a container is called {command.name} already",
            f"choose another name, or remove that one with `netctl rm {command.name}`",
        )
    if command.id in draft.containers:
        raise ExistsError("a container has this id already", "try again")
    node = placement.place(draft, command.workload.engine, command.node, command.ready)
    address, number = ipam.give_address(
        node.block,
        draft.cursors.get(node.name, 0),
        lambda candidate: candidate in draft.addresses or candidate in draft.held,
    )
    draft.cursors = draft.cursors.set(node.name, number)
    draft.put(
        Container(
            id=command.id,
            account=command.account,
            name=command.name,
            node=node.name,
            address=address,
            workload=command.workload,
            wanted="running",
            generation=1,
            created_at=draft.now,
            revision=draft.revision,
        )
    )
    return Outcome(f"{command.name} runs on {node.name} at {address}")


def set_wanted(draft: Draft, command: SetWanted) -> Outcome:
    """Start a container (again), as a new generation, or stop it.

    Raises:
        NotFoundError: No container is called so.
    """
    container = lookup.container(draft, command.account, command.name)
    if command.running:
        draft.put(
            attrs.evolve(
                container,
                wanted="running",
                generation=container.generation + 1,
                revision=draft.revision,
            )
        )
        return Outcome(f"{container.name} runs on {container.node} at {container.address}")
    message = f"{container.name} is stopped"
    if container.wanted == "stopped":
        return Outcome(message, container.revision, frozenset({container.node}))
    draft.put(attrs.evolve(container, wanted="stopped", revision=draft.revision))
    return Outcome(message)


def drop_container(draft: Draft, command: DropContainer) -> Outcome:
    """Take a container out with all its connections; its address is held.

    The hold waits for its own node, the nodes of what it was connected to, and those that have not yet
    acknowledged the loss of an earlier connection of it.

    Raises:
        NotFoundError: No container is called so.
        RefusedError: It is active, and `force` was not given.
    """
    container = lookup.container(draft, command.account, command.name)
    if command.active and not command.force:
        raise RefusedError(
            f"{container.name} is not known to have ended",
            f"stop it first with `netctl stop {container.name}`, or use `netctl rm --force {container.name}`",
            (container.node,),
        )
    awaiting = {container.node, *draft.unsettled(container.id)}
    for key in draft.connections_of.get(container.id, ()):
        connection = draft.connections[key]
        awaiting.add(draft.containers[connection.source].node)
        awaiting.add(draft.containers[connection.destination].node)
        draft.delete(connection)
    draft.delete(container)
    holding.hold(draft, container.address, container.node, awaiting)
    return Outcome(f"{container.name} is removed")
