"""`netctl broker ...`: the control plane's own process."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netctl.cli import output
from netctl.cli.options import JsonOption, examples
from netctl.model import DEFAULT_BLOCK_SIZE, DEFAULT_SUPERNET, VXLAN_PORT, Encryption

DEFAULT_DIRECTORY = Path("/var/lib/netctl/broker")
DirectoryOption = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="Where the broker keeps its state; mode 0700.")
]
ListenOption = Annotated[
    list[str] | None,
    typer.Option(
        "--listen", metavar="ENDPOINT", help="tcp://ADDRESS:PORT or ipc:///PATH; may be repeated.",
        show_default="tcp://0.0.0.0:2020",
    ),
]  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(help="The broker: the control plane's own process.", no_args_is_help=True)
    group.command(
        "init",
        epilog=examples(
            "netctl broker init --advertise tcp://192.0.2.10:2020",
            "netctl broker init --supernet 10.64.0.0/10 --block-size 20",
            "netctl broker init --encryption required",
        ),
    )(init)
    group.command("run", epilog=examples("netctl broker run", "netctl broker run --dir ./broker"))(run)
    app.add_typer(group, name="broker")


def init(
    *,
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    supernet: Annotated[
        str, typer.Option("--supernet", metavar="CIDR", help="What the nodes' blocks are cut from.")
    ] = DEFAULT_SUPERNET,
    block_size: Annotated[
        int, typer.Option("--block-size", metavar="BITS", help="Prefix length of one node's block.")
    ] = DEFAULT_BLOCK_SIZE,
    encryption: Annotated[
        Encryption,
        typer.Option(
            "--encryption",
            help="Of what passes between nodes; with required it goes by wireguard or not at all.",
        ),
    ] = "off",
    vxlan_port: Annotated[
        int,
        typer.Option(
            "--vxlan-port", metavar="PORT", min=1, max=65535,
            help="UDP port of VXLAN on every node; Docker Swarm uses 4789 too.",
        ),
    ] = VXLAN_PORT,
    listen: ListenOption = None,
    advertise: Annotated[
        list[str] | None,
        typer.Option(
            "--advertise", metavar="ENDPOINT", help="Where invites say the broker is; may be repeated.",
            show_default="this host's address",
        ),
    ] = None,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Of the first account.")] = "admin",
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Make a broker's directory, keys and database, and print the first user's invite."""
    # Imported here since no other command needs the database's libraries.
    from netctl.broker import service  # noqa: PLC0415 - see above

    invite = service.init(
        directory,
        supernet=supernet,
        block_size=block_size,
        encryption=encryption,
        vxlan_port=vxlan_port,
        listen=tuple(listen) if listen else service.DEFAULT_LISTEN,
        advertise=tuple(advertise or ()),
        name=name,
    )
    if as_json:
        typer.echo(output.to_json({"directory": str(directory), "invite": invite}))
        return
    typer.echo(invite)
    typer.echo(f"start it with `netctl broker run --dir {directory}`, then: netctl join INVITE", err=True)


def run(
    directory: DirectoryOption = DEFAULT_DIRECTORY,
    listen: ListenOption = None,
    user: Annotated[
        str | None,
        typer.Option("--user", metavar="USER", help="Whom to become once it listens, where started as root."),
    ] = None,
) -> None:
    """Run the broker until it is told to end (SIGTERM, SIGINT). It needs neither root nor capabilities."""
    # Imported here since no other command needs the database's libraries.
    from netctl.broker import service  # noqa: PLC0415 - see above

    service.run(directory, listen=tuple(listen or ()), user=user)
