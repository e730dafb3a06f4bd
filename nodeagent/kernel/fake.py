"""A kernel in memory, with switches for faults and crashes, for tests and for trying things out."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import singledispatchmethod

import attrs

from firewall_rules import names
from netctl.model import WireguardEnd
from nodeagent.kernel.base import KernelOp, Links
from nodeagent.kernel.wireguard import listen_port
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


class CrashError(BaseException):
    """The process is killed here. No `except Exception` of the code under test may survive it."""


FACTS = HostFacts(
    underlay="192.0.2.1",
    underlay_device="eth0",
    underlay_mac="02:00:00:00:00:01",
    underlay_mtu=1500,
    encapsulations=("gre", "vxlan", "direct"),
    firewall="none",
    host_firewall="",
    engines=(),
    networks=("192.0.2.0/24",),
)
"""What a `FakeKernel` says of its host, unless told otherwise."""


CHECKS = HostChecks(
    clock=1.8e9,
    forwarding=True,
    reverse_path={"all": 0, "eth0": 2},
    bridge_calls=None,
    forward_policies={},
    docker_user={},
    features={
        "gre": True, "vxlan": True, "wireguard": True, "bridge": True, "veth": True, "conntrack": True,
        "nftables inet": True, "nftables bridge": True, "nftables nat": True,
    },
    networks=FACTS.networks,
)  # fmt: skip
"""What a `FakeKernel` shows of its host, with nothing in our way, unless told otherwise."""


class _RefusedError(Exception):
    """The fake kernel refuses one operation; its text becomes the operation's error."""


@attrs.define
class FakeKernel:
    """What a kernel would hold, and the switches.

    It keeps the dependencies a real kernel enforces: a route needs its device and its source address,
    a port needs the bridge and its container's namespace, a sysctl of a device needs the device. A
    container whose namespace is no longer among those given to `observe` takes its veth pair along.

    Attributes:
        host_facts: Answer of `facts`.
        host_checks: Answer of `checks`; peers not among its routes are reached by the underlay's link.
        refuse: Texts by operation kind: each operation of the kind fails with it, and changes nothing.
        refuse_at: Texts by operation number (from 0, counted over this object's life).
        crash_before: Called with each operation's number before it is done; raises `CrashError` to crash.
        crash_after: The same, after it was done.
        writes: Operations tried so far: the messages an agent has sent to the kernel.
        observations: Calls of `observe` so far.
        containers: Container id by device of its port.
        wireguard: By device.
        keys: Public halves of the node's WireGuard keys, by generation. They are made where `host_facts` has
            wireguard among its encapsulations.
        far_ends: By device of an endpoint's port: the Ethernet address of its far end, and where that is, a
            name of the node's own links or, once a test let Docker move it, empty.
    """

    host_facts: HostFacts = FACTS
    host_checks: HostChecks = CHECKS
    bridge: Bridge | None = None
    sysctls: dict[str, str] = attrs.field(factory=dict)
    tunnels: dict[str, Tunnel] = attrs.field(factory=dict)
    routes: dict[str, Route] = attrs.field(factory=dict)
    ports: dict[str, ContainerPort] = attrs.field(factory=dict)
    ends: dict[str, ContainerEnd] = attrs.field(factory=dict)
    containers: dict[str, str] = attrs.field(factory=dict)
    far_ends: dict[str, tuple[str, str]] = attrs.field(factory=dict)
    wireguard: dict[str, WireguardLink] = attrs.field(factory=dict)
    keys: dict[int, str] = attrs.field(factory=dict)
    refuse: dict[type, str] = attrs.field(factory=dict)
    refuse_at: dict[int, str] = attrs.field(factory=dict)
    crash_before: Callable[[int], None] = attrs.field(default=lambda _number: None)
    crash_after: Callable[[int], None] = attrs.field(default=lambda _number: None)
    writes: int = 0
    observations: int = 0

    def facts(self, underlay: str | None) -> HostFacts:
        """See `Kernel`."""
        facts = attrs.evolve(self.host_facts, underlay=underlay or self.host_facts.underlay)
        if "wireguard" not in facts.encapsulations:
            return facts
        if not self.keys:
            self._make_key(1)
        ends = (WireguardEnd(number, key, listen_port(number)) for number, key in sorted(self.keys.items()))
        return attrs.evolve(facts, wireguard=tuple(ends))

    def _make_key(self, generation: int) -> None:
        if generation not in self.keys:
            self.keys[generation] = secrets.token_hex(32)

    def checks(self, peers: Sequence[str]) -> HostChecks:
        """See `Kernel`."""
        routes = {peer: self.host_checks.routes.get(peer, self.host_facts.underlay_device) for peer in peers}
        return attrs.evolve(self.host_checks, routes=routes)

    def observe(self, namespaces: Mapping[str, int]) -> Links:
        """See `Kernel`."""
        self.observations += 1
        for device, container in list(self.containers.items()):
            if container not in namespaces:
                self._delete_pair(device)
        return Links(
            bridge=self.bridge,
            sysctls=dict(self.sysctls),
            tunnels=dict(self.tunnels),
            routes=dict(self.routes),
            ports=dict(self.ports),
            ends=dict(self.ends),
            wireguard=dict(self.wireguard),
        )

    def apply(self, operations: Sequence[KernelOp], namespaces: Mapping[str, int]) -> list[str]:
        """See `Kernel`."""
        errors: list[str] = []
        for operation in operations:
            number = self.writes
            self.crash_before(number)
            self.writes += 1
            text = self.refuse_at.get(number) or self.refuse.get(type(operation), "")
            if not text:
                try:
                    self._do(operation, namespaces)
                except _RefusedError as refusal:
                    text = str(refusal)
            errors.append(text)
            self.crash_after(number)
        return errors

    def docker_moves(self, key: str) -> None:
        """Let Docker move an endpoint's far end into a container.

        Raises:
            KeyError: It is not there to be moved.
        """
        device, name = names.port_device(key), names.endpoint_link(key)
        mac, found = self.far_ends[device]
        if found != name:
            raise KeyError(name)
        self.far_ends[device] = (mac, "")

    @singledispatchmethod
    def _do(self, operation: KernelOp, _namespaces: Mapping[str, int]) -> None:
        raise TypeError(f"{type(operation).__name__} is no operation of a kernel")

    @_do.register
    def _(self, operation: SetSysctl, _namespaces: Mapping[str, int]) -> None:
        parts = operation.path.split("/")
        own = {*self.tunnels, *self.wireguard, *((names.BRIDGE,) if self.bridge else ())}
        if "conf" in parts and parts[-2] not in {*own, "all", "default", self.host_facts.underlay_device}:
            raise _RefusedError(f"no such sysctl: {operation.path}")
        self.sysctls[operation.path] = operation.value

    @_do.register
    def _(self, operation: SetBridge, _namespaces: Mapping[str, int]) -> None:
        if self.bridge is not None and self.bridge.address != operation.bridge.address:
            self._drop_routes_from(self.bridge)
        self.bridge = operation.bridge

    @_do.register
    def _(self, _operation: DeleteBridge, _namespaces: Mapping[str, int]) -> None:
        if self.bridge is None:
            return
        self._drop_routes_from(self.bridge)
        self._drop_sysctls_of(names.BRIDGE)
        self.bridge = None
        self.ports = {d: attrs.evolve(p, on_bridge=False, guarded=False) for d, p in self.ports.items()}

    @_do.register
    def _(self, operation: SetTunnel, _namespaces: Mapping[str, int]) -> None:
        old = self.tunnels.get(operation.tunnel.device)
        if old is not None and attrs.evolve(old, mtu=0, up=True) != attrs.evolve(
            operation.tunnel, mtu=0, up=True
        ):
            self._drop_tunnel(old.device)
        self.tunnels[operation.tunnel.device] = operation.tunnel

    @_do.register
    def _(self, operation: DeleteTunnel, _namespaces: Mapping[str, int]) -> None:
        self._drop_tunnel(operation.device)

    @_do.register
    def _(self, operation: SetWireguard, _namespaces: Mapping[str, int]) -> None:
        link = operation.link
        if "wireguard" not in self.host_facts.encapsulations:
            raise _RefusedError("this kernel has no WireGuard")
        old = self.wireguard.get(link.device)
        if old is not None and old.generation != link.generation:
            self._drop_tunnel(link.device)
            self.keys.pop(old.generation, None)
        self._make_key(link.generation)
        self.wireguard[link.device] = link

    @_do.register
    def _(self, operation: DeleteWireguard, _namespaces: Mapping[str, int]) -> None:
        self._drop_tunnel(operation.device)
        self.keys.pop(operation.generation, None)

    @_do.register
    def _(self, operation: SetRoute, _namespaces: Mapping[str, int]) -> None:
        route = operation.route
        if route.device not in {*self.tunnels, *self.wireguard, self.host_facts.underlay_device}:
            raise _RefusedError(f"no such device: {route.device}")
        if self.bridge is None or self.bridge.address.partition("/")[0] != route.source:
            raise _RefusedError(f"{route.source} is no address of this host")
        self.routes[route.block] = route

    @_do.register
    def _(self, operation: DeleteRoute, _namespaces: Mapping[str, int]) -> None:
        self.routes.pop(operation.block, None)

    @_do.register
    def _(self, operation: SetPort, namespaces: Mapping[str, int]) -> None:
        if self.bridge is None:
            raise _RefusedError("there is no bridge")
        if operation.container not in namespaces:
            raise _RefusedError(f"container {operation.container} has no network namespace")
        self.ports[operation.port.device] = operation.port
        self.containers[operation.port.device] = operation.container
        if operation.container not in self.ends:
            self.ends[operation.container] = attrs.evolve(
                operation.end, address="", gateway="", up=False, loopback=False
            )

    @_do.register
    def _(self, operation: SetEndpoint, _namespaces: Mapping[str, int]) -> None:
        if self.bridge is None:
            raise _RefusedError("there is no bridge")
        device = operation.port.device
        self.ports[device] = operation.port
        self.far_ends.setdefault(device, (operation.mac, names.endpoint_link(operation.endpoint)))

    @_do.register
    def _(self, operation: SetEnd, namespaces: Mapping[str, int]) -> None:
        if operation.container not in namespaces or operation.container not in self.ends:
            raise _RefusedError(f"container {operation.container} has no link")
        self.ends[operation.container] = operation.end

    @_do.register
    def _(self, operation: DeletePort, _namespaces: Mapping[str, int]) -> None:
        self._delete_pair(operation.device)

    def _delete_pair(self, device: str) -> None:
        self.ports.pop(device, None)
        self.far_ends.pop(device, None)
        container = self.containers.pop(device, None)
        if container is not None:
            self.ends.pop(container, None)

    def _drop_routes_from(self, bridge: Bridge) -> None:
        source = bridge.address.partition("/")[0]
        self.routes = {b: r for b, r in self.routes.items() if r.source != source}

    def _drop_tunnel(self, device: str) -> None:
        self.tunnels.pop(device, None)
        self.wireguard.pop(device, None)
        self.routes = {b: r for b, r in self.routes.items() if r.device != device}
        self._drop_sysctls_of(device)

    def _drop_sysctls_of(self, device: str) -> None:
        self.sysctls = {p: v for p, v in self.sysctls.items() if device not in p.split("/")}
