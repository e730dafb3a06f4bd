"""A lab whose nodes have real Docker engines, with netctl's network on each."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import msgspec

from netctl.client import Client
from netctl.lab import engine, mounts, processes, topology
from netctl.lab.hosts import Hosts
from netctl.lab.image import IMAGE, archive, import_arguments
from netctl.lab.registry import SPEC_FILE
from netctl.lab.runner import identity_file
from netctl.lab.topology import LabSpec
from netctl.wire import identity
from netctl.wire.messages import ListContainers
from tests.support.docker_engine import BUSYBOX, COMPOSE, Version, run_docker, search_path
from tests.support.lab import Lab, Result
from tests.support.netns import Namespace, wait_for
from tests.support.pairs import Two

NETWORK = "demo"
SETTLED_SECONDS = 5.0
"""How long the overlay, the broker's record and the engine may disagree after whatever happened."""
RESTART_SECONDS = 30.0


@attrs.frozen
class Placed:
    """One container on netctl's network: what Docker says of it.

    Attributes:
        pid: Of its first process; 0: it does not run.
    """

    name: str
    node: str
    id: str
    address: str
    pid: int


class DockerLab(Lab):
    """One lab with engines of one version.

    Args:
        directory: Of its own.
        version: Of every node's engine.
        nodes: How many.
        legacy: The engines write iptables-legacy's tables.
        options: Of `netctl lab up`.
    """

    def __init__(
        self, directory: Path, version: Version, *options: str, nodes: int = 2, legacy: bool = False
    ) -> None:
        super().__init__(directory, "--docker", "--nodes", str(nodes), *options)
        self.version = version
        self.nodes = tuple(f"n{number}" for number in range(1, nodes + 1))
        links = directory.with_name(f"{directory.name}-bin")
        self.environment |= {
            "PATH": search_path(version, links, legacy=legacy),
            "DOCKER_CONFIG": str(COMPOSE),
        }

    def up(self, *, settings: Mapping[str, Any] | None = None) -> None:
        """Bring it up, or up again; with `settings`, engines that are not running start with these."""
        if settings is not None:
            for node in self.nodes:
                self._files(node).config.write_text(json.dumps(settings))
        super().up()

    def furnish(self) -> None:
        """Give every engine the image and netctl's network."""
        for node in self.nodes:
            self.docker(node, *import_arguments(), text=archive(BUSYBOX))
            self.make_network(node)

    def make_network(self, node: str, name: str = NETWORK, *options: str) -> None:
        self.docker(node, "network", "create", "-d", "netctl", "--ipam-driver", "netctl", *options, name)

    def _files(self, node: str) -> engine.EngineFiles:
        return topology.engine_files(self.directory, node)

    def url(self, node: str) -> str:
        return f"unix://{self._files(node).socket}"

    def docker_environment(self, node: str) -> dict[str, str]:
        """Return the environment in which `docker` speaks to a node's engine."""
        return {**os.environ, **self.environment, "DOCKER_HOST": self.url(node)}

    def docker(
        self, node: str, *arguments: str, status: int | None = 0, text: bytes = b"", seconds: float = 60.0
    ) -> Result:
        """Run Docker's command line on a node; fail the test when it does not end with `status`."""
        path = self.environment["PATH"]
        return run_docker(self.url(node), path, *arguments, status=status, text=text, seconds=seconds)

    def start(
        self, node: str, name: str, *options: str, command: tuple[str, ...] = (), network: str = NETWORK
    ) -> Placed:
        """`docker run` a container in the background."""
        self.docker(node, "run", "--detach", "--name", name, "--network", network, *options, IMAGE, *command)
        return self.placed(node, name)

    # The command line takes its time, and these are asked for again and again while something settles.

    def containers(self) -> dict[str, dict[str, Any]]:
        with Client(identity.load(identity_file(self.directory))) as client:
            answer = client.request(ListContainers())
        return {row.name: attrs.asdict(row) for row in answer.containers}

    def pid(self, process: str) -> int:
        found = self._hosts().process(process)
        assert found is not None, f"{process} does not run"
        return found.pid

    def host(self, name: str) -> Namespace:
        namespace = self._planned().hosts[name].namespace
        return self._keep(os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC))

    def _planned(self) -> topology.Topology:
        spec = msgspec.json.decode((self.directory / SPEC_FILE).read_bytes(), type=LabSpec)
        return topology.plan(spec)

    def _hosts(self) -> Hosts:
        return Hosts(self._planned(), lambda _: None)

    def inspect(self, node: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.docker(node, "inspect", "--type", "container", name).json[0]
        return found

    def placed(self, node: str, name: str, network: str = "") -> Placed:
        """Return what Docker says of a container; its address on `network`, or on the first it has one on."""
        found = self.inspect(node, name)
        networks = found["NetworkSettings"]["Networks"]
        addresses = [each["IPAddress"] for key, each in networks.items() if network in ("", key)]
        return Placed(name, node, found["Id"], next(filter(None, addresses), ""), found["State"]["Pid"])

    def inside(self, placed: Placed) -> Namespace:
        """Return a running container's network namespace."""
        assert placed.pid, placed
        return self.namespace_of(placed.pid)

    @contextlib.contextmanager
    def pair(
        self, one: str, other: str, nodes: tuple[str, str] = ("n1", "n2"), *options: str
    ) -> Iterator[Two]:
        """`docker run` two containers, and remove them at the end."""
        try:
            first, second = self.start(nodes[0], one, *options), self.start(nodes[1], other, *options)
            yield Two(self.inside(first), first.address, self.inside(second), second.address)
        finally:
            for node, name in zip(nodes, (one, other), strict=True):
                self.docker(node, "rm", "--force", name, status=None)

    def refreshed(self, one: str, other: str, nodes: tuple[str, str] = ("n1", "n2")) -> Two:
        """Return two containers as they are now: a restart gives each a new namespace."""
        first, second = self.placed(nodes[0], one), self.placed(nodes[1], other)
        return Two(self.inside(first), first.address, self.inside(second), second.address)

    # --- faults --------------------------------------------------------------------------------

    def end(self, process: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal that ends a process of the lab (``n1 docker``), and wait until it is gone."""
        pid = os.pidfd_open(self.pid(process))
        try:
            signal.pidfd_send_signal(pid, number)
            wait_for(lambda: _ended(pid), RESTART_SECONDS, f"the end of {process}")
        finally:
            os.close(pid)

    def begin(self, process: str) -> None:
        """Start one process of the lab that has ended, and no other; do not wait for anything."""
        hosts, node = self._hosts(), process.split(maxsplit=1)[0]
        if process == topology.engine_name(node):
            keeper = hosts.process(topology.keeper_name(node))
            assert keeper is not None
            engine.prepare(self._files(node), mounts.run_folder(keeper.pid))
        with mock.patch.dict(os.environ, self.environment):
            hosts.start(process)

    def begin_engine(self, node: str, settings: Mapping[str, Any] | None = None) -> float:
        """Start a node's engine, which has ended; return how long it took to answer, in seconds."""
        if settings is not None:
            self._files(node).config.write_text(json.dumps(settings))
        started = time.monotonic()
        self.begin(topology.engine_name(node))
        wait_for(lambda: engine.answers(self._files(node)), RESTART_SECONDS, f"the engine of {node}")
        return time.monotonic() - started

    def restart_engine(
        self, node: str, *, kill: bool = False, settings: Mapping[str, Any] | None = None
    ) -> float:
        """Stop (or kill) a node's engine and start it again; return how long the start took, in seconds."""
        self.end(topology.engine_name(node), signal.SIGKILL if kill else signal.SIGTERM)
        return self.begin_engine(node, settings)

    @contextlib.contextmanager
    def live_restore(self, node: str, *, on: bool = True) -> Iterator[None]:
        """Have a node's containers outlive its engine, or not, for a while."""
        self._set_live_restore(node, on=on)
        try:
            yield
        finally:
            self._set_live_restore(node, on=False)

    def _set_live_restore(self, node: str, *, on: bool) -> None:
        self._files(node).config.write_text(json.dumps({"live-restore": on}))
        # It reads its settings anew (dockerd(8)).
        os.kill(self.pid(topology.engine_name(node)), signal.SIGHUP)
        told = ("info", "--format", "{{.LiveRestoreEnabled}}")
        wait_for(lambda: self.docker(node, *told).out.strip() == str(on).lower(), 5, "the engine's settings")

    @contextlib.contextmanager
    def without_agent(self, node: str, *, hung: bool = False) -> Iterator[None]:
        """Have a node's agent dead, or hung, for a while; at the end it is back."""
        if not hung:
            self.end(node)
            try:
                yield
            finally:
                self.begin(node)
            return
        agent = self.pid(node)
        halted = [agent, *processes.children(agent)]
        for pid in halted:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in reversed(halted):
                os.kill(pid, signal.SIGCONT)

    # --- agreement -----------------------------------------------------------------------------

    def disagreements(self) -> list[str]:
        """Say where Docker, the broker's record and the nodes' links differ, all nodes."""
        recorded = self.containers()
        found = []
        alive: dict[str, str] = {}
        for node in self.nodes:
            addresses = self._attached(node)
            for name, address in addresses.items():
                alive[address] = name
                rows = [row for row in recorded.values() if (row["node"], row["address"]) == (node, address)]
                if [row["state"] for row in rows] != ["running"]:
                    found.append(f"{name} on {node} runs with {address}, and recorded is {rows}")
            ports = sum(
                line.split(": ")[1].startswith("ncp")
                for line in self.host(node).ip("-o", "link").splitlines()
            )
            wanted = len(addresses) + sum(
                row["node"] == node and row["engine"] == "process" for row in recorded.values()
            )
            if ports != wanted:
                found.append(f"{node} has {ports} ports for {wanted} containers")
        found += [
            f"{row['name']} is recorded as running, and is not"
            for row in recorded.values()
            if row["engine"] == "docker" and row["state"] == "running" and row["address"] not in alive
        ]
        return found

    def _attached(self, node: str) -> dict[str, str]:
        """Return the addresses of a node's running containers on networks of ours, by name."""
        found = {}
        networks = self.docker(node, "network", "ls", "-q", "--filter", "driver=netctl").out.split()
        for network in self.docker(node, "network", "inspect", *networks).json if networks else ():
            for each in (network["Containers"] or {}).values():
                found[each["Name"]] = each["IPv4Address"].partition("/")[0]
        return found

    def wait_agreed(self, seconds: float = SETTLED_SECONDS) -> None:
        """Wait until Docker, the broker and the overlay agree; fail the test when they do not in time."""
        deadline = time.monotonic() + seconds
        while left := self.disagreements():
            assert time.monotonic() < deadline, "\n".join(left)


def _ended(pid: int) -> bool:
    """Return whether a process (by its pidfd) is gone, or a zombie that nobody reaps."""
    try:
        signal.pidfd_send_signal(pid, 0)
    except ProcessLookupError:
        return True
    number = next(
        line.split()[1]
        for line in Path(f"/proc/self/fdinfo/{pid}").read_text().splitlines()
        if line.startswith("Pid:")
    )
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
