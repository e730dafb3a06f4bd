"""How a demo tells its story: commands as a user types them, and what came of them, checked."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from netctl.lab import confine, runner
from netctl.lab.topology import Wish


class UnexpectedError(Exception):
    """A step did not come out as said."""


class Teller:
    """What all stories have in common.

    Args:
        console: Where to tell it.
        directory: Of the lab it brings up.
    """

    def __init__(self, console: Console, directory: Path) -> None:
        self._console = console
        self._directory = str(directory)
        self._environment = {**os.environ, "NETCTL_LAB": self._directory}
        self._took: dict[str, str] = {}

    def _title(self, text: str) -> None:
        self._console.print()
        self._console.print(f"== {escape(text)}", style="bold", soft_wrap=True)

    def _check(self, what: str, *, expected: bool, actual: bool) -> None:
        """Show one observation, and stop the story if it is not what was said."""
        word = {True: "passes", False: "blocked"}
        good = expected == actual
        mark = "[green]ok[/]" if good else "[bold red]WRONG[/]"
        self._console.print(f"  {mark}  {escape(what)}: {word[actual]}")
        if not good:
            raise UnexpectedError(f"{what}: {word[actual]}, and should be: {word[expected]}")

    def _netctl(self, *arguments: str, quiet: bool = False) -> str:
        """Run `netctl` as a user would; return what it printed."""
        shown = shlex.join(["netctl", *arguments]).replace(sys.executable, "python3")
        command = [confine.program_path("netctl"), *arguments]
        return self._command(f"$ {shown}", command, self._environment, quiet=quiet)

    def _command(
        self, shown: str, command: Sequence[str], environment: Mapping[str, str], *, quiet: bool = False
    ) -> str:
        """Run a command and show it, prompt and all; return what it printed.

        Raises:
            UnexpectedError: It did not end with 0.
        """
        if not quiet:
            prompt, _, line = shown.partition(" ")
            self._console.print(f"[bold cyan]{prompt}[/] {escape(line)}", soft_wrap=True)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.stdout and not quiet:
            self._console.print(escape(done.stdout.rstrip()), style="dim", highlight=False)
        if done.returncode != 0:
            raise UnexpectedError(f"`{shown}` ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def _start(self, title: str, wish: Wish) -> None:
        """Bring the lab up."""
        self._title(title)
        options = f"--nodes {wish.nodes} --docker " if wish.docker else ""
        self._console.print(f"[bold cyan]$[/] netctl lab up {options}--dir {self._directory}")
        started = time.monotonic()
        status = runner.up(self._directory, wish, lambda line: self._console.print(escape(line), style="dim"))
        self._took["lab up"] = f"{time.monotonic() - started:.1f} s"
        for node in status.nodes:
            self._console.print(
                f"  [green]ok[/]  {node.name}: {node.state}, block {node.block}, underlay {node.underlay}, "
                f"{node.encapsulation}",
                highlight=False,
            )

    def _summary(self) -> None:
        """Say how long things took."""
        self._title("Every step came out as said; how long it took")
        width = max(len(what) for what in self._took)
        for what, duration in self._took.items():
            self._console.print(f"  {what.ljust(width)}  [bold]{duration}[/]", highlight=False)


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Return whether the condition came to hold in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
    return True
