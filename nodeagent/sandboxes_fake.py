"""Docker's namespaces in memory, with switches, for tests."""

from __future__ import annotations

import os
from collections.abc import Mapping

import attrs

from netctl.errors import InvalidError, KernelError
from nodeagent.sandboxes import NAME, Changed


@attrs.define
class FakeFolder:
    """What is in Docker's folder: it outlives whoever watches it, as a host outlives a process.

    Attributes:
        namespaces: By file name, a number that stands for the namespace; it is no open descriptor.
    """

    namespaces: dict[str, int] = attrs.field(factory=dict)
    _made: int = 2_000_000

    def make(self, name: str) -> None:
        """Let Docker make a namespace, in the place of one that has the name."""
        self._made += 1
        self.namespaces[name] = self._made

    def end(self, name: str) -> None:
        """Let Docker take a namespace away."""
        del self.namespaces[name]


@attrs.define
class FakeSandboxes:
    """A `nodeagent.sandboxes.Sandboxes` in memory.

    Attributes:
        folder: What is there.
    """

    folder: FakeFolder = attrs.field(factory=FakeFolder)
    _watched: dict[str, tuple[str, int]] = attrs.field(factory=dict)
    _told: dict[tuple[str, bool], None] = attrs.field(factory=dict)
    _wake: int = -1

    def watch(self, endpoint: str, name: str) -> None:
        """See `Sandboxes`."""
        if NAME.fullmatch(name) is None:
            raise InvalidError(f"{name!a} is no name of a namespace of Docker's")
        known, namespace = self._watched.get(endpoint, ("", 0))
        if known == name:
            return
        self.forget(endpoint)
        self._watched[endpoint] = (name, 0)
        if namespace:
            self._tell(endpoint, present=False)
        self.look()

    def forget(self, endpoint: str) -> None:
        """See `Sandboxes`."""
        self._watched.pop(endpoint, None)
        for present in (False, True):
            self._told.pop((endpoint, present), None)

    def watches(self, endpoint: str) -> bool:
        """See `Sandboxes`."""
        return endpoint in self._watched

    def present(self) -> Mapping[str, bool]:
        """See `Sandboxes`."""
        return {endpoint: namespace != 0 for endpoint, (_, namespace) in self._watched.items()}

    def namespace(self, endpoint: str) -> int:
        """See `Sandboxes`."""
        namespace = self._watched.get(endpoint, ("", 0))[1]
        if namespace == 0:
            raise KernelError(f"the namespace of Docker's endpoint {endpoint} is not there")
        return namespace

    def fileno(self) -> int:
        """See `Sandboxes`. Never readable: tests call `dispatch`."""
        if self._wake < 0:
            self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        return self._wake

    def waiting(self) -> bool:
        """See `Sandboxes`."""
        return bool(self._told)

    def look(self) -> None:
        """See `Sandboxes`."""
        for endpoint, (name, namespace) in list(self._watched.items()):
            found = self.folder.namespaces.get(name, 0)
            if found != namespace:
                self._watched[endpoint] = (name, found)
                if namespace:
                    self._tell(endpoint, present=False)
                if found:
                    self._tell(endpoint, present=True)

    def dispatch(self, changed: Changed) -> None:
        """See `Sandboxes`."""
        self.look()
        told, self._told = self._told, {}
        for endpoint, present in told:
            changed(endpoint, present)

    def _tell(self, endpoint: str, *, present: bool) -> None:
        self._told.pop((endpoint, present), None)
        self._told[endpoint, present] = None

    def close(self) -> None:
        """Close the descriptor."""
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1
