"""The real kernel's namespaces as nodes and containers, without an agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface

from firewall_rules import names
from netctl.model import mac_of
from nodeagent.kernel.base import KernelOp, Links
from nodeagent.kernel.linux import LinuxKernel
from nodeagent.kernel.wireguard_keys import WireguardKeys
from nodeagent.kernel_state import Bridge, ContainerEnd, ContainerPort, HostFacts, Route, Tunnel
from nodeagent.ops import SetBridge, SetEnd, SetPort, SetRoute, SetSysctl, SetTunnel
from tests.support.netns import Namespace


class KernelIn:
    """A `Kernel` whose own namespace is one of the test's: each call goes in and comes back."""

    def __init__(self, namespace: Namespace, keys: WireguardKeys | None = None) -> None:
        self._namespace = namespace
        with namespace.entered():
            self._kernel = LinuxKernel(keys)

    def close(self) -> None:
        self._kernel.close()

    def facts(self, underlay: str | None) -> HostFacts:
        with self._namespace.entered():
            return self._kernel.facts(underlay)

    def observe(self, namespaces: Mapping[str, int]) -> Links:
        with self._namespace.entered():
            return self._kernel.observe(namespaces)

    def apply(self, operations: Sequence[KernelOp], namespaces: Mapping[str, int]) -> list[str]:
        with self._namespace.entered():
            return self._kernel.apply(operations, namespaces)

    def done(self, *operations: KernelOp, namespaces: Mapping[str, int] | None = None) -> None:
        """Do operations that must all succeed."""
        assert self.apply(operations, namespaces or {}) == [""] * len(operations)


class OverlayNode:
    """One node of an overlay without firewalls: bridge 10.N.0.1/16, its containers from 10.N.0.2 on."""

    def __init__(
        self,
        number: int,
        namespace: Namespace,
        underlay: str,
        mtu: int,
        keys: WireguardKeys | None = None,
    ) -> None:
        self.number = number
        self.namespace = namespace
        self.underlay = underlay
        self.mtu = mtu
        self.address = f"10.{number}.0.1"
        self.kernel = KernelIn(namespace, keys)
        self.kernel.done(
            SetBridge(Bridge(f"{self.address}/16", mtu, mac_of(self.address))),
            SetSysctl("net/ipv4/ip_forward", "1"),
        )

    def close(self) -> None:
        self.kernel.close()

    def attach(self, container: Namespace, host: int) -> str:
        """Attach a namespace as a container; return its address."""
        address = f"10.{self.number}.0.{host}"
        identifier = f"{self.number:02x}{host:010x}{0:020x}"
        end = ContainerEnd(f"{address}/16", self.address, self.mtu, mac_of(address))
        self.kernel.done(
            SetPort(identifier, ContainerPort(names.port_device(identifier), self.mtu), end),
            SetEnd(identifier, end),
            namespaces={identifier: container.fd},
        )
        return address

    def tunnel_to(self, other: OverlayNode, encapsulation: str) -> Tunnel:
        """Make this node's tunnel and route to `other`, reverse paths checked strictly."""
        vxlan = encapsulation == "vxlan"
        block = f"10.{other.number}.0.0/16"
        tunnel = Tunnel(
            device=names.tunnel_device(block, "vxlan" if vxlan else "gre"),
            encapsulation="vxlan" if vxlan else "gre",
            local=self.underlay,
            remote=other.underlay,
            mtu=self.mtu,
            vni=self.number * other.number if vxlan else 0,
            port=4789 if vxlan else 0,
            mac=mac_of(self.address) if vxlan else "",
        )
        route = Route(
            block=block,
            device=tunnel.device,
            source=self.address,
            via=other.address if vxlan else "",
            via_mac=mac_of(other.address) if vxlan else "",
            mtu=self.mtu,
        )
        self.kernel.done(
            SetTunnel(tunnel),
            SetSysctl(f"net/ipv4/conf/{tunnel.device}/rp_filter", "1"),
            SetRoute(route),
        )
        links = self.kernel.observe({})
        assert links.tunnels[tunnel.device] == tunnel
        assert links.routes[str(IPv4Interface(block).network)] == route
        return tunnel
