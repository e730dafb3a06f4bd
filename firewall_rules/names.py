"""Every name we own in a kernel, current and historic, so that nothing of ours is ever left unknown."""

from __future__ import annotations

from typing import Final

TABLE: Final = "netctl"
"""Our nftables table: family inet in containers; families inet and bridge on the host."""
BRIDGE: Final = "netctl0"
"""The node's bridge."""
PORT_PREFIX: Final = "ncp"
"""Host ends of containers' veth pairs."""
ENDPOINT_PREFIX: Final = "nce"
"""Container ends of Docker endpoints' veth pairs, before Docker has moved and renamed them."""
TUNNEL_PREFIX: Final = "nct"
"""Tunnel devices."""
CONTAINER_LINK: Final = "eth0"
"""The container's end of its veth pair."""
PORT_MARK: Final = 0x6E637401
"""Packet mark between the host's bridge table and its inet table: came in by a port, and is bound to it."""
FORWARD_MARK: Final = 0x6E637402
"""Packet mark of what our inet table has let through the host's forward hook, for Docker's own firewall."""
GUARDED_MARK: Final = 0x6E637403
"""The same for what comes from or goes to a bridge of Docker's, whose own firewall has a say in it too."""
OUTER_MARK: Final = 0x6E637404
"""Packet mark of what a tunnel of ours sends although a process's socket sent what is in it: probes.

A packet that is put into a tunnel's device by a socket keeps that socket when the tunnel has wrapped it, and
looks like a user's own. So probes set this mark (SO_MARK: socket(7)), and WireGuard, which gives all it sends
its own mark, has it as its link's (WGDEVICE_A_FWMARK: linux/wireguard.h). To set it one needs CAP_NET_ADMIN
or CAP_NET_RAW, with which packets get past netfilter's hooks anyway.
"""
OVERLAY_GROUP: Final = 0x6E64
"""Link group of the container's end on the overlay, where a container may have other links too."""
IPTABLES_CHAIN_PREFIX: Final = "NETCTL-"
IPSET_PREFIX: Final = "netctl-"
LINK_GROUP_DOOMED: Final = 0x6E63
"""Links put in this group are deleted together in one message."""
ROUTE_PROTOCOL: Final = 110
"""rtm_protocol of the routes we make (a free value of rtnetlink(7)), so that they are known again."""


def port_device(container_id: str) -> str:
    """Return the name of a container's port on the bridge: 15 bytes, the most the kernel takes."""
    return PORT_PREFIX + container_id[:12]


def endpoint_link(key: str) -> str:
    """Return the name of a Docker endpoint's far end until Docker moves it into the container."""
    return ENDPOINT_PREFIX + key[:12]


def tunnel_device(block: str, encapsulation: str) -> str:
    """Return the name of the tunnel by gre or vxlan to the node that has `block` (``a.b.c.d/len``)."""
    octets = block.partition("/")[0].split(".")
    return TUNNEL_PREFIX + encapsulation[0] + "".join(f"{int(octet):02x}" for octet in octets)


def wireguard_device(generation: int) -> str:
    """Return the name of the node's WireGuard link of one generation of its key: two take turns."""
    return f"{TUNNEL_PREFIX}w{generation % 2}"
