"""Docker's side of the agent: between its driver, the broker, the helper and the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from netctl.errors import KernelError
from netctl.log import get_logger
from netctl.model import ContainerStatus, DockerContainer, PlacedContainer
from netctl.wire.messages import Attach, Detach, Done, Failure, Message, NodeError, ReserveAddress
from nodeagent.desired_index import DesiredIndex
from nodeagent.driver.view import DriverView
from nodeagent.endpoints import Endpoints
from nodeagent.helper_client import Event, Helper
from nodeagent.helper_messages import DockerAway, DockerChanged, DockerListed
from nodeagent.latest import Latest
from nodeagent.reconcile import Reconciler
from nodeagent.session import Link

PATIENCE: Final = 1.0
"""Seconds the broker gets to say what is wanted before Docker's containers are revived without it."""
AFTERWARDS: Final = 2.0
"""Seconds after which they are revived once more: Docker says only after a while what it could not start."""
_NEVER: Final = float("inf")
_NONE: Final[Mapping[str, PlacedContainer]] = {}


class Driver(Protocol):
    """What the agent needs of `nodeagent.driver.service.Driver`, which says what each is."""

    @property
    def endpoints(self) -> Endpoints:
        """What there is now; another object whenever it changed."""

    def readers(self) -> tuple[int, ...]:
        """Return the descriptors to wait for."""

    def deadline(self) -> float:
        """Return when a turn has something to do by itself."""

    def receive(self, view: DriverView) -> None:
        """Take what Docker asks."""

    def hear(self, event: DockerListed | DockerChanged | DockerAway) -> None:
        """Take what the engine says."""

    def wants_list(self) -> bool:
        """Tell whether the helper should be asked for `ListDocker` now."""

    def settle(self, built: Callable[[str], str | None]) -> None:
        """Answer the Joins that wait for their port."""

    def containers(self) -> tuple[DockerContainer, ...] | None:
        """Return what `Hello.docker` says."""

    def statuses(self) -> tuple[ContainerStatus, ...]:
        """Return the states of Docker's users' containers; the same object while nothing changed."""

    def requests(self) -> tuple[tuple[int, Attach | Detach | ReserveAddress], ...]:
        """Return what the broker is to be asked now."""

    def heard(self, token: int, answer: Done | Failure) -> None:
        """Take the broker's answer to a request."""

    def broker_gone(self) -> None:
        """The session ended."""

    def errors(self) -> tuple[NodeError, ...]:
        """Return what is wrong with Docker's containers here; the same object while nothing changed."""

    def close(self) -> None:
        """Let go of the holder."""


class DockerSide:
    """What the agent does for Docker in every turn.

    Args:
        driver: Docker's network and IPAM driver on this node.
        link: The session with the broker.
        number: Returns a number for a request to the broker that no other has.
        monotonic: Seconds of a clock that is never set.
    """

    def __init__(
        self, driver: Driver, link: Link, number: Callable[[], int], monotonic: Callable[[], float]
    ) -> None:
        self._driver = driver
        self._link = link
        self._number = number
        self._monotonic = monotonic
        self._asked: dict[int, int] = {}
        self._revive_at = _NEVER
        self._again_at = _NEVER
        self._recorded = Latest(_recorded)
        self._log = get_logger()

    def readers(self) -> tuple[int, ...]:
        """Return the descriptors to wait for."""
        return self._driver.readers()

    def deadline(self) -> float:
        """Return when (monotonic) a turn has something to do by itself."""
        # Once it has passed, what is waited for is the host, which tells by itself.
        late = self._is_late
        return min(self._driver.deadline(), self._again_at, _NEVER if late else self._revive_at)

    def close(self) -> None:
        """Let go of Docker's calls: they are refused from now on."""
        self._driver.close()

    # --- a turn -------------------------------------------------------------------------------------

    def receive(self, desired: DesiredIndex | None, *, welcome: bool) -> None:
        """Take what Docker asks; in every turn, since Docker waits.

        Args:
            desired: What the broker wants.
            welcome: Whether it listens.
        """
        self._driver.receive(DriverView.of(desired, connected=welcome))

    def attach(self, host: Reconciler) -> None:
        """Have the host be as Docker asked."""
        host.attach(self._driver.endpoints)

    def hear(self, event: Event, host: Reconciler) -> None:
        """Take what the helper tells of Docker."""
        if not isinstance(event, DockerListed | DockerChanged | DockerAway):
            return
        self._driver.hear(event)
        if isinstance(event, DockerListed):
            # Docker was away, or its calls were not answered for a while: it may have been told no.
            self._revive_at = min(self._revive_at, self._monotonic() + PATIENCE)
            if event.fresh:
                # It has made its own firewall anew, and may have started or lost anything.
                host.doubt()

    def settle(self, host: Reconciler, helper: Helper, *, welcome: bool) -> None:
        """Answer the calls that waited for the host, and ask the helper what is to be asked.

        Raises:
            UnavailableError: The helper is gone.
        """
        self._driver.settle(host.built)
        self.attach(host)
        try:
            if self._driver.wants_list():
                helper.list_docker()
            if host.settled and self._revive_at < _NEVER and (welcome or self._is_late):
                self._revive_at = _NEVER
                self._again_at = self._monotonic() + AFTERWARDS
                helper.revive_docker()
            elif self._monotonic() >= self._again_at:
                self._again_at = _NEVER
                helper.revive_docker()
        except KernelError as error:
            self._log.warning("Docker cannot be asked", error=error.message)

    @property
    def _is_late(self) -> bool:
        return self._monotonic() >= self._revive_at

    def lose_helper(self, reason: str) -> None:
        """The helper is gone, and with it whatever told us of Docker."""
        self._driver.hear(DockerAway(reason))

    # --- the broker ---------------------------------------------------------------------------------

    def containers(self) -> tuple[DockerContainer, ...] | None:
        """Return what `Hello.docker` says."""
        return self._driver.containers()

    def statuses(self, desired: DesiredIndex | None) -> tuple[ContainerStatus, ...]:
        """Return the states of those containers of Docker's users that are recorded."""
        return self._recorded(self._driver.statuses(), _NONE if desired is None else desired.containers)

    def errors(self) -> tuple[NodeError, ...]:
        """Return what is wrong with Docker's containers here."""
        return self._driver.errors()

    def ask(self) -> None:
        """Ask the broker, which listens, what Docker's calls and containers lead to."""
        for token, message in self._driver.requests():
            number = self._number()
            self._asked[number] = token
            self._link.send(message, number)

    def answers(self, number: int, message: Message) -> bool:
        """Take a message of the broker's if it answers what was asked here; return whether it does."""
        token = self._asked.pop(number, None)
        if token is None or not isinstance(message, Done | Failure):
            return False
        self._driver.heard(token, message)
        return True

    def lose_broker(self) -> None:
        """The session ended."""
        self._asked.clear()
        self._driver.broker_gone()


def _recorded(
    statuses: tuple[ContainerStatus, ...], containers: Mapping[str, PlacedContainer]
) -> tuple[ContainerStatus, ...]:
    return tuple(status for status in statuses if status.id in containers)
