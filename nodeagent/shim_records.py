"""What a shim reads of others: its specification, commands to run, and reports of its own forks. All bounded.

Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

from nodeagent.shim_process import Command

COMMAND_BYTES = 4 * 2**20
"""The most a command with its arguments and environment may take, as JSON."""


def decode(data: bytes, most: int) -> dict[str, Any]:
    """Read a JSON object of at most `most` bytes.

    Raises:
        ValueError: It is longer, or none.
    """
    if len(data) > most:
        raise ValueError(f"more than {most} bytes")
    decoded = json.loads(data)
    if not isinstance(decoded, dict):
        raise ValueError("not an object")  # noqa: TRY004 - bad input of any kind is one error to the caller
    return decoded


def read_json(path: str, most: int) -> dict[str, Any]:
    """Read a file that holds a JSON object of at most `most` bytes.

    Raises:
        OSError: It cannot be read.
        ValueError: It is longer, or none.
    """
    with open(path, "rb") as file:  # noqa: PTH123 - pathlib would cost every shim memory
        return decode(file.read(most + 1), most)


def command_of(spec: dict[str, Any]) -> Command:
    """Read the part of an object that says what to run.

    Raises:
        KeyError: Something is missing.
        ValueError: Something is not of its type; so do TypeError and AttributeError.
    """
    return Command(
        argv=[str(argument) for argument in spec["argv"]],
        env={str(name): str(value) for name, value in spec["env"].items()},
        uid=int(spec["uid"]),
        gid=int(spec["gid"]),
        capabilities=int(spec["capabilities"]),
        workdir=str(spec["workdir"]),
    )


def make_pipe() -> tuple[int, int]:
    """Make a pipe whose reading end does not block; the writing end is a command's, which expects it to."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reader, False)
    return reader, writer


def read_report(descriptor: int) -> tuple[dict[str, Any], bool]:
    """Return what a fork's report (see `shim_process`) says so far, and whether it is over."""
    told: dict[str, Any] = {}
    try:
        while data := os.read(descriptor, 4096):
            for line in data.splitlines():
                with contextlib.suppress(ValueError):
                    told.update(decode(line, 4096))
    except BlockingIOError:
        return told, False
    return told, True
