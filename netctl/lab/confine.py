"""How a process of the lab is put into its namespace, and how the broker loses every right on the way."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

import netctl
from netctl.lab import mounts
from netctl.lab.topology import Program

NOBODY = 65534
NETNS = Path("/run/netns")
"""Where `ip netns` keeps its names (ip-netns(8))."""


def program_path(name: str) -> str:
    """Return where a console script of this very installation lies."""
    return str(Path(sys.executable).with_name(name))


def readable_by_all(paths: Iterable[Path]) -> bool:
    """Return whether a user without any right may read these and reach them through their folders."""
    for path in paths:
        for each in (path.absolute(), path.resolve()):
            if not each.stat().st_mode & 0o004:
                return False
            if any(not folder.stat().st_mode & 0o001 for folder in each.parents):
                return False
    return True


def broker_user(directory: Path) -> int:
    """Return whom the broker runs as: nobody, or root (without any capability) where nobody cannot.

    An installation below a private home directory, or a lab in one, cannot be read by anybody else.
    """
    needed = [Path(sys.executable), Path(os.__file__), Path(netctl.__file__), Path(msgspec.__file__)]
    return NOBODY if readable_by_all([*needed, directory]) else 0


def inside(namespace: str, argv: Iterable[str]) -> list[str]:
    """Return the command that runs `argv` in a network namespace, as the very same process.

    `ip netns exec` would mount another /sys on the way, and hide the host's control groups with it.
    """
    return ["nsenter", f"--net={NETNS / namespace}", "--", *argv]


def within(program: Program, argv: Iterable[str], keeper: int | None) -> list[str]:
    """Return the command that runs `argv` where a program of the lab belongs.

    Args:
        program: Which.
        argv: Its own command, or another one.
        keeper: A process in the private mount namespace of the program's node; None: there is none.
    """
    if program.mounts and keeper is not None:
        return mounts.inside(keeper, argv)
    return inside(program.namespace, argv)


def command(program: Program, user: int, keeper: int | None = None) -> list[str]:
    """Return the whole command that starts a program of the lab; see `within`."""
    own = program.argv[0].startswith(("netctl", "nodeagent"))
    argv = [program_path(program.argv[0]) if own else program.argv[0], *program.argv[1:]]
    if program.confined:
        identity = [f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
        argv = [
            "setpriv", *identity, "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--", *argv,
        ]  # fmt: skip
    return within(program, argv, keeper)
