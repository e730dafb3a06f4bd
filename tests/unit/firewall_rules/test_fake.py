from __future__ import annotations

import attrs
import pytest

from firewall_rules.backends.base import FirewallError
from firewall_rules.backends.fake import (
    OUR_RULE,
    FakeContainerBackend,
    FakeHostBackend,
    FakePassages,
    FakeTable,
)
from firewall_rules.change import ContainerChange, HostChange
from firewall_rules.policy import ContainerPolicy, HostPolicy, Opening, Pair, Publication

POLICY = ContainerPolicy(address="10.1.0.2", gateway="10.1.0.1")
HOST = HostPolicy(bridge="netctl0", address="10.1.0.1", block="10.1.0.0/16", supernet="10.0.0.0/8")
TCP = Opening("10.2.0.2", "tcp", 80)
PAIR = Pair("10.1.0.2", "10.2.0.2")


class CrashError(Exception):
    """A process that ended in the middle."""


def crash_when(wanted: str) -> object:
    def hook(_verb: str, _key: str, when: str) -> None:
        if when == wanted:
            raise CrashError

    return hook


@pytest.mark.parametrize(("when", "stands"), [("before", False), ("after", True)])
def test_a_crash_leaves_what_the_kernel_took(when: str, *, stands: bool) -> None:
    tables: dict[str, FakeTable] = {}
    backend = FakeContainerBackend(tables=tables, on_write=crash_when(when))  # type: ignore[arg-type]
    with pytest.raises(CrashError):
        backend.install("k", -1, POLICY)
    later = FakeContainerBackend(tables=tables)
    assert (later.read("k", -1) == POLICY) is stands
    assert len(backend.writes) == int(stands)


def test_a_refused_write_changes_nothing_and_the_next_passes() -> None:
    backend = FakeContainerBackend(fail_next=["", "no memory"])
    backend.install("k", -1, POLICY)
    with pytest.raises(FirewallError, match="no memory"):
        backend.update("k", -1, inbound=[TCP])
    assert backend.read("k", -1) == POLICY
    backend.update("k", -1, inbound=[TCP])
    assert backend.read("k", -1) == attrs.evolve(POLICY, inbound=frozenset({TCP}))
    assert backend.writes == [("install", "k"), ("update", "k")]


def test_someone_elses_tables_are_drift_without_difference() -> None:
    backend = FakeContainerBackend()
    backend.install("k", -1, POLICY)
    backend.meddle("k")
    assert backend.drifted("k", -1)
    assert backend.read("k", -1) == POLICY
    assert not backend.drifted("k", -1)
    backend.meddle("k", ContainerChange(inbound=(TCP,)))
    assert backend.read("k", -1) == attrs.evolve(POLICY, inbound=frozenset({TCP}))


def test_lifetimes_end_by_the_fakes_clock() -> None:
    backend, host = FakeContainerBackend(now=lambda: 10.0), FakeHostBackend(now=lambda: 10.0)
    ended, live = attrs.evolve(TCP, expires_at=10.0), attrs.evolve(TCP, port=81, expires_at=10.1)
    backend.install("k", -1, attrs.evolve(POLICY, inbound=frozenset({ended, live})))
    assert backend.read("k", -1) == attrs.evolve(POLICY, inbound=frozenset({live}))
    host.install(attrs.evolve(HOST, pairs=frozenset({attrs.evolve(PAIR, expires_at=9.0)})))
    assert host.read() == HOST


def test_the_host_means_the_same() -> None:
    table = FakeTable()
    host = FakeHostBackend(table=table)
    with pytest.raises(FirewallError):
        host.update(pairs=[PAIR])
    host.install(HOST)
    host.update(pairs=[PAIR])
    again = FakeHostBackend(table=table)
    assert not again.drifted()
    assert again.read() == attrs.evolve(HOST, pairs=frozenset({PAIR}))
    again.meddle(HostChange(pairs_removed=(PAIR,)))
    assert again.drifted()
    assert again.read() == HOST
    again.tamper()
    assert again.read() is None
    again.install(HOST)
    again.flush()
    assert again.drifted()
    assert again.read() is None
    again.install(HOST)
    again.remove()
    again.remove()
    assert again.read() is None
    assert again.writes == [("install", "host"), ("install", "host"), ("remove", "host")]


def test_what_a_host_publishes_and_keeps_in_changes_piece_by_piece() -> None:
    host, web = FakeHostBackend(), Publication("tcp", "", 8080, "10.1.0.2", 80)
    host.install(HOST)
    host.update(publications=[web], internal=["10.1.0.3"])
    assert host.read() == attrs.evolve(HOST, publications=frozenset({web}), internal=frozenset({"10.1.0.3"}))
    moved = attrs.evolve(web, address="10.1.0.4")
    host.update(publications=[moved], internal_removed=["10.1.0.3"])
    assert host.read() == attrs.evolve(HOST, publications=frozenset({moved}))
    host.update(publications_removed=[web])
    assert host.read() == HOST


@pytest.mark.parametrize(("when", "stands"), [("before", False), ("after", True)])
def test_a_crash_leaves_the_passage_that_was_opened(when: str, *, stands: bool) -> None:
    passages = FakePassages(chains={"nft": ["return"]}, on_write=crash_when(when))  # type: ignore[arg-type]
    with pytest.raises(CrashError):
        passages.open("nft")
    again = FakePassages(chains=passages.chains, fail_next=["locked"])
    assert again.read() == {"nft": stands}
    with pytest.raises(FirewallError, match="locked"):
        again.open("nft")
    again.open("nft")
    assert again.chains["nft"] == [OUR_RULE, "return"]
    assert again.writes == [("open", "nft")]
