"""A small network around one container, for tests of firewalls in its namespace.

A router (the container's gateway) stands between the container and three others: two peers out of other
blocks and one host of the internet. Nothing but the container's own firewall filters.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs

from tests.support.netns import Namespace, address, veth

CONTAINER = "10.1.0.2"
GATEWAY = "10.1.0.1"
PEER = "10.2.0.2"
OTHER = "10.3.0.2"
INTERNET = "198.51.100.2"


@attrs.frozen
class ContainerNet:
    """The namespaces, each with the address of the constant of its name."""

    container: Namespace
    router: Namespace
    peer: Namespace
    other: Namespace
    internet: Namespace


def container_net(make: Callable[[], Namespace]) -> ContainerNet:
    """Build it; every link is ``eth0`` at the far end, and ``c``, ``p``, ``o``, ``i`` at the router."""
    net = ContainerNet(make(), make(), make(), make(), make())
    ends = (
        ("c", net.container, CONTAINER, GATEWAY, 16),
        ("p", net.peer, PEER, "10.2.0.1", 16),
        ("o", net.other, OTHER, "10.3.0.1", 16),
        ("i", net.internet, INTERNET, "198.51.100.1", 24),
    )
    for link, namespace, own, gateway, length in ends:
        veth(net.router, link, namespace, "eth0")
        address(net.router, link, f"{gateway}/{length}")
        address(namespace, "eth0", f"{own}/{length}")
        namespace.ip("route", "add", "default", "via", gateway)
    net.router.sysctl("net/ipv4/ip_forward", "1")
    return net
