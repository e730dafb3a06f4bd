"""Options and arguments that several commands share, each described once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import typer

from netctl.errors import InvalidError, UsageError

T = TypeVar("T")

LabOption = Annotated[
    str | None,
    typer.Option("--lab", metavar="DIR", help="Speak to the lab in this directory.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON with stable keys.")]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        min=0.0,
        max=3600.0,
        help="How long to wait for the nodes; after that the exit status is 3.",
    ),
]
ContainerArgument = Annotated[str, typer.Argument(metavar="NAME", help="The container.", show_default=False)]
NodeArgument = Annotated[str, typer.Argument(metavar="NAME", help="The node.", show_default=False)]
PortOption = Annotated[
    list[str] | None,
    typer.Option(
        "--port", "-p", metavar="PORT", help="5432/tcp, 53/udp, 5432 (tcp) or icmp; may be repeated.",
        show_default=False,
    ),
]  # fmt: skip
EnvOption = Annotated[
    list[str] | None,
    typer.Option(
        "--env", "-e", metavar="NAME=VALUE", help="A variable of its environment; may be repeated.",
        show_default=False,
    ),
]  # fmt: skip
UserOption = Annotated[
    str,
    typer.Option(
        "--user", "-u", metavar="UID[:GID]", help="Whom it runs as; a number or a name.", show_default=False
    ),
]


def checked(check: Callable[[str], T], text: str) -> T:
    """Return what `check` makes of a word of the command line.

    Raises:
        UsageError: It is of the wrong form.
    """
    try:
        return check(text)
    except InvalidError as error:
        raise UsageError(error.message, error.remedy) from None


def pairs(texts: Sequence[str] | None, what: str) -> tuple[tuple[str, str], ...]:
    """Return names and values of words like NAME=VALUE.

    Raises:
        UsageError: One is of another form; the message says that it is no `what`.
    """
    result = []
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"{text[:80]!r} is no {what}", "write it as NAME=VALUE")
        result.append((name, value))
    return tuple(result)


def environment(texts: Sequence[str] | None) -> tuple[tuple[str, str], ...]:
    """Return the variables that were typed.

    Raises:
        UsageError: One is of another form than NAME=VALUE.
    """
    return pairs(texts, "variable")


def examples(*lines: str) -> str:
    """Return the end of a command's help: examples, one a line, left as they are."""
    # Click keeps the lines of a paragraph that begins with a backspace.
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
