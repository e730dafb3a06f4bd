"""Every message of the control plane, and the one registry that names them.

A message says what it means and never who sends it: the session's identity is the only source of that.
The codec (`netctl.wire.codec`) carries them as ``Envelope``s. A request is answered by exactly one
message with the same `id`; what nobody asked for (updates, reports, stream data) has `id` 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import attrs
import msgspec

from netctl.model import (
    Address,
    Cidr,
    ContainerId,
    ContainerRunState,
    ContainerStatus,
    DockerContainer,
    Encapsulation,
    Finding,
    Name,
    NodeDelta,
    NodeFacts,
    NodeState,
    PathState,
    Port,
    Revision,
    Seconds,
    Text,
    Wanted,
    Word,
    Workload,
)

IdempotencyKey = Annotated[str, msgspec.Meta(max_length=64)]
"""Chosen by the client; the same key again within the broker's memory returns the first answer."""
Chunk = Annotated[bytes, msgspec.Meta(max_length=65536)]
StreamId = Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
Ports = Annotated[tuple[Port, ...], msgspec.Meta(max_length=256)]
Labels = Annotated[tuple[tuple[Word, Word], ...], msgspec.Meta(max_length=64)]
"""Pairs of a label and its value."""
Path = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]
"""An absolute path in a container."""


# --- any session ------------------------------------------------------------------------------------


@attrs.frozen
class Ping:
    """Either side: are you there?"""


@attrs.frozen
class Pong:
    """The answer to Ping."""


@attrs.frozen
class Failure:
    """A request was refused or failed; nothing changed, unless `code` is ``pending``.

    Attributes:
        code: One of `netctl.errors.BY_CODE`.
        revision: With ``pending``: the revision at which the change is recorded.
    """

    code: Word
    message: Text
    remedy: Text = ""
    nodes: tuple[Name, ...] = ()
    revision: Revision = 0


@attrs.frozen
class Enrol:
    """The one message an unknown key may send. Answered by Enrolled.

    Attributes:
        token: From the invite; the broker keeps only its hash.
        name: The node's or account's name; the invite may fix it.
        facts: For a node: what it is, so that overlaps are refused before a block is given.
    """

    token: Annotated[str, msgspec.Meta(max_length=128)]
    name: Name
    facts: NodeFacts | None = None


@attrs.frozen
class Enrolled:
    """The key of this session now belongs to `name`.

    Attributes:
        block: A node's block; None for a user.
    """

    kind: Literal["user", "node"]
    name: Name
    block: Cidr | None = None
    supernet: Cidr | None = None


# --- a user's requests ------------------------------------------------------------------------------


@attrs.frozen
class CreateInvite:
    """Make a one-time token. Answered by InviteCreated.

    Attributes:
        name: Fixes the name of who joins; None leaves it to them.
        ttl: Seconds the invite is good for.
    """

    kind: Literal["user", "node"]
    name: Name | None = None
    ttl: Annotated[int, msgspec.Meta(ge=1, le=30 * 86400)] = 3600


@attrs.frozen
class InviteCreated:
    """The invite string, shown once.

    Attributes:
        expires_at: Seconds since 1970.
    """

    invite: Text
    expires_at: Seconds


@attrs.frozen
class ListNodes:
    """Answered by NodeList."""


@attrs.frozen
class ShowNode:
    """Answered by NodeDetail."""

    name: Name


@attrs.frozen
class DrainNode:
    """Place no new containers on a node (or do so again, with `undo`). Answered by Done."""

    name: Name
    undo: bool = False
    key: IdempotencyKey = ""


@attrs.frozen
class RemoveNode:
    """Take a node out. Answered by Done.

    Attributes:
        force: Remove its containers with it, and fence it (revoke its key at once) if it cannot be reached.
        timeout: Seconds to wait for the nodes concerned.
    """

    name: Name
    force: bool = False
    timeout: Seconds = 10.0
    key: IdempotencyKey = ""


@attrs.frozen
class BindNode:
    """Say whose the containers are that a node's Docker users make. Answered by Done.

    Their labels may ask for connections between containers of that account only.

    Attributes:
        account: None: nobody's; then labels are granted nothing.
    """

    name: Name
    account: Name | None
    key: IdempotencyKey = ""


@attrs.frozen
class RotateNodeKey:
    """Give a node a new WireGuard key. Answered by Done once every peer sends to it, and the old one is gone.

    Attributes:
        timeout: Seconds to wait for that.
    """

    name: Name
    timeout: Seconds = 30.0
    key: IdempotencyKey = ""


@attrs.frozen
class Diagnose:
    """Look for what is not as it should be, on all nodes and between them. Answered by Diagnosis.

    Attributes:
        timeout: Seconds that nodes have to answer.
    """

    timeout: Seconds = 10.0


@attrs.frozen
class LabelNode:
    """Change a node's labels, which constraints of `RunContainer` ask for. Answered by Done."""

    name: Name
    labels: Labels = ()
    removed: Annotated[tuple[Word, ...], msgspec.Meta(max_length=64)] = ()
    key: IdempotencyKey = ""


@attrs.frozen
class RunContainer:
    """Record and start a container. Answered by Done once it runs; Progress may come before that.

    Attributes:
        node: Where; None: the broker chooses.
        constraints: Labels its node must have.
    """

    name: Name
    workload: Workload
    node: Name | None = None
    timeout: Seconds = 10.0
    key: IdempotencyKey = ""
    constraints: Labels = ()


@attrs.frozen
class StopContainer:
    """End a container's command and keep the container. Answered by Done once it has ended."""

    name: Name
    timeout: Seconds = 20.0
    key: IdempotencyKey = ""


@attrs.frozen
class StartContainer:
    """Run a container's command again. Answered by Done once it runs."""

    name: Name
    timeout: Seconds = 10.0
    key: IdempotencyKey = ""


@attrs.frozen
class RemoveContainer:
    """Take a container out, its connections with it. Answered by Done once all nodes concerned have.

    Attributes:
        force: Also while it runs.
    """

    name: Name
    force: bool = False
    timeout: Seconds = 10.0
    key: IdempotencyKey = ""


@attrs.frozen
class ListContainers:
    """Answered by ContainerList."""


@attrs.frozen
class InspectContainer:
    """Answered by ContainerDetail."""

    name: Name


@attrs.frozen
class Connect:
    """Record connections from `source` to `destination`. Answered by Done once both ends enforce them.

    Attributes:
        ports: One record each; empty: everything, in both directions.
    """

    source: Name
    destination: Name
    ports: Ports = ()
    timeout: Seconds = 10.0
    key: IdempotencyKey = ""


@attrs.frozen
class Disconnect:
    """Remove connections. Answered by Done once nothing of them passes.

    Attributes:
        ports: These only; empty: every record from source to destination and the portless one between them.
    """

    source: Name
    destination: Name
    ports: Ports = ()
    timeout: Seconds = 10.0
    key: IdempotencyKey = ""


@attrs.frozen
class ListConnections:
    """Answered by ConnectionList."""


@attrs.frozen
class GetStatus:
    """Answered by BrokerStatus."""


@attrs.frozen
class OpenExec:
    """Run a command in a container. Answered by StreamOpened; then Stream* messages flow both ways.

    Attributes:
        tty: Give it a terminal; then output comes on channel 1 only.
        rows: Of the terminal.
        columns: Of the terminal.
    """

    name: Name
    argv: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1, max_length=512)]
    env: Annotated[tuple[tuple[Text, Text], ...], msgspec.Meta(max_length=512)] = ()
    user: Word = ""
    tty: bool = False
    rows: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    columns: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


@attrs.frozen
class OpenLogs:
    """Read a container's output. Answered by StreamOpened; then StreamData, and StreamEnd.

    Attributes:
        tail: Only so many last lines; None: all that is kept.
        follow: Go on until the client closes the stream or the container ends.
    """

    name: Name
    tail: Annotated[int, msgspec.Meta(ge=0, le=2**31)] | None = None
    follow: bool = False


@attrs.frozen
class OpenCopy:
    """Copy files out of a container or into it. Answered by StreamOpened; then a tar archive (POSIX.1-2001).

    ``out``: the archive of `path` comes on channel 1, its members named from the last part of `path` on.
    ``in``: the archive is sent on channel 0 and unpacked into the directory `path`.
    """

    name: Name
    path: Path
    direction: Literal["out", "in"]


@attrs.frozen
class OpenAdopt:
    """Have a container that Docker runs without a network join ours. Answered by StreamOpened.

    StreamEnd follows: its message says under which name it is recorded, or, without an exit code, why not.

    Attributes:
        container: Docker's name or id of it.
        node: Where it is; None: on the only node that offers the docker engine.
    """

    container: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    node: Name | None = None


# --- the broker's answers to users ------------------------------------------------------------------


@attrs.frozen
class Done:
    """The change is recorded at `revision`, and every node concerned has applied it.

    Attributes:
        nodes: The nodes concerned.
        message: One line for the user, e.g. the address a container got; may be empty.
    """

    revision: Revision
    nodes: tuple[Name, ...] = ()
    message: Text = ""


@attrs.frozen
class Progress:
    """Not an answer: how far the start of a container that this session waits for has come, one line."""

    name: Name
    text: Text


@attrs.frozen
class NodeView:
    """One row of `netctl node list`; field names are the JSON keys."""

    name: Name
    block: Cidr
    underlay: Word
    state: Literal["ready", "unreachable", "draining", "removing"]
    encapsulation: Encapsulation
    containers: int = 0
    applied: Revision = 0
    version: Word = ""


@attrs.frozen
class NodeList:
    """All nodes, by name."""

    nodes: tuple[NodeView, ...]


@attrs.frozen
class NodeDetail:
    """One node.

    Attributes:
        errors: What it reported about its last revision.
        last_seen: Seconds since 1970; 0: not since the broker started.
        account: Whose the containers are that its Docker users make; empty: nobody's.
        paths: Every way from it to its peers, as it finds them.
        mtu: Bytes, of its containers' links.
    """

    node: NodeView
    facts: NodeFacts | None
    peers: Mapping[Name, Encapsulation]
    errors: tuple[NodeError, ...] = ()
    last_seen: Seconds = 0.0
    labels: Labels = ()
    account: Word = ""
    paths: tuple[PathView, ...] = ()
    mtu: int = 0


@attrs.frozen
class PathView:
    """One way between two nodes as the first of them finds it; field names are the JSON keys.

    Attributes:
        chosen: Whether the pair is routed along it.
        state: ``unknown``: nothing was heard of it yet.
        mtu: Bytes of the largest inner packet that came back; 0: none did.
        rtt_ms: Milliseconds there and back; 0: unknown.
        loss: Of the last probes, 0 to 1.
    """

    source: Name
    destination: Name
    encapsulation: Encapsulation
    chosen: bool
    state: Literal["up", "down", "unknown"]
    mtu: int = 0
    rtt_ms: float = 0.0
    loss: float = 0.0


@attrs.frozen
class Diagnosis:
    """What `netctl doctor` found.

    Attributes:
        paths: Every way between every two nodes, in both directions.
        findings: Errors first; none: all is well.
    """

    nodes: tuple[NodeView, ...]
    paths: tuple[PathView, ...]
    findings: tuple[Finding, ...]


@attrs.frozen
class ContainerView:
    """One row of `netctl ps`; field names are the JSON keys."""

    name: Name
    node: Name
    address: Address
    engine: Word
    state: ContainerRunState
    exit_code: int | None


@attrs.frozen
class ContainerList:
    """All containers, by name."""

    containers: tuple[ContainerView, ...]


@attrs.frozen
class ConnectionView:
    """One recorded connection. `from` is a keyword, so JSON's `from` and `to` are source and destination.

    Attributes:
        port: As the user writes it; ``all`` for a portless one.
        state: ``active`` once every node concerned has applied it.
    """

    source: Name
    destination: Name
    port: Word
    state: Literal["active", "pending"]
    revision: Revision


@attrs.frozen
class ConnectionList:
    """All connections, by source, destination and port."""

    connections: tuple[ConnectionView, ...]


@attrs.frozen
class WishView:
    """One connection that a container's label asks for.

    Attributes:
        granted: Whether every such connection is recorded; `reason` says why not.
    """

    destination: Text
    port: Word
    granted: bool
    reason: Text = ""


@attrs.frozen
class ContainerDetail:
    """One container, whole.

    Attributes:
        account: Empty: nobody's, as of a Docker user's container on a node that is bound to no account.
        docker: As its node reported it, where Docker's own user made it.
    """

    container: ContainerView
    id: ContainerId
    account: Word
    workload: Workload
    wanted: Wanted
    generation: int
    created_at: Seconds
    message: Text
    connections: tuple[ConnectionView, ...]
    docker: DockerContainer | None = None
    wishes: tuple[WishView, ...] = ()


@attrs.frozen
class BrokerStatus:
    """What `netctl status` shows."""

    version: Word
    epoch: Revision
    revision: Revision
    supernet: Cidr
    block_size: int
    uptime: Seconds
    nodes: Mapping[Word, int]
    containers: int
    connections: int
    sessions: int
    account: Name


# --- streams: exec and logs, user <-> broker <-> node --------------------------------------------------


@attrs.frozen
class StreamOpened:
    """The stream exists; each side may send `credit` bytes before it must wait for StreamCredit."""

    stream: StreamId
    credit: int = 262144


@attrs.frozen
class StreamData:
    """Bytes on one channel: 0 is stdin (towards the container), 1 stdout, 2 stderr.

    Attributes:
        eof: Nothing follows on this channel.
    """

    stream: StreamId
    channel: Literal[0, 1, 2]
    data: Chunk = b""
    eof: bool = False


@attrs.frozen
class StreamCredit:
    """The receiver has consumed `credit` bytes; the sender may send as many more."""

    stream: StreamId
    credit: Annotated[int, msgspec.Meta(ge=1, le=2**31)]


@attrs.frozen
class StreamResize:
    """The user's terminal has a new size."""

    stream: StreamId
    rows: Annotated[int, msgspec.Meta(ge=0, le=65535)]
    columns: Annotated[int, msgspec.Meta(ge=0, le=65535)]


@attrs.frozen
class StreamEnd:
    """Nothing follows in either direction.

    Attributes:
        exit_code: Of the command; None where netctl failed and `message` says why.
    """

    stream: StreamId
    exit_code: int | None = None
    message: Text = ""


# --- broker <-> node agent --------------------------------------------------------------------------


@attrs.frozen
class NodeError:
    """One thing a node could not do.

    Attributes:
        subject: The container's or peer's name it is about; empty: the node itself.
        under_way: It is being done; whoever waits for the subject goes on waiting, and nobody else does.
    """

    subject: Text
    message: Text
    remedy: Text = ""
    under_way: bool = False


@attrs.frozen
class Hello:
    """A node agent's first message. Answered by Reset or Update.

    Attributes:
        epoch: Of the desired state it holds; 0: none.
        digest: `netctl.delta.digest` of that state.
        containers: What its engines say now.
        docker: All containers that Docker's users have on our networks; None: not known now, so that what
            is recorded of them stays.
    """

    epoch: Revision
    revision: Revision
    digest: Word
    facts: NodeFacts
    containers: tuple[ContainerStatus, ...] = ()
    docker: Annotated[tuple[DockerContainer, ...], msgspec.Meta(max_length=4096)] | None = None


@attrs.frozen
class Reset:
    """Broker to node: forget what you hold; this is the desired state."""

    epoch: Revision
    revision: Revision
    state: NodeState


@attrs.frozen
class Update:
    """Broker to node: the desired state at `base` becomes that at `revision` by `delta`.

    A node that is not at `base` says Hello again and gets a Reset.
    """

    epoch: Revision
    base: Revision
    revision: Revision
    delta: NodeDelta


@attrs.frozen
class Applied:
    """Node to broker: observed equals desired at `revision`, but for `errors`.

    Attributes:
        leftovers: Something that was taken away by then may still be in the kernel, so what it used (an
            address, a block) must not be given out again.
        milliseconds: From receiving the revision to here.
    """

    epoch: Revision
    revision: Revision
    errors: Annotated[tuple[NodeError, ...], msgspec.Meta(max_length=1024)] = ()
    leftovers: bool = False
    milliseconds: Annotated[float, msgspec.Meta(ge=0, le=2**40)] = 0.0


@attrs.frozen
class Report:
    """Node to broker: the state of these containers changed by itself."""

    containers: Annotated[tuple[ContainerStatus, ...], msgspec.Meta(max_length=65536)]


@attrs.frozen
class Facts:
    """Node to broker: this is true of the host by now; it said otherwise before."""

    facts: NodeFacts


@attrs.frozen
class Paths:
    """Node to broker: how it finds the ways to its peers.

    Attributes:
        paths: Those that changed since it last said; after Hello all of them.
    """

    paths: Annotated[tuple[PathState, ...], msgspec.Meta(max_length=65536)]


@attrs.frozen
class Examine:
    """Broker to node: look at your host. Answered by Examined, with the same id."""


@attrs.frozen
class Examined:
    """Node to broker: what is not as it should be there.

    Attributes:
        clock: Seconds since 1970 by the node's clock.
    """

    findings: Annotated[tuple[Finding, ...], msgspec.Meta(max_length=256)]
    clock: Seconds


@attrs.frozen
class Attach:
    """Node to broker: Docker's user made or changed a container on our networks. Answered by Done or Failure.

    The same again changes nothing. The connections it had stay, whatever its address becomes.
    """

    container: DockerContainer


@attrs.frozen
class Detach:
    """Node to broker: this container of Docker's user is gone, or left our networks. Answered by Done."""

    id: ContainerId


@attrs.frozen
class ReserveAddress:
    """Node to broker: put this address of my block on lease (`docker run --ip`).

    Answered by Done or Failure; the lease itself comes with the Update before that.
    """

    address: Address


@attrs.frozen
class Leave:
    """Node to broker: I go; take me and my containers off the record. Answered by Done.

    Attributes:
        force: Also while containers are recorded here.
    """

    force: bool = False


@attrs.frozen
class NodeOpenExec:
    """Broker to node: run a command in a container, on this stream. Answered by stream messages."""

    stream: StreamId
    container: ContainerId
    argv: tuple[Text, ...]
    env: tuple[tuple[Text, Text], ...] = ()
    user: Word = ""
    tty: bool = False
    rows: int = 0
    columns: int = 0


@attrs.frozen
class NodeOpenLogs:
    """Broker to node: send a container's output on this stream."""

    stream: StreamId
    container: ContainerId
    tail: int | None = None
    follow: bool = False


@attrs.frozen
class NodeOpenCopy:
    """Broker to node: copy files on this stream, as OpenCopy asks."""

    stream: StreamId
    container: ContainerId
    path: Path
    direction: Literal["out", "in"]


@attrs.frozen
class NodeOpenAdopt:
    """Broker to node: have Docker's container join, as OpenAdopt asks; StreamEnd says what became of it."""

    stream: StreamId
    container: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


Message = Any
"""An instance of one of the classes in REGISTRY; attrs gives them no common base worth having."""

REGISTRY: Mapping[str, type] = {
    kind.__name__: kind
    for kind in (
        Ping, Pong, Failure, Enrol, Enrolled,
        CreateInvite, InviteCreated, ListNodes, ShowNode, DrainNode, RemoveNode, BindNode, LabelNode,
        RunContainer, StopContainer, StartContainer, RemoveContainer, ListContainers, InspectContainer,
        Connect, Disconnect, ListConnections, GetStatus, OpenExec, OpenLogs, OpenCopy, OpenAdopt,
        Done, Progress, NodeView, NodeList, NodeDetail, ContainerList, ConnectionList, ContainerDetail,
        BrokerStatus,
        StreamOpened, StreamData, StreamCredit, StreamResize, StreamEnd,
        Hello, Reset, Update, Applied, Report, Attach, Detach, ReserveAddress, Leave,
        NodeOpenExec, NodeOpenLogs, NodeOpenCopy, NodeOpenAdopt,
        RotateNodeKey, Diagnose, Diagnosis, Facts, Paths, Examine, Examined,
    )
}  # fmt: skip
"""Every message by its name on the wire. A name that is not here is refused."""


@attrs.frozen
class Envelope:
    """One message with the id that ties an answer to its request.

    Attributes:
        id: Chosen by the requester, 1 to 2**31-1; 0: not a request, and not answered.
    """

    id: int
    message: Message
