"""Keeps one host as it should be: looks, compares, acts, and remembers what failed.

    desired (newest)     --want----> scope of what may differ
    Docker's endpoints   --attach-->        |
    helper's events      --hear---->        |
    resync, drift        --doubt---> look again first
                                            v
                         work:  observe? -> plan -> helper.apply -> after (the picture of the host)

Changes queue up in the scope, and one `work` does them. What failed is tried again: once at once, after a
fresh look, then ever more slowly. Engines answer by events, so nothing here waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from firewall_rules import names
from netctl.errors import KernelError
from netctl.log import get_logger
from netctl.model import ContainerStatus
from netctl.wire.messages import NodeError
from nodeagent.after import after, with_container, with_sandbox
from nodeagent.desired_index import DesiredIndex, Scope, scope_between, united
from nodeagent.diff import plan
from nodeagent.endpoints import Endpoints
from nodeagent.facts import differ_for_host, lacking
from nodeagent.helper_client import Event, Helper
from nodeagent.helper_messages import ContainerChanged, SandboxChanged
from nodeagent.kernel_state import ContainerPort, EngineContainer, HostFacts, HostState
from nodeagent.latest import Latest
from nodeagent.ops import (
    CreateContainer,
    Op,
    RemoveContainer,
    SetContainerRules,
    SetSysctl,
    WatchSandbox,
)
from nodeagent.owners import sent_apart
from nodeagent.removal import take_out
from nodeagent.retry import Retry
from nodeagent.shortfalls import MAX_ERRORS, Shortfalls
from nodeagent.statuses import status_of, statuses_of
from nodeagent.target import ENDED, FORWARDING, NO_ENDPOINTS, troubles
from nodeagent.under_way import EngineOp, UnderWay, is_slow


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
        self._helper = helper
        self._facts = facts
        self._found = dict(found or {})
        self._remember = remember
        self._monotonic = monotonic
        self._wall = wall
        self._desired: DesiredIndex | None = None
        self._scope: Scope | None = None
        self._endpoints = NO_ENDPOINTS
        self._stale = True
        self._under_way = UnderWay(monotonic)
        # Names of containers that went from the desired state and are not gone.
        self._going: dict[str, str] = {}
        self._shortfalls = Shortfalls()
        self._retry = Retry(monotonic)
        # This looks at every container, and is asked for at every turn.
        self._statuses = Latest(statuses_of)
        self._log = get_logger()

    # --- what changes -------------------------------------------------------------------------------

    def want(self, desired: DesiredIndex, scope: Scope | None = None) -> None:
        """Take a newer desired state.

        Args:
            desired: The whole of it.
            scope: What of the host it can touch; None: everything.
        """
        before, self._desired = self._desired, desired
        self._scope = united(self._scope, scope)
        if before is not None:
            touched = before.containers if scope is None else scope.containers
            for identifier in touched:
                old = before.containers.get(identifier)
                if old is not None and identifier not in desired.containers:
                    self._going[identifier] = old.name
                self._under_way.want(old, desired.containers.get(identifier))

    def attach(self, endpoints: Endpoints) -> None:
        """Take what Docker's driver was asked for, the whole of it."""
        before, self._endpoints = self._endpoints, endpoints
        if before is endpoints:
            return
        scope = scope_between(before, endpoints)
        for key, forms in scope.endpoints.items():
            self._shortfalls.forget_endpoint(key)
            if len({form.sandbox for form in forms if form.sandbox}) > 1:
                # It joined another namespace: the one that is watched is not its own any more.
                self.observed = with_sandbox(self.observed, key, present=None)
        self._scope = united(self._scope, scope)

    def use(self, facts: HostFacts) -> None:
        """Take newer facts of the host; where it is another one by them, everything is looked at anew."""
        before, self._facts = self._facts, facts
        if differ_for_host(before, facts):
            self.doubt()

    def hear(self, event: Event) -> ContainerStatus | None:
        """Take an event in; return the status to report if a container's state changed by it."""
        if isinstance(event, SandboxChanged):
            self._hear_sandbox(event)
        if not isinstance(event, ContainerChanged):
            return None
        identifier, seen = event.container, event.state
        answered = self._under_way.hear(identifier, seen)
        self.observed = with_container(self.observed, identifier, seen)
        if self._desired is None:
            return None
        container = self._desired.containers.get(identifier)
        if container is None:
            if seen is None:
                self._gone(identifier)
            return None
        self._scope = united(self._scope, self._desired.scope_of_container(identifier))
        if seen is not None and seen.state == "failed" and answered:
            text = f"{container.name} could not be started: {seen.message}"
            self._shortfalls.note_mishap(identifier, NodeError(container.name, text))
        return status_of(identifier, seen)

    def _hear_sandbox(self, event: SandboxChanged) -> None:
        endpoint = self._endpoints.by_key.get(event.endpoint)
        # What a look at the whole host has shown meanwhile is told again here.
        if endpoint is not None and self.observed.sandboxes.get(event.endpoint) not in (None, event.present):
            self.observed = with_sandbox(self.observed, event.endpoint, present=event.present)
            self._look_at_endpoint(event.endpoint)

    def _look_at_endpoint(self, key: str) -> None:
        scope = Scope(endpoints={key: frozenset((self._endpoints.by_key[key],))})
        self._scope = united(self._scope, scope)

    def _gone(self, identifier: str) -> None:
        """A container that is not wanted is gone."""
        self._going.pop(identifier, None)
        self._under_way.forget(identifier)
        self._shortfalls.forget_container(identifier)

    def doubt(self) -> None:
        """Look at the whole host again before anything else is done."""
        self._stale = True
        self._scope = None

    @property
    def shares_link(self) -> bool:
        """Whether routes of ours lead along the underlay's own link."""
        underlay = self._facts.underlay_device
        return any(route.device == underlay for route in self.observed.routes.values())

    # --- what is done -------------------------------------------------------------------------------

    def look(self) -> None:
        """Read the host anew.

        Raises:
            KernelError: Reading failed.
            UnavailableError: The helper is gone.
        """
        began = self._monotonic()
        self._watch_all()
        self.observed = self._helper.observe()
        self.look_seconds = self._monotonic() - began
        self.looks += 1
        self._stale = False
        self._scope = None
        self._under_way.look(self.observed.containers)
        for identifier in list(self._going):
            if identifier not in self.observed.containers:
                self._gone(identifier)

    def _watch_all(self) -> None:
        """Have the helper know all namespaces first: else layer 1 would pass for missing, and ports close."""
        unknown = [
            WatchSandbox(endpoint.key, endpoint.sandbox)
            for endpoint in self._endpoints.by_key.values()
            if endpoint.sandbox and endpoint.key not in self.observed.sandboxes
        ]
        if unknown and (self._desired is None or self._desired.header.block is not None):
            sent_apart(self._helper, unknown)

    def work(self) -> None:
        """Do what there is to do now. What waits for an engine's event is left for the next call.

        Raises:
            UnavailableError: The helper is gone; a new one must be given a new `Reconciler`.
        """
        if self._retry.take():
            self.doubt()
        if self._desired is not None:
            for identifier in self._under_way.rested():
                self._scope = united(self._scope, self._desired.scope_of_container(identifier))
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
            text = f"cannot read this host's state: {error.message}"
            self._shortfalls.note(NodeError("", text, error.remedy))
            self._shortfalls.left = True
            self._stale = True
            self._scope = Scope()
            clean = False
        if not clean:
            self._retry.later()

    def _pass(self) -> bool:
        """Compare and act once; return whether nothing failed."""
        desired, everything = self._desired, self._scope is None
        if desired is None:
            return True
        if desired.header.block is None:
            return self._removed()
        operations = tuple(
            operation
            for operation in plan(
                desired,
                self._facts,
                self.observed,
                self._wall(),
                scope=self._scope,
                endpoints=self._endpoints,
            )
            if not self._under_way.puts_off(operation, desired.containers)
        )
        self._scope = Scope()
        if everything:
            self._shortfalls.begin()
        results = self._apply(operations)
        clean = all(not error for error in results)
        if clean and everything:
            self._retry.over()
        return clean

    def _apply(self, operations: Sequence[Op]) -> tuple[str, ...]:
        if not operations:
            return ()
        self._keep_found(operations)
        self.writes += len(operations)
        began = self._monotonic()
        results = sent_apart(self._helper, operations)
        self._log.debug(
            "operations done",
            operation=" ".join(sorted({type(operation).__name__ for operation in operations})),
            count=len(operations),
            duration_ms=round((self._monotonic() - began) * 1000, 3),
        )
        for operation, error in zip(operations, results, strict=True):
            self._shortfalls.note_operation(operation, error, self._desired, self._endpoints)
            if not error:
                self._done(operation)
        return results

    def _done(self, operation: Op) -> None:
        """Take note of an operation that was done, or that an engine was asked for."""
        if isinstance(operation, EngineOp):
            identifier = operation.container
            slow = is_slow(operation, self.observed.containers.get(identifier))
            if slow or not isinstance(operation, RemoveContainer):
                self._under_way.ask(operation, self._name(identifier), slow=slow)
                if isinstance(operation, CreateContainer):
                    creating = EngineContainer("creating", removes_later=slow)
                    self.observed = with_container(self.observed, identifier, creating)
                return
            self._gone(identifier)
        self.observed = after(operation, self.observed)
        if isinstance(operation, SetContainerRules) and operation.container in self._endpoints.by_key:
            # Now that this stands, the port may be opened.
            self._look_at_endpoint(operation.container)

    def _name(self, identifier: str) -> str:
        container = None if self._desired is None else self._desired.containers.get(identifier)
        return self._going.get(identifier, identifier) if container is None else container.name

    def _keep_found(self, operations: Sequence[Op]) -> None:
        """Remember how a setting of the whole host was before we change it for the first time."""
        before = self.observed.sysctls.get(FORWARDING)
        if before is None or FORWARDING in self._found:
            return
        if any(isinstance(operation, SetSysctl) and operation.path == FORWARDING for operation in operations):
            self._found[FORWARDING] = before
            try:
                self._remember(self._found)
            except OSError as failure:
                self._log.warning("what was found cannot be kept", error=str(failure))

    def _removed(self) -> bool:
        """The node was removed: take everything out."""
        self._shortfalls.begin()
        taken = take_out(self._helper, self._found, patience=0.0)
        self.observed = taken.observed
        self.writes += taken.writes
        self._scope = Scope()
        self._under_way.clear()
        self._going.clear()
        self._shortfalls.left = bool(taken.left)
        for text in taken.left:
            self._shortfalls.note(
                NodeError("", text, "see what is left with `ip link` and `nft list tables`")
            )
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
            and not self._under_way.holds
            and (not self._stale or self._retry.at is not None)
        )

    @property
    def leftovers(self) -> bool:
        """Whether something that was to be taken away may still be there."""
        kept = {} if self._desired is None else self._desired.containers
        return self._shortfalls.left or self._under_way.removing(kept)

    def built(self, key: str) -> str | None:
        """Tell whether Docker may move an endpoint's far end into its container.

        Returns:
            Empty: its port stands, and if its namespace is there, its layer 1 does too. None: not yet. Else
            why not.

        Raises:
            UnavailableError: The helper is gone.
        """
        endpoint, desired = self._endpoints.by_key.get(key), self._desired
        if endpoint is None or not endpoint.sandbox or desired is None or desired.header.block is None:
            return "this node has no place for it"
        if lacking(self._facts):
            return lacking(self._facts)
        device = names.port_device(key)
        if (
            key in self.observed.sandboxes
            and self.observed.ports.get(device) == ContainerPort(device, desired.header.mtu)
            and (key in self.observed.container_policies or not self._helper.sandbox_present(key))
        ):
            return ""
        return self._shortfalls.of_endpoint(key)

    @property
    def deadline(self) -> float | None:
        """When (monotonic) `work` or `settled` has something new to say by itself; None: never."""
        if self._desired is None:
            return None
        if self._scope is None or self._scope:
            return self._monotonic()
        times = self._under_way.deadlines()
        if self._retry.at is not None:
            times.append(self._retry.at)
        return min(times, default=None)

    def errors(self) -> tuple[NodeError, ...]:
        """Return what of the desired state is not so, and why."""
        if self._desired is None:
            return ()
        found = (
            *troubles(self._desired, self._facts),
            *self._shortfalls.errors(),
            *self._under_way.errors(),
        )
        return tuple(dict.fromkeys(found))[:MAX_ERRORS]

    def told(self) -> None:
        """The errors were reported: what happened once, as a start that failed, is not reported again."""
        self._shortfalls.told()

    def statuses(self) -> tuple[ContainerStatus, ...]:
        """Return what the engines say of every container that should be here."""
        if self._desired is None:
            return ()
        return self._statuses(self.observed.containers, self._desired.containers)

    def may_write(self, identifier: str) -> bool:
        """Tell whether a container's command may still write output."""
        seen = self.observed.containers.get(identifier)
        return identifier in self._under_way or (seen is not None and seen.state not in ENDED)
