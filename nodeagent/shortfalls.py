"""What of the desired state is not so on one host, and why."""

from __future__ import annotations

from typing import Final

from netctl.log import get_logger
from netctl.wire.messages import NodeError
from nodeagent.desired_index import DesiredIndex
from nodeagent.endpoints import Endpoints
from nodeagent.failures import NOT_TRIED
from nodeagent.ops import Op, takes_away
from nodeagent.owners import owner_of, subject_of

MAX_ERRORS: Final = 1024
"""Errors in one report (`netctl.wire.messages.Applied`)."""


class Shortfalls:
    """What operations failed, and what happened once.

    Attributes:
        left: Something that an operation was to take away may still be there.
    """

    def __init__(self) -> None:
        self.left = False
        self._failed: dict[str, NodeError] = {}
        self._of_endpoints: dict[str, str] = {}
        self._mishaps: dict[str, NodeError] = {}
        self._log = get_logger()

    def begin(self) -> None:
        """Everything is compared anew: what failed before no longer counts."""
        self._failed.clear()
        self.left = False

    def note(self, error: NodeError) -> None:
        """Remember what is not so; of one subject, the first error says why."""
        self._failed.setdefault(error.subject, error)

    def note_operation(
        self, operation: Op, error: str, desired: DesiredIndex | None, endpoints: Endpoints
    ) -> None:
        """Remember an operation that failed, or, with an empty `error`, that it was done."""
        owner = owner_of(operation)
        if not error:
            self._of_endpoints.pop(owner, None)
            return
        self.left = self.left or takes_away(operation)
        if error.startswith(NOT_TRIED) and self._failed:
            return
        self._log.warning("operation failed", operation=type(operation).__name__, error=error)
        self.note(NodeError(subject_of(operation, desired, endpoints), error[:4096]))
        if owner in endpoints.by_key:
            self._of_endpoints[owner] = error

    def note_mishap(self, container: str, error: NodeError) -> None:
        """Remember what happened to a container once: it is reported once."""
        self._mishaps[container] = error

    def forget_container(self, container: str) -> None:
        """A container that is not wanted is gone."""
        self._mishaps.pop(container, None)

    def forget_endpoint(self, key: str) -> None:
        """A Docker endpoint is another one now."""
        self._of_endpoints.pop(key, None)

    def of_endpoint(self, key: str) -> str | None:
        """Return why a Docker endpoint is not as it should be; None: nothing of it failed."""
        return self._of_endpoints.get(key)

    def told(self) -> None:
        """The errors were reported: what happened once is not reported again."""
        self._mishaps.clear()

    def errors(self) -> tuple[NodeError, ...]:
        """Return what is not so, and why."""
        return (*self._failed.values(), *self._mishaps.values())
