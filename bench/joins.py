"""A node that joins many others: from asking to be enrolled until every node has reported that it knows it.

The broker is a real one in a process of its own, with its database on disk; the agents are real ones with
real sessions, over kernels in memory. All of them share this machine's cores, where each would have its own.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs

from bench.statistics import Row
from firewall_rules.backends.fake import FakeContainerBackend, FakeHostBackend
from netctl import enrolment
from netctl.client import Client
from netctl.log import setup
from netctl.wire import identity as identities
from netctl.wire.messages import (
    BrokerStatus,
    CreateInvite,
    GetStatus,
    InviteCreated,
    ListNodes,
    Message,
    NodeList,
    RemoveNode,
)
from nodeagent.agent import Agent
from nodeagent.apply import Host
from nodeagent.desired import Desired
from nodeagent.engine.fake import FakeEngine
from nodeagent.facts import node_facts
from nodeagent.found import Found
from nodeagent.helper_fake import LocalHelper
from nodeagent.kernel.fake import FACTS, FakeKernel
from nodeagent.session import BrokerSession
from tests.support.broker_process import BrokerProcess

AIM = 1.0
PROCESSES = 2
"""That the agents of the other nodes are spread over."""
PATIENCE = 120.0
"""Seconds until a measurement is given up."""


class Node:
    """An agent over a kernel in memory, in a thread.

    Args:
        number: Fixes its underlay address (198.18.0.0/15: RFC 2544).
        directory: Its own; holds its identity once it has joined.
    """

    def __init__(self, number: int, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        address = f"198.18.{number // 250}.{number % 250 + 1}"
        offers = ("gre", "vxlan", "wireguard")
        self._kernel = FakeKernel(
            host_facts=attrs.evolve(FACTS, underlay=address, encapsulations=offers),
            sysctls={"net/ipv4/ip_forward": "0"},
            keys={1: f"{number:064x}"},
        )
        self._host = Host(self._kernel, FakeContainerBackend(), FakeHostBackend(), [FakeEngine()])
        self._agent: Agent | None = None
        self._thread: threading.Thread | None = None

    def join(self, invite: str, name: str) -> None:
        """Become a node of a broker."""
        identity = enrolment.enrol(invite, name, node_facts(self._host.facts(None)))
        identities.save(identity, self._directory / "identity.json")

    def start(self) -> None:
        """Run the agent."""
        desired, found = Desired(self._directory), Found(self._directory)
        desired.load()
        found.load()
        link = BrokerSession(identities.load(self._directory / "identity.json"))
        self._agent = Agent(link, desired, found, lambda: LocalHelper(self._host))
        self._thread = threading.Thread(target=self._run, args=(self._agent, link), daemon=True)
        self._thread.start()

    @staticmethod
    def _run(agent: Agent, link: BrokerSession) -> None:
        try:
            agent.run()
        finally:
            agent.close()
            link.close(farewell=agent.removed)

    def stop(self) -> None:
        """End the agent."""
        if self._agent is not None and self._thread is not None:
            if self._thread.is_alive():
                self._agent.stop()
            self._thread.join()


class Others:
    """The nodes that are there already, in processes of their own.

    Args:
        directory: Holds a folder for each node, joined.
        count: How many there are.
    """

    def __init__(self, directory: Path, count: int) -> None:
        shares = [range(first, count, PROCESSES) for first in range(PROCESSES)]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.joins", str(directory), *map(str, share)], stdin=subprocess.PIPE
            )
            for share in shares
        ]

    def close(self) -> None:
        """End them."""
        for process in self._processes:
            process.communicate()


def _ask(client: Client, request: Message, kind: type) -> Message:
    answer = client.request(request)
    if not isinstance(answer, kind):
        raise TypeError(answer)
    return answer


def _invite(client: Client) -> str:
    created: InviteCreated = _ask(client, CreateInvite("node"), InviteCreated)
    return created.invite


def _await_all(client: Client, count: int, since: int | None = None) -> None:
    """Wait until `count` nodes have reported a revision; None: the present one."""
    if since is None:
        status: BrokerStatus = _ask(client, GetStatus(), BrokerStatus)
        since = status.revision
    deadline = time.monotonic() + PATIENCE
    while True:
        listed: NodeList = _ask(client, ListNodes(), NodeList)
        ready = [row for row in listed.nodes if row.state == "ready" and row.applied >= since]
        if len(ready) == count:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(ready)} of {count} nodes report revision {since}")
        time.sleep(0.005)


@contextlib.contextmanager
def _broker(directory: Path) -> Iterator[Client]:
    with BrokerProcess(directory) as broker, Client(enrolment.enrol(broker.invite)) as client:
        yield client


def measure(nodes: int, rounds: int, scratch: Path) -> Row:
    """Have the last of `nodes` nodes join, `rounds` times.

    Args:
        nodes: How many there are when it has joined.
        rounds: How often; it is taken out again in between.
        scratch: An empty folder.
    """
    _more_files()
    setup("bench", level="error")
    seconds = []
    with _broker(scratch / "broker") as client:
        for number in range(nodes - 1):
            Node(number, scratch / f"{number}").join(_invite(client), f"n{number}")
        others = Others(scratch, nodes - 1)
        try:
            _await_all(client, nodes - 1)
            for number in range(nodes, nodes + rounds):
                joins = Node(number, scratch / f"{number}")
                invite = _invite(client)
                began = time.perf_counter()
                joins.join(invite, f"n{number}")
                status: BrokerStatus = _ask(client, GetStatus(), BrokerStatus)
                joins.start()
                _await_all(client, nodes, status.revision)
                seconds.append(time.perf_counter() - began)
                client.request(RemoveNode(f"n{number}", timeout=PATIENCE))
                joins.stop()
        finally:
            others.close()
    return Row(
        f"node {nodes} joins, until all {nodes} report it",
        "",
        "s",
        seconds,
        (),
        f"at most {AIM:.0f} s",
        max(seconds) <= AIM,
        f"real broker and agents, kernels in memory, {rounds} rounds",
    )


def _more_files() -> None:
    """Allow this process as many files as it may have: every session takes several."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _serve(directory: Path, numbers: list[int]) -> None:
    """Run the agents of some nodes until stdin ends."""
    setup("nodeagent", level="error")
    _more_files()
    nodes = [Node(number, directory / f"{number}") for number in numbers]
    for node in nodes:
        node.start()
    sys.stdin.read()
    for node in nodes:
        node.stop()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), [int(number) for number in sys.argv[2:]])
