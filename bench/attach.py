"""Attaching one container: from its namespace being there to it being addressed, routed and firewalled."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.floor import ByHand, Floor, enter
from bench.statistics import Row, median
from firewall_rules.backends.nftables import NftablesContainerBackend, NftablesHostBackend
from firewall_rules.backends.nftables_text import install_text
from firewall_rules.compile_container import compile_container
from firewall_rules.names import BRIDGE, port_device
from firewall_rules.policy import ContainerPolicy, HostPolicy, PortBinding
from netctl.model import mac_of
from nodeagent.apply import Host
from nodeagent.engine.fake import FakeEngine
from nodeagent.kernel.channel import new_namespace
from nodeagent.kernel.linux import LinuxKernel
from nodeagent.kernel_state import Bridge, ContainerEnd, ContainerPort, EngineContainer
from nodeagent.ops import Op, SetBridge, SetContainerRules, SetEnd, SetHostRules, SetPort, UpdateHostRules

MTU = 1450
GATEWAY = "10.1.0.1"
CLOSED = frozenset({"10.0.0.0/8", "172.31.1.1/32", "172.31.1.2/32", "172.31.1.3/32"})


class Namespaces(FakeEngine):
    """An engine whose containers are bare network namespaces."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, int] = {}

    def containers(self) -> Mapping[str, EngineContainer]:
        """Return the namespaces as containers that wait for their start."""
        return dict.fromkeys(self.made, EngineContainer("created"))

    def namespace(self, container: str) -> int:
        """Return the descriptor."""
        return self.made[container]


class Node:
    """A node of the benchmark's own: host rules and bridge stand, containers come as bare namespaces.

    Args:
        records: An empty folder.
    """

    def __init__(self, records: Path) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._node = new_namespace()
        enter(self._node)
        try:
            self._engine = Namespaces()
            containers, hosts = NftablesContainerBackend(records), NftablesHostBackend(records)
            self._host = Host(LinuxKernel(), containers, hosts, [self._engine])
            self._done(
                SetHostRules(HostPolicy(BRIDGE, GATEWAY, "10.1.0.0/16", "10.0.0.0/8", closed=CLOSED)),
                SetBridge(Bridge(f"{GATEWAY}/16", MTU, mac_of(GATEWAY))),
            )
            self._floor = Floor(socket.if_nametoindex(BRIDGE), MTU)
        finally:
            enter(self._home)

    def _done(self, *operations: Op) -> None:
        errors = self._host.apply(operations)
        if any(errors):
            raise RuntimeError(errors)

    def attach(self, container: str, address: str) -> float:
        """Attach a container as the agent has it done; return the milliseconds."""
        enter(self._node)
        try:
            self._engine.made[container] = new_namespace()
            device, mac = port_device(container), mac_of(address)
            port, end = ContainerPort(device, MTU), ContainerEnd(f"{address}/16", GATEWAY, MTU, mac)
            began = time.perf_counter()
            self._done(
                UpdateHostRules(bindings=(PortBinding(device, mac, address),)),
                SetContainerRules(container, ContainerPolicy(address, GATEWAY, closed=CLOSED)),
                SetPort(container, port, end),
                SetEnd(container, end),
            )
            return (time.perf_counter() - began) * 1000
        finally:
            enter(self._home)

    def attach_by_hand(self, container: str, address: str) -> float:
        """Do the same with as little as it takes; return the milliseconds."""
        enter(self._node)
        try:
            namespace = self._engine.made[f"by hand {container}"] = new_namespace()
            device, mac = port_device(container), mac_of(address)
            rules = install_text(
                compile_container(ContainerPolicy(address, GATEWAY, closed=CLOSED)), 0
            ).encode()
            binding = f"add element bridge netctl bindings {{ {device} . {mac} . {address} }}\n".encode()
            by_hand = ByHand(device, mac, address, GATEWAY, rules, binding)
            began = time.perf_counter()
            self._floor.attach(namespace, by_hand)
            return (time.perf_counter() - began) * 1000
        finally:
            enter(self._home)

    def close(self) -> None:
        """Let go of it all."""
        self._floor.close()
        for descriptor in (*self._engine.made.values(), self._node, self._home):
            os.close(descriptor)


def containers(first: int = 256) -> Iterator[tuple[str, str]]:
    """Yield ids and addresses, none twice."""
    for number in range(first, 65000):
        yield f"{number:032x}"[::-1], f"10.1.{number >> 8}.{number & 255}"


def _processes() -> int:
    """Return how many processes this one has started (proc(5), children that were waited for)."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_minflt + usage.ru_nvcsw


def measure(rounds: int, records: Path) -> Row:
    """Attach `rounds` containers both ways in turn.

    Args:
        rounds: Containers each way.
        records: An empty folder.
    """
    node = Node(records)
    ours, by_hand = [], []
    processes = _processes()
    names = containers()
    for _ in range(rounds):
        ours.append(node.attach(*next(names)))
        by_hand.append(node.attach_by_hand(*next(names)))
    forked = _processes() - processes
    node.close()
    times = median(ours) / median(by_hand)
    return Row(
        "attach one container",
        "netlink and nftables by hand",
        "ms",
        ours,
        by_hand,
        "at most 1.5 x the floor, no process forked",
        times <= 1.5 and not forked,  # noqa: PLR2004 - the aim itself
        f"{rounds} rounds, {'no' if not forked else 'some'} process forked",
    )
