"""A crash at every operation that Docker's endpoints lead to: the next run ends where one without it ends.

Exhaustive on the fakes, as in `test_agent_crashes`. What the driver keeps is on a disk that outlives the
agent, Docker's namespaces are there or come, and every helper watches them anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import attrs
import pytest

from firewall_rules import names
from netctl.model import NodeState
from netctl.wire.messages import Reset
from nodeagent.endpoints import Endpoint, Endpoints
from nodeagent.helper_client import Helper
from nodeagent.kernel.fake import CrashError
from nodeagent.kernel_state import HostState
from nodeagent.ops import Op, WatchSandbox
from tests.support.agents import REMOVED, container, permit, state
from tests.support.docker_nodes import (
    DockerLife,
    DockerNode,
    FakeDriver,
    endpoint,
    endpoints,
    foreign,
    placed_by_docker,
    published,
)

EPOCH = 1
WEB, DB, PLAIN = foreign(2), placed_by_docker(3), container(4)
WEB_END, DB_END = endpoint(2, publications=(published(2),)), endpoint(3, internal=True)
ALL = state([WEB, DB, PLAIN], permits=[permit(WEB.address, DB.address), permit(PLAIN.address, WEB.address)])
NOTHING = Endpoints()


@attrs.frozen
class Moment:
    """What the broker wants, what Docker asked for, and which namespaces are there."""

    wanted: NodeState
    endpoints: Endpoints = NOTHING
    there: frozenset[str] = frozenset()


def joined(*found: Endpoint) -> Endpoints:
    return endpoints(*found)


BOTH_THERE = frozenset({WEB_END.sandbox, DB_END.sandbox})
UP = Moment(ALL, joined(WEB_END, DB_END), BOTH_THERE)
CHANGES: dict[str, tuple[Moment, Moment]] = {
    "docker run": (Moment(ALL), Moment(ALL, joined(WEB_END), frozenset({WEB_END.sandbox}))),
    "a join, before its namespace": (Moment(ALL), Moment(ALL, joined(WEB_END))),
    "a namespace comes": (Moment(ALL, joined(WEB_END)), Moment(ALL, joined(WEB_END), BOTH_THERE)),
    "docker stop": (UP, Moment(ALL, joined(DB_END), frozenset({DB_END.sandbox}))),
    "docker restart": (
        UP,
        Moment(
            ALL,
            joined(DB_END, endpoint(2, key="f" * 32, sandbox="abcdef012345")),
            frozenset({DB_END.sandbox, "abcdef012345"}),
        ),
    ),
    "recorded late": (Moment(state([DB, PLAIN]), joined(WEB_END, DB_END), BOTH_THERE), UP),
    "disconnect": (UP, attrs.evolve(UP, wanted=attrs.evolve(ALL, permits=frozenset()))),
    "removed from the record": (UP, attrs.evolve(UP, wanted=state([DB, PLAIN], permits=ALL.permits))),
    "netctl rm": (
        UP,
        Moment(state([WEB, PLAIN]), joined(WEB_END), frozenset({WEB_END.sandbox})),
    ),
    "node leave": (UP, attrs.evolve(UP, wanted=REMOVED)),
}
"""What is there before, and what then is to be."""

When = Literal["before", "after"]
Crash = tuple[int, When]


class World:
    """One node, from one moment through crashes to the next."""

    def __init__(self, directory: Path, change: str) -> None:
        directory.mkdir()
        self.node = DockerNode(directory)
        self.before, self.after = CHANGES[change]
        assert self.run(None, self.before, 1) is not None

    def run(self, crash: Crash | None, moment: Moment | None = None, revision: int = 2) -> int | None:
        """Live one life of the agent; return its number of operations, or None where it crashed.

        To watch a namespace changes nothing, and is not counted.
        """
        moment = self.after if moment is None else moment
        helpers: list[Helper] = []

        def at(when: When) -> Callable[[int, Op], None]:
            def hook(number: int, _operation: Op) -> None:
                if crash == (number, when):
                    raise CrashError

            return hook

        def spawn() -> Helper:
            helpers.append(self.node.helper(at("before"), at("after")))
            return helpers[-1]

        for name in {*self.node.folder.namespaces} - moment.there:
            self.node.folder.end(name)
        life = DockerLife(self.node, FakeDriver(endpoints=moment.endpoints), spawn)
        try:
            life.agent.begin()
            life.link.connect()
            life.turn()
            life.link.say(Reset(EPOCH, revision, moment.wanted))
            life.turn(2)
            for name in sorted(moment.there - {*self.node.folder.namespaces}):
                self.node.folder.make(name)
            life.turn(4)
            # A removal by Docker is looked for again after a while.
            life.clock += 60
            life.turn(4)
            assert life.link.applied.errors == ()
            assert not life.link.applied.leftovers
            done = sum(
                not isinstance(operation, WatchSandbox)
                for helper in helpers
                for operation in helper.applied  # type: ignore[attr-defined]
            )
        except CrashError:
            done = None
        life.agent.close()
        return done

    def operations(self) -> int:
        """Return how many operations there are to crash at, those that only watch included."""
        for number in itertools.count():
            world = World(self.node.directory.with_name(f"{self.node.directory.name}-{number}"), self.name)
            if world.run((number, "before")) is not None:
                return number
        raise AssertionError

    @property
    def name(self) -> str:
        return next(name for name, change in CHANGES.items() if change == (self.before, self.after))


def plain(observed: HostState) -> HostState:
    containers = {i: attrs.evolve(c, exit_code=None) for i, c in observed.containers.items()}
    return attrs.evolve(observed, containers=containers)


@pytest.mark.parametrize("change", CHANGES)
def test_a_crash_at_every_operation_leaves_nothing_that_the_next_run_does_not_mend(
    tmp_path: Path, change: str
) -> None:
    whole = World(tmp_path / "whole", change)
    assert whole.run(None) is not None
    expected = plain(whole.node.observed())
    far_ends = whole.node.kernel.far_ends
    operations = World(tmp_path / "count", change).operations()
    assert operations > 0
    for number, when in itertools.product(range(operations), ("before", "after")):
        world = World(tmp_path / f"{number}-{when}", change)
        assert world.run((number, when)) is None, "it did not crash"
        world.run(None)
        assert plain(world.node.observed()) == expected, (number, when)
        assert world.node.kernel.far_ends == far_ends
        if change != "node leave":
            # Once more: nothing is left to do. A node that left deletes its tables to be sure.
            assert world.run(None) == 0


@pytest.mark.parametrize("change", CHANGES)
def test_a_crash_opens_nothing_that_is_not_open_in_the_end_or_was_at_first(
    tmp_path: Path, change: str
) -> None:
    """At no crash is a port open without layer 1 in its namespace."""
    operations = World(tmp_path / "count", change).operations()
    for number, when in itertools.product(range(operations), ("before", "after")):
        world = World(tmp_path / f"{number}-{when}", change)
        assert world.run((number, when)) is None
        policy = world.node.layer2.table.host
        if policy is None:
            continue
        found = [*world.before.endpoints.by_key.values(), *world.after.endpoints.by_key.values()]
        for one in found:
            device = names.port_device(one.key)
            is_open = device in world.node.kernel.ports and any(
                binding.device == device for binding in policy.bindings
            )
            there = one.sandbox in world.node.folder.namespaces
            table = world.node.layer1.tables.get(one.key)
            assert not (is_open and there) or (table is not None and table.container is not None)
