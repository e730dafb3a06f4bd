"""`netctl node ...`: the hosts that run containers."""

from __future__ import annotations

from typing import Annotated

import typer

from netctl.cli import output, target
from netctl.cli.options import (
    JsonOption,
    LabOption,
    NodeArgument,
    TimeoutOption,
    checked,
    examples,
    pairs,
)
from netctl.errors import UsageError
from netctl.model import check_name
from netctl.wire.messages import (
    BindNode,
    Done,
    DrainNode,
    LabelNode,
    ListNodes,
    NodeDetail,
    NodeList,
    RemoveNode,
    RotateNodeKey,
    ShowNode,
)

COLUMNS = ("name", "block", "underlay", "state", "encapsulation", "containers")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(help="Nodes: the hosts that run containers.", no_args_is_help=True)
    group.command("list", epilog=examples("netctl node list --json"))(list_nodes)
    group.command("show", epilog=examples("netctl node show n1"))(show)
    group.command("drain", epilog=examples("netctl node drain n1", "netctl node drain n1 --undo"))(drain)
    group.command("bind", epilog=examples("netctl node bind n1 ada", "netctl node bind n1 --none"))(bind)
    group.command(
        "label", epilog=examples("netctl node label n1 disk=ssd zone=a", "netctl node label n1 zone-")
    )(label)
    group.command(
        "rotate-key", epilog=examples("netctl node rotate-key n1", "netctl node rotate-key n1 --timeout 60")
    )(rotate_key)
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
    """Show one node: its facts, the ways to its peers as it finds them, and what it could not do.

    Of each way: its encapsulation, whether the pair is routed along it, and what probes found.
    """
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


def bind(
    context: typer.Context,
    name: NodeArgument,
    account: Annotated[
        str | None,
        typer.Argument(metavar="ACCOUNT", help="Whose its Docker users' containers are.", show_default=False),
    ] = None,
    *,
    nobody: Annotated[bool, typer.Option("--none", help="They are nobody's any more.")] = False,
    lab: LabOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whose the containers are that Docker's own users make on a node.

    Their labels (netctl.connect) may then ask for connections between containers of that account, and are
    granted nothing on a node that is bound to nobody.
    """
    if (account is None) != nobody:
        raise UsageError("name one account, or give --none", f"as in `netctl node bind {name[:63]} ada`")
    message = BindNode(name, None if account is None else checked(check_name, account))
    output.show_done(target.ask(context, lab, message, Done, "the broker"), as_json=as_json)


def label(
    context: typer.Context,
    name: NodeArgument,
    changes: Annotated[
        list[str],
        typer.Argument(metavar="LABEL", help="NAME=VALUE sets one, NAME- takes it away.", show_default=False),
    ],
    *,
    lab: LabOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a node's labels, which `netctl run --constraint` asks for."""
    taken = tuple(each[:-1] for each in changes if each.endswith("-") and "=" not in each)
    given = pairs([each for each in changes if "=" in each or not each.endswith("-")], "label")
    if "" in taken or {key for key, _ in given} & set(taken):
        raise UsageError(
            "a label is set (NAME=VALUE) or taken away (NAME-), each once", "see `netctl node label --help`"
        )
    message = LabelNode(name, given, taken)
    output.show_done(target.ask(context, lab, message, Done, "the broker"), as_json=as_json)


def rotate_key(
    context: typer.Context,
    name: NodeArgument,
    *,
    lab: LabOption = None,
    timeout: TimeoutOption = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Give a node a new WireGuard key, while its traffic goes on; the old one is destroyed there.

    The private half is made on the node and never leaves it. It is done once every peer sends to the new one.
    """
    message = RotateNodeKey(name, timeout)
    answer = target.ask(context, lab, message, Done, f"{name} and its peers to take the new key")
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
