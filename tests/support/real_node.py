"""One node whose kernel, firewalls and process engine are real, in a namespace of the test's own.

What outlives an agent is real too: links, tables, shims, and the files in two directories. Everything an
agent's process would hold, and its privileged child's, is made anew for each `RealLife`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Self

import attrs

from firewall_rules import names
from firewall_rules.backends.nftables import NftablesContainerBackend, NftablesHostBackend
from firewall_rules.backends.nftables_keeper import Doors
from netctl.wire.messages import Applied
from nodeagent.agent import Agent
from nodeagent.apply import Host
from nodeagent.desired import Desired
from nodeagent.engine.cgroups import PARENT, find_hierarchies
from nodeagent.engine.process import ProcessEngine
from nodeagent.found import Found
from nodeagent.helper_client import Event, Helper
from nodeagent.helper_fake import LocalHelper
from nodeagent.helper_messages import ContainerChanged
from nodeagent.kernel.linux import LinuxKernel
from nodeagent.kernel_state import HostState
from nodeagent.ops import Op
from nodeagent.session import Ready
from tests.support.agents import FakeLink
from tests.support.netns import Namespace, address, veth

UNDERLAY = "192.0.2.1"
SECONDS = 20.0
"""How long an agent may take to have a desired state applied on a busy machine."""
_RUN_ID = secrets.token_hex(8)

_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_NETLINK_NETFILTER, _NFNLGRP_NFTABLES = 12, 7
_ADDRESSES_AND_ROUTES = (20, 21, 24, 25)
_NEIGHBOURS, _NUD_PERMANENT = (28, 29), 0x80
_LEARNED = (52, 68, 84, 85)
"""Prefixes and options of IPv6 routers, and a bridge's multicast groups."""

Hook = Callable[[int, Op], None]


def real_id(number: int) -> str:
    """Return a container id: the same device in every run, no other run's cgroup."""
    return f"{number:012x}"[::-1] + "0000" + _RUN_ID


class RealHelper(LocalHelper):
    """A privileged child in this process over a real host: its engine tells by a descriptor."""

    def fileno(self) -> int:
        (engine,) = self._host.engines.values()
        (descriptor,) = engine.descriptors()
        return descriptor

    def events(self) -> list[Event]:
        """Return what the engine tells. Nobody else writes here, so drift is not looked for."""
        (engine,) = self._host.engines.values()
        engine.dispatch(lambda container, state: self._events.append(ContainerChanged(container, state)))
        events, self._events = self._events, []
        return events


@attrs.define
class WaitingLink(FakeLink):
    """A broker that a test plays, and an agent that really waits for its host."""

    def wait(self, readers: Collection[int], writers: Collection[int], timeout: float) -> Ready:
        if self.incoming:
            timeout = 0.0
        readable, writable, _ = select.select(list(readers), list(writers), [], timeout)
        return Ready(frozenset(readable), frozenset(writable))


def _nothing(_number: int, _operation: Op) -> None:
    return


class RealNode:
    """What outlives every agent: a namespace with an underlay link, and the node's directories."""

    def __init__(self, directory: Path, make: Callable[[], Namespace]) -> None:
        self.state, self.run = directory / "state", directory / "run"
        self.state.mkdir(parents=True)
        self.run.mkdir()
        self.namespace, self.wire = make(), make()
        veth(self.namespace, "up0", self.wire, "up0")
        self.namespace.ip("link", "set", "up0", "address", "02:00:00:00:00:01")
        address(self.namespace, "up0", f"{UNDERLAY}/24")
        self.wire.ip("link", "set", "up0", "up")

    def clear(self) -> None:
        """Remove what would outlive the test: its containers' processes."""
        engine = ProcessEngine(self.state, root=True)
        for container in list(engine.containers()):
            engine.remove(container)
        engine.close()

    def processes(self) -> dict[str, list[str]]:
        """Return the names of the processes in each container's cgroups."""
        found = {}
        for hierarchy in find_hierarchies(Path("/proc/self/mountinfo").read_text()):
            for cgroup in (hierarchy / PARENT).glob(f"*{_RUN_ID}"):
                pids = (cgroup / "cgroup.procs").read_text().split()
                found[f"{hierarchy}:{cgroup.name}"] = sorted(
                    Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids
                )
        return found


def _let_go(doors: Doors) -> None:
    """Close what the end of a process would."""
    for key in list(doors._open):
        doors.close(key)


class RealLife:
    """One agent's life on a real node, its privileged child's included.

    The calling thread is in the node's namespace from `__enter__` to `__exit__`.
    """

    def __init__(self, node: RealNode, before: Hook = _nothing, after: Hook = _nothing) -> None:
        self.node = node
        self.link = WaitingLink()
        self.helpers: list[LocalHelper] = []
        self._hooks = before, after

    def __enter__(self) -> Self:
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.enter_context(self.node.namespace.entered())
            self.kernel = LinuxKernel()
            undo.callback(self.kernel.close)
            self.engine = ProcessEngine(self.node.state, root=True, masked=(self.node.run,))
            undo.callback(self.engine.close)
            layer1, layer2 = NftablesContainerBackend(self.node.run), NftablesHostBackend(self.node.run)
            undo.callback(_let_go, layer1._doors)
            undo.callback(_let_go, layer2._keeper._doors)
            self.host = Host(self.kernel, layer1, layer2, [self.engine])
            desired, found = Desired(self.node.state), Found(self.node.state)
            desired.load()
            found.load()
            self.agent = Agent(self.link, desired, found, self._spawn, underlay=UNDERLAY)
            undo.callback(self.agent.close)
            self._stack = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _spawn(self) -> Helper:
        self.helpers.append(RealHelper(self.host, *self._hooks))
        return self.helpers[-1]

    @property
    def operations(self) -> int:
        """How many operations were done in this life."""
        return sum(len(helper.applied) for helper in self.helpers)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Let the agent live until `condition` holds."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come within {SECONDS} s: {self.link.sent}"
            self.agent.turn(0.2)

    def until_applied(self, revision: int) -> None:
        """Let the agent live until it has reported a revision as applied, without errors."""

        def applied() -> bool:
            told = [message for message in self.link.sent if isinstance(message, Applied)]
            return bool(told) and (told[-1].revision, told[-1].errors) == (revision, ())

        self.until(applied, f"revision {revision}")

    def until_settled(self) -> None:
        """Let the agent live until nothing is left to do."""
        host = self.agent._host.reconciler
        assert host is not None
        self.until(lambda: host.settled and not host.errors(), "the desired state")

    def observed(self) -> HostState:
        return self.host.observe()

    def raw(self) -> frozenset[str]:
        """List the node's namespace and its containers' as the kernel has them, by programs not ours."""
        lines = [f"node {line}" for line in _listing(self.node.namespace.fd)]
        for container in self.engine.containers():
            lines += [f"{container} {line}" for line in _listing(self.engine.namespace(container))]
        lines += [f"processes {cgroup} {names}" for cgroup, names in self.node.processes().items()]
        lines += [f"directory {path.name}" for path in (self.node.state / "containers").iterdir()]
        return frozenset(lines)


class Notices:
    """What the kernel tells of a namespace's links, addresses, routes, neighbours and nftables.

    Every change is told before the call that makes it returns (rtnetlink(7), NETLINK_NETFILTER). What the
    kernel comes to know by itself is left out: neighbours it learns, multicast groups, its own IPv6.
    """

    _GROUPS = ((socket.NETLINK_ROUTE, range(1, 32)), (_NETLINK_NETFILTER, (_NFNLGRP_NFTABLES,)))

    def __init__(self, namespace: int) -> None:
        self._sockets = []
        with _Opened(namespace).entered():
            for protocol, groups in self._GROUPS:
                sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
                sock.bind((0, 0))
                for group in groups:
                    sock.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
                self._sockets.append(sock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()

    def told(self) -> list[int]:
        """Return the types of the messages that came since the last call (linux/rtnetlink.h)."""
        kinds = []
        for sock in self._sockets:
            with contextlib.suppress(BlockingIOError):
                while True:
                    message = sock.recv(65536)
                    if not (sock.proto == socket.NETLINK_ROUTE and _by_itself(message)):
                        kinds.append(struct.unpack_from("=IH", message)[1])
        return kinds


def _by_itself(message: bytes) -> bool:
    """Tell whether a notice is of something that the kernel does without being asked (linux/rtnetlink.h)."""
    (kind,), family = struct.unpack_from("=4xH", message), message[16]
    if kind in _NEIGHBOURS:
        (state,) = struct.unpack_from("=H", message, 24)
        return not state & _NUD_PERMANENT
    return kind in _LEARNED or (kind in _ADDRESSES_AND_ROUTES and family == socket.AF_INET6)


class _Opened(Namespace):
    """A namespace by the descriptor somebody else keeps."""

    def __init__(self, fd: int) -> None:
        self.fd = fd


_LISTED = {
    "link": ("ip", "-j", "-d", "link", "show"),
    "address": ("ip", "-j", "-4", "addr", "show"),
    "route": ("ip", "-j", "-4", "route", "show", "table", "all"),
    "neighbour": ("ip", "-j", "-4", "neigh", "show", "nud", "permanent"),
}
_CHANCE = frozenset({
    "ifindex", "link_index", "link_netnsid", "handle", "metainfo", "expires",
})  # fmt: skip
"""Numbers that the kernel gives out in turn, and clocks."""


def _listing(namespace: int) -> Iterator[str]:
    inside = _Opened(namespace)
    for what, command in _LISTED.items():
        for entry in json.loads(inside.run(*command) or "[]"):
            yield f"{what} {_plain(entry)}"
    # The order of rules means something; that of tables does not, and sets have none.
    places: dict[str, int] = {}
    for entry in json.loads(inside.run("nft", "-j", "list", "ruleset"))["nftables"]:
        table = str(next(iter(entry.values())).get("table", ""))
        places[table] = places.get(table, 0) + 1
        yield f"rules {table} {places[table] if table else 0} {_plain(entry)}"
    yield from (f"setting {path} {value}" for path, value in _settings(inside))


def _plain(value: Any) -> Any:
    """Leave out what differs between two equal hosts, and order what has no order."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    kept = {
        key: _plain(entry)
        for key, entry in value.items()
        if key not in _CHANCE and not key.endswith("_timer")
    }
    if str(kept.get("ifname", "")).startswith(names.PORT_PREFIX):
        # The kernel draws it by lot, and nobody speaks to it.
        kept.pop("address", None)
        # A bridge numbers its ports as they come.
        for number in ("id", "no", "designated_port"):
            kept["linkinfo"]["info_slave_data"].pop(number, None)
    if isinstance(kept.get("elem"), list):
        kept["elem"] = sorted(kept["elem"], key=repr)
    return kept


def _settings(inside: Namespace) -> Iterator[tuple[str, str]]:
    """Yield what /proc/sys says of the namespace's forwarding and of each link."""
    with inside.entered():
        top = Path("/proc/sys/net")
        for pattern in ("ipv4/ip_forward", "ipv4/conf/*/*", "ipv6/conf/*/disable_ipv6", "bridge/*"):
            for file in top.glob(pattern):
                if os.access(file, os.R_OK):
                    yield str(file.relative_to(top)), file.read_text().strip()
