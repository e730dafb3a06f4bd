"""Copying files of a process container: `tar`, run in it as any other command of its user."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from typing import Final

from netctl.errors import KernelError
from nodeagent.engine.base import Direction, Ended, ExecRequest

_NOT_FOUND: Final = 127
_COMPLAINT_BYTES: Final = 1000


def copy_by_tar(
    run: Callable[[ExecRequest, Ended], int], path: str, direction: Direction, descriptor: int, ended: Ended
) -> int:
    """Copy as `nodeagent.engine.base.Engine.copy` says; return what `run` returns.

    Args:
        run: Runs a command in the container.
        path: See `Engine.copy`, as the rest.
        direction: See there.
        descriptor: See there.
        ended: See there.

    Raises:
        KernelError: `path` is not absolute, or the command cannot be run.
    """
    command = tar_command(path, direction)
    complaints = os.memfd_create("complaints", os.MFD_CLOEXEC)
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def tell(exit_code: int, message: str) -> None:
        said = os.pread(complaints, _COMPLAINT_BYTES, 0).decode(errors="replace").strip()
        os.close(complaints)
        if exit_code == _NOT_FOUND:
            said = "there is no `tar` in the container to copy with"
        ended(exit_code, (message or said.partition("\n")[0]) if exit_code else "")

    request = ExecRequest(
        argv=command,
        env=(),
        user="",
        tty=False,
        stdin=descriptor if direction == "in" else nothing,
        stdout=descriptor if direction == "out" else nothing,
        stderr=complaints,
    )
    try:
        return run(request, tell)
    except BaseException:
        os.close(complaints)
        raise
    finally:
        os.close(nothing)


def tar_command(path: str, direction: Direction) -> tuple[str, ...]:
    """Return the command that writes an archive of `path`, or unpacks one in it.

    Raises:
        KernelError: The path is not absolute.
    """
    if not path.startswith("/") or "\0" in path:
        raise KernelError(f"{path[:80]!r} is no absolute path", "write CONTAINER:/PATH")
    if direction == "in":
        return ("tar", "-C", path, "-xf", "-")
    parent, name = posixpath.split(posixpath.normpath(path))
    return ("tar", "-C", parent, "-cf", "-", "--", name or ".")
