"""What Docker's endpoints come to on a host: planned, done, and done away with."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firewall_rules import names
from firewall_rules.policy import ContainerPolicy, Opening, PortBinding, PublishedPort
from netctl.model import NodeDelta, NodeState, mac_of
from nodeagent.after import after, with_sandbox
from nodeagent.desired_index import DesiredIndex, Scope, scope_between, united
from nodeagent.diff import diff, plan, removal
from nodeagent.endpoints import Endpoints
from nodeagent.helper_fake import LocalHelper
from nodeagent.kernel_state import ContainerPort, EngineContainer, HostState
from nodeagent.ops import (
    ClosePassage,
    DeletePort,
    ForgetSandbox,
    OpenPassage,
    RemoveContainer,
    SetContainerRules,
    SetEndpoint,
    StartContainer,
    UpdateContainerRules,
    UpdateHostRules,
    WatchSandbox,
)
from nodeagent.target import target
from tests.support.agents import FULL_FACTS, permit, state, states
from tests.support.docker_nodes import (
    DockerNode,
    endpoint,
    endpoints,
    foreign,
    placed_by_docker,
    published,
    some_endpoints,
)
from tests.support.examples import examples
from tests.unit.nodeagent.test_diff import NOW, delta_between

FACTS = attrs.evolve(FULL_FACTS, engines=("process", "docker"))
WEB = foreign(2)
WEB_END = endpoint(2)
PORT = ContainerPort(names.port_device(WEB_END.key), 1476)
BINDING = PortBinding(PORT.device, mac_of(WEB.address), WEB.address)


def settle(wanted: NodeState, found: Endpoints, helper: LocalHelper) -> HostState:
    """Apply what the plan says until it says nothing more."""
    desired = DesiredIndex.of(wanted)
    for _ in range(8):
        operations = plan(desired, FACTS, helper.observe(), NOW, endpoints=found)
        if not operations:
            break
        assert not any(helper.apply(operations)), operations
        helper.events()
    else:
        pytest.fail(f"never settles: {operations}")
    return helper.observe()


def with_docker(wanted: NodeState, kinds: list[int]) -> NodeState:
    """Let containers be of these kinds, whichever of them are there."""
    containers = dict(wanted.containers)
    for container in wanted.containers.values():
        number = int(container.address.rpartition(".")[2])
        kind = kinds[number - 2]
        if kind == 1:
            containers[container.id] = foreign(number)
        elif kind == 2:
            containers[container.id] = placed_by_docker(
                number, wanted=container.wanted, generation=container.generation
            )
    return attrs.evolve(wanted, containers=containers)


KINDS = st.lists(st.integers(0, 2), min_size=3, max_size=3)
"""Of the three containers there are: a process, one of Docker's user, one that Docker runs for the broker."""
Wants = tuple[NodeState, NodeState, list[int]]
THERE = st.sets(st.sampled_from([endpoint(number).sandbox for number in (2, 3, 4)]))


def make(node: DockerNode, there: set[str]) -> None:
    """Let just these namespaces be there."""
    for name in [*node.folder.namespaces]:
        if name not in there:
            node.folder.end(name)
    for name in sorted(there):
        if name not in node.folder.namespaces:
            node.folder.make(name)


@settings(max_examples=examples(80), deadline=None)
@given(st.tuples(states(), states(), KINDS), some_endpoints(), some_endpoints(), THERE, THERE)
def test_from_any_endpoints_to_any_others(
    wants: Wants,
    first: Endpoints,
    second: Endpoints,
    before: set[str],
    now: set[str],
) -> None:
    one, other = with_docker(wants[0], wants[2]), with_docker(wants[1], wants[2])
    with TemporaryDirectory() as directory:
        node = DockerNode(Path(directory))
        helper = node.helper()
        make(node, before)
        settle(one, first, helper)
        make(node, now)
        helper.events()
        observed = settle(other, second, helper)
        wanted = target(DesiredIndex.of(other), FACTS, observed, NOW, endpoints=second)
        assert diff(wanted, observed, other.containers, second.by_key) == ()
        for field in ("ports", "ends", "host_policy", "container_policies", "sandboxes", "passages"):
            assert getattr(observed, field) == getattr(wanted, field), field
        assert observed.passages == {"nft": True}
        # What Docker would find of an endpoint that joined.
        assert set(node.kernel.far_ends) == {
            names.port_device(e.key) for e in second.by_key.values() if e.sandbox
        }
        helper.close()


@settings(max_examples=examples(80), deadline=None)
@given(st.tuples(states(), states(), KINDS), some_endpoints(), some_endpoints(), THERE)
def test_the_model_of_every_operation_is_what_the_host_does(
    wants: Wants, first: Endpoints, second: Endpoints, there: set[str]
) -> None:
    one, other = with_docker(wants[0], wants[2]), with_docker(wants[1], wants[2])
    with TemporaryDirectory() as directory:
        node = DockerNode(Path(directory))
        make(node, there)
        helper = node.helper()
        for wanted, found in ((one, first), (other, second)):
            desired = DesiredIndex.of(wanted)
            for _ in range(8):
                for operation in plan(desired, FACTS, helper.observe(), NOW, endpoints=found):
                    modelled = after(operation, helper.observe())
                    if isinstance(operation, WatchSandbox) and operation.sandbox in there:
                        # An event tells of one that is there.
                        modelled = with_sandbox(modelled, operation.endpoint, present=True)
                    assert helper.apply((operation,)) == ("",)
                    helper.events()
                    assert plain(helper.observe()) == plain(modelled), operation
        helper.close()


def plain(observed: HostState) -> HostState:
    """Leave out what an operation does not say of a container."""
    containers = {
        i: attrs.evolve(c, exit_code=None, removes_later=False) for i, c in observed.containers.items()
    }
    return attrs.evolve(observed, containers=containers)


@settings(max_examples=examples(150), deadline=None)
@given(st.tuples(states(), states(), KINDS), some_endpoints(), some_endpoints(), THERE)
def test_a_scope_narrows_the_work_and_never_the_outcome(
    wants: Wants, first: Endpoints, second: Endpoints, there: set[str]
) -> None:
    one, other = with_docker(wants[0], wants[2]), with_docker(wants[1], wants[2])
    other = attrs.evolve(one, containers=other.containers, permits=other.permits)
    with TemporaryDirectory() as directory:
        node = DockerNode(Path(directory))
        make(node, there)
        helper = node.helper()
        observed = settle(one, first, helper)
        delta = delta_between(one, other)
        before = DesiredIndex.of(one)
        scope = united(before.scope_of(delta), scope_between(first, second))
        assert scope is not None
        desired = before.advanced(delta)
        narrow = plan(desired, FACTS, observed, NOW, scope=scope, endpoints=second)
        whole = plan(desired, FACTS, observed, NOW, endpoints=second)
        assert sorted(map(repr, narrow)) == sorted(map(repr, whole))
        helper.close()


@settings(max_examples=examples(40), deadline=None)
@given(states(), KINDS, some_endpoints(), THERE)
def test_nothing_is_left_of_any_endpoints(
    plainly: NodeState, kinds: list[int], found: Endpoints, there: set[str]
) -> None:
    with TemporaryDirectory() as directory:
        node = DockerNode(Path(directory))
        make(node, there)
        helper = node.helper()
        before = node.observed()
        settle(with_docker(plainly, kinds), found, helper)
        helper.apply(removal(helper.observe(), {"net/ipv4/ip_forward": "0"}))
        helper.events()
        assert helper.observe() == before
        assert node.kernel.far_ends == {}
        assert node.passages.chains == {"nft": ["return"]}
        helper.close()


# --- one endpoint, step by step ---------------------------------------------------------------------

BASE = state([WEB], permits=[permit(WEB.address, "10.2.0.2", "80/tcp")])
FOUND = endpoints(WEB_END)


def planned(observed: HostState, wanted: NodeState = BASE, found: Endpoints = FOUND) -> list[type]:
    operations = plan(DesiredIndex.of(wanted), FACTS, observed, NOW, endpoints=found)
    return [type(operation) for operation in operations]


def test_a_port_is_opened_last(tmp_path: Path) -> None:
    node = DockerNode(tmp_path)
    helper = node.helper()
    observed = settle(BASE, Endpoints(), helper)
    assert observed.host_policy is not None

    # Docker asks for it: a port that nothing passes, and its namespace is waited for.
    assert planned(observed) == [WatchSandbox, SetEndpoint]
    observed = settle(BASE, FOUND, helper)
    assert observed.ports == {PORT.device: PORT}
    assert observed.container_policies == {}
    assert observed.host_policy is not None
    assert observed.host_policy.bindings == frozenset()

    # Its namespace comes: layer 1, and only once that stands the port is opened.
    node.folder.make(WEB_END.sandbox)
    helper.events()
    observed = helper.observe()
    assert planned(observed) == [SetContainerRules]
    desired = DesiredIndex.of(BASE)
    operations = plan(desired, FACTS, observed, NOW, endpoints=FOUND)
    assert helper.apply(operations) == ("",)
    observed = helper.observe()
    assert observed.container_policies[WEB_END.key].outbound == {Opening("10.2.0.2", "tcp", 80)}
    assert planned(observed) == [UpdateHostRules]
    observed = settle(BASE, FOUND, helper)
    assert observed.host_policy is not None
    assert observed.host_policy.bindings == {BINDING}

    # Layer 1 is lost: the port is closed at once, and opened again after it.
    node.layer1.flush(WEB_END.key)
    assert planned(helper.observe()) == [UpdateHostRules, SetContainerRules]
    (closing, _) = plan(desired, FACTS, helper.observe(), NOW, endpoints=FOUND)
    assert isinstance(closing, UpdateHostRules)
    assert (closing.bindings, closing.bindings_removed) == ((), (BINDING,))
    settle(BASE, FOUND, helper)

    # Docker takes it away.
    assert planned(helper.observe(), found=Endpoints()) == [DeletePort, UpdateHostRules, ForgetSandbox]
    observed = settle(BASE, Endpoints(), helper)
    assert (observed.ports, observed.sandboxes, observed.container_policies) == ({}, {}, {})
    helper.close()


@pytest.mark.parametrize(
    ("recorded", "found"),
    [
        (state(), WEB_END),
        (state([foreign(3)]), WEB_END),
        (BASE, attrs.evolve(WEB_END, container="")),
        (BASE, attrs.evolve(WEB_END, container=foreign(3).id)),
        (attrs.evolve(BASE, containers={WEB.id: attrs.evolve(WEB, address="10.1.0.9")}), WEB_END),
    ],
    ids=["no record", "another container", "not known whose", "not its own", "another address"],
)
def test_without_its_record_everything_is_closed(tmp_path: Path, recorded: NodeState, found: object) -> None:
    wanted = attrs.evolve(recorded, permits=BASE.permits)
    node = DockerNode(tmp_path)
    helper = node.helper()
    node.folder.make(WEB_END.sandbox)
    observed = settle(wanted, endpoints(found), helper)  # type: ignore[arg-type]
    assert observed.host_policy is not None
    assert observed.host_policy.bindings == frozenset()
    policy = observed.container_policies[WEB_END.key]
    assert policy == ContainerPolicy(
        WEB.address, "10.1.0.1", closed=policy.closed, overlay_only=True, internet=False
    )
    # The control: with the record it is open.
    observed = settle(BASE, FOUND, helper)
    assert observed.host_policy is not None
    assert observed.host_policy.bindings == {BINDING}
    assert observed.container_policies[WEB_END.key].outbound != frozenset()
    helper.close()


def test_what_docker_was_told_of_its_network_reaches_both_layers(tmp_path: Path) -> None:
    node = DockerNode(tmp_path)
    helper = node.helper()
    node.folder.make(WEB_END.sandbox)
    found = endpoints(attrs.evolve(WEB_END, internal=True, publications=(published(2),)))
    observed = settle(BASE, found, helper)
    policy, host = observed.container_policies[WEB_END.key], observed.host_policy
    assert host is not None
    assert (policy.overlay_only, policy.internet, policy.resolver) == (True, False, None)
    assert policy.published == {PublishedPort("tcp", 80)}
    assert (host.publications, host.internal) == ({published(2)}, {WEB.address})
    # The control: an ordinary network.
    observed = settle(BASE, FOUND, helper)
    policy, host = observed.container_policies[WEB_END.key], observed.host_policy
    assert host is not None
    assert (policy.overlay_only, policy.internet, policy.resolver) == (True, True, "10.1.0.1")
    assert (policy.published, host.publications, host.internal) == (frozenset(), frozenset(), frozenset())
    helper.close()


def test_a_connect_to_an_endpoint_is_two_updates_of_one_element_each(tmp_path: Path) -> None:
    node = DockerNode(tmp_path)
    helper = node.helper()
    node.folder.make(WEB_END.sandbox)
    observed = settle(BASE, FOUND, helper)
    before = DesiredIndex.of(BASE)
    for delta in (
        NodeDelta(permits=(permit("10.3.0.9", WEB.address, "53/udp"),)),
        NodeDelta(permits_removed=tuple(BASE.permits)),
    ):
        desired = before.advanced(delta)
        scope = before.scope_of(delta)
        operations = plan(desired, FACTS, observed, NOW, scope=scope, endpoints=FOUND)
        assert [type(operation) for operation in operations] == [UpdateHostRules, UpdateContainerRules]
        host, layer1 = operations
        assert isinstance(host, UpdateHostRules)
        assert isinstance(layer1, UpdateContainerRules)
        assert len(host.pairs) + len(host.pairs_removed) == 1
        changed = (layer1.inbound, layer1.outbound, layer1.inbound_removed, layer1.outbound_removed)
        assert sum(map(len, changed)) == 1
        assert layer1.container == WEB_END.key
    helper.close()


def test_of_two_endpoints_with_one_address_only_the_newer_is_opened(tmp_path: Path) -> None:
    """As while a container with an address of its own is started anew."""
    node = DockerNode(tmp_path)
    helper = node.helper()
    old, new = WEB_END, attrs.evolve(WEB_END, key="f" * 32, sandbox="abcdef012345")
    for one in (old, new):
        node.folder.make(one.sandbox)
    settle(BASE, endpoints(old), helper)
    observed = settle(BASE, endpoints(old, new), helper)
    assert observed.host_policy is not None
    assert {b.device for b in observed.host_policy.bindings} == {names.port_device(new.key)}
    desired = DesiredIndex.of(BASE)
    scope = scope_between(endpoints(old, new), endpoints(new))
    operations = plan(desired, FACTS, observed, NOW, scope=scope, endpoints=endpoints(new))
    assert [type(operation) for operation in operations] == [DeletePort, ForgetSandbox]
    helper.close()


def test_addresses_on_lease_touch_nothing(tmp_path: Path) -> None:
    node = DockerNode(tmp_path)
    helper = node.helper()
    observed = settle(BASE, FOUND, helper)
    before = DesiredIndex.of(BASE)
    delta = NodeDelta(reserve=("10.1.0.7", "10.1.0.8"))
    assert before.scope_of(delta) == Scope()
    desired = before.advanced(delta)
    assert desired.reserve == {"10.1.0.7", "10.1.0.8"}
    assert desired.state().reserve == desired.reserve
    assert plan(desired, FACTS, observed, NOW, endpoints=FOUND) == ()
    gone = desired.advanced(NodeDelta(reserve_removed=("10.1.0.7",)))
    assert gone.reserve == {"10.1.0.8"}
    assert gone == DesiredIndex.of(gone.state())
    # A newer header leaves them.
    header = attrs.evolve(BASE, mtu=1400, containers={}, permits=frozenset())
    assert gone.advanced(NodeDelta(header=header)).reserve == {"10.1.0.8"}
    helper.close()


def test_what_dockers_user_made_is_left_alone(tmp_path: Path) -> None:
    node = DockerNode(tmp_path)
    helper = node.helper()
    observed = settle(BASE, Endpoints(), helper)
    assert (observed.containers, observed.ends) == ({}, {})
    assert node.docker.calls == []
    settle(state(), Endpoints(), helper)
    assert node.docker.calls == []
    helper.close()


def test_what_docker_runs_for_the_broker_has_no_link_of_its_own(tmp_path: Path) -> None:
    node = DockerNode(tmp_path)
    helper = node.helper()
    mine = placed_by_docker(3)
    observed = settle(state([mine]), Endpoints(), helper)
    assert observed.containers == {mine.id: EngineContainer("running", 1, removes_later=True)}
    assert (observed.ends, observed.ports, observed.container_policies) == ({}, {}, {})
    assert node.docker._boxes[mine.id].block == "10.1.0.0/16"
    # One that ended is started, and not made, again: Docker keeps it through a reboot.
    node.docker.end(mine.id, 1)
    helper.events()
    again = DesiredIndex.of(state([attrs.evolve(mine, generation=2)]))
    assert [type(op) for op in plan(again, FACTS, helper.observe(), NOW)] == [StartContainer]
    # One that could not be made is.
    node.docker.become(mine.id, EngineContainer("failed", 0, None, "no such image"))
    helper.events()
    assert [type(op) for op in plan(again, FACTS, helper.observe(), NOW)] == [RemoveContainer]
    helper.close()


def test_links_that_nobody_knows_are_deleted() -> None:
    stray = {device: ContainerPort(device, 1476) for device in ("ncpffffffffffff", "nceffffffffffff")}
    observed = HostState(ports=stray)
    operations = plan(DesiredIndex.of(state()), FACTS, observed, NOW)
    assert [op.device for op in operations if isinstance(op, DeletePort)] == list(stray)


def test_a_passage_is_open_while_there_is_docker_and_a_block() -> None:
    observed = HostState(passages={"nft": False, "legacy": True})
    desired = DesiredIndex.of(state())
    operations = plan(desired, FACTS, observed, NOW)
    assert [op for op in operations if isinstance(op, OpenPassage | ClosePassage)] == [OpenPassage("nft")]
    operations = plan(desired, FULL_FACTS, observed, NOW)
    assert [op for op in operations if isinstance(op, OpenPassage | ClosePassage)] == [ClosePassage("legacy")]
    # At the end nothing may be left, one of ours in another place included.
    operations = removal(observed, {})
    assert {op for op in operations if isinstance(op, OpenPassage | ClosePassage)} == {
        ClosePassage("nft"),
        ClosePassage("legacy"),
    }
