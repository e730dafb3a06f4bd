"""What one host should look like: pure, from the desired state, the host's facts and what is there.

What is there matters in few places: a container that has ended by itself is not started again, and one
that ended before its host was started anew has no namespace to put a link into.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from firewall_rules import names
from firewall_rules.policy import ContainerPolicy, PortBinding
from netctl.model import NodeState, Peer, PlacedContainer, mac_of
from netctl.wire.messages import NodeError
from nodeagent.desired_index import DesiredIndex, Scope
from nodeagent.endpoints import Endpoint, Endpoints
from nodeagent.kernel_state import (
    DOCKER,
    Bridge,
    ContainerEnd,
    ContainerPort,
    EngineContainer,
    HostFacts,
    HostState,
)
from nodeagent.latest import Latest
from nodeagent.policies import (
    HostElements,
    container_policy,
    endpoint_policy,
    gateway_of,
    host_policy,
    is_recorded,
    pairs_of,
)
from nodeagent.tunnels import (
    missing_tunnels,
    routes_of,
    sysctls_of,
    tunnel_policies,
    tunnels_of,
    wireguard_links,
    wireguard_ports,
)

FORWARDING: Final = "net/ipv4/ip_forward"
"""The one setting of the whole host that we change (ip-sysctl.rst), and set back when we go."""
ENDED: Final = ("exited", "failed")
"""States of a container whose command is over."""
WITH_NAMESPACE: Final = ("created", "running", *ENDED)
"""States in which a container's namespace can exist."""
NO_ENDPOINTS: Final = Endpoints()


def target(
    desired: DesiredIndex,
    facts: HostFacts,
    observed: HostState,
    now: float,
    *,
    scope: Scope | None = None,
    found: Mapping[str, str] | None = None,
    endpoints: Endpoints = NO_ENDPOINTS,
) -> HostState:
    """Return what the host should look like.

    Args:
        desired: What the broker wants.
        facts: What is true of the host whatever the broker wants.
        observed: What is there.
        now: Seconds since 1970; permits that have expired by then are left out.
        scope: What may have changed; then only that part is returned, and no other part of the result
            means anything. None: everything.
        found: Settings of the host, by path, as they were before us: set back once the node was removed.
        endpoints: What Docker's driver was asked for.
    """
    if desired.header.block is None:
        return HostState(sysctls=dict(found or {}))
    if scope is not None:
        return _part(scope, _Parts(desired, facts, observed, now), endpoints)
    parts = _Parts(desired, facts, observed, now)
    for container in desired.containers.values():
        parts.add(container)
    if facts.host_firewall:
        return HostState(containers=parts.engine)
    for endpoint in endpoints.by_key.values():
        parts.add_endpoint(endpoint, endpoints)
    header, peers = desired.header, desired.peers.values()
    tunnels = tunnels_of(header, facts, peers)
    links = wireguard_links(header, facts, peers)
    return HostState(
        bridge=_bridge(header),
        sysctls={
            **_sysctls(publishes=DOCKER in facts.engines),
            **sysctls_of((names.BRIDGE, *tunnels), links),
        },
        tunnels=tunnels,
        routes=routes_of(header, facts, peers),
        ports=parts.ports,
        ends=parts.ends,
        host_policy=host_policy(
            desired,
            parts.host,
            pairs=pairs_of(desired, desired.permits, now),
            tunnels=tunnel_policies(header, facts, peers),
            wireguard_ports=wireguard_ports(header, facts),
        ),
        container_policies=parts.policies,
        containers=parts.engine,
        sandboxes=parts.sandboxes,
        passages=dict.fromkeys(observed.passages, True) if DOCKER in facts.engines else {},
        wireguard=links,
    )


def troubles(desired: DesiredIndex, facts: HostFacts) -> tuple[NodeError, ...]:
    """Return what the broker wants and this host cannot give, so that `target` leaves it out."""
    if desired.header.block is None:
        return ()
    return _troubles(desired.containers, desired.peers, desired.header, facts)


def _troubles_of(
    containers: Mapping[str, PlacedContainer],
    peers: Mapping[str, Peer],
    header: NodeState,
    facts: HostFacts,
) -> tuple[NodeError, ...]:
    errors = []
    for container in containers.values():
        hindrance = "" if container.origin == "engine" else _hindrance(container, facts)
        if hindrance:
            errors.append(NodeError(container.name, f"{container.name} cannot run here: {hindrance}"))
    errors.extend(missing_tunnels(header, facts, peers.values()))
    if facts.host_firewall and not containers:
        errors.append(NodeError("", f"this node can take no containers: {facts.host_firewall}"))
    return tuple(sorted(errors, key=lambda error: error.subject))


_troubles = Latest(_troubles_of)


def _hindrance(container: PlacedContainer, facts: HostFacts) -> str:
    """Return why `container` cannot be made on this host; empty: it can."""
    if facts.host_firewall:
        return facts.host_firewall
    if facts.firewall == "none":
        return "no firewall works in containers of this node; install nftables"
    if container.workload.engine not in facts.engines:
        return f"this node has no container engine {container.workload.engine!r}"
    return ""


# --- parts ------------------------------------------------------------------------------------------


def _part(scope: Scope, parts: _Parts, endpoints: Endpoints) -> HostState:
    desired, observed, now = parts.desired, parts.observed, parts.now
    for identifier in scope.containers:
        if identifier in desired.containers:
            parts.add(desired.containers[identifier])
    if parts.facts.host_firewall:
        return HostState(containers=parts.engine)
    for key in touched_endpoints(scope, endpoints):
        if key in endpoints.by_key:
            parts.add_endpoint(endpoints.by_key[key], endpoints)
    for identifier, partners in touched_policies(desired, observed, scope, endpoints).items():
        endpoint = endpoints.by_key.get(identifier)
        parts.policies[identifier] = (
            container_policy(desired, desired.containers[identifier].address, now, partners)
            if endpoint is None
            else endpoint_policy(desired, endpoint, now, partners)
        )
    return HostState(
        ports=parts.ports,
        ends=parts.ends,
        host_policy=host_policy(
            desired,
            parts.host,
            pairs_of(desired, scope.pairs, now),
            (),
            wireguard_ports(desired.header, parts.facts),
        ),
        container_policies=parts.policies,
        containers=parts.engine,
        sandboxes=parts.sandboxes,
    )


def touched_endpoints(scope: Scope, endpoints: Endpoints) -> Mapping[str, frozenset[Endpoint]]:
    """Return the endpoints to look at whole, each with the forms it has or had.

    They are those in scope, and those that have an address in scope: whether one's port is opened depends
    on whom its address is recorded for.
    """
    touched = {key: set(forms) for key, forms in scope.endpoints.items()}
    addresses = {address for of_one in scope.containers.values() for address in of_one}
    addresses.update(form.address for forms in scope.endpoints.values() for form in forms)
    for address in addresses:
        key = endpoints.by_address.get(address)
        if key is not None:
            touched.setdefault(key, set()).add(endpoints.by_key[key])
    return {key: frozenset(forms) for key, forms in touched.items()}


def touched_policies(
    desired: DesiredIndex, observed: HostState, scope: Scope, endpoints: Endpoints
) -> Mapping[str, Iterable[str]]:
    """Return the containers and endpoints of which only single openings are in scope, with the partners.

    Only where layer 1 stands already: else it is put in place whole, when the container is looked at.
    """
    whole = {*scope.containers, *touched_endpoints(scope, endpoints)}
    touched: dict[str, list[str]] = {}
    for one, other in scope.pairs:
        for address, partner in ((one, other), (other, one)):
            for identifier in (desired.by_address.get(address), endpoints.by_address.get(address)):
                if (
                    identifier is not None
                    and identifier not in whole
                    and identifier in observed.container_policies
                ):
                    touched.setdefault(identifier, []).append(partner)
    return touched


class _Parts:
    """Collects what the containers and endpoints of a node need, one by one."""

    def __init__(self, desired: DesiredIndex, facts: HostFacts, observed: HostState, now: float) -> None:
        self.desired = desired
        self.facts = facts
        self.observed = observed
        self.now = now
        self.engine: dict[str, EngineContainer] = {}
        self.ports: dict[str, ContainerPort] = {}
        self.ends: dict[str, ContainerEnd] = {}
        self.policies: dict[str, ContainerPolicy] = {}
        self.sandboxes: dict[str, bool] = {}
        self.host = HostElements()

    def add(self, container: PlacedContainer) -> None:
        """Take one container of the desired state in."""
        if container.origin == "engine":
            return
        identifier = container.id
        seen = self.observed.containers.get(identifier)
        if _hindrance(container, self.facts):
            if seen is not None:
                self.engine[identifier] = seen
            return
        goal = _engine_goal(container, seen)
        self.engine[identifier] = goal
        if container.workload.engine == DOCKER or not self._has_link(identifier, seen, goal):
            return
        header = self.desired.header
        device = names.port_device(identifier)
        self.ports[device] = ContainerPort(device=device, mtu=header.mtu)
        self.ends[identifier] = _end(header, container.address)
        self.policies[identifier] = container_policy(self.desired, container.address, self.now)
        self.host.bindings.append(PortBinding(device, mac_of(container.address), container.address))

    def _has_link(self, identifier: str, seen: EngineContainer | None, goal: EngineContainer) -> bool:
        if seen is None or seen.state not in ENDED or goal.state == "running":
            return True
        return identifier in self.observed.ends or identifier in self.observed.container_policies

    def add_endpoint(self, endpoint: Endpoint, endpoints: Endpoints) -> None:
        """Take one of Docker's endpoints in.

        What opens its port comes last: once layer 1 stands in its namespace, and the broker has recorded
        its address for its container.
        """
        if not endpoint.sandbox or self.facts.firewall == "none":
            return
        key, address = endpoint.key, endpoint.address
        device = names.port_device(key)
        self.sandboxes[key] = self.observed.sandboxes.get(key, False)
        self.ports[device] = ContainerPort(device=device, mtu=self.desired.header.mtu)
        if not self.sandboxes[key]:
            return
        self.policies[key] = endpoint_policy(self.desired, endpoint, self.now)
        stands = self.observed.container_policies.get(key)
        if (
            stands is None
            or stands.address != address
            or endpoints.by_address.get(address) != key
            or not is_recorded(self.desired, endpoint)
        ):
            return
        self.host.bindings.append(PortBinding(device, mac_of(address), address))
        self.host.published.extend(endpoint.publications)
        if endpoint.internal:
            self.host.internal.append(address)


def _engine_goal(container: PlacedContainer, seen: EngineContainer | None) -> EngineContainer:
    """Return the state a container should come to, which is the one it is in where nothing is to be done."""
    if container.wanted == "running":
        if seen is None or seen.state in ("creating", "created"):
            return EngineContainer("running", container.generation)
        if seen.state != "unknown" and container.generation > seen.generation:
            return EngineContainer("running", container.generation)
        return seen
    if seen is None or seen.state == "creating":
        return EngineContainer("created")
    if seen.state == "running":
        return EngineContainer("exited", seen.generation)
    return seen


def _bridge(header: NodeState) -> Bridge:
    address, length = gateway_of(header)
    return Bridge(address=f"{address}/{length}", mtu=header.mtu, mac=mac_of(address))


def _end(header: NodeState, address: str) -> ContainerEnd:
    gateway, length = gateway_of(header)
    return ContainerEnd(address=f"{address}/{length}", gateway=gateway, mtu=header.mtu, mac=mac_of(address))


def _sysctls(*, publishes: bool) -> dict[str, str]:
    """Return the settings of host and bridge alone (ip-sysctl.rst): forward, no IPv6.

    Where containers may publish ports, the node itself reaches them by its loopback too; what comes from
    the bridge for such an address is dropped by our tables.
    """
    wanted = {FORWARDING: "1", f"net/ipv6/conf/{names.BRIDGE}/disable_ipv6": "1"}
    if publishes:
        wanted[f"net/ipv4/conf/{names.BRIDGE}/route_localnet"] = "1"
    return wanted
