"""What is not as it should be, on all nodes and between them, by records, reports and answers. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import combinations
from typing import Final

from netctl.broker import ipam, overlay, rotating, views
from netctl.broker.examinations import Answer
from netctl.broker.snapshot import Node, Snapshot
from netctl.broker.views import Live, LiveNode
from netctl.model import OVERHEAD, Finding
from netctl.wire.messages import Diagnosis, PathView

CLOCKS_APART: Final = 1.0
"""Seconds by which a node's clock may be off: what expires does so by it."""
MOST_PATHS: Final = 50_000
"""Ways that one answer holds; where there are more, it holds those in use, and then those that are not up."""
MOST_FINDINGS: Final = 1000
_NAMED: Final = 8
_UNSEEN: Final = LiveNode()


def diagnose(
    snapshot: Snapshot, live: Live, answers: Mapping[str, Answer], silent: Collection[str], version: str
) -> Diagnosis:
    """Return what users are shown of all nodes, of the ways between them, and of what is wrong.

    Args:
        snapshot: What is recorded.
        live: What is known beyond it.
        answers: What nodes told of their hosts, by name.
        silent: Nodes that were asked and have not told in time.
        version: Of the broker's program.
    """
    nodes = [node for _, node in sorted(snapshot.nodes.items()) if not node.removing]
    apart = {node.name for node in nodes if not live.nodes.get(node.name, _UNSEEN).connected}
    findings: list[Finding] = []
    for node in nodes:
        answer = answers.get(node.name)
        findings += _of_node(node, live, answer, silent=node.name in silent)
        findings += _overlaps(snapshot.supernet, nodes, node, answer)
    findings += _versions(nodes, version)
    findings += _links(nodes)
    for one, other in combinations(nodes, 2):
        if one.name not in apart and other.name not in apart:
            findings += _pair(snapshot, live, one, other)
    findings += _rotations(snapshot, live)
    return Diagnosis(
        nodes=tuple(views.node_view(snapshot, node, live) for node in nodes),
        paths=_paths(snapshot, live, nodes),
        findings=_sorted(findings),
    )


def _of_node(node: Node, live: Live, answer: Answer | None, *, silent: bool) -> Iterator[Finding]:
    seen = live.nodes.get(node.name, _UNSEEN)
    if not seen.connected:
        last = dt.datetime.fromtimestamp(seen.last_seen, dt.UTC)
        since = f"since {last:%F %T} UTC" if seen.last_seen else "since the broker started"
        yield Finding(
            "error",
            node.name,
            f"unreachable {since}; what it carries goes on as it was",
            "start its agent with `nodeagent run`; see that it reaches the broker",
        )
    elif silent:
        yield Finding(
            "error", node.name, "its agent did not answer in time", "see the agent's log, or ask again later"
        )
    if node.name in live.refused:
        refused = live.refused[node.name]
        message = f"what it says of itself cannot be recorded: {refused.message}"
        yield Finding("error", node.name, message[:4096], refused.remedy)
    for error in seen.errors:
        if not error.under_way:
            subject = node.name if error.subject in ("", node.name) else f"{node.name}: {error.subject}"
            yield Finding("error", subject[:256], error.message, error.remedy)
    if answer is not None:
        for finding in answer.findings:
            named = finding.subject.startswith(node.name)
            subject = finding.subject if named else f"{node.name}: {finding.subject}"
            yield Finding(finding.severity, subject[:256], finding.message, finding.remedy)
        yield from _clock(node, answer)


def _clock(node: Node, answer: Answer) -> Iterator[Finding]:
    if abs(answer.ahead) - answer.unsure <= CLOCKS_APART:
        return
    word = "ahead of" if answer.ahead > 0 else "behind"
    yield Finding(
        "error",
        node.name,
        f"its clock is {abs(answer.ahead):.1f} s {word} the broker's: connections with a lifetime end at the "
        "wrong time",
        "keep the clocks of broker and nodes right with NTP",
    )


def _overlaps(supernet: str, nodes: Iterable[Node], node: Node, answer: Answer | None) -> Iterator[Finding]:
    """Find networks of a host inside blocks in use, of which the node did not tell by itself."""
    told = " ".join(finding.message for finding in answer.findings) if answer is not None else ""
    for network in node.facts.networks:
        if network in told or not ipam.contains(supernet, network):
            continue
        for other in nodes:
            if ipam.contains(other.block, network):
                yield Finding(
                    "error",
                    node.name,
                    f"its network {network} lies in the block {other.block} of {other.name}: it gets packets "
                    "that are meant for containers",
                    f"remove {network} from {node.name}, or have {other.name} join again for another block",
                )


def _versions(nodes: Iterable[Node], version: str) -> Iterator[Finding]:
    for node in nodes:
        theirs = node.facts.version
        if theirs and theirs != version:
            yield Finding(
                "warning",
                node.name,
                f"its agent is of version {theirs}, the broker of {version}",
                "install the same version on all hosts, the broker's first",
            )


def _links(nodes: Iterable[Node]) -> Iterator[Finding]:
    """Find nodes whose underlay links take packets of different sizes."""
    by_mtu: dict[int, list[str]] = {}
    for node in nodes:
        by_mtu.setdefault(node.facts.underlay_mtu, []).append(node.name)
    if len(by_mtu) > 1:
        parts = (f"{mtu} bytes on {_some(names)}" for mtu, names in sorted(by_mtu.items()))
        yield Finding(
            "warning",
            "underlay",
            f"the nodes' links have different MTUs: {'; '.join(parts)}"[:4096],
            "give them the same MTU where the network between them takes it",
        )


def _pair(snapshot: Snapshot, live: Live, one: Node, other: Node) -> Iterator[Finding]:
    subject = f"{one.name} -> {other.name}"
    chosen = overlay.choice(snapshot, one, other)
    if chosen.encapsulation == "none":
        yield _no_way(snapshot, subject, one, other)
        return
    sides = [
        (name, live.ways.side(name, peer)) for name, peer in ((one.name, other.name), (other.name, one.name))
    ]
    down = {
        way: [name for name, side in sides if way in side and not side[way].path.up]
        for way in overlay.candidates(snapshot, one, other)
    }
    if down[chosen.encapsulation]:
        yield Finding(
            "error",
            subject,
            f"{chosen.encapsulation} is down, as {' and '.join(down[chosen.encapsulation])} found, and there "
            "is no other way",
            f"let {_WIRE[chosen.encapsulation]} pass between {one.facts.underlay} and {other.facts.underlay}",
        )
        return
    for better, found in down.items():
        if better == chosen.encapsulation:
            break
        if found:
            yield Finding(
                "warning",
                subject,
                f"{better} is down, as {' and '.join(found)} found; {chosen.encapsulation} is used instead",
                f"let {_WIRE[better]} pass between {one.facts.underlay} and {other.facts.underlay}",
            )
    full = overlay.outer_mtu(one, other) - OVERHEAD[chosen.encapsulation]
    if chosen.mtu and chosen.mtu < full:
        yield Finding(
            "warning",
            subject,
            f"the path takes packets of {chosen.mtu} bytes, though both links would take {full}",
            "find what takes less between them, or give the nodes' underlay links its MTU",
        )


_WIRE: Final[Mapping[str, str]] = {
    "gre": "GRE (IP protocol 47)",
    "vxlan": "VXLAN (UDP)",
    "wireguard": "WireGuard (UDP)",
    "direct": "the overlay's own addresses",
}
"""What each encapsulation looks like to a firewall."""


def _no_way(snapshot: Snapshot, subject: str, one: Node, other: Node) -> Finding:
    if snapshot.encryption == "required":
        without = [n.name for n in (one, other) if overlay.wireguard_end(snapshot, n) is None] or [subject]
        return Finding(
            "error",
            subject,
            f"encryption is required, and there is no wireguard on {' and '.join(without)}",
            "load the kernel's module wireguard there, and allow it with --encapsulation",
        )
    offers = "; ".join(f"{n.name} has {', '.join(n.facts.encapsulations) or 'none'}" for n in (one, other))
    return Finding(
        "error",
        subject,
        f"they have no encapsulation in common ({offers})",
        f"load the kernels' modules, and let `--encapsulation` of both allow one of "
        f"{', '.join(overlay.allowed(snapshot))}",
    )


def _rotations(snapshot: Snapshot, live: Live) -> Iterator[Finding]:
    ready = frozenset(name for name, node in live.nodes.items() if node.connected)
    for _, rotation in sorted(snapshot.rotations.items()):
        waits = rotating.awaited(snapshot, rotation, ready)
        if waits:
            yield Finding(
                "warning",
                rotation.node,
                f"its new WireGuard key is not in use everywhere yet: {_some(sorted(waits))} to go",
                "it goes on by itself; bring back what is unreachable, or take it out (`netctl node rm`)",
            )


def _paths(snapshot: Snapshot, live: Live, nodes: list[Node]) -> tuple[PathView, ...]:
    found = [
        path
        for own in nodes
        for other in nodes
        if other is not own
        for path in views.paths(snapshot, live, own, other)
    ]
    if len(found) > MOST_PATHS:
        found = [path for path in found if path.chosen]
    if len(found) > MOST_PATHS:
        found = [path for path in found if path.state != "up"]
    return tuple(found[:MOST_PATHS])


def _sorted(findings: list[Finding]) -> tuple[Finding, ...]:
    findings.sort(key=lambda finding: finding.severity != "error")
    if len(findings) <= MOST_FINDINGS:
        return tuple(findings)
    more = len(findings) - MOST_FINDINGS + 1
    rest = Finding(findings[MOST_FINDINGS - 1].severity, "all nodes", f"and {more} more findings like these")
    return (*findings[: MOST_FINDINGS - 1], rest)


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
