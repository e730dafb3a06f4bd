from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from netctl.errors import KernelError, RefusedError, UnavailableError
from netctl.model import ANY_PORT, NodeDelta, NodeState, WireguardEnd
from netctl.wire.messages import (
    Applied,
    Failure,
    Hello,
    NodeOpenExec,
    NodeOpenLogs,
    Report,
    Reset,
    StreamCredit,
    StreamData,
    StreamEnd,
    Update,
)
from nodeagent.facts import node_facts, restricted
from nodeagent.helper_client import Helper
from nodeagent.helper_fake import LocalHelper
from nodeagent.host_side import RESYNC
from nodeagent.kernel_state import EngineContainer
from nodeagent.ops import Op, SetContainerRules, SetEnd, SetPort, StartContainer, StopContainer
from nodeagent.under_way import HOLD
from tests.support.agents import FULL_FACTS, REMOVED, FakeNode, Life, container, peer, permit, state

WEB, DB = container(2), container(3)
BASE = state([WEB], [peer(2)], [permit(WEB.address, "10.2.0.2", "80/tcp")])


@pytest.fixture
def node(tmp_path: Path) -> FakeNode:
    return FakeNode(tmp_path)


@pytest.fixture
def life(node: FakeNode) -> Iterator[Life]:
    made = Life(node)
    made.agent.begin()
    yield made
    made.agent.close()


def settled(life: Life, wanted: NodeState = BASE) -> Life:
    life.meet(1, 10, wanted)
    life.turn(4)
    assert life.link.applied.revision == 10
    return life


def test_a_node_comes_up_and_says_so(life: Life, node: FakeNode) -> None:
    settled(life)
    (hello,) = life.link.said(Hello)
    assert (hello.epoch, hello.revision, hello.digest) == (0, 0, "")
    assert hello.facts.encapsulations == ("gre", "vxlan")
    assert life.link.applied.errors == ()
    assert node.observed().containers[WEB.id] == EngineContainer("running", 1)
    # The state of a container is told before what waits for it.
    kinds = [type(message) for message in life.link.sent]
    assert kinds.index(Report) < kinds.index(Applied)
    assert life.link.said(Report)[-1].containers[-1].state == "running"


def test_applied_waits_for_a_container_that_comes_up(life: Life, node: FakeNode) -> None:
    node.engine.auto = False
    life.meet(1, 10, BASE)
    life.turn(3)
    assert life.link.said(Applied) == []
    node.engine.become(WEB.id, EngineContainer("created"))
    life.turn(3)
    assert life.link.said(Applied) == []
    node.engine.become(WEB.id, EngineContainer("running", 1))
    life.turn(2)
    assert life.link.applied.errors == ()


def test_applied_waits_for_a_start_only_so_long(life: Life, node: FakeNode) -> None:
    node.engine.auto = False
    life.meet(1, 10, BASE)
    life.turn(2)
    assert life.link.said(Applied) == []
    life.clock += HOLD
    life.turn(1)
    assert [error.subject for error in life.link.applied.errors] == [WEB.name]


def test_a_container_that_is_stopping_holds_nobody_up(life: Life, node: FakeNode) -> None:
    settled(life)
    node.engine.auto = False
    stopped = attrs.evolve(WEB, wanted="stopped")
    life.link.say(Update(1, 10, 11, NodeDelta(containers=(stopped,))))
    life.turn()
    assert life.link.applied.revision == 11
    assert [error.subject for error in life.link.applied.errors] == [WEB.name]
    life.link.say(Update(1, 11, 12, NodeDelta(permits=(permit(WEB.address, "10.2.0.9"),))))
    life.turn()
    assert life.link.applied.revision == 12
    # It is asked once, not at every turn.
    assert [call for call in node.engine.calls if call[0] == "stop"] == [("stop", WEB.id)]
    node.engine.become(WEB.id, EngineContainer("exited", 1, 143))
    life.turn()
    assert (life.link.applied.revision, life.link.applied.errors) == (12, ())


def test_a_command_that_cannot_start_is_an_error_once(life: Life, node: FakeNode) -> None:
    node.engine.auto = False
    life.meet(1, 10, BASE)
    node.engine.become(WEB.id, EngineContainer("created"))
    life.turn(2)
    node.engine.become(WEB.id, EngineContainer("failed", 1, 127, "no such file: sleep"))
    life.turn(2)
    (error,) = life.link.applied.errors
    assert error.subject == WEB.name
    assert "no such file" in error.message
    before = len(life.link.said(Applied))
    life.turn(3)
    assert len(life.link.said(Applied)) == before
    life.link.say(Update(1, 10, 11, NodeDelta(permits=(permit(WEB.address, "10.2.0.9"),))))
    life.turn()
    assert (life.link.applied.revision, life.link.applied.errors) == (11, ())
    assert [call[0] for call in node.engine.calls] == ["create", "start"]


def test_a_container_that_ended_is_reported_and_not_started_again(life: Life, node: FakeNode) -> None:
    settled(life)
    node.engine.end(WEB.id, 3)
    life.turn(2)
    (status,) = life.link.said(Report)[-1].containers
    assert (status.state, status.exit_code) == ("exited", 3)
    life.clock += RESYNC
    life.turn(2)
    assert [call[0] for call in node.engine.calls] == ["create", "start"]
    again = attrs.evolve(WEB, generation=2)
    life.link.say(Update(1, 10, 11, NodeDelta(containers=(again,))))
    life.turn(3)
    assert node.observed().containers[WEB.id] == EngineContainer("running", 2)


def test_a_container_whose_shim_was_killed_is_made_again(life: Life, node: FakeNode) -> None:
    settled(life)
    before = node.observed()
    node.engine.vanish(WEB.id)
    node.layer1.forget(WEB.id)
    life.turn(4)
    assert node.observed() == before


def test_what_failed_is_tried_again_at_once_then_ever_more_slowly(life: Life, node: FakeNode) -> None:
    settled(life)
    node.layer1.fail_next = ["no memory"] * 4
    life.link.say(Update(1, 10, 11, NodeDelta(permits=(permit(WEB.address, "10.2.0.9"),))))
    life.turn()
    (error,) = life.link.applied.errors
    assert (error.subject, error.message) == (WEB.name, "no memory")
    assert len(node.layer1.fail_next) == 2
    life.turn(3)
    assert len(node.layer1.fail_next) == 2
    life.clock += 0.5
    life.turn()
    assert len(node.layer1.fail_next) == 1
    life.clock += 0.5
    life.turn()
    assert len(node.layer1.fail_next) == 1
    life.clock += 0.5
    life.turn()
    assert node.layer1.fail_next == []
    assert life.link.applied.errors != ()
    life.clock += 2.0
    life.turn()
    assert (life.link.applied.revision, life.link.applied.errors) == (11, ())


def test_only_what_could_not_be_taken_away_is_a_leftover(life: Life, node: FakeNode) -> None:
    settled(life)
    opened = permit(WEB.address, "10.2.0.9")
    node.layer1.fail_next = ["no memory"] * 2
    life.link.say(Update(1, 10, 11, NodeDelta(permits=(opened,))))
    life.turn()
    assert (len(life.link.applied.errors), life.link.applied.leftovers) == (1, False)
    life.clock += 0.5
    life.turn()
    assert (life.link.applied.errors, life.link.applied.leftovers) == ((), False)
    node.layer1.fail_next = ["no memory"] * 2
    life.link.say(Update(1, 11, 12, NodeDelta(permits_removed=(opened,))))
    life.turn()
    assert (len(life.link.applied.errors), life.link.applied.leftovers) == (1, True)
    life.clock += 0.5
    life.turn()
    assert (life.link.applied.errors, life.link.applied.leftovers) == ((), False)


def test_no_link_comes_up_without_its_firewall(node: FakeNode) -> None:
    life = Life(node)
    life.agent.begin()
    node.layer1.fail_next = ["refused"] * 99
    life.meet(1, 10, BASE)
    life.turn(3)
    observed = node.observed()
    assert (observed.ports, observed.ends) == ({}, {})
    assert observed.containers[WEB.id].state == "created"
    assert life.link.applied.errors[0].subject == WEB.name
    node.layer1.fail_next = []
    life.clock += 1
    life.turn(3)
    assert node.observed().ports
    assert life.link.applied.errors == ()
    life.agent.close()


def test_an_operation_the_helper_refuses_costs_only_its_own_container(node: FakeNode) -> None:
    """A refusal is of a whole request: what another container needs must not be lost by it."""

    class Picky(LocalHelper):
        def apply(self, operations):  # noqa: ANN001, ANN202 - as LocalHelper's
            if any(getattr(op, "name", "") == "c2" for op in operations):
                raise KernelError("'a\\0b' is no text of a command")
            return super().apply(operations)

    life = Life(node, lambda: Picky(node.host))
    life.agent.begin()
    life.meet(1, 10, state([WEB, DB]))
    life.turn(4)
    assert node.observed().containers.keys() == {DB.id}
    assert node.observed().containers[DB.id].state == "running"
    assert [error.subject for error in life.link.applied.errors] == ["c2"]
    life.agent.close()


def test_drift_is_repaired(life: Life, node: FakeNode) -> None:
    settled(life)
    before = node.observed()
    node.layer1.flush(WEB.id)
    life.turn(2)
    node.layer2.tamper()
    life.turn(2)
    node.kernel.routes.clear()
    life.turn()
    assert node.observed() != before
    life.clock += RESYNC
    life.turn()
    assert node.observed() == before


def test_a_look_at_a_node_in_order_writes_nothing(life: Life, node: FakeNode) -> None:
    settled(life)
    writes, looks = node.kernel.writes, node.kernel.observations
    for _ in range(5):
        life.clock += RESYNC
        life.turn()
    assert node.kernel.observations == looks + 5
    assert node.kernel.writes == writes


def test_the_last_state_is_in_force_before_the_broker_is_there(node: FakeNode) -> None:
    life = Life(node)
    life.agent.begin()
    settled(life)
    before = node.observed()
    life.agent.close()
    fresh = FakeNode(node.directory)  # the host was started again: nothing is left of it but its disk
    again = Life(fresh)
    again.agent.begin()
    again.turn(3)
    assert fresh.observed() == before
    assert again.link.sent == []
    again.link.connect()
    again.turn()
    (hello,) = again.link.said(Hello)
    assert (hello.epoch, hello.revision) == (1, 10)
    assert [status.state for status in hello.containers] == ["running"]
    again.link.say(Update(1, 10, 14, NodeDelta()))
    again.turn()
    assert again.link.applied.revision == 14
    again.agent.close()


def test_a_lost_session_changes_nothing_and_the_next_one_is_told_again(life: Life, node: FakeNode) -> None:
    settled(life)
    writes = node.kernel.writes
    life.link.lose()
    life.turn(2)
    life.link.connect()
    life.turn()
    assert len(life.link.said(Hello)) == 2
    applied = len(life.link.said(Applied))
    life.link.say(Update(1, 10, 10, NodeDelta()))
    life.turn()
    assert len(life.link.said(Applied)) == applied + 1
    assert node.kernel.writes == writes


def test_a_gap_leads_to_one_hello(life: Life) -> None:
    settled(life)
    for number in (13, 14, 15):
        life.link.say(Update(1, number - 1, number, NodeDelta()))
    life.turn()
    assert len(life.link.said(Hello)) == 2
    assert life.link.applied.revision == 10
    life.link.say(Reset(1, 15, BASE))
    life.turn()
    assert life.link.applied.revision == 15


def test_updates_doubled_and_old_write_nothing(life: Life, node: FakeNode) -> None:
    settled(life)
    new = Update(1, 10, 11, NodeDelta(permits=(permit(WEB.address, "10.2.0.9", ANY_PORT),)))
    life.link.say(new)
    life.turn()
    writes = len(node.layer1.writes) + len(node.layer2.writes)
    for message in (
        new,
        new,
        Update(1, 9, 10, NodeDelta(containers_removed=(WEB.id,))),
        Reset(1, 9, REMOVED),
    ):
        life.link.say(message)
        life.turn()
    assert len(node.layer1.writes) + len(node.layer2.writes) == writes
    assert life.link.applied.revision == 11
    assert not life.agent.removed


def test_the_broker_that_does_not_know_the_node_changes_nothing(life: Life, node: FakeNode) -> None:
    settled(life)
    before = node.observed()
    life.link.say(Failure("unauthorised", "this key is no node's here"))
    life.turn(2)
    assert life.link.postponed == ["this key is no node's here"]
    assert node.observed() == before
    assert not life.agent.removed


def test_a_removed_node_takes_everything_out_and_says_so(life: Life, node: FakeNode) -> None:
    settled(life)
    life.link.say(Reset(1, 11, REMOVED))
    life.turn(2)
    assert life.agent.removed
    assert (life.link.applied.revision, life.link.applied.errors) == (11, ())
    observed = node.observed()
    assert (observed.bridge, observed.ports, observed.containers, observed.host_policy) == (
        None,
        {},
        {},
        None,
    )
    assert observed.sysctls == {"net/ipv4/ip_forward": "0"}


def test_a_removed_node_that_cannot_take_all_out_says_that(life: Life, node: FakeNode) -> None:
    settled(life)
    node.engine.fail("remove", "device busy", times=6)
    life.link.say(Reset(1, 11, REMOVED))
    life.turn(2)
    assert not life.agent.removed
    assert "device busy" in life.link.applied.errors[0].message
    life.clock += 1
    life.turn(2)
    assert life.agent.removed


class Mortal(LocalHelper):
    """A helper that dies when told to."""

    dead = False

    def apply(self, operations):  # noqa: ANN001, ANN201 - as LocalHelper's
        self._check()
        return super().apply(operations)

    def events(self):  # noqa: ANN201 - as LocalHelper's
        self._check()
        return super().events()

    def _check(self) -> None:
        if self.dead:
            raise UnavailableError("the privileged child is gone")


def test_a_helper_that_dies_is_started_again_and_nothing_is_lost(node: FakeNode) -> None:
    helpers: list[Mortal] = []

    def spawn() -> Helper:
        helpers.append(Mortal(node.host))
        return helpers[-1]

    life = Life(node, spawn)
    life.agent.begin()
    settled(life)
    helpers[-1].dead = True
    life.link.say(Update(1, 10, 11, NodeDelta(permits=(permit(WEB.address, "10.2.0.9"),))))
    life.turn(2)
    assert len(helpers) == 1
    assert life.link.applied.revision == 10
    life.clock += 1
    life.turn(2)
    assert len(helpers) == 2
    assert (life.link.applied.revision, life.link.applied.errors) == (11, ())
    assert len(helpers[1].applied) == 2
    life.agent.close()


def test_a_helper_that_does_not_start_is_tried_more_slowly(node: FakeNode) -> None:
    tries: list[float] = []
    life = Life(node, lambda: tries.append(life.clock) or Mortal(node.host))  # type: ignore[func-returns-value]
    life.agent.begin()
    settled(life)

    def refuse() -> Helper:
        tries.append(life.clock)
        raise UnavailableError("no memory")

    life.agent._host._spawn = refuse
    life.agent._host.helper.dead = True  # type: ignore[union-attr]
    tries.clear()
    for _ in range(400):
        life.clock += 0.1
        life.turn()
    pauses = [after - before for before, after in itertools.pairwise(tries)]
    assert len(tries) < 12
    assert pauses == sorted(pauses)
    life.agent.close()


def test_an_agent_that_cannot_begin_says_why(node: FakeNode) -> None:
    def spawn() -> Helper:
        raise UnavailableError("the privileged child cannot be started")

    life = Life(node, spawn)
    with pytest.raises(UnavailableError):
        life.agent.begin()
    life.agent.close()


def test_a_disk_that_takes_nothing_is_an_error_and_what_is_open_works(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled(life)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    life.link.say(Update(1, 10, 11, NodeDelta(permits=(permit(WEB.address, "10.2.0.9"),))))
    life.turn()
    (error,) = life.link.applied.errors
    assert "No space left" in error.message
    monkeypatch.undo()
    life.turn()
    assert (life.link.applied.revision, life.link.applied.errors) == (11, ())


def test_the_order_of_what_makes_a_container(node: FakeNode) -> None:
    done: list[Op] = []
    life = Life(node, lambda: node.helper(after=lambda _n, op: done.append(op)))
    life.agent.begin()
    settled(life)
    kinds = [type(op) for op in done if getattr(op, "container", "") == WEB.id]
    assert kinds[1:] == [SetContainerRules, SetPort, SetEnd, StartContainer]
    done.clear()
    life.link.say(Update(1, 10, 11, NodeDelta(containers=(attrs.evolve(WEB, generation=2),))))
    life.turn(3)
    assert [type(op) for op in done] == [StopContainer, StartContainer]
    life.agent.close()


# --- streams through the agent ----------------------------------------------------------------------


def streamed(life: Life, channel: int) -> bytes:
    return b"".join(m.data for m in life.link.said(StreamData) if m.channel == channel)


def test_a_command_in_a_container(life: Life, node: FakeNode) -> None:
    settled(life)
    life.link.say(NodeOpenExec(7, WEB.id, ("cat",)))
    life.turn()
    ((handle, command),) = node.engine.execs.items()
    life.link.say(StreamData(7, 0, b"hello"))
    life.link.say(StreamData(7, 0, eof=True))
    life.turn(2)
    assert os.read(command.stdin, 99) == b"hello"
    assert os.read(command.stdin, 99) == b""
    assert sum(m.credit for m in life.link.said(StreamCredit)) == 5
    os.write(command.stdout, b"out")
    os.write(command.stderr, b"err")
    node.engine.end_exec(handle, 3)
    life.turn(4)
    assert (streamed(life, 1), streamed(life, 2)) == (b"out", b"err")
    (end,) = life.link.said(StreamEnd)
    assert (end.stream, end.exit_code) == (7, 3)
    assert [type(m) for m in life.link.sent][-1] is StreamEnd


def test_a_command_of_a_user_who_went_away_is_killed(life: Life, node: FakeNode) -> None:
    settled(life)
    life.link.say(NodeOpenExec(7, WEB.id, ("cat",)))
    life.turn()
    (command,) = node.engine.execs.values()
    life.link.say(StreamEnd(7))
    life.turn(2)
    assert command.killed
    life.link.say(NodeOpenExec(8, WEB.id, ("cat",)))
    life.turn()
    (other,) = node.engine.execs.values()
    life.link.lose()
    life.turn(2)
    assert other.killed


def test_a_command_where_there_is_no_container(life: Life) -> None:
    settled(life)
    life.link.say(NodeOpenExec(7, DB.id, ("cat",)))
    life.link.say(NodeOpenLogs(8, DB.id))
    life.turn()
    ends = life.link.said(StreamEnd)
    assert [end.stream for end in ends] == [7, 8]
    assert all(end.exit_code is None and "not on this node" in end.message for end in ends)


def test_output_followed_until_the_container_ends(life: Life, node: FakeNode) -> None:
    settled(life)
    life.link.say(NodeOpenLogs(5, WEB.id, follow=True))
    life.turn(3)
    assert life.link.said(StreamEnd) == []
    node.engine.end(WEB.id, 0)
    life.turn()
    life.clock += 1
    life.turn(3)
    assert [end.stream for end in life.link.said(StreamEnd)] == [5]


# --- facts ------------------------------------------------------------------------------------------


def test_what_the_operator_allows_of_encapsulations() -> None:
    assert restricted(FULL_FACTS, ()).encapsulations == ("gre", "vxlan")
    assert restricted(FULL_FACTS, ("direct",)).encapsulations == ("direct",)
    assert restricted(FULL_FACTS, ("vxlan", "wireguard", "gre")).encapsulations == ("vxlan", "gre")
    only_vxlan = attrs.evolve(FULL_FACTS, encapsulations=("vxlan", "direct"))
    assert restricted(only_vxlan, ()).encapsulations == ("vxlan",)
    with pytest.raises(RefusedError, match="no gre or wireguard"):
        restricted(only_vxlan, ("gre", "wireguard"))


def test_keys_are_told_only_where_the_operator_allows_wireguard() -> None:
    end = WireguardEnd(1, "ab" * 32, 51821)
    able = attrs.evolve(FULL_FACTS, encapsulations=("gre", "vxlan", "wireguard", "direct"), wireguard=(end,))
    assert restricted(able, ()).encapsulations == ("gre", "vxlan", "wireguard")
    assert node_facts(restricted(able, ())).wireguard == (end,)
    assert node_facts(restricted(able, ("gre", "vxlan"))).wireguard == ()


def test_a_host_without_firewalls_offers_no_engine() -> None:
    assert node_facts(FULL_FACTS).engines == ("process",)
    facts = node_facts(attrs.evolve(FULL_FACTS, host_firewall="the kernel has no nft_bridge"))
    assert facts.engines == ()
    assert facts.firewall == "none: the kernel has no nft_bridge"
