"""The system calls a shim needs and Python's library lacks. Standard library only, no threads.

Numbers are from the kernel's uapi headers (linux/sched.h, linux/mount.h, linux/prctl.h,
linux/capability.h, linux/falloc.h, linux/fcntl.h); what the calls mean, from their man pages.
"""

from __future__ import annotations

import ctypes
import os
import struct

CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x4_0000
MNT_DETACH = 0x2
ATTR_RDONLY = 0x1
ATTR_NODEV = 0x4
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x2008_0522
_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}
_KEYCTL_JOIN_SESSION_KEYRING = 1
_FALLOC_PUNCH_HOLE_KEEP_SIZE = 0x3

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces of `flags` for new ones (man 2 unshare)."""
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, flags: int) -> None:
    """Enter the namespaces of `flags` of a process (a pidfd) or one namespace (man 2 setns)."""
    _check(_libc.setns(descriptor, flags), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Put a file system, or a part of one, at `target` (man 2 mount)."""
    result = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode()
    )
    _check(result, f"mount {target}")


def detach(target: str) -> None:
    """Unmount lazily, with all that is mounted below, umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def set_mount(target: str, *, attributes: int = 0, clear: int = 0, recursive: bool = False) -> None:
    """Change the attributes of a mount, and with `recursive` of all below, mount_setattr(2)."""
    wanted = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, clear, 0, 0), 32)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(_AT_RECURSIVE if recursive else 0),
        wanted,
        ctypes.c_size_t(32),
    )
    _check(result, f"mount_setattr {target}")


def _prctl(option: int, value: int = 0, what: str = "prctl") -> None:
    arguments = [ctypes.c_ulong(number) for number in (value, 0, 0, 0)]
    _check(_libc.prctl(ctypes.c_int(option), *arguments), what)


def die_with_parent(signal: int) -> None:
    """Have the kernel send us `signal` when our parent ends. Changing ids undoes it."""
    _prctl(_PR_SET_PDEATHSIG, signal)


def forbid_inspection() -> None:
    """Keep others of the same user out of our memory and descriptors, until the next exec."""
    _prctl(_PR_SET_DUMPABLE, 0)


def set_name(name: str) -> None:
    """Set the name that ps(1) shows; 15 bytes count."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _check(_libc.prctl(_PR_SET_NAME, buffer, 0, 0, 0), "prctl")


def forbid_new_privileges() -> None:
    """Let no exec raise privileges any more."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def limit_capabilities(kept: int, last: int) -> None:
    """Take all capabilities but the bit mask `kept` out of the bounding set, and all from the ambient set.

    Args:
        kept: One bit for each capability, as in /proc/PID/status.
        last: The highest number the kernel knows.
    """
    for number in range(last + 1):
        if not kept >> number & 1:
            _prctl(_PR_CAPBSET_DROP, number, "drop a capability")
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, "clear the ambient set")


def set_capabilities(held: int) -> None:
    """Hold exactly the capabilities `held`, inheritable none, capset(2)."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), 8)
    low, high = held & 0xFFFF_FFFF, held >> 32
    data = ctypes.create_string_buffer(struct.pack("=6I", low, low, 0, high, high, 0), 24)
    _check(_libc.capset(header, data), "capset")


def join_new_keyring() -> None:
    """Leave the session keyring we inherited for an empty one, keyctl(2), where the kernel has keys."""
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is not None:
        _libc.syscall(ctypes.c_long(number), ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), None)


def punch_hole(descriptor: int, start: int, length: int) -> None:
    """Give back a part of a file's space; it reads as zeros from then on, fallocate(2)."""
    _check(_libc.fallocate(descriptor, _FALLOC_PUNCH_HOLE_KEEP_SIZE, start, length), "fallocate")
