"""What the broker has been told of Docker's users' containers, and what it is to be told next."""

from __future__ import annotations

import operator
from typing import Final

import attrs

from netctl.model import DockerContainer
from netctl.wire.messages import Attach, Detach, Done, Failure
from nodeagent.driver.identity import Described
from nodeagent.driver.view import DriverView

RETRY_SECONDS: Final = 5.0
"""Between two tries to have a container recorded that the broker refused, or has not recorded yet."""


@attrs.define
class _Told:
    """One container as the broker was told of it last.

    Attributes:
        container: None: that it is gone.
        again_at: When it is told again, if it is not recorded so by then.
        failure: The broker's refusal.
    """

    container: DockerContainer | None
    again_at: float
    failure: Failure | None = None


class Reporting:
    """The reports of one session after the other.

    Attributes:
        again_at: When `due` may return more by itself.
    """

    def __init__(self) -> None:
        self.again_at = float("inf")
        # What was looked at last; while it is the same, and nothing was heard, nothing is due.
        self._looked_at: tuple[object, ...] = (None, None, None)
        self._heard = False
        self._told: dict[str, _Told] = {}
        self._asked: dict[int, str] = {}

    def told_all(self, containers: tuple[DockerContainer, ...], now: float) -> None:
        """Take note that Hello said all of this."""
        self._told = {c.id: _Told(c, now + RETRY_SECONDS) for c in containers}
        self._asked = {}
        self.again_at = float("inf")
        self._heard = True

    def forget(self) -> None:
        """Take note that the session ended; the next begins with everything."""
        self.told_all((), 0.0)

    def due(
        self, described: Described, view: DriverView, now: float, *, known: bool
    ) -> list[Attach | Detach]:
        """Return what the broker is to be told now.

        Args:
            described: What there is.
            view: What the broker has recorded.
            now: By the agent's clock.
            known: Whether `described` is everything, so that what is not in it is gone.
        """
        of = (described, view.containers, known)
        if now < self.again_at and not self._heard and all(map(operator.is_, of, self._looked_at)):
            return []
        self._looked_at, self._heard = of, False
        self.again_at = float("inf")
        under_way = set(self._asked.values())
        messages: list[Attach | Detach] = []
        # What went is told first: another may have its name by now.
        if known:
            recorded = {c.id for c in view.containers.values() if c.origin == "engine"}
            for identity in sorted(recorded.union(self._told)):
                if identity in described.containers or identity in under_way:
                    continue
                told = self._told.get(identity)
                if told is None or told.container is not None:
                    messages.append(Detach(identity))
                elif identity not in recorded:
                    del self._told[identity]
                elif self._again(told, now):
                    messages.append(Detach(identity))
        messages += [
            Attach(container)
            for identity, container in described.containers.items()
            if identity not in under_way and self._is_due(container, view, now)
        ]
        return messages

    def asked(self, token: int, message: Attach | Detach, now: float) -> None:
        """Take note that the broker is told `message`, and will answer to `token`."""
        container = message.container if isinstance(message, Attach) else None
        identity = message.container.id if isinstance(message, Attach) else message.id
        old = self._told.get(identity)
        failure = None if old is None else old.failure
        self._told[identity] = _Told(container, now + RETRY_SECONDS, failure)
        self._asked[token] = identity

    def heard(self, token: int, answer: Done | Failure) -> bool:
        """Take the broker's answer; return whether it was one to a report."""
        identity = self._asked.pop(token, None)
        if identity is None:
            return False
        self._heard = True
        told = self._told.get(identity)
        if told is not None:
            told.failure = answer if isinstance(answer, Failure) else None
        return True

    def failures(self) -> list[tuple[DockerContainer, Failure]]:
        """Return the containers that the broker refuses to record as they are."""
        return [
            (told.container, told.failure)
            for told in self._told.values()
            if told.container is not None and told.failure is not None
        ]

    def _is_due(self, container: DockerContainer, view: DriverView, now: float) -> bool:
        told = self._told.get(container.id)
        if told is None or told.container != container:
            return True
        recorded = view.containers.get(container.id)
        # What has no address need not be recorded.
        settled = not container.address or (recorded is not None and recorded.address == container.address)
        return (told.failure is not None or not settled) and self._again(told, now)

    def _again(self, told: _Told, now: float) -> bool:
        if now >= told.again_at:
            return True
        self.again_at = min(self.again_at, told.again_at)
        return False
