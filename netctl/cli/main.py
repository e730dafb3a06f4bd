"""The program `netctl`: its commands, and how errors leave it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from netctl.cli import (
    account,
    broker,
    connection,
    container,
    container_copy,
    container_run,
    doctor,
    lab,
    node,
    output,
    status,
)
from netctl.cli.options import examples
from netctl.errors import NetctlError, UsageError

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the number of SIGINT."""


def _root(
    lab: Annotated[
        str | None, typer.Option("--lab", metavar="DIR", help="Speak to the lab in this directory.")
    ] = None,
) -> None:
    """Link containers that run on plain hosts: nothing passes between two of them until they are connected.

    Which broker a command speaks to: --lab DIR, else NETCTL_LAB=DIR in the environment, else the broker this
    user joined, else the one lab that is up.

    Exit status: 0 done, 1 refused or failed, 2 wrong usage, 3 recorded but not applied everywhere in time;
    that of `exec` is the command's own, and `doctor` returns 1 where something fails.
    """
    del lab  # read by `target.lab_option`


def make_app() -> typer.Typer:
    """Return the command line, without running anything."""
    # No Rich markup: help must look the same everywhere, and start fast.
    app = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    app.callback(
        epilog=examples(
            "netctl lab up",
            "netctl run web -- python3 -m http.server 8000",
            "netctl run db -- python3 -m http.server 5432",
            "netctl connect web db --port 5432/tcp",
            "netctl --install-completion",
        )
    )(_root)
    for noun in (
        container_run,
        container,
        container_copy,
        connection,
        node,
        account,
        status,
        doctor,
        lab,
        broker,
    ):
        noun.register(app)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status. Errors are printed here and nowhere else."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in own
    try:
        result = make_app()(list(arguments), prog_name="netctl", standalone_mode=False)
    except NetctlError as error:
        output.show_error(error, as_json=as_json)
        return error.exit_status
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output went away, e.g. `head`.
        sys.stderr.close()
        return 1
    except OSError as error:
        what = f"{error.filename}: " if error.filename else "the output cannot be written: "
        output.show_error(NetctlError(f"{what}{error.strerror}"), as_json=as_json)
        return NetctlError.exit_status
    except Exception as error:
        # Typer has raised Click's exceptions under different names in different versions; know them by
        # what they offer.
        explain = getattr(error, "format_message", None)
        if explain is None:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(str(explain()), err=True)
        else:
            output.show_error(_usage(str(explain()), error, dashes="--" in arguments), as_json=as_json)
        return UsageError.exit_status
    return result if isinstance(result, int) else 0


def _usage(text: str, error: Exception, *, dashes: bool) -> UsageError:
    context = getattr(error, "ctx", None)
    where = getattr(context, "command_path", "netctl")
    remedy = f"see `{where} --help`"
    if hasattr(error, "option_name") and not dashes and where.split()[-1] in ("run", "exec", "shell"):
        remedy = f"put -- before the container's command; {remedy}"
    return UsageError(text.rstrip("."), remedy)


def main() -> None:
    """Run `netctl` for the console script."""
    for descriptor in range(3):
        # Where one is closed, the next socket would become our stdin or stdout.
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
