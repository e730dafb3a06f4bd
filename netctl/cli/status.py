"""`netctl status` and `netctl version`."""

from __future__ import annotations

import attrs
import typer

import netctl
from netctl.cli import output, target
from netctl.cli.options import JsonOption, LabOption, examples
from netctl.wire.messages import BrokerStatus, GetStatus


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("status", epilog=examples("netctl status", "netctl status --json"))(status)
    app.command("version")(version)


def status(context: typer.Context, lab: LabOption = None, *, as_json: JsonOption = False) -> None:
    """Show the broker: its version, revision, and how much it keeps."""
    answer = target.ask(context, lab, GetStatus(), BrokerStatus, "the broker")
    output.show_record(attrs.asdict(answer), as_json=as_json)


def version(*, as_json: JsonOption = False) -> None:
    """Show the version of this program."""
    typer.echo(output.to_json({"version": netctl.__version__}) if as_json else f"netctl {netctl.__version__}")
