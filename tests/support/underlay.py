"""A node with real tunnels and a container, two peer nodes and a stranger, all on one Ethernet.

The peers and the stranger have no rules and send what they like: whole frames of their own making, or, by
WireGuard, any inner packet. The node checks no reverse paths, so that nothing but its own rules, and what an
encapsulation does by itself, is between them and the container.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

from firewall_rules.backends.nftables import NftablesHostBackend
from firewall_rules.names import port_device, tunnel_device, wireguard_device
from firewall_rules.policy import HostPolicy, Pair, PortBinding, TunnelPolicy
from netctl.model import mac_of
from nodeagent.kernel.linux import LinuxKernel
from nodeagent.kernel.wireguard_keys import WireguardKeys
from nodeagent.kernel_state import WireguardLink, WireguardPeer
from nodeagent.ops import SetWireguard
from tests.support.netns import (
    BLOCKED_AFTER,
    Namespace,
    ethernet,
    ipv4,
    readable,
    send_frames,
    udp,
    veth,
)

NODE, PEER, THIRD, STRANGER = "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.66"
INTERNET = "198.51.100.2"
"""An address behind the stranger, who is the node's way to the internet."""
GATEWAY, ONE = "10.1.0.1", "10.1.0.2"
BLOCKS: Mapping[str, str] = {PEER: "10.2.0.0/16", THIRD: "10.3.0.0/16"}
VNIS: Mapping[str, int] = {PEER: 17, THIRD: 18}
FAR, FAR_OTHER, FAR_ROUTER, THIRDS = "10.2.0.2", "10.2.0.9", "10.2.0.1", "10.3.0.5"
MACS: Mapping[str, str] = {
    NODE: "02:00:00:00:02:01",
    PEER: "02:00:00:00:02:02",
    THIRD: "02:00:00:00:02:03",
    STRANGER: "02:00:00:00:02:42",
}
MARKER = b"netctl-test-marker"
PORT = 9999
IPV4, UDP, GRE = 0x0800, 17, 47
VXLAN_PORT, WIREGUARD_PORT = 4789, 51820
GENERATION = 2
LINK = wireguard_device(GENERATION)
"""Everybody's WireGuard link."""
SETTLED_WITHIN = 20.0
"""Seconds until a handshake that was lost once has been tried again (WireGuard waits for five)."""
_CONTAINER = "01" * 16
_TO_US = 0  # PACKET_HOST: packet(7)


def packet(source: str, target: str, payload: bytes = MARKER) -> bytes:
    """Return an inner packet, UDP to `PORT`."""
    return ipv4(source, target, UDP, udp(PORT, PORT, payload))


@attrs.define
class Underlay:
    """The hosts, and the way that the node's tunnels go.

    Attributes:
        way: The encapsulation.
        hosts: By underlay address.
        container: What has `ONE`, behind the node.
        keys: Where each host's WireGuard keys are, by underlay address.
    """

    way: str
    hosts: dict[str, Namespace]
    container: Namespace
    keys: dict[str, WireguardKeys]
    _kernels: list[LinuxKernel] = attrs.field(factory=list)
    _backend: NftablesHostBackend = attrs.field(factory=NftablesHostBackend)

    @property
    def node(self) -> Namespace:
        return self.hosts[NODE]

    def device(self, peer: str = PEER) -> str:
        """Return the link of the node's that leads to a peer."""
        match self.way:
            case "wireguard":
                return LINK
            case "direct":
                return "eth0"
            case way:
                return tunnel_device(BLOCKS[peer], way)

    def policy(self, *others: str, routed: bool = True) -> HostPolicy:
        """Return rules by which the container has a connection with `FAR`, and with `others`."""
        return HostPolicy(
            bridge="netctl0",
            address=GATEWAY,
            block="10.1.0.0/16",
            supernet="10.0.0.0/8",
            resolver=GATEWAY,
            closed=frozenset({"192.0.2.0/24"}),
            bindings=frozenset({PortBinding(port_device(_CONTAINER), mac_of(ONE), ONE)}),
            pairs=frozenset(Pair(*sorted((ONE, other))) for other in (FAR, *others)),
            tunnels=frozenset(
                TunnelPolicy(
                    device=self.device(peer),
                    block=block,
                    encapsulation=self.way,
                    outer=peer,
                    vni=VNIS[peer] if self.way == "vxlan" else 0,
                    mac=MACS[peer] if self.way == "direct" else "",
                    routed=routed,
                )
                for peer, block in BLOCKS.items()
            ),
            wireguard_ports=frozenset({WIREGUARD_PORT, WIREGUARD_PORT + 1}),
        )

    def install(self, policy: HostPolicy) -> None:
        with self.node.entered():
            self._backend.install(policy)

    def remove_rules(self) -> None:
        with self.node.entered():
            self._backend.remove()

    def sent(
        self,
        inner: bytes,
        *,
        by: str = PEER,
        outer: str = "",
        mac: str = "",
        vni: int | None = None,
    ) -> Callable[[], None]:
        """Return what has a host send an inner packet to the node by `way`.

        Args:
            inner: An IPv4 packet.
            by: Underlay address of the host that does it.
            outer: The source it gives the outer packet; empty: its own. Not by WireGuard.
            mac: The Ethernet source; empty: its own. Not by WireGuard.
            vni: With vxlan; None: that of the pair, or a stranger's guess at the peer's.
        """
        host = self.hosts[by]
        if self.way == "wireguard":
            return lambda: _send_into(host, LINK, inner)
        source, mac = outer or by, mac or MACS[by]
        vni = VNIS.get(by, VNIS[PEER]) if vni is None else vni
        match self.way:
            case "gre":
                # RFC 2784: neither checksum nor key, and IPv4 inside.
                carried = ipv4(source, NODE, GRE, struct.pack("!HH", 0, IPV4) + inner)
            case "vxlan":
                frame = ethernet(mac_of(GATEWAY), mac_of(FAR_ROUTER), IPV4, inner)
                # RFC 7348: the flag that says that there is an identifier, and the identifier.
                vxlan = struct.pack("!II", 0x08000000, vni << 8) + frame
                carried = ipv4(source, NODE, UDP, udp(5555, VXLAN_PORT, vxlan))
            case _:
                carried = inner
        frames = [ethernet(MACS[NODE], mac, IPV4, carried)]
        return lambda: send_frames(host, "eth0", frames)

    def reaches_container(self, send: Callable[[], None], seconds: float = BLOCKED_AFTER) -> bool:
        return reaches(self.container, "eth0", send, seconds)

    def speaks(self, source: str = FAR, *, by: str = PEER) -> bool:
        """Whether the control comes through: a node speaks for its own block. Leaves a handshake its time."""
        send = self.sent(packet(source, ONE), by=by)
        deadline = time.monotonic() + SETTLED_WITHIN
        while time.monotonic() < deadline:
            if self.reaches_container(send, 1.0):
                return True
        return False

    def give_wireguard(self, owner: str, link: WireguardLink) -> None:
        """Make or change a WireGuard link of a host, as a node's agent does."""
        with self.hosts[owner].entered():
            kernel = LinuxKernel(self.keys[owner])
            self._kernels.append(kernel)
            assert kernel.apply([SetWireguard(link)], {}) == [""]

    def close(self) -> None:
        for kernel in self._kernels:
            kernel.close()


def reaches(at: Namespace, link: str, send: Callable[[], None], seconds: float) -> bool:
    """Whether something with the marker comes in on `link`, and for that host, after `send`."""
    with at.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((link, 0x0003))
        send()
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and readable(sock, left):
            frame, sender = sock.recvfrom(65536)
            if MARKER in frame and sender[2] == _TO_US:
                return True
        return False


def _send_into(host: Namespace, link: str, inner: bytes) -> None:
    with host.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        sock.bind((link, IPV4))
        sock.send(inner)


def make_underlay(make: Callable[[], Namespace], way: str, directory: Path) -> Underlay:
    """Build it; the node has no rules yet. `directory`: for keys."""
    lan, container = make(), make()
    hosts = {owner: make() for owner in MACS}
    keys = {owner: WireguardKeys(directory / owner) for owner in MACS}
    net = Underlay(way, hosts, container, keys)
    _batch(lan, "link add lan0 type bridge", "link set lan0 up")
    for number, (owner, host) in enumerate(hosts.items()):
        veth(lan, f"to{number}", host, "eth0")
        # Nobody says anything of his own accord: the switch learns from it whose MAC is where.
        host.sysctl("net/ipv6/conf/eth0/disable_ipv6", "1")
        _batch(lan, f"link set to{number} master lan0 up")
        _batch(
            host, f"link set eth0 address {MACS[owner]}", f"addr add {owner}/24 dev eth0", "link set eth0 up"
        )
    _batch(hosts[STRANGER], f"addr add {INTERNET}/32 dev lo")
    _make_node(net)
    if way == "wireguard":
        _make_wireguard(net)
    return net


def _make_node(net: Underlay) -> None:
    node, port = net.node, port_device(_CONTAINER)
    veth(node, port, net.container, "eth0")
    _batch(
        node,
        f"link add netctl0 address {mac_of(GATEWAY)} type bridge",
        f"addr add {GATEWAY}/16 dev netctl0",
        "link set netctl0 up",
        f"link set {port} master netctl0 up",
        # Whoever has forged a frame does not answer for the address.
        *(f"neigh replace {owner} lladdr {MACS[owner]} dev eth0" for owner in (PEER, THIRD, STRANGER)),
        f"route add default via {STRANGER}",
    )
    _batch(
        net.container,
        f"link set eth0 address {mac_of(ONE)}",
        f"addr add {ONE}/16 dev eth0",
        "link set eth0 up",
        f"route add default via {GATEWAY}",
    )
    settings = {"net/ipv4/ip_forward": "1", "net/ipv4/conf/default/rp_filter": "0"}
    links = ["all", "eth0", "netctl0"]
    for path, value in settings.items():
        node.sysctl(path, value)
    for peer, block in BLOCKS.items():
        device = net.device(peer)
        kinds = {
            "gre": f"type gre local {NODE} remote {peer}",
            "vxlan": f"address {mac_of(GATEWAY)} type vxlan id {VNIS[peer]} local {NODE} remote {peer} "
            f"dstport {VXLAN_PORT} nolearning",
        }
        if net.way in kinds:
            far = block.replace("0.0/16", "0.1")
            by = f"via {far} dev {device} onlink" if net.way == "vxlan" else f"dev {device}"
            _batch(
                node,
                f"link add {device} {kinds[net.way]}",
                f"link set {device} up",
                f"route add {block} {by} src {GATEWAY}",
                *([f"neigh replace {far} lladdr {mac_of(far)} dev {device}"] if net.way == "vxlan" else []),
            )
            links.append(device)
        elif net.way == "direct":
            _batch(node, f"route add {block} via {peer} src {GATEWAY}")
    for link in links:
        node.sysctl(f"net/ipv4/conf/{link}/rp_filter", "0")


def _make_wireguard(net: Underlay) -> None:
    public = {owner: net.keys[owner].make(GENERATION).public for owner in (NODE, *BLOCKS)}
    device = net.device()
    net.give_wireguard(
        NODE,
        WireguardLink(
            device,
            GENERATION,
            WIREGUARD_PORT,
            1420,
            frozenset(
                WireguardPeer(block, public[peer], peer, WIREGUARD_PORT) for peer, block in BLOCKS.items()
            ),
        ),
    )
    _batch(net.node, *(f"route add {block} dev {device} src {GATEWAY}" for block in BLOCKS.values()))
    net.node.sysctl(f"net/ipv4/conf/{device}/rp_filter", "0")
    for peer in BLOCKS:
        give_end(net, peer)


def give_end(net: Underlay, owner: str) -> None:
    """Give a host a WireGuard end of its own to the node, into which it may put any packet."""
    node_key = net.keys[NODE].make(GENERATION).public
    peer = WireguardPeer("0.0.0.0/0", node_key, NODE, WIREGUARD_PORT)
    net.give_wireguard(owner, WireguardLink(LINK, GENERATION, WIREGUARD_PORT, 1420, frozenset({peer})))


def take_key(net: Underlay, thief: str, owner: str) -> None:
    """Have one host hold the very key of another."""
    net.keys[thief] = net.keys[owner]


def _batch(namespace: Namespace, *commands: str) -> None:
    """Run commands of ip(8) in one process: where one costs dearly, this is still quick."""
    namespace.run("ip", "-batch", "-", text="\n".join(commands))
