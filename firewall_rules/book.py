"""A policy that changes piece by piece, at a cost that does not grow with the whole; no I/O."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Generic, TypeVar

import attrs

from firewall_rules.change import ContainerChange, HostChange
from firewall_rules.elements import Item, Part, SetId, elements_of, group_of, item_key
from firewall_rules.policy import ContainerPolicy, HostPolicy, Opening, Pair
from firewall_rules.ruleset import ElementKey, Elements

P = TypeVar("P", ContainerPolicy, HostPolicy)

_HOST_PARTS: tuple[Part, ...] = ("bindings", "pairs", "tunnels", "publications", "internal")
_PARTS: Mapping[type, tuple[Part, ...]] = {
    ContainerPolicy: ("inbound", "outbound"),
    ContainerChange: ("inbound", "outbound"),
    HostPolicy: _HOST_PARTS,
    HostChange: _HOST_PARTS,
}

_Group = dict[tuple[Part, Hashable], Item]


@attrs.frozen
class SetChange:
    """What becomes of one set.

    Attributes:
        removed: Elements that must be gone.
        added: Elements that must be there, whatever stood there before.
        fresh: Those of both that are not there, as far as the book knows.
    """

    set_id: SetId
    removed: frozenset[ElementKey]
    added: Elements
    fresh: frozenset[ElementKey]


@attrs.frozen
class Planned:
    """A change worked out and not yet made.

    Attributes:
        sets: What the kernel must do.
        groups: What the book will hold.
    """

    sets: tuple[SetChange, ...]
    groups: Mapping[Hashable, _Group]


def with_items(policy: P, items: Iterable[tuple[Part, Item]]) -> P:
    """Return `policy` with `items` in place of all that elements stand for."""
    parts: dict[str, list[Item]] = {part: [] for part in _PARTS[type(policy)]}
    for part, item in items:
        parts[part].append(item)
    fields: dict[str, Any] = {part: frozenset(some) for part, some in parts.items()}
    return attrs.evolve(policy, **fields)


class Book(Generic[P]):
    """The items of one policy, by group."""

    def __init__(self, policy: P) -> None:
        parts = _PARTS[type(policy)]
        self.frame: P = with_items(policy, ())
        self._groups: dict[Hashable, _Group] = {}
        for part in parts:
            for item in getattr(policy, part):
                group = self._groups.setdefault(group_of(part, item), {})
                group[part, item_key(item)] = item

    def plan(self, change: ContainerChange | HostChange) -> Planned:
        """Work `change` out; the book stays as it is."""
        groups: dict[Hashable, _Group] = {}
        for part in _PARTS[type(change)]:
            for item in getattr(change, f"{part}_removed"):
                self._copied(groups, part, item).pop((part, item_key(item)), None)
            for item in getattr(change, part):
                self._copied(groups, part, item)[part, item_key(item)] = item
        return Planned(tuple(self._set_changes(change, groups)), groups)

    def commit(self, planned: Planned) -> None:
        """Make a change that was worked out."""
        for name, group in planned.groups.items():
            if group:
                self._groups[name] = group
            else:
                self._groups.pop(name, None)

    def policy(self, now: float) -> P:
        """Return the policy, without what has ended at `now`."""
        return with_items(self.frame, self.items(now))

    def items(self, now: float) -> Iterable[tuple[Part, Item]]:
        """Yield every item that has not ended at `now`, with its part."""
        for group in self._groups.values():
            for (part, _key), item in group.items():
                if not isinstance(item, Opening | Pair) or item.expires_at is None or item.expires_at > now:
                    yield part, item

    def find(self, part: Part, item: Item) -> Item | None:
        """Return what the book holds under the name of `item`."""
        return self._groups.get(group_of(part, item), {}).get((part, item_key(item)))

    def _copied(self, groups: dict[Hashable, _Group], part: Part, item: Item) -> _Group:
        name = group_of(part, item)
        if name not in groups:
            groups[name] = dict(self._groups.get(name, {}))
        return groups[name]

    def _set_changes(
        self, change: ContainerChange | HostChange, groups: Mapping[Hashable, _Group]
    ) -> Iterable[SetChange]:
        before = elements_of(_tagged(self._groups.get(name, {}) for name in groups))
        after = elements_of(_tagged(groups.values()))
        # What is named as removed goes out of the kernel even if the book does not know it.
        named_removed: dict[SetId, Elements] = elements_of(
            (part, item) for part in _PARTS[type(change)] for item in getattr(change, f"{part}_removed")
        )
        named_added = elements_of(
            (part, item) for part in _PARTS[type(change)] for item in getattr(change, part)
        )
        set_id: SetId
        for set_id in {**before, **after, **named_removed}:
            old: Elements = before.get(set_id, {})
            new: Elements = after.get(set_id, {})
            removed = frozenset({*old, *named_removed.get(set_id, {})} - new.keys())
            added = {
                key: ends
                for key, ends in new.items()
                if key not in old or old[key] != ends or key in named_added.get(set_id, {})
            }
            if removed or added:
                yield SetChange(set_id, removed, added, frozenset((removed | added.keys()) - old.keys()))


def _tagged(groups: Iterable[_Group]) -> Iterable[tuple[Part, Item]]:
    return ((part, item) for group in groups for (part, _key), item in group.items())
