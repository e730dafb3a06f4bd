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
from nodeagent.ops import SetBridge, SetContainerRules, SetEnd, SetHostRules, SetPort, UpdateHostRules

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


def measure(rounds: int, records: Path) -> Row:
    """Attach `rounds` containers both ways in turn, in a node of the benchmark's own.

    Args:
        rounds: Containers each way.
        records: An empty folder.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    node = new_namespace()
    enter(node)
    try:
        return _measure(rounds, records)
    finally:
        enter(home)
        os.close(home)
        os.close(node)


def _containers(first: int) -> Iterator[tuple[str, str]]:
    for number in range(first, 65000):
        yield f"{number:032x}"[::-1], f"10.1.{number >> 8}.{number & 255}"


def _processes() -> int:
    """Return how many processes this one has started (proc(5), children that were waited for)."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_minflt + usage.ru_nvcsw


def _measure(rounds: int, records: Path) -> Row:
    engine = Namespaces()
    containers, hosts = NftablesContainerBackend(records), NftablesHostBackend(records)
    host = Host(LinuxKernel(), containers, hosts, [engine])
    setup = host.apply(
        (
            SetHostRules(HostPolicy(BRIDGE, GATEWAY, "10.1.0.0/16", "10.0.0.0/8", closed=CLOSED)),
            SetBridge(Bridge(f"{GATEWAY}/16", MTU, mac_of(GATEWAY))),
        )
    )
    if any(setup):
        raise RuntimeError(setup)
    floor = Floor(socket.if_nametoindex(BRIDGE), MTU)
    ours, by_hand = [], []
    processes = _processes()
    names = _containers(256)
    for _ in range(rounds):
        container, address = next(names)
        engine.made[container] = new_namespace()
        device, mac = port_device(container), mac_of(address)
        operations = (
            UpdateHostRules(bindings=(PortBinding(device, mac, address),)),
            SetContainerRules(container, ContainerPolicy(address, GATEWAY, closed=CLOSED)),
            SetPort(container, ContainerPort(device, MTU), ContainerEnd(f"{address}/16", GATEWAY, MTU, mac)),
            SetEnd(container, ContainerEnd(f"{address}/16", GATEWAY, MTU, mac)),
        )
        begin = time.perf_counter()
        errors = host.apply(operations)
        ours.append((time.perf_counter() - begin) * 1000)
        if any(errors):
            raise RuntimeError(errors)

        container, address = next(names)
        namespace = new_namespace()
        device, mac = port_device(container), mac_of(address)
        rules = install_text(compile_container(ContainerPolicy(address, GATEWAY, closed=CLOSED)), 0).encode()
        binding = f"add element bridge netctl bindings {{ {device} . {mac} . {address} }}\n".encode()
        by_hand_of = ByHand(device, mac, address, GATEWAY, rules, binding)
        begin = time.perf_counter()
        floor.attach(namespace, by_hand_of)
        by_hand.append((time.perf_counter() - begin) * 1000)
        engine.made[f"by hand {container}"] = namespace
    forked = _processes() - processes
    floor.close()
    for namespace in engine.made.values():
        os.close(namespace)
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
