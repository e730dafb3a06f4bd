"""From its first instruction on, a container reaches exactly whom it is connected to."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from netctl.client import Client
from netctl.lab.image import IMAGE
from netctl.lab.runner import identity_file
from netctl.model import Workload
from netctl.wire import identity
from netctl.wire.messages import RemoveContainer, RunContainer
from tests.support import first_words
from tests.support.docker_lab import DockerLab
from tests.support.netns import Namespace, wait_for

pytestmark = [pytest.mark.root, pytest.mark.docker]

TARGETS = 20
SCRIPT = str(Path(first_words.__file__).resolve())
TOOLS = ("--volume", "/usr:/usr:ro", "--volume", f"{SCRIPT}:/first.py:ro")
"""What a container needs to run the host's Python."""
PYTHON = "/usr/bin/python3"


class Ears:
    """Takes in what arrives on the links of containers, before any firewall of theirs."""

    def __init__(self, namespaces: list[Namespace]) -> None:
        self._sockets = []
        for namespace in namespaces:
            sock = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
            sock.bind(("eth0", 0x0003))
            sock.setblocking(False)
            self._sockets.append(sock)
        self._end = threading.Event()
        self.heard: list[bytes] = []
        self._thread = threading.Thread(target=self._listen)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        for sock in self._sockets:
            sock.close()

    def _listen(self) -> None:
        while not self._end.is_set():
            for sock in select.select(self._sockets, [], [], 0.1)[0]:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        frame, sender = sock.recvfrom(2048)
                        if sender[2] != socket.PACKET_OUTGOING:
                            self.heard.append(frame)


@pytest.fixture(scope="module")
def targets(docker_lab: DockerLab) -> Iterator[dict[str, Namespace]]:
    """Yield the namespaces, by address, of containers on both nodes that nobody is connected to."""
    names = [f"target{number}" for number in range(TARGETS)]
    with Client(identity.load(identity_file(docker_lab.directory))) as client:
        for number, name in enumerate(names):
            node = docker_lab.nodes[number % len(docker_lab.nodes)]
            client.request(RunContainer(name, Workload("process", ("sleep", "1000000")), node))
        rows = docker_lab.containers()
        yield {str(rows[name]["address"]): docker_lab.namespace(name) for name in names}
        for name in names:
            client.request(RemoveContainer(name, force=True))


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(20, marks=pytest.mark.timeout(300)),
        pytest.param(200, marks=[pytest.mark.full, pytest.mark.timeout(1200)]),
    ],
)
def test_not_one_packet_arrives(docker_lab: DockerLab, targets: dict[str, Namespace], count: int) -> None:
    lab = docker_lab
    ping = "".join(f"ping -c1 -W1 {address} & nc -w1 {address} 7777 & " for address in [*targets][:4])
    # Shell and busybox speak within a millisecond, and part of what Python says they cannot.
    command = ("sh", "-c", f"{ping} exec {PYTHON} -ISE /first.py {' '.join(targets)} 2>&1")
    lab.docker(
        "n1", "create", "--name", "talker", "--network", "demo",
        "--sysctl", "net.ipv6.conf.all.disable_ipv6=0", "--sysctl", "net.ipv6.conf.default.disable_ipv6=0",
        *TOOLS, IMAGE, *command,
    )  # fmt: skip
    try:
        with Ears([*targets.values()]) as ears:
            for _ in range(count):
                lab.docker("n1", "start", "--attach", "talker", status=None)
                assert lab.inspect("n1", "talker")["State"]["ExitCode"] == 0, lab.docker(
                    "n1", "logs", "talker"
                )
            assert ears.heard == []
            # The control: the same container, once it is connected, is heard.
            friend = next(name for name, each in lab.containers().items() if each["address"] in targets)
            lab.netctl("connect", "talker", friend)
            lab.docker("n1", "start", "--attach", "talker", status=None)
            wait_for(lambda: any(first_words.MARK in frame for frame in ears.heard), 5, "the friend's ear")
    finally:
        lab.docker("n1", "rm", "--force", "talker", status=None)


@pytest.mark.timeout(300)
def test_the_first_allowed_connect_succeeds_at_the_first_try(docker_lab: DockerLab) -> None:
    lab = docker_lab
    lab.netctl("node", "bind", "n1", "admin")
    db = lab.start("n1", "db", command=("sh", "-c", "while :; do nc -l -p 5432 </dev/null; done"))
    try:
        for number in range(10):
            # A connect is one SYN and its repetitions; nc gives up after two seconds.
            lab.docker(
                "n1", "run", "--rm", "--name", f"first{number}", "--network", "demo",
                "--label", "netctl.connect=db:5432/tcp", IMAGE, "nc", "-w", "2", db.address, "5432",
            )  # fmt: skip
        # The control: without the label nothing comes through.
        alone = lab.docker(
            "n1", "run", "--rm", "--name", "alone", "--network", "demo", IMAGE,
            "nc", "-w", "2", db.address, "5432", status=None,
        )  # fmt: skip
        assert alone.status != 0
    finally:
        lab.docker("n1", "rm", "--force", "db", status=None)
        lab.netctl("node", "bind", "n1", "--none")
