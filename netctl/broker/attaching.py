"""Containers that Docker's own users make: their nodes report them, and the broker records them.

Handlers of `netctl.broker.state`; pure. Docker says what there is, so nothing here starts, stops or
removes anything. What a node says counts for its own block and its own containers only: an id that stands
for something else is refused.

One is recorded from the first report that gives it an address, and stays recorded with that address while
it is stopped. One that never had an address (`docker create`) is not recorded: it has nothing that could be
reached or permitted, and so every container has an address and every address in use has a container.
"""

from __future__ import annotations

import re
from typing import Final

import attrs

from netctl.broker import holding, leasing, lookup, placement, wishing, workloads
from netctl.broker.commands import AttachContainer, BindNode, DetachContainer, SyncContainers
from netctl.broker.draft import Draft, service_key
from netctl.broker.outcome import Outcome
from netctl.broker.snapshot import Container, Node
from netctl.errors import ExhaustedError, ExistsError, InvalidError, NetctlError, NotFoundError, RefusedError
from netctl.model import DockerContainer, Workload

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*\Z")
"""What Docker takes as a container's name (moby, daemon/names/names.go)."""
_LONGEST_NAME: Final = 63
_LONGEST_SUFFIX: Final = 32
_MOST_ALIKE: Final = 16
"""Containers of one name that are numbered; Docker has each name once on a node, so few come together."""


def attach_container(draft: Draft, command: AttachContainer) -> Outcome:
    """Record a container as its node reports it; what is recorded so already changes nothing.

    Its connections stay, whatever its address becomes. The address it had is held until every node that
    may permit traffic of it has acknowledged the new one.

    Raises:
        NotFoundError: No node is called so.
        RefusedError: The node is being removed, the id or the address is another container's.
        HeldError: The address is not free yet.
        InvalidError: The address is none of the node's block, or a text of it cannot be Docker's.
        ExhaustedError: The bridge of the node is full.
        ExistsError: Too many containers are called alike.
    """
    node = _node(draft, command.node)
    container = _attach(draft, node, command.container)
    if container is None:
        return Outcome("it is recorded once it has an address")
    leasing.top_up(draft, node)
    return Outcome(f"it is recorded as {container.name}", container.revision)


def detach_container(draft: Draft, command: DetachContainer) -> Outcome:
    """Take a container off the record with its connections; one that is not recorded changes nothing.

    Raises:
        NotFoundError: No node is called so.
        RefusedError: The node is being removed, or the id is another container's.
    """
    node = _node(draft, command.node)
    container = _recorded(draft, node, command.id)
    if container is None:
        return Outcome()
    workloads.take_out(draft, container)
    leasing.top_up(draft, node)
    return Outcome(f"{container.name} is removed")


def sync_containers(draft: Draft, command: SyncContainers) -> Outcome:
    """Take off the record what a node has no longer, and record what it has.

    A container that cannot be recorded as it is stays as it is recorded, or unrecorded, and so closed.

    Raises:
        NotFoundError: No node is called so.
        RefusedError: The node is being removed.
    """
    node = _node(draft, command.node)
    reported = {container.id: container for container in command.containers}
    for identity in draft.containers_of.get(node.name, ()):
        container = draft.containers[identity]
        if container.docker is not None and identity not in reported:
            workloads.take_out(draft, container)
    refused: list[str] = []
    # Those that are recorded first: a name that one of them gave up is then free for a new one.
    for one in sorted(reported.values(), key=lambda one: one.id not in draft.containers):
        try:
            _attach(draft, node, one)
        except NetctlError as error:
            refused.append(f"{one.id[:12]}: {error.message}")
    leasing.top_up(draft, node)
    return Outcome("; ".join(refused))


def bind_node(draft: Draft, command: BindNode) -> Outcome:
    """Say whose a node's Docker containers are; connections that their labels made follow.

    Raises:
        NotFoundError: No node or account is called so.
        RefusedError: The node is being removed.
    """
    node = _node(draft, command.node)
    account = command.account or ""
    if account and account not in draft.accounts:
        raise NotFoundError(
            f"no account is called {account[:80]!r}",
            lookup.did_you_mean(account, draft.accounts, "netctl invite user"),
        )
    message = f"Docker's containers on {node.name} are {account or 'nobody'}'s"
    if node.account == account:
        return Outcome(message)
    draft.put(attrs.evolve(node, account=account))
    bound = [draft.containers[i] for i in draft.containers_of.get(node.name, ())]
    moved = [attrs.evolve(c, account=account, revision=draft.revision) for c in bound if c.docker is not None]
    for container in moved:
        draft.put(container)
    for container in moved:
        wishing.take_back(draft, container)
    for container in moved:
        wishing.grant(draft, container)
    return Outcome(message)


def dns_label(name: str) -> str:
    """Return Docker's name of a container as a DNS label (RFC 1123)."""
    return _shortened(re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-"), "")


def _node(draft: Draft, name: str) -> Node:
    node = lookup.node(draft, name)
    if node.removing:
        raise RefusedError(f"node {node.name} is being removed", "join it anew once it is gone", (node.name,))
    return node


def _recorded(draft: Draft, node: Node, identity: str) -> Container | None:
    """Return the record of a container of a node's Docker users, if there is one.

    Raises:
        RefusedError: The id is that of something else.
    """
    container = draft.containers.get(identity)
    if container is not None and (container.node != node.name or container.docker is None):
        raise RefusedError(
            f"a container with the id {identity} is recorded already, and not as {node.name}'s Docker's",
            "make it anew",
            (node.name,),
        )
    return container


def _attach(draft: Draft, node: Node, reported: DockerContainer) -> Container | None:
    """Record a container; None where it has no address and is not recorded."""
    _check(reported)
    old = _recorded(draft, node, reported.id)
    address = reported.address or (old.address if old is not None else "")
    if not address:
        return None
    if old is None and len(draft.containers_of.get(node.name, ())) >= placement.BRIDGE_PORTS:
        raise ExhaustedError(
            f"the bridge of node {node.name} is full ({placement.BRIDGE_PORTS} containers)",
            "remove containers, or use another node",
            (node.name,),
        )
    if old is not None and old.docker == reported:
        return old
    name = _name(draft, node, reported, old)
    if old is None or address != old.address:
        leasing.take(draft, node, address, old)
    if old is not None and address != old.address:
        holding.hold(draft, old.address, node.name, holding.nodes_knowing(draft, old))
    new = Container(
        id=reported.id,
        account=node.account,
        name=name,
        node=node.name,
        address=address,
        workload=Workload("docker", (), image=reported.image),
        wanted="running",
        generation=1,
        created_at=draft.now if old is None else old.created_at,
        revision=draft.revision,
        docker=reported,
    )
    draft.put(new)
    if old is None:
        wishing.grant(draft, new)
    elif _ends(old) != _ends(new):
        wishing.take_back(draft, new)
        wishing.grant(draft, new)
    return new


def _check(reported: DockerContainer) -> None:
    """Refuse what Docker does not let anybody write, before it is shown to somebody."""
    wished = (wish.destination for wish in reported.wishes)
    texts = (reported.image, reported.project, reported.service, *wished)
    if _NAME.match(reported.name) is None or not all(text.isprintable() for text in texts):
        raise InvalidError(f"what is reported of container {reported.id[:12]} is no text of Docker's")


def _ends(container: Container) -> tuple[object, ...]:
    """Return what of a container decides which wishes are granted to it and with it."""
    wishes = container.docker.wishes if container.docker is not None else ()
    return (container.name, service_key(container), frozenset(wishes))


def _name(draft: Draft, node: Node, reported: DockerContainer, old: Container | None) -> str:
    """Return what to call a container: that another gave up the name it would have had renames nobody."""
    if old is not None and old.docker is not None and old.docker.name == reported.name:
        return old.name
    return _free_name(draft, node, reported)


def _free_name(draft: Draft, node: Node, reported: DockerContainer) -> str:
    """Return the name of a container: Docker's, with its node's and a number where another has it.

    Args:
        draft: What is recorded.
        node: Where it is.
        reported: The container; the name it has is free to it.

    Raises:
        ExistsError: All such names are taken.
    """
    label = dns_label(reported.name)
    numbered = (f"-{node.name}-{number}" for number in range(2, _MOST_ALIKE + 1))
    for suffix in ("", f"-{node.name}", *numbered, f"-{reported.id}"):
        name = _shortened(label, suffix)
        if name not in draft.bare_names or draft.bare_names[name] == reported.id:
            return name
    raise ExistsError(
        f"too many containers are called {label}",
        f"call {reported.id[:12]} something else: `docker rename`",
        (node.name,),
    )


def _shortened(label: str, suffix: str) -> str:
    # A node's name may be as long as a label itself; what tells names apart is at its end.
    kept = suffix if len(suffix) <= _LONGEST_SUFFIX else f"-{suffix[1 - _LONGEST_SUFFIX :].strip('-')}"
    return label[: _LONGEST_NAME - len(kept)].rstrip("-") + kept
