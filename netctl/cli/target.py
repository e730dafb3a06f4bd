"""Which broker a command speaks to, and whom it speaks for."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs
import typer

from netctl.cli.progress import ProgressLine
from netctl.errors import NotFoundError, ProtocolError, UsageError
from netctl.lab import registry

if TYPE_CHECKING:
    from netctl.client import Client
    from netctl.wire.messages import Message

NOTICE_AFTER = 1.0
"""Seconds of waiting after which the user is told what for."""

T = TypeVar("T")


@attrs.frozen
class Target:
    """A broker, by the identity that knows it.

    Attributes:
        identity: File with the identity.
        name: For the user: a lab's directory, or the file.
    """

    identity: Path
    name: str


def identity_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return where `netctl join` keeps this user's identity (XDG Base Directory Specification)."""
    base = environment.get("XDG_CONFIG_HOME", "")
    home = environment.get("HOME") or str(Path("~").expanduser())
    # The specification has relative values ignored.
    return Path(base if base.startswith("/") else f"{home}/.config") / "netctl" / "identity"


def choose(
    lab: str | None, environment: Mapping[str, str] = os.environ, labs: Sequence[str] | None = None
) -> Target:
    """Return whom to speak to.

    That is the lab asked for, else the one named in the environment, else the broker this user joined, else
    the one lab that is up.

    Args:
        lab: Value of ``--lab``.
        environment: Of the process.
        labs: Directories of the labs that are up; None: look.

    Raises:
        NotFoundError: There is no such lab, or nothing to choose.
        UsageError: Several labs are up, and nothing says which.
    """
    wanted = lab or environment.get("NETCTL_LAB")
    if wanted:
        return _lab(wanted)
    joined = identity_path(environment)
    if joined.exists():
        return Target(joined, str(joined))
    up = registry.labs_up() if labs is None else labs
    if len(up) == 1:
        return _lab(up[0])
    if up:
        raise UsageError(f"{len(up)} labs are up: {', '.join(up)}", "say which with --lab DIR")
    raise NotFoundError(
        "this user has joined no broker, and no lab is up",
        "join one with `netctl join INVITE`, or start a lab with `netctl lab up`",
    )


def _lab(directory: str) -> Target:
    root = Path(directory).absolute()
    if not os.path.lexists(root / registry.SPEC_FILE):
        raise NotFoundError(f"there is no lab in {root}", f"start it with `netctl lab up --dir {root}`")
    return Target(root / "user" / "identity", str(root))


def lab_option(context: typer.Context, lab: str | None) -> str | None:
    """Return the command's own ``--lab``, else the one given before the command's name."""
    value = lab or context.find_root().params.get("lab")
    return value if isinstance(value, str) else None


@contextmanager
def open_client(lab: str | None) -> Iterator[Client]:
    """Open a session with the broker that `choose` names.

    Raises:
        NetctlError: None could be chosen or reached; the error says what to do.
    """
    # Imported here so that help and completion start without the sockets' library.
    from netctl.client import Client  # noqa: PLC0415 - see above
    from netctl.wire import identity  # noqa: PLC0415 - the same

    with Client(identity.load(choose(lab).identity)) as client:
        yield client


def ask(
    context: typer.Context,
    lab: str | None,
    message: Message,
    answer: type[T],
    waiting_for: str,
    *,
    shows_progress: bool = False,
) -> T:
    """Send one request and return its answer.

    Args:
        context: Of the command.
        lab: The command's ``--lab``.
        message: The request.
        answer: The type its answer must have.
        waiting_for: What the user is told after a second of waiting.
        shows_progress: Whether to tell the user on stderr how far it has come, where the broker says so.

    Raises:
        NetctlError: The broker refused, could not be reached, or some nodes have not applied it in time.
    """
    with (
        open_client(lab_option(context, lab)) as client,
        notice(waiting_for),
        ProgressLine(enabled=shows_progress) as line,
    ):
        got = client.request(message, progress=line.show)
    if not isinstance(got, answer):
        raise ProtocolError(
            f"the broker answered {type(got).__name__}",
            "check with `netctl version` that both are of one version",
        )
    return got


@contextmanager
def notice(waiting_for: str, after: float = NOTICE_AFTER) -> Iterator[None]:
    """Tell the user on stderr, once, what is being waited for, if that takes long."""
    timer = threading.Timer(after, lambda: typer.echo(f"waiting for {waiting_for} ...", err=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        # One that has begun to speak finishes before what comes next does.
        timer.join()
