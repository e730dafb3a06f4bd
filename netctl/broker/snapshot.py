"""Everything the broker has recorded, as one persistent value, and the changes that lead to the next.

A `Snapshot` is never altered: `netctl.broker.state` makes the next one, sharing what did not change.
Maps are `immutables.Map`. The store holds the same records, one table per record type; the indexes are
rebuilt from them at start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs
from immutables import Map

from netctl.model import (
    VXLAN_PORT,
    DockerContainer,
    Encapsulation,
    Encryption,
    NodeDelta,
    NodeFacts,
    Origin,
    Port,
    Wanted,
    Workload,
)

ConnectionKey = tuple[str, str, Port]
"""Source container id, destination container id, port. A portless connection has the smaller id first."""

KeyOwner = tuple[Literal["user", "node"], str]
"""What kind of session a public key opens, and the account's or node's name."""

ServiceKey = tuple[str, str, str]
"""A service of Compose: node name, project, service."""

PairKey = tuple[str, str]
"""Two nodes by their names, the smaller one first (`pair_key`)."""

DEFAULT_ORDER: tuple[Encapsulation, ...] = ("direct", "gre", "vxlan", "wireguard")
"""What a pair of nodes takes where both offer it, best first. A node offers ``direct``, which costs nothing,
only where its operator promised a shared link by naming it."""


def pair_key(one: str, other: str) -> PairKey:
    """Return what a pair of nodes is recorded under, whichever is named first."""
    return (one, other) if one < other else (other, one)


@attrs.frozen
class Account:
    """A user of the broker. Its session key is its identity."""

    name: str
    key: str
    created_at: float


@attrs.frozen
class Node:
    """A host that joined.

    Attributes:
        index: Of its block within the supernet; 0 is reserved.
        key: Its public key in hexadecimal.
        facts: As it last reported them.
        draining: Takes no new containers.
        removing: Its removal is recorded and not yet acknowledged by itself.
        revision: At which it joined.
        labels: Pairs of a label and its value, by label; what `RunContainer.constraints` ask for.
        account: Whose the containers are that its Docker users make; empty: nobody's.
        generation: Of its WireGuard key, the last one that a rotation was finished with.
    """

    name: str
    index: int
    block: str
    key: str
    facts: NodeFacts
    draining: bool = False
    removing: bool = False
    revision: int = 0
    labels: tuple[tuple[str, str], ...] = ()
    account: str = ""
    generation: int = 1


@attrs.frozen
class Container:
    """A recorded container.

    Attributes:
        account: Empty: nobody's, as of a Docker user's container on a node that is bound to no account.
        address: Of one that Docker's user made: the one it has, or, while it is stopped, had last.
        wanted: Means nothing for one that Docker's user made, as does `generation`.
        revision: At which it, or what is wanted of it, last changed.
        docker: As its node last reported it, where Docker's own user made it.
    """

    id: str
    account: str
    name: str
    node: str
    address: str
    workload: Workload
    wanted: Wanted
    generation: int
    created_at: float
    revision: int
    docker: DockerContainer | None = None

    @property
    def origin(self) -> Origin:
        """Who made it."""
        return "broker" if self.docker is None else "engine"


@attrs.frozen
class Connection:
    """A recorded connection. `revision`: at which it was recorded.

    Attributes:
        source: Container id.
        destination: Container id.
        created_by: Account name.
        wished: Only a container's label asks for it, so that it goes when the wish does; what a user
            connected stays.
    """

    source: str
    destination: str
    port: Port
    revision: int
    created_at: float
    created_by: str
    expires_at: float | None = None
    wished: bool = False

    @property
    def key(self) -> ConnectionKey:
        """The identity of the record."""
        return (self.source, self.destination, self.port)


@attrs.frozen
class Invite:
    """A one-time token, known by its hash only.

    Attributes:
        token_hash: BLAKE2b-256 of the token, hexadecimal.
        expires_at: Seconds since 1970.
    """

    token_hash: str
    kind: Literal["user", "node"]
    name: str | None
    expires_at: float


@attrs.frozen
class Held:
    """An address or block that was freed and may still be in some kernel: not given out again yet.

    Attributes:
        subject: Address or block.
        node: Whose it was.
        revision: Of the removal.
        awaiting: Nodes that have not acknowledged that revision.
    """

    subject: str
    node: str
    revision: int
    awaiting: frozenset[str]


@attrs.frozen
class Lease:
    """An address that a node may give to a container that Docker's user starts, without asking first."""

    address: str
    node: str


@attrs.frozen
class Pair:
    """How two nodes carry the overlay between them, where that is not what would be chosen at first.

    Attributes:
        one: The node with the smaller name.
        other: The other one.
        encapsulation: What is routed along.
        mtu: Bytes of one inner packet, where the path takes less than both nodes' links; 0: it takes as much.
    """

    one: str
    other: str
    encapsulation: Encapsulation
    mtu: int = 0

    @property
    def key(self) -> PairKey:
        """The identity of the record."""
        return (self.one, self.other)


@attrs.frozen
class Rotation:
    """A node that is being given a new WireGuard key (`netctl.broker.rotating`).

    Attributes:
        generation: Of the new key.
        step: What was done last: the node is to make the key; to send from it; its peers are to send to it.
        revision: At which that was recorded.
        awaiting: Nodes that have not acknowledged that revision; of ``making`` none, since it ends with what
            the node says of its keys.
    """

    node: str
    generation: int
    step: Literal["making", "switching", "spreading"]
    revision: int
    awaiting: frozenset[str] = frozenset()


Record = Account | Node | Container | Connection | Invite | Held | Lease | Pair | Rotation


@attrs.frozen
class Put:
    """Write one record over whatever has its identity."""

    record: Record


@attrs.frozen
class Delete:
    """Delete one record."""

    record: Record


Change = Put | Delete


@attrs.frozen
class Snapshot:
    """All that is recorded at one revision.

    Attributes:
        epoch: Rises when a store is restored.
        supernet: What blocks are cut from.
        block_size: Prefix length of a block.
        closed: Networks no container may reach, beyond the nodes' underlay addresses: the broker's own.
        encapsulations: What pairs of nodes may use, in the order of preference.
        encryption: ``required``: of those only wireguard, or nothing at all.
        vxlan_port: UDP port of VXLAN, on every node.
        accounts: By name.
        nodes: By name.
        containers: By id.
        names: (account, container name) -> id.
        connections: By key.
        invites: By token hash.
        held: By subject.
        leases: By address.
        node_pairs: What is recorded of pairs of nodes, by both names.
        rotations: By node name.
        containers_of: Node name -> ids.
        connections_of: Container id -> keys of all its connections, either end.
        addresses: Address -> container id.
        pairs: (Smaller container id, larger id) -> keys of all connections between the two.
        keys: Public key -> whose it is: ("user", account name) or ("node", node name).
        bare_names: Container name -> id, whatever the account.
        expiring: Keys of the connections that have an end in time.
        awaiting: Node name -> subjects in `held` that wait for it.
        leases_of: Node name -> addresses it has on lease.
        node_pairs_of: Node name -> keys of its pairs in `node_pairs`.
        wishes: Destination of a wish -> ids of the containers whose labels name it.
        services: Service of Compose -> ids of its containers.
        cursors: Node name -> host number last given out, so that a freed address is used again late.
        changed: Node name -> revision at which its desired state last changed; a node that applied this
            one or a later one holds its present desired state. Not stored; after `load` the loaded
            revision, since what a node held before is not known.
        acknowledged: Node name -> highest revision it applied without errors. Not stored.
        lost: Container id -> node name -> revision at which that node lost a connection of the container,
            so that its address is not used again before the node acknowledged. Not stored; after `load`
            every container may have lost one everywhere.
    """

    epoch: int
    revision: int
    supernet: str
    block_size: int
    closed: tuple[str, ...] = ()
    encapsulations: tuple[Encapsulation, ...] = DEFAULT_ORDER
    encryption: Encryption = "off"
    vxlan_port: int = VXLAN_PORT
    accounts: Map[str, Account] = attrs.field(factory=Map)
    nodes: Map[str, Node] = attrs.field(factory=Map)
    containers: Map[str, Container] = attrs.field(factory=Map)
    names: Map[tuple[str, str], str] = attrs.field(factory=Map)
    connections: Map[ConnectionKey, Connection] = attrs.field(factory=Map)
    invites: Map[str, Invite] = attrs.field(factory=Map)
    held: Map[str, Held] = attrs.field(factory=Map)
    leases: Map[str, Lease] = attrs.field(factory=Map)
    node_pairs: Map[PairKey, Pair] = attrs.field(factory=Map)
    rotations: Map[str, Rotation] = attrs.field(factory=Map)
    containers_of: Map[str, Map[str, None]] = attrs.field(factory=Map)
    connections_of: Map[str, Map[ConnectionKey, None]] = attrs.field(factory=Map)
    addresses: Map[str, str] = attrs.field(factory=Map)
    pairs: Map[tuple[str, str], Map[ConnectionKey, None]] = attrs.field(factory=Map)
    keys: Map[str, KeyOwner] = attrs.field(factory=Map)
    bare_names: Map[str, str] = attrs.field(factory=Map)
    expiring: Map[ConnectionKey, float] = attrs.field(factory=Map)
    awaiting: Map[str, Map[str, None]] = attrs.field(factory=Map)
    leases_of: Map[str, Map[str, None]] = attrs.field(factory=Map)
    node_pairs_of: Map[str, Map[PairKey, None]] = attrs.field(factory=Map)
    wishes: Map[str, Map[str, None]] = attrs.field(factory=Map)
    services: Map[ServiceKey, Map[str, None]] = attrs.field(factory=Map)
    cursors: Map[str, int] = attrs.field(factory=Map)
    changed: Map[str, int] = attrs.field(factory=Map)
    acknowledged: Map[str, int] = attrs.field(factory=Map)
    lost: Map[str, Map[str, int]] = attrs.field(factory=Map)


@attrs.frozen
class Decision:
    """What a command leads to.

    Attributes:
        snapshot: The next one; the same object where nothing changed.
        changes: What the store writes, in one transaction with the new revision. Empty: there is nothing
            to write, even where `snapshot` is a new object (what a node acknowledged is not stored).
            Not empty at an unchanged revision: only what was held or removing went, no desired state.
        nodes: Nodes an answer waits for: they must report `revision`. A node that joins by this very
            command is not among them: its first state is whole.
        deltas: For each node whose desired state this changes: how (`netctl.broker.plan`). Empty for a
            repetition, whose `nodes` were told at `revision` already.
        revision: The revision an answer waits for: the new one, or, where the change was recorded
            already, the older one it was recorded at.
        message: One line for the user; may be empty.
    """

    snapshot: Snapshot
    changes: tuple[Change, ...] = ()
    nodes: frozenset[str] = frozenset()
    deltas: Mapping[str, NodeDelta] = attrs.field(factory=dict)
    revision: int = 0
    message: str = ""
