"""Two nodes with a container each, made with `ip` (and `wg`) as one would by hand, without any firewall."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from netctl.model import OVERHEAD, VXLAN_PORT
from tests.support.netns import Namespace, address, veth

_WIREGUARD_PORT = 51820


@attrs.frozen
class Path:
    """Two ends that packets go between."""

    source: Namespace
    target: Namespace
    address: str


@attrs.frozen
class HandMade:
    """What was made.

    Attributes:
        containers: From one container to the other, through the tunnel.
        underlay: From one node to the other, through nothing.
    """

    containers: Path
    underlay: Path


@contextmanager
def by_hand(encapsulation: str, mtu: int) -> Iterator[HandMade]:
    """Yield two nodes, with bridges, a tunnel and an underlay as in the lab; no firewall.

    Args:
        encapsulation: gre, vxlan, wireguard or direct.
        mtu: Bytes, of the underlay.
    """
    switch, one, other, web, db = (Namespace() for _ in range(5))
    inner = mtu - OVERHEAD[encapsulation]
    switch.ip("link", "add", "switch", "mtu", str(mtu), "type", "bridge")
    switch.ip("link", "set", "switch", "up")
    for number, (node, container) in enumerate(((one, web), (other, db)), start=1):
        veth(switch, f"n{number}", node, "eth0", mtu)
        switch.ip("link", "set", f"n{number}", "master", "switch", "up")
        address(node, "eth0", f"172.31.1.{number}/16")
        node.ip("link", "add", "bridge", "mtu", str(inner), "type", "bridge")
        address(node, "bridge", f"10.{number}.0.1/16")
        node.sysctl("net/ipv4/ip_forward", "1")
        veth(node, "port", container, "eth0", inner)
        node.ip("link", "set", "port", "master", "bridge", "up")
        address(container, "eth0", f"10.{number}.0.2/16")
        container.ip("route", "add", "default", "via", f"10.{number}.0.1")
    _join(encapsulation, one, other, inner)
    try:
        yield HandMade(Path(web, db, "10.2.0.2"), Path(one, other, "172.31.1.2"))
    finally:
        for namespace in (web, db, one, other, switch):
            namespace.close()


def _join(encapsulation: str, one: Namespace, other: Namespace, mtu: int) -> None:
    """Make both ends of the tunnel, and the routes along it."""
    keys = [one.run("wg", "genkey").strip() for _ in range(2)] if encapsulation == "wireguard" else []
    for number, node in enumerate((one, other), start=1):
        far = 3 - number
        ends = ("local", f"172.31.1.{number}", "remote", f"172.31.1.{far}")
        tunnel = ("link", "add", "tunnel", "mtu", str(mtu), "type", encapsulation)
        route = ("route", "add", f"10.{far}.0.0/16")
        if encapsulation == "direct":
            node.ip(*route, "via", f"172.31.1.{far}", "dev", "eth0")
        elif encapsulation == "gre":
            node.ip(*tunnel, *ends)
            node.ip("link", "set", "tunnel", "up")
            node.ip(*route, "dev", "tunnel")
        elif encapsulation == "vxlan":
            node.ip(*tunnel, *ends, "id", "4098", "dstport", str(VXLAN_PORT), "nolearning")
            node.ip("link", "set", "tunnel", "address", f"6e:63:00:00:00:0{number}", "up")
            mac = f"6e:63:00:00:00:0{far}"
            node.ip("neigh", "add", f"10.{far}.0.1", "lladdr", mac, "dev", "tunnel", "nud", "permanent")
            node.ip(*route, "via", f"10.{far}.0.1", "dev", "tunnel", "onlink")
        else:
            node.ip(*tunnel)
            public = node.run("wg", "pubkey", text=keys[far - 1]).strip()
            node.run(
                "wg", "set", "tunnel", "listen-port", str(_WIREGUARD_PORT), "private-key", "/dev/stdin",
                "peer", public, "endpoint", f"172.31.1.{far}:{_WIREGUARD_PORT}",
                "allowed-ips", f"10.{far}.0.0/16", text=keys[number - 1],
            )  # fmt: skip
            node.ip("link", "set", "tunnel", "up")
            node.ip(*route, "dev", "tunnel")
