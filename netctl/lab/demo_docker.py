"""The story that `scripts/demo --docker` tells: containers of Docker's users, of Compose and of the broker.

They run on two real engines, one for each node. Every step is checked.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from pathlib import Path

from rich.console import Console

from netctl.lab import confine, topology
from netctl.lab.image import IMAGE, archive, import_arguments
from netctl.lab.telling import Teller, UnexpectedError, within
from netctl.lab.topology import Wish

NETWORK = "demo"
PORT, OTHER_PORT = 5432, 5433
SERVER = ("httpd", "-f", "-p", str(PORT), "-h", "/etc")
FETCH = ("timeout", "1", "wget", "-q", "-O", "-")
"""Not `wget -T`: Debian 12's busybox, 1.35.0, ends with a segmentation fault at that option."""
PATIENCE = 10.0
"""Seconds that something may take which takes a moment."""


class DockerStory(Teller):
    """Tells it, on a console.

    Args:
        console: Where to tell it.
        directory: Of the lab it brings up.
        busybox: A static one, to make the image from.
        compose: A Compose file of three services, web, api and db; as the README's.
    """

    def __init__(self, console: Console, directory: Path, busybox: Path, compose: Path) -> None:
        super().__init__(console, directory)
        self._busybox = busybox
        self._compose = compose

    def tell(self) -> None:
        """Tell it all.

        Raises:
            UnexpectedError: A step did not come out as said.
        """
        self._start("A broker and two nodes on this machine, each with a Docker engine", Wish(2, docker=True))
        self._furnish()
        addresses = self._run()
        self._connect(addresses)
        self._compose_file()
        self._broker_made(addresses)
        self._adopt(addresses)
        self._clean_up()
        self._summary()

    # --- Docker --------------------------------------------------------------------------------

    def _docker_environment(self, node: str) -> dict[str, str]:
        files = topology.engine_files(Path(self._directory), node)
        return {**self._environment, "DOCKER_HOST": f"unix://{files.socket}"}

    def _docker(self, node: str, *arguments: str, quiet: bool = False) -> str:
        """Run `docker` on a node as its user would; return what it printed."""
        shown = f"{node}$ {shlex.join(['docker', *arguments])}"
        return self._command(shown, ["docker", *arguments], self._docker_environment(node), quiet=quiet)

    def _succeeds(self, node: str, *arguments: str) -> bool:
        """Return whether `docker` ends with 0; it is not shown."""
        done = subprocess.run(
            ["docker", *arguments], env=self._docker_environment(node), capture_output=True, check=False
        )
        return done.returncode == 0

    def _fetches(self, node: str, container: str, address: str, port: int = PORT) -> bool:
        """Return whether a container gets an answer from the web server of another one."""
        url = f"http://{address}:{port}/passwd"
        return self._succeeds(node, "exec", container, *FETCH, url)

    def _pings(self, node: str, container: str, address: str) -> bool:
        return self._succeeds(node, "exec", container, "ping", "-c", "1", "-W", "1", address)

    def _furnish(self) -> None:
        self._title("Docker as its users know it: on each node a network of ours, and an image")
        self._console.print("  n1$ docker ... stands for: netctl lab docker n1 -- ...", style="dim")
        image = archive(self._busybox)
        for node in ("n1", "n2"):
            command, environment = ["docker", *import_arguments()], self._docker_environment(node)
            done = subprocess.run(command, env=environment, input=image, capture_output=True, check=False)
            if done.returncode != 0:
                raise UnexpectedError(f"the image could not be made: {done.stderr.decode().strip()}")
            version = self._docker(node, "version", "--format", "{{.Server.Version}}", quiet=True).strip()
            self._console.print(f"  [green]ok[/]  {node}: Docker {version}, image {IMAGE}", highlight=False)
            self._docker(node, "network", "create", "-d", "netctl", "--ipam-driver", "netctl", NETWORK)

    def _run(self) -> dict[str, str]:
        self._title("Two containers on two hosts, run by Docker: by default nothing passes")
        started = time.monotonic()
        for name, node in (("web", "n1"), ("db", "n2")):
            self._docker(node, "run", "-d", "--name", name, "--network", NETWORK, IMAGE, *SERVER)
        self._took["docker run, two containers one after the other"] = f"{time.monotonic() - started:.2f} s"
        self._netctl("ps")
        addresses = {
            row["name"]: row["address"] for row in json.loads(self._netctl("ps", "--json", quiet=True))
        }
        if set(addresses) != {"web", "db"}:
            raise UnexpectedError(f"recorded are {sorted(addresses)}")
        # A server that is not listening yet would look like one that is blocked.
        for name, node in (("web", "n1"), ("db", "n2")):
            if not within(PATIENCE, lambda name=name, node=node: self._fetches(node, name, "127.0.0.1")):  # type: ignore[misc]  # mypy takes no defaults in a lambda
                raise UnexpectedError(f"the server in {name} does not listen")
        self._check(
            f"web -> db TCP {PORT}", expected=False, actual=self._fetches("n1", "web", addresses["db"])
        )
        self._check("web -> db ping", expected=False, actual=self._pings("n1", "web", addresses["db"]))
        self._check(
            f"db -> web TCP {PORT}", expected=False, actual=self._fetches("n2", "db", addresses["web"])
        )
        return addresses

    def _connect(self, addresses: dict[str, str]) -> None:
        self._title(
            f"Connect web to db, TCP port {PORT}: exactly that passes, also after a restart by Docker"
        )
        self._netctl("connect", "web", "db", "--port", f"{PORT}/tcp")
        db, web = addresses["db"], addresses["web"]
        self._check(f"web -> db TCP {PORT}", expected=True, actual=self._fetches("n1", "web", db))
        self._check("web -> db ping", expected=False, actual=self._pings("n1", "web", db))
        self._check(f"db -> web TCP {PORT}", expected=False, actual=self._fetches("n2", "db", web))
        self._docker("n1", "restart", "-t", "0", "web")
        self._check(f"web -> db TCP {PORT}", expected=True, actual=self._fetches("n1", "web", db))
        self._netctl("disconnect", "web", "db")
        self._check(f"web -> db TCP {PORT}", expected=False, actual=self._fetches("n1", "web", db))

    # --- Compose -------------------------------------------------------------------------------

    def _compose_file(self) -> None:
        self._title("A Compose file whose labels say: web may open api:8000, and api may open db:5432")
        compose = ("compose", "--file", str(self._compose), "--project-name", "shop")
        if not self._succeeds("n1", "compose", "version"):
            self._console.print(
                "  there is no Docker Compose on this machine: this part is left out", style="dim"
            )
            return
        self._docker("n1", *compose, "up", "--detach")
        published = f"http://{topology.plan(topology.LabSpec(self._directory)).hosts['n1'].address}:8080"
        asked = ["timeout", "3", "wget", "-q", "-O", "-", f"{published}/cgi-bin/shop"]

        def shop() -> str:
            """Ask the shop from the other host, by its published port."""
            namespace = topology.namespace_prefix(self._directory) + "n2"
            command = confine.inside(namespace, [str(self._busybox), *asked])
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout

        answering = within(PATIENCE, lambda: "web got" in shop())
        self._check("n2 -> web, by its published port 8080", expected=True, actual=answering)
        self._check(
            "web -> api, the node being bound to no account", expected=False, actual="api got" in shop()
        )
        self._netctl("node", "bind", "n1", "admin")
        whole = within(PATIENCE, lambda: "teapots" in shop())
        self._check("web -> api -> db, the node being bound to an account", expected=True, actual=whole)
        for line in shop().splitlines():
            self._console.print(f"  {line}", style="dim", highlight=False)
        db = self._address("shop-db-1")
        reached = self._succeeds("n1", "exec", "shop-web-1", *FETCH, f"http://{db}:5432/stock")
        self._check("web -> db, which no label asks for", expected=False, actual=reached)
        self._netctl("connections")
        self._docker("n1", *compose, "down", "--timeout", "0")
        self._netctl("node", "bind", "n1", "--none")
        gone = within(PATIENCE, lambda: json.loads(self._netctl("connections", "--json", quiet=True)) == [])
        if not gone:
            raise UnexpectedError("the connections of the Compose file did not go with its containers")

    def _address(self, name: str) -> str:
        return str(json.loads(self._netctl("inspect", name, "--json", quiet=True))["address"])

    # --- the broker's own ----------------------------------------------------------------------

    def _broker_made(self, addresses: dict[str, str]) -> None:
        self._title("A container that the broker makes: its defaults are hard, and loosened only by name")
        self._netctl("run", "cache", "--image", IMAGE, "--node", "n2", "--", *SERVER)
        kept = ("ps", "--quiet", "--filter", "label=netctl.id")
        identifier = self._docker("n2", *kept, quiet=True).strip()
        wanted = "{{.HostConfig.CapDrop}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.SecurityOpt}}"
        if not self._docker("n2", "inspect", "--format", wanted, identifier).startswith("[ALL] true"):
            raise UnexpectedError("the container may do more than it should")
        refused = subprocess.run(
            [confine.program_path("netctl"), "run", "evil", "--image", IMAGE, "--privileged", "--", *SERVER],
            env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        self._console.print("[bold cyan]$[/] netctl run evil --image busybox:latest --privileged -- ...")
        self._console.print(f"  [green]ok[/]  {refused.stderr.strip()}", highlight=False, soft_wrap=True)
        if refused.returncode == 0:
            raise UnexpectedError("a privileged container was let in without a reason")
        cache = self._address("cache")
        listening = within(PATIENCE, lambda: self._listens("cache"))
        if not listening:
            raise UnexpectedError("the server in cache does not listen")
        self._check(f"web -> cache TCP {PORT}", expected=False, actual=self._fetches("n1", "web", cache))
        self._netctl("connect", "web", "cache", "--port", f"{PORT}/tcp")
        self._check(f"web -> cache TCP {PORT}", expected=True, actual=self._fetches("n1", "web", cache))
        missing = self._fetches("n2", "db", addresses["web"])
        self._check(f"db -> web TCP {PORT}", expected=False, actual=missing)
        self._netctl("rm", "--force", "cache")

    def _listens(self, name: str) -> bool:
        probe = ["exec", name, "--", *FETCH, f"http://127.0.0.1:{PORT}/passwd"]
        done = subprocess.run(
            [confine.program_path("netctl"), *probe], env=self._environment, capture_output=True, check=False
        )
        return done.returncode == 0

    def _adopt(self, addresses: dict[str, str]) -> None:
        self._title("A container that runs already, without a network, joins")
        self._docker("n1", "run", "-d", "--name", "old", "--network", "none", IMAGE, *SERVER)
        self._netctl("adopt", "old", "--node", "n1")
        self._check(
            f"old -> db TCP {PORT}", expected=False, actual=self._fetches("n1", "old", addresses["db"])
        )
        self._netctl("connect", "old", "db", "--port", f"{PORT}/tcp")
        self._check(
            f"old -> db TCP {PORT}", expected=True, actual=self._fetches("n1", "old", addresses["db"])
        )
        self._netctl("ps")

    def _clean_up(self) -> None:
        self._title("What Docker removes is off the record")
        self._docker("n1", "rm", "--force", "web", "old")
        self._docker("n2", "rm", "--force", "db")
        for node in ("n1", "n2"):
            self._docker(node, "network", "rm", NETWORK)
        if not within(PATIENCE, lambda: json.loads(self._netctl("ps", "--json", quiet=True)) == []):
            raise UnexpectedError("containers are recorded that Docker has removed")
        self._console.print("  [green]ok[/]  no container is recorded any more")


def compose_folder(unpacked: Path) -> None:
    """Have `docker` find a Compose that is only unpacked, unless it knows one already."""
    if not unpacked.is_dir() or "DOCKER_CONFIG" in os.environ:
        return
    known = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if known.returncode != 0:
        os.environ["DOCKER_CONFIG"] = str(unpacked)
