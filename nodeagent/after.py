"""What each operation leads to: a pure model of the host.

By it the agent keeps its picture of the host without reading it again; `nodeagent.diff` and this module
are tested against the fake kernel, engine and firewalls, which are written by others.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import TypeVar

import attrs

from firewall_rules import names
from nodeagent.kernel_state import EngineContainer, HostState, Route
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

_K = TypeVar("_K")
_V = TypeVar("_V")
_T = TypeVar("_T")


@singledispatch
def after(operation: Op, observed: HostState) -> HostState:
    """Return what is observed once `operation` was done; of an engine's, once its event has come.

    Raises:
        TypeError: It is no operation.
    """
    raise TypeError(f"{type(operation).__name__} is no operation on {type(observed).__name__}")


def _with(mapping: Mapping[_K, _V], key: _K, value: _V) -> dict[_K, _V]:
    return {**mapping, key: value}


def _without(mapping: Mapping[_K, _V], key: _K) -> Mapping[_K, _V]:
    return {k: v for k, v in mapping.items() if k != key} if key in mapping else mapping


@after.register
def _(operation: SetSysctl, observed: HostState) -> HostState:
    return attrs.evolve(observed, sysctls=_with(observed.sysctls, operation.path, operation.value))


@after.register
def _(operation: SetBridge, observed: HostState) -> HostState:
    routes = observed.routes
    if observed.bridge is not None and observed.bridge.address != operation.bridge.address:
        routes = _routes_without_source(routes, observed.bridge.address)
    return attrs.evolve(observed, bridge=operation.bridge, routes=routes)


@after.register
def _(_operation: DeleteBridge, observed: HostState) -> HostState:
    if observed.bridge is None:
        return observed
    return attrs.evolve(
        observed,
        bridge=None,
        sysctls=_sysctls_without(observed.sysctls, names.BRIDGE),
        routes=_routes_without_source(observed.routes, observed.bridge.address),
        ports={
            device: attrs.evolve(port, on_bridge=False, guarded=False)
            for device, port in observed.ports.items()
        },
    )


@after.register
def _(operation: SetTunnel, observed: HostState) -> HostState:
    tunnel, old = operation.tunnel, observed.tunnels.get(operation.tunnel.device)
    if old is not None and attrs.evolve(old, mtu=tunnel.mtu, up=tunnel.up) != tunnel:
        observed = after(DeleteTunnel(old.device), observed)
    return attrs.evolve(observed, tunnels=_with(observed.tunnels, tunnel.device, tunnel))


@after.register
def _(operation: DeleteTunnel, observed: HostState) -> HostState:
    return _without_device(
        attrs.evolve(observed, tunnels=_without(observed.tunnels, operation.device)), operation.device
    )


@after.register
def _(operation: SetWireguard, observed: HostState) -> HostState:
    link = operation.link
    old = observed.wireguard.get(link.device)
    if old is not None and old.generation != link.generation:
        observed = after(DeleteWireguard(old.device, old.generation), observed)
    return attrs.evolve(observed, wireguard=_with(observed.wireguard, link.device, link))


@after.register
def _(operation: DeleteWireguard, observed: HostState) -> HostState:
    return _without_device(
        attrs.evolve(observed, wireguard=_without(observed.wireguard, operation.device)), operation.device
    )


def _without_device(observed: HostState, device: str) -> HostState:
    """Return what is observed once a link is gone, with what depended on it."""
    return attrs.evolve(
        observed,
        routes={b: r for b, r in observed.routes.items() if r.device != device},
        sysctls=_sysctls_without(observed.sysctls, device),
    )


@after.register
def _(operation: SetRoute, observed: HostState) -> HostState:
    return attrs.evolve(observed, routes=_with(observed.routes, operation.route.block, operation.route))


@after.register
def _(operation: DeleteRoute, observed: HostState) -> HostState:
    return attrs.evolve(observed, routes=_without(observed.routes, operation.block))


@after.register
def _(operation: SetHostRules, observed: HostState) -> HostState:
    return attrs.evolve(observed, host_policy=operation.policy)


@after.register
def _(operation: UpdateHostRules, observed: HostState) -> HostState:
    policy = observed.host_policy
    if policy is None:
        return observed
    return attrs.evolve(
        observed,
        host_policy=attrs.evolve(
            policy,
            bindings=_changed(policy.bindings, operation.bindings, operation.bindings_removed),
            pairs=_changed(policy.pairs, operation.pairs, operation.pairs_removed),
            tunnels=_changed(policy.tunnels, operation.tunnels, operation.tunnels_removed),
            publications=_changed(
                policy.publications, operation.publications, operation.publications_removed
            ),
            internal=_changed(policy.internal, operation.internal, operation.internal_removed),
        ),
    )


@after.register
def _(_operation: DeleteHostRules, observed: HostState) -> HostState:
    return attrs.evolve(observed, host_policy=None)


@after.register
def _(operation: OpenPassage, observed: HostState) -> HostState:
    if operation.variant not in observed.passages:
        return observed
    return attrs.evolve(observed, passages=_with(observed.passages, operation.variant, True))


@after.register
def _(operation: ClosePassage, observed: HostState) -> HostState:
    if operation.variant not in observed.passages:
        return observed
    return attrs.evolve(observed, passages=_with(observed.passages, operation.variant, False))


@after.register
def _(operation: WatchSandbox, observed: HostState) -> HostState:
    # One that is there already is told of by an event.
    return with_sandbox(observed, operation.endpoint, present=False)


@after.register
def _(operation: ForgetSandbox, observed: HostState) -> HostState:
    return with_sandbox(observed, operation.endpoint, present=None)


@after.register
def _(operation: SetEndpoint, observed: HostState) -> HostState:
    return attrs.evolve(observed, ports=_with(observed.ports, operation.port.device, operation.port))


@after.register
def _(operation: CreateContainer, observed: HostState) -> HostState:
    return with_container(observed, operation.container, EngineContainer("created"))


@after.register
def _(operation: SetContainerRules, observed: HostState) -> HostState:
    policies = _with(observed.container_policies, operation.container, operation.policy)
    return attrs.evolve(observed, container_policies=policies)


@after.register
def _(operation: UpdateContainerRules, observed: HostState) -> HostState:
    policy = observed.container_policies.get(operation.container)
    if policy is None:
        return observed
    policy = attrs.evolve(
        policy,
        inbound=_changed(policy.inbound, operation.inbound, operation.inbound_removed),
        outbound=_changed(policy.outbound, operation.outbound, operation.outbound_removed),
    )
    return attrs.evolve(
        observed, container_policies=_with(observed.container_policies, operation.container, policy)
    )


@after.register
def _(operation: SetPort, observed: HostState) -> HostState:
    ends = observed.ends
    if operation.container not in ends:
        bare = attrs.evolve(operation.end, address="", gateway="", up=False, loopback=False)
        ends = _with(ends, operation.container, bare)
    return attrs.evolve(
        observed, ports=_with(observed.ports, operation.port.device, operation.port), ends=ends
    )


@after.register
def _(operation: SetEnd, observed: HostState) -> HostState:
    return attrs.evolve(observed, ends=_with(observed.ends, operation.container, operation.end))


@after.register
def _(operation: DeletePort, observed: HostState) -> HostState:
    return attrs.evolve(
        observed,
        ports=_without(observed.ports, operation.device),
        ends={i: e for i, e in observed.ends.items() if names.port_device(i) != operation.device},
    )


@after.register
def _(operation: StartContainer, observed: HostState) -> HostState:
    running = EngineContainer("running", operation.generation)
    return with_container(observed, operation.container, running)


@after.register
def _(operation: StopContainer, observed: HostState) -> HostState:
    seen = observed.containers.get(operation.container)
    if seen is None or seen.state != "running":
        return observed
    return with_container(observed, operation.container, EngineContainer("exited", seen.generation))


@after.register
def _(operation: RemoveContainer, observed: HostState) -> HostState:
    return with_container(observed, operation.container, None)


def with_container(observed: HostState, identifier: str, seen: EngineContainer | None) -> HostState:
    """Return what is observed once a container's engine says `seen` of it; None: it is gone."""
    if seen is not None:
        return attrs.evolve(observed, containers=_with(observed.containers, identifier, seen))
    return attrs.evolve(
        observed,
        containers=_without(observed.containers, identifier),
        container_policies=_without(observed.container_policies, identifier),
        ends=_without(observed.ends, identifier),
        ports=_without(observed.ports, names.port_device(identifier)),
    )


def with_sandbox(observed: HostState, endpoint: str, *, present: bool | None) -> HostState:
    """Return what is observed once an endpoint's namespace has come or gone; None: it is not watched.

    In one that has come nothing of ours is yet.
    """
    sandboxes = observed.sandboxes
    return attrs.evolve(
        observed,
        sandboxes=_without(sandboxes, endpoint) if present is None else _with(sandboxes, endpoint, present),
        container_policies=_without(observed.container_policies, endpoint),
    )


def _changed(elements: frozenset[_T], added: tuple[_T, ...], removed: tuple[_T, ...]) -> frozenset[_T]:
    if removed:
        elements = elements.difference(removed)
    return elements.union(added) if added else elements


def _routes_without_source(routes: Mapping[str, Route], address: str) -> dict[str, Route]:
    source = address.partition("/")[0]
    return {block: route for block, route in routes.items() if route.source != source}


def _sysctls_without(sysctls: Mapping[str, str], device: str) -> dict[str, str]:
    return {path: value for path, value in sysctls.items() if device not in path.split("/")}
