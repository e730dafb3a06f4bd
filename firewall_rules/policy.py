"""What a container, and a host, may send and receive: data, in no backend's syntax.

Addresses are canonical dotted quads, networks ``a.b.c.d/len``, Ethernet addresses lower case with colons.
Times are seconds since 1970.
"""

from __future__ import annotations

from typing import Final, Literal

import attrs

Protocol = Literal["tcp", "udp", "icmp", "any"]

ALWAYS_CLOSED: Final = frozenset(
    {
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "224.0.0.0/4",
        "240.0.0.0/4",
    }
)
"""Networks that are no part of the internet whatever a policy says (RFC 6890; multicast: RFC 5771)."""


@attrs.frozen(order=True)
class Opening:
    """One thing that is open towards, or from, one peer container.

    Attributes:
        peer: The other container's overlay address.
        protocol: ``any`` opens everything in both directions, so it stands in `inbound` and `outbound`
            alike; ``icmp`` opens echo requests (ping).
        port: The destination's port; 0 for icmp and any.
        expires_at: When the kernel closes it by itself; None: never.
    """

    peer: str
    protocol: Protocol
    port: int = 0
    expires_at: float | None = None


@attrs.frozen(order=True)
class PublishedPort:
    """A port that a container offers to whoever reaches its node from outside the overlay."""

    protocol: Literal["tcp", "udp"]
    port: int


@attrs.frozen(order=True)
class Publication:
    """A port of the node that leads to a published port of a container (`docker run -p`).

    Attributes:
        host_address: The only address of the node it is offered at; empty: all of them.
        host_port: Port at the node.
        address: The container's.
        port: At the container.
    """

    protocol: Literal["tcp", "udp"]
    host_address: str
    host_port: int
    address: str
    port: int


@attrs.frozen
class ContainerPolicy:
    """Layer 1: the firewall in one container's network namespace. What is not said here is dropped.

    Attributes:
        address: The container's own; nothing leaves from another source.
        gateway: The bridge's address, from where router errors (fragmentation needed) may come.
        resolver: Where DNS (53/udp and 53/tcp) may be asked; None: nowhere.
        closed: Networks that are never reached but through an opening: the supernet, the private,
            link-local and metadata ranges, all underlay addresses. What is not in them is the internet,
            open through the node's NAT for what the container starts.
        inbound: What peers may open to this container.
        outbound: What this container may open to peers.
        overlay_only: The namespace may have other links, which are Docker's business: only what comes in by
            or leaves by a link of group `names.OVERLAY_GROUP` is held to this policy. Otherwise everything
            but loopback is.
        internet: Whether what is not in `closed` is open at all.
        published: What the outside may open to this container, by its node: the bridge's address, which
            stands for the node itself, and whoever is not in the network of `closed` that `gateway` is in,
            which is the supernet.
    """

    address: str
    gateway: str
    resolver: str | None = None
    closed: frozenset[str] = frozenset()
    inbound: frozenset[Opening] = frozenset()
    outbound: frozenset[Opening] = frozenset()
    overlay_only: bool = False
    internet: bool = True
    published: frozenset[PublishedPort] = frozenset()


@attrs.frozen(order=True)
class PortBinding:
    """Layer 2 on the host: which addresses may come out of one port of the bridge.

    Attributes:
        device: The host's end of the container's veth pair.
    """

    device: str
    mac: str
    address: str


@attrs.frozen(order=True)
class Pair:
    """Two addresses that have a connection of any kind, as layer 2 sees them: `one` < `other` as text.

    Attributes:
        expires_at: When the last connection between them ends; None: never.
    """

    one: str
    other: str
    expires_at: float | None = None


@attrs.frozen(order=True)
class TunnelPolicy:
    """One way to one peer node: who its packets come from, and that the peer's block alone comes out of it.

    Attributes:
        device: The tunnel device; with ``direct``, the underlay's link; with ``wireguard``, one of the node's
            own, which all peers share: there the link itself tells them apart, by their keys.
        block: The peer's block.
        encapsulation: gre, vxlan, wireguard or direct.
        outer: The peer's underlay address, the only source of its outer packets.
        vni: With vxlan: the only network identifier taken from `outer`.
        mac: With direct: the only Ethernet source for the block.
        routed: Whether the peer's block may come out of it. If not, only its outer packets are let in: it
            stands ready, and probes go along it, which are taken in before the firewall and dropped by it.
    """

    device: str
    block: str
    encapsulation: str
    outer: str
    vni: int = 0
    mac: str = ""
    routed: bool = True


@attrs.frozen
class HostPolicy:
    """Layer 2 and the host's own protection, against what never crosses a container's own rules.

    Attributes:
        bridge: Device name of the node's bridge.
        address: The bridge's address.
        block: This node's block.
        supernet: What all blocks are cut from.
        resolver: Address on this host that containers may ask (53/udp, 53/tcp); None: none.
        closed: As in `ContainerPolicy.closed`.
        bindings: One per container's port; a port without one passes nothing.
        pairs: Who may exchange packets, protocols and ports not looked at (later fragments carry none).
        tunnels: The ways to the peer nodes, known by their block and device.
        vxlan_port: UDP port of VXLAN on this node.
        wireguard_ports: UDP ports of this node's own WireGuard ends. Whoever is no peer by wireguard reaches
            none of them.
        publications: Ports of the node that lead to containers.
        internal: Addresses of containers for which the internet is closed, and publications too.
    """

    bridge: str
    address: str
    block: str
    supernet: str
    resolver: str | None = None
    closed: frozenset[str] = frozenset()
    bindings: frozenset[PortBinding] = frozenset()
    pairs: frozenset[Pair] = frozenset()
    tunnels: frozenset[TunnelPolicy] = frozenset()
    vxlan_port: int = 4789
    wireguard_ports: frozenset[int] = frozenset()
    publications: frozenset[Publication] = frozenset()
    internal: frozenset[str] = frozenset()
