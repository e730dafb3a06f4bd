"""What attaching and connecting cost, counted on the real kernel: messages, transactions, processes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.attach import Namespaces
from firewall_rules.backends import libnftables
from firewall_rules.backends.nftables import NftablesContainerBackend, NftablesHostBackend
from firewall_rules.names import BRIDGE, port_device
from firewall_rules.policy import ContainerPolicy, HostPolicy, Opening, Pair, PortBinding
from netctl.model import mac_of
from nodeagent.apply import Host
from nodeagent.kernel.channel import Channel
from nodeagent.kernel.linux import LinuxKernel
from nodeagent.kernel_state import Bridge, ContainerEnd, ContainerPort
from nodeagent.ops import (
    SetBridge,
    SetContainerRules,
    SetEnd,
    SetEndpoint,
    SetHostRules,
    SetPort,
    UpdateContainerRules,
    UpdateHostRules,
)
from tests.support.netns import Namespace

pytestmark = pytest.mark.root

MTU, GATEWAY, BLOCK = 1450, "10.1.0.1", "10.1.0.0/16"
CONTAINER, ADDRESS, FAR = "0123456789abcdef" * 2, "10.1.0.2", "10.2.0.2"
DEVICE, MAC = port_device(CONTAINER), mac_of(ADDRESS)
END = ContainerEnd(f"{ADDRESS}/16", GATEWAY, MTU, MAC)
RULES = ContainerPolicy(ADDRESS, GATEWAY)
PROCESSES = {"os.fork", "os.forkpty", "os.posix_spawn", "os.system", "subprocess.Popen"}

_seen: Counter[str] = Counter()


def _audit(event: str, _arguments: object) -> None:
    if event in PROCESSES:
        _seen["processes"] += 1


@pytest.fixture(scope="module", autouse=True)
def _audited() -> None:
    # A hook stays for the life of the interpreter; this one only counts.
    sys.addaudithook(_audit)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What was asked of the kernel, and how many processes were started, since the count was cleared."""
    run, send, get, dump = libnftables.LibraryNft.run, Channel.send, Channel.get, Channel.dump

    def counting_run(self: libnftables.LibraryNft, commands: str) -> str:
        _seen["listings" if commands.startswith("list") else "transactions"] += 1
        return run(self, commands)

    def counting_send(self: Channel, messages: list[bytes]) -> object:
        _seen["messages"] += len(messages)
        return send(self, messages)

    def counting_get(self: Channel, *messages: bytes) -> object:
        _seen["questions"] += len(messages)
        return get(self, *messages)

    def counting_dump(self: Channel, message: bytes) -> object:
        _seen["dumps"] += 1
        return dump(self, message)

    monkeypatch.setattr(libnftables.LibraryNft, "run", counting_run)
    monkeypatch.setattr(Channel, "send", counting_send)
    monkeypatch.setattr(Channel, "get", counting_get)
    monkeypatch.setattr(Channel, "dump", counting_dump)
    _seen.clear()
    return _seen


class Node:
    """One node with one container that is not attached yet; made inside the node's namespace."""

    def __init__(self, records: Path, container: Namespace) -> None:
        self._records = records
        self._engine = Namespaces()
        self._engine.made[CONTAINER] = container.fd
        self.host = self.again()
        host_rules = SetHostRules(HostPolicy(BRIDGE, GATEWAY, BLOCK, "10.0.0.0/8"))
        self.apply(host_rules, SetBridge(Bridge(f"{GATEWAY}/16", MTU, mac_of(GATEWAY))))

    def again(self) -> Host:
        """Return the host of a process that was started again."""
        backends = NftablesContainerBackend(self._records), NftablesHostBackend(self._records)
        return Host(LinuxKernel(), *backends, [self._engine])

    def apply(self, *operations: object) -> None:
        assert not any(self.host.apply(operations))  # type: ignore[arg-type]

    def attach(self) -> None:
        self.apply(
            UpdateHostRules(bindings=(PortBinding(DEVICE, MAC, ADDRESS),)),
            SetContainerRules(CONTAINER, RULES),
            SetPort(CONTAINER, ContainerPort(DEVICE, MTU), END),
            SetEnd(CONTAINER, END),
        )


@pytest.fixture
def node(tmp_path: Path, namespaces: Callable[[], Namespace]) -> Iterator[Node]:
    container = namespaces()
    container.ip("link", "set", "lo", "down")
    with namespaces().entered():
        yield Node(tmp_path, container)


def test_attaching_is_eight_messages_and_two_transactions_and_no_process(
    node: Node, counted: Counter[str]
) -> None:
    counted.clear()
    node.attach()
    # Pair, no IPv6, the port's address, its settings and up; loopback, address, up and route inside.
    assert counted == {"transactions": 2, "messages": 8, "questions": 2, "dumps": 1}


def test_an_endpoint_of_dockers_is_four_messages_and_no_question(node: Node, counted: Counter[str]) -> None:
    counted.clear()
    node.apply(SetEndpoint(CONTAINER, ContainerPort(DEVICE, MTU), MAC))
    # Pair, no IPv6, the port's address, its settings and up; the rest is Docker's to do.
    assert counted == {"messages": 4}


def test_connecting_is_one_transaction_for_each_layer(node: Node, counted: Counter[str]) -> None:
    node.attach()
    pair, opening = Pair(ADDRESS, FAR), Opening(FAR, "tcp", 5432)
    counted.clear()
    node.apply(UpdateHostRules(pairs=(pair,)), UpdateContainerRules(CONTAINER, inbound=(opening,)))
    assert counted == {"transactions": 2}
    counted.clear()
    node.apply(
        UpdateContainerRules(CONTAINER, inbound_removed=(opening,)), UpdateHostRules(pairs_removed=(pair,))
    )
    assert counted == {"transactions": 2}


def test_looking_anew_writes_and_lists_nothing_and_starts_no_process(
    node: Node, counted: Counter[str]
) -> None:
    node.attach()
    before = node.host.observe()
    later = node.again()
    counted.clear()
    assert later.observe() == before
    assert not later.drifted()
    assert not counted["messages"] + counted["transactions"] + counted["listings"] + counted["processes"]


def test_the_count_sees_processes(counted: Counter[str], node: Node) -> None:
    del node
    counted.clear()
    namespace = Namespace()
    try:
        assert counted["processes"]
    finally:
        namespace.close()
