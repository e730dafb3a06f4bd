"""Docker's containers: what our network costs a start, beside Docker's own and what others attach with."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.attach import Node, containers
from bench.lab import Lab, lab
from bench.peers import Podman, peers
from bench.record import Recorder
from bench.statistics import Row, median
from netctl.lab.image import IMAGE, archive, import_arguments

PEERS_RATIO = 5.0
_NETWORK = "bench"
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
    up.netctl(*docker, "network", "create", "other")
    api = Api(up.directory / "n1" / "docker" / "docker.sock")
    starts: dict[str, list[float]] = {network: [] for network in ("none", "bridge", _NETWORK)}
    connects: dict[str, list[float]] = {network: [] for network in ("other", _NETWORK)}
    podman_starts: dict[str, list[float]] = {network: [] for network in ("none", "bench")}
    kept = api.create("bridge")
    api.start(kept)
    podman = Podman(scratch / "podman")
    for folder in ("records", "broker"):
        (scratch / folder).mkdir()
    node, recorder, names = Node(scratch / "records"), Recorder(scratch / "broker"), containers()
    ours: list[float] = []
    with peers(scratch) as programs:
        attaches: dict[str, list[float]] = {peer.name: [] for peer in programs}
        podman.prepare(image)
        for number in range(rounds + _WARM):
            for network, taken in starts.items():
                identifier = api.create(network)
                began = time.perf_counter()
                api.start(identifier)
                taken.append(_milliseconds(began))
                api.remove(identifier)
            for network, taken in connects.items():
                began = time.perf_counter()
                api.call("POST", f"/networks/{network}/connect", {"Container": kept})
                taken.append(_milliseconds(began))
                api.call("POST", f"/networks/{network}/disconnect", {"Container": kept})
            container, address = next(names)
            ours.append(recorder.record(container) + node.attach(container, address))
            for peer in programs:
                attaches[peer.name].append(peer.once(number))
            for network, taken in podman_starts.items():
                taken.append(podman.start(network))
    api.remove(kept)
    node.close()
    recorder.close()
    return [_beside_peers(ours[_WARM:], attaches), *_rows(starts, connects, attaches, podman_starts)]


def _beside_peers(ours: list[float], attaches: Mapping[str, list[float]]) -> Row:
    name, fastest = min(attaches.items(), key=lambda item: median(item[1][_WARM:]))
    beside = fastest[_WARM:]
    return Row(
        "attach as the agent has it done, address and record included",
        name,
        "ms", ours, beside, f"at most 1/{PEERS_RATIO:g} of the fastest other",
        median(ours) <= median(beside) / PEERS_RATIO,
        f"{len(ours)} rounds; without the messages between broker, agent and helper",
    )  # fmt: skip


def _added(with_network: list[float], without: list[float]) -> list[float]:
    return [one - median(without) for one in with_network]


def _rows(
    starts: Mapping[str, list[float]],
    connects: Mapping[str, list[float]],
    attaches: Mapping[str, list[float]],
    podman_starts: Mapping[str, list[float]],
) -> list[Row]:
    counted = {name: taken[_WARM:] for name, taken in {**starts, **attaches}.items()}
    ours = _added(counted[_NETWORK], counted["none"])
    bridge = _added(counted["bridge"], counted["none"])
    connected, connected_beside = connects[_NETWORK][_WARM:], connects["other"][_WARM:]
    podman = _added(podman_starts["bench"][_WARM:], podman_starts["none"][_WARM:])
    rows = [
        Row(
            "what `docker start` takes longer on netctl than without a network",
            "on Docker's bridge",
            "ms", ours, bridge, "less than Docker's bridge", median(ours) < median(bridge),
            f"{len(ours)} rounds; without a network {median(counted['none']):.0f} ms",
        ),
        Row(
            "`docker network connect` (API) to netctl",
            "to a Docker bridge",
            "ms", connected, connected_beside, "", median(connected) < median(connected_beside),
        ),
        Row("podman run, what netavark adds", "without a network", "ms", podman, (), "", met=True),
    ]  # fmt: skip
    rows += [Row(f"attach by {name}", "", "ms", counted[name], (), "", met=True) for name in attaches]
    return rows
