"""What each encapsulation costs: whole nodes with our firewalls, the same by hand without, the bare underlay.

All in one process, so that it can be measured on the lab kernel too:
`scripts/kernel-lab run -m 2G -- .venv/bin/python -m bench --only tunnels`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import attrs

from bench.by_hand import Path, by_hand
from bench.statistics import Row, ratio
from bench.traffic import BULK, MEBIBYTE, PORT, bulk, round_trip
from netctl.model import Encapsulation, Permit, Port
from tests.support.lab_kernel import has
from tests.support.whole_nodes import overlay

WAYS: tuple[Encapsulation, ...] = ("gre", "vxlan", "wireguard", "direct")
AIM = 0.97
"""Of the throughput by hand, and so of the round trips in a second."""
NO_AIM = frozenset({"direct"})
MTU = 1500
TRIPS = 2000
SAMPLE_SECONDS = 1.0
"""What a sample of the throughput should take, within the bounds of a MiB and `BULK`."""

Place = Literal["ours", "by hand", "underlay"]
BESIDE: Mapping[Place, str] = {
    "by hand": "the same by hand, no firewall",
    "underlay": "the bare underlay",
}


@contextmanager
def _places(way: Encapsulation) -> Iterator[Mapping[Place, Path]]:
    with overlay([way], nodes=2, containers=1, underlay_mtu=MTU) as net, by_hand(way, MTU) as hand:
        (one, web), (other, database) = net.containers.items()
        net.want(*(Permit(one, other, Port(protocol, PORT)) for protocol in ("tcp", "udp")))
        yield {
            "ours": Path(web, database, other),
            "by hand": hand.containers,
            "underlay": hand.underlay,
        }


def _size(path: Path) -> int:
    """Return how many bytes take about `SAMPLE_SECONDS`."""
    rate = bulk(path, 8 * MEBIBYTE) * 1e9 / 8
    return min(max(round(rate * SAMPLE_SECONDS / MEBIBYTE), 1) * MEBIBYTE, BULK)


def _rows(
    way: Encapsulation, what: str, unit: str, samples: Mapping[Place, list[float]], note: str
) -> Iterator[Row]:
    faster_is_more = unit == "Gbit/s"
    for place, beside in BESIDE.items():
        row = Row(f"{way}: {what}", beside, unit, samples["ours"], samples[place], "none set", True, note)
        if place == "by hand" and way not in NO_AIM:
            aim = f"at least {AIM}" if faster_is_more else f"at most {1 / AIM:.2f}"
            met = ratio(row) >= AIM if faster_is_more else ratio(row) <= 1 / AIM
            row = attrs.evolve(row, aim=aim, met=met)
        yield row


def _measured(way: Encapsulation, rounds: int) -> Iterator[Row]:
    with _places(way) as places:
        size = _size(places["by hand"])
        measures: Mapping[str, Callable[[Path], float]] = {
            "Gbit/s": lambda path: bulk(path, size),
            "µs": lambda path: round_trip(path, TRIPS),
        }
        samples: dict[str, dict[Place, list[float]]] = {
            unit: {place: [] for place in places} for unit in measures
        }
        orders = itertools.cycle(itertools.permutations(places))
        for _, order in zip(range(rounds), orders, strict=False):
            for unit, place in itertools.product(measures, order):
                samples[unit][place].append(measures[unit](places[place]))
    note = f"{rounds} rounds"
    yield from _rows(
        way, "bulk TCP, one stream", "Gbit/s", samples["Gbit/s"], f"{note} of {size // MEBIBYTE} MiB"
    )
    yield from _rows(way, "round trip of a 64-byte datagram", "µs", samples["µs"], f"{note} of {TRIPS}")


def measure(rounds: int) -> list[Row]:
    """Measure every encapsulation that this kernel has, the three ways to take in turn.

    Args:
        rounds: How often.
    """
    able = [way for way in WAYS if way == "direct" or has(way)]
    return [row for way in able for row in _measured(way, rounds)]
