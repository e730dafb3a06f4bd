"""What a workload must be like before the broker records it. Pure.

The command line checks the same and sooner; the broker is the one who decides, whoever asks it. What
weakens layer 1 or the host is told by `netctl.unsafe`, which both go by.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Iterable
from typing import Final

import attrs

from netctl.errors import InvalidError, RefusedError
from netctl.model import Workload
from netctl.unsafe import check_reasoned

LEAST_MEMORY: Final = 6 * 2**20
"""Bytes: below this Docker makes no container (moby, daemon/daemon_unix.go, linuxMinMemory)."""
LEAST_CPUS: Final = 0.01
"""Of a processor: below this Docker makes no container (moby, daemon/daemon_unix.go)."""
RESERVED: Final = "netctl."
"""How the labels begin that say what is ours; a container that had one of them could pass for another."""
CAPABILITIES: Final = frozenset({
    "ALL",
    "AUDIT_CONTROL", "AUDIT_READ", "AUDIT_WRITE", "BLOCK_SUSPEND", "BPF", "CHECKPOINT_RESTORE", "CHOWN",
    "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "IPC_LOCK", "IPC_OWNER", "KILL", "LEASE",
    "LINUX_IMMUTABLE", "MAC_ADMIN", "MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "NET_BIND_SERVICE",
    "NET_BROADCAST", "NET_RAW", "PERFMON", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_ADMIN",
    "SYS_BOOT", "SYS_CHROOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT", "SYS_PTRACE", "SYS_RAWIO",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "SYSLOG", "WAKE_ALARM",
})  # fmt: skip
"""What a Docker container can be given: capabilities(7), and all of them."""

_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*\Z")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?\Z")
_VARIABLE = re.compile(r"[^=\0]+\Z")
_VOLUME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+\Z")
_RESTART = re.compile(r"(no|always|unless-stopped|on-failure(:[0-9]{1,6})?)\Z")
_DOCKER_ONLY: Final = {
    "image": "--image",
    "volumes": "--volume",
    "labels": "--label",
    "restart": "--restart",
    "memory": "--memory",
    "cpus": "--cpus",
    "pids": "--pids-limit",
    "loosened": "an option that loosens Docker's defaults",
}
_PARTS: Final = 3


def check(workload: Workload) -> None:
    """Check a workload whose user wants it to be recorded.

    Raises:
        InvalidError: Something of it is of the wrong form, or not for its engine.
        RefusedError: It weakens layer 1 or the host without a reason, or takes a label that is ours.
    """
    if workload.engine == "process":
        _check_process(workload)
        return
    _check_command(workload)
    if _IMAGE.match(workload.image) is None:
        raise InvalidError(
            f"{workload.image[:80]!r} is no image" if workload.image else "a Docker container needs an image",
            "name one with `--image`, as `docker run` takes it",
        )
    for volume in workload.volumes:
        _check_volume(volume)
    for name, value in workload.labels:
        _check_label(name, value)
    _check_limits(workload)
    for capability in workload.cap_add:
        if capability not in CAPABILITIES:
            raise InvalidError(f"{capability!r} is no capability", "see capabilities(7); leave CAP_ out")
    if not workload.unsafe.isprintable():
        raise InvalidError("the reason given with --allow-unsafe is not one line of text", "write it as one")
    check_reasoned(workload)


def _check_process(workload: Workload) -> None:
    if not workload.argv:
        raise InvalidError("a process container needs a command", "write it after `--`")
    plain = {field.name: field.default for field in attrs.fields(Workload)}
    for name, option in _DOCKER_ONLY.items():
        if getattr(workload, name) != plain[name]:
            raise InvalidError(f"{option} is for the docker engine", "leave it out, or use `--engine docker`")


def _check_command(workload: Workload) -> None:
    _check_text("argument", workload.argv)
    _check_text("variable's value", (value for _, value in workload.env))
    for name, _ in workload.env:
        if _VARIABLE.match(name) is None:
            raise InvalidError(f"{name[:80]!r} is no name for a variable", "write it as NAME=VALUE")
    if workload.user and _USER.match(workload.user) is None:
        raise InvalidError(f"{workload.user!r} is no user", "write USER[:GROUP], by name or number")
    if workload.workdir and not workload.workdir.startswith("/"):
        raise InvalidError(f"{workload.workdir[:80]!r} is no absolute directory", "begin it with /")
    _check_text("directory", (workload.workdir,))


def _check_volume(volume: str) -> None:
    remedy = "write it as SRC:DST or SRC:DST:ro, SRC being an absolute path or a volume's name"
    parts = volume.split(":")
    if not 2 <= len(parts) <= _PARTS or (len(parts) == _PARTS and parts[2] not in ("ro", "rw")):  # noqa: PLR2004 - source and destination
        raise InvalidError(f"{volume[:80]!r} is no volume", remedy)
    source, destination = parts[:2]
    if not _is_plain_path(source) and _VOLUME.match(source) is None:
        raise InvalidError(f"{source[:80]!r} is neither an absolute path nor a volume's name", remedy)
    if not _is_plain_path(destination) or posixpath.normpath(destination).strip("/") == "":
        raise InvalidError(f"{destination[:80]!r} is no absolute path below /", remedy)


def _is_plain_path(path: str) -> bool:
    """Return whether a path is absolute and means what it says: what climbs could end anywhere."""
    return path.startswith("/") and path.isprintable() and ".." not in path.split("/")


def _check_label(name: str, value: str) -> None:
    if not name or "=" in name or not name.isprintable():
        raise InvalidError(f"{name[:80]!r} is no name for a label", "write a label as NAME=VALUE")
    if name.lower().startswith(RESERVED):
        raise RefusedError(
            f"label {name[:80]} is netctl's own", "use another name; connections are made by `netctl connect`"
        )
    _check_text("label", (value,))


def _check_limits(workload: Workload) -> None:
    if _RESTART.match(workload.restart) is None:
        raise InvalidError(
            f"{workload.restart!r} is no restart policy", "use no, always, unless-stopped or on-failure[:N]"
        )
    if 0 < workload.memory < LEAST_MEMORY:
        raise InvalidError(f"{workload.memory} bytes of memory are too few", "give it 6m or more")
    if not math.isfinite(workload.cpus) or 0 < workload.cpus < LEAST_CPUS:
        raise InvalidError(f"{workload.cpus} processors are too few", f"give it {LEAST_CPUS} or more")


def _check_text(what: str, texts: Iterable[str]) -> None:
    """Refuse what the kernel would take to end where a NUL is (execve(2))."""
    if any("\0" in text for text in texts):
        raise InvalidError(f"a {what} has a NUL byte in it", "leave it out")
