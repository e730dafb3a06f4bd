"""The cgroups that process containers live in: outside the agent's unit, so that its restart spares them.

One cgroup ``netctl/<container>`` in the version 2 hierarchy, wherever that is mounted, and in version 1's
``name=systemd`` hierarchy where there is one, by which systemd knows a unit's processes on older hosts
(cgroups(7)). A host with neither is served without: best effort, and nothing is left either way.

How many processes a container can have is bounded by the pids controller, in whichever of the two versions
the host has it; where the host's own root hands it to nobody, a user's limit bounds all but root.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path
from typing import Final

from nodeagent.shim_process import MOST_PROCESSES

PARENT: Final = "netctl"
_VERSION_ONE = ("name=systemd", "pids")
_RETRY_AFTER = 0.002


def find_hierarchies(mountinfo: str) -> tuple[Path, ...]:
    """Return where the hierarchies that matter are mounted, from the text of /proc/self/mountinfo."""
    found = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and not {*_VERSION_ONE}.isdisjoint(options.split(","))):
            found.append(Path(before.split(" ")[4]))
    return tuple(found)


class Cgroups:
    """The containers' cgroups of one host."""

    def __init__(
        self, hierarchies: tuple[Path, ...] | None = None, most_processes: int = MOST_PROCESSES
    ) -> None:
        """Use `hierarchies`; None: those of this host."""
        if hierarchies is None:
            hierarchies = find_hierarchies(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
        self._hierarchies = hierarchies
        self._most_processes = most_processes

    def add(self, container: str, pid: int) -> None:
        """Make the container's cgroups and put a process into them, as far as the host lets us."""
        for cgroup in self._of(container):
            with contextlib.suppress(OSError):
                # The parent goes with its last child: another engine's removal may take it in between.
                for _ in range(3):
                    with contextlib.suppress(FileNotFoundError):
                        cgroup.parent.mkdir(exist_ok=True)
                        _hand_down_pids(cgroup.parent)
                        cgroup.mkdir(exist_ok=True)
                        break
                if (limit := cgroup / "pids.max").exists():
                    limit.write_text(str(self._most_processes))
                (cgroup / "cgroup.procs").write_text(str(pid))

    def kill(self, container: str) -> bool:
        """Send SIGKILL to every process in the container's cgroups; return whether there was a cgroup."""
        there = False
        for cgroup in self._of(container):
            with contextlib.suppress(OSError):
                there = there or cgroup.exists()
                if (kill := cgroup / "cgroup.kill").exists():
                    kill.write_text("1")
                    continue
                for pid in (cgroup / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
        return there

    def remove(self, container: str, deadline: float) -> None:
        """Take the container's cgroups out, killing what is in them, once their processes are gone.

        Args:
            container: Its id.
            deadline: When to give up (monotonic seconds).

        Raises:
            TimeoutError: Processes are still there.
        """
        for cgroup in self._of(container):
            while cgroup.exists():
                try:
                    cgroup.rmdir()
                except FileNotFoundError:
                    break
                except OSError as error:
                    if time.monotonic() >= deadline:
                        raise TimeoutError(f"{cgroup}: {error.strerror}") from error
                    self.kill(container)
                    _wait_for_change(cgroup)
            # Another container's keeps the parent.
            with contextlib.suppress(OSError):
                cgroup.parent.rmdir()

    def _of(self, container: str) -> list[Path]:
        return [hierarchy / PARENT / container for hierarchy in self._hierarchies]


def _hand_down_pids(parent: Path) -> None:
    """Have the parent's children counted, where version 2 lets us (version 1 always does)."""
    control = parent / "cgroup.subtree_control"
    with contextlib.suppress(OSError):
        if "pids" not in control.read_text().split():
            control.write_text("+pids")


def _wait_for_change(cgroup: Path) -> None:
    """Wait until the cgroup's population changes, or a moment where the kernel does not say (version 1)."""
    try:
        with (cgroup / "cgroup.events").open("rb") as file:
            populated = b"populated 1" in file.read()
            watch = select.poll()
            watch.register(file.fileno(), select.POLLPRI)
            watch.poll(100 if populated else _RETRY_AFTER * 1000)
    except OSError:
        time.sleep(_RETRY_AFTER)
