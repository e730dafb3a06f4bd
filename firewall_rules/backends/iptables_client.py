"""The iptables backend for layer 1, for hosts whose kernel has no nftables: legacy tables with ipset.

Same meaning as nftables, with three limits: a change of several elements is not one transaction (each
element is), lifetimes are whole seconds, and ICMP errors are held to connected peers by deleting what is
tracked of the others. Legacy tables have no generation, so `drifted` lists and compares.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from firewall_rules.backends.base import FirewallError
from firewall_rules.backends.iptables_rules import IptablesTables, set_name, translate
from firewall_rules.backends.iptables_wire import (
    LENGTH,
    MESSAGE_LIMIT,
    Answer,
    Change,
    Element,
    Install,
    List,
    Listed,
    Remove,
    receive,
)
from firewall_rules.backends.namespaces import Stamp, in_scratch_namespace
from firewall_rules.backends.nftables_listing import Listing, policy_in_force
from firewall_rules.backends.nftables_text import install_text
from firewall_rules.backends.records import Records
from firewall_rules.book import Book, Planned
from firewall_rules.change import ContainerChange
from firewall_rules.compile_container import compile_container
from firewall_rules.elements import SetId
from firewall_rules.policy import ContainerPolicy, Opening
from firewall_rules.ruleset import Elements, Ruleset

_NO_STAMP = Stamp(0, 0)
_PEERS = frozenset({"in_peers", "out_peers"})
_ANSWER_TIMEOUT = 60.0
_SAMPLE = ContainerPolicy(address="192.0.2.2", gateway="192.0.2.1", resolver="192.0.2.1")


class IptablesContainerBackend:
    """Layer 1 by iptables. Implements `firewall_rules.backends.base.ContainerBackend`.

    Args:
        records: Directory, gone after a reboot, for what was last written; None: a restarted process
            replaces every table once.
    """

    name: Literal["nftables", "iptables"] = "iptables"

    def __init__(self, records: Path | None = None) -> None:
        directory = None if records is None else records / "iptables"
        # What is recorded is compared with the kernel every time, so its form needs no name.
        self._records = Records(directory, ContainerPolicy, ContainerChange, form="")
        self._worker = Worker()
        self._books: dict[str, Book[ContainerPolicy]] = {}
        self._references: dict[str, str] = {}

    def unusable(self) -> str:
        """Return why iptables cannot be used here, empty if it can."""
        try:
            self._reference(compile_container(_SAMPLE))
        except FirewallError as error:
            return str(error)
        return ""

    def install(self, key: str, namespace: int, policy: ContainerPolicy) -> None:
        """Put `policy` in place, whole; each table and each set in one step, the rules last."""
        try:
            ruleset = compile_container(policy)
            # The one check of every value is that of nftables' text.
            install_text(ruleset, 0.0)
        except ValueError as error:
            raise FirewallError(str(error)) from error
        before = self._book(key)
        gone = frozenset() if before is None else _peers(before.frame, before) - _peers(policy)
        self._worker.ask(namespace, _install(ruleset, gone))
        self._books[key] = Book(policy)
        self._records.write(key, _NO_STAMP, policy)

    def update(
        self,
        key: str,
        namespace: int,
        *,
        inbound: Sequence[Opening] = (),
        inbound_removed: Sequence[Opening] = (),
        outbound: Sequence[Opening] = (),
        outbound_removed: Sequence[Opening] = (),
    ) -> None:
        """Change elements; where the kernel refuses one, what was before is put in place again, whole."""
        book = self._book(key)
        if book is None:
            raise FirewallError("there is no table of ours to change, or it is not known")
        change = ContainerChange(
            tuple(inbound), tuple(inbound_removed), tuple(outbound), tuple(outbound_removed)
        )
        planned = book.plan(change)
        if not planned.sets:
            book.commit(planned)
            return
        now = time.time()
        install_text(compile_container(_changed_only(book.frame, change)), now)
        try:
            self._worker.ask(namespace, self._change(book, planned, now))
        except FirewallError:
            with contextlib.suppress(FirewallError):
                self._worker.ask(namespace, _install(compile_container(book.policy(now)), frozenset()))
            raise
        book.commit(planned)
        if not self._records.append(key, _NO_STAMP, change):
            self._records.write(key, _NO_STAMP, book.policy(now))

    def read(self, key: str, namespace: int) -> ContainerPolicy | None:
        """Return the policy that is in force; None: nothing of ours, or not as we made it. Lists."""
        book = self._book(key)
        if book is None:
            return None
        ruleset = compile_container(book.frame)
        listing = self._listing(namespace, ruleset)
        if listing is None or listing.static != self._reference(ruleset):
            return None
        policy = policy_in_force(listing, book, time.time())
        if policy is not None and policy != book.policy(time.time()):
            self._books[key] = Book(policy)
            self._records.write(key, _NO_STAMP, policy)
        return policy

    def remove(self, key: str, namespace: int) -> None:
        """Take our chains and sets out."""
        self._worker.ask(namespace, Remove())
        self._books.pop(key, None)
        self._records.drop(key)

    def drifted(self, key: str, namespace: int) -> bool:
        """Tell whether what is there differs from what we wrote or read last."""
        book = self._book(key)
        if book is None:
            answer = self._worker.ask(namespace, List(()))
            return answer is not None and any(rules for _ipv6, name, rules in answer.rules if "-" in name)
        ruleset = compile_container(book.frame)
        listing = self._listing(namespace, ruleset)
        if listing is None or listing.static != self._reference(ruleset):
            return True
        now = time.time()
        return policy_in_force(listing, book, now) != book.policy(now)

    def forget(self, key: str) -> None:
        """The namespace is gone."""
        self._books.pop(key, None)
        self._records.drop(key)

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def _book(self, key: str) -> Book[ContainerPolicy] | None:
        if key not in self._books:
            recorded = self._records.load(key)
            if recorded is None:
                return None
            book: Book[ContainerPolicy] = Book(recorded.policy)
            for change in recorded.changes:
                book.commit(book.plan(change))
            self._books[key] = book
        return self._books[key]

    def _change(self, book: Book[ContainerPolicy], planned: Planned, now: float) -> Change:
        kinds = {one.name: one for one in translate(compile_container(book.frame)).sets}
        sets = []
        gone: set[str] = set()
        for one in planned.sets:
            family, name = one.set_id
            del family
            sets.append((kinds[set_name(name)], sorted(one.removed), _with_time_left(one.added, now)))
            if name in _PEERS:
                gone |= {peer for (peer,) in one.removed}
        return Change(tuple(sets), frozenset(gone - _peers_of(planned)))

    def _listing(self, namespace: int, ruleset: Ruleset) -> Listing | None:
        tables = translate(ruleset)
        answer = self._worker.ask(namespace, List(tables.sets))
        return None if answer is None else _listing(answer, ruleset, tables, time.time())

    def _reference(self, ruleset: Ruleset) -> str:
        text = install_text(ruleset, 0.0)
        if text not in self._references:
            self._references[text] = in_scratch_namespace(lambda: self._listed_anew(ruleset))
        return self._references[text]

    def _listed_anew(self, ruleset: Ruleset) -> str:
        namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._worker.ask(namespace, _install(ruleset, frozenset()))
            listing = self._listing(namespace, ruleset)
        finally:
            os.close(namespace)
        if listing is None:
            raise FirewallError("iptables does not show what it was given")
        return listing.static


class Worker:
    """The worker process as its parent sees it; started with the first request, and again when it died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def ask(self, namespace: int, request: Install | Change | List | Remove) -> Listed | None:
        """Have `request` done in `namespace`.

        Raises:
            FirewallError: It was refused, or the worker does not work.
        """
        body = msgspec.msgpack.encode((type(request).__name__, request))
        try:
            sock = self._connected()
            socket.send_fds(sock, [LENGTH.pack(len(body))], [namespace])
            sock.sendall(body)
            (length,) = LENGTH.unpack(receive(sock, LENGTH.size))
            if length > MESSAGE_LIMIT:
                raise FirewallError("the iptables worker answers nonsense")
            answer = msgspec.msgpack.decode(receive(sock, length), type=Answer)
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            self.close()
            raise FirewallError(f"the iptables worker does not answer: {error!r}") from error
        if answer.error:
            raise FirewallError(answer.error)
        return answer.listed

    def close(self) -> None:
        """End the process."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            try:
                self._process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _connected(self) -> socket.socket:
        if self._socket is None:
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "firewall_rules.backends.iptables_worker"],
                    stdin=theirs.fileno(),
                )
            ours.settimeout(_ANSWER_TIMEOUT)
            self._socket = ours
        return self._socket


def _install(ruleset: Ruleset, forgotten: frozenset[str]) -> Install:
    now = time.time()
    elements = {
        set_name(one.name): _with_time_left(one.elements, now) for table in ruleset for one in table.sets
    }
    return Install(translate(ruleset), elements, forgotten)


def _with_time_left(elements: Elements, now: float) -> list[Element]:
    return [(key, None if ends is None else ends - now) for key, ends in sorted(elements.items())]


def _listing(answer: Listed, ruleset: Ruleset, tables: IptablesTables, now: float) -> Listing | None:
    (table,) = ruleset
    static: list[object] = [answer.rules]
    elements: dict[SetId, Elements] = {}
    for one, named in zip(table.sets, tables.sets, strict=True):
        found = answer.elements.get(named.name)
        if found is None:
            return None
        if one.fixed:
            static.append([named.name, sorted(key for key, _left in found)])
        else:
            elements[table.family, one.name] = {
                key: None if left is None else now + left for key, left in found
            }
    return Listing(json.dumps(static, sort_keys=True), elements)


def _peers(policy: ContainerPolicy, book: Book[ContainerPolicy] | None = None) -> frozenset[str]:
    whole = policy if book is None else book.policy(0.0)
    return frozenset(opening.peer for opening in (*whole.inbound, *whole.outbound))


def _peers_of(planned: Planned) -> frozenset[str]:
    return frozenset(
        item.peer for group in planned.groups.values() for item in group.values() if isinstance(item, Opening)
    )


def _changed_only(frame: ContainerPolicy, change: ContainerChange) -> ContainerPolicy:
    return ContainerPolicy(
        address=frame.address,
        gateway=frame.gateway,
        inbound=frozenset(_all(change.inbound, change.inbound_removed)),
        outbound=frozenset(_all(change.outbound, change.outbound_removed)),
    )


def _all(*some: Iterable[Opening]) -> list[Opening]:
    return [opening for openings in some for opening in openings]
