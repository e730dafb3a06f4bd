"""The driver's part of the agent: what it hears from Docker, and what it has to tell to whom."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import attrs
import msgspec

from netctl.errors import NetctlError, UnavailableError
from netctl.log import get_logger
from netctl.model import ContainerStatus, DockerContainer
from netctl.wire.messages import Attach, Detach, Done, Failure, NodeError, ReserveAddress
from nodeagent.driver.book import Answer, Around, Book, Build, Wait, answered
from nodeagent.driver.calls import Call, parse
from nodeagent.driver.holder_link import Frame, HolderLink
from nodeagent.driver.identity import Described, Docker, described, gone, identified, listed, settled
from nodeagent.driver.keeping import Keeper
from nodeagent.driver.ports import probe_port
from nodeagent.driver.publishing import Probe
from nodeagent.driver.reporting import Reporting
from nodeagent.driver.view import DriverView
from nodeagent.endpoints import Endpoints
from nodeagent.helper_messages import DockerAway, DockerChanged, DockerListed

LONGEST_WAIT: Final = 9.0
"""Seconds a call may wait here: the holder gives it up a second later."""
UNKNOWN_SECONDS: Final = 2.0
"""Seconds after which it is asked for whose endpoint one is that Docker has said nothing about."""
LIST_SECONDS: Final = 5.0
"""Seconds between two times that all of Docker's containers are asked for because of an unknown one."""
REFUSED_SECONDS: Final = 1.0
"""Seconds between two times that they are asked for because Docker was refused what it asked."""
_START: Final = "start nodeagent-driver: systemctl start netctl-driver"


@attrs.define(eq=False)
class _Waiting:
    """A call that cannot be answered yet.

    Attributes:
        build: A Join whose endpoint is in the book; None: the call is tried again.
        address: What the broker is asked for.
        token: Of that question; 0: not asked yet.
        refused: The broker's answer, where it is a refusal.
    """

    number: int
    call: Call
    since: float
    build: Build | None = None
    address: str = ""
    token: int = 0
    refused: str = ""


class Driver:
    """Docker's network and IPAM driver on this node.

    One turn of the agent is: `receive` (calls, and pings, which must not wait), then what the helper had to
    say by `hear`, then work on `endpoints`, then `settle`, then `requests` if the broker listens.

    Args:
        networks: The file in which networks are kept for good.
        endpoints: The file in which endpoints are kept: gone after a reboot, as they are.
        socket_path: Of the process that holds the plugin's socket.
        exec_root: Docker's, below which its namespaces are.
        monotonic: Seconds of the host's monotonic clock.
        probe: Of the host's ports.
    """

    def __init__(
        self,
        networks: Path,
        endpoints: Path,
        socket_path: Path,
        exec_root: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        probe: Probe = probe_port,
    ) -> None:
        self._monotonic = monotonic
        self._probe = probe
        # As Docker's user may have written it, and as it is.
        folders = {os.path.normpath(exec_root / "netns"), os.path.realpath(exec_root / "netns")}
        self._folders = frozenset(folders)
        self._name = secrets.token_hex(4)
        self._log = get_logger()
        self._link = HolderLink(socket_path, monotonic)
        self._keeper = Keeper(networks, endpoints)
        self._book = self._keeper.load(monotonic())
        self._view = DriverView()
        self._docker = Docker()
        self._away_at = monotonic()
        self._waiting: list[_Waiting] = []
        self._losses = 0
        self._refused = 0
        self._reporting = Reporting()
        self._token = 0
        self._described = described(self._docker, self._book)
        self._described_of = (self._docker, self._book.endpoints)
        self._errors: tuple[NodeError, ...] = ()
        self._list_due = False
        self._listed_at = float("-inf")
        self._answered = False
        self._unknown_of: Endpoints | None = None
        self._unknown_at = float("inf")
        self._keep(self._book)

    # --- what the agent waits for -------------------------------------------------------------------

    @property
    def endpoints(self) -> Endpoints:
        """What there is now; a persistent value, another object whenever it changed."""
        return self._book.endpoints

    def readers(self) -> tuple[int, ...]:
        """Return the descriptors to wait for; when one is readable, call `receive`."""
        descriptor = self._link.fileno()
        return () if descriptor is None else (descriptor,)

    def deadline(self) -> float:
        """Return when a turn has something to do by itself (by the clock `monotonic`)."""
        if self._answered:
            return 0.0
        times = [self._link.deadline(), self._reporting.again_at, self._next_list()]
        times += [waiting.since + LONGEST_WAIT for waiting in self._waiting]
        return min(times)

    # --- Docker's calls -----------------------------------------------------------------------------

    def receive(self, view: DriverView) -> None:
        """Take what Docker asks, and answer what can be answered; in every turn, without waiting.

        Calls that wait for the broker are tried again with what it wants by now.
        """
        self._view = view
        now = self._monotonic()
        frames = self._frames(now)
        before = after = self._book
        addresses = before.addresses.expired(now)
        if addresses is not before.addresses:
            after = attrs.evolve(before, addresses=addresses)
        self._answered = False
        answers: list[tuple[int, bytes]] = []
        tried = [one for one in self._waiting if one.build is None]
        self._waiting = [one for one in self._waiting if one.build is not None]
        for frame in frames:
            if now > frame.until:
                # Docker was told no already, and may have undone what it had.
                self._list_due = True
                continue
            one = self._read(frame, now, answers)
            if one is not None:
                tried.append(one)
        for one in tried:
            after = self._tried(after, one, now, answers)
        if not self._keep(after):
            # What cannot be kept is not promised: all that was asked in this turn is refused.
            refusal = _refusal("the node agent cannot keep what it is told; see its log")
            answers = [(one.number, refusal) for one in tried]
            self._waiting = [one for one in self._waiting if one not in tried]
            after = before
        self._book = after
        for number, body in answers:
            self._link.answer(number, body)

    def _frames(self, now: float) -> list[Frame]:
        """Return the calls that came in; what waits in vain is given up."""
        frames = self._link.receive()
        if self._link.refused != self._refused:
            # Docker was told no without our hearing of it, and may have undone what it had.
            self._refused = self._link.refused
            self._list_due = True
        if self._link.losses != self._losses:
            # Docker was told no, or asks again.
            self._losses = self._link.losses
            self._waiting = []
        for one in list(self._waiting):
            if one.build is not None and now - one.since >= LONGEST_WAIT:
                self._cannot_join(one, one.build, "the container's port was not ready in time")
        return frames

    def _read(self, frame: Frame, now: float, answers: list[tuple[int, bytes]]) -> _Waiting | None:
        try:
            call = parse(frame.path, frame.body, self._folders)
        except NetctlError as error:
            self._refuse(frame.number, frame.path, error, answers)
            return None
        return _Waiting(frame.number, call, now)

    def _tried(self, book: Book, one: _Waiting, now: float, answers: list[tuple[int, bytes]]) -> Book:
        """Try to answer a call; what still cannot be is kept waiting."""
        name = type(one.call).__name__
        try:
            if one.refused:
                raise UnavailableError(one.refused)
            after, result = answered(book, one.call, self._around(now))
            if isinstance(result, Wait) and now - one.since >= LONGEST_WAIT:
                raise UnavailableError("the broker did not give this node an address in time")
        except NetctlError as error:
            self._refuse(one.number, name, error, answers)
            return book
        if isinstance(result, Answer):
            answers.append((one.number, _encoded(result)))
            return after
        if isinstance(result, Build):
            one.build = result
        else:
            one.address = result.address
        self._waiting.append(one)
        return after

    def _around(self, now: float) -> Around:
        taken = frozenset(seen.address for seen in self._docker.containers.values() if seen.address)
        return Around(self._view, now, taken, self._probe, self._name)

    def _refuse(self, number: int, name: str, error: NetctlError, answers: list[tuple[int, bytes]]) -> None:
        self._log.warning("a call of Docker's is refused", command=name[:64], error=error.message)
        text = f"{error.message}; {error.remedy}" if error.remedy else error.message
        answers.append((number, _refusal(text)))

    def settle(self, built: Callable[[str], str | None]) -> None:
        """Answer the Joins that wait for their port.

        Args:
            built: Says of an endpoint's key: empty, once its port stands and, if its namespace is there
                already, its layer 1 too; why that failed; None: not yet.
        """
        for one in list(self._waiting):
            if one.build is None:
                continue
            failed = built(one.build.key)
            if failed:
                self._cannot_join(one, one.build, failed)
            elif failed is not None:
                self._waiting.remove(one)
                self._link.answer(one.number, _encoded(one.build.answer))

    def _cannot_join(self, one: _Waiting, build: Build, why: str) -> None:
        self._waiting.remove(one)
        endpoint = self._book.endpoints.by_key.get(build.key)
        if endpoint is not None:
            self._change(self._book.with_(attrs.evolve(endpoint, sandbox="")))
        self._log.error("a container cannot join", container=build.key, error=why)
        self._link.answer(one.number, _refusal(why))

    # --- what Docker's engine says ------------------------------------------------------------------

    def hear(self, event: DockerListed | DockerChanged | DockerAway) -> None:
        """Take what the engine says of Docker's containers and networks."""
        now = self._monotonic()
        if isinstance(event, DockerAway):
            self._away_at = now
            self._docker = attrs.evolve(self._docker, known=False)
        elif isinstance(event, DockerListed):
            self._docker = listed(event)
            self._change(settled(self._book, event, self._away_at, now))
        else:
            before = self._docker.containers.get(event.docker_id)
            self._docker = self._docker.changed(event)
            if event.container is None:
                self._change(gone(self._book, before, event.docker_id, now))
            else:
                self._change(identified(self._book, event.container, now))

    def wants_list(self) -> bool:
        """Tell whether the helper should be asked for `ListDocker` now; true once, then not for seconds.

        To be called in every turn while there is a helper: `deadline` reckons with it.
        """
        now = self._monotonic()
        if now < self._next_list():
            return False
        self._list_due = False
        self._listed_at = now
        return True

    def _next_list(self) -> float:
        """Return when all of Docker's containers are to be asked for."""
        if not self._docker.known:
            # Nobody could be asked; once Docker is there again, it says everything unasked.
            return float("inf")
        if self._book.endpoints is not self._unknown_of:
            self._unknown_of = self._book.endpoints
            since = self._book.since
            unknown = [
                since.get(endpoint.key, 0.0) + UNKNOWN_SECONDS
                for endpoint in self._book.endpoints.by_key.values()
                if not endpoint.container or not endpoint.sandbox
            ]
            self._unknown_at = min(unknown, default=float("inf"))
        if self._list_due:
            return self._listed_at + REFUSED_SECONDS
        return max(self._listed_at + LIST_SECONDS, self._unknown_at)

    # --- the broker ---------------------------------------------------------------------------------

    def containers(self) -> tuple[DockerContainer, ...] | None:
        """Return what `Hello.docker` says, which counts as told from then on; None: not known now."""
        if not self._docker.known:
            return None
        containers = tuple(self._describe().containers.values())
        self._reporting.told_all(containers, self._monotonic())
        return containers

    def statuses(self) -> tuple[ContainerStatus, ...]:
        """Return the states of Docker's users' containers; the same object while nothing changed."""
        return self._describe().statuses

    def requests(self) -> tuple[tuple[int, Attach | Detach | ReserveAddress], ...]:
        """Return what the broker is to be asked now, each with a token for `heard`.

        Call it only while the broker listens (after its answer to Hello): what is returned counts as asked.
        """
        asked: list[tuple[int, Attach | Detach | ReserveAddress]] = []
        for one in self._waiting:
            if one.address and not one.token:
                one.token = self._next_token()
                asked.append((one.token, ReserveAddress(one.address)))
        now = self._monotonic()
        for message in self._reporting.due(self._describe(), self._view, now, known=self._docker.known):
            token = self._next_token()
            self._reporting.asked(token, message, now)
            asked.append((token, message))
        return tuple(asked)

    def heard(self, token: int, answer: Done | Failure) -> None:
        """Take the broker's answer to a request."""
        if self._reporting.heard(token, answer):
            return
        # The call is tried again, with what the broker wants by now.
        self._answered = True
        for one in self._waiting:
            if one.token == token and isinstance(answer, Failure):
                one.refused = answer.message + (f"; {answer.remedy}" if answer.remedy else "")

    def broker_gone(self) -> None:
        """The session ended: what was asked is not answered any more, and is asked again after the next."""
        self._reporting.forget()
        self._answered = True
        for one in self._waiting:
            if one.address:
                one.refused = "the broker cannot be asked for this address any more; try again"

    def errors(self) -> tuple[NodeError, ...]:
        """Return what is wrong with Docker's containers here; the same object while nothing changed."""
        # The subject of what keeps no container from working is no container's name.
        errors = [
            NodeError(f"{problem.name} (label)", problem.message) for problem in self._describe().problems
        ]
        for container, failure in self._reporting.failures():
            recorded = self._view.containers.get(container.id)
            name = container.name if recorded is None else recorded.name
            errors.append(NodeError(name, failure.message, failure.remedy))
        if self._link.error:
            message = f"Docker's calls cannot be heard: {self._link.error}"
            errors.append(NodeError("Docker's driver", message, _START))
        if tuple(errors) != self._errors:
            self._errors = tuple(errors)
        return self._errors

    def close(self) -> None:
        """Let go of the holder; it refuses Docker's calls from then on."""
        self._link.close()

    # --- help ---------------------------------------------------------------------------------------

    def _next_token(self) -> int:
        self._token += 1
        return self._token

    def _describe(self) -> Described:
        docker, endpoints = self._described_of
        if docker is not self._docker or endpoints is not self._book.endpoints:
            self._described_of = (self._docker, self._book.endpoints)
            found = described(self._docker, self._book)
            if found != self._described:
                self._described = found
        return self._described

    def _change(self, book: Book) -> None:
        """Take a book that something else than a call made; it is true, kept or not."""
        self._book = book
        self._keep(book)

    def _keep(self, book: Book) -> bool:
        try:
            self._keeper.keep(book)
        except OSError as error:
            self._log.error("Docker's networks and endpoints cannot be kept", error=str(error))
            return False
        return True


def _encoded(answer: Answer) -> bytes:
    return msgspec.json.encode(answer.body)


def _refusal(text: str) -> bytes:
    """Return the answer that refuses a call; network drivers say ``Err``, IPAM drivers ``Error``."""
    told = f"netctl: {text}"
    return msgspec.json.encode({"Err": told, "Error": told})
