from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netctl.delta import apply_delta
from netctl.model import NodeDelta, NodeState, Permit, WireguardEnd
from nodeagent.after import after
from nodeagent.desired_index import DesiredIndex
from nodeagent.diff import diff, plan, reached, removal
from nodeagent.kernel_state import HostFacts, HostState
from nodeagent.ops import ORDER, UpdateContainerRules, UpdateHostRules
from nodeagent.target import target, troubles
from tests.support.agents import FULL_FACTS, FakeNode, container, peer, permit, state, states
from tests.support.examples import examples

NOW = 1e9
WIREGUARD_FACTS = attrs.evolve(
    FULL_FACTS, wireguard=(WireguardEnd(1, "ab" * 32, 51821),), encapsulations=("gre", "vxlan", "wireguard")
)


def able_node(directory: Path) -> FakeNode:
    """Return a node whose kernel has WireGuard."""
    node = FakeNode(directory)
    node.kernel.host_facts = attrs.evolve(
        node.kernel.host_facts, encapsulations=WIREGUARD_FACTS.encapsulations
    )
    return node


def settle(node: FakeNode, wanted: NodeState, facts: HostFacts = FULL_FACTS) -> HostState:
    """Apply what the plan says until it says nothing more."""
    desired = DesiredIndex.of(wanted)
    helper = node.helper()
    for _ in range(6):
        operations = plan(desired, facts, helper.observe(), NOW)
        if not operations:
            break
        assert not any(helper.apply(operations)), operations
        helper.events()
    else:
        pytest.fail(f"never settles: {operations}")
    observed = helper.observe()
    helper.close()
    return observed


def delta_between(one: NodeState, other: NodeState) -> NodeDelta:
    bare = {"peers": {}, "containers": {}, "permits": frozenset()}
    header = attrs.evolve(other, **bare)
    return NodeDelta(
        header=None if attrs.evolve(one, **bare) == header else header,
        peers=tuple(p for n, p in other.peers.items() if one.peers.get(n) != p),
        peers_removed=tuple(n for n in one.peers if n not in other.peers),
        containers=tuple(c for i, c in other.containers.items() if one.containers.get(i) != c),
        containers_removed=tuple(i for i in one.containers if i not in other.containers),
        permits=tuple(other.permits - one.permits),
        permits_removed=tuple(one.permits - other.permits),
    )


@given(states(), states())
def test_an_index_advances_as_the_whole_state_does(one: NodeState, other: NodeState) -> None:
    delta = delta_between(one, other)
    assert apply_delta(one, delta) == other
    advanced = DesiredIndex.of(one).advanced(delta)
    assert advanced.state() == other
    assert advanced == DesiredIndex.of(other)


@settings(max_examples=examples(60), deadline=None)
@given(states(), states())
def test_from_any_state_to_any_other(one: NodeState, other: NodeState) -> None:
    with TemporaryDirectory() as directory:
        node = able_node(Path(directory))
        settle(node, one, WIREGUARD_FACTS)
        observed = settle(node, other, WIREGUARD_FACTS)
        wanted = target(DesiredIndex.of(other), WIREGUARD_FACTS, observed, NOW)
        assert diff(wanted, observed, other.containers) == ()
        for field in (
            "bridge",
            "tunnels",
            "wireguard",
            "routes",
            "ports",
            "ends",
            "host_policy",
            "container_policies",
        ):
            assert getattr(observed, field) == getattr(wanted, field), field
        assert wanted.sysctls.items() <= observed.sysctls.items()
        assert observed.containers.keys() == wanted.containers.keys()
        assert all(reached(goal, observed.containers.get(i)) for i, goal in wanted.containers.items())


@settings(max_examples=examples(60), deadline=None)
@given(states(), states())
def test_the_model_of_every_operation_is_what_the_host_does(one: NodeState, other: NodeState) -> None:
    with TemporaryDirectory() as directory:
        node = able_node(Path(directory))
        helper = node.helper()
        for wanted in (one, other):
            desired = DesiredIndex.of(wanted)
            for _ in range(6):
                for operation in plan(desired, WIREGUARD_FACTS, helper.observe(), NOW):
                    modelled = after(operation, helper.observe())
                    assert helper.apply((operation,)) == ("",)
                    helper.events()
                    observed = helper.observe()
                    # The fake tells a status of its own for a command that was stopped.
                    assert _without_codes(observed) == _without_codes(modelled), operation
        helper.close()


def _without_codes(observed: HostState) -> HostState:
    plain = {i: attrs.evolve(c, exit_code=None) for i, c in observed.containers.items()}
    return attrs.evolve(observed, containers=plain)


@settings(max_examples=examples(100), deadline=None)
@given(states(), states(), st.data())
def test_a_scope_narrows_the_work_and_never_the_outcome(
    one: NodeState, other: NodeState, data: st.DataObject
) -> None:
    """What a delta can touch is planned alike from a part and from the whole."""
    # Header and peers concern everything: only what has a scope is looked at here.
    other = attrs.evolve(one, containers=other.containers, permits=other.permits)
    with TemporaryDirectory() as directory:
        node = able_node(Path(directory))
        observed = settle(node, one, WIREGUARD_FACTS)
        delta = delta_between(one, other)
        before = DesiredIndex.of(one)
        scope = before.scope_of(delta)
        assert scope is not None
        desired = before.advanced(delta)
        now = data.draw(st.sampled_from((NOW, 2.5e9)))
        narrow = plan(desired, WIREGUARD_FACTS, observed, now, scope=scope)
        whole = plan(desired, WIREGUARD_FACTS, observed, now)
        if now == NOW:
            assert sorted(map(repr, narrow)) == sorted(map(repr, whole))
        # What has ended since shows in the whole only.
        assert [repr(op) for op in narrow if repr(op) not in set(map(repr, whole))] == [] or now != NOW


@given(states())
@settings(max_examples=examples(30), deadline=None)
def test_nothing_is_left_of_any_state(wanted: NodeState) -> None:
    with TemporaryDirectory() as directory:
        node = able_node(Path(directory))
        before = node.observed()
        settle(node, wanted, WIREGUARD_FACTS)
        helper = node.helper()
        helper.apply(removal(helper.observe(), {"net/ipv4/ip_forward": "0"}))
        assert helper.observe() == before
        helper.close()


def test_operations_come_in_the_order_of_the_table() -> None:
    wanted = state([container(2)], [peer(2)], [permit("10.1.0.2", "10.2.0.2")])
    operations = plan(DesiredIndex.of(wanted), FULL_FACTS, HostState(), NOW)
    places = [ORDER[type(operation)] for operation in operations]
    assert places == sorted(places)
    assert len(operations) > 8


def test_a_connect_is_two_updates_of_one_element_each(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    one = state([container(2), container(3)], [peer(2)], [permit("10.1.0.3", "10.2.0.2")])
    observed = settle(node, one)
    new = permit("10.1.0.2", "10.2.0.2", "53/udp")
    before = DesiredIndex.of(one)
    delta = NodeDelta(permits=(new,))
    operations = plan(before.advanced(delta), FULL_FACTS, observed, NOW, scope=before.scope_of(delta))
    assert [type(operation) for operation in operations] == [UpdateHostRules, UpdateContainerRules]
    host, layer1 = operations
    assert isinstance(host, UpdateHostRules)
    assert isinstance(layer1, UpdateContainerRules)
    assert (len(host.pairs), len(host.pairs_removed)) == (1, 0)
    assert (len(layer1.outbound), len(layer1.inbound)) == (1, 0)


class CountingPermit(Permit):
    """A permit that counts how often it is looked at."""

    looked = 0

    def __hash__(self) -> int:
        CountingPermit.looked += 1
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        CountingPermit.looked += 1
        return super().__eq__(other)


def many(count: int) -> NodeState:
    """A node with containers in proportion, and `count` permits between them and elsewhere."""
    containers = [container(2 + n) for n in range(count // 40)]
    permits = frozenset(
        CountingPermit(f"10.1.0.{2 + n % len(containers)}", f"10.2.{n // 250}.{n % 250 + 1}", port("80/tcp"))
        for n in range(count)
    )
    return state(containers, [peer(2)], permits)


def port(text: str):  # noqa: ANN201 - as Port.parse
    return permit("10.1.0.2", "10.1.0.3", text).port


def test_the_work_of_a_connect_does_not_grow_with_the_node(tmp_path: Path) -> None:
    looked = []
    for count in (400, 4000):
        (tmp_path / str(count)).mkdir()
        node = FakeNode(tmp_path / str(count))
        one = many(count)
        observed = settle(node, one)
        before = DesiredIndex.of(one)
        CountingPermit.looked = 0
        delta = NodeDelta(permits=(CountingPermit("10.1.0.2", "10.3.0.9", port("22/tcp")),))
        operations = plan(before.advanced(delta), FULL_FACTS, observed, NOW, scope=before.scope_of(delta))
        looked.append(CountingPermit.looked)
        assert len(operations) == 2
    assert looked[0] == looked[1]
    assert looked[1] < 20


def test_a_connection_that_ended_is_not_put_back(tmp_path: Path) -> None:
    wanted = state([container(2)], permits=[permit("10.1.0.2", "10.2.0.2", until=NOW + 10)])
    settle(FakeNode(tmp_path), wanted)
    later = target(DesiredIndex.of(wanted), FULL_FACTS, HostState(), NOW + 10)
    assert later.container_policies[container(2).id].outbound == frozenset()
    assert later.host_policy is not None
    assert later.host_policy.pairs == frozenset()


def test_a_pair_lasts_as_long_as_its_last_connection() -> None:
    ends = [permit("10.1.0.2", "10.2.0.2", "80", until=2e9), permit("10.2.0.2", "10.1.0.2", "81", until=3e9)]
    wanted = target(DesiredIndex.of(state([container(2)], permits=ends)), FULL_FACTS, HostState(), NOW)
    assert wanted.host_policy is not None
    (pair,) = wanted.host_policy.pairs
    assert (pair.one, pair.other, pair.expires_at) == ("10.1.0.2", "10.2.0.2", 3e9)
    endless = state([container(2)], permits=[*ends, permit("10.1.0.2", "10.2.0.2", "82")])
    policy = target(DesiredIndex.of(endless), FULL_FACTS, HostState(), NOW).host_policy
    assert policy is not None
    assert [pair.expires_at for pair in policy.pairs] == [None]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"host_firewall": "nft_bridge is missing"}, "nft_bridge is missing"),
        ({"firewall": "none"}, "no firewall works"),
        ({"engines": ()}, "no container engine 'process'"),
    ],
)
def test_a_host_that_lacks_something_makes_no_container_and_says_why(
    facts: dict[str, object], reason: str
) -> None:
    desired = DesiredIndex.of(state([container(2)], [peer(2)]))
    lacking = attrs.evolve(FULL_FACTS, **facts)
    wanted = target(desired, lacking, HostState(), NOW)
    assert (wanted.containers, wanted.ports, wanted.container_policies) == ({}, {}, {})
    errors = troubles(desired, lacking)
    assert [error.subject for error in errors] == ["c2"]
    assert reason in errors[0].message
    if "host_firewall" in facts:
        # Without the host's rules a tunnel would lead into the host itself.
        assert (wanted.tunnels, wanted.bridge, wanted.routes) == ({}, None, {})


def test_nodes_without_a_common_encapsulation_have_no_tunnel_and_say_so() -> None:
    desired = DesiredIndex.of(state([], [peer(2, "none"), peer(3, "vxlan")]))
    wanted = target(desired, FULL_FACTS, HostState(), NOW)
    assert [tunnel.remote for tunnel in wanted.tunnels.values()] == ["192.0.2.3"]
    assert wanted.routes.keys() == {"10.3.0.0/16"}
    assert [error.subject for error in troubles(desired, FULL_FACTS)] == ["n2"]


def test_the_host_is_whole_in_one_plan_after_a_device_was_made_anew(tmp_path: Path) -> None:
    node = able_node(tmp_path)
    ends = [WireguardEnd(1, f"{number:064x}", 51821) for number in (2, 3)]
    peers = [
        attrs.evolve(peer(2), candidates=("gre", "vxlan", "wireguard"), vni=7, wireguard=ends[0]),
        attrs.evolve(peer(3, "wireguard"), candidates=("wireguard",), mtu=1440, wireguard=ends[1]),
    ]
    first = state([], peers, wireguard_generations=(1,))
    settle(node, first, WIREGUARD_FACTS)
    moved = attrs.evolve(WIREGUARD_FACTS, underlay="198.51.100.1")
    helper = node.helper()
    for facts, wanted in (
        (moved, first),
        (moved, attrs.evolve(first, peers={p.name: attrs.evolve(p, underlay="198.51.100.9") for p in peers})),
        (moved, attrs.evolve(first, wireguard_generations=(3,))),
    ):
        desired = DesiredIndex.of(wanted)
        assert not any(helper.apply(plan(desired, facts, helper.observe(), NOW)))
        assert plan(desired, facts, helper.observe(), NOW) == ()
    helper.close()
