"""Which labs are up on this machine: one small file each, named after the lab, holding its directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from netctl.lab import topology

RUNTIME = Path("/run/netctl")
DEFAULT_LAB = RUNTIME / "lab"
REGISTRY = RUNTIME / "labs"
NETNS_MARK = RUNTIME / "netns-is-ours"
"""Says that /run/netns was no mount before the first lab; empty: it was not there at all."""
SPEC_FILE = "lab.json"
"""The file in a lab's directory that makes it one."""


def labs_up(registry: Path = REGISTRY) -> tuple[str, ...]:
    """Return the directories of the labs that are up, sorted."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in registry.iterdir():
            with contextlib.suppress(OSError, UnicodeDecodeError):
                directory = entry.read_text(encoding="utf-8").rstrip("\n")
                if _is_lab(directory):
                    found.append(directory)
    return tuple(sorted(found))


def _is_lab(directory: str) -> bool:
    return directory.startswith("/") and os.path.lexists(Path(directory, SPEC_FILE))


@contextlib.contextmanager
def registered(directory: str, registry: Path = REGISTRY) -> Iterator[Path]:
    """Keep other commands off this lab for a while; yield its registry file.

    The file names the lab from here on; who takes the lab down removes the file before it lets go.
    """
    registry.mkdir(parents=True, exist_ok=True)
    file = registry / topology.tag(directory)
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever held the lock before may have removed the file: then ours is locked by nobody else,
            # but no longer the one that the next command opens.
            with contextlib.suppress(FileNotFoundError):
                if os.stat(file).st_ino == os.fstat(descriptor).st_ino:  # noqa: PTH116 - by name on purpose
                    os.pwrite(descriptor, f"{directory}\n".encode(), 0)
                    yield file
                    return
        finally:
            os.close(descriptor)


def forget(file: Path) -> None:
    """Remove a lab's registry file, and the folders above it where that leaves them empty."""
    file.unlink(missing_ok=True)
    _remove_stale(file.parent)
    for folder in (file.parent, file.parent.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _remove_stale(registry: Path) -> None:
    """Remove the files of labs whose directory was removed under them, unless a command is at work there."""
    for entry in registry.iterdir():
        with contextlib.suppress(OSError, UnicodeDecodeError), entry.open("rb") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_lab(opened.read().decode().rstrip("\n")):
                entry.unlink()
