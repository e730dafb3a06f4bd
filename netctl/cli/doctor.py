"""`netctl doctor`: what is not as it should be, on all nodes and between them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Final

import typer

from netctl.cli import output, target
from netctl.cli.options import JsonOption, LabOption, examples
from netctl.model import Finding
from netctl.wire.messages import Diagnose, Diagnosis, NodeView, PathView

SICK: Final = 1
"""Exit status where anything does not work."""
MATRIX_NODES: Final = 8
"""More than so many nodes are told in one line each: a matrix of them fits no screen."""

Row = dict[str, str]


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command("doctor", epilog=examples("netctl doctor", "netctl doctor --json --timeout 30"))(doctor)


def doctor(
    context: typer.Context,
    *,
    lab: LabOption = None,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", metavar="SECONDS", min=0.0, max=3600.0, help="How long nodes have to answer."
        ),
    ] = 10.0,
    as_json: JsonOption = False,
) -> int:
    """Look for what is not as it should be, on all nodes and between them.

    Shows how every node reaches every other one, by what probes found: encapsulation, MTU, round trip, loss.
    Then what is wrong, each with what to do about it: ways that are down, clocks, networks that overlap the
    overlay's, what a kernel lacks, other firewalls, reverse-path filters, forwarding.

    Exit status: 0 nothing fails (there may be warnings), 1 something does.
    """
    found = target.ask(context, lab, Diagnose(timeout), Diagnosis, "the nodes to look at themselves")
    if as_json:
        typer.echo(output.to_json(diagnosis_row(found)))
    else:
        _show(found)
    return SICK if any(finding.severity == "error" for finding in found.findings) else 0


def diagnosis_row(found: Diagnosis) -> output.Row:
    """Return a diagnosis as JSON has it."""
    return {
        "nodes": [output.node_row(node) for node in found.nodes],
        "paths": found.paths,
        "findings": found.findings,
    }


def _show(found: Diagnosis) -> None:
    chosen = [path for path in found.paths if path.chosen]
    if len(found.nodes) > MATRIX_NODES:
        columns = ("node", "state", "peers", "up", "encapsulation", "mtu", "round_trip", "loss")
        output.show_table(summary_rows(found.nodes, chosen), columns)
    elif found.nodes:
        names = [node.name for node in found.nodes]
        output.show_table(
            matrix_rows(found.nodes, chosen), ("from", "state", *(f"to {name}" for name in names))
        )
    else:
        typer.echo("no node has joined; make an invite with `netctl invite node`", err=True)
        return
    for finding in found.findings:
        typer.echo("")
        for line in finding_lines(finding):
            typer.echo(line)
    typer.echo(f"\n{verdict(found.findings)}")


def matrix_rows(nodes: Sequence[NodeView], chosen: Iterable[PathView]) -> list[Row]:
    """Return a row for each node, with a cell for each node that it may speak to."""
    by_pair = {(path.source, path.destination): path for path in chosen}
    return [
        {"from": node.name, "state": node.state}
        | {
            f"to {other.name}": "" if other is node else cell(by_pair.get((node.name, other.name)))
            for other in nodes
        }
        for node in nodes
    ]


def cell(path: PathView | None) -> str:
    """Return one way in the fewest words: encapsulation, MTU, round trip, loss."""
    if path is None or path.encapsulation == "none":
        return "no way"
    if path.state != "up":
        return f"{path.encapsulation} {path.state}"
    return f"{path.encapsulation} {path.mtu or '-'} {_milliseconds(path.rtt_ms)} {path.loss:.0%}"


def summary_rows(nodes: Sequence[NodeView], chosen: Sequence[PathView]) -> list[Row]:
    """Return a row for each node: its peers, how many of them it reaches, and the worst of its ways."""
    by_source: Mapping[str, list[PathView]] = {node.name: [] for node in nodes}
    for path in chosen:
        by_source.get(path.source, []).append(path)
    rows = []
    for node in nodes:
        up = [path for path in by_source[node.name] if path.state == "up"]
        trips = [path.rtt_ms for path in up if path.rtt_ms]
        rows.append(
            {
                "node": node.name,
                "state": node.state,
                "peers": str(len(nodes) - 1),
                "up": str(len(up)),
                "encapsulation": ",".join(sorted({path.encapsulation for path in up})),
                "mtu": str(min((path.mtu for path in up if path.mtu), default="")),
                "round_trip": _milliseconds(statistics.median(trips)) if trips else "",
                "loss": f"{max(path.loss for path in up):.0%}" if up else "",
            }
        )
    return rows


def _milliseconds(value: float) -> str:
    return f"{value:.2f}ms" if value else "-"


def finding_lines(finding: Finding) -> list[str]:
    """Return a finding as a person reads it: what it is, and below it what to do."""
    lines = [f"{finding.severity}: {finding.subject}: {finding.message}"]
    if finding.remedy:
        lines.append(f"  {finding.remedy}")
    return [output.printable(line) for line in lines]


def verdict(findings: Sequence[Finding]) -> str:
    """Return the last line: how many things are wrong."""
    errors = sum(finding.severity == "error" for finding in findings)
    warnings = len(findings) - errors
    if not findings:
        return "all is well"
    return ", ".join(
        f"{number} {word}{'' if number == 1 else 's'}"
        for number, word in ((errors, "error"), (warnings, "warning"))
        if number
    )
