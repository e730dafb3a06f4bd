"""The privileged child's loop: one request, one answer, and events as they happen.

    agent's socket --request--> checks --> Host (kernel, firewall, engines) --answer--> agent's socket
    engines, Docker's namespaces, the kernel's notices, a timer over the firewalls --event--> agent's socket

It has one thread, since whoever enters a namespace takes the thread along. Only the prober and Docker's calls
have threads of their own, which enter none. It ends with the agent's socket.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Sequence
from functools import singledispatchmethod
from typing import Any, Final, Protocol

from firewall_rules.backends.base import FirewallError
from netctl.errors import NetctlError, ProtocolError, UnavailableError
from netctl.model import PathState
from netctl.wire.codec import convert_body
from nodeagent import helper_checks, helper_wire, request_checks
from nodeagent.apply import Host
from nodeagent.execs import Execs
from nodeagent.helper_messages import (
    Adopt,
    Apply,
    ChecksAnswer,
    ContainerChanged,
    Drifted,
    FactsAnswer,
    FactsChanged,
    GetChecks,
    GetFacts,
    GetSandbox,
    KillExec,
    ListDocker,
    Observe,
    Observed,
    OpenCopy,
    Opened,
    OpenExec,
    OpenLogs,
    PathsChanged,
    Refused,
    Results,
    ReviveDocker,
    SandboxAnswer,
    SandboxChanged,
    SetProbes,
)
from nodeagent.kernel_state import DOCKER, EngineContainer, ProbeTarget
from nodeagent.ops import OPS, Op
from nodeagent.outbox import Outbox

DRIFT_SECONDS: Final = 1.0
"""How long a change to one of our firewalls by someone else may go unnoticed."""

FACTS_SECONDS: Final = 0.2
"""How long what changes of the host's facts is gathered before it is told once."""

DRIFT_SHARE: Final = 10
"""A look for drift is this many times rarer than it is long: others may write their tables all the time."""

Answer = tuple[Any, Sequence[int]]


class Watch(Protocol):
    """Notices of changes to our links; see `nodeagent.kernel.watch.LinkWatch`."""

    def fileno(self) -> int:
        """Return the descriptor to poll."""

    def settle(self) -> None:
        """Take everything told so far as known."""

    def foreign_change(self) -> str:
        """Say what changed without us; empty: nothing of ours."""

    def facts_changed(self) -> bool:
        """Tell whether the facts of the host may be others."""


class Prober(Protocol):
    """Probes the ways to the peers by itself; see `nodeagent.kernel.prober.Prober`."""

    def fileno(self) -> int:
        """Return the descriptor to poll; readable: call `changes`."""

    def aim(self, targets: Sequence[ProbeTarget]) -> None:
        """Probe these ways from now on, and no others."""

    def changes(self) -> tuple[PathState, ...]:
        """Return the ways that are found otherwise than said before."""


class HelperServer:
    """Serves one agent over one socket.

    Args:
        sock: Our end of the SOCK_SEQPACKET pair.
        host: What operations are done to.
        watch: Notices of the kernel.
        underlay: The only address, or link, `GetFacts` may name; None: any of the host's.
        prober: Of the ways to the peers.
        later: Called once, a moment after the start: what answers need not wait for.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        sock: socket.socket,
        host: Host,
        watch: Watch,
        underlay: str | None = None,
        *,
        prober: Prober | None = None,
        later: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._socket = sock
        self._host = host
        self._watch = watch
        self._underlay = underlay
        self._prober = prober
        self._later = later
        self._clock = clock
        self._execs = Execs(host)
        self._outbox = Outbox()
        self._underlay_device = ""
        self._checks = helper_checks.OperationChecks(lambda: self._underlay_device)
        self._next_look = clock() + DRIFT_SECONDS
        # When to tell that the host's facts may be others; None: they are as told.
        self._facts_at: float | None = None
        if DOCKER in host.engines:
            host.docker().listen(self._outbox.add)

    def serve(self) -> None:
        """Serve until the agent's socket closes."""
        try:
            while True:
                self._outbox.deliver(self._socket)
                self._handle(self._ready())
        except UnavailableError:
            return  # the agent ended: the containers, links and rules stay as they are

    def _ready(self) -> set[int]:
        """Wait until something is to be done; return the descriptors that say so."""
        poll = select.poll()
        room = select.POLLOUT if len(self._outbox) else 0
        poll.register(self._socket, select.POLLIN | room)
        poll.register(self._watch.fileno(), select.POLLIN)
        if self._prober is not None:
            poll.register(self._prober.fileno(), select.POLLIN)
        for engine in self._host.engines.values():
            for descriptor in engine.descriptors():
                poll.register(descriptor, select.POLLIN)
        at = self._next_look if self._facts_at is None else min(self._next_look, self._facts_at)
        wait = max(0.0, at - self._clock())
        sandboxes = self._host.sandboxes
        if sandboxes is not None:
            poll.register(sandboxes.fileno(), select.POLLPRI)
            wait = 0.0 if sandboxes.waiting() else wait
        return {
            descriptor
            for descriptor, what in poll.poll(wait * 1000)
            if descriptor != self._socket.fileno() or what & ~select.POLLOUT
        }

    def _handle(self, ready: set[int]) -> None:
        for engine in self._host.engines.values():
            if not ready.isdisjoint(engine.descriptors()):
                self._host.dispatch(engine, self._container_changed)
        self._look_at_sandboxes(ready)
        if self._prober is not None and self._prober.fileno() in ready:
            paths = self._prober.changes()
            if paths:
                self._outbox.add(PathsChanged(paths))
        if self._watch.fileno() in ready:
            self._drifted(self._watch.foreign_change())
        if self._clock() >= self._next_look:
            began = self._clock()
            later, self._later = self._later, None
            if later is not None:
                later()
            self._drifted(self._host.drifted())
            if self._host.sandboxes is not None:
                self._host.sandboxes.look()
            now = self._clock()
            self._next_look = now + max(DRIFT_SECONDS, DRIFT_SHARE * (now - began))
        if self._socket.fileno() in ready:
            self._serve_one()
        self._tell_of_facts()

    def _tell_of_facts(self) -> None:
        now = self._clock()
        if self._watch.facts_changed() and self._facts_at is None:
            self._facts_at = now + FACTS_SECONDS
        if self._facts_at is not None and now >= self._facts_at:
            self._facts_at = None
            self._outbox.add(FactsChanged())

    def _look_at_sandboxes(self, ready: set[int]) -> None:
        sandboxes = self._host.sandboxes
        if sandboxes is not None and (sandboxes.waiting() or sandboxes.fileno() in ready):
            self._host.dispatch_sandboxes(self._sandbox_changed)

    def _sandbox_changed(self, endpoint: str, present: bool) -> None:  # noqa: FBT001 - as a callback
        self._outbox.add(SandboxChanged(endpoint, present))

    def _container_changed(self, container: str, state: EngineContainer | None) -> None:
        self._outbox.add(ContainerChanged(container, state))

    def _drifted(self, what: str) -> None:
        if what:
            self._outbox.add(Drifted(what))

    def _serve_one(self) -> None:
        try:
            request, _ = helper_wire.receive(self._socket, descriptors=False)
            answer, descriptors = self._answer(request)
        except UnavailableError:
            raise
        except (NetctlError, FirewallError, OSError) as error:
            answer, descriptors = Refused(str(error)[:4096]), ()
        try:
            self._outbox.finish(self._socket)
            helper_wire.send(self._socket, answer, descriptors)
        finally:
            helper_wire.close_all(descriptors)

    @singledispatchmethod
    def _answer(self, request: Any) -> Answer:
        raise ProtocolError(f"{type(request).__name__} is no request")

    @_answer.register
    def _(self, request: GetFacts) -> Answer:
        underlay = request.underlay or self._underlay
        if underlay is not None:
            request_checks.check_underlay(underlay)
        if self._underlay is not None and underlay != self._underlay:
            raise ProtocolError(f"the underlay of this child is {self._underlay}, not {underlay}")
        facts = self._host.facts(underlay)
        self._underlay_device = facts.underlay_device
        return FactsAnswer(facts), ()

    @_answer.register
    def _(self, request: GetChecks) -> Answer:
        return ChecksAnswer(self._host.checks(request.peers)), ()

    @_answer.register
    def _(self, _request: Observe) -> Answer:
        # Before reading: what changes meanwhile must be told afterwards.
        self._watch.settle()
        return Observed(self._host.observe()), ()

    @_answer.register
    def _(self, request: Apply) -> Answer:
        operations: list[Op] = [convert_body(name, body, OPS) for name, body in request.operations]
        for operation in operations:
            self._checks.check(operation)
        # What others did until now must not pass for our own doing.
        self._drifted(self._watch.foreign_change())
        try:
            errors = self._host.apply(operations)
        finally:
            self._watch.settle()
        return Results(tuple(error[:4096] for error in errors)), ()

    @_answer.register
    def _(self, request: OpenExec) -> Answer:
        request_checks.check_exec(request)
        handle, descriptors = self._execs.open(request, self._outbox.add)
        return Opened(handle), descriptors

    @_answer.register
    def _(self, request: KillExec) -> Answer:
        self._execs.kill(request.handle)
        return Results(()), ()

    @_answer.register
    def _(self, request: OpenLogs) -> Answer:
        request_checks.check_logs(request)
        handle, descriptors = self._execs.logs(request, self._outbox.add)
        return Opened(handle), descriptors

    @_answer.register
    def _(self, request: OpenCopy) -> Answer:
        request_checks.check_copy(request)
        handle, descriptors = self._execs.copy(request, self._outbox.add)
        return Opened(handle), descriptors

    @_answer.register
    def _(self, request: Adopt) -> Answer:
        request_checks.check_adoption(request)
        return Opened(self._execs.adopt(request, self._outbox.add)), ()

    @_answer.register
    def _(self, _request: ListDocker) -> Answer:
        self._host.docker().list_docker()
        return Results(()), ()

    @_answer.register
    def _(self, _request: ReviveDocker) -> Answer:
        self._host.docker().revive()
        return Results(()), ()

    @_answer.register
    def _(self, request: SetProbes) -> Answer:
        request_checks.check_probes(request, self._underlay_device)
        if self._prober is not None:
            self._prober.aim(request.targets)
        return Results(()), ()

    @_answer.register
    def _(self, request: GetSandbox) -> Answer:
        sandboxes = self._host.sandboxes
        return SandboxAnswer(sandboxes is not None and sandboxes.present().get(request.endpoint, False)), ()
