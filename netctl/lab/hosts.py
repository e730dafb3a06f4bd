"""The programs of a lab on their hosts: which of them run, and how they are started."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from netctl.errors import UnavailableError
from netctl.lab import confine, mounts, processes, topology
from netctl.lab.processes import ProcessId
from netctl.lab.topology import Topology
from netctl.lab.waiting import Tell, Wait

PROCESSES_FILE = "processes.json"
LOG_LINES = 12


class Hosts:
    """Keeps what was started in the lab's directory, so that the next command knows it again.

    Args:
        planned: The lab.
        tell: Told what is being waited for, and the last words of who did not come up.
    """

    def __init__(self, planned: Topology, tell: Tell) -> None:
        self._plan = planned
        self._tell = tell
        self._file = planned.spec.root / PROCESSES_FILE
        self._recorded = self._load()

    def _load(self) -> dict[str, ProcessId]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, ProcessId])
        except FileNotFoundError:
            return {}

    def process(self, name: str) -> ProcessId | None:
        """Return the process of a program; None: it does not run."""
        process = self._recorded.get(name)
        return process if process is not None and processes.alive(process) else None

    def keeper(self, node: str) -> int | None:
        """Return a process in the node's private mount namespace; None: there is none, or nobody is in it."""
        names = (topology.keeper_name(node), topology.engine_name(node), topology.driver_name(node), node)
        for name in names if self._plan.spec.docker else ():
            process = self.process(name)
            if process is not None:
                return process.pid
        return None

    def start(self, name: str, user: int = 0) -> ProcessId:
        """Start a program, as `user` where it is to have no rights."""
        program = self._plan.programs[name]
        return self._spawned(name, confine.command(program, user, self.keeper(program.host)))

    def _spawned(self, name: str, command: Sequence[str]) -> ProcessId:
        program = self._plan.programs[name]
        self._recorded[name] = processes.spawn(command, Path(program.log), _environment(program.confined))
        replace(self._file, msgspec.json.encode(self._recorded))
        return self._recorded[name]

    def start_keeper(self, node: str) -> ProcessId:
        """Start what holds a node's private mount namespace: a new one, unless others are in one already."""
        name = topology.keeper_name(node)
        program, other = self._plan.programs[name], self.keeper(node)
        command = confine.command(program, 0) if other is None else mounts.inside(other, mounts.HOLD)
        return self._spawned(name, command)

    def run(self, commands: Mapping[str, Sequence[str]], seconds: float, what: str) -> dict[str, int]:
        """Run one program of ours on each of these nodes, all at once; return their exit statuses.

        Args:
            commands: By node.
            seconds: After which those that have not ended are killed.
            what: Is being waited for, to tell the user.
        """
        started = {}
        for name, argv in commands.items():
            program = self._plan.programs[name]
            command = [confine.program_path(argv[0]), *argv[1:]]
            with Path(program.log).open("ab") as log:
                started[name] = subprocess.Popen(
                    confine.within(program, command, self.keeper(program.host)),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(confined=False),
                )  # fmt: skip
        wait = Wait(self._tell, seconds, what)
        while any(each.poll() is None for each in started.values()) and wait.again():
            pass
        for each in started.values():
            if each.poll() is None:
                each.kill()
        return {name: each.wait() for name, each in started.items()}

    def check_runs(self, name: str) -> ProcessId:
        """Return the process of a program.

        Raises:
            UnavailableError: It does not run.
        """
        process = self.process(name)
        if process is None:
            raise self.failed(name, "ended")
        return process

    def failed(self, name: str, what: str) -> UnavailableError:
        """Tell the last words of a program; return the error that says what became of it."""
        program = self._plan.programs[name]
        log = Path(program.log)
        with contextlib.suppress(OSError):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
            for line in lines:
                self._tell(f"{log.name}: {line}")
        return UnavailableError(
            f"{name} {what}",
            f"see {log}; `netctl lab down` clears the lab away",
            () if program.host == "broker" else (program.host,),
        )


def replace(file: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    fresh = file.with_name(file.name + ".new")
    fresh.write_bytes(data)
    fresh.rename(file)


def _environment(confined: bool) -> Mapping[str, str]:  # noqa: FBT001 - always given by name where it is no variable
    """Return the environment of a lab's process: nothing of the user's but what programs need to start."""
    wanted = ("PATH", "LANG", "TZ", "NETCTL_LOG", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE")
    kept = {key: os.environ[key] for key in wanted if key in os.environ}
    return kept if confined else kept | {"HOME": os.environ.get("HOME", "/root")}
