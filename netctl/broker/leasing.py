"""Addresses on lease: what a node gives to containers that Docker's users start, without asking. Pure.

A node that offers the engine docker holds a reserve of its block's addresses, so that such a container has
an address when Docker asks for one, be the broker there or not. A lease ends when a container is recorded
with it, or when the node gives it back; an address that was given back is held like any that was freed.
"""

from __future__ import annotations

from typing import Final

from immutables import Map

from netctl.broker import holding, ipam, lookup
from netctl.broker.commands import LeaseAddress, TopUpLeases
from netctl.broker.draft import Draft
from netctl.broker.outcome import Outcome
from netctl.broker.placement import BRIDGE_PORTS
from netctl.broker.snapshot import Container, Lease, Node, Snapshot
from netctl.errors import ExhaustedError, InvalidError, RefusedError

ENGINE: Final = "docker"
"""The engine whose users make containers by themselves."""
RESERVE: Final = 64
"""Addresses a node has on lease after a top-up: what it can start while the broker is away."""
LOW: Final = RESERVE // 2
"""With fewer it is topped up, so that a node hears of new leases with every 32nd start only."""
SHARE: Final = 2
"""A reserve is at most the block's addresses divided by this: a small block has room for others, too."""
MOST: Final = RESERVE + BRIDGE_PORTS
"""Leases a node may have with those it asked for: one for each port of its bridge, and a reserve."""


class HeldError(RefusedError):
    """The address was freed, and some node may still know it as another's; it is free in a moment."""


def top_up(draft: Draft, node: Node) -> None:
    """Give a node its reserve if it has less than it should; take all back where it offers no docker."""
    leased = draft.leases_of.get(node.name, Map[str, None]())
    if node.removing or ENGINE not in node.facts.engines:
        give_back(draft, node)
        return
    if len(leased) >= _low(node):
        return
    for _ in range(_reserve(node) - len(leased)):
        try:
            address, number = ipam.give_address(
                node.block, draft.cursors.get(node.name, 0), lambda candidate: is_taken(draft, candidate)
            )
        except ExhaustedError:
            return
        draft.cursors = draft.cursors.set(node.name, number)
        draft.put(Lease(address, node.name))


def give_back(draft: Draft, node: Node) -> None:
    """End all leases of a node; each address is held until it acknowledged."""
    for address in draft.leases_of.get(node.name, Map[str, None]()):
        draft.delete(draft.leases[address])
        holding.hold(draft, address, node.name, {node.name})


def drop(draft: Draft, node: Node) -> None:
    """End all leases of a node that goes with its block, which is held as a whole."""
    for address in draft.leases_of.get(node.name, Map[str, None]()):
        draft.delete(draft.leases[address])


def is_low(snapshot: Snapshot, name: str) -> bool:
    """Return whether `top_up` would give a node more, as far as there is any."""
    node = snapshot.nodes.get(name)
    if node is None or node.removing or ENGINE not in node.facts.engines:
        return False
    return len(snapshot.leases_of.get(name, ())) < _low(node)


def is_taken(draft: Draft, address: str) -> bool:
    """Return whether an address is in use, held or on lease."""
    return address in draft.addresses or address in draft.held or address in draft.leases


def take(draft: Draft, node: Node, address: str, container: Container | None) -> None:
    """Use an address for a container of a node: one it has on lease, or one that nobody has.

    Args:
        draft: What is recorded.
        node: Whose user made the container.
        address: As the node reported it.
        container: As it is recorded; None: it is not.

    Raises:
        InvalidError: It is none of the node's block, or no container may have it.
        RefusedError: Another container has it.
        HeldError: It is not free yet.
    """
    check(node, address)
    owner = draft.addresses.get(address)
    if owner is not None and (container is None or owner != container.id):
        raise _is_anothers(draft.containers[owner], address)
    lease = draft.leases.get(address)
    if lease is not None:
        draft.delete(lease)
    elif address in draft.held:
        raise _is_held(node, address)


def lease_address(draft: Draft, command: LeaseAddress) -> Outcome:
    """Put an address on lease that Docker's user asked for.

    One that such a user's container is recorded with is left as it is: that container may be about to
    start again, and Docker gives an address to one container at a time.

    Raises:
        NotFoundError: No node is called so.
        InvalidError: The address is none of the node's block, or no container may have it.
        RefusedError: A container of the broker's has it, or the node offers no docker or is being removed.
        HeldError: It is not free yet.
        ExhaustedError: The node has too many leases.
    """
    node = lookup.node(draft, command.node)
    check(node, command.address)
    if node.removing or ENGINE not in node.facts.engines:
        raise RefusedError(
            f"node {node.name} gives no addresses to Docker's containers",
            "it is being removed, or does not offer the docker engine",
            (node.name,),
        )
    owner = draft.addresses.get(command.address)
    if owner is not None and draft.containers[owner].docker is None:
        raise _is_anothers(draft.containers[owner], command.address)
    if owner is not None or command.address in draft.leases:
        return Outcome()
    if command.address in draft.held:
        raise _is_held(node, command.address)
    if len(draft.leases_of.get(node.name, ())) >= MOST:
        raise ExhaustedError(
            f"node {node.name} has {MOST} addresses on lease already",
            "leave the choice to netctl",
            (node.name,),
        )
    draft.put(Lease(command.address, node.name))
    top_up(draft, node)
    return Outcome()


def top_up_leases(draft: Draft, command: TopUpLeases) -> Outcome:
    """Lease as many addresses to a node as it is to have.

    Raises:
        NotFoundError: No node is called so.
    """
    top_up(draft, lookup.node(draft, command.node))
    return Outcome()


def check(node: Node, address: str) -> None:
    """Check that a container of a node may have an address, whoever has it now.

    Raises:
        InvalidError: It is none of the node's block, or its network's, its bridge's or its broadcast's.
    """
    number = ipam.host_number(node.block, address)
    if not ipam.FIRST_CONTAINER <= number < ipam.addresses(node.block) - 1:
        raise InvalidError(
            f"{address} is no address for a container of node {node.name}",
            f"use one of {node.block}, but its first two and its last",
            (node.name,),
        )


def _is_anothers(container: Container, address: str) -> RefusedError:
    program = "netctl" if container.docker is None else "docker"
    return RefusedError(
        f"{address} is the address of {container.name}",
        f"use another address, or remove that container with `{program} rm`",
        (container.node,),
    )


def _is_held(node: Node, address: str) -> HeldError:
    return HeldError(
        f"{address} was another container's, and not every node has acknowledged that it is free",
        "try again in a moment, or use another address",
        (node.name,),
    )


def _reserve(node: Node) -> int:
    usable = max(0, ipam.addresses(node.block) - ipam.FIRST_CONTAINER - 1)
    return min(RESERVE, usable // SHARE)


def _low(node: Node) -> int:
    reserve = _reserve(node)
    return min(LOW, max(reserve // 2, 1), reserve)
