"""A host does what it is told in order, and not what an earlier failure made unsafe."""

from __future__ import annotations

import attrs
import pytest

from firewall_rules import names
from firewall_rules.policy import ContainerPolicy, Opening, Pair
from netctl.model import Workload
from nodeagent.apply import Host
from nodeagent.failures import NOT_TRIED
from nodeagent.kernel_state import EngineContainer
from nodeagent.ops import (
    CreateContainer,
    DeleteBridge,
    DeleteHostRules,
    DeletePort,
    Op,
    RemoveContainer,
    SetContainerRules,
    SetEnd,
    SetPort,
    SetSysctl,
    StartContainer,
    StopContainer,
    UpdateContainerRules,
    UpdateHostRules,
    ordered,
)
from tests.support.hosts import (
    BRIDGE,
    CONTAINER,
    OTHER,
    PREPARING,
    FakeHost,
    attaching,
    creating,
    host_rules,
)


@pytest.fixture
def fakes() -> FakeHost:
    return FakeHost()


def done(host: Host, *operations: Op) -> None:
    assert host.apply(operations) == ("",) * len(operations)


def prepared(fakes: FakeHost, *containers: str) -> Host:
    host = fakes.host()
    done(host, *PREPARING)
    for container in containers:
        done(host, creating(container))
    fakes.dispatch()
    return host


def test_attach_ends_as_asked(fakes: FakeHost) -> None:
    host = prepared(fakes, CONTAINER)
    operations = attaching()
    done(host, *operations)
    fakes.dispatch()
    state = host.observe()
    rules, port, end, _ = operations
    assert isinstance(rules, SetContainerRules)
    assert isinstance(port, SetPort)
    assert isinstance(end, SetEnd)
    assert state.bridge == BRIDGE
    assert state.host_policy == host_rules(CONTAINER).policy
    assert state.container_policies == {CONTAINER: rules.policy}
    assert state.ports == {port.port.device: port.port}
    assert state.ends == {CONTAINER: end.end}
    assert state.containers == {CONTAINER: EngineContainer("running", 1)}


def test_updates_reach_both_firewalls(fakes: FakeHost) -> None:
    host = prepared(fakes, CONTAINER)
    done(host, *attaching())
    opening = Opening("10.2.0.2", "tcp", 5432)
    pair = Pair("10.1.0.2", "10.2.0.2")
    done(host, UpdateContainerRules(CONTAINER, inbound=(opening,)), UpdateHostRules(pairs=(pair,)))
    state = host.observe()
    assert state.container_policies[CONTAINER].inbound == {opening}
    assert state.host_policy is not None
    assert state.host_policy.pairs == {pair}
    done(
        host,
        UpdateContainerRules(CONTAINER, inbound_removed=(opening,)),
        UpdateHostRules(pairs_removed=(pair,)),
    )
    state = host.observe()
    assert state.container_policies[CONTAINER].inbound == frozenset()
    assert state.host_policy is not None
    assert state.host_policy.pairs == frozenset()


def test_detach_leaves_nothing(fakes: FakeHost) -> None:
    host = prepared(fakes, CONTAINER)
    empty = FakeHost().host().observe()
    done(host, *attaching())
    done(
        host,
        StopContainer(CONTAINER),
        RemoveContainer(CONTAINER),
        DeletePort(names.port_device(CONTAINER)),
        DeleteBridge(),
        DeleteHostRules(),
    )
    assert host.observe() == empty
    # Again, with nothing left: no error.
    done(host, StopContainer(CONTAINER), RemoveContainer(CONTAINER), DeletePort(names.port_device(CONTAINER)))


def test_no_link_without_layer_one(fakes: FakeHost) -> None:
    host = prepared(fakes, CONTAINER, OTHER)
    fakes.firewall.fail_next = ["refused by the kernel"]
    operations = ordered((*attaching(), *attaching(OTHER, "10.1.0.3")))
    subjects = [(type(op), getattr(op, "container", "")) for op in operations]
    errors = dict(zip(subjects, host.apply(operations), strict=True))
    fakes.dispatch()
    assert errors[SetContainerRules, CONTAINER] == "refused by the kernel"
    for kind in (SetPort, SetEnd, StartContainer):
        assert errors[kind, CONTAINER].startswith(NOT_TRIED)
        assert errors[kind, OTHER] == ""
    state = host.observe()
    assert list(state.ends) == [OTHER]
    assert (state.containers[CONTAINER].state, state.containers[OTHER].state) == ("created", "running")


@pytest.mark.parametrize("failing", [SetPort, SetEnd])
def test_no_command_without_its_link(fakes: FakeHost, failing: type) -> None:
    host = prepared(fakes, CONTAINER)
    fakes.kernel.refuse[failing] = "no"
    errors = host.apply(attaching())
    fakes.dispatch()
    assert "no" in errors
    assert errors[-1].startswith(NOT_TRIED)
    assert host.observe().containers[CONTAINER].state == "created"
    # The next run, with the fault gone, finishes.
    fakes.kernel.refuse.clear()
    done(host, *attaching())


def test_no_link_without_the_hosts_rules(fakes: FakeHost) -> None:
    host = fakes.host()
    fakes.host_firewall.fail_next = ["refused by the kernel"]
    errors = host.apply(PREPARING)
    assert errors[0] == "refused by the kernel"
    assert errors[1].startswith(NOT_TRIED)
    assert host.observe().bridge is None
    assert fakes.kernel.writes == 0


def test_no_link_where_the_host_has_no_layer_two(fakes: FakeHost) -> None:
    fakes.host_firewall.unusable_reason = "the kernel has no bridge family"
    host = fakes.host()
    assert host.facts(None).host_firewall == "the kernel has no bridge family"
    assert host.observe().host_policy is None
    done(host, creating())
    fakes.dispatch()
    errors = host.apply(attaching())
    assert [bool(error) for error in errors] == [False, True, True, True]
    assert fakes.kernel.writes == 0


def test_no_container_rules_without_a_backend(fakes: FakeHost) -> None:
    host = Host(fakes.kernel, None, fakes.host_firewall, [fakes.engine])
    assert host.facts(None).firewall == "none"
    done(host, *PREPARING, creating())
    fakes.dispatch()
    errors = host.apply(attaching())
    assert "no firewall works" in errors[0]
    assert all(error.startswith(NOT_TRIED) for error in errors[1:])
    assert host.observe().ends == {}


def test_taking_away_is_tried_after_any_failure(fakes: FakeHost) -> None:
    host = prepared(fakes, CONTAINER)
    done(host, *attaching())
    fakes.engine.fail("stop", "it does not hear")
    errors = host.apply(
        (StopContainer(CONTAINER), RemoveContainer(CONTAINER), DeletePort(names.port_device(CONTAINER)))
    )
    assert errors == ("it does not hear", "", "")
    assert host.observe().ports == {}


def test_one_containers_failure_is_not_anothers(fakes: FakeHost) -> None:
    host = prepared(fakes)
    fakes.engine.fail("create", "no room", CONTAINER)
    errors = host.apply((creating(CONTAINER), creating(OTHER, "10.1.0.3")))
    assert errors == ("no room", "")


def test_engine_that_is_not_offered_is_refused(fakes: FakeHost) -> None:
    host = fakes.host()
    (error,) = host.apply([CreateContainer(CONTAINER, "web", "10.1.0.2", Workload("docker", ("true",)))])
    assert "no container engine 'docker'" in error
    (error,) = host.apply([StartContainer(CONTAINER, 1)])
    assert "not on this node" in error


def test_kernel_operations_of_one_kind_go_together(fakes: FakeHost) -> None:
    host = prepared(fakes, CONTAINER, OTHER)
    batches: list[int] = []
    apply = fakes.kernel.apply

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(fakes.kernel, name)

        def apply(self, operations: list[object], namespaces: dict[str, int]) -> list[str]:
            batches.append(len(operations))
            return apply(operations, namespaces)  # type: ignore[arg-type]

    counted = Host(Counting(), fakes.firewall, fakes.host_firewall, [fakes.engine])  # type: ignore[arg-type]
    done(counted, *ordered((*attaching(), *attaching(OTHER, "10.1.0.3"))))
    assert batches == [2, 2]
    assert host.observe().ends.keys() == {CONTAINER, OTHER}


def test_observing_writes_nothing(fakes: FakeHost) -> None:
    host = prepared(fakes, CONTAINER)
    done(host, *attaching())
    before = (fakes.kernel.writes, len(fakes.firewall.writes), len(fakes.host_firewall.writes))
    calls = len(fakes.engine.calls)
    assert host.observe() == host.observe() == fakes.host().observe()
    assert before == (fakes.kernel.writes, len(fakes.firewall.writes), len(fakes.host_firewall.writes))
    assert calls == len(fakes.engine.calls)


def test_drift_of_either_firewall_is_named_until_it_was_read(fakes: FakeHost) -> None:
    host = prepared(fakes, CONTAINER)
    done(host, *attaching())
    assert host.drifted() == ""
    fakes.firewall.flush(CONTAINER)
    assert CONTAINER in host.drifted()
    host.observe()
    assert host.drifted() == ""
    fakes.host_firewall.tamper()
    assert "host's firewall" in host.drifted()


def test_what_vanished_while_observed_is_left_out(fakes: FakeHost) -> None:
    host = prepared(fakes, CONTAINER)
    done(host, *attaching())
    fakes.engine.vanish(CONTAINER)
    fakes.dispatch()
    state = host.observe()
    assert (state.containers, state.ends, state.ports, state.container_policies) == ({}, {}, {}, {})
    errors = host.apply(attaching())
    assert all(errors)


def test_faults_of_the_fake_kernel_change_nothing(fakes: FakeHost) -> None:
    fakes.kernel.refuse_at = {0: "first", 2: "third"}
    errors = fakes.kernel.apply(
        [
            SetSysctl("net/ipv4/ip_forward", "1"),
            SetSysctl("net/ipv4/ip_forward", "0"),
            SetSysctl("net/ipv4/ip_forward", "1"),
        ],
        {},
    )
    assert errors == ["first", "", "third"]
    assert fakes.kernel.sysctls == {"net/ipv4/ip_forward": "0"}
    assert fakes.kernel.writes == 3


def test_policy_is_replaced_whole(fakes: FakeHost) -> None:
    host = prepared(fakes, CONTAINER)
    policy = ContainerPolicy("10.1.0.2", "10.1.0.1", inbound=frozenset({Opening("10.2.0.2", "icmp")}))
    done(host, SetContainerRules(CONTAINER, policy))
    done(host, SetContainerRules(CONTAINER, attrs.evolve(policy, inbound=frozenset())))
    assert host.observe().container_policies[CONTAINER].inbound == frozenset()
