"""The nouns of one node's kernel and engine, used alike for what should be and for what is.

`target` computes a `HostState` from the desired state, `observe` reads one, `diff` compares the two.
Since both sides are the same type, a difference is an inequality.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import attrs

from firewall_rules.backends.base import Variant
from firewall_rules.policy import ContainerPolicy, HostPolicy
from netctl.model import ContainerRunState, Encapsulation, WireguardEnd

DOCKER: Final = "docker"
"""The engine whose containers get their links and rules as Docker's endpoints, and go in their own time."""


@attrs.frozen
class Bridge:
    """The node's bridge. Its name is `firewall_rules.names.BRIDGE`.

    Attributes:
        address: Its address with the block's length, e.g. ``10.1.0.1/16``.
        mtu: Bytes.
        mac: Derived from its address, so that it never changes with its ports.
    """

    address: str
    mtu: int
    mac: str
    up: bool = True


@attrs.frozen
class Tunnel:
    """One tunnel device; direct tunnels have none.

    Attributes:
        device: `firewall_rules.names.tunnel_device` of the peer's block.
        local: Outer source address.
        remote: Outer destination address.
        mtu: Bytes of an inner packet.
        vni: With vxlan.
        port: UDP destination port, with vxlan; 0 otherwise.
        mac: Ethernet address of our end, with vxlan (that of our bridge); empty otherwise.
    """

    device: str
    encapsulation: Encapsulation
    local: str
    remote: str
    mtu: int
    vni: int = 0
    port: int = 0
    mac: str = ""
    up: bool = True


@attrs.frozen(order=True)
class WireguardPeer:
    """A peer of our WireGuard link; its allowed IPs are its block and nothing else.

    Attributes:
        key: Public, in hexadecimal.
        endpoint: The peer's underlay address.
        port: UDP, of its end.
    """

    block: str
    key: str
    endpoint: str
    port: int


@attrs.frozen
class WireguardLink:
    """One of the node's WireGuard links: one for each generation of its key, with all peers on it.

    Attributes:
        device: `firewall_rules.names.wireguard_device` of the generation.
        generation: Of the key it holds; 0: it holds none that we know.
        port: UDP port it listens at.
        mtu: Bytes of an inner packet.
    """

    device: str
    generation: int
    port: int
    mtu: int
    peers: frozenset[WireguardPeer] = frozenset()
    up: bool = True


@attrs.frozen
class ProbeTarget:
    """One way to one peer that is to be probed, and by which the peer's probes are answered.

    Attributes:
        peer: The node's name.
        device: What probes leave by, and come in by.
        source: Our bridge's address.
        destination: The peer's bridge's address.
        mac: Whom frames go to where `device` is an Ethernet link (vxlan, direct); else empty.
        mtu: Bytes of the largest inner packet worth trying.
        chosen: It is what the pair is routed along, and is watched closely; the others now and then.
        also: Other devices that the peer's probes may come in by, and are answered by: with wireguard the
            link of the node's other key, while it is rotated.
    """

    peer: str
    encapsulation: Encapsulation
    device: str
    source: str
    destination: str
    mac: str
    mtu: int
    chosen: bool
    also: tuple[str, ...] = ()


@attrs.frozen
class Route:
    """The static route to one peer's block (rtm_protocol `names.ROUTE_PROTOCOL`).

    Attributes:
        block: Destination.
        device: The tunnel, or the underlay's link with direct.
        source: Preferred source: our bridge's address.
        via: With vxlan the peer's bridge address (onlink), with direct its underlay address; else empty.
        via_mac: With vxlan: the static neighbour entry for `via` on `device`; empty otherwise.
        mtu: Bytes; 0: the device's.
    """

    block: str
    device: str
    source: str
    via: str = ""
    via_mac: str = ""
    mtu: int = 0


@attrs.frozen
class ContainerPort:
    """The host's end of a container's veth pair, a port of the bridge.

    Attributes:
        guarded: Whether every frame from it passes the bridge's rules, those to the bridge group addresses
            too, and the bridge knows the container's Ethernet address by us, not by what it is sent.
    """

    device: str
    mtu: int
    up: bool = True
    on_bridge: bool = True
    guarded: bool = True


@attrs.frozen
class ContainerEnd:
    """The container's end: `names.CONTAINER_LINK` in its namespace, addressed, up, with a default route.

    Attributes:
        address: With the block's length, e.g. ``10.1.0.2/16``.
        gateway: Of the default route.
        loopback: Whether ``lo`` is up.
    """

    address: str
    gateway: str
    mtu: int
    mac: str
    up: bool = True
    loopback: bool = True


@attrs.frozen
class EngineContainer:
    """A container as its engine sees it.

    Attributes:
        state: ``created``: its namespaces exist, its command has not started.
        generation: Of the last start; 0: never started.
        exit_code: Of a command that ended.
        message: Why the command could not be started; empty otherwise. With ``creating``: how far it is.
        removes_later: Its engine takes its time to remove it, and tells when it is gone.
    """

    state: ContainerRunState
    generation: int = 0
    exit_code: int | None = None
    message: str = ""
    removes_later: bool = False


@attrs.frozen
class HostFacts:
    """What is true of the host whatever the broker wants.

    Attributes:
        underlay_device: The link that carries the underlay address.
        encapsulations: What this kernel can do.
        host_firewall: Why layer 2 cannot be had here; empty: it can.
        wireguard: The keys it holds, by their public halves; none where the kernel has no WireGuard.
    """

    underlay: str
    underlay_device: str
    underlay_mac: str
    underlay_mtu: int
    encapsulations: tuple[Encapsulation, ...]
    firewall: Literal["nftables", "iptables", "none"]
    host_firewall: str
    engines: tuple[str, ...]
    networks: tuple[str, ...]
    wireguard: tuple[WireguardEnd, ...] = ()


@attrs.frozen
class HostChecks:
    """What of a host may be in the overlay's way, as it is; see `nodeagent.checkup` for what it means.

    Attributes:
        clock: Seconds since 1970.
        forwarding: net.ipv4.ip_forward.
        reverse_path: net.ipv4.conf.*.rp_filter by link; ``all`` among them.
        bridge_calls: net.bridge.bridge-nf-call-iptables; None: the module is not there.
        forward_policies: Policy of the FORWARD chain by variant of iptables that has one.
            Other base chains of the forward hook that drop what they do not name are among them, by
            family, table and chain.
        docker_user: Whether our rule stands in DOCKER-USER, by variant of iptables that has that chain; yes
            too where FORWARD itself accepts what we let through.
        features: What the kernel was asked for, and whether it has it: ``gre``, ``vxlan``, ``wireguard``,
            ``bridge``, ``veth``, ``nftables inet``, ``nftables bridge``, ``nftables nat``, ``conntrack``.
        networks: As in `HostFacts`.
        routes: The link by which packets to a peer's underlay address leave, by address; empty: there is no
            route.
    """

    clock: float
    forwarding: bool
    reverse_path: Mapping[str, int]
    bridge_calls: bool | None
    forward_policies: Mapping[str, str]
    docker_user: Mapping[str, bool]
    features: Mapping[str, bool]
    networks: tuple[str, ...]
    routes: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen
class HostState:
    """Everything of ours on one node: what should be, or what is.

    Attributes:
        sysctls: By path below /proc/sys with slashes.
        routes: By block.
        tunnels: By device.
        ports: By device. A port whose container nobody knows is garbage to remove.
        ends: By container id; absent where the namespace exists but has no such link.
        host_policy: None: our host tables are missing or not as we left them.
        container_policies: By container id; absent: missing or not as we left it.
        containers: By container id; those that Docker's users made are not among them.
        sandboxes: By endpoint key: whether the namespace of a Docker endpoint is there; absent: it is not
            watched. Its port is in `ports` and its layer 1 in `container_policies`, by the same key.
        passages: By variant of iptables that has a chain DOCKER-USER: whether our rule stands in it.
        wireguard: By device.
    """

    bridge: Bridge | None = None
    sysctls: Mapping[str, str] = attrs.field(factory=dict)
    tunnels: Mapping[str, Tunnel] = attrs.field(factory=dict)
    routes: Mapping[str, Route] = attrs.field(factory=dict)
    ports: Mapping[str, ContainerPort] = attrs.field(factory=dict)
    ends: Mapping[str, ContainerEnd] = attrs.field(factory=dict)
    host_policy: HostPolicy | None = None
    container_policies: Mapping[str, ContainerPolicy] = attrs.field(factory=dict)
    containers: Mapping[str, EngineContainer] = attrs.field(factory=dict)
    sandboxes: Mapping[str, bool] = attrs.field(factory=dict)
    passages: Mapping[Variant, bool] = attrs.field(factory=dict)
    wireguard: Mapping[str, WireguardLink] = attrs.field(factory=dict)
