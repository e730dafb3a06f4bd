"""What the container engines were asked for and have not answered by an event yet."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Final

import attrs

from netctl.model import PlacedContainer
from netctl.wire.messages import NodeError
from nodeagent.kernel_state import DOCKER, EngineContainer
from nodeagent.ops import CreateContainer, Op, RemoveContainer, StartContainer, StopContainer
from nodeagent.target import ENDED

PATIENCE: Final = 30.0
"""Seconds after which an engine that did not answer is asked again."""
HOLD: Final = 8.0
"""Seconds a start may take before what else was wanted is reported as done without it."""
FIRST_REST: Final = 5.0
LAST_REST: Final = 300.0
"""Seconds before a container that could not be made is tried again: doubled from the first to the last."""

EngineOp = CreateContainer | StartContainer | StopContainer | RemoveContainer

_DOING: Final[Mapping[type, str]] = {
    CreateContainer: "has not come up yet",
    StartContainer: "has not come up yet",
    StopContainer: "is still stopping",
    RemoveContainer: "is still being removed",
}


@attrs.frozen
class _Asked:
    """Something an engine was asked for.

    Attributes:
        name: The container's.
        slow: Its engine takes its own time, so that nothing else waits for it.
    """

    operation: EngineOp
    at: float
    name: str
    slow: bool


@attrs.frozen
class _Rest:
    """A container that could not be made is left alone for a while; `over` once it may be tried again."""

    until: float
    seconds: float
    over: bool = False


class UnderWay:
    """All that is under way in the engines of one host.

    Args:
        monotonic: Seconds of a clock that is never set.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._asked: dict[str, _Asked] = {}
        self._rests: dict[str, _Rest] = {}

    def __contains__(self, container: object) -> bool:
        return container in self._asked

    def ask(self, operation: EngineOp, name: str, *, slow: bool) -> None:
        """An engine was asked for `operation` of the container called `name`."""
        self._asked[operation.container] = _Asked(operation, self._monotonic(), name, slow)

    def hear(self, container: str, seen: EngineContainer | None) -> bool:
        """Take what an engine says of a container; return whether that answers what it was asked for."""
        if seen is None or seen.state != "failed":
            if seen is not None and seen.state != "creating":
                self._rests.pop(container, None)
        elif seen.generation == 0:
            before = self._rests.get(container)
            seconds = FIRST_REST if before is None else min(LAST_REST, before.seconds * 2)
            self._rests[container] = _Rest(self._monotonic() + seconds, seconds)
        asked = self._asked.get(container)
        if asked is None or not _answered(asked.operation, seen):
            return False
        del self._asked[container]
        return True

    def want(self, before: PlacedContainer | None, now: PlacedContainer | None) -> None:
        """A container is wanted otherwise than before: one that its user starts again is tried at once."""
        if before is not None and now is not None and now.generation > before.generation:
            self._rests.pop(now.id, None)

    def look(self, containers: Mapping[str, EngineContainer]) -> None:
        """Take what a look at the whole host showed: an event may have been missed."""
        for container, asked in list(self._asked.items()):
            if _answered(asked.operation, containers.get(container)):
                del self._asked[container]

    def forget(self, container: str) -> None:
        """The container is gone."""
        self._asked.pop(container, None)
        self._rests.pop(container, None)

    def clear(self) -> None:
        """All containers are gone."""
        self._asked.clear()
        self._rests.clear()

    def puts_off(self, operation: Op, kept: Container[str]) -> bool:
        """Tell whether an operation is to be left for later.

        So is what an engine was asked for not long ago, and what would make a container again that could not
        be made a moment ago.

        Args:
            operation: Planned.
            kept: Ids of the containers that should be here.
        """
        if not isinstance(operation, EngineOp):
            return False
        container = operation.container
        asked, rest = self._asked.get(container), self._rests.get(container)
        if asked is not None and asked.operation == operation and self._monotonic() - asked.at < PATIENCE:
            return True
        resting = rest is not None and not rest.over
        return resting and isinstance(operation, RemoveContainer) and container in kept

    def rested(self) -> tuple[str, ...]:
        """Return the containers that may be tried again from now on."""
        now = self._monotonic()
        ready = tuple(c for c, rest in self._rests.items() if rest.until <= now and not rest.over)
        for container in ready:
            self._rests[container] = attrs.evolve(self._rests[container], over=True)
        return ready

    @property
    def holds(self) -> bool:
        """Whether something is coming up that everything else waits for."""
        return any(self._held(asked) for asked in self._asked.values())

    def _held(self, asked: _Asked) -> bool:
        coming = isinstance(asked.operation, CreateContainer | StartContainer) and not asked.slow
        return coming and self._monotonic() - asked.at < HOLD

    def removing(self, kept: Container[str]) -> bool:
        """Tell whether a container that is not among those `kept` is going, and not gone."""
        return any(
            isinstance(asked.operation, RemoveContainer) and container not in kept
            for container, asked in self._asked.items()
        )

    def deadlines(self) -> list[float]:
        """Return when (monotonic) this has something new to say by itself."""
        holding = [asked.at + HOLD for asked in self._asked.values() if self._held(asked)]
        return holding + [rest.until for rest in self._rests.values() if not rest.over]

    def errors(self) -> Iterable[NodeError]:
        """Yield what is not as it should be yet."""
        for asked in self._asked.values():
            text = f"{asked.name} {_DOING[type(asked.operation)]}"
            yield NodeError(asked.name, text, under_way=asked.slow)


def is_slow(operation: EngineOp, seen: EngineContainer | None) -> bool:
    """Tell whether the engine of a container takes its own time, and ends even a removal by an event.

    Args:
        operation: What it is asked for.
        seen: What it said of the container last.
    """
    if isinstance(operation, CreateContainer):
        return operation.workload.engine == DOCKER
    return seen is not None and seen.removes_later


def _answered(operation: EngineOp, seen: EngineContainer | None) -> bool:
    """Tell whether what an engine says of a container is the answer to what it was asked for."""
    if seen is None:
        return True
    if isinstance(operation, RemoveContainer):
        return False
    if isinstance(operation, CreateContainer):
        return seen.state != "creating"
    if isinstance(operation, StartContainer):
        return seen.generation >= operation.generation or seen.state in ("failed", "unknown")
    return seen.state in ENDED
