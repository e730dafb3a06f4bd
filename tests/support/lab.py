"""A lab as tests use it: the real programs, driven by the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs

from tests.support.netns import Namespace, wait_for

PROGRAMS = Path(sys.executable).parent


@attrs.frozen
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class FoundNamespace(Namespace):
    """A namespace that somebody else made, by its descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd


class Lab:
    """One lab in a directory of the test's own.

    Args:
        options: Of `netctl lab up`.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.environment = {"NETCTL_LAB": str(directory)}
        self._options = options
        self._found: list[FoundNamespace] = []

    def up(self) -> None:
        self.netctl("lab", "up", "--dir", str(self.directory), *self._options)

    def down(self) -> None:
        for namespace in self._found:
            namespace.close()
        self.netctl("lab", "down", "--dir", str(self.directory))

    def netctl(
        self, *arguments: str, status: int | None = 0, stdin: bytes | str = "", timeout: float = 90.0
    ) -> Result:
        """Run `netctl` on this lab; fail the test when it does not end with `status` (None: any)."""
        done = subprocess.run(
            [str(PROGRAMS / "netctl"), *arguments],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            check=False,
            timeout=timeout,
            env={**os.environ, **self.environment},
        )
        result = Result(
            done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )
        if status is not None:
            assert result.status == status, (
                f"netctl {' '.join(arguments)}: {result.status}\n{result.out}{result.err}"
            )
        return result

    def run(self, name: str, *options: str, command: tuple[str, ...] = ("sleep", "1000000")) -> None:
        self.netctl("run", name, *options, "--", *command)

    def containers(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.netctl("ps", "--json").json}

    def address(self, name: str) -> str:
        return str(self.containers()[name]["address"])

    def state(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.netctl("lab", "status", "--json").json
        return answer

    def pid(self, process: str) -> int:
        """Return the process id of the broker or of a node's agent."""
        pids = {row["name"]: row["pid"] for row in self.state()["processes"]}
        assert pids[process] is not None
        return int(pids[process])

    def log(self, process: str) -> str:
        return (self.directory / "log" / f"{process}.log").read_text(errors="replace")

    def host(self, name: str) -> Namespace:
        """Return the namespace of a node (or ``broker``, ``underlay``, ``outside``)."""
        names = self.state()["namespaces"]
        ending = {"broker": "-b", "underlay": "-u", "outside": "-o"}.get(name, f"-{name}")
        found = [each for each in names if each.endswith(ending)]
        assert len(found) == 1, names
        return self._keep(os.open(f"/run/netns/{found[0]}", os.O_RDONLY | os.O_CLOEXEC))

    def namespace(self, container: str) -> Namespace:
        """Return the network namespace of a running container, as the container itself names it."""
        wanted = self.netctl("exec", container, "--", "readlink", "/proc/self/ns/net").out.strip()
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "ns" / "net").readlink().name == wanted:
                    return self.namespace_of(int(entry.name))
            except OSError:
                continue
        raise AssertionError(f"no process is in {wanted}")

    def namespace_of(self, pid: int) -> Namespace:
        """Return the network namespace of a process, kept until the lab goes down."""
        return self._keep(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    def _keep(self, fd: int) -> Namespace:
        self._found.append(FoundNamespace(fd))
        return self._found[-1]


@attrs.frozen
class HostListing:
    """Everything of a machine that a lab must leave as it was.

    Attributes:
        network: The host's own links, routes and rules: equal before and after.
        things: What a lab makes, one line each: namespaces, control groups, processes, files. Other labs
            may end meanwhile, so the question is what is there that was not.
    """

    network: str
    things: frozenset[str]


def listing() -> HostListing:
    """List the host's own links, routes, tables, and what a lab might leave behind."""

    def text(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    return HostListing(
        network=text("ip", "-o", "link", "show")
        + text("ip", "route", "show", "table", "all")
        + text("nft", "list", "ruleset"),
        things=frozenset(
            [
                *text("ip", "netns", "list").splitlines(),
                *(str(path) for path in Path("/sys/fs/cgroup").rglob("netctl*")),
                *(str(path) for path in Path("/sys/fs/cgroup").rglob("netctl/*/")),
                *(str(path) for path in Path("/run").rglob("netctl*")),
                *_ours(),
            ]
        ),
    )


def _ours() -> list[str]:
    """Return the command lines of processes that are a lab's."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            line = b" ".join(words).decode(errors="replace")
            if any(word in line for word in ("nodeagent", "netctl broker")):
                found.append(line)
    return found


def wait_for_log(lab: Lab, process: str, text: str, seconds: float = 10.0) -> None:
    """Wait until a process has logged `text`."""
    wait_for(lambda: text in lab.log(process), seconds, f"{text!r} in the log of {process}")
