"""The commands `netctl.broker.state.decide` understands: requests with everything impure filled in.

The server adds who asks (the session's identity), fresh ids, token hashes and what it knows of
liveness, so that deciding needs no clock, no randomness and no network.
"""

from __future__ import annotations

from typing import Literal

import attrs

from netctl.broker.overlay import Choice
from netctl.model import DockerContainer, NodeFacts, Port, Workload


@attrs.frozen
class AddInvite:
    """Record an invite."""

    token_hash: str
    kind: Literal["user", "node"]
    name: str | None
    expires_at: float


@attrs.frozen
class EnrolUser:
    """Use an invite up: a key becomes an account."""

    token_hash: str
    name: str
    key: str


@attrs.frozen
class EnrolNode:
    """Use an invite up: a key becomes a node with a block."""

    token_hash: str
    name: str
    key: str
    facts: NodeFacts


@attrs.frozen
class UpdateFacts:
    """A node reported facts that differ from the recorded ones."""

    node: str
    facts: NodeFacts


@attrs.frozen
class SetDraining:
    """Place no more containers on a node, or do so again."""

    node: str
    draining: bool


@attrs.frozen
class RemoveNode:
    """Take a node out.

    Attributes:
        force: Its containers too. If it is not `reachable` it is fenced: its key is unknown at once, and
            nobody waits for its acknowledgement.
        leaving: The node itself asked, and takes its own kernel state out.
        reachable: It has a live session, so it is told to take everything out, and acknowledges that.
    """

    node: str
    force: bool
    leaving: bool = False
    reachable: bool = False


@attrs.frozen
class BindNode:
    """Say whose the containers are that a node's Docker users make; None: nobody's."""

    node: str
    account: str | None


@attrs.frozen
class LabelNode:
    """Change a node's labels: put `labels` over what is there, after `removed` went."""

    node: str
    labels: tuple[tuple[str, str], ...] = ()
    removed: tuple[str, ...] = ()


@attrs.frozen
class AttachContainer:
    """A node reported a container that Docker's user made on it, or how such a one is now."""

    node: str
    container: DockerContainer


@attrs.frozen
class DetachContainer:
    """A node reported that a container which Docker's user made on it is gone."""

    node: str
    id: str


@attrs.frozen
class SyncContainers:
    """A node reported all containers that Docker's users have on it: what is not among them is gone."""

    node: str
    containers: tuple[DockerContainer, ...]


@attrs.frozen
class LeaseAddress:
    """A node asks for an address of its block on lease, since Docker's user asked for that very one."""

    node: str
    address: str


@attrs.frozen
class TopUpLeases:
    """Addresses have become free: lease as many to a node as it is to have."""

    node: str


@attrs.frozen
class SetPairs:
    """By what their nodes report, pairs of nodes are to use something else from now on.

    Attributes:
        pairs: Two nodes, and what they are to use.
    """

    pairs: tuple[tuple[str, str, Choice], ...]


@attrs.frozen
class StartRotation:
    """Give a node a new WireGuard key."""

    node: str


@attrs.frozen
class AdvanceRotation:
    """Take the next step with the new key of a node, if that can be taken.

    Attributes:
        ready: Nodes with a live session.
    """

    node: str
    ready: frozenset[str]


@attrs.frozen
class AddContainer:
    """Record a container.

    Attributes:
        id: Fresh and random.
        node: Where, or None to choose among `ready`.
        ready: Nodes with a live session.
        constraints: Labels the node must have, with their values.
    """

    id: str
    account: str
    name: str
    workload: Workload
    node: str | None
    ready: frozenset[str]
    constraints: tuple[tuple[str, str], ...] = ()


@attrs.frozen
class SetWanted:
    """Start (again) or stop a container.

    Attributes:
        running: Start: always a new generation. Stop: wanted becomes stopped.
    """

    account: str
    name: str
    running: bool


@attrs.frozen
class DropContainer:
    """Remove a container and all its connections.

    Attributes:
        active: The server knows that it is running (or does not know): refused without `force`.
    """

    account: str
    name: str
    force: bool
    active: bool


@attrs.frozen
class AddConnections:
    """Connect two containers; no ports: everything, both ways."""

    account: str
    source: str
    destination: str
    ports: tuple[Port, ...]


@attrs.frozen
class DropConnections:
    """Disconnect two containers; no ports: all from source to destination and the portless one."""

    account: str
    source: str
    destination: str
    ports: tuple[Port, ...]


@attrs.frozen
class Acknowledge:
    """A node has applied a revision of this epoch: what was held for it may be free.

    Attributes:
        failed: What it could not do: names of containers and peers, or an empty one for the node itself.
    """

    node: str
    revision: int
    failed: frozenset[str] = frozenset()


@attrs.frozen
class Expire:
    """Time passed: drop invites and connections past their end."""


Command = (
    AddInvite | EnrolUser | EnrolNode | UpdateFacts | SetDraining | RemoveNode | BindNode | LabelNode
    | SetPairs | StartRotation | AdvanceRotation
    | AttachContainer | DetachContainer | SyncContainers | LeaseAddress | TopUpLeases
    | AddContainer | SetWanted | DropContainer | AddConnections | DropConnections | Acknowledge | Expire
)  # fmt: skip
