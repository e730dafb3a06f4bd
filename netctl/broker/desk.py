"""From a user's request to the command it stands for, and from a decision to the answer. Pure.

Who asks is never in the request: the account is that of the session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import msgspec

from netctl.broker import commands, lookup, views, workloads
from netctl.broker.commands import Command
from netctl.broker.leasing import ENGINE
from netctl.broker.snapshot import Decision, Snapshot
from netctl.broker.views import Live
from netctl.broker.waiting import Promise
from netctl.errors import RefusedError, UnavailableError
from netctl.wire import messages as m

QUERIES: Final[frozenset[type]] = frozenset(
    {m.ListNodes, m.ShowNode, m.ListContainers, m.InspectContainer, m.ListConnections, m.GetStatus}
)
CHANGES: Final[frozenset[type]] = frozenset(
    {
        m.DrainNode, m.RemoveNode, m.BindNode, m.LabelNode, m.RotateNodeKey, m.RunContainer, m.StopContainer,
        m.StartContainer, m.RemoveContainer, m.Connect, m.Disconnect,
    }
)  # fmt: skip
STREAM: Final[frozenset[type]] = frozenset({m.StreamData, m.StreamCredit, m.StreamResize, m.StreamEnd})
OPENINGS: Final[frozenset[type]] = frozenset({m.OpenExec, m.OpenLogs, m.OpenCopy, m.OpenAdopt})
USER: Final = QUERIES | CHANGES | STREAM | OPENINGS | {m.CreateInvite, m.Diagnose, m.Ping, m.Pong}
"""All that a user's session may send."""
NODE: Final = STREAM | {
    m.Hello, m.Applied, m.Report, m.Facts, m.Paths, m.Examined, m.Attach, m.Detach, m.ReserveAddress,
    m.Leave, m.Ping, m.Pong,
}  # fmt: skip
"""All that a node's session may send: nodes report, they do not command."""
ENROL: Final[frozenset[type]] = frozenset({m.Enrol})
"""All that an unknown key may send, once."""


@attrs.frozen
class Situation:
    """What a request is looked at with.

    Attributes:
        account: Of who asks.
        snapshot: What is recorded.
        live: What is known beyond it.
        new_id: A fresh container id.
    """

    account: str
    snapshot: Snapshot
    live: Live
    new_id: str

    @property
    def ready(self) -> frozenset[str]:
        """Names of the nodes with a live session."""
        return frozenset(name for name, node in self.live.nodes.items() if node.connected)


def command_of(request: m.Message, now: Situation) -> Command:
    """Return the command that one of CHANGES stands for.

    Raises:
        NotFoundError: The container named does not exist.
        RefusedError: It is to be started and runs, or Docker's user made it.
    """
    command: Command = _COMMANDS[type(request)](request, now)
    return command


def promise_of(request: m.Message, decision: Decision) -> Promise:
    """Return what the answer to one of CHANGES waits for."""
    named = {getattr(request, field, None) for field in ("name", "source", "destination")} - {None}
    starts = isinstance(request, m.RunContainer | m.StartContainer)
    return Promise(
        revision=decision.revision,
        nodes=tuple(sorted(decision.nodes)),
        message=decision.message,
        subjects=frozenset(str(name) for name in named) | decision.nodes,
        starts=request.name if starts else "",
        rotates=request.name if isinstance(request, m.RotateNodeKey) else "",
    )


def adopting_node(request: m.OpenAdopt, now: Situation) -> str:
    """Return the node on which a container is to join: the one named, or the only one it can be.

    Raises:
        NotFoundError: No node is called so.
        UnavailableError: It cannot be reached, or no node that offers docker can.
        RefusedError: It does not offer docker, or several do and none is named.
    """
    offering = sorted(
        name
        for name, node in now.snapshot.nodes.items()
        if ENGINE in node.facts.engines and not node.removing
    )
    if request.node is not None:
        lookup.node(now.snapshot, request.node)
        if request.node not in offering:
            raise RefusedError(
                f"node {request.node} does not offer the {ENGINE} engine",
                f"these do: {', '.join(offering)}"
                if offering
                else "make Docker run on it and start its agent again",
                (request.node,),
            )
        if request.node not in now.ready:
            raise UnavailableError(
                f"node {request.node} is unreachable", "start its agent with `nodeagent run`", (request.node,)
            )
        return request.node
    ready = [name for name in offering if name in now.ready]
    if not ready:
        raise UnavailableError(
            f"no reachable node offers the {ENGINE} engine",
            "see `netctl node list`; make Docker run on a node and start its agent again",
            tuple(offering),
        )
    if len(ready) > 1:
        raise RefusedError(
            f"several nodes offer the {ENGINE} engine: {', '.join(ready)}",
            "say on which the container is with `--node`",
            tuple(ready),
        )
    return ready[0]


def digest_of(request: m.Message) -> bytes:
    """Name what a request asks for, whatever key and timeout it carries."""
    fields: dict[str, Any] = msgspec.to_builtins(request)
    asked = {name: value for name, value in fields.items() if name not in ("key", "timeout")}
    return hashlib.blake2b(
        msgspec.msgpack.encode((type(request).__name__, asked), order="deterministic"), digest_size=16
    ).digest()


def answer_to(query: m.Message, now: Situation, *, version: str, uptime: float, sessions: int) -> m.Message:
    """Answer one of QUERIES.

    Raises:
        NotFoundError: What it names does not exist.
    """
    snapshot, live = now.snapshot, now.live
    match query:
        case m.ListNodes():
            return views.node_list(snapshot, live)
        case m.ShowNode():
            return views.node_detail(snapshot, query.name, live)
        case m.ListContainers():
            return views.container_list(snapshot, live)
        case m.InspectContainer():
            return views.container_detail(snapshot, now.account, query.name, live)
        case m.ListConnections():
            return views.connection_list(snapshot, live)
        case _:
            return views.broker_status(
                snapshot, live, version=version, uptime=uptime, sessions=sessions, account=now.account
            )


def _remove_node(request: m.RemoveNode, now: Situation) -> Command:
    return commands.RemoveNode(request.name, request.force, reachable=request.name in now.ready)


def _run(request: m.RunContainer, now: Situation) -> Command:
    return commands.AddContainer(
        id=now.new_id,
        account=now.account,
        name=request.name,
        workload=request.workload,
        node=request.node,
        ready=now.ready,
        constraints=request.constraints,
    )


def _start(request: m.StartContainer, now: Situation) -> Command:
    container = lookup.container(now.snapshot, now.account, request.name)
    workloads.check_ours(container, "start")
    status = now.live.containers.get(container.id)
    running = status is not None and status.state == "running" and status.generation >= container.generation
    if container.wanted == "running" and running:
        raise RefusedError(f"{container.name} runs already", f"stop it first: `netctl stop {container.name}`")
    return commands.SetWanted(now.account, request.name, running=True)


def _remove(request: m.RemoveContainer, now: Situation) -> Command:
    container = lookup.container(now.snapshot, now.account, request.name)
    active = views.is_active(container, now.live)
    return commands.DropContainer(now.account, request.name, request.force, active)


_COMMANDS: Mapping[type, Callable[[Any, Situation], Command]] = {
    m.DrainNode: lambda request, _: commands.SetDraining(request.name, not request.undo),
    m.RemoveNode: _remove_node,
    m.BindNode: lambda request, _: commands.BindNode(request.name, request.account),
    m.LabelNode: lambda request, _: commands.LabelNode(request.name, request.labels, request.removed),
    m.RotateNodeKey: lambda request, _: commands.StartRotation(request.name),
    m.RunContainer: _run,
    m.StopContainer: lambda request, now: commands.SetWanted(now.account, request.name, running=False),
    m.StartContainer: _start,
    m.RemoveContainer: _remove,
    m.Connect: lambda request, now: commands.AddConnections(
        now.account, request.source, request.destination, request.ports
    ),
    m.Disconnect: lambda request, now: commands.DropConnections(
        now.account, request.source, request.destination, request.ports
    ),
}
