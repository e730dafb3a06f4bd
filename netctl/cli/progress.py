"""How far something has come, on stderr: one live line on a terminal, a line each time elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer

from netctl.cli.output import printable

if TYPE_CHECKING:
    from rich.status import Status

    from netctl.wire.messages import Progress


class ProgressLine:
    """What Progress messages become, until the answer is there.

    Args:
        enabled: Whether to show anything.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._live: Status | None = None
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the live line away, so that what comes next stands alone."""
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        """Show one message; the same again is shown once."""
        line = printable(f"{progress.name}: {progress.text}")
        if not self._enabled or line == self._last:
            return
        self._last = line
        if not sys.stderr.isatty():
            typer.echo(line, err=True)
            return
        # Imported here since most commands show no progress and should start fast.
        from rich.console import Console  # noqa: PLC0415 - see above
        from rich.status import Status  # noqa: PLC0415 - the same
        from rich.text import Text  # noqa: PLC0415 - the same

        # Text, since a plain string would be searched for markup.
        if self._live is None:
            self._live = Status(Text(line), console=Console(stderr=True))
            self._live.start()
        else:
            self._live.update(Text(line))
