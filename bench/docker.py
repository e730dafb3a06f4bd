"""Docker's containers: what our network costs a start, beside Docker's own and what others attach with."""

from __future__ import annotations

import functools
import http.client
import json
import random
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.attach import Node, containers
from bench.lab import Lab, lab
from bench.peers import peers
from bench.record import Recorder
from bench.statistics import Row, median
from netctl.lab.image import IMAGE, archive, import_arguments

PEERS_RATIO = 5.0
_NETWORK = "bench"
_BRIDGE = "other"
_ATTACH = "attach"
_WARM = 2
"""Rounds that are not counted."""


class Api:
    """Docker's HTTP interface over its UNIX socket, one connection for each call, as its own clients do.

    Args:
        path: Of the socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return what Docker answers.

        Raises:
            RuntimeError: It refuses.
        """
        connection = http.client.HTTPConnection("docker")
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.connect(str(self._path))
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, f"/v1.41{path}", text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status >= http.client.BAD_REQUEST:
            raise RuntimeError(f"{method} {path}: {content.decode()}")
        return json.loads(content) if content.startswith((b"{", b"[")) else None

    def create(self, network: str) -> str:
        """Make a container that sleeps."""
        settings = {"Image": IMAGE, "HostConfig": {"NetworkMode": network}}
        identifier: str = self.call("POST", "/containers/create", settings)["Id"]
        return identifier

    def start(self, identifier: str) -> None:
        """Start a container."""
        self.call("POST", f"/containers/{identifier}/start")

    def remove(self, identifier: str) -> None:
        """Kill and remove a container."""
        self.call("DELETE", f"/containers/{identifier}?force=1")

    def timed_start(self, network: str) -> float:
        """Start a new container on a network, and remove it; return the milliseconds of the start."""
        identifier = self.create(network)
        began = time.perf_counter()
        self.start(identifier)
        taken = _milliseconds(began)
        self.remove(identifier)
        return taken

    def timed_connect(self, network: str, container: str) -> float:
        """Connect a container that runs, and disconnect it; return the milliseconds of the first."""
        began = time.perf_counter()
        self.call("POST", f"/networks/{network}/connect", {"Container": container})
        taken = _milliseconds(began)
        self.call("POST", f"/networks/{network}/disconnect", {"Container": container})
        return taken


def _milliseconds(began: float) -> float:
    return (time.perf_counter() - began) * 1000


def measure(rounds: int, scratch: Path, busybox: Path) -> list[Row]:
    """Start containers on each kind of network in turn, and attach by each peer in between.

    Args:
        rounds: Of each.
        scratch: An empty folder.
        busybox: A static one, to make the image from.
    """
    image = scratch / "image.tar"
    image.write_bytes(archive(busybox))
    with lab(scratch / "lab", "--nodes", "1", "--docker") as up:
        return _measure(up, rounds, scratch, image)


def _measure(up: Lab, rounds: int, scratch: Path, image: Path) -> list[Row]:
    docker = ("lab", "docker", "n1", "--")
    up.netctl(*docker, *import_arguments(), stdin=image.read_bytes())
    up.netctl(*docker, "network", "create", "-d", "netctl", "--ipam-driver", "netctl", _NETWORK)
    up.netctl(*docker, "network", "create", _BRIDGE)
    api = Api(up.directory / "n1" / "docker" / "docker.sock")
    kept = api.create("bridge")
    api.start(kept)
    for folder in ("records", "broker"):
        (scratch / folder).mkdir()
    node, recorder, names = Node(scratch / "records"), Recorder(scratch / "broker"), containers()

    def attach() -> float:
        container, address = next(names)
        return recorder.record(container) + node.attach(container, address)

    ways: dict[str, Callable[[], float]] = {_ATTACH: attach}
    for network in ("none", "bridge", _BRIDGE, _NETWORK):
        ways[f"start {network}"] = functools.partial(api.timed_start, network)
    for network in (_BRIDGE, _NETWORK):
        ways[f"connect {network}"] = functools.partial(api.timed_connect, network, kept)
    with peers(scratch) as (programs, podman):
        podman.prepare(image)
        for network in ("none", "bench"):
            ways[f"podman {network}"] = functools.partial(podman.start, network)
        attaches = {peer.name: peer.once for peer in programs}
        ways |= attaches
        taken = _in_turn(ways, rounds)
    api.remove(kept)
    node.close()
    recorder.close()
    return _rows(taken, tuple(attaches))


def _in_turn(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Do everything once in each round, and return what each took; in another order every time.

    Whatever a container leaves for the kernel to clear away slows down what comes next.
    """
    order, chance = list(ways), random.Random(0)  # noqa: S311 - no secret, and the same in every run
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + _WARM):
        chance.shuffle(order)
        for name in order:
            milliseconds = ways[name]()
            if number >= _WARM:
                taken[name].append(milliseconds)
    return taken


def _rows(taken: Mapping[str, list[float]], attaches: tuple[str, ...]) -> list[Row]:
    return [
        _beside_peers(taken, attaches),
        _start_beside(taken, _BRIDGE, "on a bridge network of Docker's that a user made"),
        _start_beside(taken, "bridge", "on Docker's default bridge, which has no DNS"),
        Row(
            "`docker network connect` (API) to netctl",
            "to a Docker bridge",
            "ms", taken[f"connect {_NETWORK}"], taken[f"connect {_BRIDGE}"], "",
            median(taken[f"connect {_NETWORK}"]) < median(taken[f"connect {_BRIDGE}"]),
        ),
        Row("podman run, what netavark adds", "without a network", "ms", _added(taken, "podman", "bench"),
            (), "", met=True),
        *(Row(f"attach by {name}", "", "ms", taken[name], (), "", met=True) for name in attaches),
    ]  # fmt: skip


def _beside_peers(taken: Mapping[str, list[float]], attaches: tuple[str, ...]) -> Row:
    fastest = min(attaches, key=lambda name: median(taken[name]))
    ours, beside = taken[_ATTACH], taken[fastest]
    return Row(
        "attach as the agent has it done, address and record included",
        fastest,
        "ms", ours, beside, f"at most 1/{PEERS_RATIO:g} of the fastest other",
        median(ours) <= median(beside) / PEERS_RATIO,
        f"{len(ours)} rounds; without the messages between broker, agent and helper",
    )  # fmt: skip


def _start_beside(taken: Mapping[str, list[float]], network: str, told: str) -> Row:
    ours, beside = _added(taken, "start", _NETWORK), _added(taken, "start", network)
    return Row(
        "what `docker start` takes longer on netctl than without a network",
        told,
        "ms", ours, beside, "less than Docker's bridge", median(ours) < median(beside),
        f"{len(ours)} rounds; without a network {median(taken['start none']):.0f} ms",
    )  # fmt: skip


def _added(taken: Mapping[str, list[float]], what: str, network: str) -> list[float]:
    without = median(taken[f"{what} none"])
    return [one - without for one in taken[f"{what} {network}"]]
