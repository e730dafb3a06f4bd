"""What the agent asks of a kernel's links, addresses, routes and sysctls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from nodeagent.kernel_state import Bridge, ContainerEnd, ContainerPort, HostChecks, HostFacts, Route, Tunnel
from nodeagent.ops import (
    DeleteBridge,
    DeletePort,
    DeleteRoute,
    DeleteTunnel,
    SetBridge,
    SetEnd,
    SetEndpoint,
    SetPort,
    SetRoute,
    SetSysctl,
    SetTunnel,
)

KernelOp = (
    SetSysctl | SetBridge | DeleteBridge | SetTunnel | DeleteTunnel | SetRoute | DeleteRoute
    | SetPort | SetEnd | SetEndpoint | DeletePort
)  # fmt: skip


@attrs.frozen
class Links:
    """What a kernel holds of ours; the fields of `HostState` with the same names.

    Among the ports are Docker endpoints', and far ends of theirs that lost their port.
    """

    bridge: Bridge | None
    sysctls: Mapping[str, str]
    tunnels: Mapping[str, Tunnel]
    routes: Mapping[str, Route]
    ports: Mapping[str, ContainerPort]
    ends: Mapping[str, ContainerEnd]


class Kernel(Protocol):
    """The links of one node's network namespace and of its containers' namespaces.

    Namespaces are file descriptors of the caller's; they are not kept or closed here.
    """

    def facts(self, underlay: str | None) -> HostFacts:
        """Say what the host is. `underlay`: the address to use; None: that of the default route's link.

        Firewall and engine fields are filled in by the caller.

        Raises:
            KernelError: No such address on this host.
        """

    def checks(self, peers: Sequence[str]) -> HostChecks:
        """Look at what of the host may be in our way. `peers`: addresses whose routes are looked up."""

    def observe(self, namespaces: Mapping[str, int]) -> Links:
        """Read everything of ours: the node's, and the ends in `namespaces` (container id -> descriptor)."""

    def apply(self, operations: Sequence[KernelOp], namespaces: Mapping[str, int]) -> list[str]:
        """Do `operations` in order, batching messages; return one text each: empty, or why it failed."""
