"""What one host should look like: pure, from the desired state, the host's facts and what is there.

What is there matters in few places: a container that has ended by itself is not started again, and one
that ended before its host was started anew has no namespace to put a link into.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from firewall_rules import names
from firewall_rules.policy import ContainerPolicy, HostPolicy, Opening, Pair, PortBinding, TunnelPolicy
from netctl.model import NodeState, Peer, Permit, PlacedContainer, bridge_address, mac_of
from netctl.wire.messages import NodeError
from nodeagent.desired_index import DesiredIndex, PairKey, Scope, pair_key
from nodeagent.kernel_state import (
    Bridge,
    ContainerEnd,
    ContainerPort,
    EngineContainer,
    HostFacts,
    HostState,
    Route,
    Tunnel,
)
from nodeagent.latest import Latest

FORWARDING: Final = "net/ipv4/ip_forward"
"""The one setting of the whole host that we change (ip-sysctl.rst), and set back when we go."""
VXLAN_PORT: Final = 4789
"""UDP port of VXLAN (RFC 7348), the same on every node."""
ENCAPSULATIONS: Final = ("gre", "vxlan", "direct")
"""What this agent can make of a tunnel."""
ENDED: Final = ("exited", "failed")
"""States of a container whose command is over."""
WITH_NAMESPACE: Final = ("created", "running", *ENDED)
"""States in which a container's namespace can exist."""


def target(
    desired: DesiredIndex,
    facts: HostFacts,
    observed: HostState,
    now: float,
    *,
    scope: Scope | None = None,
    found: Mapping[str, str] | None = None,
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
    """
    if desired.header.block is None:
        return HostState(sysctls=dict(found or {}))
    if scope is not None:
        return _part(desired, facts, observed, now, scope)
    containers = _Containers(desired, facts, observed)
    for identifier in desired.containers:
        containers.add(identifier)
        if identifier in containers.ends:
            containers.policies[identifier] = _container_policy(desired, identifier, now)
    if facts.host_firewall:
        return HostState(containers=containers.engine)
    tunnels = [_tunnel(desired.header, facts, peer) for peer in _reachable(desired)]
    devices = {tunnel.device: tunnel for tunnel in tunnels if tunnel is not None}
    return HostState(
        bridge=_bridge(desired.header),
        sysctls=_sysctls(devices),
        tunnels=devices,
        routes={peer.block: _route(desired.header, facts, peer) for peer in _reachable(desired)},
        ports=containers.ports,
        ends=containers.ends,
        host_policy=_host_policy(
            desired,
            bindings=containers.bindings,
            pairs=_pairs(desired, desired.permits, now),
            tunnels=(_tunnel_policy(facts, peer) for peer in _reachable(desired)),
        ),
        container_policies=containers.policies,
        containers=containers.engine,
    )


def troubles(desired: DesiredIndex, facts: HostFacts) -> tuple[NodeError, ...]:
    """Return what the broker wants and this host cannot give, so that `target` leaves it out."""
    if desired.header.block is None:
        return ()
    return _troubles(desired.containers, desired.peers, facts)


def _troubles_of(
    containers: Mapping[str, PlacedContainer], peers: Mapping[str, Peer], facts: HostFacts
) -> tuple[NodeError, ...]:
    errors = []
    for container in containers.values():
        hindrance = _hindrance(container, facts)
        if hindrance:
            errors.append(NodeError(container.name, f"{container.name} cannot run here: {hindrance}"))
    errors.extend(
        NodeError(
            peer.name,
            f"no tunnel to {peer.name}: the two nodes have no encapsulation in common",
            "start both agents with an --encapsulation that both kernels have",
        )
        for peer in peers.values()
        if peer.encapsulation not in ENCAPSULATIONS
    )
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


def _part(
    desired: DesiredIndex, facts: HostFacts, observed: HostState, now: float, scope: Scope
) -> HostState:
    containers = _Containers(desired, facts, observed)
    for identifier in scope.containers:
        if identifier in desired.containers:
            containers.add(identifier)
            if identifier in containers.ends:
                containers.policies[identifier] = _container_policy(desired, identifier, now)
    for identifier, partners in touched_policies(desired, observed, scope).items():
        containers.policies[identifier] = _container_policy(desired, identifier, now, partners)
    return HostState(
        ports=containers.ports,
        ends=containers.ends,
        host_policy=None
        if facts.host_firewall
        else _host_policy(desired, containers.bindings, _pairs(desired, scope.pairs, now), ()),
        container_policies=containers.policies,
        containers=containers.engine,
    )


def touched_policies(desired: DesiredIndex, observed: HostState, scope: Scope) -> Mapping[str, Iterable[str]]:
    """Return the containers of which only single openings are in scope, each with the partners in question.

    Only where layer 1 stands already: else it is put in place whole, when the container is looked at.
    """
    touched: dict[str, list[str]] = {}
    for one, other in scope.pairs:
        for address, partner in ((one, other), (other, one)):
            identifier = desired.by_address.get(address)
            if (
                identifier is not None
                and identifier not in scope.containers
                and identifier in observed.container_policies
            ):
                touched.setdefault(identifier, []).append(partner)
    return touched


class _Containers:
    """Collects what the containers of a node need, one by one."""

    def __init__(self, desired: DesiredIndex, facts: HostFacts, observed: HostState) -> None:
        self._desired = desired
        self._facts = facts
        self._observed = observed
        self.engine: dict[str, EngineContainer] = {}
        self.ports: dict[str, ContainerPort] = {}
        self.ends: dict[str, ContainerEnd] = {}
        self.policies: dict[str, ContainerPolicy] = {}
        self.bindings: list[PortBinding] = []

    def add(self, identifier: str) -> None:
        """Take one container of the desired state in."""
        container = self._desired.containers[identifier]
        seen = self._observed.containers.get(identifier)
        if _hindrance(container, self._facts):
            if seen is not None:
                self.engine[identifier] = seen
            return
        goal = _engine_goal(container, seen)
        self.engine[identifier] = goal
        if not self._has_link(identifier, seen, goal):
            return
        header = self._desired.header
        device = names.port_device(identifier)
        self.ports[device] = ContainerPort(device=device, mtu=header.mtu)
        self.ends[identifier] = _end(header, container.address)
        self.bindings.append(PortBinding(device, mac_of(container.address), container.address))

    def _has_link(self, identifier: str, seen: EngineContainer | None, goal: EngineContainer) -> bool:
        if seen is None or seen.state not in ENDED or goal.state == "running":
            return True
        return identifier in self._observed.ends or identifier in self._observed.container_policies


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
    address, length = _gateway(header)
    return Bridge(address=f"{address}/{length}", mtu=header.mtu, mac=mac_of(address))


def _gateway(header: NodeState) -> tuple[str, str]:
    """Return the bridge's address and the block's length."""
    if header.block is None:
        raise ValueError("a removed node has no bridge")
    return bridge_address(header.block), header.block.partition("/")[2]


def _end(header: NodeState, address: str) -> ContainerEnd:
    gateway, length = _gateway(header)
    return ContainerEnd(address=f"{address}/{length}", gateway=gateway, mtu=header.mtu, mac=mac_of(address))


def _sysctls(tunnels: Iterable[str]) -> dict[str, str]:
    """Return the settings (ip-sysctl.rst): forward, strict reverse path, no redirects, no IPv6."""
    wanted = {FORWARDING: "1", f"net/ipv6/conf/{names.BRIDGE}/disable_ipv6": "1"}
    for device in (names.BRIDGE, *tunnels):
        wanted[f"net/ipv4/conf/{device}/rp_filter"] = "1"
        wanted[f"net/ipv4/conf/{device}/send_redirects"] = "0"
        wanted[f"net/ipv4/conf/{device}/accept_redirects"] = "0"
    return wanted


# --- peers ------------------------------------------------------------------------------------------


def _reachable(desired: DesiredIndex) -> Iterable[Peer]:
    return (peer for peer in desired.peers.values() if peer.encapsulation in ENCAPSULATIONS)


def _tunnel(header: NodeState, facts: HostFacts, peer: Peer) -> Tunnel | None:
    if peer.encapsulation == "direct":
        return None
    vxlan = peer.encapsulation == "vxlan"
    return Tunnel(
        device=names.tunnel_device(peer.block),
        encapsulation=peer.encapsulation,
        local=facts.underlay,
        remote=peer.underlay,
        mtu=peer.mtu,
        vni=peer.vni if vxlan else 0,
        port=VXLAN_PORT if vxlan else 0,
        mac=mac_of(_gateway(header)[0]) if vxlan else "",
    )


def _route(header: NodeState, facts: HostFacts, peer: Peer) -> Route:
    source = _gateway(header)[0]
    if peer.encapsulation == "direct":
        return Route(
            block=peer.block, device=facts.underlay_device, source=source, via=peer.underlay, mtu=peer.mtu
        )
    device = names.tunnel_device(peer.block)
    if peer.encapsulation == "vxlan":
        far = bridge_address(peer.block)
        return Route(block=peer.block, device=device, source=source, via=far, via_mac=mac_of(far))
    return Route(block=peer.block, device=device, source=source)


def _tunnel_policy(facts: HostFacts, peer: Peer) -> TunnelPolicy:
    direct = peer.encapsulation == "direct"
    return TunnelPolicy(
        device=facts.underlay_device if direct else names.tunnel_device(peer.block),
        block=peer.block,
        encapsulation=peer.encapsulation,
        outer=peer.underlay,
        vni=peer.vni if peer.encapsulation == "vxlan" else 0,
        mac=peer.underlay_mac if direct else "",
    )


# --- policies ---------------------------------------------------------------------------------------


def _host_policy(
    desired: DesiredIndex,
    bindings: Iterable[PortBinding],
    pairs: Iterable[Pair],
    tunnels: Iterable[TunnelPolicy],
) -> HostPolicy:
    header = desired.header
    gateway, _ = _gateway(header)
    return HostPolicy(
        bridge=names.BRIDGE,
        address=gateway,
        block=header.block or "",
        supernet=header.supernet,
        resolver=gateway,
        closed=desired.closed,
        bindings=frozenset(bindings),
        pairs=frozenset(pairs),
        tunnels=frozenset(tunnels),
        vxlan_port=VXLAN_PORT,
    )


def _pairs(desired: DesiredIndex, pairs: Iterable[PairKey], now: float) -> Iterable[Pair]:
    for pair in pairs:
        open_now = [permit.expires_at for permit in _unexpired(desired.between(pair), now)]
        if open_now:
            yield Pair(*pair, expires_at=_latest(open_now))


def _unexpired(permits: Iterable[Permit], now: float) -> Iterable[Permit]:
    return (permit for permit in permits if permit.expires_at is None or permit.expires_at > now)


def _latest(times: Iterable[float | None]) -> float | None:
    """Return the last of some points in time, of which None is never."""
    latest = 0.0
    for time in times:
        if time is None:
            return None
        latest = max(latest, time)
    return latest


def openings(permit: Permit, address: str) -> tuple[Opening | None, Opening | None]:
    """Return what `permit` opens at the container with `address`: inbound, and outbound."""
    peer = permit.source if address == permit.destination else permit.destination
    opening = Opening(peer, permit.port.protocol, permit.port.number, permit.expires_at)
    both = permit.port.protocol == "any"
    inbound = both or address == permit.destination
    outbound = both or address == permit.source
    return (opening if inbound else None), (opening if outbound else None)


def _container_policy(
    desired: DesiredIndex, identifier: str, now: float, partners: Iterable[str] | None = None
) -> ContainerPolicy:
    """Return layer 1 of a container; with `partners`, only the openings towards those."""
    address = desired.containers[identifier].address
    inbound: list[Opening] = []
    outbound: list[Opening] = []
    for partner in desired.partners_of(address) if partners is None else partners:
        for permit in _unexpired(desired.between(pair_key(address, partner)), now):
            into, out_of = openings(permit, address)
            if into is not None:
                inbound.append(into)
            if out_of is not None:
                outbound.append(out_of)
    gateway, _ = _gateway(desired.header)
    return ContainerPolicy(
        address=address,
        gateway=gateway,
        resolver=gateway,
        closed=desired.closed,
        inbound=_longest(inbound),
        outbound=_longest(outbound),
    )


def _longest(found: Iterable[Opening]) -> frozenset[Opening]:
    """Of openings that differ in their lifetime alone, keep the one that lasts longest."""
    lasting: dict[tuple[str, str, int], Opening] = {}
    for opening in found:
        key = (opening.peer, opening.protocol, opening.port)
        other = lasting.get(key)
        if other is None or _latest((other.expires_at, opening.expires_at)) == opening.expires_at:
            lasting[key] = opening
    return frozenset(lasting.values())
