"""Nodes' requests for an address that is not free yet, kept until it is. No I/O.

Docker frees an address and gives it to another container within milliseconds, as when a service with a
fixed address is made anew; the nodes that knew it as another's need that long to acknowledge. So such a
request waits, and is decided again when the address is free. One that a later report of the same container,
or of the same address, overtakes is given up.
"""

from __future__ import annotations

from typing import Final

import attrs

from netctl.broker.commands import AttachContainer, LeaseAddress
from netctl.broker.leasing import HeldError
from netctl.broker.sessions import Peer

PER_NODE: Final = 1024
"""Requests kept for one node: no more containers than a bridge has ports."""
ATTACH_SECONDS: Final = 5.0
"""How long a report of a container waits for its answer; it is kept after that, and recorded in the end."""
LEASE_SECONDS: Final = 0.5
"""How long a request for an address waits: Docker waits for it, and holds up its user."""


@attrs.define(eq=False)
class Later:
    """One request that waits.

    Attributes:
        peer: The node's session.
        number: Of the request; 0: nobody waits for an answer (any more).
        command: To be decided again.
        deadline: When whoever waits is answered with `error` (monotonic seconds).
        error: Why it could not be decided yet.
    """

    peer: Peer
    number: int
    command: AttachContainer | LeaseAddress
    deadline: float
    error: HeldError

    @property
    def subject(self) -> str:
        """The container's id or the address that it is about."""
        return self.command.address if isinstance(self.command, LeaseAddress) else self.command.container.id

    @property
    def address(self) -> str:
        """The address that is not free yet."""
        return (
            self.command.address if isinstance(self.command, LeaseAddress) else self.command.container.address
        )


class Deferred:
    """All requests that wait."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, Later]] = {}

    def __len__(self) -> int:
        return sum(len(waiting) for waiting in self._of.values())

    def put(self, later: Later) -> bool:
        """Keep a request; return whether there was room for it."""
        waiting = self._of.setdefault(later.peer.name, {})
        if len(waiting) >= PER_NODE and later.subject not in waiting:
            return False
        waiting[later.subject] = later
        return True

    def take(self, node: str, subject: str) -> Later | None:
        """Keep the request about a container or address of a node no longer, and return it."""
        waiting = self._of.get(node, {})
        later = waiting.pop(subject, None)
        if not waiting:
            self._of.pop(node, None)
        return later

    def take_all(self, node: str) -> list[Later]:
        """Keep none of a node's requests any longer, and return them."""
        return list(self._of.pop(node, {}).values())

    def take_for(self, node: str, address: str) -> list[Later]:
        """Take out what waits for an address of a node that is free now."""
        found = [later for later in self._of.get(node, {}).values() if later.address == address]
        for later in found:
            self.take(node, later.subject)
        return found

    def overdue(self, now: float) -> list[Later]:
        """Return the requests whose time for an answer is up (monotonic seconds).

        A container's is kept, since there the container is; one for an address is not.
        """
        late = [
            later
            for waiting in self._of.values()
            for later in waiting.values()
            if later.number and later.deadline <= now
        ]
        for later in late:
            if isinstance(later.command, LeaseAddress):
                self.take(later.peer.name, later.subject)
            else:
                self.put(attrs.evolve(later, number=0))
        return late

    def next_deadline(self) -> float | None:
        """Return when `overdue` next has something to say, in monotonic seconds."""
        deadlines = (
            later.deadline for waiting in self._of.values() for later in waiting.values() if later.number
        )
        return min(deadlines, default=None)
