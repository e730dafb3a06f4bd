"""The story that `scripts/demo` tells: nothing passes, then exactly what was connected, then nothing again.

Every step is checked. Commands are shown as a user would type them, and are run just so, but for those that
only measure.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from rich.markup import escape

from netctl.client import Client
from netctl.lab import confine, demo_probe, runner, topology
from netctl.lab.demo_probe import COUNT_PORT, OPEN_PORT, OTHER_PORT
from netctl.lab.telling import Teller, UnexpectedError, within
from netctl.lab.topology import Wish
from netctl.model import Port, Workload
from netctl.wire import identity
from netctl.wire.messages import Connect, Disconnect, RemoveContainer, RunContainer

PROBE = str(Path(demo_probe.__file__).resolve())
ROUNDS = 5
"""How often connect and disconnect are measured."""
REPAIR_SECONDS = 20.0
STILL_SECONDS = 1.0
"""How long the receiver is watched after a disconnect."""
CONTAINERS = {"web": "n1", "db": "n2", "cache": "n3", "mate": "n1"}


class Story(Teller):
    """Tells it, on a console."""

    def _inside(self, container: str, *arguments: str) -> str:
        return self._netctl("exec", container, "--", sys.executable, PROBE, *arguments, quiet=True)

    def _probe(self, source: str, expectations: Mapping[str, tuple[str, bool]]) -> None:
        """Probe from inside a container: what -> (how to say it, whether it is to pass)."""
        results = json.loads(self._inside(source, "probe", *expectations))
        for what, (text, expected) in expectations.items():
            self._check(text, expected=expected, actual=results[what])

    def tell(self) -> None:
        """Tell it all.

        Raises:
            UnexpectedError: A step did not come out as said.
        """
        self._start(
            "A broker and three nodes on this machine, each in a network namespace of its own", Wish()
        )
        addresses = self._run_containers()
        self._nothing_passes(addresses)
        self._link_local()
        self._connect(addresses)
        self._disconnect(addresses)
        self._measure()
        self._summary()

    def _run_containers(self) -> dict[str, str]:
        self._title("Containers: web, db and cache on three nodes, and mate beside web")
        for name, node in CONTAINERS.items():
            self._netctl("run", name, "--node", node, "--", sys.executable, PROBE, "serve")
        self._netctl("ps")
        rows = json.loads(self._netctl("ps", "--json", quiet=True))
        for row in rows:
            if row["state"] != "running":
                raise UnexpectedError(f"{row['name']} is {row['state']}")
        addresses = {row["name"]: row["address"] for row in rows}
        # A server that is not listening yet would look like one that is blocked.
        for name in CONTAINERS:
            self._wait_for_server(name)
        return addresses

    def _wait_for_server(self, name: str) -> None:
        deadline = time.monotonic() + 10
        loopback = f"tcp:127.0.0.1:{OPEN_PORT}"
        while not json.loads(self._inside(name, "probe", loopback))[loopback]:
            if time.monotonic() > deadline:
                raise UnexpectedError(f"the server in {name} does not listen")

    def _nothing_passes(self, addresses: Mapping[str, str]) -> None:
        self._title("By default nothing passes")
        for source, target in (("web", "db"), ("db", "cache"), ("cache", "web"), ("web", "mate")):
            address = addresses[target]
            self._probe(
                source,
                {
                    f"tcp:{address}:{OPEN_PORT}": (f"{source} -> {target} TCP {OPEN_PORT}", False),
                    f"udp:{address}:{OPEN_PORT}": (f"{source} -> {target} UDP {OPEN_PORT}", False),
                    f"icmp:{address}": (f"{source} -> {target} ping", False),
                },
            )

    def _link_local(self) -> None:
        self._title("IPv6 link-local on the same node is closed too; and would pass without the firewall")
        namespaces = {}
        link_local = ""
        for name in ("web", "mate"):
            namespace, address = json.loads(self._inside(name, "self"))
            namespaces[name] = _pid_in(namespace)
            link_local = address or link_local
        if not link_local:
            raise UnexpectedError("mate has no IPv6 link-local address, so this would show nothing")
        enter = {name: ["nsenter", "-t", str(pid), "--net", "--"] for name, pid in namespaces.items()}

        def passes() -> bool:
            what = f"icmp6:{link_local}%eth0"
            command = [*enter["web"], sys.executable, PROBE, "probe", what]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return bool(json.loads(done.stdout)[what])

        self._check("web -> mate IPv6 ping, link-local", expected=False, actual=passes())
        with self._halted("n1"):
            self._console.print("  the agent of n1 is halted, and the guards are taken out by hand:")
            node = topology.namespace_prefix(self._directory) + "n1"
            for command in (enter["web"], enter["mate"]):
                self._by_hand([*command, "nft", "delete", "table", "inet", "netctl"])
            for family in ("bridge", "inet"):
                self._by_hand(confine.inside(node, ["nft", "delete", "table", family, "netctl"]))
            # The bridge passes no multicast either, and neighbour discovery is multicast (RFC 4861).
            for port in self._ports(node):
                flood = ["ip", "link", "set", port, "type", "bridge_slave", "mcast_flood", "on"]
                self._by_hand(confine.inside(node, flood))
            passed = within(5.0, passes)
            self._check("web -> mate IPv6 ping, without the firewall", expected=True, actual=passed)
        self._console.print("  the agent goes on, and repairs what it finds:")
        started = time.monotonic()
        repaired = within(REPAIR_SECONDS, lambda: not passes())
        self._took["repair of a flushed firewall"] = f"{time.monotonic() - started:.1f} s"
        self._check("web -> mate IPv6 ping, after the repair", expected=False, actual=not repaired)

    def _ports(self, node: str) -> list[str]:
        """Return the names of the bridge's ports in a node's namespace."""
        command = confine.inside(node, ["ip", "-json", "link", "show", "master", "netctl0"])
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [link["ifname"] for link in json.loads(done.stdout)]

    def _by_hand(self, command: Sequence[str]) -> None:
        self._console.print(
            f"  [bold cyan]#[/] {escape(shlex.join(command))}", highlight=False, soft_wrap=True
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise UnexpectedError(f"{shlex.join(command)}: {done.stderr.strip()}")

    @contextlib.contextmanager
    def _halted(self, node: str) -> Iterator[None]:
        """Keep a node's agent and its privileged child from running for a while."""
        status = runner.status(self._directory)
        pids = [each.pid for each in status.processes if each.name.split()[0] == node and each.pid]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in reversed(pids):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _connect(self, addresses: Mapping[str, str]) -> None:
        self._title(f"Connect web to db, TCP port {OPEN_PORT}: exactly that passes")
        self._netctl("connect", "web", "db", "--port", f"{OPEN_PORT}/tcp")
        self._netctl("connections")
        db, web = addresses["db"], addresses["web"]
        self._probe(
            "web",
            {
                f"tcp:{db}:{OPEN_PORT}": (f"web -> db TCP {OPEN_PORT}", True),
                f"tcp:{db}:{OTHER_PORT}": (f"web -> db TCP {OTHER_PORT}", False),
                f"udp:{db}:{OPEN_PORT}": (f"web -> db UDP {OPEN_PORT}", False),
                f"icmp:{db}": ("web -> db ping", False),
            },
        )
        self._probe("db", {f"tcp:{web}:{OPEN_PORT}": (f"db -> web TCP {OPEN_PORT}", False)})
        self._probe("cache", {f"tcp:{db}:{OPEN_PORT}": (f"cache -> db TCP {OPEN_PORT}", False)})

    def _disconnect(self, addresses: Mapping[str, str]) -> None:
        self._title("Disconnect them while a TCP stream is running: it stops")
        db = addresses["db"]
        sender = subprocess.Popen(
            [
                confine.program_path("netctl"), "exec", "web", "--",
                sys.executable, PROBE, "stream", db, str(OPEN_PORT),
            ],
            env=self._environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            before = self._received()
            running = within(10.0, lambda: self._received() > before + 200_000)
            self._check("web -> db TCP stream", expected=True, actual=running)
            self._netctl("disconnect", "web", "db")
            # What was on its way when the command returned has arrived by the time this first count is taken.
            first = self._received()
            time.sleep(STILL_SECONDS)
            second = self._received()
            text = f"web -> db TCP stream, {first} bytes received, {STILL_SECONDS:.0f} s later {second}"
            self._check(text, expected=False, actual=second != first)
            self._probe("web", {f"tcp:{db}:{OPEN_PORT}": (f"web -> db TCP {OPEN_PORT}, anew", False)})
        finally:
            sender.terminate()
            sender.wait()
        self._netctl("connect", "web", "db", "--port", f"{OPEN_PORT}/tcp")
        self._probe("web", {f"tcp:{db}:{OPEN_PORT}": (f"web -> db TCP {OPEN_PORT}, connected again", True)})

    def _received(self) -> int:
        return int(self._inside("db", "received", str(COUNT_PORT)))

    def _measure(self) -> None:
        """Time requests from a client that is connected already: a command's own start would hide them."""
        with Client(identity.load(runner.identity_file(self._directory))) as client:

            def milliseconds(message: object) -> float:
                started = time.perf_counter()
                client.request(message)
                return (time.perf_counter() - started) * 1000

            workload = Workload("process", (sys.executable, PROBE, "serve"))
            self._took["attach (run, until its command runs)"] = (
                f"{milliseconds(RunContainer('timed', workload, 'n3')):.1f} ms"
            )
            ports = (Port("tcp", OPEN_PORT),)
            connects = []
            disconnects = []
            for _ in range(ROUNDS):
                connects.append(milliseconds(Connect("web", "timed", ports)))
                disconnects.append(milliseconds(Disconnect("web", "timed", ports)))
            self._took["connect, across nodes"] = f"{median(connects):.1f} ms (median of {ROUNDS})"
            self._took["disconnect, across nodes"] = f"{median(disconnects):.1f} ms (median of {ROUNDS})"
            client.request(RemoveContainer("timed", force=True))


def _pid_in(namespace: str) -> int:
    """Return a process of this host that is in a network namespace, named as /proc/PID/ns/net is."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if str((entry / "ns" / "net").readlink()) == namespace:
                    return int(entry.name)
    raise UnexpectedError("no process of the container is to be found")
