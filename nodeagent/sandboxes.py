"""Docker's network namespaces: which of them are there, and a descriptor of each that is.

Docker binds a container's namespace to a file in its folder (`<exec-root>/netns`; libnetwork's
osl/namespace_linux.go): an empty file comes first, then a mount over it, and when the container ends the
mount goes and the file stays for a while. So it is the mounts that are watched: the kernel tells of every
change of them by ``/proc/self/mountinfo`` (proc(5)), and only a file that is a network namespace counts.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Protocol

import attrs

from netctl.errors import InvalidError, KernelError

NAME: Final = re.compile(r"[0-9a-f]{6,64}")
"""What Docker calls the files of its namespaces."""
_NS_GET_NSTYPE: Final = 0xB703  # ioctl_ns(2); only files of namespaces know it
_CLONE_NEWNET: Final = 0x40000000

Changed = Callable[[str, bool], None]


@attrs.define
class _Watched:
    """One endpoint's namespace.

    Attributes:
        descriptor: Of it; -1: it is not there.
        identity: Device and inode of it, which no other namespace has while we hold it.
    """

    name: str
    descriptor: int = -1
    identity: tuple[int, int] = (0, 0)


class Sandboxes(Protocol):
    """The namespaces of Docker's endpoints that are watched, by endpoint key."""

    def watch(self, endpoint: str, name: str) -> None:
        """Watch the namespace whose file is called `name`; one that is there already is told of at once.

        Raises:
            InvalidError: No namespace of Docker's is called so.
        """

    def forget(self, endpoint: str) -> None:
        """Watch it no longer, and let go of it; one that is not watched is no error."""

    def watches(self, endpoint: str) -> bool:
        """Tell whether `endpoint` is watched."""

    def present(self) -> Mapping[str, bool]:
        """Return, for every endpoint that is watched, whether its namespace is there."""

    def namespace(self, endpoint: str) -> int:
        """Return a descriptor of an endpoint's namespace, kept open here.

        Raises:
            KernelError: It is not there.
        """

    def fileno(self) -> int:
        """Return the descriptor to poll, for POLLPRI (POLLIN means nothing): then call `dispatch`."""

    def waiting(self) -> bool:
        """Tell whether `dispatch` has something to tell now."""

    def look(self) -> None:
        """Look at every one again: those that were there too. Costs a system call each."""

    def dispatch(self, changed: Changed) -> None:
        """Look for those that are awaited, and tell what changed since the last call.

        Args:
            changed: Called with an endpoint and whether its namespace is there. One that was replaced by
                another goes and comes.
        """


class MountedSandboxes:
    """Docker's namespaces where it puts them. Implements `Sandboxes`.

    Needs Docker's mount namespace, or one that its mounts spread to.

    Args:
        folder: Docker's; it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._watched: dict[str, _Watched] = {}
        # In the order in which it happened: one that was replaced goes and comes.
        self._told: dict[tuple[str, bool], None] = {}
        self._mounts = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of every namespace."""
        for endpoint in list(self._watched):
            self.forget(endpoint)
        os.close(self._mounts)

    def watch(self, endpoint: str, name: str) -> None:
        """See `Sandboxes`."""
        if NAME.fullmatch(name) is None:
            raise InvalidError(f"{name[:80]!a} is no name of a namespace of Docker's")
        known = self._watched.get(endpoint)
        if known is not None and known.name == name:
            return
        was_there = known is not None and known.descriptor >= 0
        self.forget(endpoint)
        self._watched[endpoint] = _Watched(name)
        if was_there:
            self._tell(endpoint, present=False)
        self._look_at(endpoint)

    def forget(self, endpoint: str) -> None:
        """See `Sandboxes`."""
        watched = self._watched.pop(endpoint, None)
        for present in (False, True):
            self._told.pop((endpoint, present), None)
        if watched is not None and watched.descriptor >= 0:
            os.close(watched.descriptor)

    def watches(self, endpoint: str) -> bool:
        """See `Sandboxes`."""
        return endpoint in self._watched

    def present(self) -> Mapping[str, bool]:
        """See `Sandboxes`."""
        return {endpoint: watched.descriptor >= 0 for endpoint, watched in self._watched.items()}

    def namespace(self, endpoint: str) -> int:
        """See `Sandboxes`."""
        watched = self._watched.get(endpoint)
        if watched is None or watched.descriptor < 0:
            raise KernelError(f"the namespace of Docker's endpoint {endpoint} is not there")
        return watched.descriptor

    def fileno(self) -> int:
        """See `Sandboxes`."""
        return self._mounts

    def waiting(self) -> bool:
        """See `Sandboxes`."""
        return bool(self._told)

    def look(self) -> None:
        """See `Sandboxes`."""
        for endpoint in self._watched:
            self._look_at(endpoint)

    def dispatch(self, changed: Changed) -> None:
        """See `Sandboxes`."""
        for endpoint, watched in self._watched.items():
            if watched.descriptor < 0:
                self._look_at(endpoint)
        told, self._told = self._told, {}
        for endpoint, present in told:
            changed(endpoint, present)

    def _look_at(self, endpoint: str) -> None:
        watched = self._watched[endpoint]
        if watched.descriptor >= 0 and self._identity(watched.name) == watched.identity:
            return
        if watched.descriptor >= 0:
            os.close(watched.descriptor)
            watched.descriptor = -1
            self._tell(endpoint, present=False)
        descriptor = self._opened(watched.name)
        if descriptor >= 0:
            status = os.fstat(descriptor)
            watched.descriptor, watched.identity = descriptor, (status.st_dev, status.st_ino)
            self._tell(endpoint, present=True)

    def _tell(self, endpoint: str, *, present: bool) -> None:
        self._told.pop((endpoint, present), None)
        self._told[endpoint, present] = None

    def _identity(self, name: str) -> tuple[int, int]:
        try:
            status = (self._folder / name).lstat()
        except OSError:
            return (0, 0)
        return (status.st_dev, status.st_ino)

    def _opened(self, name: str) -> int:
        """Return a descriptor of the network namespace whose file is `name`; -1: there is none."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            folder = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return -1
        try:
            descriptor = os.open(name, flags, dir_fd=folder)
        except OSError:
            return -1
        finally:
            os.close(folder)
        if _is_network_namespace(descriptor):
            return descriptor
        os.close(descriptor)
        return -1


def _is_network_namespace(descriptor: int) -> bool:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return False
    try:
        return fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False
