"""Nodes over fakes: a host that outlives its agents, a broker's link to play on, and desired states."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import attrs
from hypothesis import strategies as st

from firewall_rules.backends.fake import FakeContainerBackend, FakeHostBackend
from netctl.model import (
    ANY_PORT,
    NodeState,
    Peer,
    Permit,
    PlacedContainer,
    Port,
    WireguardEnd,
    Workload,
)
from netctl.wire.messages import Applied, Envelope, Hello, Message, Report, Reset
from nodeagent.agent import Agent
from nodeagent.apply import Host
from nodeagent.desired import Desired
from nodeagent.engine.fake import FakeEngine
from nodeagent.found import Found
from nodeagent.helper_client import Helper
from nodeagent.helper_fake import LocalHelper
from nodeagent.kernel.fake import FACTS, FakeKernel
from nodeagent.kernel_state import HostFacts, HostState
from nodeagent.ops import Op
from nodeagent.session import Down, Ready, Up

FULL_FACTS = attrs.evolve(FACTS, firewall="nftables", engines=("process",))
"""What a host over fakes says of itself."""
WORKLOAD = Workload("process", ("sleep", "1000"))


def container(number: int, **changes: object) -> PlacedContainer:
    """Return the container with address 10.1.0.`number`."""
    plain = PlacedContainer(
        id=f"{number:032x}"[::-1],
        name=f"c{number}",
        address=f"10.1.0.{number}",
        workload=WORKLOAD,
        wanted="running",
        generation=1,
    )
    return attrs.evolve(plain, **changes)


def peer(number: int, encapsulation: str = "gre") -> Peer:
    """Return the peer with block 10.`number`.0.0/16."""
    return Peer(
        name=f"n{number}",
        block=f"10.{number}.0.0/16",
        underlay=f"192.0.2.{number}",
        underlay_mac=f"02:00:00:00:00:{number:02x}",
        encapsulation=encapsulation,  # type: ignore[arg-type]
        vni=(1 << 12) | number if encapsulation == "vxlan" else 0,
        mtu=1450 if encapsulation == "vxlan" else 1476,
    )


def permit(
    source: str, destination: str, port: str | Port = "5432/tcp", until: float | None = None
) -> Permit:
    """Return the permit from one address to another."""
    return Permit(source, destination, Port.parse(port) if isinstance(port, str) else port, until)


def state(
    containers: Iterable[PlacedContainer] = (),
    peers: Iterable[Peer] = (),
    permits: Iterable[Permit] = (),
    **changes: object,
) -> NodeState:
    """Return a desired state of node n1, which has 10.1.0.0/16."""
    peers = tuple(peers)
    plain = NodeState(
        name="n1",
        block="10.1.0.0/16",
        supernet="10.0.0.0/8",
        encapsulation="gre",
        mtu=1476,
        closed=("192.0.2.1/32", *(f"{p.underlay}/32" for p in peers)),
        peers={p.name: p for p in peers},
        containers={c.id: c for c in containers},
        permits=frozenset(permits),
    )
    return attrs.evolve(plain, **changes)


REMOVED = NodeState(name="n1", block=None, supernet="10.0.0.0/8", encapsulation="none", mtu=1500)


# --- random desired states --------------------------------------------------------------------------

_ADDRESSES = ("10.1.0.2", "10.1.0.3", "10.1.0.4", "10.2.0.2", "10.3.0.2")
_PORTS = (Port("tcp", 80), Port("tcp", 443), Port("udp", 53), Port("icmp"), ANY_PORT)


def _permits() -> st.SearchStrategy[frozenset[Permit]]:
    """Connections of which each has one lifetime, as the broker's records do."""
    keys = [(a, b, p) for a, b in itertools.permutations(_ADDRESSES, 2) for p in _PORTS]
    chosen = st.dictionaries(st.sampled_from(keys), st.sampled_from((None, 2e9, 3e9)), max_size=8)
    return chosen.map(lambda found: frozenset(Permit(*key, until) for key, until in found.items()))


def _containers() -> st.SearchStrategy[tuple[PlacedContainer, ...]]:
    one = st.builds(
        container,
        st.sampled_from((2, 3, 4)),
        wanted=st.sampled_from(("running", "running", "stopped")),
        generation=st.integers(1, 3),
    )
    return st.lists(one, max_size=3, unique_by=lambda c: c.id).map(tuple)


_WAYS = ("gre", "vxlan", "wireguard", "direct")


def _peer(number: int, way: str, others: Collection[str], key: int, mtu: int) -> Peer:
    """Return a peer with several ways to it, and a WireGuard end unless `key` is 0."""
    end = WireguardEnd(key, f"{number * 16 + key:064x}", 51820 + key % 2) if key else None
    ways = () if way == "none" else tuple(one for one in _WAYS if one == way or one in others)
    return attrs.evolve(
        peer(number, way),
        candidates=ways,  # type: ignore[arg-type]
        vni=(1 << 12) | number,
        mtu=mtu,
        outer_mtu=1500,
        wireguard=end,
    )


def _peers() -> st.SearchStrategy[tuple[Peer, ...]]:
    numbers = st.sampled_from((2, 3))
    plain = st.builds(peer, numbers, st.sampled_from(("gre", "vxlan", "direct", "none")))
    several = st.builds(
        _peer,
        numbers,
        st.sampled_from((*_WAYS, "none")),
        st.sets(st.sampled_from(_WAYS)),
        st.integers(0, 2),
        st.sampled_from((1300, 1440)),
    )
    return st.lists(plain | several, max_size=2, unique_by=lambda p: p.name).map(tuple)


def states() -> st.SearchStrategy[NodeState]:
    """Desired states of one node."""
    return st.builds(
        state,
        _containers(),
        _peers(),
        _permits(),
        mtu=st.sampled_from((1476, 1450)),
        vxlan_port=st.sampled_from((4789, 4790)),
        encryption=st.sampled_from(("off", "off", "required")),
        wireguard_generations=st.sampled_from(((), (1,), (1, 2), (2, 1), (2,), (3, 2))),
    )


# --- a host over fakes ------------------------------------------------------------------------------


class FakeNode:
    """Kernel, firewalls and engine in memory, and the directory: what outlives every agent."""

    def __init__(self, directory: Path, now: Callable[[], float] = lambda: 1e9) -> None:
        self.directory = directory
        self.kernel = FakeKernel(sysctls={"net/ipv4/ip_forward": "0"})
        self.layer1 = FakeContainerBackend(now=now)
        self.layer2 = FakeHostBackend(now=now)
        self.engine = FakeEngine()
        self.host = Host(self.kernel, self.layer1, self.layer2, [self.engine])

    def helper(
        self,
        before: Callable[[int, Op], None] = lambda _n, _o: None,
        after: Callable[[int, Op], None] = lambda _n, _o: None,
    ) -> LocalHelper:
        """Start a privileged child."""
        return LocalHelper(self.host, before, after)

    def facts(self) -> HostFacts:
        """Return what the host is, as the agent uses it by default."""
        return attrs.evolve(FULL_FACTS, encapsulations=("gre", "vxlan"))

    def observed(self) -> HostState:
        """Return what is there."""
        return self.host.observe()


@attrs.define
class FakeLink:
    """The session with a broker that a test plays.

    Attributes:
        incoming: What `receive` returns next.
        sent: Every message the agent said, in order.
        checks: How often it was to look whether its address is still there.
    """

    incoming: list[Up | Down | Envelope] = attrs.field(factory=list)
    sent: list[Message] = attrs.field(factory=list)
    connected: bool = False
    postponed: list[str] = attrs.field(factory=list)
    checks: int = 0

    def send(self, message: Message, number: int = 0) -> bool:
        """See `nodeagent.session.BrokerSession`."""
        del number
        if self.connected:
            self.sent.append(message)
        return self.connected

    def receive(self) -> list[Up | Down | Envelope]:
        """See `nodeagent.session.BrokerSession`."""
        happened, self.incoming = self.incoming, []
        return happened

    def deadline(self) -> float:
        """Never."""
        return 1e12

    def wait(self, readers: Collection[int], writers: Collection[int], timeout: float) -> Ready:
        """Nothing is waited for: every descriptor is looked at."""
        del timeout
        return Ready(frozenset(readers) - {min(readers)}, frozenset(writers))

    def postpone(self, reason: str) -> None:
        """Note it."""
        self.postponed.append(reason)
        self.connected = False

    def check_address(self) -> None:
        """Note it."""
        self.checks += 1

    def connect(self) -> None:
        """Let a session begin."""
        self.connected = True
        self.incoming.append(Up("ipc:///broker"))

    def lose(self) -> None:
        """Let the session end."""
        self.connected = False
        self.incoming.append(Down("lost"))

    def say(self, message: Message) -> None:
        """Let the broker say something."""
        self.incoming.append(Envelope(0, message))

    def said(self, kind: type) -> list[Message]:
        """Return what the agent said of one kind."""
        return [message for message in self.sent if isinstance(message, kind)]

    @property
    def applied(self) -> Applied:
        """Return the last report of what is applied."""
        message = self.said(Applied)[-1]
        assert isinstance(message, Applied)
        return message


class Life:
    """One agent's life on a fake node.

    Args:
        node: The host.
        spawn: Starts a privileged child; None: `node.helper`.
    """

    def __init__(self, node: FakeNode, spawn: Callable[[], Helper] | None = None) -> None:
        self.node = node
        self.link = FakeLink()
        self.clock = 1000.0
        self.desired = Desired(node.directory)
        self.desired.load()
        found = Found(node.directory)
        found.load()
        self.agent = Agent(self.link, self.desired, found, spawn or node.helper, monotonic=lambda: self.clock)

    def turn(self, times: int = 1) -> None:
        """Let the agent deal with what happened."""
        for _ in range(times):
            self.agent.turn(0.0)

    def meet(self, epoch: int, revision: int, wanted: NodeState) -> None:
        """Let a session begin, and the broker answer Hello with a whole desired state."""
        self.link.connect()
        self.turn()
        assert self.link.said(Hello)
        self.link.say(Reset(epoch, revision, wanted))
        self.turn()


__all__ = [
    "FULL_FACTS", "REMOVED", "FakeLink", "FakeNode", "Life", "Report", "container", "peer", "permit", "state",
    "states",
]  # fmt: skip
