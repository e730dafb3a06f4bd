"""The directory of a node: what lies in it, and who may use it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import stat
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import attrs

from netctl.errors import InvalidError, RefusedError, UnavailableError

STOP_SECONDS: Final = 20.0
"""How long an agent that is told to stop may take."""
_FILES: Final = (
    "desired.state",
    "desired.log",
    "desired.state.new",
    "desired.state.corrupt",
    "desired.log.corrupt",
    "found.json",
    "found.json.new",
    "docker-networks.json",
    "docker-networks.json.new",
    "docker-networks.json.corrupt",
    "lock",
    "identity",
)
"""What this program keeps there, the identity last: a deletion that was cut short can be done again."""
_FOLDERS: Final = ("containers", "wireguard")
"""What its helper keeps there: see `nodeagent.engine.process` and `nodeagent.kernel.wireguard_keys`."""


@attrs.frozen
class NodeDirectory:
    """Where a node keeps what it must not forget (`path`), and what a reboot may take (`run`)."""

    path: Path
    run: Path

    @property
    def identity(self) -> Path:
        """The identity file."""
        return self.path / "identity"

    @property
    def docker_networks(self) -> Path:
        """The file of Docker's networks; it is there once Docker was offered here."""
        return self.path / "docker-networks.json"

    @property
    def lock_file(self) -> Path:
        """The file whose lock an agent holds; its process id is in it."""
        return self.path / "lock"

    def make(self) -> None:
        """Make both directories, mode 0700, where they are missing.

        Raises:
            InvalidError: One cannot be made, or others may use it.
        """
        for directory in (self.path, self.run):
            try:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                status = directory.stat()
            except OSError as error:
                raise InvalidError(f"{directory} cannot be made: {error.strerror}", "run as root") from None
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO) or status.st_uid != os.geteuid():
                raise InvalidError(
                    f"others may use {directory}", f"run: chmod 700 {directory}; chown root {directory}"
                )

    def delete(self) -> None:
        """Delete what this program and its helper keep, and the directories if nothing else is in them."""
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.run, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()


class DirectoryLock:
    """Held by the one process that keeps a node.

    Args:
        directory: Made already.

    Raises:
        RefusedError: Another process holds it.
    """

    def __init__(self, directory: NodeDirectory) -> None:
        self._descriptor = os.open(directory.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise RefusedError(
                f"another nodeagent keeps the node in {directory.path}",
                "stop that one first, or give this one another --dir",
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)


def holder(directory: NodeDirectory) -> int:
    """Return the process id of the agent that keeps the node; 0: none does."""
    try:
        descriptor = os.open(directory.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)
    return 0


def stop_holder(directory: NodeDirectory) -> None:
    """End the agent that keeps the node, if there is one, and wait until it is gone.

    Raises:
        UnavailableError: It does not end.
    """
    pid = holder(directory)
    if not pid:
        return
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Asked again, now that the process cannot be another one: a pid may be used twice.
        if holder(directory) != pid:
            return
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], STOP_SECONDS)[0]:
            raise UnavailableError(
                f"the nodeagent with process id {pid} does not end", "end it, then leave again"
            )
    finally:
        os.close(process)
