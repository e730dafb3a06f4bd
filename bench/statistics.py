"""Samples of one thing, and how they are told."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import attrs


@attrs.frozen
class Row:
    """One line of the report.

    Attributes:
        what: What was measured.
        beside: The floor it is a ratio to.
        unit: Of the samples.
        samples: Of the thing itself, in the order they were taken.
        floor: Of the floor, interleaved with `samples`.
        aim: What was hoped for, as text.
        met: Whether it was.
        note: Counts and circumstances.
    """

    what: str
    beside: str
    unit: str
    samples: Sequence[float]
    floor: Sequence[float]
    aim: str
    met: bool
    note: str = ""


def median(samples: Sequence[float]) -> float:
    """Return the middle sample."""
    return statistics.median(samples)


def p99(samples: Sequence[float]) -> float:
    """Return the sample that 99 of 100 do not exceed."""
    return sorted(samples)[min(len(samples) - 1, int(len(samples) * 0.99))]


def ratio(row: Row) -> float:
    """Return the ratio of the medians."""
    return median(row.samples) / median(row.floor)


def markdown(rows: Sequence[Row], machine: str) -> str:
    """Return the report's table."""
    lines = [
        machine,
        "",
        "| what | median | p99 | floor (median) | ratio | aim | met |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        floor = f"{median(row.floor):.2f} {row.unit}: {row.beside}" if row.floor else row.beside
        times = f"{ratio(row):.2f}" if row.floor else ""
        lines.append(
            f"| {row.what}{f' ({row.note})' if row.note else ''} | {median(row.samples):.2f} {row.unit} "
            f"| {p99(row.samples):.2f} | {floor} | {times} | {row.aim} | {'yes' if row.met else '**no**'} |"
        )
    return "\n".join(lines) + "\n"
