"""Which node a new container goes to. Pure."""

from __future__ import annotations

from netctl.broker import lookup
from netctl.broker.draft import Draft
from netctl.broker.snapshot import Node
from netctl.errors import ExhaustedError, RefusedError, UnavailableError

BRIDGE_PORTS = 1023
"""Ports a Linux bridge takes (BR_MAX_PORTS in net/bridge/br_private.h, port 0 unused)."""
_LABEL_REMEDY = "label a node with `netctl node label NODE NAME=VALUE`, or ask for another label"
Labels = tuple[tuple[str, str], ...]


def place(
    draft: Draft, engine: str, wish: str | None, ready: frozenset[str], constraints: Labels = ()
) -> Node:
    """Choose the node of a new container: the one with the fewest, among equals the first by name.

    Args:
        draft: What is recorded.
        engine: That the container needs.
        wish: The node the user named, if any.
        ready: Nodes with a live session.
        constraints: Labels the node must have, with their values.

    Raises:
        NotFoundError: The node named does not exist.
        UnavailableError: It is not ready, or no node is.
        RefusedError: It takes no containers, does not offer the engine or lacks a label, or no ready node
            is without such a fault.
        ExhaustedError: Its bridge, or that of every suitable node, is full.
    """
    if wish is not None:
        return _check(draft, lookup.node(draft, wish), engine, ready, constraints)
    if not draft.nodes:
        raise RefusedError("no node has joined yet", "invite one with `netctl invite node`")
    live = [node for name, node in draft.nodes.items() if name in ready]
    if not live:
        raise UnavailableError(
            "no node is reachable",
            "see `netctl node list`; start their agents with `nodeagent run`",
            tuple(sorted(draft.nodes)),
        )
    willing = [node for node in live if not node.draining and not node.removing]
    if not willing:
        raise RefusedError(
            "every reachable node is draining or being removed",
            "end that with `netctl node drain --undo`, or add a node",
            tuple(sorted(node.name for node in live)),
        )
    able = [node for node in willing if engine in node.facts.engines]
    if not able:
        raise RefusedError(f"no reachable node offers the {engine} engine", _engine_remedy(engine))
    fitting = [node for node in able if not _missing(node, constraints)]
    if not fitting:
        raise RefusedError(
            f"no reachable node that offers the {engine} engine is labelled {_written(constraints)}",
            _LABEL_REMEDY,
            tuple(sorted(node.name for node in able)),
        )
    roomy = [node for node in fitting if _count(draft, node) < BRIDGE_PORTS]
    if not roomy:
        raise ExhaustedError(
            f"the bridge of every suitable node is full ({BRIDGE_PORTS} containers each)",
            "add a node, or remove containers",
            tuple(sorted(node.name for node in fitting)),
        )
    return min(roomy, key=lambda node: (_count(draft, node), node.name))


def _check(draft: Draft, node: Node, engine: str, ready: frozenset[str], constraints: Labels) -> Node:
    concerned = (node.name,)
    if node.removing:
        raise RefusedError(f"node {node.name} is being removed", "choose another node", concerned)
    if node.draining:
        raise RefusedError(
            f"node {node.name} is draining and takes no new containers",
            f"choose another node, or `netctl node drain --undo {node.name}`",
            concerned,
        )
    if node.name not in ready:
        raise UnavailableError(
            f"node {node.name} is unreachable",
            "start its agent with `nodeagent run`, or choose another node",
            concerned,
        )
    if engine not in node.facts.engines:
        raise RefusedError(
            f"node {node.name} does not offer the {engine} engine", _engine_remedy(engine), concerned
        )
    missing = _missing(node, constraints)
    if missing:
        raise RefusedError(f"node {node.name} is not labelled {_written(missing)}", _LABEL_REMEDY, concerned)
    if _count(draft, node) >= BRIDGE_PORTS:
        raise ExhaustedError(
            f"the bridge of node {node.name} is full ({BRIDGE_PORTS} containers)",
            "choose another node, or remove containers",
            concerned,
        )
    return node


def _missing(node: Node, constraints: Labels) -> Labels:
    return tuple(pair for pair in constraints if pair not in node.labels)


def _written(labels: Labels) -> str:
    return ", ".join(f"{name}={value}" for name, value in labels)


def _engine_remedy(engine: str) -> str:
    if engine == "process":
        return "start the node's agent with `nodeagent run --process-engine`, or choose another node"
    return f"make {engine} run on the node and start its agent again, or choose another node"


def _count(draft: Draft, node: Node) -> int:
    return len(draft.containers_of.get(node.name, ()))
