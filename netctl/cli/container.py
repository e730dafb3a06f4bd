"""`netctl ps`, `inspect`, `exec`, `logs`, `stop`, `start`, `rm` and `adopt`: what is there."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer

from netctl.cli import output, target, terminal
from netctl.cli.options import (
    ContainerArgument,
    EnvOption,
    JsonOption,
    LabOption,
    TimeoutOption,
    UserOption,
    environment,
    examples,
)
from netctl.errors import NetctlError, UnavailableError
from netctl.wire.messages import (
    ContainerDetail,
    ContainerList,
    Done,
    InspectContainer,
    ListContainers,
    OpenAdopt,
    OpenExec,
    OpenLogs,
    RemoveContainer,
    StartContainer,
    StopContainer,
    StreamEnd,
)

EXEC_FAILED = 125
"""Exit status of `netctl exec` where netctl, not the command, failed; as docker's."""
COLUMNS = ("name", "node", "address", "engine", "state", "exit_code")
CommandArgument = Annotated[
    list[str],
    typer.Argument(metavar="COMMAND", help="Program and arguments; put -- before them.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("ps", epilog=examples("netctl ps", "netctl ps --json"))(ps)
    app.command("inspect", epilog=examples("netctl inspect web --json"))(inspect)
    app.command(
        "exec",
        epilog=examples(
            "netctl exec web -- ip address",
            "netctl exec db -- sh -c 'cat >/tmp/dump' < dump",
            "netctl exec -it web -- sh",
        ),
    )(exec_)
    app.command("logs", epilog=examples("netctl logs web", "netctl logs web --tail 20 --follow"))(logs)
    app.command("stop", epilog=examples("netctl stop web"))(stop)
    app.command("start", epilog=examples("netctl start web"))(start)
    app.command("rm", epilog=examples("netctl rm web", "netctl rm web --force"))(remove)
    app.command("adopt", epilog=examples("netctl adopt backup", "netctl adopt 4f1c0d --node n2"))(adopt)


def ps(context: typer.Context, lab: LabOption = None, *, as_json: JsonOption = False) -> None:
    """List all containers, those that ended too."""
    answer = target.ask(context, lab, ListContainers(), ContainerList, "the broker")
    output.show_listing(
        [output.container_row(each) for each in answer.containers],
        COLUMNS,
        as_json=as_json,
        nothing="no containers; start one with `netctl run NAME -- COMMAND`",
    )


def inspect(
    context: typer.Context, name: ContainerArgument, lab: LabOption = None, *, as_json: JsonOption = False
) -> None:
    """Show one container whole, with its connections."""
    answer = target.ask(context, lab, InspectContainer(name), ContainerDetail, "the broker")
    row = output.container_detail_row(answer)
    if not as_json:
        nothing: tuple[str, ...] = ()
        if answer.workload.engine == "process":
            nothing = output.DOCKER_ONLY
        elif answer.docker is not None:
            nothing = output.DOCKERS_OWN
        row = {key: value for key, value in row.items() if key not in nothing}
    output.show_record(row, as_json=as_json)


def exec_(
    context: typer.Context,
    name: ContainerArgument,
    command: CommandArgument,
    *,
    env: EnvOption = None,
    user: UserOption = "",
    lab: LabOption = None,
    interactive: Annotated[
        bool,
        typer.Option(
            "--interactive", "-i", help="Pass stdin on also where it is a terminal; a pipe always is."
        ),
    ] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give the command a terminal.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a command in a container, with this command's stdin, stdout and stderr.

    The exit status is the command's own, 128+N if signal N ended it, and 125 if netctl failed. With --json
    only netctl's own errors are JSON.
    """
    del as_json  # read from the command line by whoever prints errors
    try:
        size = terminal.size() if tty else (0, 0)
        message = OpenExec(name, tuple(command), environment(env), user, tty, *size)
        with target.open_client(target.lab_option(context, lab)) as client:
            with target.notice(f"{name} to start the command"):
                stream = client.open(message)
            status = terminal.run(
                client, stream, stdin=interactive or not os.isatty(0), raw=tty and interactive
            )
    except NetctlError as error:
        error.exit_status = EXEC_FAILED  # type: ignore[misc]  # of this one error, not of its kind
        raise
    raise typer.Exit(status)


def logs(
    context: typer.Context,
    name: ContainerArgument,
    *,
    tail: Annotated[
        int | None, typer.Option("--tail", "-n", metavar="N", min=0, help="Only the last N lines.")
    ] = None,
    lab: LabOption = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more comes.")] = False,
) -> None:
    """Print a container's output: its stdout on stdout, its stderr on stderr."""
    with target.open_client(target.lab_option(context, lab)) as client:
        with target.notice(f"the output of {name}"):
            stream = client.open(OpenLogs(name, tail, follow))
        terminal.run(client, stream, stdin=False, raw=False)


def stop(
    context: typer.Context,
    name: ContainerArgument,
    *,
    lab: LabOption = None,
    timeout: TimeoutOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """End a container's command (SIGTERM, SIGKILL after eight seconds) and keep the container."""
    message = StopContainer(name, timeout)
    output.show_done(target.ask(context, lab, message, Done, f"{name} to end"), as_json=as_json)


def start(
    context: typer.Context,
    name: ContainerArgument,
    *,
    lab: LabOption = None,
    timeout: TimeoutOption = 10.0,
    as_json: JsonOption = False,
) -> None:
    """Run a container's command again; its address and connections are the same."""
    message = StartContainer(name, timeout)
    output.show_done(target.ask(context, lab, message, Done, f"{name} to run"), as_json=as_json)


def remove(
    context: typer.Context,
    name: ContainerArgument,
    *,
    lab: LabOption = None,
    timeout: TimeoutOption = 10.0,
    force: Annotated[bool, typer.Option("--force", "-f", help="Also while it runs.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove a container and all its connections; a new one of its name inherits none."""
    message = RemoveContainer(name, force, timeout)
    output.show_done(
        target.ask(context, lab, message, Done, f"the nodes to take {name} out"), as_json=as_json
    )


def adopt(
    context: typer.Context,
    container: Annotated[
        str, typer.Argument(metavar="CONTAINER", help="Docker's name or id of it.", show_default=False)
    ],
    *,
    node: Annotated[
        str | None,
        typer.Option("--node", metavar="N", help="Where it is.", show_default="the only node with docker"),
    ] = None,
    lab: LabOption = None,
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=0.0, max=3600.0, help="How long to wait for it."),
    ] = 30.0,
    as_json: JsonOption = False,
) -> None:
    """Have a container that Docker runs with --network none join; it goes on running.

    It is then listed like one that its engine's user started on a netctl network.
    """
    deadline = time.monotonic() + timeout
    with target.open_client(target.lab_option(context, lab)) as client, target.notice(f"{container} to join"):
        stream = client.open(OpenAdopt(container, node))
        while not isinstance(piece := stream.receive(max(0.0, deadline - time.monotonic())), StreamEnd):
            if time.monotonic() >= deadline:
                raise UnavailableError(
                    f"{container[:128]!r} has not joined within {timeout:g} s",
                    "whether it does later shows in `netctl ps`; the same again does no harm",
                )
    if piece.exit_code != 0:
        raise NetctlError(piece.message or "it did not join, for no reason given", "see `netctl ps`")
    if as_json:
        typer.echo(output.to_json({"container": container, "message": piece.message}))
    elif piece.message:
        typer.echo(output.printable(piece.message))
