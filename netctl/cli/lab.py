"""`netctl lab ...`: a whole overlay on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import attrs
import typer

from netctl.cli import output, target
from netctl.cli.options import JsonOption, LabOption, checked, examples
from netctl.errors import RefusedError, UsageError
from netctl.lab import registry
from netctl.lab.topology import MAX_MTU, MAX_NODES, MIN_MTU, Wish, check_encapsulations
from netctl.model import Encryption

DirOption = Annotated[
    str | None,
    typer.Option(
        "--dir", metavar="DIR", help="Where the lab keeps everything.", show_default=str(registry.DEFAULT_LAB)
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    group = typer.Typer(
        help="A lab: a broker and nodes on this machine, each in a network namespace of its own.",
        no_args_is_help=True,
    )
    group.command(
        "up",
        epilog=examples(
            "netctl lab up",
            "netctl lab up --nodes 5 --docker",
            "netctl lab up --dir /srv/lab --mtu 9000",
            "netctl lab up --encapsulation vxlan,wireguard",
            "netctl lab up --encryption required",
        ),
    )(up)
    group.command("down", epilog=examples("netctl lab down"))(down)
    group.command("status", epilog=examples("netctl lab status --json"))(status)
    group.command(
        "shell",
        epilog=examples("netctl lab shell n1", "netctl lab shell n1 -- ip route", "netctl lab shell broker"),
    )(shell)
    group.command(
        "docker",
        # What follows the node is Docker's, its options too.
        context_settings={"ignore_unknown_options": True},
        epilog=examples(
            "netctl lab docker n1 -- network create -d netctl --ipam-driver netctl demo",
            "netctl lab docker n1 -- ps",
            "docker save busybox | netctl lab docker n1 -- load",
        ),
    )(docker)
    app.add_typer(group, name="lab")


def _wanted(context: typer.Context, given: str | None, lab: str | None = None) -> str | None:
    """Return the lab's directory as the user named it: by --dir, --lab or NETCTL_LAB."""
    wanted = given or target.lab_option(context, lab) or os.environ.get("NETCTL_LAB")
    return str(Path(wanted).resolve()) if wanted else None


def _directory(context: typer.Context, given: str | None, lab: str | None = None) -> str:
    """Return the lab that was named, else the one that is up, else the default one."""
    wanted = _wanted(context, given, lab)
    if wanted:
        return wanted
    labs = registry.labs_up()
    if len(labs) > 1 and str(registry.DEFAULT_LAB) not in labs:
        raise UsageError(f"{len(labs)} labs are up: {', '.join(labs)}", "say which with --dir DIR")
    return labs[0] if len(labs) == 1 else str(registry.DEFAULT_LAB)


def _tell(line: str) -> None:
    typer.echo(output.printable(line), err=True)


def up(
    context: typer.Context,
    *,
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", metavar="N", min=1, max=MAX_NODES, help="How many.", show_default="3"),
    ] = None,
    encapsulation: Annotated[
        str | None,
        typer.Option(
            "--encapsulation",
            metavar="LIST",
            show_default="auto",
            help="Of the tunnels: auto, or some of gre, vxlan, wireguard and direct, with commas between.",
        ),
    ] = None,
    encryption: Annotated[
        Encryption | None,
        typer.Option(
            "--encryption",
            show_default="off",
            help="Of what passes between nodes; with required it goes by wireguard or not at all.",
        ),
    ] = None,
    firewall: Annotated[
        Literal["auto", "nftables", "iptables"] | None,
        typer.Option("--firewall", help="Of the containers' namespaces.", show_default="auto"),
    ] = None,
    mtu: Annotated[
        int | None,
        typer.Option(
            "--mtu", metavar="BYTES", min=MIN_MTU, max=MAX_MTU, help="Of the underlay.", show_default="1500"
        ),
    ] = None,
    docker: Annotated[
        bool, typer.Option("--docker", help="Give every node a Docker engine of its own.")
    ] = False,
    directory: DirOption = None,
    outside: Annotated[bool, typer.Option("--outside", hidden=True)] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring a lab up: a broker, nodes n1, n2 and so on, and the underlay between them.

    Done twice it changes nothing; what ended is started again, and with a larger --nodes the lab grows.
    """
    # Imported here since it needs the broker's database and the sockets' library.
    from netctl.lab import runner  # noqa: PLC0415 - see above

    # Without --dir it is the default lab, whichever others are up.
    place = _wanted(context, directory) or str(registry.DEFAULT_LAB)
    if encapsulation is not None:
        checked(check_encapsulations, encapsulation)
    wish = Wish(nodes, encapsulation, firewall, mtu, outside or None, docker or None, encryption)
    try:
        result = runner.up(place, wish, _tell)
    except KeyboardInterrupt:
        _tell(
            f"half up: `netctl lab up --dir {place}` goes on, `netctl lab down --dir {place}` clears it away"
        )
        raise
    if as_json:
        typer.echo(output.to_json(_row(result)))
        return
    typer.echo(f"the lab in {place} is up: {', '.join(node.name for node in result.nodes)}")
    if len(registry.labs_up()) > 1:
        typer.echo(
            f"other labs are up too; to have commands mean this one: export NETCTL_LAB={place}", err=True
        )


def down(context: typer.Context, directory: DirOption = None) -> None:
    """Take a lab down: its containers, processes, namespaces and files. Shells inside it end too."""
    # Imported here since it needs the sockets' library.
    from netctl.lab import runner  # noqa: PLC0415 - see above

    place = _directory(context, directory)
    runner.down(place, _tell)
    typer.echo(f"the lab in {place} is gone")


def status(
    context: typer.Context, directory: DirOption = None, lab: LabOption = None, *, as_json: JsonOption = False
) -> None:
    """Show a lab's processes, namespaces and nodes."""
    # Imported here since it needs the sockets' library.
    from netctl.lab import runner  # noqa: PLC0415 - see above

    result = runner.status(_directory(context, directory, lab))
    if as_json:
        typer.echo(output.to_json(_row(result)))
        return
    spec = result.spec
    typer.echo(
        f"lab {result.directory}: {spec.nodes} nodes, encapsulation {spec.encapsulation}, "
        f"firewall {spec.firewall}, underlay MTU {spec.mtu}{', with Docker' if spec.docker else ''}"
        f"{', encryption required' if spec.encryption == 'required' else ''}"
    )
    for process in result.processes:
        typer.echo(
            f"  {process.name.ljust(12)} {'not running' if process.pid is None else f'pid {process.pid}'}"
        )
    if result.problem:
        typer.echo(f"  the broker does not answer: {output.printable(result.problem)}")
    for node in result.nodes:
        typer.echo(f"  {node.name.ljust(12)} {node.state}, {node.block}, underlay {node.underlay}")
    typer.echo(f"  namespaces: {', '.join(result.namespaces) or 'none'}")


def _row(result: object) -> dict[str, object]:
    return attrs.asdict(result)  # type: ignore[arg-type]  # an attrs class; naming it would import the runner


def shell(
    context: typer.Context,
    host: Annotated[
        str, typer.Argument(metavar="NODE", help="n1, n2 ..., broker or underlay.", show_default=False)
    ],
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND", help="Instead of a shell; put -- before it.", show_default=False),
    ] = None,
    directory: DirOption = None,
    lab: LabOption = None,
) -> None:
    """Open a shell, or run a command, in the network namespace of one host of the lab."""
    # Imported here since it needs the sockets' library.
    from netctl.lab import runner  # noqa: PLC0415 - see above

    place = _directory(context, directory, lab)
    argv = runner.shell_command(place, host, command or [])
    os.execvpe(argv[0], argv, {**os.environ, "NETCTL_LAB": place})  # noqa: S606 - a shell is what was asked for


def docker(
    context: typer.Context,
    node: Annotated[str, typer.Argument(metavar="NODE", help="n1, n2 ...", show_default=False)],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARGS", help="Of docker(1); put -- before them.", show_default=False),
    ] = None,
    directory: DirOption = None,
    lab: LabOption = None,
) -> None:
    """Run Docker's own command line against the engine of one node of a lab.

    The nodes reach no registry: load images, or import them.
    """
    # Imported here since it needs the sockets' library.
    from netctl.lab import runner  # noqa: PLC0415 - see above

    place = _directory(context, directory, lab)
    argv, environment = runner.docker_command(place, node, arguments or [])
    try:
        os.execvpe(argv[0], argv, {**os.environ, **environment})  # noqa: S606 - it takes this program's place
    except FileNotFoundError:
        raise RefusedError(
            "Docker's command line is not installed here", "install docker.io, or docker-cli"
        ) from None
