"""Containers come, start, stop and go. Handlers of `netctl.broker.state`; pure."""

from __future__ import annotations

from typing import Literal

import attrs

from netctl.broker import holding, ipam, leasing, lookup, placement, wishing, workload_checks
from netctl.broker.commands import AddContainer, DropContainer, SetWanted
from netctl.broker.draft import Draft
from netctl.broker.outcome import Outcome
from netctl.broker.snapshot import Container
from netctl.errors import ExistsError, RefusedError, UnauthorisedError
from netctl.model import check_name


def add_container(draft: Draft, command: AddContainer) -> Outcome:
    """Record a container with its node and address.

    Raises:
        InvalidError: The name is no DNS label, or the workload not of the right form.
        ExistsError: The name is taken, in whatever account, or the id is.
        UnauthorisedError: The account is not recorded.
        NotFoundError: The node named does not exist.
        UnavailableError: It is not ready, or no node is.
        RefusedError: No node may take it, or it weakens its host without a reason; the message says why.
        ExhaustedError: No address or no port of a bridge is left.
    """
    check_name(command.name)
    workload_checks.check(command.workload)
    if command.account not in draft.accounts:
        raise UnauthorisedError(f"no account is called {command.account[:80]!r}", "join with `netctl join`")
    # Bare names are unique across accounts, so that whoever names a container means one only.
    if command.name in draft.bare_names:
        rival = draft.containers[draft.bare_names[command.name]]
        raise ExistsError(
            f"a container is called {command.name} already",
            f"choose another name, or remove that one: {removal_of(rival)}",
        )
    if command.id in draft.containers:
        raise ExistsError("a container has this id already", "try again")
    node = placement.place(draft, command.workload.engine, command.node, command.ready, command.constraints)
    address, number = ipam.give_address(
        node.block,
        draft.cursors.get(node.name, 0),
        lambda candidate: leasing.is_taken(draft, candidate),
    )
    draft.cursors = draft.cursors.set(node.name, number)
    container = Container(
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
    draft.put(container)
    wishing.grant(draft, container)
    return Outcome(f"{command.name} runs on {node.name} at {address}")


def set_wanted(draft: Draft, command: SetWanted) -> Outcome:
    """Start a container (again), as a new generation, or stop it.

    Raises:
        NotFoundError: No container is called so.
        RefusedError: Docker's user made it.
    """
    container = lookup.container(draft, command.account, command.name)
    check_ours(container, "start" if command.running else "stop")
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

    Raises:
        NotFoundError: No container is called so.
        RefusedError: It is active, and `force` was not given; or Docker's user made it.
    """
    container = lookup.container(draft, command.account, command.name)
    check_ours(container, "rm")
    if command.active and not command.force:
        raise RefusedError(
            f"{container.name} is not known to have ended",
            f"stop it first with `netctl stop {container.name}`, or use `netctl rm --force {container.name}`",
            (container.node,),
        )
    take_out(draft, container)
    return Outcome(f"{container.name} is removed")


def take_out(draft: Draft, container: Container) -> None:
    """Take a container out with all its connections; its address is held for whoever may know it."""
    awaiting = holding.nodes_knowing(draft, container)
    for key in draft.connections_of.get(container.id, ()):
        draft.delete(draft.connections[key])
    draft.delete(container)
    holding.hold(draft, container.address, container.node, awaiting)


def check_ours(container: Container, verb: Literal["start", "stop", "rm"]) -> None:
    """Leave alone what Docker's own user made: Docker says whether it runs and when it goes.

    Raises:
        RefusedError: It is such a container.
    """
    if container.docker is not None:
        raise RefusedError(
            f"{container.name} was made by a Docker user on node {container.node}, not by netctl",
            f"run `docker {verb} {container.docker.name or container.id[:12]}` on node {container.node}",
            (container.node,),
        )


def removal_of(container: Container) -> str:
    """Return how a user removes a container."""
    if container.docker is not None:
        return f"`docker rm {container.docker.name}` on node {container.node}"
    return f"`netctl rm {container.name}`"
