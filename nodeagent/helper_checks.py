"""What the privileged child refuses, whoever asks: anything that is not about netctl's own things.

The agent is not trusted: these checks are what keeps a hostile one from the rest of the host. They look at
form and at names; whether an operation makes sense in the present state is the kernel's to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import singledispatchmethod
from ipaddress import IPv4Network
from typing import Any, get_args

import msgspec

from firewall_rules import names
from firewall_rules.policy import (
    ContainerPolicy,
    HostPolicy,
    Opening,
    Pair,
    PortBinding,
    TunnelPolicy,
)
from netctl.errors import InvalidError
from netctl.model import Address, Cidr, ContainerId, Mac, Name
from nodeagent.helper_messages import OpenExec
from nodeagent.kernel import sysctls
from nodeagent.kernel_state import ContainerEnd, Route, Tunnel
from nodeagent.ops import (
    CreateContainer,
    DeleteBridge,
    DeleteHostRules,
    DeletePort,
    DeleteRoute,
    DeleteTunnel,
    Op,
    RemoveContainer,
    SetBridge,
    SetContainerRules,
    SetEnd,
    SetHostRules,
    SetPort,
    SetRoute,
    SetSysctl,
    SetTunnel,
    StartContainer,
    StopContainer,
    UpdateContainerRules,
    UpdateHostRules,
)

_MAX_PORT = 65535
_MAX_VNI = 2**24
_MAX_ARGUMENTS = 512
_SHORTEST_BLOCK = 8
_NO_HOSTS = tuple(map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")))
"""RFC 6890; multicast: RFC 5771."""
_MTU = range(576, 65536)
_MAX_GENERATION = 2**62


def _pattern(annotated: Any) -> re.Pattern[str]:
    meta: msgspec.Meta = get_args(annotated)[1]
    return re.compile(meta.pattern or "")


_ADDRESS = _pattern(Address)
_CIDR = _pattern(Cidr)
_MAC = _pattern(Mac)
_CONTAINER = _pattern(ContainerId)
_NAME = _pattern(Name)
_TUNNEL = re.compile(f"{names.TUNNEL_PREFIX}[0-9a-f]{{8}}")
_PORT = re.compile(f"{names.PORT_PREFIX}[0-9a-f]{{12}}")
# What is to be deleted may have been named by an older version of ours; 15 bytes are all a link has.
_OUR_LINK = re.compile(f"({names.TUNNEL_PREFIX}|{names.PORT_PREFIX})[0-9A-Za-z_.-]{{0,12}}")


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
            raise _refuse("setting", f"{operation.path}={operation.value}")

    @check.register
    def _(self, operation: SetBridge) -> None:
        _interface(operation.bridge.address)
        _mtu(operation.bridge.mtu)
        _match(_MAC, operation.bridge.mac, "Ethernet address")

    @check.register
    def _(self, operation: SetTunnel) -> None:
        tunnel: Tunnel = operation.tunnel
        _match(_TUNNEL, tunnel.device, "tunnel device")
        _among(("gre", "vxlan"), tunnel.encapsulation, "encapsulation of a device")
        _match(_ADDRESS, tunnel.local, "address")
        _match(_ADDRESS, tunnel.remote, "address")
        _mtu(tunnel.mtu)
        _number(tunnel.vni, _MAX_VNI - 1, "VNI")
        _number(tunnel.port, _MAX_PORT, "port")
        _match(_MAC, tunnel.mac or "00:00:00:00:00:00", "Ethernet address")

    @check.register
    def _(self, operation: DeleteTunnel | DeletePort) -> None:
        _match(_OUR_LINK, operation.device, "link of ours")

    @check.register
    def _(self, operation: SetRoute) -> None:
        route: Route = operation.route
        _block(route.block)
        self._tunnel_or_underlay(route.device)
        _match(_ADDRESS, route.source, "address")
        _match(_ADDRESS, route.via or route.source, "address")
        _match(_MAC, route.via_mac or "00:00:00:00:00:00", "Ethernet address")
        _mtu(route.mtu or _MTU[0])

    def _tunnel_or_underlay(self, device: str) -> None:
        if device != self._underlay_device() or not device:
            _match(_TUNNEL, device, "tunnel device")

    @check.register
    def _(self, operation: DeleteRoute) -> None:
        _block(operation.block)

    @check.register
    def _(self, operation: SetPort) -> None:
        _match(_CONTAINER, operation.container, "container id")
        if operation.port.device != names.port_device(operation.container):
            raise _refuse("port of this container", operation.port.device)
        _mtu(operation.port.mtu)
        _end(operation.end)

    @check.register
    def _(self, operation: SetEnd) -> None:
        _match(_CONTAINER, operation.container, "container id")
        _end(operation.end)

    @check.register
    def _(self, operation: CreateContainer) -> None:
        _match(_CONTAINER, operation.container, "container id")
        _match(_NAME, operation.name, "name")
        _match(_ADDRESS, operation.address, "address")
        workload = operation.workload
        for text in (*workload.argv, *(part for pair in workload.env for part in pair), workload.workdir):
            _no_zero(text)

    @check.register
    def _(self, operation: StopContainer | RemoveContainer) -> None:
        _match(_CONTAINER, operation.container, "container id")

    @check.register
    def _(self, operation: StartContainer) -> None:
        _match(_CONTAINER, operation.container, "container id")
        _number(operation.generation, _MAX_GENERATION, "generation")

    @check.register
    def _(self, operation: UpdateContainerRules) -> None:
        _match(_CONTAINER, operation.container, "container id")
        for openings in (
            operation.inbound,
            operation.inbound_removed,
            operation.outbound,
            operation.outbound_removed,
        ):
            _openings(openings)

    @check.register
    def _(self, operation: SetContainerRules) -> None:
        _match(_CONTAINER, operation.container, "container id")
        policy: ContainerPolicy = operation.policy
        _match(_ADDRESS, policy.address, "address")
        _match(_ADDRESS, policy.gateway, "address")
        _match(_ADDRESS, policy.resolver or policy.gateway, "address")
        _networks(policy.closed)
        _openings(policy.inbound)
        _openings(policy.outbound)

    @check.register
    def _(self, operation: SetHostRules) -> None:
        policy: HostPolicy = operation.policy
        _among((names.BRIDGE,), policy.bridge, "bridge of ours")
        _match(_ADDRESS, policy.address, "address")
        _block(policy.block)
        _match(_CIDR, policy.supernet, "network")
        _match(_ADDRESS, policy.resolver or policy.address, "address")
        _networks(policy.closed)
        _number(policy.vxlan_port, _MAX_PORT, "port")
        self._host_elements(policy.bindings, policy.pairs, policy.tunnels)

    @check.register
    def _(self, operation: UpdateHostRules) -> None:
        self._host_elements(operation.bindings, operation.pairs, operation.tunnels)
        self._host_elements(operation.bindings_removed, operation.pairs_removed, operation.tunnels_removed)

    def _host_elements(
        self, bindings: Iterable[PortBinding], pairs: Iterable[Pair], tunnels: Iterable[TunnelPolicy]
    ) -> None:
        for binding in bindings:
            _match(_PORT, binding.device, "port of ours")
            _match(_MAC, binding.mac, "Ethernet address")
            _match(_ADDRESS, binding.address, "address")
        for pair in pairs:
            _match(_ADDRESS, pair.one, "address")
            _match(_ADDRESS, pair.other, "address")
            _time(pair.expires_at)
        for tunnel in tunnels:
            self._tunnel_or_underlay(tunnel.device)
            _block(tunnel.block)
            _among(("gre", "vxlan", "wireguard", "direct"), tunnel.encapsulation, "encapsulation")
            _match(_ADDRESS, tunnel.outer, "address")
            _number(tunnel.vni, _MAX_VNI - 1, "VNI")
            _match(_MAC, tunnel.mac or "00:00:00:00:00:00", "Ethernet address")

    @check.register
    def _(self, _operation: DeleteBridge | DeleteHostRules) -> None:
        """Nothing to check: the operation names nothing."""


def check_exec(request: OpenExec) -> None:
    """Return if a command to run in a container is of the agreed form.

    Raises:
        InvalidError: It is not.
    """
    if not 1 <= len(request.argv) <= _MAX_ARGUMENTS or len(request.env) > _MAX_ARGUMENTS:
        raise InvalidError(
            f"a command has 1 to {_MAX_ARGUMENTS} arguments, and as many variables at most",
            "put long commands into a script",
        )
    for text in (*request.argv, *(part for pair in request.env for part in pair), request.user):
        _no_zero(text)
    _number(request.rows, _MAX_PORT, "number of rows")
    _number(request.columns, _MAX_PORT, "number of columns")


def check_address(address: str) -> None:
    """Return if `address` is a canonical IPv4 address.

    Raises:
        InvalidError: It is not.
    """
    _match(_ADDRESS, address, "address")


# --- values -----------------------------------------------------------------------------------------


def _refuse(what: str, value: object) -> InvalidError:
    return InvalidError(f"{str(value)[:80]!a} is no {what}")


def _match(pattern: re.Pattern[str], value: str, what: str) -> None:
    if pattern.fullmatch(value) is None:
        raise _refuse(what, value)


def _among(allowed: tuple[str, ...], value: str, what: str) -> None:
    if value not in allowed:
        raise _refuse(what, value)


def _number(value: int, largest: int, what: str) -> None:
    if not 0 <= value <= largest:
        raise _refuse(what, value)


def _mtu(value: int) -> None:
    if value not in _MTU:
        raise _refuse("MTU", value)


def _time(value: float | None) -> None:
    # Not a number is neither.
    if value is not None and not 0 <= value < _MAX_GENERATION:
        raise _refuse("point in time", value)


def _no_zero(text: str) -> None:
    if "\0" in text:
        raise _refuse("text of a command", text)


def _interface(text: str) -> None:
    _match(_CIDR, text, "address with its length")
    try:
        network = IPv4Network(text, strict=False)
    except ValueError:
        raise _refuse("address with its length", text) from None
    _of_hosts(network, text)


def _block(text: str) -> None:
    _match(_CIDR, text, "network")
    try:
        network = IPv4Network(text)
    except ValueError:
        raise _refuse("network", text) from None
    _of_hosts(network, text)


def _of_hosts(network: IPv4Network, text: str) -> None:
    """Refuse what would take the host's default route, its loopback, or what hosts cannot have."""
    if network.prefixlen < _SHORTEST_BLOCK or any(network.overlaps(other) for other in _NO_HOSTS):
        raise _refuse("block of a node", text)


def _networks(networks: Iterable[str]) -> None:
    for network in networks:
        _match(_CIDR, network, "network")


def _end(end: ContainerEnd) -> None:
    _interface(end.address)
    _match(_ADDRESS, end.gateway, "address")
    _mtu(end.mtu)
    _match(_MAC, end.mac, "Ethernet address")


def _openings(openings: Iterable[Opening]) -> None:
    for opening in openings:
        _match(_ADDRESS, opening.peer, "address")
        _number(opening.port, _MAX_PORT, "port")
        _time(opening.expires_at)
