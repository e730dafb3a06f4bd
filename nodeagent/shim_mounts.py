"""What a process container sees of the host's files: all, but for what is taken away here.

It runs in the container's first process, in a mount namespace just made, with all privileges still
held. Nothing mounted on the host later appears in it. Standard library only.

What it cannot know: a directory that does not exist yet when the command starts cannot be hidden, and
neither can a copy of a secret. A secret that is reachable a second time through a bind mount is found
(`find_aliases`).
"""

# ruff: noqa: PTH101, PTH102, PTH112, PTH118, PTH123, PTH207, PTH211
from __future__ import annotations

import contextlib
import glob
import os
import pwd
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nodeagent import shim_syscalls as syscalls

KERNEL_FILE_SYSTEMS = frozenset({
    "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs",
    "efivarfs", "fusectl", "hugetlbfs", "mqueue", "nfsd", "nsfs", "proc", "pstore", "rpc_pipefs",
    "securityfs", "selinuxfs", "sysfs", "tracefs",
})  # fmt: skip
"""Mounts of these kinds speak of the host, not of files: wherever they are, they are taken out."""
REPLACED = ("/proc", "/sys", "/dev", "/run")
"""Covered whole by file systems of the container's own."""
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
HIDDEN_IN_HOMES = (
    ".config/netctl",
    ".docker",
    ".config/containers",
    ".local/share/containers",
    ".local/share/docker",
)
HIDDEN_IN_PROC = (
    "acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug", "scsi", "timer_list",
)  # fmt: skip
"""Docker's masked paths (moby, oci/defaults.go)."""
READ_ONLY_IN_PROC = ("bus", "fs", "irq", "sys", "sysrq-trigger")
"""Docker's read-only paths, the same source."""
HIDDEN_IN_SYS = ("firmware", "devices/virtual/powercap")


class Mount(NamedTuple):
    """One line of mountinfo (proc_pid_mountinfo(5)): `root` of file system `device` is seen at `point`."""

    device: str
    root: str
    point: str
    kind: str


def parse_mountinfo(text: str) -> list[Mount]:
    """Read the text of /proc/PID/mountinfo."""
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        mounts.append(Mount(fields[2], _unescape(fields[3]), _unescape(fields[4]), after.split(" ")[0]))
    return mounts


def find_aliases(path: str, mounts: Sequence[Mount]) -> set[str]:
    """Return the other places where the directory or file `path`, or a part of it, is seen.

    Args:
        path: Absolute and without symbolic links.
        mounts: Every mount of the namespace, in the kernel's order.
    """
    home = None
    for mount in mounts:
        if _below(path, mount.point) and (home is None or len(mount.point) >= len(home.point)):
            home = mount
    if home is None:
        return set()
    inside = _join(home.root, _rest(path, home.point))
    aliases = set()
    for mount in mounts:
        if mount.device != home.device:
            continue
        if _below(inside, mount.root):
            aliases.add(_join(mount.point, _rest(inside, mount.root)))
        elif _below(mount.root, inside) and not _below(mount.point, path):
            aliases.add(mount.point)
    return aliases - {path, "/"}


def build(masked: Iterable[str]) -> None:
    """Make this mount namespace the container's.

    Args:
        masked: Absolute paths to hide, beside those of all homes.

    Raises:
        OSError: Something could not be hidden; the command must not run then.
    """
    syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = parse_mountinfo(file.read())
    hidden = _everything_hidden(masked, mounts)
    devices = {name: os.open(f"/dev/{name}", os.O_PATH | os.O_CLOEXEC) for name in DEVICES}
    for mount in reversed(mounts):
        if mount.kind in KERNEL_FILE_SYSTEMS and not _within(mount.point, REPLACED):
            with contextlib.suppress(FileNotFoundError):
                syscalls.detach(mount.point)
    _make_dev(devices)
    quiet = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    for path in hidden:
        _hide(path)
    syscalls.mount("tmpfs", "/run", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=0755,size=64m")
    os.mkdir("/run/lock")
    os.chmod("/run/lock", 0o1777)  # noqa: S103 - as on the host, and the container's own
    syscalls.mount("sysfs", "/sys", "sysfs", quiet | syscalls.MS_RDONLY)
    syscalls.mount("proc", "/proc", "proc", quiet)
    for name in READ_ONLY_IN_PROC:
        if os.path.lexists(path := f"/proc/{name}"):
            syscalls.mount(path, path, flags=syscalls.MS_BIND | syscalls.MS_REC)
            syscalls.set_mount(path, attributes=syscalls.ATTR_RDONLY, recursive=True)
    for path in (*(f"/proc/{name}" for name in HIDDEN_IN_PROC), *(f"/sys/{name}" for name in HIDDEN_IN_SYS)):
        _hide(path)
    # A device node someone makes, or finds, opens nothing; those of /dev are mounts of their own.
    syscalls.set_mount("/", attributes=syscalls.ATTR_NODEV, recursive=True)
    for name in (*DEVICES, "pts"):
        syscalls.set_mount(f"/dev/{name}", clear=syscalls.ATTR_NODEV)


def _everything_hidden(masked: Iterable[str], mounts: Sequence[Mount]) -> list[str]:
    wanted = set(masked)
    for account in pwd.getpwall():
        wanted.update(os.path.join(account.pw_dir, name) for name in HIDDEN_IN_HOMES)
    # Every lab that is up, ours or not, notes its directory here.
    for note in glob.glob("/run/netctl/labs/*"):
        wanted.update(_lab_of(note))
    real = {os.path.realpath(path) for path in wanted if os.path.lexists(path)}
    for path in list(real):
        real |= find_aliases(path, mounts)
    found: list[str] = []
    for path in sorted(real - {"/"}):
        if os.path.lexists(path) and not _within(path, REPLACED) and not _within(path, found):
            found.append(path)
    return found


def _lab_of(note: str) -> list[str]:
    with open(note, encoding="utf-8", errors="surrogateescape") as file:
        directory = file.read(4096).rstrip("\n")
    return [directory] if directory.startswith("/") else []


def _make_dev(devices: dict[str, int]) -> None:
    flags = syscalls.MS_NOSUID | syscalls.MS_NOEXEC
    syscalls.mount("tmpfs", "/dev", "tmpfs", flags, "mode=0755,size=64k")
    for name, descriptor in devices.items():
        os.close(os.open(f"/dev/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        syscalls.mount(f"/proc/self/fd/{descriptor}", f"/dev/{name}", flags=syscalls.MS_BIND)
        os.close(descriptor)
    for name in ("pts", "shm"):
        os.mkdir(f"/dev/{name}")
    syscalls.mount("devpts", "/dev/pts", "devpts", flags, "newinstance,ptmxmode=0666,mode=0620")
    syscalls.mount("tmpfs", "/dev/shm", "tmpfs", flags | syscalls.MS_NODEV, "mode=1777,size=64m")  # noqa: S108 - the container's own
    os.symlink("pts/ptmx", "/dev/ptmx")
    os.symlink("/proc/self/fd", "/dev/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"/dev/{name}")


def _hide(path: str) -> None:
    if os.path.isdir(path):
        flags = syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("tmpfs", path, "tmpfs", flags, "mode=0555,size=4k")
    elif os.path.lexists(path):
        syscalls.mount("/dev/null", path, flags=syscalls.MS_BIND)


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _below(path: str, top: str) -> bool:
    return top in ("/", path) or path.startswith(top + "/")


def _within(path: str, tops: Iterable[str]) -> bool:
    return any(_below(path, top) for top in tops)


def _rest(path: str, top: str) -> str:
    return path if top == "/" else path[len(top) :]


def _join(top: str, rest: str) -> str:
    return (top.rstrip("/") + rest).rstrip("/") or "/"
