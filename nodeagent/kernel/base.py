"""What the agent asks of a kernel's links, addresses, routes and sysctls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from nodeagent.kernel_state import (
    Bridge,
    ContainerEnd,
    ContainerPort,
    HostChecks,
    HostFacts,
    Route,
    Tunnel,
    WireguardLink,
)
from nodeagent.ops import (
    DeleteBridge,
    DeletePort,
    DeleteRoute,
    DeleteTunnel,
    DeleteWireguard,
    SetBridge,
    SetEnd,
    SetEndpoint,
    SetPort,
    SetRoute,
    SetSysctl,
    SetTunnel,
    SetWireguard,
)

KernelOp = (
    SetSysctl | SetBridge | DeleteBridge | SetTunnel | DeleteTunnel | SetWireguard | DeleteWireguard
    | SetRoute | DeleteRoute | SetPort | SetEnd | SetEndpoint | DeletePort
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
    wireguard: Mapping[str, WireguardLink] = attrs.field(factory=dict)


class Kernel(Protocol):
    """The links of one node's network namespace and of its containers' namespaces.

    Namespaces are file descriptors of the caller's; they are not kept or closed here.
    """

    def facts(self, underlay: str | None) -> HostFacts:
        """Say what the host is. `underlay`: the address, or its link; None: the default route's link's.

        Firewall and engine fields are filled in by the caller. Where the kernel has WireGuard, a key of
        generation 1 is made if there is none of any. `SetWireguard` may make another: ask again after it.

        Raises:
            KernelError: No such address on this host.
        """

    def checks(self, peers: Sequence[str]) -> HostChecks:
        """Look at what of the host may be in our way. `peers`: addresses whose routes are looked up."""

    def observe(self, namespaces: Mapping[str, int]) -> Links:
        """Read everything of ours: the node's, and the ends in `namespaces` (container id -> descriptor)."""

    def apply(self, operations: Sequence[KernelOp], namespaces: Mapping[str, int]) -> list[str]:
        """Do `operations` in order, batching messages; return one text each: empty, or why it failed."""
