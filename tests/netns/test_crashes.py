"""A crash at a sample of operations on the real kernel: the next run ends where one without the crash ends.

The whole is tests/scenarios/test_agent_crashes.py, over the fakes. Here kernel, firewalls and engine are
real, and beside the observed state what the kernel's own tools list is compared.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import attrs
import pytest

from firewall_rules.backends.namespaces import generation_socket, inside, stamp
from netctl.delta import apply_delta
from netctl.model import NodeDelta, NodeState
from netctl.wire.messages import Reset, Update
from nodeagent.engine.process import ProcessEngine
from nodeagent.kernel.fake import CrashError
from nodeagent.kernel_state import HostState
from nodeagent.ops import Op
from tests.support.agents import REMOVED, container, peer, permit, state
from tests.support.netns import Namespace, wait_for
from tests.support.real_node import Notices, RealLife, RealNode, real_id

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

EPOCH = 1
WEB, DB = container(2, id=real_id(2)), container(3, id=real_id(3))
FAR = "10.2.0.2"
BASE = state([WEB], [peer(2, "vxlan")], [permit(WEB.address, FAR, "80/tcp")], encapsulation="vxlan", mtu=1450)
BOTH = attrs.evolve(BASE, containers={WEB.id: WEB, DB.id: DB})
LINKED = attrs.evolve(
    BOTH, permits=BASE.permits | {permit(WEB.address, DB.address), permit(FAR, DB.address, "53/udp")}
)

COMMANDS: dict[str, tuple[NodeState | None, NodeDelta | NodeState]] = {
    "attach": (BASE, NodeDelta(containers=(DB,))),
    "detach": (
        LINKED,
        NodeDelta(containers_removed=(DB.id,), permits_removed=tuple(LINKED.permits - BASE.permits)),
    ),
    "connect": (BOTH, NodeDelta(permits=(permit(WEB.address, DB.address),))),
    "disconnect": (LINKED, NodeDelta(permits_removed=(permit(WEB.address, DB.address),))),
    "node join": (None, BOTH),
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

EVERY = {"node join": 3, "node leave": 2}
"""Of the longest commands every n-th operation only; of all others every one."""

Make = Callable[[], Namespace]
When = Literal["before", "after"]
WHEN: tuple[When, ...] = ("before", "after")
Crash = tuple[int, When]


class World:
    """One node, from the state before a command through a crash to the end."""

    def __init__(self, directory: Path, make: Make, command: str) -> None:
        self.node = RealNode(directory, make)
        before, said = COMMANDS[command]
        if isinstance(said, NodeState):
            self.newest, self.message = said, Reset(EPOCH, 2, said)
        else:
            assert before is not None
            self.newest = apply_delta(before, said)
            self.message: Reset | Update = Update(EPOCH, 1, 2, said)
        if before is not None:
            with RealLife(self.node) as life:
                life.agent.begin()
                life.link.connect()
                life.link.say(Reset(EPOCH, 1, before))
                life.until_applied(1)

    def crash(self, crash: Crash) -> Op:
        """Hear the command, and end too early; return the operation it ended at."""
        ended: list[Op] = []

        def at(when: When) -> Callable[[int, Op], None]:
            def hook(number: int, operation: Op) -> None:
                if crash == (number, when):
                    ended.append(operation)
                    raise CrashError

            return hook

        with contextlib.suppress(CrashError), RealLife(self.node, at("before"), at("after")) as life:
            life.agent.begin()
            life.link.connect()
            life.link.say(self.message)
            life.until_applied(2)
        assert ended, "it did not crash"
        return ended[0]

    def finish(self, *, broker: bool = True, told: bool = True) -> tuple[HostState, frozenset[str], int]:
        """Live until all is done; return what is observed, what is listed, and how many operations it took.

        Args:
            broker: There is one; else the agent has what is on its disk.
            told: The command comes in this life; else the broker tells what it would tell anyone.
        """
        with RealLife(self.node) as life:
            life.agent.begin()
            if broker:
                life.link.connect()
                life.link.say(self.message if told else Reset(EPOCH, 2, self.newest))
                life.until_applied(2)
            else:
                life.until_settled()
            return life.observed(), life.raw(), life.operations


@pytest.fixture
def world(tmp_path: Path, namespaces: Make) -> Iterator[Callable[[str, str], World]]:
    made: list[World] = []

    def make(name: str, command: str) -> World:
        made.append(World(tmp_path / name, namespaces, command))
        return made[-1]

    yield make
    for one in made:
        one.node.clear()


def crash_everywhere(
    world: Callable[[str, str], World], command: str, choose: Callable[[int], Iterable[tuple[Crash, bool]]]
) -> tuple[int, int]:
    """Crash at what `choose` makes of the number of operations; return that number and that of the crashes.

    It chooses, with each crash, whether there is a broker in the life that mends it: what is on the disk is
    as good as what it would say.
    """
    whole = world("whole", command)
    observed, raw, operations = whole.finish()
    whole.node.clear()
    assert operations > 0
    crashes = list(choose(operations))
    for crash, broker in crashes:
        one = world(f"{crash[0]}-{crash[1]}-{broker}", command)
        operation = one.crash(crash)
        seen, listed, _ = one.finish(broker=broker, told=False)
        assert seen == observed, (crash, operation)
        assert listed == raw, (crash, operation)
        one.node.clear()
    return operations, len(crashes)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_crash_leaves_nothing_that_the_next_run_does_not_mend(
    world: Callable[[str, str], World], command: str, record_property: Callable[[str, object], None]
) -> None:
    def sample(operations: int) -> Iterator[tuple[Crash, bool]]:
        yield (0, "before"), True
        for turn, number in enumerate(range(0, operations, EVERY.get(command, 1))):
            yield (number, "after"), turn % 2 == 1

    operations, crashes = crash_everywhere(world, command, sample)
    record_property("crash", "at a sample of operations")
    record_property("command", command)
    record_property("operations", operations)
    record_property("crashes", crashes)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_crash_at_every_operation_leaves_nothing_that_the_next_run_does_not_mend(
    world: Callable[[str, str], World], command: str, record_property: Callable[[str, object], None]
) -> None:
    def all_of_them(operations: int) -> Iterator[tuple[Crash, bool]]:
        for number, when, broker in itertools.product(range(operations), WHEN, (True, False)):
            yield (number, when), broker

    operations, crashes = crash_everywhere(world, command, all_of_them)
    record_property("crash", "at every operation")
    record_property("command", command)
    record_property("operations", operations)
    record_property("crashes", crashes)


def test_an_agent_started_again_with_nothing_changed_writes_nothing(
    world: Callable[[str, str], World],
) -> None:
    one = world("node", "connect")
    _, before, operations = one.finish()
    assert operations > 0

    def quiet() -> bool:
        return not any(notices.told() for notices in listening)

    with contextlib.ExitStack() as stack:
        # As a second engine sees them: the agent's own has not begun, and ends with it.
        engine = ProcessEngine(one.node.state, root=True)
        stack.callback(engine.close)
        spaces = [one.node.namespace.fd, *(engine.namespace(each) for each in engine.containers())]
        assert len(spaces) == 3
        listening = [stack.enter_context(Notices(space)) for space in spaces]
        generations = [stack.enter_context(_asking(space)) for space in spaces]
        # The kernel has its own to tell for a while, as that an IPv6 address is nobody else's.
        wait_for(lambda: not _tentative(one.node.namespace) and quiet(), 30, "silence")
        stamps = [stamp(asked) for asked in generations]
        for broker in (True, False):
            with RealLife(one.node) as life:
                life.agent.begin()
                if broker:
                    life.link.connect()
                    life.link.say(Reset(EPOCH, 2, one.newest))
                    life.until_applied(2)
                else:
                    life.until_settled()
                assert [helper.applied for helper in life.helpers] == [[]]
            assert [notices.told() for notices in listening] == [[], [], []]
        assert [stamp(asked) for asked in generations] == stamps
        _, after, operations = one.finish(told=False)
        assert operations == 0
        assert after == before
        assert quiet()

        # The control: what an agent does write is heard and counted.
        with RealLife(one.node) as life:
            life.agent.begin()
            life.link.connect()
            life.link.say(Reset(EPOCH, 3, BOTH))
            life.until_applied(3)
        assert all(notices.told() for notices in listening)
        assert all(stamp(asked) != known for asked, known in zip(generations, stamps, strict=True))


def _asking(namespace: int) -> socket.socket:
    with inside(namespace):
        return generation_socket()


def _tentative(namespace: Namespace) -> bool:
    return "tentative" in namespace.ip("-6", "addr", "show")
