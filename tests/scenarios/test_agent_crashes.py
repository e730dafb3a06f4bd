"""A crash at every operation of every command: the next run ends where a run without the crash ends.

Exhaustive on the fakes: before and after each operation, and again in the run that recovers. The agent is
the real one, with its directory; what a crash leaves of it is what is in the fakes and on the disk.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import attrs
import pytest

from netctl.delta import apply_delta
from netctl.model import NodeDelta, NodeState
from netctl.wire.messages import Reset, Update
from nodeagent.helper_client import Helper
from nodeagent.kernel.fake import CrashError
from nodeagent.kernel_state import HostState
from nodeagent.ops import Op
from tests.support.agents import REMOVED, FakeNode, Life, container, peer, permit, state

EPOCH = 1
WEB, DB = container(2), container(3)
FAR = "10.2.0.2"
BASE = state([WEB], [peer(2)], [permit(WEB.address, FAR, "80/tcp")])
BOTH = attrs.evolve(BASE, containers={WEB.id: WEB, DB.id: DB})
LINKED = attrs.evolve(
    BOTH, permits=BASE.permits | {permit(WEB.address, DB.address), permit(FAR, DB.address, "53/udp")}
)

COMMANDS: dict[str, tuple[NodeState | None, NodeDelta | NodeState]] = {
    "attach": (BASE, NodeDelta(containers=(DB,))),
    "attach with connections": (
        BASE,
        NodeDelta(containers=(DB,), permits=tuple(sorted(LINKED.permits - BASE.permits))),
    ),
    "detach": (
        LINKED,
        NodeDelta(containers_removed=(DB.id,), permits_removed=tuple(LINKED.permits - BASE.permits)),
    ),
    "connect": (BOTH, NodeDelta(permits=(permit(WEB.address, DB.address),))),
    "connect far": (BOTH, NodeDelta(permits=(permit(FAR, DB.address, "53/udp"),))),
    "disconnect": (LINKED, NodeDelta(permits_removed=(permit(WEB.address, DB.address),))),
    "stop": (BOTH, NodeDelta(containers=(attrs.evolve(DB, wanted="stopped"),))),
    "restart": (BOTH, NodeDelta(containers=(attrs.evolve(DB, generation=2),))),
    "node join": (None, LINKED),
    "another node joins": (
        LINKED,
        NodeDelta(
            header=attrs.evolve(
                LINKED, closed=(*LINKED.closed, "192.0.2.3/32"), peers={}, containers={}, permits=frozenset()
            ),
            peers=(peer(3, "vxlan"),),
        ),
    ),
    "another node leaves": (
        LINKED,
        NodeDelta(peers_removed=("n2",), permits_removed=(permit(FAR, DB.address, "53/udp"),)),
    ),
    "node leave": (LINKED, REMOVED),
}
"""What is there before, and what the broker then says."""

When = Literal["before", "after"]
Crash = tuple[int, When]


class World:
    """One node, from the state before a command through crashes to the end."""

    def __init__(self, directory: Path, command: str) -> None:
        directory.mkdir()
        self.node = FakeNode(directory)
        before, said = COMMANDS[command]
        if before is not None:
            life = Life(self.node)
            life.agent.begin()
            life.meet(EPOCH, 1, before)
            life.turn(3)
            life.agent.close()
        if isinstance(said, NodeState):
            self.newest = said
            self.message: Reset | Update = Reset(EPOCH, 2, said)
        else:
            assert before is not None
            self.newest = apply_delta(before, said)
            self.message = Update(EPOCH, 1, 2, said)

    def run(self, crash: Crash | None, *, broker: bool = True, told: bool = True) -> int | None:
        """Live one life of the agent; return its number of operations, or None where it crashed.

        Args:
            crash: Where it ends too early.
            broker: There is one; else the agent has what is on its disk.
            told: The command comes in this life; else the broker tells what it would tell anyone.
        """
        helpers: list[Helper] = []

        def at(when: When) -> Callable[[int, Op], None]:
            def hook(number: int, _operation: Op) -> None:
                if crash == (number, when):
                    raise CrashError

            return hook

        def spawn() -> Helper:
            helpers.append(self.node.helper(at("before"), at("after")))
            return helpers[-1]

        life = Life(self.node, spawn)
        try:
            life.agent.begin()
            if broker:
                life.link.connect()
                life.turn()
                # The broker sends the whole where it cannot know what the agent holds.
                life.link.say(self.message if told else Reset(EPOCH, 2, self.newest))
                life.turn(4)
                assert life.link.applied.revision == 2
                assert life.link.applied.errors == ()
            else:
                life.turn(4)
            done = sum(len(helper.applied) for helper in helpers)  # type: ignore[attr-defined]
        except CrashError:
            done = None
        life.agent.close()
        return done


def codeless(observed: HostState) -> HostState:
    plain = {i: attrs.evolve(c, exit_code=None) for i, c in observed.containers.items()}
    return attrs.evolve(observed, containers=plain)


def finished(directory: Path, command: str) -> tuple[HostState, int]:
    world = World(directory, command)
    operations = world.run(None)
    assert operations is not None
    return codeless(world.node.observed()), operations


@pytest.mark.parametrize("command", COMMANDS)
def test_a_crash_at_every_operation_leaves_nothing_that_the_next_run_does_not_mend(
    tmp_path: Path, command: str, record_property: Callable[[str, object], None]
) -> None:
    expected, operations = finished(tmp_path / "whole", command)
    assert operations > 0
    runs = 0
    for number, when in itertools.product(range(operations), ("before", "after")):
        for broker in (True, False):
            world = World(tmp_path / f"{number}-{when}-{broker}", command)
            assert world.run((number, when)) is None, "it did not crash"
            world.run(None, broker=broker, told=False)
            assert codeless(world.node.observed()) == expected, (number, when, broker)
            if command != "node leave":
                # Once more: nothing is left to do. A node that left deletes its tables to be sure.
                assert world.run(None, broker=broker, told=False) == 0
            runs += 1
    record_property("crash", "at every operation")
    record_property("command", command)
    record_property("operations", operations)
    record_property("crashes", runs)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_crash_of_the_run_that_mends_a_crash_is_mended_too(
    tmp_path: Path, command: str, record_property: Callable[[str, object], None]
) -> None:
    expected, operations = finished(tmp_path / "whole", command)
    names, runs = itertools.count(), 0
    for first in itertools.product(range(operations), ("before", "after")):
        second = 0
        while True:
            world = World(tmp_path / str(next(names)), command)
            assert world.run(first) is None  # type: ignore[arg-type]
            crashed = world.run((second, "after"), told=False) is None
            world.run(None, told=False)
            assert codeless(world.node.observed()) == expected, (first, second)
            if not crashed:
                break
            second += 1
            runs += 1
    record_property("crash", "again in the run that mends the first")
    record_property("command", command)
    record_property("operations", operations)
    record_property("crashes", runs)


def test_an_agent_started_again_with_nothing_changed_writes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path / "node", "connect")
    assert world.run(None)
    kernel, calls = world.node.kernel.writes, list(world.node.engine.calls)
    firewall = len(world.node.layer1.writes) + len(world.node.layer2.writes)
    for broker in (True, False):
        assert world.run(None, broker=broker, told=False) == 0
    assert world.node.kernel.writes == kernel
    assert world.node.engine.calls == calls
    assert len(world.node.layer1.writes) + len(world.node.layer2.writes) == firewall
