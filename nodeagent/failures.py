"""What is not tried in a run of operations because of what failed before it."""

from __future__ import annotations

from typing import Final

import attrs

from nodeagent.ops import (
    CreateContainer,
    Op,
    SetBridge,
    SetContainerRules,
    SetEnd,
    SetEndpoint,
    SetHostRules,
    SetPort,
    SetRoute,
    SetTunnel,
    SetWireguard,
    StartContainer,
    UpdateContainerRules,
)

NOT_TRIED: Final = "not tried: "
"""Begins the text of an operation that an earlier failure made unsafe or senseless."""

_GUARDED_BY_HOST_RULES = (
    SetBridge, SetTunnel, SetWireguard, SetRoute, SetPort, SetEnd, SetEndpoint, StartContainer,
)  # fmt: skip
_BUILDING = (CreateContainer, SetContainerRules, UpdateContainerRules, SetPort, SetEnd, StartContainer)


@attrs.define
class Failures:
    """What failed so far in one run: what comes after it is not tried.

    Attributes:
        containers: Ids of containers of which an operation failed.
        host_rules: Whether the host's tables could not be put in place.
    """

    containers: set[str] = attrs.field(factory=set)
    host_rules: bool = False

    def forbid(self, operation: Op) -> str:
        """Return why `operation` must not be tried now; empty: it may.

        Fail closed: no link without the rules that guard it. What takes away is always tried.
        """
        if self.host_rules and isinstance(operation, _GUARDED_BY_HOST_RULES):
            return f"{NOT_TRIED}the host's firewall is not in place"
        if isinstance(operation, _BUILDING) and operation.container in self.containers:
            return f"{NOT_TRIED}an earlier step of this container failed"
        return ""

    def note(self, operation: Op, error: str) -> None:
        """Remember that `operation` failed, if `error` says so."""
        if not error:
            return
        if isinstance(operation, SetHostRules):
            self.host_rules = True
        elif isinstance(operation, _BUILDING):
            self.containers.add(operation.container)
