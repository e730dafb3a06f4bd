"""`netctl connect`, `disconnect` and `connections`."""

from __future__ import annotations

from typing import Annotated

import typer

from netctl.cli import output, target
from netctl.cli.options import JsonOption, LabOption, PortOption, TimeoutOption, checked, examples
from netctl.model import Port, check_name
from netctl.wire.messages import Connect, ConnectionList, Disconnect, Done, ListConnections

SourceArgument = Annotated[
    str, typer.Argument(metavar="A", help="The container that opens.", show_default=False)
]
DestinationArgument = Annotated[
    str, typer.Argument(metavar="B", help="The container that is opened to.", show_default=False)
]
COLUMNS = ("from", "to", "ports", "state", "revision")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command(
        "connect",
        epilog=examples(
            "netctl connect web db --port 5432/tcp",
            "netctl connect web db --port 5432 --port icmp",
            "netctl connect web cache",
        ),
    )(connect)
    app.command(
        "disconnect", epilog=examples("netctl disconnect web db", "netctl disconnect web db --port 5432/tcp")
    )(disconnect)
    app.command("connections", epilog=examples("netctl connections --json"))(connections)


def _ports(texts: list[str] | None) -> tuple[Port, ...]:
    return tuple(dict.fromkeys(checked(Port.parse, text) for text in texts or ()))


def connect(
    context: typer.Context,
    source: SourceArgument,
    destination: DestinationArgument,
    *,
    port: PortOption = None,
    lab: LabOption = None,
    timeout: TimeoutOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Let A open a port at B; without --port everything, in both directions.

    Returns when both ends enforce it: the very next packet passes.
    """
    message = Connect(checked(check_name, source), checked(check_name, destination), _ports(port), timeout)
    waiting = f"the nodes of {source} and {destination} to open it"
    output.show_done(target.ask(context, lab, message, Done, waiting), as_json=as_json)


def disconnect(
    context: typer.Context,
    source: SourceArgument,
    destination: DestinationArgument,
    *,
    port: PortOption = None,
    lab: LabOption = None,
    timeout: TimeoutOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Close what A may open at B, live flows included; with --port only that.

    Without --port it removes every connection from A to B, and the one between them that was made
    without a port. Returns when it is over: the very next packet is dropped.
    """
    message = Disconnect(checked(check_name, source), checked(check_name, destination), _ports(port), timeout)
    waiting = f"the nodes of {source} and {destination} to close it"
    output.show_done(target.ask(context, lab, message, Done, waiting), as_json=as_json)


def connections(context: typer.Context, lab: LabOption = None, *, as_json: JsonOption = False) -> None:
    """List all connections, one line for each port."""
    answer = target.ask(context, lab, ListConnections(), ConnectionList, "the broker")
    output.show_listing(
        [output.connection_row(each) for each in answer.connections],
        COLUMNS,
        as_json=as_json,
        nothing="no connections; nothing passes between containers",
    )
