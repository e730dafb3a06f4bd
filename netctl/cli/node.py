"""`netctl node ...`: the hosts that run containers."""

from __future__ import annotations

from typing import Annotated

import typer

from netctl.cli import output, target
from netctl.cli.options import JsonOption, LabOption, NodeArgument, TimeoutOption, examples
from netctl.wire.messages import Done, DrainNode, ListNodes, NodeDetail, NodeList, RemoveNode, ShowNode

COLUMNS = ("name", "block", "underlay", "state", "encapsulation", "containers")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(help="Nodes: the hosts that run containers.", no_args_is_help=True)
    group.command("list", epilog=examples("netctl node list --json"))(list_nodes)
    group.command("show", epilog=examples("netctl node show n1"))(show)
    group.command("drain", epilog=examples("netctl node drain n1", "netctl node drain n1 --undo"))(drain)
    group.command("rm", epilog=examples("netctl node rm n1", "netctl node rm n1 --force"))(remove)
    app.add_typer(group, name="node")


def list_nodes(context: typer.Context, lab: LabOption = None, *, as_json: JsonOption = False) -> None:
    """List all nodes."""
    answer = target.ask(context, lab, ListNodes(), NodeList, "the broker")
    output.show_listing(
        [output.node_row(node) for node in answer.nodes],
        COLUMNS,
        as_json=as_json,
        nothing="no node has joined; make an invite with `netctl invite node`",
    )


def show(
    context: typer.Context, name: NodeArgument, lab: LabOption = None, *, as_json: JsonOption = False
) -> None:
    """Show one node: its facts, its tunnels, and what it could not do."""
    answer = target.ask(context, lab, ShowNode(name), NodeDetail, "the broker")
    output.show_record(output.node_detail_row(answer), as_json=as_json)


def drain(
    context: typer.Context,
    name: NodeArgument,
    *,
    lab: LabOption = None,
    undo: Annotated[bool, typer.Option("--undo", help="Let it take new containers again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Place no new containers on a node; those it has stay."""
    answer = target.ask(context, lab, DrainNode(name, undo), Done, "the broker")
    output.show_done(answer, as_json=as_json)


def remove(
    context: typer.Context,
    name: NodeArgument,
    *,
    lab: LabOption = None,
    timeout: TimeoutOption = 10.0,
    force: Annotated[
        bool, typer.Option("--force", help="Its containers with it, also if it cannot be reached.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Take a node out. It removes everything of ours from its kernel, and its agent ends."""
    message = RemoveNode(name, force, timeout)
    answer = target.ask(context, lab, message, Done, f"{name} and its peers to apply the removal")
    output.show_done(answer, as_json=as_json)
