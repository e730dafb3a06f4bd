"""A Docker engine of a lab's node: its files, its command line, and what it may leave behind."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
from pathlib import Path
from typing import Final

import attrs

from netctl.lab import processes

_ASK_SECONDS: Final = 2.0


@attrs.frozen
class EngineFiles:
    """Where one engine keeps everything.

    Attributes:
        root: Its folder.
    """

    root: Path

    @property
    def socket(self) -> Path:
        """Where its API is served."""
        return self.root / "docker.sock"

    @property
    def config(self) -> Path:
        """Settings beyond those of the command line, as dockerd(8) reads them; who wants some writes it."""
        return self.root / "daemon.json"

    @property
    def pidfile(self) -> Path:
        """The engine's process id."""
        return self.root / "docker.pid"


def engine_argv(files: EngineFiles, cgroup: str) -> tuple[str, ...]:
    """Return the command line of an engine.

    What it keeps in /run is where every engine keeps it: in a private mount namespace that folder is its own.

    Args:
        files: Its own; nothing of it lies anywhere else, but for `netctl.lab.mounts.FOLDERS`.
        cgroup: That its containers' cgroups are below, in every hierarchy.
    """
    return (
        "dockerd",
        "--config-file", str(files.config),
        "--data-root", str(files.root / "data"),
        "--pidfile", str(files.pidfile),
        "--host", f"unix://{files.socket}",
        "--cgroup-parent", f"/{cgroup}",
        "--exec-opt", "native.cgroupdriver=cgroupfs",
    )  # fmt: skip


def prepare(files: EngineFiles, run: Path) -> None:
    """Make ready for a start, also after one that was killed.

    Args:
        files: Of the engine.
        run: Its folder in /run, as we reach it.
    """
    files.root.mkdir(mode=0o700, exist_ok=True)
    if not files.config.exists():
        files.config.write_text("{}\n", encoding="ascii")
    # An engine that finds its process id in use by whomever refuses to start; and it waits long for a
    # containerd that is about to end with the last engine, or did and was not reaped.
    files.pidfile.unlink(missing_ok=True)
    containerd = run / "containerd" / "containerd.pid"
    with contextlib.suppress(FileNotFoundError, ValueError):
        process = processes.identify(int(containerd.read_text(encoding="ascii")))
        processes.stop([] if process is None else [process])
        containerd.unlink()


def answers(files: EngineFiles) -> bool:
    """Return whether the engine answers on its socket (Docker Engine API, ``GET /_ping``)."""
    connection = http.client.HTTPConnection("localhost", timeout=_ASK_SECONDS)
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.settimeout(_ASK_SECONDS)
            sock.connect(str(files.socket))
            connection.sock = sock
            connection.request("GET", "/_ping")
            return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False


def _cgroups(name: str) -> list[Path]:
    """Return the cgroups of that name, of every hierarchy that is mounted."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [
        path
        for line in mounts
        if line.partition(" - ")[2].startswith("cgroup") and (path := Path(line.split()[4], name)).is_dir()
    ]


def kill_containers(name: str) -> None:
    """Send SIGKILL to every process below a cgroup."""
    for cgroup in _cgroups(name):
        for folder, _, _ in os.walk(cgroup):
            with contextlib.suppress(OSError):
                for pid in Path(folder, "cgroup.procs").read_text(encoding="ascii").split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)


def remove_cgroups(name: str) -> bool:
    """Take out a cgroup and those below it; return whether that is done: processes go a moment later."""
    for cgroup in _cgroups(name):
        for folder, _, _ in os.walk(cgroup, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
    return not _cgroups(name)
