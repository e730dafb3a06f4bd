"""What the privileged child refuses, whoever asks: anything that is not about netctl's own things.

The agent is not trusted: these checks are what keeps a hostile one from the rest of the host. They look at
form and at names; whether an operation makes sense in the present state is the kernel's to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import singledispatchmethod
from typing import Final

from firewall_rules import names
from firewall_rules.policy import (
    ContainerPolicy,
    HostPolicy,
    Pair,
    PortBinding,
    Publication,
    TunnelPolicy,
)
from netctl.model import Workload
from nodeagent import helper_values as values
from nodeagent.kernel import sysctls
from nodeagent.kernel.wireguard import listen_port
from nodeagent.kernel_state import DOCKER, Route, Tunnel
from nodeagent.ops import (
    ClosePassage,
    CreateContainer,
    DeleteBridge,
    DeleteHostRules,
    DeletePort,
    DeleteRoute,
    DeleteTunnel,
    DeleteWireguard,
    ForgetSandbox,
    Op,
    OpenPassage,
    RemoveContainer,
    SetBridge,
    SetContainerRules,
    SetEnd,
    SetEndpoint,
    SetHostRules,
    SetPort,
    SetRoute,
    SetSysctl,
    SetTunnel,
    SetWireguard,
    StartContainer,
    StopContainer,
    UpdateContainerRules,
    UpdateHostRules,
    WatchSandbox,
)
from nodeagent.sandboxes import NAME as SANDBOX

_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,511}")
_VOLUME: Final = re.compile(r"(/[^:]*|[A-Za-z0-9][A-Za-z0-9_.-]*):/[^:]*(:(ro|rw))?")
_RESTART: Final = re.compile(r"no|always|unless-stopped|on-failure(:[0-9]{1,4})?")
_MOST_MEMORY: Final = 2**50
_MOST_PIDS: Final = 2**22
_MOST_CPUS: Final = 4096
_OUTER: Final = ("gre", "vxlan", "wireguard", "direct")


class OperationChecks:
    """The checks of one child.

    Args:
        underlay_device: Returns the link that carries the underlay address, which `direct` routes along;
            empty: not known yet.
    """

    def __init__(self, underlay_device: Callable[[], str]) -> None:
        self._underlay_device = underlay_device

    @singledispatchmethod
    def check(self, operation: Op) -> None:
        """Return if `operation` concerns netctl's own things only, in the agreed form.

        Raises:
            InvalidError: It does not; the message says which value.
        """
        raise TypeError(f"{type(operation).__name__} is no operation")

    @check.register
    def _(self, operation: SetSysctl) -> None:
        if not sysctls.allowed(operation.path, operation.value):
            raise values.refuse("setting", f"{operation.path}={operation.value}")

    @check.register
    def _(self, operation: SetBridge) -> None:
        values.interface(operation.bridge.address)
        values.mtu(operation.bridge.mtu)
        values.match(values.MAC, operation.bridge.mac, "Ethernet address")

    @check.register
    def _(self, operation: SetTunnel) -> None:
        tunnel: Tunnel = operation.tunnel
        values.match(values.TUNNEL, tunnel.device, "tunnel device")
        values.among(("gre", "vxlan"), tunnel.encapsulation, "encapsulation of a device")
        if not tunnel.device.startswith(names.TUNNEL_PREFIX + tunnel.encapsulation[0]):
            raise values.refuse(f"device of {tunnel.encapsulation}", tunnel.device)
        values.match(values.ADDRESS, tunnel.local, "address")
        values.match(values.ADDRESS, tunnel.remote, "address")
        values.mtu(tunnel.mtu)
        values.number(tunnel.vni, values.MAX_VNI - 1, "VNI")
        values.number(tunnel.port, values.MAX_PORT, "port")
        values.match(values.MAC, tunnel.mac or "00:00:00:00:00:00", "Ethernet address")

    @check.register
    def _(self, operation: DeleteTunnel | DeletePort) -> None:
        values.match(values.OUR_LINK, operation.device, "link of ours")

    @check.register
    def _(self, operation: SetWireguard) -> None:
        link = operation.link
        if not 0 < link.generation <= values.MAX_KEY_GENERATION:
            raise values.refuse("generation of a key", link.generation)
        if link.device != names.wireguard_device(link.generation):
            raise values.refuse("link of this generation", link.device)
        if link.port != listen_port(link.generation):
            raise values.refuse("port of this generation", link.port)
        values.mtu(link.mtu)
        for peer in link.peers:
            values.block(peer.block)
            values.match(values.KEY, peer.key, "key")
            values.match(values.ADDRESS, peer.endpoint, "address")
            values.port("udp", peer.port)

    @check.register
    def _(self, operation: DeleteWireguard) -> None:
        values.match(values.WIREGUARD, operation.device, "WireGuard link of ours")
        values.number(operation.generation, values.MAX_KEY_GENERATION, "generation of a key")
        if operation.generation and operation.device != names.wireguard_device(operation.generation):
            raise values.refuse("link of this generation", operation.device)

    @check.register
    def _(self, operation: SetRoute) -> None:
        route: Route = operation.route
        values.block(route.block)
        self._link_to_peers(route.device)
        values.match(values.ADDRESS, route.source, "address")
        values.match(values.ADDRESS, route.via or route.source, "address")
        values.match(values.MAC, route.via_mac or "00:00:00:00:00:00", "Ethernet address")
        values.mtu(route.mtu or 576)

    def _link_to_peers(self, device: str) -> None:
        if values.WIREGUARD.fullmatch(device) is None and (device != self._underlay_device() or not device):
            values.match(values.TUNNEL, device, "tunnel device")

    @check.register
    def _(self, operation: DeleteRoute) -> None:
        values.block(operation.block)

    @check.register
    def _(self, operation: SetPort) -> None:
        values.match(values.CONTAINER, operation.container, "container id")
        if operation.port.device != names.port_device(operation.container):
            raise values.refuse("port of this container", operation.port.device)
        values.mtu(operation.port.mtu)
        values.end_of_container(operation.end)

    @check.register
    def _(self, operation: SetEndpoint) -> None:
        values.match(values.CONTAINER, operation.endpoint, "key of an endpoint")
        if operation.port.device != names.port_device(operation.endpoint):
            raise values.refuse("port of this endpoint", operation.port.device)
        values.mtu(operation.port.mtu)
        values.match(values.MAC, operation.mac, "Ethernet address")

    @check.register
    def _(self, operation: WatchSandbox) -> None:
        values.match(values.CONTAINER, operation.endpoint, "key of an endpoint")
        values.match(SANDBOX, operation.sandbox, "name of a namespace of Docker's")

    @check.register
    def _(self, operation: ForgetSandbox) -> None:
        values.match(values.CONTAINER, operation.endpoint, "key of an endpoint")

    @check.register
    def _(self, operation: SetEnd) -> None:
        values.match(values.CONTAINER, operation.container, "container id")
        values.end_of_container(operation.end)

    @check.register
    def _(self, operation: CreateContainer) -> None:
        values.match(values.CONTAINER, operation.container, "container id")
        values.match(values.NAME, operation.name, "name")
        values.match(values.ADDRESS, operation.address, "address")
        if operation.block:
            values.block(operation.block)
        _workload(operation.workload)

    @check.register
    def _(self, operation: StopContainer | RemoveContainer) -> None:
        values.match(values.CONTAINER, operation.container, "container id")

    @check.register
    def _(self, operation: StartContainer) -> None:
        values.match(values.CONTAINER, operation.container, "container id")
        values.number(operation.generation, values.MAX_GENERATION, "generation")

    @check.register
    def _(self, operation: UpdateContainerRules) -> None:
        values.match(values.CONTAINER, operation.container, "container id")
        for openings in (
            operation.inbound,
            operation.inbound_removed,
            operation.outbound,
            operation.outbound_removed,
        ):
            values.openings(openings)

    @check.register
    def _(self, operation: SetContainerRules) -> None:
        values.match(values.CONTAINER, operation.container, "container id")
        policy: ContainerPolicy = operation.policy
        values.match(values.ADDRESS, policy.address, "address")
        values.match(values.ADDRESS, policy.gateway, "address")
        values.match(values.ADDRESS, policy.resolver or policy.gateway, "address")
        values.networks(policy.closed)
        values.openings(policy.inbound)
        values.openings(policy.outbound)
        for published in policy.published:
            values.port(published.protocol, published.port)

    @check.register
    def _(self, operation: SetHostRules) -> None:
        policy: HostPolicy = operation.policy
        values.among((names.BRIDGE,), policy.bridge, "bridge of ours")
        values.match(values.ADDRESS, policy.address, "address")
        values.block(policy.block)
        values.match(values.CIDR, policy.supernet, "network")
        values.match(values.ADDRESS, policy.resolver or policy.address, "address")
        values.networks(policy.closed)
        for port in (policy.vxlan_port, *policy.wireguard_ports):
            values.port("udp", port)
        self._host_elements(policy.bindings, policy.pairs, policy.tunnels)
        _published(policy.publications, policy.internal)

    @check.register
    def _(self, operation: UpdateHostRules) -> None:
        self._host_elements(operation.bindings, operation.pairs, operation.tunnels)
        self._host_elements(operation.bindings_removed, operation.pairs_removed, operation.tunnels_removed)
        _published(operation.publications, operation.internal)
        _published(operation.publications_removed, operation.internal_removed)

    def _host_elements(
        self, bindings: Iterable[PortBinding], pairs: Iterable[Pair], tunnels: Iterable[TunnelPolicy]
    ) -> None:
        for binding in bindings:
            values.match(values.PORT, binding.device, "port of ours")
            values.match(values.MAC, binding.mac, "Ethernet address")
            values.match(values.ADDRESS, binding.address, "address")
        for pair in pairs:
            values.match(values.ADDRESS, pair.one, "address")
            values.match(values.ADDRESS, pair.other, "address")
            values.time_or_never(pair.expires_at)
        for tunnel in tunnels:
            self._link_to_peers(tunnel.device)
            values.block(tunnel.block)
            values.among(_OUTER, tunnel.encapsulation, "encapsulation")
            values.match(values.ADDRESS, tunnel.outer, "address")
            values.number(tunnel.vni, values.MAX_VNI - 1, "VNI")
            values.match(values.MAC, tunnel.mac or "00:00:00:00:00:00", "Ethernet address")

    @check.register
    def _(self, operation: OpenPassage | ClosePassage) -> None:
        values.among(("nft", "legacy"), operation.variant, "variant of iptables")

    @check.register
    def _(self, _operation: DeleteBridge | DeleteHostRules) -> None:
        """Nothing to check: the operation names nothing."""


def _workload(workload: Workload) -> None:
    """Check the form; what a container may do to its host is the broker's to decide."""
    labels = (part for pair in workload.labels for part in pair)
    for text in (
        *workload.argv,
        *(part for pair in workload.env for part in pair),
        *labels,
        *workload.cap_add,
        workload.workdir,
        workload.user,
        workload.unsafe,
    ):
        values.no_zero(text)
    for volume in workload.volumes:
        values.no_zero(volume)
        values.match(_VOLUME, volume, "volume")
    values.match(_RESTART, workload.restart, "restart policy")
    if workload.image or workload.engine == DOCKER:
        values.match(_IMAGE, workload.image, "name of an image")
    values.number(workload.memory, _MOST_MEMORY, "number of bytes")
    values.number(workload.pids, _MOST_PIDS, "number of processes")
    # Not a number is neither.
    if not 0 <= workload.cpus <= _MOST_CPUS:
        raise values.refuse("number of processors", workload.cpus)


def _published(publications: Iterable[Publication], internal: Iterable[str]) -> None:
    for one in publications:
        values.port(one.protocol, one.host_port)
        values.port(one.protocol, one.port)
        values.match(values.ADDRESS, one.host_address or one.address, "address")
        values.match(values.ADDRESS, one.address, "address")
    for address in internal:
        values.match(values.ADDRESS, address, "address")
