"""Firewalls in memory, with the meaning of the real backends and switches for every fault.

A fake's `tables` (and a host's `table`) stand for the kernel: hand them to a second fake to play a
process that was started again. `on_write` is called with (verb, key, ``"before"`` or ``"after"``) around
every write; what it raises stands for a crash at that point, before or after the kernel took the change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Literal

import attrs

from firewall_rules.backends.base import FirewallError, Variant
from firewall_rules.change import (
    ContainerChange,
    HostChange,
    change_container,
    change_host,
    live_container,
    live_host,
)
from firewall_rules.policy import (
    ContainerPolicy,
    HostPolicy,
    Opening,
    Pair,
    PortBinding,
    Publication,
    TunnelPolicy,
)

HOST_KEY = "host"
"""What stands for the key in the writes and hooks of a `FakeHostBackend`."""
OUR_RULE = "netctl"
"""What stands for our rule in the chains of a `FakePassages`."""

Hook = Callable[[str, str, Literal["before", "after"]], None]


def _no_hook(_verb: str, _key: str, _when: Literal["before", "after"]) -> None:
    """Stand for no hook."""


@attrs.define
class FakeTable:
    """One namespace's tables.

    Attributes:
        container: Layer 1's policy, in a container's namespace; None: no table of ours.
        host: Layer 2's policy, in a host's; None: no tables of ours.
        foreign: Someone changed what only we may change, so nobody can say what is in force.
        generation: Grows with every write of anyone.
        seen: The generation after our last write or read, which outlives a process.
    """

    container: ContainerPolicy | None = None
    host: HostPolicy | None = None
    foreign: bool = False
    generation: int = 0
    seen: int = 0


@attrs.define
class _Faults:
    """What both fakes have in common.

    Attributes:
        fail_next: Texts with which the next writes are refused, in order; an empty one lets a write pass.
        unusable_reason: What `unusable` returns.
        on_write: See the module.
        writes: Every write that the kernel took, as (verb, key).
        now: The clock that ends what has an `expires_at`.
    """

    fail_next: list[str] = attrs.field(factory=list)
    unusable_reason: str = ""
    on_write: Hook = _no_hook
    writes: list[tuple[str, str]] = attrs.field(factory=list)
    now: Callable[[], float] = time.time

    def unusable(self) -> str:
        """Return `unusable_reason`."""
        return self.unusable_reason

    def _write(self, verb: str, key: str, table: FakeTable, change: Callable[[], None]) -> None:
        self.on_write(verb, key, "before")
        if self.fail_next and (refusal := self.fail_next.pop(0)):
            raise FirewallError(refusal)
        before = table.generation
        change()
        table.generation += 1
        self.writes.append((verb, key))
        self.on_write(verb, key, "after")
        if table.seen == before:
            table.seen = table.generation


@attrs.define
class FakeContainerBackend(_Faults):
    """Layer 1 in memory. Implements `firewall_rules.backends.base.ContainerBackend`.

    Attributes:
        tables: By key; the namespace's descriptor is not looked at.
    """

    name: Literal["nftables", "iptables"] = "nftables"
    tables: MutableMapping[str, FakeTable] = attrs.field(factory=dict)

    def install(self, key: str, namespace: int, policy: ContainerPolicy) -> None:
        """Put `policy` in place, whole."""
        del namespace
        table = self.tables.setdefault(key, FakeTable())

        def change() -> None:
            table.container, table.foreign = policy, False

        self._write("install", key, table, change)

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
        """Change elements; refused where there is no table."""
        del namespace
        table = self.tables.setdefault(key, FakeTable())
        policy = table.container
        if policy is None:
            raise FirewallError("no table of ours to change")
        wanted = ContainerChange(
            tuple(inbound), tuple(inbound_removed), tuple(outbound), tuple(outbound_removed)
        )

        def change() -> None:
            table.container = change_container(policy, wanted)

        self._write("update", key, table, change)

    def read(self, key: str, namespace: int) -> ContainerPolicy | None:
        """Return what is in force, without what has ended."""
        del namespace
        table = self.tables.get(key, FakeTable())
        table.seen = table.generation
        if table.container is None or table.foreign:
            return None
        return live_container(table.container, self.now())

    def remove(self, key: str, namespace: int) -> None:
        """Take the table out."""
        del namespace
        table = self.tables.setdefault(key, FakeTable())
        if table.container is None:
            return

        def change() -> None:
            table.container, table.foreign = None, False

        self._write("remove", key, table, change)

    def drifted(self, key: str, namespace: int) -> bool:
        """Tell whether someone else has written since our last write or read."""
        del namespace
        table = self.tables.get(key, FakeTable())
        return table.seen != table.generation

    def forget(self, key: str) -> None:
        """The namespace is gone, and its table with it."""
        self.tables.pop(key, None)

    def flush(self, key: str) -> None:
        """Drift: someone takes our table out."""
        table = self.tables.setdefault(key, FakeTable())
        table.container = None
        table.generation += 1

    def tamper(self, key: str) -> None:
        """Drift: someone changes a rule of ours."""
        table = self.tables.setdefault(key, FakeTable())
        table.foreign = True
        table.generation += 1

    def meddle(self, key: str, change: ContainerChange = ContainerChange()) -> None:  # noqa: B008 - frozen
        """Drift: someone changes our elements or, with an empty change, only tables that are not ours."""
        table = self.tables.setdefault(key, FakeTable())
        if table.container is not None:
            table.container = change_container(table.container, change)
        table.generation += 1


@attrs.define
class FakeHostBackend(_Faults):
    """Layer 2 in memory. Implements `firewall_rules.backends.base.HostBackend`.

    Attributes:
        table: The host's tables.
    """

    table: FakeTable = attrs.field(factory=FakeTable)

    def install(self, policy: HostPolicy) -> None:
        """Put `policy` in place, whole."""

        def change() -> None:
            self.table.host, self.table.foreign = policy, False

        self._write("install", HOST_KEY, self.table, change)

    def update(
        self,
        *,
        bindings: Sequence[PortBinding] = (),
        bindings_removed: Sequence[PortBinding] = (),
        pairs: Sequence[Pair] = (),
        pairs_removed: Sequence[Pair] = (),
        tunnels: Sequence[TunnelPolicy] = (),
        tunnels_removed: Sequence[TunnelPolicy] = (),
        publications: Sequence[Publication] = (),
        publications_removed: Sequence[Publication] = (),
        internal: Sequence[str] = (),
        internal_removed: Sequence[str] = (),
    ) -> None:
        """Change elements; refused where there are no tables."""
        policy = self.table.host
        if policy is None:
            raise FirewallError("no tables of ours to change")
        wanted = HostChange(
            tuple(bindings),
            tuple(bindings_removed),
            tuple(pairs),
            tuple(pairs_removed),
            tuple(tunnels),
            tuple(tunnels_removed),
            tuple(publications),
            tuple(publications_removed),
            tuple(internal),
            tuple(internal_removed),
        )

        def change() -> None:
            self.table.host = change_host(policy, wanted)

        self._write("update", HOST_KEY, self.table, change)

    def read(self) -> HostPolicy | None:
        """Return what is in force, without what has ended."""
        self.table.seen = self.table.generation
        if self.table.host is None or self.table.foreign:
            return None
        return live_host(self.table.host, self.now())

    def remove(self) -> None:
        """Take the tables out."""
        if self.table.host is None:
            return

        def change() -> None:
            self.table.host, self.table.foreign = None, False

        self._write("remove", HOST_KEY, self.table, change)

    def drifted(self) -> bool:
        """Tell whether someone else has written since our last write or read."""
        return self.table.seen != self.table.generation

    def flush(self) -> None:
        """Drift: someone takes our tables out."""
        self.table.host = None
        self.table.generation += 1

    def tamper(self) -> None:
        """Drift: someone changes a rule of ours."""
        self.table.foreign = True
        self.table.generation += 1

    def meddle(self, change: HostChange = HostChange()) -> None:  # noqa: B008 - frozen
        """Drift: someone changes our elements or, with an empty change, only tables that are not ours."""
        if self.table.host is not None:
            self.table.host = change_host(self.table.host, change)
        self.table.generation += 1


@attrs.define
class FakePassages(_Faults):
    """Chains DOCKER-USER in memory. Implements `firewall_rules.backends.base.Passages`.

    Attributes:
        chains: The rules of each variant that has the chain, `OUR_RULE` among them; hand them to a second
            fake to play a process that was started again.
    """

    chains: MutableMapping[Variant, list[str]] = attrs.field(factory=dict)
    _table: FakeTable = attrs.field(factory=FakeTable)

    def read(self) -> Mapping[Variant, bool]:
        """Return whether our rule stands once and first."""
        return {
            variant: rules[:1] == [OUR_RULE] and rules.count(OUR_RULE) == 1
            for variant, rules in self.chains.items()
        }

    def open(self, variant: Variant) -> None:
        """Put the rule first, once."""
        if variant in self.chains:
            self._set(variant, "open", [OUR_RULE])

    def close(self, variant: Variant) -> None:
        """Take the rule out."""
        if OUR_RULE in self.chains.get(variant, ()):
            self._set(variant, "close", [])

    def flush(self, variant: Variant) -> None:
        """Drift: Docker makes its chain anew, as after its start or firewalld's."""
        self.chains[variant] = ["return"]

    def _set(self, variant: Variant, verb: str, first: list[str]) -> None:
        def change() -> None:
            self.chains[variant] = first + [rule for rule in self.chains[variant] if rule != OUR_RULE]

        self._write(verb, variant, self._table, change)
