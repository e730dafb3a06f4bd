"""Persistent maps that count how often they are looked at: what work costs, without a clock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
from immutables import Map

from netctl.broker.snapshot import Snapshot


@attrs.define
class Count:
    """How many entries were read, written or iterated over."""

    entries: int = 0


class CountingMap:
    """Stands in for an `immutables.Map`; maps inside it, and maps made from it, count as well."""

    def __init__(self, inner: Map[Any, Any], count: Count) -> None:
        self._inner = inner
        self._count = count

    def _counted(self, value: Any) -> Any:
        return CountingMap(value, self._count) if isinstance(value, Map) else value

    def __getitem__(self, key: Any) -> Any:
        self._count.entries += 1
        return self._counted(self._inner[key])

    def get(self, key: Any, default: Any = None) -> Any:
        self._count.entries += 1
        return self._counted(self._inner.get(key, default))

    def __contains__(self, key: object) -> bool:
        self._count.entries += 1
        return key in self._inner

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[Any]:
        return self.keys()

    def keys(self) -> Iterator[Any]:
        for key in self._inner:
            self._count.entries += 1
            yield key

    def values(self) -> Iterator[Any]:
        return (value for _, value in self.items())

    def items(self) -> Iterator[tuple[Any, Any]]:
        for key, value in self._inner.items():
            self._count.entries += 1
            yield key, self._counted(value)

    def set(self, key: Any, value: Any) -> CountingMap:
        self._count.entries += 1
        bare = value._inner if isinstance(value, CountingMap) else value
        return CountingMap(self._inner.set(key, bare), self._count)

    def delete(self, key: Any) -> CountingMap:
        self._count.entries += 1
        return CountingMap(self._inner.delete(key), self._count)

    def update(self, other: Any) -> CountingMap:
        self._count.entries += len(other)
        return CountingMap(self._inner.update(other), self._count)


def counting(snapshot: Snapshot) -> tuple[Snapshot, Count]:
    """Return the same snapshot with counting maps, and their count."""
    count = Count()
    fields = {f.name: getattr(snapshot, f.name) for f in attrs.fields(Snapshot)}
    maps = {name: CountingMap(value, count) for name, value in fields.items() if isinstance(value, Map)}
    return attrs.evolve(snapshot, **maps), count
