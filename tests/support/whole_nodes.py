"""Nodes as their agents would make them, in this process: desired state -> operations -> the real kernel.

Containers are bare namespaces, so that no process is needed: where one costs dearly, this is still quick.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from firewall_rules.backends.nftables import NftablesContainerBackend, NftablesHostBackend
from netctl.model import (
    OVERHEAD,
    Encapsulation,
    NodeState,
    Peer,
    Permit,
    PlacedContainer,
    WireguardEnd,
    Workload,
)
from nodeagent.apply import Host
from nodeagent.desired_index import DesiredIndex
from nodeagent.diff import plan
from nodeagent.engine.fake import FakeEngine
from nodeagent.kernel.base import KernelOp, Links
from nodeagent.kernel.linux import LinuxKernel
from nodeagent.kernel.wireguard_keys import WireguardKeys
from nodeagent.kernel_state import EngineContainer
from tests.support.netns import Namespace, address, veth

ROUNDS = 4
"""Plans until nothing is left to do: what a container needs comes in steps."""
UNDERLAY = "up0"
"""The link to the underlay, in every node's namespace."""


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
    """Node nN with block 10.N.0.0/16 and underlay address 192.0.2.N, on the link `UNDERLAY` of its namespace.

    Args:
        number: N.
        namespace: The node's, its underlay's link addressed and up.
        ways: What its pairs may use, best first; the first is what they do use.
        underlay_mtu: Bytes, the same on every node.
    """

    def __init__(
        self, number: int, namespace: Namespace, ways: Sequence[Encapsulation], underlay_mtu: int
    ) -> None:
        self.number = number
        self.namespace = namespace
        self.underlay = f"192.0.2.{number}"
        self.underlay_mtu = underlay_mtu
        self._ways = tuple(ways)
        self._engine = NamespaceEngine()
        self._keys = tempfile.TemporaryDirectory(prefix="netctl-keys-")
        keys = WireguardKeys(Path(self._keys.name)) if "wireguard" in ways else None
        with namespace.entered():
            self._kernel = LinuxKernel(keys)
            self._host = Host(self._kernel, NftablesContainerBackend(), NftablesHostBackend(), [self._engine])
            self.facts = self._host.facts(self.underlay)
        self.state = NodeState(
            name=f"n{number}",
            block=f"10.{number}.0.0/16",
            supernet="10.0.0.0/8",
            encapsulation=self._ways[0],
            mtu=underlay_mtu - OVERHEAD[self._ways[0]],
            closed=("192.0.2.0/24",),
            wireguard_generations=(1,) if "wireguard" in ways else (),
        )

    def close(self) -> None:
        self._kernel.close()
        self._engine.close()
        self._keys.cleanup()

    def peer_of(self, other: WholeNode, way: Encapsulation | None = None) -> Peer:
        """Return this node as `other` sees it; `way`: the one of its ways that is used, the first if None."""
        low, high = sorted((self.number, other.number))
        way = way or self._ways[0]
        return Peer(
            name=self.state.name,
            block=f"10.{self.number}.0.0/16",
            underlay=self.underlay,
            underlay_mac=self.facts.underlay_mac,
            encapsulation=way,
            vni=low << 12 | high,
            mtu=self.underlay_mtu - OVERHEAD[way],
            candidates=self._ways,
            outer_mtu=self.underlay_mtu,
            wireguard=self._end(),
        )

    def _end(self) -> WireguardEnd | None:
        own = self.state.wireguard_generations[:1]
        return next((end for end in self.facts.wireguard if (end.generation,) == own), None)

    def hold(self, *generations: int) -> None:
        """Have these generations of its WireGuard key, and send from the first. `want` then makes them."""
        self.state = attrs.evolve(self.state, wireguard_generations=generations)

    def look(self) -> None:
        """Ask for the host's facts again, as an agent does whenever they may have changed."""
        with self.namespace.entered():
            self.facts = self._host.facts(self.underlay)

    def add(self, host: int, namespace: Namespace) -> str:
        """Have a namespace as the container 10.N.0.`host`; return its address. `want` then attaches it."""
        identifier = f"{self.number:02x}{host:010x}{0:020x}"
        own = f"10.{self.number}.0.{host}"
        placed = PlacedContainer(identifier, f"c{host}", own, Workload("process", ("x",)), "running", 1)
        self._engine.spaces[identifier] = namespace
        self.state = attrs.evolve(self.state, containers={**self.state.containers, identifier: placed})
        return own

    def knows(self, *peers: Peer) -> None:
        """Have tunnels to these peers, in place of those of the same names. `want` then makes them."""
        known = {**self.state.peers, **{peer.name: peer for peer in peers}}
        self.state = attrs.evolve(self.state, peers=known)

    def links(self) -> Links:
        """Return what the node's kernel has of ours, its containers' ends left out."""
        with self.namespace.entered():
            return self._kernel.observe({})

    def do(self, *operations: KernelOp) -> None:
        """Do what no agent asked for, in the node's kernel."""
        with self.namespace.entered():
            assert self._kernel.apply(operations, {}) == [""] * len(operations)

    def want(self, *permits: Permit) -> None:
        """Bring the host to the desired state with exactly these permits."""
        self.state = attrs.evolve(self.state, permits=frozenset(permits))
        desired = DesiredIndex.of(self.state)
        with self.namespace.entered():
            for _ in range(ROUNDS):
                operations = plan(desired, self.facts, self._host.observe(), time.time())
                if not operations:
                    return
                errors = self._host.apply(operations)
                assert not any(errors), [error for error in errors if error]
        raise AssertionError(f"there is always more to do: {operations}")


@attrs.frozen
class Overlay:
    """Nodes n1, n2, ... that all have each other as peers, on one switch.

    Attributes:
        switch: The underlay's own namespace; its port to node N is ``nN``.
        containers: Namespaces by address.
    """

    nodes: tuple[WholeNode, ...]
    switch: Namespace
    containers: Mapping[str, Namespace]

    def want(self, *permits: Permit) -> None:
        """Have exactly these permits, each on the nodes that are concerned."""
        for node in self.nodes:
            block = f"10.{node.number}."
            node.want(*(p for p in permits if block in (p.source[: len(block)], p.destination[: len(block)])))


@contextmanager
def overlay(
    ways: Sequence[Encapsulation], *, nodes: int, containers: int, underlay_mtu: int = 1500
) -> Iterator[Overlay]:
    """Yield an overlay; container 10.N.0.H has H from 2 on. Nothing is permitted yet.

    Args:
        ways: As in `WholeNode`.
        nodes: How many.
        containers: How many on each node.
        underlay_mtu: Bytes.
    """
    with ExitStack() as stack:

        def namespace() -> Namespace:
            made = Namespace()
            stack.callback(made.close)
            return made

        switch = namespace()
        switch.ip("link", "add", "switch", "mtu", str(underlay_mtu), "type", "bridge")
        switch.ip("link", "set", "switch", "up")
        made = []
        for number in range(1, nodes + 1):
            own = namespace()
            veth(switch, f"n{number}", own, UNDERLAY, underlay_mtu)
            switch.ip("link", "set", f"n{number}", "master", "switch", "up")
            address(own, UNDERLAY, f"192.0.2.{number}/24")
            made.append(WholeNode(number, own, ways, underlay_mtu))
            stack.callback(made[-1].close)
        for one, other in itertools.permutations(made, 2):
            one.knows(other.peer_of(one))
        places = {}
        for node, host in itertools.product(made, range(2, containers + 2)):
            space = namespace()
            places[node.add(host, space)] = space
        yield Overlay(tuple(made), switch, places)
