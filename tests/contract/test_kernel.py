"""One suite for every `Kernel`: the one in memory and the real one mean the same."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Protocol

import attrs
import pytest

from firewall_rules import names
from netctl.model import mac_of
from nodeagent.kernel.base import Kernel, KernelOp, Links
from nodeagent.kernel.fake import FACTS, FakeKernel
from nodeagent.kernel_state import Bridge, ContainerEnd, ContainerPort, Route, Tunnel
from nodeagent.ops import (
    DeleteBridge,
    DeletePort,
    DeleteRoute,
    DeleteTunnel,
    SetBridge,
    SetEnd,
    SetEndpoint,
    SetPort,
    SetRoute,
    SetSysctl,
    SetTunnel,
)
from tests.support.kernels import KernelIn
from tests.support.netns import Namespace, address, veth, wait_for

BRIDGE = Bridge("10.1.0.1/16", 1450, mac_of("10.1.0.1"))
TUNNEL = Tunnel(
    "nctv0a020000", "vxlan", "192.0.2.1", "192.0.2.2", 1450, vni=7, port=4789, mac=mac_of("10.1.0.1")
)
ROUTE = Route("10.2.0.0/16", "nctv0a020000", "10.1.0.1", via="10.2.0.1", via_mac=mac_of("10.2.0.1"))


class Node(Protocol):
    """A kernel to test, and containers' namespaces for it."""

    containers: dict[str, int]

    @property
    def kernel(self) -> Kernel: ...

    def container(self) -> str: ...

    def end_namespace(self, container: str) -> None: ...

    def far_end(self, key: str) -> str:
        """Return the Ethernet address of an endpoint's far end while Docker has not moved it; empty: none."""

    def docker_moves(self, key: str) -> None:
        """Move an endpoint's far end into a container, as Docker does."""


class FakeNode:
    def __init__(self) -> None:
        self.kernel = FakeKernel()
        self.containers: dict[str, int] = {}
        self._numbers = itertools.count(1)

    def container(self) -> str:
        number = next(self._numbers)
        self.containers[f"{number:032x}"[::-1]] = number
        return f"{number:032x}"[::-1]

    def end_namespace(self, container: str) -> None:
        del self.containers[container]

    def far_end(self, key: str) -> str:
        mac, name = self.kernel.far_ends.get(names.port_device(key), ("", ""))
        return mac if name == names.endpoint_link(key) else ""

    def docker_moves(self, key: str) -> None:
        self.kernel.docker_moves(key)


class LinuxNode:
    def __init__(self, make: Callable[[], Namespace]) -> None:
        self.namespace = make()
        far = make()
        veth(self.namespace, FACTS.underlay_device, far, "eth0")
        address(self.namespace, FACTS.underlay_device, f"{FACTS.underlay}/24")
        self.kernel = KernelIn(self.namespace)
        self.containers: dict[str, int] = {}
        self._make = make
        self._namespaces: dict[str, Namespace] = {}
        self._numbers = itertools.count(1)

    def container(self) -> str:
        container = f"{next(self._numbers):032x}"[::-1]
        self._namespaces[container] = self._make()
        self.containers[container] = self._namespaces[container].fd
        self._namespaces[container].ip("link", "set", "lo", "down")
        return container

    def end_namespace(self, container: str) -> None:
        del self.containers[container]
        self._namespaces.pop(container).close()

    def far_end(self, key: str) -> str:
        found = self.namespace.run("ip", "-j", "link", "show", names.endpoint_link(key), check=False)
        return str(json.loads(found)[0]["address"]) if found else ""

    def docker_moves(self, key: str) -> None:
        self.inside = self._make()
        self.namespace.ip("link", "set", names.endpoint_link(key), "netns", self.inside.path, "name", "eth0")
        self.inside.ip("link", "set", "eth0", "up")


@pytest.fixture(params=["fake", pytest.param("linux", marks=pytest.mark.root)])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    if request.param == "fake":
        yield FakeNode()
        return
    linux = LinuxNode(request.getfixturevalue("namespaces"))
    with contextlib.closing(linux.kernel):
        yield linux


def done(node: Node, *operations: KernelOp) -> None:
    assert node.kernel.apply(operations, node.containers) == [""] * len(operations)


def refused(node: Node, operation: KernelOp) -> str:
    (error,) = node.kernel.apply([operation], node.containers)
    assert error
    return error


def seen(node: Node) -> Links:
    return node.kernel.observe(node.containers)


def port_of(container: str, number: int = 2) -> tuple[ContainerPort, ContainerEnd]:
    return (
        ContainerPort(names.port_device(container), 1450),
        ContainerEnd(f"10.1.0.{number}/16", "10.1.0.1", 1450, mac_of(f"10.1.0.{number}")),
    )


def attach(node: Node, number: int = 2) -> str:
    container = node.container()
    port, end = port_of(container, number)
    done(node, SetPort(container, port, end), SetEnd(container, end))
    return container


def test_nothing_of_ours_is_seen_at_first(node: Node) -> None:
    container = node.container()
    links = seen(node)
    assert (links.bridge, links.tunnels, links.routes, links.ports, links.ends) == (None, {}, {}, {}, {})
    assert container in node.containers


def test_bridge_comes_changes_and_goes(node: Node) -> None:
    done(node, SetBridge(BRIDGE))
    assert seen(node).bridge == BRIDGE
    done(node, SetBridge(BRIDGE))
    assert seen(node).bridge == BRIDGE
    other = Bridge("10.9.0.1/20", 1400, mac_of("10.9.0.1"))
    done(node, SetBridge(other))
    assert seen(node).bridge == other
    done(node, DeleteBridge())
    assert seen(node).bridge is None
    done(node, DeleteBridge())


def test_tunnel_comes_changes_and_goes(node: Node) -> None:
    done(node, SetTunnel(TUNNEL))
    assert seen(node).tunnels == {TUNNEL.device: TUNNEL}
    for changed in (
        attrs.evolve(TUNNEL, mtu=1400),
        attrs.evolve(TUNNEL, remote="192.0.2.3"),
        attrs.evolve(TUNNEL, vni=8, port=4790),
    ):
        done(node, SetTunnel(changed))
        assert seen(node).tunnels == {TUNNEL.device: changed}
    done(node, DeleteTunnel(TUNNEL.device))
    assert seen(node).tunnels == {}
    done(node, DeleteTunnel(TUNNEL.device))


def test_route_comes_changes_and_goes_with_its_neighbour(node: Node) -> None:
    done(node, SetBridge(BRIDGE), SetTunnel(TUNNEL), SetRoute(ROUTE))
    assert seen(node).routes == {ROUTE.block: ROUTE}
    changed = attrs.evolve(ROUTE, mtu=1400, via_mac=mac_of("10.2.0.9"))
    done(node, SetRoute(changed))
    assert seen(node).routes == {ROUTE.block: changed}
    done(node, DeleteRoute(ROUTE.block))
    assert seen(node).routes == {}
    done(node, DeleteRoute(ROUTE.block))


def test_direct_route_along_the_underlay(node: Node) -> None:
    route = Route("10.3.0.0/16", FACTS.underlay_device, "10.1.0.1", via="192.0.2.3", mtu=1400)
    done(node, SetBridge(BRIDGE), SetRoute(route))
    assert seen(node).routes == {route.block: route}


def test_route_needs_its_device_and_its_source(node: Node) -> None:
    done(node, SetBridge(BRIDGE))
    assert TUNNEL.device in refused(node, SetRoute(ROUTE))
    done(node, SetTunnel(TUNNEL))
    refused(node, SetRoute(attrs.evolve(ROUTE, source="10.1.0.99")))
    assert seen(node).routes == {}
    done(node, SetRoute(ROUTE))


def test_routes_go_with_their_tunnel_and_with_their_source(node: Node) -> None:
    done(node, SetBridge(BRIDGE), SetTunnel(TUNNEL), SetRoute(ROUTE), DeleteTunnel(TUNNEL.device))
    assert seen(node).routes == {}
    done(node, SetTunnel(TUNNEL), SetRoute(ROUTE), DeleteBridge())
    assert seen(node).routes == {}


def test_port_is_down_in_the_container_until_its_end_is_set(node: Node) -> None:
    container = node.container()
    port, end = port_of(container)
    done(node, SetBridge(BRIDGE), SetPort(container, port, end))
    links = seen(node)
    assert links.ports == {port.device: port}
    assert links.ends == {container: attrs.evolve(end, address="", gateway="", up=False, loopback=False)}
    done(node, SetEnd(container, end))
    assert seen(node).ends == {container: end}
    done(node, SetPort(container, port, end), SetEnd(container, end))
    assert (seen(node).ports, seen(node).ends) == ({port.device: port}, {container: end})


def test_end_changes_its_address(node: Node) -> None:
    done(node, SetBridge(BRIDGE))
    container = attach(node)
    changed = ContainerEnd("10.1.0.9/16", "10.1.0.254", 1400, mac_of("10.1.0.9"))
    done(node, SetEnd(container, changed))
    assert seen(node).ends == {container: changed}


def test_port_needs_the_bridge_and_a_namespace(node: Node) -> None:
    container = node.container()
    port, end = port_of(container)
    assert "bridge" in refused(node, SetPort(container, port, end))
    done(node, SetBridge(BRIDGE))
    stranger = "f" * 32
    assert "namespace" in refused(node, SetPort(stranger, *port_of(stranger)))
    refused(node, SetEnd(container, end))
    assert (seen(node).ports, seen(node).ends) == ({}, {})


def test_ports_go_alone_and_together(node: Node) -> None:
    done(node, SetBridge(BRIDGE))
    containers = [attach(node, number) for number in range(2, 7)]
    done(node, DeletePort(names.port_device(containers[0])))
    assert sorted(seen(node).ends) == sorted(containers[1:])
    done(node, *(DeletePort(names.port_device(container)) for container in containers[:-1]))
    links = seen(node)
    assert list(links.ports) == [names.port_device(containers[-1])]
    assert list(links.ends) == [containers[-1]]


def test_port_goes_with_its_namespace(node: Node) -> None:
    done(node, SetBridge(BRIDGE))
    staying, going = attach(node, 2), attach(node, 3)
    assert len(seen(node).ports) == 2
    node.end_namespace(going)
    wait_for(lambda: len(seen(node).ports) == 1, what="the port's end")
    assert list(seen(node).ports) == [names.port_device(staying)]


def test_ports_leave_the_bridge_when_it_goes(node: Node) -> None:
    done(node, SetBridge(BRIDGE))
    container = attach(node)
    done(node, DeleteBridge())
    port, end = port_of(container)
    assert seen(node).ports == {port.device: attrs.evolve(port, on_bridge=False, guarded=False)}
    done(node, SetBridge(BRIDGE), SetPort(container, port, end))
    assert seen(node).ports == {port.device: port}


KEY = "0123456789ab" + "c" * 20
ENDPOINT_PORT = ContainerPort(names.port_device(KEY), 1450)
SET_ENDPOINT = SetEndpoint(KEY, ENDPOINT_PORT, mac_of("10.1.0.7"))


def test_an_endpoint_is_a_guarded_port_and_a_link_for_docker_to_move(node: Node) -> None:
    assert "bridge" in refused(node, SET_ENDPOINT)
    done(node, SetBridge(BRIDGE), SET_ENDPOINT)
    assert seen(node).ports == {ENDPOINT_PORT.device: ENDPOINT_PORT}
    assert seen(node).ends == {}
    assert node.far_end(KEY) == mac_of("10.1.0.7")
    done(node, SET_ENDPOINT)
    assert node.far_end(KEY) == mac_of("10.1.0.7")
    node.docker_moves(KEY)
    assert node.far_end(KEY) == ""
    assert seen(node).ports == {ENDPOINT_PORT.device: ENDPOINT_PORT}
    # Mended where it is, its far end stays where Docker has put it.
    done(node, SET_ENDPOINT)
    assert seen(node).ports == {ENDPOINT_PORT.device: ENDPOINT_PORT}
    assert node.far_end(KEY) == ""
    done(node, DeletePort(ENDPOINT_PORT.device))
    assert seen(node).ports == {}
    done(node, DeletePort(ENDPOINT_PORT.device))


def test_an_endpoint_goes_with_its_far_end_before_docker_has_moved_it(node: Node) -> None:
    done(node, SetBridge(BRIDGE), SET_ENDPOINT)
    container = attach(node)
    done(node, DeletePort(ENDPOINT_PORT.device), DeletePort(names.port_device(container)))
    assert seen(node).ports == {}
    assert node.far_end(KEY) == ""


def test_an_endpoint_off_the_bridge_is_put_back(node: Node) -> None:
    done(node, SetBridge(BRIDGE), SET_ENDPOINT, DeleteBridge())
    away = attrs.evolve(ENDPOINT_PORT, on_bridge=False, guarded=False)
    assert seen(node).ports == {ENDPOINT_PORT.device: away}
    done(node, SetBridge(BRIDGE), SET_ENDPOINT)
    assert seen(node).ports == {ENDPOINT_PORT.device: ENDPOINT_PORT}


def test_settings_of_a_device_need_the_device(node: Node) -> None:
    path = f"net/ipv4/conf/{TUNNEL.device}/rp_filter"
    assert path in refused(node, SetSysctl(path, "1"))
    done(node, SetTunnel(TUNNEL), SetSysctl(path, "1"), SetSysctl("net/ipv4/ip_forward", "1"))
    assert seen(node).sysctls[path] == "1"
    assert seen(node).sysctls["net/ipv4/ip_forward"] == "1"
    done(node, SetSysctl(path, "2"))
    assert seen(node).sysctls[path] == "2"
    done(node, DeleteTunnel(TUNNEL.device))
    assert path not in seen(node).sysctls


def test_a_refusal_stops_nothing_after_it(node: Node) -> None:
    errors = node.kernel.apply([SetRoute(ROUTE), SetBridge(BRIDGE), SetTunnel(TUNNEL)], node.containers)
    assert [bool(error) for error in errors] == [True, False, False]
    assert seen(node).bridge == BRIDGE
