"""The operations that lead from what is to what should be, and what each of them leads to. Pure.

`diff` never looks past what it is given: two parts of a host, cut out by `target` and `within` for the
same scope, compare like two whole ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TypeVar

import attrs

from firewall_rules import names
from firewall_rules.policy import ContainerPolicy, HostPolicy, Opening, Pair, PortBinding
from netctl.model import PlacedContainer, mac_of
from nodeagent.desired_index import DesiredIndex, Scope, pair_key
from nodeagent.endpoints import Endpoint, Endpoints
from nodeagent.kernel_state import DOCKER, EngineContainer, HostFacts, HostState
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
    ordered,
)
from nodeagent.policies import openings
from nodeagent.target import (
    ENDED,
    NO_ENDPOINTS,
    WITH_NAMESPACE,
    target,
    touched_endpoints,
    touched_policies,
)

_K = TypeVar("_K")
_V = TypeVar("_V")
_T = TypeVar("_T")


def plan(
    desired: DesiredIndex,
    facts: HostFacts,
    observed: HostState,
    now: float,
    *,
    scope: Scope | None = None,
    found: Mapping[str, str] | None = None,
    endpoints: Endpoints = NO_ENDPOINTS,
) -> tuple[Op, ...]:
    """Return what to do next, in order; empty: nothing, or nothing before an engine's next event.

    The arguments are those of `nodeagent.target.target`. A scope narrows the work, never the outcome:
    where a part does not tell enough, everything is looked at.
    """
    if scope is not None and desired.header.block is not None and observed.host_policy is not None:
        wanted = target(desired, facts, observed, now, scope=scope, endpoints=endpoints)
        part = within(observed, desired, scope, endpoints)
        operations = diff(wanted, part, desired.containers, endpoints.by_key)
        whole = {*scope.containers, *touched_endpoints(scope, endpoints)}
        if not any(_too_wide(operation, whole) for operation in operations):
            return operations
    wanted = target(desired, facts, observed, now, found=found, endpoints=endpoints)
    return diff(wanted, observed, desired.containers, endpoints.by_key)


def _too_wide(operation: Op, whole: Collection[str]) -> bool:
    """Tell whether `operation` puts something in place whole of which only a part was looked at.

    Args:
        operation: Of a plan for a part.
        whole: Containers and endpoints that were looked at whole.
    """
    if isinstance(operation, SetContainerRules):
        return operation.container not in whole
    return isinstance(operation, SetHostRules | DeleteHostRules)


def within(
    observed: HostState, desired: DesiredIndex, scope: Scope, endpoints: Endpoints = NO_ENDPOINTS
) -> HostState:
    """Return the part of `observed` that `target` computes for the same scope."""
    touched = touched_endpoints(scope, endpoints)
    identifiers = [*scope.containers, *touched]
    devices = [names.port_device(identifier) for identifier in identifiers]
    policies = _only(observed.container_policies, identifiers)
    for identifier, partners in touched_policies(desired, observed, scope, endpoints).items():
        policies[identifier] = _policy_within(
            observed.container_policies[identifier], desired, scope, partners
        )
    return HostState(
        ports=_only(observed.ports, devices),
        ends=_only(observed.ends, identifiers),
        host_policy=None
        if observed.host_policy is None
        else _host_policy_within(observed.host_policy, desired, scope, touched),
        container_policies=policies,
        containers=_only(observed.containers, identifiers),
        sandboxes=_only(observed.sandboxes, touched),
    )


def _only(mapping: Mapping[_K, _V], keys: Iterable[_K]) -> dict[_K, _V]:
    return {key: mapping[key] for key in keys if key in mapping}


def _policy_within(
    policy: ContainerPolicy, desired: DesiredIndex, scope: Scope, partners: Iterable[str]
) -> ContainerPolicy:
    inbound: set[Opening] = set()
    outbound: set[Opening] = set()
    for partner in partners:
        pair = pair_key(policy.address, partner)
        for permit in (*scope.pairs[pair], *desired.between(pair)):
            into, out_of = openings(permit, policy.address)
            if into in policy.inbound:
                inbound.add(into)
            if out_of in policy.outbound:
                outbound.add(out_of)
    return attrs.evolve(policy, inbound=frozenset(inbound), outbound=frozenset(outbound))


def _host_policy_within(
    policy: HostPolicy,
    desired: DesiredIndex,
    scope: Scope,
    endpoints: Mapping[str, frozenset[Endpoint]],
) -> HostPolicy:
    forms = [form for of_one in endpoints.values() for form in of_one]
    owned = [
        *((identifier, address) for identifier, found in scope.containers.items() for address in found),
        *((form.key, form.address) for form in forms),
    ]
    bindings = {PortBinding(names.port_device(key), mac_of(address), address) for key, address in owned}
    pairs = {
        Pair(*pair, expires_at=permit.expires_at)
        for pair, changed in scope.pairs.items()
        for permit in (*changed, *desired.between(pair))
    }
    return attrs.evolve(
        policy,
        bindings=frozenset(binding for binding in bindings if binding in policy.bindings),
        pairs=frozenset(pair for pair in pairs if pair in policy.pairs),
        tunnels=frozenset(),
        publications=policy.publications.intersection(one for form in forms for one in form.publications),
        internal=policy.internal.intersection(form.address for form in forms),
    )


# --- differences ------------------------------------------------------------------------------------


def diff(
    wanted: HostState,
    observed: HostState,
    placed: Mapping[str, PlacedContainer],
    endpoints: Mapping[str, Endpoint] = NO_ENDPOINTS.by_key,
) -> tuple[Op, ...]:
    """Return the operations that lead from `observed` towards `wanted`, in order.

    Containers come up in steps, each begun by an event of their engine: one whose namespaces are being
    made gets nothing yet. Applied again and again, with those events in between, it ends in `wanted`.

    Args:
        wanted: From `nodeagent.target.target`.
        observed: The same part of the host.
        placed: Names and workloads of the containers in `wanted`, by id.
        endpoints: Docker's in `wanted`, by key.
    """
    return ordered(
        (
            *_sysctls(wanted, observed),
            *_bridge(wanted, observed),
            *_tunnels(wanted, observed),
            *_routes(wanted, observed),
            *_host_rules(wanted.host_policy, observed.host_policy),
            *_stray_ports(wanted, observed),
            *_passages(wanted, observed),
            *_endpoints(wanted, observed, endpoints),
            *_containers(wanted, observed, placed),
        )
    )


def removal(observed: HostState, found: Mapping[str, str]) -> tuple[Op, ...]:
    """Return the operations that take everything of ours out of the host.

    The tables are deleted even if none is seen: a damaged one is not.

    Args:
        observed: What is there.
        found: Settings of the host, by path, as they were before us.
    """
    operations = list(diff(HostState(sysctls=found), observed, {}))
    # A rule of ours that is not where it should be counts as none, and has to go too.
    operations += [ClosePassage(variant) for variant, is_open in observed.passages.items() if not is_open]
    if observed.host_policy is None:
        operations.append(DeleteHostRules())
    return ordered(operations)


def _renewed(wanted: HostState, observed: HostState) -> set[str]:
    """Return the tunnels that are, or may be, made anew: their routes and settings go with what they were."""
    renewed = {device for device, tunnel in wanted.tunnels.items() if observed.tunnels.get(device) != tunnel}
    for device, link in wanted.wireguard.items():
        seen = observed.wireguard.get(device)
        if seen is None or seen.generation != link.generation:
            renewed.add(device)
    return renewed


def _sysctls(wanted: HostState, observed: HostState) -> Iterable[Op]:
    renewed = _renewed(wanted, observed)
    for path, value in wanted.sysctls.items():
        if observed.sysctls.get(path) != value or (renewed and not renewed.isdisjoint(path.split("/"))):
            yield SetSysctl(path, value)


def _bridge(wanted: HostState, observed: HostState) -> Iterable[Op]:
    if wanted.bridge is None:
        if observed.bridge is not None:
            yield DeleteBridge()
    elif wanted.bridge != observed.bridge:
        yield SetBridge(wanted.bridge)


def _tunnels(wanted: HostState, observed: HostState) -> Iterable[Op]:
    for device, tunnel in wanted.tunnels.items():
        if observed.tunnels.get(device) != tunnel:
            yield SetTunnel(tunnel)
    for device in observed.tunnels:
        if device not in wanted.tunnels:
            yield DeleteTunnel(device)
    for device, link in wanted.wireguard.items():
        if observed.wireguard.get(device) != link:
            yield SetWireguard(link)
    for device, seen in observed.wireguard.items():
        if device not in wanted.wireguard:
            yield DeleteWireguard(device, seen.generation)


def _routes(wanted: HostState, observed: HostState) -> Iterable[Op]:
    renewed = _renewed(wanted, observed)
    # A new bridge address, like a new device, may have taken the routes along that depended on it.
    rebuilt = wanted.bridge is not None and (
        observed.bridge is None or observed.bridge.address != wanted.bridge.address
    )
    for block, route in wanted.routes.items():
        if rebuilt or route.device in renewed or observed.routes.get(block) != route:
            yield SetRoute(route)
    for block in observed.routes:
        if block not in wanted.routes:
            yield DeleteRoute(block)


def _host_rules(wanted: HostPolicy | None, observed: HostPolicy | None) -> Iterable[Op]:
    if wanted is None:
        if observed is not None:
            yield DeleteHostRules()
    elif observed is None or not _same_host(wanted, observed):
        yield SetHostRules(wanted)
    else:
        bindings = _changes(wanted.bindings, observed.bindings)
        pairs = _changes(wanted.pairs, observed.pairs)
        tunnels = _changes(wanted.tunnels, observed.tunnels)
        publications = _changes(wanted.publications, observed.publications)
        internal = _changes(wanted.internal, observed.internal)
        if any((*bindings, *pairs, *tunnels, *publications, *internal)):
            yield UpdateHostRules(*bindings, *pairs, *tunnels, *publications, *internal)


def _same_host(one: HostPolicy, other: HostPolicy) -> bool:
    """Tell whether two policies differ in elements at most."""
    return (
        (one.bridge, one.address, one.block, one.supernet, one.resolver)
        == (other.bridge, other.address, other.block, other.supernet, other.resolver)
        and (one.vxlan_port, one.wireguard_ports) == (other.vxlan_port, other.wireguard_ports)
    ) and (one.closed is other.closed or one.closed == other.closed)


def _same_container(one: ContainerPolicy, other: ContainerPolicy) -> bool:
    """Tell whether two policies differ in elements at most."""
    return (
        (one.address, one.gateway, one.resolver, one.overlay_only, one.internet, one.published)
        == (
            other.address,
            other.gateway,
            other.resolver,
            other.overlay_only,
            other.internet,
            other.published,
        )
    ) and (one.closed is other.closed or one.closed == other.closed)


def _changes(wanted: frozenset[_T], observed: frozenset[_T]) -> tuple[tuple[_T, ...], tuple[_T, ...]]:
    """Return what to add and what to remove, each in a fixed order."""
    if wanted is observed:
        return (), ()
    return _sorted(wanted - observed), _sorted(observed - wanted)


def _sorted(items: Iterable[_T]) -> tuple[_T, ...]:
    # By text, since a lifetime may be None, which does not compare.
    return tuple(sorted(items, key=repr))


def _stray_ports(wanted: HostState, observed: HostState) -> Iterable[Op]:
    for device in observed.ports:
        if device not in wanted.ports:
            yield DeletePort(device)


def _passages(wanted: HostState, observed: HostState) -> Iterable[Op]:
    for variant, is_open in observed.passages.items():
        if wanted.passages.get(variant, False) != is_open:
            yield ClosePassage(variant) if is_open else OpenPassage(variant)


def _endpoints(wanted: HostState, observed: HostState, endpoints: Mapping[str, Endpoint]) -> Iterable[Op]:
    """Yield what Docker's endpoints need, but for their rules."""
    for key in observed.sandboxes:
        if key not in wanted.sandboxes:
            yield ForgetSandbox(key)
    for key in wanted.sandboxes:
        endpoint, device = endpoints[key], names.port_device(key)
        if key not in observed.sandboxes:
            yield WatchSandbox(key, endpoint.sandbox)
        if observed.ports.get(device) != wanted.ports[device]:
            yield SetEndpoint(key, wanted.ports[device], mac_of(endpoint.address))


def _containers(
    wanted: HostState, observed: HostState, placed: Mapping[str, PlacedContainer]
) -> Iterable[Op]:
    for identifier in observed.containers:
        if identifier not in wanted.containers:
            yield RemoveContainer(identifier)
    for identifier, goal in wanted.containers.items():
        seen = observed.containers.get(identifier)
        if seen is None or _must_be_made_anew(placed[identifier], goal, seen, observed):
            yield from _made(placed[identifier], seen, wanted.host_policy)
        elif seen.state in WITH_NAMESPACE:
            yield from _network(identifier, wanted, observed)
            yield from _command(identifier, goal, seen)
    for identifier, policy in wanted.container_policies.items():
        if identifier not in wanted.containers:
            # An endpoint, or only single openings of this one are in scope.
            yield from _rules(identifier, policy, observed.container_policies.get(identifier))


def _made(container: PlacedContainer, seen: EngineContainer | None, host: HostPolicy | None) -> Iterable[Op]:
    if seen is not None:
        yield RemoveContainer(container.id)
        if seen.removes_later:
            return
    # Docker's containers are on a network of Docker's, which needs to know the block.
    block = host.block if host is not None and container.workload.engine == DOCKER else ""
    yield CreateContainer(container.id, container.name, container.address, container.workload, block)


def _must_be_made_anew(
    container: PlacedContainer, goal: EngineContainer, seen: EngineContainer, observed: HostState
) -> bool:
    """Tell whether a container that is to start has no namespace, as after a reboot."""
    if goal.state != "running" or seen.state not in ENDED:
        return False
    if container.workload.engine == DOCKER:
        # Docker keeps what it has made; what it could not make never started.
        return seen.state == "failed" and seen.generation == 0
    return container.id not in observed.ends and container.id not in observed.container_policies


def _network(identifier: str, wanted: HostState, observed: HostState) -> Iterable[Op]:
    end = wanted.ends.get(identifier)
    if end is None:
        return
    yield from _rules(
        identifier, wanted.container_policies[identifier], observed.container_policies.get(identifier)
    )
    device = names.port_device(identifier)
    port, seen_port = wanted.ports[device], observed.ports.get(device)
    seen_end = observed.ends.get(identifier)
    if seen_port is not None and seen_end is None:
        # The far end was renamed or moved by whoever has rights in there: the pair is made anew.
        yield DeletePort(device)
    if seen_end is None or seen_port != port:
        yield SetPort(identifier, port, end)
    if seen_end != end or seen_port is None:
        yield SetEnd(identifier, end)


def _rules(identifier: str, wanted: ContainerPolicy, observed: ContainerPolicy | None) -> Iterable[Op]:
    if observed is None or not _same_container(wanted, observed):
        yield SetContainerRules(identifier, wanted)
        return
    inbound = _changes(wanted.inbound, observed.inbound)
    outbound = _changes(wanted.outbound, observed.outbound)
    if any((*inbound, *outbound)):
        yield UpdateContainerRules(identifier, *inbound, *outbound)


def _command(identifier: str, goal: EngineContainer, seen: EngineContainer) -> Iterable[Op]:
    if seen.state == "running":
        if goal.state != "running" or goal.generation > seen.generation:
            yield StopContainer(identifier)
    elif goal.state == "running":
        yield StartContainer(identifier, goal.generation)


def reached(goal: EngineContainer | None, seen: EngineContainer | None) -> bool:
    """Tell whether a container's command is where it should be."""
    if goal is None or seen is None:
        return goal is seen
    if goal.state == "running":
        return seen.state == "running" and seen.generation >= goal.generation
    return seen.state == goal.state or (goal.state in ENDED and seen.state in ENDED)
