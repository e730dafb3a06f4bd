"""What engines say of containers, as the broker hears it."""

from __future__ import annotations

from collections.abc import Mapping

from netctl.model import ContainerStatus, PlacedContainer
from nodeagent.kernel_state import EngineContainer


def status_of(identifier: str, seen: EngineContainer | None) -> ContainerStatus:
    """Return a container's status as the broker hears it."""
    if seen is None:
        return ContainerStatus(identifier, "unknown")
    return ContainerStatus(identifier, seen.state, seen.generation, seen.exit_code, seen.message[:4096])


def statuses_of(
    seen: Mapping[str, EngineContainer], wanted: Mapping[str, PlacedContainer]
) -> tuple[ContainerStatus, ...]:
    """Return the statuses of those containers that should be here, by id."""
    return tuple(
        status_of(identifier, one) for identifier, one in sorted(seen.items()) if identifier in wanted
    )
