"""Our nftables tables in one namespace: written, changed, read back and watched.

A stamp (namespace and generation) says whether anyone has written since we did, so that as a rule nothing
is listed. Where someone has, the tables are listed and compared: everything but elements with the same
ruleset freshly made in a throwaway namespace, so that no knowledge of nft's output is needed here, and
the elements with what the policy they stand for would have.
"""

from __future__ import annotations

import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Generic

import attrs

from firewall_rules.backends.base import FirewallError
from firewall_rules.backends.libnftables import CONTEXTS_KEPT, Nft, list_tables, open_nft
from firewall_rules.backends.namespaces import (
    Stamp,
    generation_socket,
    in_scratch_namespace,
    inside,
    stamp,
)
from firewall_rules.backends.nftables_listing import (
    Listing,
    UnreadableError,
    parse_listing,
    policy_in_force,
)
from firewall_rules.backends.nftables_text import change_text, install_text, remove_text
from firewall_rules.backends.records import Records
from firewall_rules.book import Book, P, SetChange
from firewall_rules.change import ContainerChange, HostChange
from firewall_rules.elements import SetId
from firewall_rules.ruleset import Ruleset, Set

_REFERENCES_KEPT = 64
_LISTING_ATTEMPTS = 5


class Doors:
    """Ways into namespaces, the most recently used ones kept open."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Door] = OrderedDict()

    def nft(self, key: str, namespace: int | None) -> Callable[[str], str]:
        """Return what runs nft's commands in `namespace`."""
        door = self._door(key, namespace)
        if not door.nft.follows_thread:
            return door.nft.run

        def run(commands: str) -> str:
            with inside(namespace):
                return door.nft.run(commands)

        return run

    def stamp(self, key: str, namespace: int | None) -> Stamp:
        """Return the present stamp of `namespace`; opens nothing that stays open."""
        door = self._known(key, namespace)
        if door is not None:
            return stamp(door.asked)
        with inside(namespace):
            asked = generation_socket()
        with asked:
            return stamp(asked)

    def close(self, key: str) -> None:
        """Let go of a namespace."""
        door = self._open.pop(key, None)
        if door is not None:
            door.close()

    def _known(self, key: str, namespace: int | None) -> _Door | None:
        door = self._open.get(key)
        if door is not None and door.namespace != _identity(namespace):
            self.close(key)
            return None
        return door

    def _door(self, key: str, namespace: int | None) -> _Door:
        door = self._known(key, namespace)
        if door is None:
            with inside(namespace):
                asked = generation_socket()
                try:
                    door = _Door(_identity(namespace), open_nft(), asked)
                except FirewallError:
                    asked.close()
                    raise
            self._open[key] = door
            if len(self._open) > CONTEXTS_KEPT:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(key)
        return door


@attrs.frozen
class _Door:
    namespace: tuple[int, int] | None
    nft: Nft
    asked: Any

    def close(self) -> None:
        self.nft.close()
        self.asked.close()


def _identity(namespace: int | None) -> tuple[int, int] | None:
    if namespace is None:
        return None
    found = os.fstat(namespace)
    return found.st_dev, found.st_ino


class TableKeeper(Generic[P]):
    """Our tables in one namespace.

    Args:
        key: Names the namespace in caches and records.
        doors: Shared by all keepers of a backend.
        records: The same.
        compiler: What makes a ruleset of a policy.
        references: Static parts by ruleset without elements, shared by all keepers of a backend.
    """

    def __init__(
        self,
        key: str,
        doors: Doors,
        records: Records,
        compiler: Callable[[P], Ruleset],
        references: References,
    ) -> None:
        self._key = key
        self._doors = doors
        self._records = records
        self._compile: Callable[[P], Ruleset] = compiler
        self._references = references
        self._book: Book[P] | None = None
        # What is known to be in force there is in force exactly while the kernel shows this stamp.
        self._in_force: Stamp | None = None
        # The stamp of our last write or read, whatever was found; there was one once we have `_looked`.
        self._seen: Stamp | None = None
        self._looked = False
        self._recall()

    def install(self, namespace: int | None, policy: P) -> None:
        """Replace our tables, whole."""
        try:
            ruleset = self._compile(policy)
        except ValueError as error:
            raise FirewallError(str(error)) from error
        before, after = self._write(namespace, install_text(ruleset, time.time()))
        self._book = Book(policy)
        # A whole install leaves no doubt about our tables, whoever wrote before it.
        self._wrote(before, after)
        if self._in_force is not None:
            self._records.write(self._key, self._in_force, policy)

    def update(self, namespace: int | None, change: ContainerChange | HostChange) -> None:
        """Change elements, in one transaction."""
        book = self._book
        if book is None:
            raise FirewallError("there is no table of ours to change, or it is not known")
        planned = book.plan(change)
        now = time.time()
        before = self._doors.stamp(self._key, namespace)
        sure = self._in_force == before
        commands = "".join(self._change_text(one, now, sure=sure) for one in planned.sets)
        if not commands:
            book.commit(planned)
            return
        _, after = self._write(namespace, commands, before)
        book.commit(planned)
        if not sure:
            # Someone wrote before us: the change stands, but what it stands in must be listed.
            self._in_force = None
            return
        self._wrote(before, after)
        if self._in_force is not None and not self._records.append(self._key, self._in_force, change):
            self._records.write(self._key, self._in_force, book.policy(now))

    def read(self, namespace: int | None) -> P | None:
        """Return the policy in force."""
        self._looked = True
        present = self._doors.stamp(self._key, namespace)
        if self._book is None:
            self._seen = present
            return None
        if present == self._in_force:
            self._seen = present
            return self._book.policy(time.time())
        return self._read_listing(namespace)

    def known(self) -> P | None:
        """Return what was in force when we last wrote or read, None where that is not known."""
        return None if self._book is None else self._book.policy(time.time())

    def remove(self, namespace: int | None) -> None:
        """Take our tables out."""
        self._looked = True
        before = self._doors.stamp(self._key, namespace)
        run = self._doors.nft(self._key, namespace)
        if self._references.any_listed(run("list tables\n")):
            run(remove_text(self._references.smallest))
        self._book = self._in_force = None
        self._records.drop(self._key)
        after = self._doors.stamp(self._key, namespace)
        self._seen = after if after in {before, before.following()} else None

    def drifted(self, namespace: int | None) -> bool:
        """Tell whether anyone else has changed what is ours since our last write or read; see `read`.

        Others, as Docker, write tables of their own all the time; then ours are listed, and nothing more.
        """
        if not self._looked or self._doors.stamp(self._key, namespace) == self._seen:
            return False
        known = self.known()
        return self.read(namespace) != known

    def _change_text(self, change: SetChange, now: float, *, sure: bool) -> str:
        family, _name = change.set_id
        one = self._references.sets[change.set_id]
        # Where a map leads elsewhere than is known, nothing can be put in; then all is refused.
        absent = change.fresh if sure or one.leads_to else frozenset()
        return change_text(family, one, change.removed, change.added, now, absent=absent)

    def _recall(self) -> None:
        recorded = self._records.load(self._key)
        if recorded is None:
            return
        book: Book[P] = Book(recorded.policy)
        for change in recorded.changes:
            book.commit(book.plan(change))
        self._book = book
        if recorded.stamp.cookie:
            self._in_force = self._seen = recorded.stamp
            self._looked = True

    def _write(
        self, namespace: int | None, commands: str, before: Stamp | None = None
    ) -> tuple[Stamp, Stamp]:
        """Do `commands`; return the stamps from before, which may be known, and after.

        Raises:
            FirewallError: They were refused, or did nothing, which must not pass for done.
        """
        run = self._doors.nft(self._key, namespace)
        before = before or self._doors.stamp(self._key, namespace)
        run(commands)
        after = self._doors.stamp(self._key, namespace)
        if after == before:
            raise FirewallError("nft reported success, and the kernel shows no change")
        return before, after

    def _wrote(self, before: Stamp, after: Stamp) -> None:
        self._looked = True
        # One transaction of ours adds exactly one; more is someone else's between the two looks.
        self._in_force = self._seen = after if after == before.following() else None

    def _read_listing(self, namespace: int | None) -> P | None:
        assert self._book is not None  # noqa: S101 - for the type checker: `read` has looked
        ruleset = self._compile(self._book.frame)
        tables = tuple((table.family, table.name) for table in ruleset)
        for _attempt in range(_LISTING_ATTEMPTS):
            before = self._doors.stamp(self._key, namespace)
            outputs = list_tables(self._doors.nft(self._key, namespace), tables)
            if self._doors.stamp(self._key, namespace) == before:
                break
        else:
            return None
        self._seen = before
        now = time.time()
        try:
            listing = None if outputs is None else parse_listing(outputs, ruleset, now)
        except UnreadableError:
            listing = None
        if listing is None or listing.static != self._references.static(ruleset):
            return None
        policy = policy_in_force(listing, self._book, now)
        if policy is not None:
            self._book, self._in_force = Book(policy), before
            self._records.write(self._key, before, policy)
        return policy


class References:
    """What nft lists of rulesets that were just made, remembered by ruleset.

    Args:
        smallest: Any ruleset of the kind: it names the tables and the sets.

    Attributes:
        sets: As they are declared.
    """

    def __init__(self, smallest: Ruleset) -> None:
        self.smallest = smallest
        self.sets: Mapping[SetId, Set] = {
            (table.family, one.name): one for table in smallest for one in table.sets
        }
        self._static: OrderedDict[str, str] = OrderedDict()

    def any_listed(self, output: str) -> bool:
        """Tell whether one of our tables is in what ``list tables`` printed."""
        listed = {
            (entry["table"]["family"], entry["table"]["name"])
            for entry in json.loads(output)["nftables"]
            if "table" in entry
        }
        return any((table.family, table.name) in listed for table in self.smallest)

    def static(self, ruleset: Ruleset) -> str:
        """Return the static part of a listing of `ruleset` when it is as it was made."""
        text = install_text(ruleset, 0.0)
        if text not in self._static:
            self._static[text] = in_scratch_namespace(lambda: _listed_anew(ruleset, text).static)
            if len(self._static) > _REFERENCES_KEPT:
                self._static.popitem(last=False)
        return self._static[text]


def _listed_anew(ruleset: Ruleset, text: str) -> Listing:
    nft = open_nft()
    try:
        nft.run(text)
        outputs = list_tables(nft.run, tuple((table.family, table.name) for table in ruleset))
    finally:
        nft.close()
    return parse_listing(outputs or [], ruleset, 0.0)
