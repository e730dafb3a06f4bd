"""What of a Docker container's options weakens its firewall or its host, and so needs a reason. Pure.

The command line refuses it before anything is sent, the broker whatever the command line was, and the node
where a volume's symbolic links lead there.
"""

from __future__ import annotations

import posixpath
from typing import Final

from netctl.errors import RefusedError
from netctl.model import Loosening, Workload

SAFE_CAPABILITIES: Final = frozenset({
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "IPC_LOCK", "KILL", "LEASE", "MKNOD",
    "NET_BIND_SERVICE", "NET_BROADCAST", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT", "SYS_NICE",
    "SYS_PTRACE", "SYS_RESOURCE",
})  # fmt: skip
"""Docker's default set (moby, oci/caps/defaults.go) without NET_RAW, and a few that reach no further than
their container. With NET_ADMIN a container can flush its own firewall, with NET_RAW forge packets, with
any other one change the host."""
HOST_OPTIONS: Final[dict[Loosening, str]] = {
    "privileged": "--privileged",
    "host-pid": "--pid host",
    "host-ipc": "--ipc host",
    "host-uts": "--uts host",
}
GUARDED_PATHS: Final = (
    "/run", "/etc", "/root", "/home", "/boot", "/proc", "/sys", "/dev",
    "/var/lib", "/var/spool", "/var/log", "/var/cache", "/var/backups", "/tmp/.X11-unix",  # noqa: S108 - not ours
)  # fmt: skip
"""Sockets and state of the engines, of netctl and of the system, its settings and jobs, its users' files (a
container may run as any of them, root too), and the kernel's own file systems: whoever has one of them,
something below, or a directory above, has the host or what its users keep there (FHS 3.0)."""
PROGRAM_PATHS: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt", "/snap")
"""What the host runs: guarded where a container could write there."""
SOCKET_NAMES: Final = frozenset({"docker.sock", "containerd.sock", "podman.sock", "crio.sock"})
"""Wherever they are: an engine may be told to listen anywhere."""


def unsafe_options(workload: Workload) -> tuple[str, ...]:
    """Return, as they are typed, the options of a Docker container that need ``--allow-unsafe``.

    What a volume's source is on its node, behind symbolic links, only the node can tell.
    """
    if workload.engine != "docker":
        return ()
    capabilities = (f"--cap-add {each}" for each in workload.cap_add if each not in SAFE_CAPABILITIES)
    spaces = (option for loosening, option in HOST_OPTIONS.items() if loosening in workload.loosened)
    volumes = (f"--volume {each}" for each in workload.volumes if _is_unsafe(each))
    return (*capabilities, *spaces, *volumes)


def check_reasoned(workload: Workload) -> None:
    """Let a workload pass that is safe, or whose user said why it is not.

    Raises:
        RefusedError: It weakens layer 1 or its host, and nobody said why.
    """
    options = unsafe_options(workload)
    if options and not workload.unsafe.strip():
        raise RefusedError(
            f"{', '.join(options)} weakens the container's firewall or its host",
            "leave it out, or say why it must be with --allow-unsafe REASON, which is recorded",
        )


def _is_unsafe(volume: str) -> bool:
    source, _, rest = volume.partition(":")
    return is_guarded(source, writable=not rest.endswith(":ro"))


def is_guarded(source: str, *, writable: bool) -> bool:
    """Say whether a volume's source is, contains or lies in one of the paths above; a name is no path."""
    if not source.startswith("/"):
        return False
    # POSIX lets two leading slashes mean something of their own; Linux does not.
    path = "/" + posixpath.normpath(source).lstrip("/")
    # /var/run is a link to /run on every distribution with systemd (FHS 3.0, 5.13).
    if path == "/var/run" or path.startswith("/var/run/"):
        path = path.removeprefix("/var")
    if posixpath.basename(path) in SOCKET_NAMES:
        return True
    if path in ("/", "/var"):
        return True
    guarded = (*GUARDED_PATHS, *PROGRAM_PATHS) if writable else GUARDED_PATHS
    return any(each == path or _lies_in(each, path) or _lies_in(path, each) for each in guarded)


def _lies_in(path: str, folder: str) -> bool:
    return path.startswith(folder + "/")
