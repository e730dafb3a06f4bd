"""The private mount namespace of a node with Docker.

Docker looks for its drivers' sockets in one fixed folder, and it and containerd keep more in places that no
option moves. So that several engines fit on one machine, each has a view of its own of these folders, held by
a process that only sleeps; everything of the node that deals with Docker is started inside.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

FOLDERS: Final = (Path("/run/docker"), Path("/run/containerd"), Path("/etc/docker"), Path("/opt/containerd"))
"""Plugins' sockets; containerd's shims' sockets; the engine's key; containerd's own programs."""
MARK: Final = Path("/run/netctl/mount-points")
"""Names those of them that were not there before the first lab, one a line."""
HOLD: Final = ("sleep", "infinity")
_SCRIPT: Final = (
    'for folder; do mount -t tmpfs -o mode=755 netctl-lab "$folder" || exit; done; exec ' + " ".join(HOLD)
)
DRIVER_SOCKET: Final = "plugins/netctl.sock"
"""Where, in the first of them, Docker looks for the driver (https://docs.docker.com/engine/extend/plugin_api/)."""


def prepare() -> None:
    """Make the folders that are missing, and note them: a mount needs something to lie on."""
    for folder in FOLDERS:
        if not folder.exists():
            MARK.parent.mkdir(parents=True, exist_ok=True)
            with MARK.open("a", encoding="ascii") as mark:
                mark.write(f"{folder}\n")
            folder.mkdir(parents=True, exist_ok=True)


def forget() -> None:
    """Remove the folders that `prepare` made, unless another node still has its mounts on them."""
    try:
        made = {Path(line) for line in MARK.read_text(encoding="ascii").splitlines()}
    except FileNotFoundError:
        return
    # Removing a folder takes away, without a question, what other mount namespaces have mounted on it.
    if made & _mounted_somewhere():
        return
    for folder in made & {*FOLDERS}:
        with contextlib.suppress(OSError):
            folder.rmdir()
    MARK.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        MARK.parent.rmdir()


def _mounted_somewhere() -> set[Path]:
    """Return what is a mount point to any process of this machine."""
    found = set()
    for pid in (entry for entry in os.listdir("/proc") if entry.isdigit()):  # noqa: PTH208 - names, not paths
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
            found |= {Path(line.split()[4]) for line in lines}
    return found


def keeper_argv() -> tuple[str, ...]:
    """Return the command of the process that makes the namespace and holds it, to be run in the node's own.

    What the host unmounts goes here too, what is mounted here is seen nowhere else.
    """
    folders = map(str, FOLDERS)
    return ("unshare", "--mount", "--propagation", "slave", "--", "sh", "-c", _SCRIPT, "sh", *folders)


def kept(pid: int) -> bool:
    """Return whether the keeper has its mounts in place."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() == HOLD[0]
    return False


def run_folder(pid: int) -> Path:
    """Return the engine's folder in /run, as seen from outside of the namespace that a process is in."""
    return Path(f"/proc/{pid}/root{FOLDERS[0]}")


def has_driver(pid: int) -> bool:
    """Return whether, as a process in the namespace sees it, somebody serves the driver's socket."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(run_folder(pid) / DRIVER_SOCKET)) == 0


def inside(pid: int, argv: Iterable[str]) -> list[str]:
    """Return the command that runs `argv` in the network and mount namespaces of a process."""
    return ["nsenter", f"--target={pid}", "--net", "--mount", "--", *argv]
