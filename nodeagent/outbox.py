"""Events on their way from the privileged child to the agent."""

from __future__ import annotations

import socket
from functools import singledispatch

import attrs

from nodeagent import helper_wire
from nodeagent.helper_messages import (
    ContainerChanged,
    DockerAway,
    DockerChanged,
    DockerListed,
    Drifted,
    ExecEnded,
    FactsChanged,
    PathsChanged,
    SandboxChanged,
)

Event = (
    ContainerChanged | ExecEnded | Drifted | FactsChanged | PathsChanged | SandboxChanged | DockerListed
    | DockerChanged | DockerAway
)  # fmt: skip


class Outbox:
    """Events that the agent has not been told yet; of one thing only the newest is kept, so it is bounded.

    They go out in the order in which the newest of each came.
    """

    def __init__(self) -> None:
        self._waiting: dict[object, Event] = {}
        # The rest of an event that did not fit: nothing else may be sent before it.
        self._begun: list[bytes] = []

    def add(self, event: Event) -> None:
        """Tell the agent, once it reads."""
        subject = _subject(event)
        before = self._waiting.pop(subject, None)
        if isinstance(event, DockerListed) and isinstance(before, DockerListed) and before.fresh:
            # That Docker was away is not over before somebody has heard of it.
            event = attrs.evolve(event, fresh=True)
        elif isinstance(event, PathsChanged) and isinstance(before, PathsChanged):
            newest = {(path.peer, path.encapsulation): path for path in (*before.paths, *event.paths)}
            event = PathsChanged(tuple(newest.values()))
        self._waiting[subject] = event

    def __len__(self) -> int:
        return len(self._waiting) + bool(self._begun)

    def deliver(self, sock: socket.socket) -> None:
        """Send as many as there is room for.

        Raises:
            UnavailableError: The agent is gone.
        """
        while self._begun or self._waiting:
            if not self._begun:
                subject = next(iter(self._waiting))
                self._begun = helper_wire.packets(helper_wire.encode(self._waiting.pop(subject)))
            while self._begun:
                if not helper_wire.send_at_once(sock, self._begun[0]):
                    return
                del self._begun[0]

    def finish(self, sock: socket.socket) -> None:
        """Send the rest of an event that was begun, and wait for that: the agent must be reading.

        Raises:
            UnavailableError: The agent is gone, or does not read.
        """
        for packet in self._begun:
            helper_wire.send_packet(sock, packet)
        self._begun = []


@singledispatch
def _subject(event: Event) -> object:
    """Return what an event is about: a later one about the same replaces it."""
    return type(event)


@_subject.register
def _(event: ContainerChanged) -> object:
    return ("container", event.container)


@_subject.register
def _(event: ExecEnded) -> object:
    return ("exec", event.handle)


@_subject.register
def _(event: SandboxChanged) -> object:
    # That one came does not make undone that one went: it may be another one.
    return ("sandbox", event.endpoint, event.present)


@_subject.register
def _(event: DockerChanged) -> object:
    return ("docker", event.docker_id)


@_subject.register
def _(_event: DockerListed | DockerAway) -> object:
    return "whether Docker is there"
