"""What users are shown: recorded state together with what nodes say of themselves. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import attrs

from netctl.broker import lookup, overlay, wishing
from netctl.broker.snapshot import Connection, ConnectionKey, Container, Node, Snapshot
from netctl.broker.ways import Ways
from netctl.model import ContainerRunState, ContainerStatus
from netctl.wire.messages import (
    BrokerStatus,
    ConnectionList,
    ConnectionView,
    ContainerDetail,
    ContainerList,
    ContainerView,
    NodeDetail,
    NodeError,
    NodeList,
    NodeView,
    PathView,
)

_ENDED = ("exited", "failed")


@attrs.frozen
class LiveNode:
    """What the broker knows of a node beyond the record.

    Attributes:
        connected: It has a live session.
        applied: Highest revision it reported as applied, errors or not; 0: none since the broker started.
        errors: What it reported with that.
        last_seen: Seconds since 1970; 0: not since the broker started.
    """

    connected: bool = False
    applied: int = 0
    errors: tuple[NodeError, ...] = ()
    last_seen: float = 0.0


@attrs.frozen
class Live:
    """Everything that is known without being recorded.

    Attributes:
        nodes: By name; a node that is not here was not seen since the broker started.
        containers: Last report of each container, by id.
        ways: What nodes report of the ways to their peers.
        refused: Why what a node last said of itself is not recorded, by name.
    """

    nodes: Mapping[str, LiveNode] = attrs.field(factory=dict)
    containers: Mapping[str, ContainerStatus] = attrs.field(factory=dict)
    ways: Ways = attrs.field(factory=Ways)
    refused: Mapping[str, NodeError] = attrs.field(factory=dict)


_UNSEEN = LiveNode()


def node_state_word(node: Node, live: Live) -> Literal["ready", "unreachable", "draining", "removing"]:
    """Return the one word for a node: what hinders it most comes first."""
    if node.removing:
        return "removing"
    if not live.nodes.get(node.name, _UNSEEN).connected:
        return "unreachable"
    return "draining" if node.draining else "ready"


def container_state(container: Container, live: Live) -> ContainerRunState:
    """Return how a container is, as far as that is known.

    A node that cannot be reached may have lost what ran on it; what had ended there stays ended, since
    only a new generation would run it again, and the node was not told of one. What the node could not make
    or start has failed, until the node says otherwise.
    """
    if container.docker is not None:
        return _dockers_state(container, live)
    status = live.containers.get(container.id)
    ended = status is not None and status.state in _ENDED
    # Of one that is to be stopped any generation's end counts: the newest may never have been started.
    present = status is not None and (status.generation >= container.generation)
    if status is not None and ended and (present or container.wanted == "stopped"):
        return status.state
    if not live.nodes.get(container.node, _UNSEEN).connected:
        return "unknown"
    state = status.state if status is not None and present else "creating"
    return "failed" if state == "creating" and _refusal(container, live) is not None else state


def _dockers_state(container: Container, live: Live) -> ContainerRunState:
    """Return how a container is that Docker's user made; it has no generations."""
    status = live.containers.get(container.id)
    if not live.nodes.get(container.node, _UNSEEN).connected:
        return status.state if status is not None and status.state in _ENDED else "unknown"
    if status is not None:
        return status.state
    return "running" if container.docker and container.docker.address else "exited"


def _refusal(container: Container, live: Live) -> NodeError | None:
    """Return why a node does not make or start a container as it is wanted now, if it has given up."""
    node = live.nodes.get(container.node, _UNSEEN)
    if node.applied < container.revision:
        return None
    return next((e for e in node.errors if e.subject == container.name and not e.under_way), None)


def is_active(container: Container, live: Live) -> bool:
    """Return whether a container runs, or may run for all that is known."""
    return container_state(container, live) not in _ENDED


def connection_state(snapshot: Snapshot, connection: Connection, live: Live) -> Literal["active", "pending"]:
    """Return ``active`` if every node with an end of the connection has applied it."""
    ends = (connection.source, connection.destination)
    nodes = {snapshot.containers[end].node for end in ends}
    reached = all(live.nodes.get(node, _UNSEEN).applied >= connection.revision for node in nodes)
    return "active" if reached else "pending"


def node_list(snapshot: Snapshot, live: Live) -> NodeList:
    """Return all nodes, by name."""
    return NodeList(tuple(node_view(snapshot, node, live) for _, node in sorted(snapshot.nodes.items())))


def node_detail(snapshot: Snapshot, name: str, live: Live) -> NodeDetail:
    """Return one node with its facts, its peers, and the ways to them.

    Raises:
        NotFoundError: No node is called so.
    """
    node = lookup.node(snapshot, name)
    seen = live.nodes.get(name, _UNSEEN)
    peers = [
        other
        for _, other in sorted(snapshot.nodes.items())
        if other.name != name and not other.removing and not node.removing
    ]
    refused = (live.refused[name],) if name in live.refused else ()
    return NodeDetail(
        node=node_view(snapshot, node, live),
        facts=node.facts,
        peers={other.name: overlay.choice(snapshot, node, other).encapsulation for other in peers},
        errors=refused + seen.errors,
        last_seen=seen.last_seen,
        labels=node.labels,
        account=node.account,
        paths=tuple(view for other in peers for view in paths(snapshot, live, node, other)),
        mtu=overlay.own_mtu(snapshot, node),
    )


def paths(snapshot: Snapshot, live: Live, own: Node, other: Node) -> Iterator[PathView]:
    """Yield the ways from one node to another as the first finds them, best first."""
    chosen = overlay.choice(snapshot, own, other).encapsulation
    side = live.ways.side(own.name, other.name)
    for encapsulation in overlay.candidates(snapshot, own, other):
        heard = side.get(encapsulation)
        common = (own.name, other.name, encapsulation, encapsulation == chosen)
        if heard is None:
            yield PathView(*common, state="unknown")
            continue
        path = heard.path
        yield PathView(
            *common,
            state="up" if path.up else "down",
            mtu=path.mtu,
            rtt_ms=path.rtt_us / 1000,
            loss=path.loss_permille / 1000,
        )


def container_list(snapshot: Snapshot, live: Live) -> ContainerList:
    """Return all containers, by name."""
    views = (_container(container, live) for container in snapshot.containers.values())
    return ContainerList(tuple(sorted(views, key=lambda view: (view.name, view.address))))


def container_detail(snapshot: Snapshot, account: str, name: str, live: Live) -> ContainerDetail:
    """Return the container that `account` means by `name`, with its connections.

    Raises:
        NotFoundError: No container is called so.
    """
    container = lookup.container(snapshot, account, name)
    return ContainerDetail(
        container=_container(container, live),
        id=container.id,
        account=container.account,
        workload=container.workload,
        wanted=container.wanted,
        generation=container.generation,
        created_at=container.created_at,
        message=_message(container, live),
        connections=_connections(snapshot, snapshot.connections_of.get(container.id, ()), live),
        docker=container.docker,
        wishes=wishing.explain(snapshot, container),
    )


def connection_list(snapshot: Snapshot, live: Live) -> ConnectionList:
    """Return all connections, by source, destination and port."""
    return ConnectionList(_connections(snapshot, snapshot.connections, live))


def broker_status(
    snapshot: Snapshot, live: Live, *, version: str, uptime: float, sessions: int, account: str
) -> BrokerStatus:
    """Return the broker in numbers.

    Args:
        snapshot: What is recorded.
        live: What is known beyond it.
        version: Of the broker's program.
        uptime: Seconds since it started.
        sessions: Live sessions of users and nodes.
        account: Of who asks.
    """
    return BrokerStatus(
        version=version,
        epoch=snapshot.epoch,
        revision=snapshot.revision,
        supernet=snapshot.supernet,
        block_size=snapshot.block_size,
        uptime=uptime,
        nodes=dict(Counter(node_state_word(node, live) for node in snapshot.nodes.values())),
        containers=len(snapshot.containers),
        connections=len(snapshot.connections),
        sessions=sessions,
        account=account,
    )


def node_view(snapshot: Snapshot, node: Node, live: Live) -> NodeView:
    """Return the row of one node."""
    return NodeView(
        name=node.name,
        block=node.block,
        underlay=node.facts.underlay,
        state=node_state_word(node, live),
        encapsulation=overlay.own_mode(snapshot, node),
        containers=len(snapshot.containers_of.get(node.name, ())),
        applied=live.nodes.get(node.name, _UNSEEN).applied,
        version=node.facts.version,
    )


def _container(container: Container, live: Live) -> ContainerView:
    state = container_state(container, live)
    status = live.containers.get(container.id)
    return ContainerView(
        name=container.name,
        node=container.node,
        address=container.address,
        engine=container.workload.engine,
        state=state,
        exit_code=status.exit_code if status is not None and state in _ENDED else None,
    )


def _message(container: Container, live: Live) -> str:
    status = live.containers.get(container.id)
    if status is not None and status.message:
        return status.message
    refusal = _refusal(container, live)
    return refusal.message if refusal is not None else ""


def _connections(snapshot: Snapshot, keys: Iterable[ConnectionKey], live: Live) -> tuple[ConnectionView, ...]:
    rows = []
    for key in keys:
        connection = snapshot.connections[key]
        source = snapshot.containers[connection.source].name
        destination = snapshot.containers[connection.destination].name
        view = ConnectionView(
            source=source,
            destination=destination,
            port=str(connection.port),
            state=connection_state(snapshot, connection, live),
            revision=connection.revision,
        )
        rows.append(((source, destination, connection.port), view))
    return tuple(view for _, view in sorted(rows, key=lambda row: row[0]))
