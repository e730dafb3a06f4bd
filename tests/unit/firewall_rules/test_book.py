from __future__ import annotations

import attrs
from hypothesis import given
from hypothesis import strategies as st

from firewall_rules.book import Book
from firewall_rules.change import ContainerChange, HostChange, change_container, change_host
from firewall_rules.compile_container import container_items
from firewall_rules.compile_host import host_items
from firewall_rules.elements import SetId, elements_of
from firewall_rules.policy import (
    ContainerPolicy,
    HostPolicy,
    Opening,
    Pair,
    PortBinding,
    Publication,
    TunnelPolicy,
)
from firewall_rules.ruleset import ElementKey

EMPTY = ContainerPolicy(address="10.1.0.2", gateway="10.1.0.1")
EMPTY_HOST = HostPolicy(bridge="netctl0", address="10.1.0.1", block="10.1.0.0/16", supernet="10.0.0.0/8")
TCP = Opening("10.2.0.2", "tcp", 80)

ends = st.sampled_from([None, 1000.0, 2000.0])
openings = st.builds(
    Opening,
    st.sampled_from(["10.2.0.2", "10.2.0.3"]),
    st.sampled_from(["tcp", "udp", "icmp", "any"]),
    st.sampled_from([80, 81]),
    ends,
).map(lambda one: one if one.protocol in {"tcp", "udp"} else attrs.evolve(one, port=0))
some_openings = st.lists(openings, max_size=4).map(tuple)
container_changes = st.builds(ContainerChange, some_openings, some_openings, some_openings, some_openings)
pairs = st.builds(
    Pair, st.sampled_from(["10.1.0.2", "10.1.0.3"]), st.sampled_from(["10.2.0.2", "10.2.0.3"]), ends
)
bindings = st.builds(
    PortBinding,
    st.sampled_from(["ncp1", "ncp2"]),
    st.just("6e:63:0a:01:00:02"),
    st.sampled_from(["10.1.0.2", "10.1.0.3"]),
)
tunnels = st.builds(
    TunnelPolicy,
    st.sampled_from(["nct1", "nct2"]),
    st.sampled_from(["10.2.0.0/16", "10.3.0.0/16"]),
    st.sampled_from(["gre", "vxlan", "wireguard", "direct"]),
    st.sampled_from(["192.0.2.2", "192.0.2.3"]),
    st.sampled_from([1, 2]),
    st.just("02:00:00:00:00:01"),
    st.booleans(),
)

publications = st.builds(
    Publication,
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from(["", "192.0.2.1"]),
    st.sampled_from([80, 8080]),
    st.sampled_from(["10.1.0.2", "10.1.0.3"]),
    st.sampled_from([80, 81]),
)
addresses = st.sampled_from(["10.1.0.2", "10.1.0.3"])


def some(items: st.SearchStrategy[object]) -> st.SearchStrategy[tuple[object, ...]]:
    return st.lists(items, max_size=3).map(tuple)


host_changes = st.builds(
    HostChange,
    *(
        some(items)
        for items in (bindings, pairs, tunnels, publications, addresses)
        for _added_and_removed in range(2)
    ),
)
Kernel = dict[SetId, dict[ElementKey, float | None]]


def enforce(
    kernel: Kernel, book: Book[ContainerPolicy] | Book[HostPolicy], change: ContainerChange | HostChange
) -> None:
    """Do to a kernel what a book plans, then commit."""
    planned = book.plan(change)
    for one in planned.sets:
        elements = kernel.setdefault(one.set_id, {})
        for key in one.removed:
            elements.pop(key, None)
        elements.update(one.added)
    book.commit(planned)


def without_empty(kernel: Kernel) -> Kernel:
    return {set_id: elements for set_id, elements in kernel.items() if elements}


@given(st.lists(container_changes, max_size=6))
def test_a_container_changed_step_by_step_is_the_one_made_at_once(steps: list[ContainerChange]) -> None:
    policy, book, kernel = EMPTY, Book(EMPTY), Kernel()
    for change in steps:
        policy = change_container(policy, change)
        enforce(kernel, book, change)
    assert book.policy(0.0) == policy
    assert without_empty(kernel) == elements_of(container_items(policy))


@given(st.lists(host_changes, max_size=6))
def test_a_host_changed_step_by_step_is_the_one_made_at_once(steps: list[HostChange]) -> None:
    policy, book, kernel = EMPTY_HOST, Book(EMPTY_HOST), Kernel()
    for change in steps:
        policy = change_host(policy, change)
        enforce(kernel, book, change)
    assert book.policy(0.0) == policy
    assert without_empty(kernel) == elements_of(host_items(policy))


WEB = Publication("tcp", "", 8080, "10.1.0.2", 80)


def test_a_port_of_the_node_leads_to_one_container() -> None:
    moved = attrs.evolve(WEB, address="10.1.0.3")
    book = Book(attrs.evolve(EMPTY_HOST, publications=frozenset({WEB})))
    planned = book.plan(HostChange(publications=(moved,)))
    (leads,) = (one for one in planned.sets if one.set_id == ("inet", "publications"))
    assert leads.removed == {("6", "8080", "10.1.0.2", "80")}
    assert dict(leads.added) == {("6", "8080", "10.1.0.3", "80"): None}
    book.commit(planned)
    assert book.policy(0.0).publications == {moved}


def test_a_target_stays_published_while_one_port_leads_to_it() -> None:
    second = attrs.evolve(WEB, host_port=8081)
    book = Book(attrs.evolve(EMPTY_HOST, publications=frozenset({WEB, second})))
    first = book.plan(HostChange(publications_removed=(WEB,)))
    assert {one.set_id for one in first.sets} == {("inet", "publications")}
    book.commit(first)
    last = book.plan(HostChange(publications_removed=(second,)))
    assert ("inet", "published") in {one.set_id for one in last.sets if one.removed}
    assert ("bridge", "publishers") in {one.set_id for one in last.sets if one.removed}


def test_what_was_never_there_need_not_be_taken_out_where_that_is_sure() -> None:
    elsewhere = attrs.evolve(WEB, address="10.1.0.3")
    planned = Book(attrs.evolve(EMPTY_HOST, publications=frozenset({WEB}))).plan(
        HostChange(publications_removed=(elsewhere,))
    )
    (leads,) = (one for one in planned.sets if one.set_id == ("inet", "publications"))
    assert leads.fresh == {("6", "8080", "10.1.0.3", "80")}
    assert leads.removed - leads.fresh == {("6", "8080", "10.1.0.2", "80")}


def test_a_plan_that_is_not_committed_changes_nothing() -> None:
    book = Book(attrs.evolve(EMPTY, inbound=frozenset({TCP})))
    book.plan(ContainerChange(inbound_removed=(TCP,)))
    assert book.policy(0.0).inbound == {TCP}


def test_a_change_names_only_the_elements_it_touches() -> None:
    others = frozenset(Opening(f"10.3.0.{number}", "tcp", 80) for number in range(200))
    planned = Book(attrs.evolve(EMPTY, inbound=others)).plan(ContainerChange(inbound=(TCP,)))
    assert {one.set_id for one in planned.sets} == {("inet", "in_ports"), ("inet", "in_peers")}
    assert sum(len(one.added) + len(one.removed) for one in planned.sets) == 2


def test_a_peer_stays_known_while_one_opening_with_it_is_left() -> None:
    udp = Opening("10.2.0.2", "udp", 53)
    book = Book(attrs.evolve(EMPTY, inbound=frozenset({TCP, udp})))
    first = book.plan(ContainerChange(inbound_removed=(TCP,)))
    assert {one.set_id for one in first.sets if one.removed} == {("inet", "in_ports")}
    book.commit(first)
    second = book.plan(ContainerChange(inbound_removed=(udp,)))
    assert ("inet", "in_peers") in {one.set_id for one in second.sets if one.removed}


def test_of_two_lifetimes_the_longer_counts_for_what_they_share() -> None:
    short, long = attrs.evolve(TCP, expires_at=10.0), Opening("10.2.0.2", "icmp", 0, 20.0)
    shared = elements_of([("inbound", short), ("inbound", long)])["inet", "in_peers"]
    assert shared == {("10.2.0.2",): 20.0}
    forever = elements_of([("inbound", short), ("inbound", attrs.evolve(long, expires_at=None))])
    assert forever["inet", "in_peers"] == {("10.2.0.2",): None}


def test_what_has_ended_is_left_out() -> None:
    ending = attrs.evolve(TCP, expires_at=10.0)
    book = Book(attrs.evolve(EMPTY, inbound=frozenset({ending})))
    assert book.policy(9.0).inbound == {ending}
    assert book.policy(10.0).inbound == frozenset()
