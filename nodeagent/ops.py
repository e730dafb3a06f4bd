"""The operations: typed changes that take the observed state nearer to the desired one.

Each is idempotent: done twice it ends in the same state, so a run that was cut short is simply repeated.
`ORDER` is the one table that says which kind comes before which; nobody orders them by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from firewall_rules.backends.base import Variant
from firewall_rules.policy import (
    ContainerPolicy,
    HostPolicy,
    Opening,
    Pair,
    PortBinding,
    Publication,
    TunnelPolicy,
)
from netctl.model import Workload
from nodeagent.kernel_state import Bridge, ContainerEnd, ContainerPort, Route, Tunnel, WireguardLink


@attrs.frozen
class SetSysctl:
    """Write one value below /proc/sys of the node's network namespace."""

    path: str
    value: str


@attrs.frozen
class SetBridge:
    """Make the bridge, or bring it to this form. It never loses its ports by that."""

    bridge: Bridge


@attrs.frozen
class DeleteBridge:
    """Take the bridge out."""


@attrs.frozen
class SetTunnel:
    """Make a tunnel device, replacing one that cannot be changed into this form."""

    tunnel: Tunnel


@attrs.frozen
class DeleteTunnel:
    """Take a tunnel device out; its route goes with it."""

    device: str


@attrs.frozen
class SetWireguard:
    """Make a WireGuard link, or bring it to this form; the key of its generation is made if there is none.

    Peers that stay as they are keep their sessions.
    """

    link: WireguardLink


@attrs.frozen
class DeleteWireguard:
    """Take a WireGuard link out, and destroy its key."""

    device: str
    generation: int


@attrs.frozen
class SetRoute:
    """Make or replace the route to a block, and its static neighbour."""

    route: Route


@attrs.frozen
class DeleteRoute:
    """Take the route to a block out, and its static neighbour."""

    block: str


@attrs.frozen
class SetHostRules:
    """Put both host tables in place, whole, in one transaction."""

    policy: HostPolicy


@attrs.frozen
class UpdateHostRules:
    """Change elements of the host tables, in one transaction. What is removed goes first."""

    bindings: tuple[PortBinding, ...] = ()
    bindings_removed: tuple[PortBinding, ...] = ()
    pairs: tuple[Pair, ...] = ()
    pairs_removed: tuple[Pair, ...] = ()
    tunnels: tuple[TunnelPolicy, ...] = ()
    tunnels_removed: tuple[TunnelPolicy, ...] = ()
    publications: tuple[Publication, ...] = ()
    publications_removed: tuple[Publication, ...] = ()
    internal: tuple[str, ...] = ()
    internal_removed: tuple[str, ...] = ()


@attrs.frozen
class DeleteHostRules:
    """Take both host tables out."""


@attrs.frozen
class OpenPassage:
    """Put our one rule into Docker's chain DOCKER-USER, by one variant of iptables."""

    variant: Variant


@attrs.frozen
class ClosePassage:
    """Take our rule out of Docker's chain DOCKER-USER."""

    variant: Variant


@attrs.frozen
class WatchSandbox:
    """Know a Docker endpoint's namespace by its name, and tell when it comes and goes; see `SandboxChanged`.

    Attributes:
        endpoint: The endpoint's key.
        sandbox: The file's name in Docker's folder of namespaces.
    """

    endpoint: str
    sandbox: str


@attrs.frozen
class ForgetSandbox:
    """Watch a Docker endpoint's namespace no longer, and let go of it."""

    endpoint: str


@attrs.frozen
class SetEndpoint:
    """Make a Docker endpoint's veth pair, or mend its port.

    The near end is a guarded port of the bridge, the far end (`names.endpoint_link`, in link group
    `names.OVERLAY_GROUP`, down) waits in the node's namespace for Docker to move it.

    Attributes:
        endpoint: The endpoint's key.
        mac: Of the far end.
    """

    endpoint: str
    port: ContainerPort
    mac: str


@attrs.frozen
class CreateContainer:
    """Have the engine make a container; its command does not run yet.

    Attributes:
        block: The node's, which Docker's network is made with.
    """

    container: str
    name: str
    address: str
    workload: Workload
    block: str = ""


@attrs.frozen
class SetContainerRules:
    """Put layer 1 in place in a container's namespace, whole, in one transaction.

    Attributes:
        container: The container's id, or a Docker endpoint's key; so in `UpdateContainerRules`.
    """

    container: str
    policy: ContainerPolicy


@attrs.frozen
class UpdateContainerRules:
    """Change elements of layer 1, in one transaction. What is removed goes first."""

    container: str
    inbound: tuple[Opening, ...] = ()
    inbound_removed: tuple[Opening, ...] = ()
    outbound: tuple[Opening, ...] = ()
    outbound_removed: tuple[Opening, ...] = ()


@attrs.frozen
class SetPort:
    """Make a container's veth pair, its far end in the container's namespace (down), or mend the near end."""

    container: str
    port: ContainerPort
    end: ContainerEnd


@attrs.frozen
class SetEnd:
    """Address a container's end, bring it and loopback up, and set its default route."""

    container: str
    end: ContainerEnd


@attrs.frozen
class DeletePort:
    """Take a container's veth pair out."""

    device: str


@attrs.frozen
class StartContainer:
    """Run a container's command."""

    container: str
    generation: int


@attrs.frozen
class StopContainer:
    """End a container's command: SIGTERM, SIGKILL after eight seconds. Does not wait; an event follows."""

    container: str


@attrs.frozen
class RemoveContainer:
    """Kill what is left of a container, and forget it: namespaces, output, status."""

    container: str


Op = (
    SetSysctl | SetBridge | DeleteBridge | SetTunnel | DeleteTunnel | SetWireguard | DeleteWireguard
    | SetRoute | DeleteRoute | SetHostRules | UpdateHostRules | DeleteHostRules | OpenPassage | ClosePassage
    | WatchSandbox | ForgetSandbox | SetEndpoint
    | CreateContainer | SetContainerRules | UpdateContainerRules | SetPort | SetEnd | DeletePort
    | StartContainer | StopContainer | RemoveContainer
)  # fmt: skip

ORDER: Mapping[type, int] = {
    kind: place
    for place, kind in enumerate(
        (
            # What closes goes first: a rule taken back must not wait for anything.
            StopContainer,
            RemoveContainer,
            DeletePort,
            DeleteRoute,
            DeleteTunnel,
            DeleteWireguard,
            # The host's rules stand before any link that they guard.
            SetHostRules,
            UpdateHostRules,
            # A namespace is let go of once nothing of ours leads into it.
            ForgetSandbox,
            SetBridge,
            SetTunnel,
            SetWireguard,
            # A device's own sysctls exist once it does; nothing is routed along it before they are set.
            SetSysctl,
            SetRoute,
            OpenPassage,
            # A Docker endpoint: its namespace is known before anything is put into it.
            WatchSandbox,
            SetEndpoint,
            # A container: namespaces, then layer 1, then its link, then its command.
            CreateContainer,
            SetContainerRules,
            UpdateContainerRules,
            SetPort,
            SetEnd,
            StartContainer,
            # Last of all, once nothing is left that they guard.
            DeleteBridge,
            ClosePassage,
            DeleteHostRules,
        )
    )
}
"""The place of every kind of operation in one run."""


def ordered(operations: Iterable[Op]) -> tuple[Op, ...]:
    """Return `operations` in the order of `ORDER`; within one kind their order is kept."""
    return tuple(sorted(operations, key=lambda op: ORDER[type(op)]))


OPS: Mapping[str, type] = {kind.__name__: kind for kind in ORDER}
"""Every operation by its name, for the privileged child's typed messages."""


_TAKING = (
    DeleteBridge, DeleteTunnel, DeleteWireguard, DeleteRoute, DeleteHostRules, DeletePort, RemoveContainer,
    ClosePassage,
)  # fmt: skip
_REPLACING = (SetHostRules, SetContainerRules)


def takes_away(operation: Op) -> bool:
    """Tell whether something may stay in the kernel that should not, if `operation` is not done."""
    if isinstance(operation, UpdateHostRules):
        return bool(
            operation.bindings_removed
            or operation.pairs_removed
            or operation.tunnels_removed
            or operation.publications_removed
        )
    if isinstance(operation, UpdateContainerRules):
        return bool(operation.inbound_removed or operation.outbound_removed)
    return isinstance(operation, _TAKING + _REPLACING)
