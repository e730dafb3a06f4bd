"""Keeps one host as it should be: looks, compares, acts, and remembers what failed.

    desired (newest)   --want-->  scope of what may differ
    helper's events    --hear-->        |
    resync, drift      --doubt->  look again first
                                        v
                     work:  observe? -> plan -> helper.apply -> after (the picture of the host)

Changes queue up in the scope, and one `work` does them. What failed is tried again: once at once, after a
fresh look, then ever more slowly. Engines answer by events, so nothing here waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import attrs

from netctl.errors import KernelError
from netctl.log import get_logger
from netctl.model import ContainerStatus, PlacedContainer
from netctl.wire.messages import NodeError
from nodeagent.after import after, with_container
from nodeagent.desired_index import DesiredIndex, Scope, united
from nodeagent.diff import plan
from nodeagent.helper_client import Event, Helper
from nodeagent.helper_messages import ContainerChanged
from nodeagent.kernel_state import EngineContainer, HostFacts, HostState
from nodeagent.latest import Latest
from nodeagent.ops import (
    CreateContainer,
    Op,
    RemoveContainer,
    SetRoute,
    SetSysctl,
    SetTunnel,
    StartContainer,
    StopContainer,
    takes_away,
)
from nodeagent.removal import take_out
from nodeagent.target import ENDED, FORWARDING, troubles

FIRST_RETRY: Final = 0.5
LAST_RETRY: Final = 30.0
"""Seconds between two tries of what failed: doubled from the first to the last."""
PATIENCE: Final = 30.0
"""Seconds after which an engine that did not answer is asked again."""
HOLD: Final = 8.0
"""Seconds a start may take before what else was wanted is reported as done without it."""
MAX_ERRORS: Final = 1024
"""Errors in one report (`netctl.wire.messages.Applied`)."""
NOT_TRIED: Final = "not tried: "
"""Begins the text of an operation that was not done because of an earlier one's failure."""

_EngineOp = CreateContainer | StartContainer | StopContainer


@attrs.frozen
class _Asked:
    """Something an engine was asked for and has not answered by an event yet."""

    operation: _EngineOp
    at: float


class Reconciler:
    """One host, and what the broker wants of it.

    Args:
        helper: The privileged child, just started.
        facts: Of the host, as far as the operator allows their use.
        found: Settings of the host as they were before us, if that is known already.
        remember: Called with settings found, before the first of them is changed.
        monotonic: Seconds of a clock that is never set.
        wall: Seconds since 1970.

    Attributes:
        observed: The picture of the host.
        writes: Operations sent to the helper so far.
        looks: How often the whole host was read.
        look_seconds: How long the last time took.
        leftovers: Something that was to be taken away may still be there.
    """

    def __init__(
        self,
        helper: Helper,
        facts: HostFacts,
        *,
        found: Mapping[str, str] | None = None,
        remember: Callable[[Mapping[str, str]], None] = lambda _found: None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.observed = HostState()
        self.writes = 0
        self.looks = 0
        self.look_seconds = 0.0
        self.leftovers = False
        self._helper = helper
        self._facts = facts
        self._found = dict(found or {})
        self._remember = remember
        self._monotonic = monotonic
        self._wall = wall
        self._desired: DesiredIndex | None = None
        self._scope: Scope | None = None
        self._stale = True
        self._asked: dict[str, _Asked] = {}
        self._failed: dict[str, NodeError] = {}
        self._mishaps: dict[str, NodeError] = {}
        self._retry_at: float | None = None
        self._retry_delay = FIRST_RETRY
        # This looks at every container, and is asked for at every turn.
        self._statuses = Latest(_statuses)
        self._log = get_logger()

    # --- what changes -------------------------------------------------------------------------------

    def want(self, desired: DesiredIndex, scope: Scope | None = None) -> None:
        """Take a newer desired state.

        Args:
            desired: The whole of it.
            scope: What of the host it can touch; None: everything.
        """
        self._desired = desired
        self._scope = united(self._scope, scope)

    def use(self, facts: HostFacts) -> None:
        """Take newer facts of the host."""
        if facts != self._facts:
            self._facts = facts
            self._scope = None

    def hear(self, event: Event) -> ContainerStatus | None:
        """Take an event in; return the status to report if a container's state changed by it."""
        if not isinstance(event, ContainerChanged):
            return None
        identifier, seen = event.container, event.state
        asked = self._asked.pop(identifier, None)
        self.observed = with_container(self.observed, identifier, seen)
        if self._desired is None:
            return None
        container = self._desired.containers.get(identifier)
        if container is None:
            return None
        self._scope = united(self._scope, self._desired.scope_of_container(identifier))
        if seen is not None and seen.state == "failed" and asked is not None:
            text = f"{container.name} could not be started: {seen.message}"
            self._mishaps[identifier] = NodeError(container.name, text)
        return status_of(identifier, seen)

    def doubt(self) -> None:
        """Look at the whole host again before anything else is done."""
        self._stale = True
        self._scope = None

    # --- what is done -------------------------------------------------------------------------------

    def look(self) -> None:
        """Read the host anew.

        Raises:
            KernelError: Reading failed.
            UnavailableError: The helper is gone.
        """
        began = self._monotonic()
        self.observed = self._helper.observe()
        self.look_seconds = self._monotonic() - began
        self.looks += 1
        self._stale = False
        self._scope = None
        for identifier, asked in list(self._asked.items()):
            if self._answered(asked, self.observed.containers.get(identifier)):
                del self._asked[identifier]

    def work(self) -> None:
        """Do what there is to do now. What waits for an engine's event is left for the next call.

        Raises:
            UnavailableError: The helper is gone; a new one must be given a new `Reconciler`.
        """
        if self._retry_at is not None and self._monotonic() >= self._retry_at:
            self._retry_at = None
            self.doubt()
        if self._desired is None or (self._scope is not None and not self._scope):
            return
        fresh = self._stale
        try:
            if self._stale:
                self.look()
            clean = self._pass()
            if not clean and not fresh:
                # The picture of the host may be old: look once, and try again at once.
                self.doubt()
                self.look()
                clean = self._pass()
        except KernelError as error:
            self._note(NodeError("", f"cannot read this host's state: {error.message}", error.remedy))
            self.leftovers = True
            self._stale = True
            self._scope = Scope()
            clean = False
        if not clean:
            self._try_later()

    def _pass(self) -> bool:
        """Compare and act once; return whether nothing failed."""
        desired, everything = self._desired, self._scope is None
        if desired is None:
            return True
        if desired.header.block is None:
            return self._removed()
        operations = tuple(
            operation
            for operation in plan(desired, self._facts, self.observed, self._wall(), scope=self._scope)
            if not self._is_asked(operation)
        )
        self._scope = Scope()
        if everything:
            self._failed.clear()
            self.leftovers = False
        results = self._apply(operations)
        clean = all(not error for error in results)
        if clean and everything:
            self._retry_at = None
            self._retry_delay = FIRST_RETRY
        return clean

    def _apply(self, operations: Sequence[Op]) -> tuple[str, ...]:
        if not operations:
            return ()
        self._keep_found(operations)
        self.writes += len(operations)
        began = self._monotonic()
        results = self._sent(operations)
        self._log.debug(
            "operations done",
            operation=" ".join(sorted({type(operation).__name__ for operation in operations})),
            count=len(operations),
            duration_ms=round((self._monotonic() - began) * 1000, 3),
        )
        for operation, error in zip(operations, results, strict=True):
            if error:
                self._failure(operation, error)
            elif isinstance(operation, _EngineOp):
                self._asked[operation.container] = _Asked(operation, self._monotonic())
                if isinstance(operation, CreateContainer):
                    self.observed = with_container(
                        self.observed, operation.container, EngineContainer("creating")
                    )
            else:
                if isinstance(operation, RemoveContainer):
                    self._asked.pop(operation.container, None)
                    self._mishaps.pop(operation.container, None)
                self.observed = after(operation, self.observed)
        return results

    def _sent(self, operations: Sequence[Op]) -> tuple[str, ...]:
        """Have operations done. Where the helper refuses them all for one, the others are not lost."""
        try:
            return self._helper.apply(operations)
        except KernelError as refusal:
            groups = {getattr(operation, "container", "") for operation in operations}
            if len(groups) == 1:
                return (str(refusal),) * len(operations)
        results: dict[int, str] = {}
        # The host's first: its rules guard every container's link.
        for group in sorted(groups):
            places = [n for n, op in enumerate(operations) if getattr(op, "container", "") == group]
            if group and any(results[n] for n in results if not getattr(operations[n], "container", "")):
                texts: Sequence[str] = [f"{NOT_TRIED}the host itself is not as it should be"] * len(places)
            else:
                texts = self._sent([operations[n] for n in places])
            results.update(zip(places, texts, strict=True))
        return tuple(results[n] for n in range(len(operations)))

    def _keep_found(self, operations: Sequence[Op]) -> None:
        """Remember how a setting of the whole host was before we change it for the first time."""
        for operation in operations:
            if isinstance(operation, SetSysctl) and operation.path == FORWARDING:
                before = self.observed.sysctls.get(FORWARDING)
                if before is None or FORWARDING in self._found:
                    continue
                self._found[FORWARDING] = before
                try:
                    self._remember(self._found)
                except OSError as failure:
                    self._log.warning("what was found cannot be kept", error=str(failure))

    def _removed(self) -> bool:
        """The node was removed: take everything out."""
        self._failed.clear()
        taken = take_out(self._helper, self._found)
        self.observed = taken.observed
        self.writes += taken.writes
        self._scope = Scope()
        self._asked.clear()
        self.leftovers = bool(taken.left)
        for text in taken.left:
            self._note(NodeError("", text, "see what is left with `ip link` and `nft list tables`"))
        return not taken.left

    # --- what is left -------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do for the newest desired state, or what is left is in `errors`.

        A container that is coming up is waited for, one that is going down is not: it may take its
        time, and is an error until it is gone.
        """
        return (
            self._desired is not None
            and self._scope is not None
            and not self._scope
            and not any(self._holds(asked) for asked in self._asked.values())
            and (not self._stale or self._retry_at is not None)
        )

    def _holds(self, asked: _Asked) -> bool:
        coming = not isinstance(asked.operation, StopContainer)
        return coming and self._monotonic() - asked.at < HOLD

    @property
    def deadline(self) -> float | None:
        """When (monotonic) `work` or `settled` has something new to say by itself; None: never."""
        if self._desired is None:
            return None
        if self._scope is None or self._scope:
            return self._monotonic()
        times = [asked.at + HOLD for asked in self._asked.values() if self._holds(asked)]
        if self._retry_at is not None:
            times.append(self._retry_at)
        return min(times, default=None)

    def errors(self) -> tuple[NodeError, ...]:
        """Return what of the desired state is not so, and why."""
        if self._desired is None:
            return ()
        found = (
            *troubles(self._desired, self._facts),
            *self._failed.values(),
            *self._mishaps.values(),
            *self._under_way(self._desired),
        )
        return tuple(dict.fromkeys(found))[:MAX_ERRORS]

    def _under_way(self, desired: DesiredIndex) -> Iterable[NodeError]:
        for identifier, asked in self._asked.items():
            container = desired.containers.get(identifier)
            if container is not None:
                stopping = isinstance(asked.operation, StopContainer)
                what = "is still stopping" if stopping else "has not come up yet"
                yield NodeError(container.name, f"{container.name} {what}")

    def told(self) -> None:
        """The errors were reported: what happened once, as a start that failed, is not reported again."""
        self._mishaps.clear()

    def statuses(self) -> tuple[ContainerStatus, ...]:
        """Return what the engines say of every container that should be here."""
        if self._desired is None:
            return ()
        return self._statuses(self.observed.containers, self._desired.containers)

    def may_write(self, identifier: str) -> bool:
        """Tell whether a container's command may still write output."""
        seen = self.observed.containers.get(identifier)
        return identifier in self._asked or (seen is not None and seen.state not in ENDED)

    # --- remembering --------------------------------------------------------------------------------

    def _is_asked(self, operation: Op) -> bool:
        if not isinstance(operation, _EngineOp):
            return False
        asked = self._asked.get(operation.container)
        return asked is not None and asked.operation == operation and self._monotonic() - asked.at < PATIENCE

    @staticmethod
    def _answered(asked: _Asked, seen: EngineContainer | None) -> bool:
        """Tell whether a look at the host shows what the engine's event would have told."""
        operation = asked.operation
        if seen is None or isinstance(operation, CreateContainer):
            return seen is None or seen.state != "creating"
        if isinstance(operation, StartContainer):
            return seen.generation >= operation.generation
        return seen.state in ENDED

    def _try_later(self) -> None:
        self._retry_at = self._monotonic() + self._retry_delay
        self._retry_delay = min(LAST_RETRY, self._retry_delay * 2)

    def _failure(self, operation: Op, error: str) -> None:
        subject = self._subject(operation)
        self.leftovers = self.leftovers or takes_away(operation)
        if error.startswith(NOT_TRIED) and self._failed:
            return
        self._log.warning("operation failed", operation=type(operation).__name__, error=error)
        self._note(NodeError(subject, error[:4096]))

    def _note(self, error: NodeError) -> None:
        self._failed.setdefault(error.subject, error)

    def _subject(self, operation: Op) -> str:
        """Return the name of the container or peer an operation is for; empty: the node itself."""
        desired = self._desired
        if desired is None:
            return ""
        container = desired.containers.get(getattr(operation, "container", ""))
        if container is not None:
            return container.name
        if isinstance(operation, SetTunnel):
            remote = operation.tunnel.remote
            return next((p.name for p in desired.peers.values() if p.underlay == remote), "")
        if isinstance(operation, SetRoute):
            block = operation.route.block
            return next((p.name for p in desired.peers.values() if p.block == block), "")
        return ""


def status_of(identifier: str, seen: EngineContainer | None) -> ContainerStatus:
    """Return a container's status as the broker hears it."""
    if seen is None:
        return ContainerStatus(identifier, "unknown")
    return ContainerStatus(identifier, seen.state, seen.generation, seen.exit_code, seen.message[:4096])


def _statuses(
    seen: Mapping[str, EngineContainer], wanted: Mapping[str, PlacedContainer]
) -> tuple[ContainerStatus, ...]:
    return tuple(
        status_of(identifier, one) for identifier, one in sorted(seen.items()) if identifier in wanted
    )
