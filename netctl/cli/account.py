"""`netctl join` and `netctl invite ...`: who may speak to the broker."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from netctl.cli import output, target
from netctl.cli.options import JsonOption, LabOption, checked, examples
from netctl.errors import ExistsError, InvalidError
from netctl.model import check_name
from netctl.wire.messages import CreateInvite, InviteCreated

NameOption = Annotated[
    str | None,
    typer.Option(
        "--name",
        metavar="NAME",
        help="Fixes the name of who joins; they choose otherwise.",
        show_default=False,
    ),
]
TtlOption = Annotated[
    int,
    typer.Option("--ttl", metavar="SECONDS", min=1, max=30 * 86400, help="How long the invite is good for."),
]


SECONDS_SHOWN = 120
"""How long an invite is good for is said in minutes from here on."""


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("join", epilog=examples("netctl join netctl-invite-..."))(join)
    group = typer.Typer(
        help="Invites: one-time strings that let a user or a node join.", no_args_is_help=True
    )
    group.command("user", epilog=examples("netctl invite user --name ada"))(invite_user)
    group.command("node", epilog=examples("netctl invite node", "netctl invite node --name n4 --ttl 600"))(
        invite_node
    )
    app.add_typer(group, name="invite")


def join(
    invite: Annotated[
        str, typer.Argument(metavar="INVITE", help="From `netctl invite user`.", show_default=False)
    ],
    *,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", metavar="NAME", help="Of the account, where the invite fixes none.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Become a user of a broker. The key is made here and never leaves this machine."""
    # Imported here so that help and completion start without the sockets' library.
    from netctl.enrolment import enrol  # noqa: PLC0415 - see above
    from netctl.wire import identity  # noqa: PLC0415 - the same
    from netctl.wire import invite as invites  # noqa: PLC0415 - the same

    path = target.identity_path()
    if path.exists():
        raise ExistsError(
            f"this user has joined a broker already ({path})",
            "remove that file first if you mean to leave it",
        )
    wanted = _checked(name)
    given = invites.parse(invite)
    if given.kind != "user":
        raise InvalidError("this invite is for a node", "use it there: `nodeagent join INVITE`")
    with target.notice("the broker"):
        joined = enrol(given, wanted)
    identity.save(joined, path)
    if as_json:
        typer.echo(output.to_json({"name": joined.name, "identity": str(path)}))
    else:
        typer.echo(f"joined as {joined.name}; the identity is in {path}")


def invite_user(
    context: typer.Context,
    *,
    name: NameOption = None,
    ttl: TtlOption = 3600,
    lab: LabOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an invite for a user; they use it with `netctl join`."""
    _invite(context, lab, CreateInvite("user", _checked(name), ttl), "netctl join", as_json=as_json)


def invite_node(
    context: typer.Context,
    *,
    name: NameOption = None,
    ttl: TtlOption = 3600,
    lab: LabOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an invite for a node; it is used there with `nodeagent join`."""
    _invite(context, lab, CreateInvite("node", _checked(name), ttl), "nodeagent join", as_json=as_json)


def _checked(name: str | None) -> str | None:
    return None if name is None else checked(check_name, name)


def _invite(
    context: typer.Context, lab: str | None, message: CreateInvite, use: str, *, as_json: bool
) -> None:
    answer = target.ask(context, lab, message, InviteCreated, "the broker")
    if as_json:
        typer.echo(output.to_json({"invite": answer.invite, "expires_at": answer.expires_at}))
        return
    # The invite alone on stdout, so that it can be piped to where it is used.
    typer.echo(answer.invite)
    seconds = max(0, round(answer.expires_at - time.time()))
    within = f"{seconds} s" if seconds < SECONDS_SHOWN else f"{round(seconds / 60)} min"
    typer.echo(f"use it once, within {within}: {use} INVITE", err=True)
