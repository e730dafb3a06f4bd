"""What others take to attach one container: CNI's plugins, netavark alone, podman.

All of them run as programs, as their users run them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from bench.floor import enter
from nodeagent.kernel.channel import new_namespace

_CNI = Path("/usr/lib/cni")
_NETAVARK = Path("/usr/lib/podman/netavark")
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_PODMAN_SETTINGS = """\
[containers]
default_ulimits=["nofile=20000:20000","nproc=10000:10000"]
[engine]
runtime="runc"
"""
"""Debian's crun does not run beside version 1 control groups; the default limits may be too high."""


class MissingError(Exception):
    """A peer is not installed here; the text names its package."""


@attrs.frozen
class Peer:
    """One way to attach a container.

    Attributes:
        name: As the report calls it.
        once: Attaches once, takes it back, and returns the milliseconds of the first.
    """

    name: str
    once: Callable[[], float]


def _run(arguments: list[str], environment: Mapping[str, str], text: str = "") -> str:
    done = subprocess.run(arguments, input=text, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stdout}{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Be in a network namespace for a while: they write their bridges and rules wherever they are called."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    enter(namespace)
    try:
        yield
    finally:
        enter(home)
        os.close(home)


@contextlib.contextmanager
def peers(scratch: Path) -> Iterator[tuple[tuple[Peer, ...], Podman]]:
    """Yield those that only need a namespace to put a container into, and podman, on a node of their own.

    Args:
        scratch: An empty folder for what they keep.

    Raises:
        MissingError: One is not installed.
    """
    node, kept = new_namespace(), new_namespace()
    try:
        yield (_cni(scratch, node), _netavark(scratch, node, kept)), Podman(scratch / "podman", node)
    finally:
        for descriptor in (node, kept):
            os.close(descriptor)


def _path(namespace: int) -> str:
    return f"/proc/{os.getpid()}/fd/{namespace}"


def _timed(node: int, attach: Callable[[int], Any], detach: Callable[[int], Any]) -> Callable[[], float]:
    def once() -> float:
        namespace = new_namespace()
        try:
            with inside(node):
                began = time.perf_counter()
                attach(namespace)
                taken = (time.perf_counter() - began) * 1000
                detach(namespace)
        finally:
            os.close(namespace)
        return taken

    return once


def _cni(scratch: Path, node: int) -> Peer:
    """The chain `bridge` (with `host-local`) and `firewall`, as a runtime calls it (CNI 1.0)."""
    if not (_CNI / "bridge").exists():
        raise MissingError("containernetworking-plugins")
    bridge = {
        "cniVersion": "1.0.0",
        "name": "bench",
        "type": "bridge",
        "bridge": "cnib0",
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(scratch / "cni"),
            "ranges": [[{"subnet": "10.91.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    firewall = {"cniVersion": "1.0.0", "name": "bench", "type": "firewall", "backend": "iptables"}
    results: dict[int, Any] = {}

    def call(plugin: str, command: str, settings: Mapping[str, Any], namespace: int) -> str:
        environment = {
            "PATH": _PATH,
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": f"bench{namespace}",
            "CNI_NETNS": _path(namespace),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(_CNI),
        }
        return _run([str(_CNI / plugin)], environment, json.dumps(settings))

    def attach(namespace: int) -> None:
        results[namespace] = json.loads(call("bridge", "ADD", bridge, namespace))
        call("firewall", "ADD", {**firewall, "prevResult": results[namespace]}, namespace)

    def detach(namespace: int) -> None:
        previous = {"prevResult": results.pop(namespace)}
        call("firewall", "DEL", {**firewall, **previous}, namespace)
        call("bridge", "DEL", {**bridge, **previous}, namespace)

    return Peer("CNI bridge + host-local + firewall", _timed(node, attach, detach))


def _netavark(scratch: Path, node: int, kept: int) -> Peer:
    """Bare netavark. One endpoint is kept attached: with the last one it takes its bridge and chains out."""
    if not _NETAVARK.exists():
        raise MissingError("netavark")
    settings = scratch / "netavark"
    settings.mkdir()

    def call(command: str, namespace: int, address: str) -> None:
        request = {
            "container_id": f"{namespace:064x}",
            "container_name": f"bench{namespace}",
            "networks": {"nv": {"static_ips": [address], "interface_name": "eth0"}},
            "network_info": {
                "nv": {
                    "name": "nv",
                    "id": f"{7:064x}",
                    "driver": "bridge",
                    "network_interface": "nvb0",
                    "subnets": [{"subnet": "10.92.0.0/16", "gateway": "10.92.0.1"}],
                    "ipv6_enabled": False,
                    "internal": False,
                    "dns_enabled": False,
                    "ipam_options": {"driver": "host-local"},
                }
            },
        }
        arguments = [str(_NETAVARK), "--config", str(settings), command, _path(namespace)]
        _run(arguments, {"PATH": _PATH}, json.dumps(request))

    with inside(node):
        call("setup", kept, "10.92.0.99")
    return Peer(
        "netavark, one endpoint kept",
        _timed(
            node,
            lambda namespace: call("setup", namespace, "10.92.0.2"),
            lambda namespace: call("teardown", namespace, "10.92.0.2"),
        ),
    )


@attrs.frozen
class Podman:
    """podman with all it keeps below one folder.

    Attributes:
        directory: The folder.
        node: A descriptor of the network namespace that it is to take for the host's.
    """

    directory: Path
    node: int

    def prepare(self, image: Path) -> None:
        """Load an image, a tar archive of a root file system, and make a network.

        Raises:
            MissingError: podman is not installed.
        """
        if shutil.which("podman") is None:
            raise MissingError("podman")
        self.directory.mkdir()
        (self.directory / "containers.conf").write_text(_PODMAN_SETTINGS)
        self._podman("import", str(image), "bench:1")
        self._podman("network", "create", "bench")

    def start(self, network: str) -> float:
        """Run a container and remove it; return the milliseconds of the first."""
        began = time.perf_counter()
        self._podman(
            "run", "-d", "--name", "bench", "--network", network, "localhost/bench:1", "sleep", "1000"
        )
        taken = (time.perf_counter() - began) * 1000
        self._podman("rm", "-f", "-t", "0", "bench")
        return taken

    def _podman(self, *arguments: str) -> str:
        places = {"--root": "root", "--runroot": "run", "--tmpdir": "tmp", "--network-config-dir": "nets"}
        options = [part for option, name in places.items() for part in (option, str(self.directory / name))]
        options += [
            "--cgroup-manager",
            "cgroupfs",
            "--events-backend",
            "file",
            "--network-backend",
            "netavark",
        ]
        environment = {**os.environ, "CONTAINERS_CONF": str(self.directory / "containers.conf")}
        with inside(self.node):
            return _run(["podman", *options, *arguments], environment)
