"""What the broker's permits come to in the two layers of the firewall: pure.

A container's address is what permits know it by, so a Docker endpoint is served like any other.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from firewall_rules import names
from firewall_rules.policy import (
    ContainerPolicy,
    HostPolicy,
    Opening,
    Pair,
    PortBinding,
    Publication,
    PublishedPort,
    TunnelPolicy,
)
from netctl.model import NodeState, Permit, bridge_address
from nodeagent.desired_index import DesiredIndex, PairKey, pair_key
from nodeagent.endpoints import Endpoint
from nodeagent.kernel_state import DOCKER


def gateway_of(header: NodeState) -> tuple[str, str]:
    """Return the bridge's address and the block's length.

    Raises:
        ValueError: The node was removed, and has no bridge.
    """
    if header.block is None:
        raise ValueError("a removed node has no bridge")
    return bridge_address(header.block), header.block.partition("/")[2]


@attrs.define
class HostElements:
    """Elements of the host's tables, as they are collected.

    Attributes:
        published: Ports of the node that lead to containers.
        internal: Addresses for which the internet is closed.
    """

    bindings: list[PortBinding] = attrs.field(factory=list)
    published: list[Publication] = attrs.field(factory=list)
    internal: list[str] = attrs.field(factory=list)


def host_policy(
    desired: DesiredIndex,
    elements: HostElements,
    pairs: Iterable[Pair],
    tunnels: Iterable[TunnelPolicy],
    wireguard_ports: frozenset[int],
) -> HostPolicy:
    """Return layer 2."""
    header = desired.header
    gateway, _ = gateway_of(header)
    return HostPolicy(
        bridge=names.BRIDGE,
        address=gateway,
        block=header.block or "",
        supernet=header.supernet,
        resolver=gateway,
        closed=desired.closed,
        bindings=frozenset(elements.bindings),
        pairs=frozenset(pairs),
        tunnels=frozenset(tunnels),
        vxlan_port=header.vxlan_port,
        wireguard_ports=wireguard_ports,
        publications=frozenset(elements.published),
        internal=frozenset(elements.internal),
    )


def pairs_of(desired: DesiredIndex, pairs: Iterable[PairKey], now: float) -> Iterable[Pair]:
    """Yield those of some pairs between which a permit has not expired."""
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


def container_policy(
    desired: DesiredIndex, address: str, now: float, partners: Iterable[str] | None = None
) -> ContainerPolicy:
    """Return layer 1 of the container with `address`; with `partners`, only the openings towards those."""
    inbound: list[Opening] = []
    outbound: list[Opening] = []
    for partner in desired.partners_of(address) if partners is None else partners:
        for permit in _unexpired(desired.between(pair_key(address, partner)), now):
            into, out_of = openings(permit, address)
            if into is not None:
                inbound.append(into)
            if out_of is not None:
                outbound.append(out_of)
    gateway, _ = gateway_of(desired.header)
    return ContainerPolicy(
        address=address,
        gateway=gateway,
        resolver=gateway,
        closed=desired.closed,
        inbound=_longest(inbound),
        outbound=_longest(outbound),
    )


def is_recorded(desired: DesiredIndex, endpoint: Endpoint) -> bool:
    """Tell whether the broker has recorded an endpoint's address for the container, which Docker runs."""
    container = desired.containers.get(endpoint.container)
    return (
        container is not None
        and container.workload.engine == DOCKER
        and desired.by_address.get(endpoint.address) == endpoint.container
    )


def endpoint_policy(
    desired: DesiredIndex, endpoint: Endpoint, now: float, partners: Iterable[str] | None = None
) -> ContainerPolicy:
    """Return layer 1 of a Docker endpoint; see `container_policy`. Without a record nothing is open."""
    if not is_recorded(desired, endpoint):
        gateway, _ = gateway_of(desired.header)
        return ContainerPolicy(
            address=endpoint.address,
            gateway=gateway,
            closed=desired.closed,
            overlay_only=True,
            internet=False,
        )
    policy = container_policy(desired, endpoint.address, now, partners)
    return attrs.evolve(
        policy,
        resolver=None if endpoint.internal else policy.resolver,
        overlay_only=True,
        internet=not endpoint.internal,
        published=frozenset(PublishedPort(one.protocol, one.port) for one in endpoint.publications),
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
