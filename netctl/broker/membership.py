"""Who belongs: invites, accounts and nodes come and go. Handlers of `netctl.broker.state`; pure."""

from __future__ import annotations

from typing import Literal

import attrs

from netctl.broker import holding, ipam, leasing, lookup, overlay, pairing, rotating
from netctl.broker.commands import (
    AddInvite,
    EnrolNode,
    EnrolUser,
    LabelNode,
    RemoveNode,
    SetDraining,
    UpdateFacts,
)
from netctl.broker.draft import Draft
from netctl.broker.outcome import Outcome
from netctl.broker.snapshot import Account, Invite, Node
from netctl.errors import (
    ExhaustedError,
    ExistsError,
    InvalidError,
    NotFoundError,
    RefusedError,
    UnauthorisedError,
)
from netctl.model import check_name

MOST_LABELS = 64
"""Labels of one node."""


def add_invite(draft: Draft, command: AddInvite) -> Outcome:
    """Record an invite.

    Raises:
        InvalidError: The name is no DNS label.
        ExistsError: The name it fixes is taken, or the token is recorded already.
    """
    if command.name is not None:
        check_name(command.name)
        _check_free_name(draft, command.kind, command.name)
    if command.token_hash in draft.invites:
        raise ExistsError("this invite is recorded already", "make another one")
    draft.put(Invite(command.token_hash, command.kind, command.name, command.expires_at))
    return Outcome()


def enrol_user(draft: Draft, command: EnrolUser) -> Outcome:
    """Use an invite up: a key becomes an account.

    Raises:
        UnauthorisedError: The invite is unknown, used, expired, or for something else.
        InvalidError: The name is no DNS label.
        ExistsError: The name or the key is taken.
    """
    invite = _admit(draft, command, "user")
    draft.put(Account(command.name, command.key, draft.now))
    draft.delete(invite)
    return Outcome(f"{command.name} joined")


def enrol_node(draft: Draft, command: EnrolNode) -> Outcome:
    """Use an invite up: a key becomes a node with a block.

    Raises:
        UnauthorisedError: The invite is unknown, used, expired, or for something else.
        InvalidError: The name is no DNS label, the underlay's MTU is too small, or its WireGuard ends
            contradict each other.
        ExistsError: The name, the key, the underlay address or a WireGuard key is taken.
        RefusedError: A network of the host overlaps a block already given, or every free block collides.
        ExhaustedError: No block is left.
    """
    invite = _admit(draft, command, "node")
    overlay.check_facts(draft.base, command.name, command.facts)
    index, block = ipam.give_block(draft.base, command.name, command.facts)
    node = Node(command.name, index, block, command.key, attrs.evolve(command.facts), revision=draft.revision)
    draft.put(node)
    leasing.top_up(draft, node)
    draft.changed = draft.changed.set(command.name, draft.revision)
    draft.delete(invite)
    return Outcome(f"{command.name} joined with block {block}")


def update_facts(draft: Draft, command: UpdateFacts) -> Outcome:
    """Record what a node says of itself now.

    Networks that overlap blocks are recorded all the same: they are there, and blocks given out from
    now on keep away from them.

    Raises:
        NotFoundError: No node is called so.
        InvalidError: The underlay's MTU is too small, or its WireGuard ends contradict each other.
        ExistsError: Another node has the underlay address, or a WireGuard key of it.
    """
    node = lookup.node(draft, command.node)
    if node.facts == command.facts:
        return Outcome()
    overlay.check_facts(draft.base, command.node, command.facts)
    node = attrs.evolve(node, facts=command.facts)
    draft.put(node)
    pairing.settle(draft, node)
    leasing.top_up(draft, node)
    return Outcome()


def set_draining(draft: Draft, command: SetDraining) -> Outcome:
    """Place no more containers on a node, or do so again.

    Raises:
        NotFoundError: No node is called so.
        RefusedError: It is being removed.
    """
    node = lookup.node(draft, command.node)
    if node.removing:
        raise RefusedError(f"node {node.name} is being removed", "join it anew once it is gone")
    if node.draining != command.draining:
        draft.put(attrs.evolve(node, draining=command.draining))
    return Outcome(f"{node.name} takes {'no' if command.draining else 'new'} containers")


def label_node(draft: Draft, command: LabelNode) -> Outcome:
    """Change a node's labels.

    Raises:
        NotFoundError: No node is called so, or a label to be removed is not there.
        InvalidError: A label has no name, or one that no constraint could be written with.
        ExhaustedError: There are too many.
    """
    node = lookup.node(draft, command.node)
    labels = dict(node.labels)
    for name in command.removed:
        if name not in labels:
            raise NotFoundError(
                f"node {node.name} has no label {name!r}",
                lookup.did_you_mean(name, labels, "netctl node show"),
            )
    for name, _ in command.labels:
        if not name or "=" in name or not name.isprintable():
            raise InvalidError(f"{name!r} is no name for a label", "write a label as NAME=VALUE")
    labels = {name: value for name, value in labels.items() if name not in command.removed}
    labels.update(command.labels)
    if len(labels) > MOST_LABELS:
        raise ExhaustedError(f"a node has at most {MOST_LABELS} labels", "remove some first", (node.name,))
    changed = attrs.evolve(node, labels=tuple(sorted(labels.items())))
    if changed != node:
        draft.put(changed)
    return Outcome()


def remove_node(draft: Draft, command: RemoveNode) -> Outcome:
    """Take a node out: at once where it is fenced or leaves by itself, else when it acknowledged.

    Its block is held until every node that may route to it acknowledged.

    Raises:
        NotFoundError: No node is called so.
        RefusedError: Containers are recorded on it.
    """
    node = lookup.node(draft, command.node)
    containers = [draft.containers[i] for i in draft.containers_of.get(node.name, ())]
    if containers and not command.force:
        names = ", ".join(sorted(c.name for c in containers)[:3])
        forced = "nodeagent leave --force" if command.leaving else f"netctl node rm --force {node.name}"
        raise RefusedError(
            f"node {node.name} has containers: {names}{', ...' * (len(containers) > 3)}",  # noqa: PLR2004 - as many as were named
            f"remove them with `netctl rm` (a Docker user's with `docker rm`), or use `{forced}`",
            (node.name,),
        )
    at_once = command.leaving or (command.force and not command.reachable)
    if node.removing and not at_once:
        held = draft.held[node.block]
        return Outcome(f"{node.name} is being removed", held.revision, held.awaiting)
    for container in containers:
        for key in draft.connections_of.get(container.id, ()):
            draft.delete(draft.connections[key])
        # Its address needs no hold of its own: it lies in the block, which is held.
        draft.delete(container)
    leasing.drop(draft, node)
    pairing.drop(draft, node)
    rotating.drop(draft, node)
    if not node.removing:
        everyone = frozenset(draft.nodes.keys())
        holding.hold(draft, node.block, node.name, everyone)
    if at_once:
        holding.forget(draft, node.name)
        draft.delete(node)
        return Outcome(f"{node.name} is removed")
    draft.put(attrs.evolve(node, removing=True))
    return Outcome(f"{node.name} is removed")


def _admit(draft: Draft, command: EnrolUser | EnrolNode, kind: Literal["user", "node"]) -> Invite:
    invite = draft.invites.get(command.token_hash)
    if invite is None:
        raise UnauthorisedError(
            "this invite is unknown, used up or expired", f"ask for another one: `netctl invite {kind}`"
        )
    if invite.expires_at <= draft.now:
        raise UnauthorisedError("this invite has expired", f"ask for another one: `netctl invite {kind}`")
    if invite.kind != kind:
        raise UnauthorisedError(
            f"this invite is for a {invite.kind}, not a {kind}",
            "join with `nodeagent join`" if invite.kind == "node" else "join with `netctl join`",
        )
    if invite.name is not None and invite.name != command.name:
        raise UnauthorisedError(
            f"this invite is for {invite.name!r}, not {command.name[:80]!r}", f"join as {invite.name}"
        )
    check_name(command.name)
    _check_free_name(draft, kind, command.name)
    if command.key in draft.keys:
        known, name = draft.keys[command.key]
        raise ExistsError(f"this key belongs to the {known} {name} already", "make a new key pair to join")
    return invite


def _check_free_name(draft: Draft, kind: Literal["user", "node"], name: str) -> None:
    if kind == "user" and name in draft.accounts:
        raise ExistsError(f"an account is called {name} already", "choose another name")
    if kind == "node" and name in draft.nodes:
        raise ExistsError(
            f"a node is called {name} already",
            f"choose another name, or remove that one with `netctl node rm {name}`",
            (name,),
        )
