"""What is known of the broker's Docker containers, on the main thread."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from nodeagent.engine.base import Changed
from nodeagent.engine.docker_records import Records
from nodeagent.engine.docker_spec import Creation
from nodeagent.engine.docker_watch import Listed, OursChanged
from nodeagent.kernel_state import EngineContainer

UNKNOWN: Final = EngineContainer("unknown")


@attrs.define
class Box:
    """One container.

    Attributes:
        docker_id: Docker's; empty: not known (yet).
        creation: What it is made from, if it was made in this life.
        making: A job is at it that may make it.
        unmade: It could not be made, so Docker has none of it.
        going: It is being removed.
        lost: An answer about it never came: what is heard next is told even if it is nothing new.
        looking: A look at it waits already.
        refused: Why Docker did not remove it when it was asked; empty: it was not, or did not refuse.
        cancelled: What is being done to make it is not wanted any more.
    """

    seen: EngineContainer
    docker_id: str = ""
    creation: Creation | None = None
    making: bool = False
    unmade: bool = False
    going: bool = False
    lost: bool = False
    looking: bool = False
    refused: str = ""
    cancelled: threading.Event = attrs.field(factory=threading.Event)


class Boxes:
    """All of them, by the container's id. At first those of which there is a record, their states unknown.

    Args:
        records: Which of them there are, beyond our life.

    Attributes:
        changed: Told of every change.
    """

    def __init__(self, records: Records) -> None:
        self._records = records
        self._boxes = {container: Box(UNKNOWN) for container in records.containers()}
        self._seen: dict[str, EngineContainer] = dict.fromkeys(self._boxes, UNKNOWN)
        self.changed: Changed = no_one

    def seen(self) -> Mapping[str, EngineContainer]:
        """Return the states of all."""
        return MappingProxyType(self._seen)

    def get(self, container: str) -> Box | None:
        """Return one; None: there is none."""
        return self._boxes.get(container)

    def items(self) -> list[tuple[str, Box]]:
        """Return all."""
        return list(self._boxes.items())

    def add(self, container: str, box: Box) -> None:
        """Take one in."""
        self._boxes[container] = box
        self._seen[container] = box.seen

    def set(self, container: str, box: Box, seen: EngineContainer) -> None:
        """Take a state in, if the box is still the container's."""
        if self._boxes.get(container) is not box:
            return
        if box.refused and seen.state != "unknown":
            # However it is: it is not gone, as it should be.
            seen = attrs.evolve(seen, state="failed", message=box.refused)
        news = box.lost or box.seen != seen
        box.lost = box.lost and seen.state == "unknown"
        box.seen = self._seen[container] = seen
        if news:
            self.changed(container, seen)

    def drop(self, container: str, box: Box) -> None:
        """Docker has no such container any more."""
        if self._boxes.get(container) is not box:
            return
        del self._boxes[container], self._seen[container]
        self._records.drop(container)
        box.cancelled.set()
        self.changed(container, None)

    def gone_away(self) -> None:
        """Docker cannot be asked: nobody knows how they are."""
        for container, box in self.items():
            box.lost = True
            if not (box.making or box.unmade) and box.seen.state != "unknown":
                self.set(container, box, attrs.evolve(box.seen, state="unknown", message=""))

    def listed(self, listed: Listed) -> None:
        """Take in which of them Docker has. How those are is to be looked at."""
        for container, docker_id in listed.ours.items():
            box = self._boxes.get(container)
            if box is None:
                # Made in another life of ours, whose records are lost.
                box = Box(UNKNOWN)
                self.add(container, box)
            box.docker_id, box.unmade = docker_id, False
        for container, box in self.items():
            if container not in listed.ours and not box.making and not (box.unmade and not box.lost):
                self.drop(container, box)

    def ours_changed(self, change: OursChanged) -> Box | None:
        """Take in that something happened to one; return it if it is to be looked at."""
        box = self._boxes.get(change.container)
        if box is None or (box.docker_id and box.docker_id != change.docker_id):
            return None
        if change.gone:
            if not box.making:
                self.drop(change.container, box)
            return None
        box.docker_id = change.docker_id
        return box


def no_one(_container: str, _state: EngineContainer | None) -> None:
    """Nobody is told outside of `dispatch`, where alone something changes."""
