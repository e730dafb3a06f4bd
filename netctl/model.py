"""The nouns of the overlay, as frozen data without any input or output.

Text that comes from outside is bounded by the annotated types below: the codec checks them before
anyone looks at a value. Addresses are canonical dotted quads, blocks are ``a.b.c.d/len`` with no host
bits set; both are kept as text, since they are compared and carried far more often than computed with.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from ipaddress import IPv4Network
from typing import Annotated, Literal

import attrs
import msgspec

from netctl.errors import InvalidError

_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_ADDRESS = rf"{_OCTET}(\.{_OCTET}){{3}}"
NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z"

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, max_length=63)]
"""A DNS label (RFC 1123): 1 to 63 lower-case letters, digits and inner hyphens."""
ContainerId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
"""Opaque: 128 random bits in hexadecimal."""
Address = Annotated[str, msgspec.Meta(pattern=rf"^{_ADDRESS}\Z")]
"""A canonical IPv4 address."""
Cidr = Annotated[str, msgspec.Meta(pattern=rf"^{_ADDRESS}/([12]?[0-9]|3[0-2])\Z")]
"""An IPv4 network as address/length."""
Mac = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{2}:){5}[0-9a-f]{2}\Z")]
"""An Ethernet address in lower case."""
PublicKey = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""A Curve25519 public key in hexadecimal."""
Text = Annotated[str, msgspec.Meta(max_length=4096)]
"""Free text of at most 4,096 characters: messages, arguments, values."""
Word = Annotated[str, msgspec.Meta(max_length=64)]
"""A short token: a version, a code, a mode."""
Mtu = Annotated[int, msgspec.Meta(ge=576, le=65535)]
"""Bytes of one IP packet on a link."""
Seconds = Annotated[float, msgspec.Meta(ge=0, le=2**40)]
"""A point in time (seconds since 1970) or a duration, as the field says; never infinite."""
Revision = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"""Grows by one with every recorded change; also used for epochs."""

DockerId = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""What Docker calls one of its containers, networks or endpoints by."""

Encapsulation = Literal["gre", "vxlan", "wireguard", "direct", "none"]
"""How one pair of nodes carries the overlay; ``none``: they have no mode in common, the tunnel is down."""
Encryption = Literal["off", "required"]
"""Whether a pair of nodes may carry the overlay in plain text; ``required``: by wireguard, or not at all."""
TransportProtocol = Literal["tcp", "udp", "icmp", "any"]
Wanted = Literal["running", "stopped"]
Origin = Literal["broker", "engine"]
"""Who made a container: the broker (`netctl run`), or its engine's own user (`docker run`)."""
Loosening = Literal[
    "writable-root",
    "new-privileges",
    "seccomp-unconfined",
    "root-user",
    "privileged",
    "host-pid",
    "host-ipc",
    "host-uts",
]
"""What of a Docker container's hard defaults its user took back, one word for each."""
ContainerRunState = Literal["creating", "created", "running", "exited", "failed", "unknown"]

OVERHEAD: Mapping[str, int] = {"gre": 24, "vxlan": 50, "wireguard": 60, "direct": 0, "none": 0}
"""Bytes each encapsulation adds in front of an inner IP packet: GRE 20+4 (RFC 2784); VXLAN
20+8+8+14 (RFC 7348); WireGuard 20+8+32 over IPv4; direct nothing."""

DEFAULT_SUPERNET = "10.0.0.0/8"
DEFAULT_BLOCK_SIZE = 16
BROKER_PORT = 2020
VXLAN_PORT = 4789
"""UDP port of VXLAN (RFC 7348) unless `broker init` says another."""
WIREGUARD_PORTS = (51820, 51821)
"""UDP ports of a node's WireGuard links; a key of generation g has the one at g % 2."""


def check_name(text: str, what: str = "name") -> str:
    """Return `text` if it is a DNS label.

    Raises:
        InvalidError: It is not; the message says what a name may be.
    """
    if re.match(NAME_PATTERN, text) is None:
        raise InvalidError(
            f"{text[:80]!r} is no valid {what}",
            "use 1 to 63 lower-case letters, digits and inner hyphens",
        )
    return text


@attrs.frozen(order=True)
class Port:
    """What a connection opens at its destination.

    Attributes:
        protocol: ``any`` stands for everything, both ways.
        number: 1 to 65535 for tcp and udp; 0 for icmp (echo requests) and any.
    """

    protocol: TransportProtocol
    number: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0

    def __attrs_post_init__(self) -> None:
        """Refuse a number where there is none, and none where one must be (ValueError, as msgspec wants)."""
        if (self.protocol in ("tcp", "udp")) != (self.number > 0):
            raise ValueError(f"{self.protocol} with port number {self.number}")

    @classmethod
    def parse(cls, text: str) -> Port:
        """Read ``5432/tcp``, ``53/udp``, ``5432`` (tcp) or ``icmp``.

        Raises:
            InvalidError: The text is of no such form.
        """
        remedy = "write a port as 5432/tcp, 53/udp, 5432 (tcp) or icmp"
        if text == "icmp":
            return cls("icmp")
        number, _, protocol = text.partition("/")
        if not re.fullmatch(r"[0-9]{1,5}", number) or not 1 <= int(number) <= 65535:  # noqa: PLR2004 - the range of a port
            raise InvalidError(f"{text[:80]!r} is no port", remedy)
        if protocol in ("tcp", ""):
            return cls("tcp", int(number))
        if protocol == "udp":
            return cls("udp", int(number))
        raise InvalidError(f"{text[:80]!r} names no protocol that can be opened", remedy)

    def __str__(self) -> str:
        return f"{self.number}/{self.protocol}" if self.number else self.protocol.replace("any", "all")


ANY_PORT = Port("any")
"""The port of a connection made without ``--port``: everything, in both directions."""


@attrs.frozen
class Workload:
    """What a container runs.

    Attributes:
        engine: The container engine that runs it.
        argv: Program and arguments; with ``process`` at least one; with ``docker`` none means the image's
            own.
        env: Pairs of name and value, added to a minimal environment.
        user: ``uid[:gid]`` or a name; empty: the engine's default.
        cap_add: Capabilities beyond the engine's default set, e.g. ``NET_ADMIN``.
        workdir: Absolute directory to start in; with ``docker`` empty: the image's own.
        image: With ``docker``: what it is made from.
        volumes: With ``docker``: ``SRC:DST`` or ``SRC:DST:ro``, as `docker run -v` takes them.
        labels: With ``docker``: pairs of name and value.
        restart: With ``docker``: ``no``, ``always``, ``unless-stopped``, ``on-failure`` or ``on-failure:N``.
        memory: With ``docker``: bytes at most; 0: the engine's default.
        cpus: With ``docker``: processors at most; 0: no limit.
        pids: With ``docker``: processes and threads at most; 0: the engine's default.
        loosened: What its user took back of the hard defaults.
        unsafe: Why something was let in that weakens layer 1 or the host (`netctl run --allow-unsafe`);
            empty: nothing was.
    """

    engine: Literal["process", "docker"]
    argv: Annotated[tuple[Text, ...], msgspec.Meta(max_length=512)]
    env: Annotated[tuple[tuple[Text, Text], ...], msgspec.Meta(max_length=512)] = ()
    user: Word = ""
    cap_add: Annotated[tuple[Word, ...], msgspec.Meta(max_length=64)] = ()
    workdir: Text = "/"
    image: Annotated[str, msgspec.Meta(max_length=512)] = ""
    volumes: Annotated[tuple[Text, ...], msgspec.Meta(max_length=64)] = ()
    labels: Annotated[tuple[tuple[Text, Text], ...], msgspec.Meta(max_length=128)] = ()
    restart: Word = "no"
    memory: Annotated[int, msgspec.Meta(ge=0, le=2**50)] = 0
    cpus: Annotated[float, msgspec.Meta(ge=0, le=4096)] = 0.0
    pids: Annotated[int, msgspec.Meta(ge=0, le=2**22)] = 0
    loosened: Annotated[tuple[Loosening, ...], msgspec.Meta(max_length=16)] = ()
    unsafe: Text = ""


@attrs.frozen(order=True)
class Wish:
    """A connection that a container's label asks for (``netctl.connect``).

    Attributes:
        destination: A service of its own Compose project on its own node, or a container's recorded name.
    """

    destination: Annotated[str, msgspec.Meta(max_length=128)]
    port: Port


@attrs.frozen
class DockerContainer:
    """A container that Docker's own user made on one of our networks, as its node reports it.

    Attributes:
        id: The first 32 hexadecimal digits of Docker's id.
        name: Docker's name, without its slash.
        address: Of its endpoint on our network; empty: it has none now, as one that is stopped.
        wishes: What its label ``netctl.connect`` asks for.
        project: Its Compose project; empty: none.
        service: Its Compose service; empty: none.
    """

    id: ContainerId
    name: Annotated[str, msgspec.Meta(max_length=128)]
    image: Annotated[str, msgspec.Meta(max_length=512)]
    address: Annotated[str, msgspec.Meta(pattern=rf"^({_ADDRESS})?\Z")] = ""
    wishes: Annotated[tuple[Wish, ...], msgspec.Meta(max_length=64)] = ()
    project: Annotated[str, msgspec.Meta(max_length=128)] = ""
    service: Annotated[str, msgspec.Meta(max_length=128)] = ""


@attrs.frozen(order=True)
class WireguardEnd:
    """One end of a node's WireGuard tunnels; while its key is rotated it has two.

    Attributes:
        generation: Of its key; grows by one with every `netctl node rotate-key`.
        key: The public half. The private one never leaves the node's privileged child.
        port: UDP port it listens at.
    """

    generation: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    key: PublicKey
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


@attrs.frozen(order=True)
class PathState:
    """How one node finds one way to one peer, by probes that went there and back.

    Attributes:
        up: Small probes come back.
        mtu: Bytes of the largest inner packet that came back; 0: none did.
        rtt_us: Microseconds there and back, median of the last probes; 0: unknown.
        loss_permille: Of the last probes.
    """

    peer: Name
    encapsulation: Encapsulation
    up: bool
    mtu: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    rtt_us: Annotated[int, msgspec.Meta(ge=0, le=2**40)] = 0
    loss_permille: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0


@attrs.frozen(order=True)
class Finding:
    """Something that is not as it should be on a node, or between nodes.

    Attributes:
        severity: ``error``: something does not work; ``warning``: it does, but it may not do so for long.
        subject: What it is about: a node's name, ``n1 -> n2``, a network.
        remedy: What to do about it.
    """

    severity: Literal["error", "warning"]
    subject: Annotated[str, msgspec.Meta(max_length=256)]
    message: Text
    remedy: Text = ""


@attrs.frozen
class NodeFacts:
    """What a node says of itself, at the start of every session and whenever it changes.

    Attributes:
        underlay: Its address in the underlay, where tunnels end.
        underlay_mac: Ethernet address of the underlay's link; empty if it has none.
        underlay_mtu: Bytes, of the underlay's link.
        encapsulations: What its kernel can do and its operator allows; the broker orders them.
        firewall: Backend in use for containers' namespaces.
        engines: Container engines it offers.
        networks: Routes, pools and VPNs present on the host, ours left out.
        version: Of the agent's program.
        wireguard: Its WireGuard ends; none where its kernel, or its operator, has no WireGuard.
    """

    underlay: Address
    underlay_mac: Annotated[str, msgspec.Meta(max_length=17)]
    underlay_mtu: Mtu
    encapsulations: Annotated[tuple[Encapsulation, ...], msgspec.Meta(max_length=8)]
    firewall: Word
    engines: Annotated[tuple[Word, ...], msgspec.Meta(max_length=8)]
    networks: Annotated[tuple[Cidr, ...], msgspec.Meta(max_length=4096)] = ()
    version: Word = ""
    wireguard: Annotated[tuple[WireguardEnd, ...], msgspec.Meta(max_length=8)] = ()


@attrs.frozen(order=True)
class Permit:
    """One connection as a node sees it: `source` may open `port` at `destination`.

    Attributes:
        expires_at: Seconds since 1970 after which it is closed by the kernel itself; None: never.
    """

    source: Address
    destination: Address
    port: Port
    expires_at: Seconds | None = None


@attrs.frozen
class Peer:
    """The tunnel a node keeps to one other node.

    Attributes:
        name: The other node.
        block: Its block, routed along the tunnel.
        underlay: Its underlay address.
        underlay_mac: The Ethernet address its block is bound to when `encapsulation` is direct.
        encapsulation: Chosen by the broker for the pair.
        vni: VXLAN network identifier of the pair (24 bits); 0 where unused.
        mtu: Bytes of one inner packet on this tunnel, as the path takes it.
        candidates: Every encapsulation the pair may use, best first, `encapsulation` among them. All of them
            stand ready and are probed; only `encapsulation` is routed along.
        outer_mtu: Bytes of one outer packet by the two nodes' links, whatever the path between them takes;
            0: as `mtu` says.
        wireguard: The end of the peer's to send to; None: it has none.
    """

    name: Name
    block: Cidr
    underlay: Address
    underlay_mac: Annotated[str, msgspec.Meta(max_length=17)]
    encapsulation: Encapsulation
    vni: Annotated[int, msgspec.Meta(ge=0, lt=2**24)]
    mtu: Mtu
    candidates: Annotated[tuple[Encapsulation, ...], msgspec.Meta(max_length=8)] = ()
    outer_mtu: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    wireguard: WireguardEnd | None = None


@attrs.frozen
class PlacedContainer:
    """A container as its node must have it.

    Attributes:
        wanted: Whether its command should run.
        generation: Grows with every start; a container that ended runs again only at a higher one.
        origin: One that its engine's user made is neither started nor stopped nor removed by the agent;
            `wanted` and `generation` mean nothing then.
    """

    id: ContainerId
    name: Name
    address: Address
    workload: Workload
    wanted: Wanted
    generation: Annotated[int, msgspec.Meta(ge=1, le=2**31)]
    origin: Origin = "broker"


@attrs.frozen
class NodeState:
    """The desired state of one node, whole, at one revision.

    Attributes:
        block: This node's block; None: the node was removed and takes everything of ours out.
        supernet: What all blocks are cut from.
        encapsulation: The node's own preferred mode, which fixes its containers' MTU.
        mtu: Bytes, of every container's link and the bridge.
        closed: Networks and addresses no container may reach whatever they are: underlay addresses
            of all nodes and of the broker.
        peers: By name.
        containers: By id.
        permits: Every connection that has an end on this node.
        reserve: Addresses of the block on lease: the node gives them to containers that Docker's user
            starts, without asking first. What has one is closed until it is recorded in `containers`.
        vxlan_port: UDP port of VXLAN, the same on every node.
        encryption: With ``required`` nothing but wireguard is ever made of a peer.
        wireguard_generations: Of the node's own keys: the ends to hold; the first is the one to send from.
    """

    name: Name
    block: Cidr | None
    supernet: Cidr
    encapsulation: Encapsulation
    mtu: Mtu
    closed: tuple[Cidr, ...] = ()
    vxlan_port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = VXLAN_PORT
    encryption: Encryption = "off"
    wireguard_generations: Annotated[tuple[int, ...], msgspec.Meta(max_length=8)] = ()
    peers: Mapping[Name, Peer] = attrs.field(factory=dict)
    containers: Mapping[ContainerId, PlacedContainer] = attrs.field(factory=dict)
    permits: frozenset[Permit] = frozenset()
    reserve: frozenset[Address] = frozenset()


@attrs.frozen
class NodeDelta:
    """What turns one desired state of a node into a later one.

    Attributes:
        header: Everything of the new state but its maps and sets (which are empty), where any of it changed.
    """

    header: NodeState | None = None
    peers: tuple[Peer, ...] = ()
    peers_removed: tuple[Name, ...] = ()
    containers: tuple[PlacedContainer, ...] = ()
    containers_removed: tuple[ContainerId, ...] = ()
    permits: tuple[Permit, ...] = ()
    permits_removed: tuple[Permit, ...] = ()
    reserve: tuple[Address, ...] = ()
    reserve_removed: tuple[Address, ...] = ()


@attrs.frozen
class ContainerStatus:
    """What a node's engine says of one container.

    Attributes:
        generation: The start this status belongs to.
        exit_code: Status of a container that ended; None while it has not. 128+N: ended by signal N.
        message: Why it failed, one line; empty otherwise.
    """

    id: ContainerId
    state: ContainerRunState
    generation: Annotated[int, msgspec.Meta(ge=0, le=2**31)] = 0
    exit_code: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None
    message: Text = ""


@functools.lru_cache(maxsize=8192)
def bridge_address(block: str) -> str:
    """Return the first address of `block`: the bridge's, and the containers' gateway and resolver."""
    return str(IPv4Network(block)[1])


def mac_of(address: str) -> str:
    """Return the Ethernet address of whoever has `address` in the overlay: 6e:63 and its four bytes.

    6e has the locally-administered bit set and the group bit clear (IEEE 802), so it collides with no
    vendor's; two addresses never share one.
    """
    return "6e:63:" + ":".join(f"{int(octet):02x}" for octet in address.split("."))
