"""Nodes that live: the real core of the broker, agents, privileged children and kernel, in one process.

Only the frames between agent and broker are carried by hand, and containers are bare namespaces. Each child
has a thread of its own, which is inside the node's namespace.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from firewall_rules.backends.nftables import NftablesContainerBackend, NftablesHostBackend
from netctl.model import Encapsulation, Port
from netctl.wire.identity import KeyPair
from netctl.wire.messages import (
    Applied,
    Connect,
    Done,
    Envelope,
    Failure,
    Message,
    Ping,
    Pong,
    RunContainer,
)
from nodeagent.agent import Agent
from nodeagent.apply import Host
from nodeagent.desired import Desired
from nodeagent.engine.fake import FakeEngine
from nodeagent.facts import node_facts, restricted
from nodeagent.found import Found
from nodeagent.helper_client import HelperClient
from nodeagent.helper_server import HelperServer
from nodeagent.kernel.linux import LinuxKernel
from nodeagent.kernel.prober import Prober
from nodeagent.kernel.watch import LinkWatch
from nodeagent.kernel.wireguard_keys import WireguardKeys
from nodeagent.kernel_state import HostState
from nodeagent.reconcile import Reconciler
from nodeagent.session import Down, Ready, Up
from tests.support.hub import WORKLOAD, House, Talker
from tests.support.netns import Namespace, veth
from tests.support.pairs import Two

UNDERLAY = "up0"
"""The link to the underlay, in every node's namespace."""
SECONDS = 30.0
"""How long what should come may take on a busy machine, where the test asks for nothing faster."""


class HubLink:
    """An agent's session with a broker's core in this process; see `nodeagent.session.Link`.

    Attributes:
        applied: What the agent said last of what is applied.
    """

    def __init__(self, house: House, keys: KeyPair) -> None:
        self._talker = Talker(house, keys, "node")
        self._talker.shake_hands()
        self._begun = False
        self.applied: Applied | None = None

    @property
    def connected(self) -> bool:
        return self._begun

    def send(self, message: Message, number: int = 0) -> bool:
        if self._begun:
            self._talker.say(message, number)
        if isinstance(message, Applied):
            self.applied = message
        return self._begun

    def receive(self) -> list[Up | Down | Envelope]:
        if not self._begun:
            self._begun = True
            return [Up("hub")]
        heard = self._talker.heard.copy()
        self._talker.heard.clear()
        if any(isinstance(one.message, Ping) for one in heard):
            self._talker.say(Pong(), 0)
        return [one for one in heard if not isinstance(one.message, Ping | Pong)]

    @property
    def waiting(self) -> bool:
        """Whether there is something to receive."""
        return bool(self._talker.heard) or not self._begun

    def deadline(self) -> float:
        return float("inf")

    def wait(self, readers: Collection[int], writers: Collection[int], timeout: float) -> Ready:
        readable, writable, _ = select.select(readers, writers, [], 0.0 if self.waiting else timeout)
        return Ready(frozenset(readable), frozenset(writable))

    def postpone(self, reason: str) -> None:
        raise AssertionError(f"the broker refuses this node: {reason}")

    def check_address(self) -> None:
        """There is none."""


class SpaceEngine(FakeEngine):
    """An engine whose containers are namespaces that are made as they are asked for."""

    def __init__(self, make: Callable[[], Namespace]) -> None:
        super().__init__()
        self._make = make
        self.spaces: dict[str, Namespace] = {}

    def namespace(self, container: str) -> int:
        super().namespace(container)
        if container not in self.spaces:
            self.spaces[container] = self._make()
        return self.spaces[container].fd


class LivingNode:
    """A node on the link `UNDERLAY` of its namespace, which has its address already.

    Args:
        name: Of the node.
        house: The broker, which it joins.
        namespaces: The node's, and what makes its containers'.
        directory: For its files.
        encapsulations: What its operator allows.

    Attributes:
        agent: Give it turns, see `LivingNodes.until`.
        crash: What the thread of its privileged child died of.
    """

    def __init__(
        self,
        name: str,
        house: House,
        namespaces: tuple[Namespace, Callable[[], Namespace]],
        directory: Path,
        encapsulations: Sequence[Encapsulation],
    ) -> None:
        self.name = name
        self.namespace, make = namespaces
        self.engine = SpaceEngine(make)
        self.crash: BaseException | None = None
        self._directory = directory
        directory.mkdir()
        self._ready = threading.Event()
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        assert self._ready.wait(SECONDS)
        assert self.crash is None, self.crash
        client = HelperClient(ours)
        facts = node_facts(restricted(client.facts(UNDERLAY), encapsulations))
        desired, found = Desired(directory), Found(directory)
        desired.load()
        found.load()
        self.link = HubLink(house, house.enrol("node", self.name, facts))
        self.agent = Agent(
            self.link,
            desired,
            found,
            lambda: client,
            underlay=UNDERLAY,
            encapsulations=encapsulations,
        )
        self.agent.begin()

    def _serve(self) -> None:
        try:
            with self.namespace.entered(), contextlib.ExitStack() as stack:
                kernel = LinuxKernel(WireguardKeys(self._directory / "wireguard"))
                stack.callback(kernel.close)
                host = Host(
                    kernel,
                    NftablesContainerBackend(self._directory),
                    NftablesHostBackend(self._directory),
                    [self.engine],
                )
                watch = stack.enter_context(contextlib.closing(LinkWatch()))
                prober = stack.enter_context(contextlib.closing(Prober()))
                server = HelperServer(self._theirs, host, watch, UNDERLAY, prober=prober)
                self._ready.set()
                server.serve()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.crash = error
        finally:
            self._ready.set()
            self._theirs.close()

    def close(self) -> None:
        self.agent.close()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()
        self.engine.close()

    @property
    def reconciler(self) -> Reconciler:
        reconciler = self.agent._host.reconciler
        assert reconciler is not None
        return reconciler

    def observed(self) -> HostState:
        """Return what is there, read anew."""
        assert self.agent._host.helper is not None
        return self.agent._host.helper.observe()

    def traces(self) -> str:
        """List links, routes, neighbours and rules by the kernel's own tools, WireGuard's peers by ours."""
        listed = [
            self.namespace.run(*command)
            for command in (
                ("ip", "-d", "link"),
                ("ip", "-4", "route", "show", "table", "all"),
                ("ip", "-4", "neigh", "show", "nud", "permanent"),
                ("nft", "list", "ruleset"),
            )
        ]
        spaces = [space.run("nft", "list", "ruleset") for space in self.engine.spaces.values()]
        return "\n".join((*listed, *spaces, repr(self.observed().wireguard)))


class LivingNodes:
    """A broker, and nodes on one Ethernet: nN has 192.0.2.N1/24 (n1: 192.0.2.11).

    Args:
        make: Makes a namespace that ends with the test.
        directory: For the nodes' files.
        count: Of nodes.
        encapsulations: What every node's operator allows.
    """

    def __init__(
        self, make: Callable[[], Namespace], directory: Path, count: int, *encapsulations: Encapsulation
    ) -> None:
        self.house = House()
        self._clock = time.monotonic()
        self.user = self.house.user()
        self.switch = make()
        self.switch.ip("link", "add", "switch", "type", "bridge")
        self.switch.ip("link", "set", "switch", "up")
        self.nodes: list[LivingNode] = []
        try:
            for number in range(1, count + 1):
                namespace = make()
                veth(self.switch, f"port{number}", namespace, UNDERLAY)
                self.switch.ip("link", "set", f"port{number}", "master", "switch", "up")
                namespace.ip("addr", "add", f"192.0.2.{number}1/24", "dev", UNDERLAY)
                namespace.ip("link", "set", UNDERLAY, "up")
                name = f"n{number}"
                node = LivingNode(name, self.house, (namespace, make), directory / name, encapsulations)
                self.nodes.append(node)
            self.settle()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for node in self.nodes:
            node.close()

    def turn(self) -> None:
        """Let everybody live for a moment."""
        now = time.monotonic()
        self.house.later(now - self._clock)
        self._clock = now
        for node in self.nodes:
            node.agent.turn(0.01)
            assert node.crash is None, node.crash

    def until(self, condition: Callable[[], bool], what: str, seconds: float = SECONDS) -> float:
        """Let the nodes live until `condition` holds; return after how many seconds that was."""
        began = time.monotonic()
        while not condition():
            assert time.monotonic() - began < seconds, f"{what} did not come within {seconds} s"
            self.turn()
        return time.monotonic() - began

    def settle(self) -> None:
        """Let the nodes live until all have applied what they were told, without errors."""
        self.until(
            lambda: all(
                node.link.applied is not None
                and not node.link.applied.errors
                and not node.link.waiting
                and node.reconciler.settled
                for node in self.nodes
            ),
            "the desired states",
        )

    def ask(self, message: Message) -> Message:
        """Have the broker do something; return its answer once it comes."""
        number = 7_000_000 + len(self.user.heard)
        self.user.say(message, number)

        def answers() -> list[Message]:
            return [one.message for one in self.user.heard if one.id == number]

        self.until(
            lambda: any(isinstance(one, Done | Failure) for one in answers()), f"an answer to {message}"
        )
        assert isinstance(answers()[-1], Done), answers()
        return answers()[-1]

    def run(self, name: str, node: LivingNode) -> tuple[Namespace, str]:
        """Run a container; return its namespace and its address."""
        self.ask(RunContainer(name, WORKLOAD, node.name))
        container = next(one for one in self.house.snapshot.containers.values() if one.name == name)
        return node.engine.spaces[container.id], container.address

    def pair(self, one: LivingNode, other: LivingNode, *ports: str) -> Two:
        """Run a container on each of two nodes, the first of which may open these ports of the second."""
        source, own = self.run(f"on-{one.name}", one)
        target, far = self.run(f"on-{other.name}", other)
        self.ask(Connect(f"on-{one.name}", f"on-{other.name}", tuple(Port.parse(port) for port in ports)))
        return Two(source, own, target, far)
