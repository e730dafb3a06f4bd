"""Nodes as their agents would make them, in this process: desired state -> operations -> the real kernel.

Containers are bare namespaces, so that no process is needed: where one costs dearly, this is still quick.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

import attrs

from firewall_rules.backends.nftables import NftablesContainerBackend, NftablesHostBackend
from netctl.model import NodeState, Peer, Permit, PlacedContainer, Workload
from nodeagent.apply import Host
from nodeagent.desired_index import DesiredIndex
from nodeagent.diff import plan
from nodeagent.engine.fake import FakeEngine
from nodeagent.kernel.linux import LinuxKernel
from nodeagent.kernel_state import EngineContainer
from tests.support.netns import Namespace

OVERHEAD = {"gre": 24, "direct": 0}
ROUNDS = 4
"""Plans until nothing is left to do: what a container needs comes in steps."""


class NamespaceEngine(FakeEngine):
    """An engine whose containers run from the beginning and are namespaces of the test's."""

    def __init__(self) -> None:
        super().__init__()
        self.spaces: dict[str, Namespace] = {}

    def containers(self) -> Mapping[str, EngineContainer]:
        return {container: EngineContainer("running", 1) for container in self.spaces}

    def namespace(self, container: str) -> int:
        return self.spaces[container].fd


class WholeNode:
    """Node nN with block 10.N.0.0/16 and underlay address 192.0.2.N, on the link ``up0`` of its namespace."""

    def __init__(
        self, number: int, namespace: Namespace, encapsulation: Literal["gre", "direct"], underlay_mtu: int
    ) -> None:
        self.namespace = namespace
        self.underlay = f"192.0.2.{number}"
        self._number = number
        self._engine = NamespaceEngine()
        mtu = underlay_mtu - OVERHEAD[encapsulation]
        with namespace.entered():
            self._kernel = LinuxKernel()
            self._host = Host(self._kernel, NftablesContainerBackend(), NftablesHostBackend(), [self._engine])
            self._facts = self._host.facts(self.underlay)
        self.peer = Peer(
            name=f"n{number}",
            block=f"10.{number}.0.0/16",
            underlay=self.underlay,
            underlay_mac=self._facts.underlay_mac,
            encapsulation=encapsulation,
            vni=0,
            mtu=mtu,
        )
        self.state = NodeState(
            name=self.peer.name,
            block=self.peer.block,
            supernet="10.0.0.0/8",
            encapsulation=encapsulation,
            mtu=mtu,
            closed=("192.0.2.0/24",),
        )

    def close(self) -> None:
        self._kernel.close()
        self._engine.close()

    def add(self, host: int, namespace: Namespace) -> str:
        """Have a namespace as the container 10.N.0.`host`; return its address. `want` then attaches it."""
        identifier = f"{self._number:02x}{host:010x}{0:020x}"
        address = f"10.{self._number}.0.{host}"
        placed = PlacedContainer(identifier, f"c{host}", address, Workload("process", ("x",)), "running", 1)
        self._engine.spaces[identifier] = namespace
        self.state = attrs.evolve(self.state, containers={**self.state.containers, identifier: placed})
        return address

    def knows(self, *peers: Peer) -> None:
        """Have tunnels to these peers. `want` then makes them."""
        self.state = attrs.evolve(self.state, peers={peer.name: peer for peer in peers})

    def want(self, *permits: Permit) -> None:
        """Bring the host to the desired state with exactly these permits."""
        self.state = attrs.evolve(self.state, permits=frozenset(permits))
        desired = DesiredIndex.of(self.state)
        with self.namespace.entered():
            for _ in range(ROUNDS):
                operations = plan(desired, self._facts, self._host.observe(), time.time())
                if not operations:
                    return
                errors = self._host.apply(operations)
                assert not any(errors), [error for error in errors if error]
        raise AssertionError(f"there is always more to do: {operations}")
