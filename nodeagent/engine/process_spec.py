"""What a process container's shim is told to run: a workload made exact, or refused. No processes here."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs

from netctl.errors import KernelError
from netctl.model import Workload

CAPABILITIES: Final = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
"""Every capability at the place of its number (linux/capability.h)."""
DEFAULT_CAPABILITIES: Final = frozenset({
    "CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID", "SETFCAP", "SETPCAP",
    "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE",
})  # fmt: skip
"""Docker's default bounding set (moby, oci/caps/defaults.go)."""
ADDABLE_CAPABILITIES: Final = frozenset({"NET_ADMIN", "NET_BROADCAST", "IPC_LOCK", "SYS_NICE", "SYS_PTRACE"})
"""What may be added. The others would undo the container's walls: with SYS_ADMIN a mask can be unmounted,
with DAC_READ_SEARCH a file opened by its handle behind one, with the rest the host itself be changed."""

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MASKED: Final = (
    "/var/lib/netctl", "/etc/netctl",
    "/var/lib/docker", "/var/snap/docker", "/etc/docker", "/var/lib/containerd", "/var/lib/containers",
    "/etc/containers", "/var/lib/kubelet", "/var/lib/rancher", "/etc/kubernetes", "/etc/rancher",
    "/var/lib/lxc", "/var/lib/lxd", "/var/snap/lxd", "/var/lib/incus", "/var/lib/cni",
)  # fmt: skip
"""State, keys and sockets of netctl and of container engines; /run is covered whole, homes by the shim."""
OWN_IDS: Final = 0x7000_0000
"""Where containers' own user ids begin: from here to 2^31 systemd's plan (systemd.io/UIDS-GIDS) leaves them
unused. A container's is this plus its address's low 24 bits, which no two of a node share."""
NOBODY: Final = 65534
MOST_BYTES: Final = 2**21
"""Of arguments and environment together; the kernel takes no more either (execve(2), 8 MiB stack)."""
_USER = re.compile(r"([0-9]{1,10}|[a-z_][a-z0-9_.-]{0,31}\$?)(?::([0-9]{1,10}))?\Z")
_MOST_ID = 2**31 - 1


@attrs.frozen
class ShimCommand:
    """A command as a shim reads it.

    Attributes:
        env: The whole environment.
        capabilities: The bounding set as a bit mask.
        workdir: Absolute directory to start in.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    uid: int
    gid: int
    capabilities: int
    workdir: str


@attrs.frozen
class ShimSpec(ShimCommand):
    """A container as its shim reads it.

    Attributes:
        name: The container's, its host name.
        address: Its address, from which its own user id follows.
        root: Whether it runs as root unless told otherwise.
        masked: Absolute paths it must not see, beside those the shim finds itself.
    """

    name: str
    address: str
    root: bool
    masked: tuple[str, ...]


def spec_of(
    name: str, address: str, workload: Workload, *, root: bool, masked: Iterable[str | Path]
) -> ShimSpec:
    """Make a workload exact.

    Args:
        name: The container's.
        address: Its overlay address.
        workload: What to run.
        root: The node is a lab's: containers run as root unless told otherwise, and as whom they like.
        masked: Paths to hide beside `MASKED`.

    Raises:
        KernelError: The node does not run such a workload.
    """
    uid, gid, home = ids_of(workload.user, address, root=root)
    if not workload.workdir.startswith("/"):
        raise KernelError(f"{workload.workdir[:80]!r} is no absolute directory", "give an absolute --workdir")
    env = {"PATH": PATH, "HOME": home, "HOSTNAME": name, **dict(workload.env)}
    _check_texts((*workload.argv, workload.workdir), env)
    return ShimSpec(
        name=name,
        address=address,
        root=root,
        argv=workload.argv,
        env=env,
        uid=uid,
        gid=gid,
        capabilities=capabilities_of(workload.cap_add),
        workdir=workload.workdir,
        masked=tuple(sorted({*MASKED, *(os.path.abspath(path) for path in masked)})),  # noqa: PTH100 - symbolic links stay
    )


def exec_of(spec: ShimSpec, argv: Sequence[str], env: Iterable[tuple[str, str]], user: str) -> ShimCommand:
    """Make a command exact that is to run beside the container's own.

    Raises:
        KernelError: The node does not run such a command.
    """
    if not argv:
        raise KernelError("there is no command to run", "name one after --")
    whole = {**spec.env, **dict(env)}
    uid, gid = spec.uid, spec.gid
    if user:
        uid, gid, home = ids_of(user, spec.address, root=spec.root)
        whole["HOME"] = dict(env).get("HOME", home)
    _check_texts(argv, whole)
    return ShimCommand(tuple(argv), whole, uid, gid, spec.capabilities, spec.workdir)


def capabilities_of(added: Iterable[str]) -> int:
    """Return the bounding set with Docker's default and `added` (with or without ``CAP_``) as a bit mask.

    Raises:
        KernelError: One of them is unknown or would undo the container's walls.
    """
    names = set(DEFAULT_CAPABILITIES)
    for name in added:
        short = name.upper().removeprefix("CAP_")
        if short not in ADDABLE_CAPABILITIES | DEFAULT_CAPABILITIES:
            raise KernelError(
                f"capability {name[:32]!r} cannot be added to a process container",
                f"those that can: {', '.join(sorted(ADDABLE_CAPABILITIES))}",
            )
        names.add(short)
    return sum(1 << CAPABILITIES.index(name) for name in names)


def ids_of(user: str, address: str, *, root: bool) -> tuple[int, int, str]:
    """Return user id, group id and home directory for ``uid[:gid]``, a name, or nothing.

    Outside a lab a container runs as its own id or as nobody: any other would own files of the host.

    Raises:
        KernelError: There is no such user, or it may not be used on this node.
    """
    own = OWN_IDS + int.from_bytes(bytes(int(octet) for octet in address.split(".")[1:]))
    if not user:
        return (0, 0, "/root") if root else (own, own, "/")
    if (form := _USER.match(user)) is None:
        raise KernelError(f"{user[:32]!r} is no user", "write --user as uid, uid:gid or a name of the node")
    try:
        account = pwd.getpwuid(int(form[1])) if form[1].isdigit() else pwd.getpwnam(form[1])
        uid, gid, home = account.pw_uid, account.pw_gid, account.pw_dir
    except (KeyError, OverflowError):
        if not form[1].isdigit():
            raise KernelError(f"the node has no user {user!r}", "give a number, or a name it has") from None
        uid, gid, home = int(form[1]), int(form[1]), "/"
    if form[2] is not None:
        gid = int(form[2])
    if max(uid, gid) > _MOST_ID:
        raise KernelError(f"{user!r} is out of range", f"ids go up to {_MOST_ID}")
    if not root and not (uid in (own, NOBODY) and gid in (own, NOBODY)):
        raise KernelError(
            f"user {user!r} is refused on this node: its files would be the container's",
            "leave --user out, or use nobody; any user can be had in a lab",
        )
    return uid, gid, home


def _check_texts(texts: Sequence[str], env: Mapping[str, str]) -> None:
    size = sum(len(text.encode()) + 1 for text in texts)
    size += sum(len(name.encode()) + len(value.encode()) + 2 for name, value in env.items())
    if size > MOST_BYTES:
        raise KernelError(f"the command's arguments and environment take {size} bytes", "pass less")
    for text in (*texts, *env.values()):
        if "\0" in text:
            raise KernelError("a zero byte in an argument or a variable", "no program can be given one")
    for name in env:
        if not name or "=" in name or "\0" in name:
            raise KernelError(f"{name[:32]!r} is no name of a variable", "write --env NAME=VALUE")
