"""Two or more nodes' `Probing` over paths that a test shapes, in a time of its own."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable

import attrs

from netctl.model import OVERHEAD, Encapsulation, PathState
from nodeagent.kernel_state import ProbeTarget
from nodeagent.probe_packets import decode
from nodeagent.probing import Packet, Probing

OUTER = 1500


@attrs.define
class Path:
    """How the way between two nodes is, the same in both directions.

    Attributes:
        mtu: Bytes of the largest inner packet that passes.
        delay: Seconds, one way.
        loss: Part of the packets, one way.
        open: Whether anything passes.
    """

    mtu: int = 9000
    delay: float = 0.0005
    loss: float = 0.0
    open: bool = True


def target(
    us: int,
    peer: int,
    encapsulation: Encapsulation = "gre",
    *,
    chosen: bool = True,
    outer: int = OUTER,
    also: tuple[str, ...] = (),
) -> ProbeTarget:
    """Return what node `us` probes to reach node `peer`."""
    ethernet = encapsulation in ("vxlan", "direct")
    return ProbeTarget(
        peer=f"n{peer}",
        encapsulation=encapsulation,
        device=f"{encapsulation}{peer}",
        source=f"10.{us}.0.1",
        destination=f"10.{peer}.0.1",
        mac=f"6e:63:0a:{peer:02x}:00:01" if ethernet else "",
        mtu=outer - OVERHEAD[encapsulation],
        chosen=chosen,
        also=also,
    )


class ProbedNet:
    """Nodes 1 to 255, and paths between them by encapsulation; all are there, and perfect, until changed."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 1000.0
        self.nodes: dict[int, Probing] = {}
        self.paths: dict[tuple[int, int, str], Path] = {}
        self.told: list[tuple[float, int, PathState]] = []
        self.sent: list[tuple[float, int, Packet]] = []
        self.silent: set[int] = set()
        self._found: dict[tuple[int, str, str], PathState] = {}
        self._random = random.Random(seed)
        self._flying: list[tuple[float, int, int, str, str, bytes]] = []
        self._count = itertools.count()

    def aim(self, us: int, *targets: ProbeTarget) -> None:
        node = self.nodes.setdefault(us, Probing(lambda: next(self._count).to_bytes(8)))
        node.aim(targets, self.now)

    def path(self, one: int, other: int, encapsulation: str = "gre") -> Path:
        low, high = sorted((one, other))
        return self.paths.setdefault((low, high, encapsulation), Path())

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Let time pass until something holds, `seconds` at most; return how long it took."""
        began, end = self.now, self.now + seconds
        self._turns(set(self.nodes))
        while not until():
            times = [node.deadline for number, node in self.nodes.items() if number not in self.silent]
            due = [time for time in times if time is not None]
            if self._flying:
                due.append(self._flying[0][0])
            following = max(self.now, min(due, default=end))
            if following >= end:
                self.now = end
                break
            self.now = following
            self._turns(self._arrivals())
        return self.now - began

    def found(self, us: int, peer: int, encapsulation: str = "gre") -> PathState | None:
        """Return what node `us` said last of a way."""
        return self._found.get((us, f"n{peer}", encapsulation))

    def busiest_second(self, us: int, kind: str = "request") -> int:
        """Return the most probes that a node sent within any second."""
        times = [
            at
            for at, node, packet in self.sent
            if node == us and (probe := decode(packet.data)) is not None and probe.kind == kind
        ]
        most, first = 0, 0
        for last, at in enumerate(times):
            while times[first] <= at - 1.0:
                first += 1
            most = max(most, last - first + 1)
        return most

    def _arrivals(self) -> set[int]:
        reached = set()
        while self._flying and self._flying[0][0] <= self.now:
            _, _, number, device, mac, data = heapq.heappop(self._flying)
            if number in self.nodes and number not in self.silent:
                answer = self.nodes[number].receive(device, mac, data, self.now)
                reached.add(number)
                if answer is not None:
                    self._send(number, answer)
        return reached

    def _turns(self, reached: set[int]) -> None:
        for number, node in self.nodes.items():
            due = node.deadline
            idle = number not in reached and (due is None or due > self.now)
            if idle or number in self.silent:
                continue
            for packet in node.turn(self.now):
                self._send(number, packet)
            for path in node.changes(self.now):
                self.told.append((self.now, number, path))
                self._found[number, path.peer, path.encapsulation] = path

    def _send(self, us: int, packet: Packet) -> None:
        self.sent.append((self.now, us, packet))
        encapsulation = packet.device.rstrip("0123456789")
        peer = int(packet.device.removeprefix(encapsulation))
        path = self.path(us, peer, encapsulation)
        if not path.open or len(packet.data) > path.mtu or self._random.random() < path.loss:
            return
        mac = f"6e:63:0a:{us:02x}:00:01" if packet.mac else ""
        arrival = (self.now + path.delay, next(self._count), peer, f"{encapsulation}{us}", mac, packet.data)
        heapq.heappush(self._flying, arrival)
