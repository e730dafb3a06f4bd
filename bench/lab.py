"""The lab the benchmarks measure in: three nodes, and as many containers as asked for."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs

from netctl.client import Client
from netctl.lab.runner import identity_file
from netctl.model import Workload
from netctl.wire.identity import load
from netctl.wire.messages import ContainerList, ListContainers, RunContainer

SLEEPER = Workload("process", ("sleep", "1000000"))
PROGRAMS = Path(sys.executable).parent


@attrs.frozen
class Lab:
    """A lab that is up.

    Attributes:
        client: For its administrator.
    """

    directory: Path
    client: Client

    def run(self, name: str, node: str) -> None:
        """Run a container that does nothing."""
        self.client.request(RunContainer(name, SLEEPER, node, timeout=60.0))

    def address(self, name: str) -> str:
        """Return a container's address."""
        answer = self.client.request(ListContainers())
        if not isinstance(answer, ContainerList):
            raise TypeError(answer)
        return next(row.address for row in answer.containers if row.name == name)

    def netctl(self, *arguments: str, stdin: bytes = b"") -> str:
        """Run `netctl` on this lab and return what it printed."""
        return netctl(self.directory, *arguments, stdin=stdin)


def netctl(directory: Path, *arguments: str, stdin: bytes = b"") -> str:
    """Run `netctl` on a lab and return what it printed."""
    done = subprocess.run(
        [str(PROGRAMS / "netctl"), *arguments],
        env={**os.environ, "NETCTL_LAB": str(directory)},
        input=stdin,
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout.decode()


@contextlib.contextmanager
def lab(directory: Path, *options: str) -> Iterator[Lab]:
    """Yield a lab in `directory`, with options of `netctl lab up`."""
    netctl(directory, "lab", "up", "--dir", str(directory), *options)
    try:
        with Client(load(identity_file(directory))) as client:
            yield Lab(directory, client)
    finally:
        netctl(directory, "lab", "down", "--dir", str(directory))
