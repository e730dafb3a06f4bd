"""One host as observed and changed: its kernel, its firewall and its container engines, side by side.

`Host` works over the real ones and over fakes alike; it decides nothing but what is not tried after a
failure. It lives in the privileged child, which imports the real ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import singledispatchmethod
from typing import get_args

import attrs

from firewall_rules.backends.base import ContainerBackend, FirewallError, HostBackend, Passages
from firewall_rules.policy import ContainerPolicy
from netctl.errors import KernelError, NetctlError
from nodeagent.engine.base import Changed, Docker, Engine
from nodeagent.failures import Failures
from nodeagent.kernel.base import Kernel, KernelOp
from nodeagent.kernel_state import DOCKER, EngineContainer, HostChecks, HostFacts, HostState
from nodeagent.ops import (
    ClosePassage,
    CreateContainer,
    DeleteHostRules,
    ForgetSandbox,
    Op,
    OpenPassage,
    RemoveContainer,
    SetContainerRules,
    SetEnd,
    SetHostRules,
    SetPort,
    StartContainer,
    StopContainer,
    UpdateContainerRules,
    UpdateHostRules,
    WatchSandbox,
)
from nodeagent.sandboxes import Sandboxes

_NO_DOCKER = "this node has no container engine 'docker'"
_NO_DOCKER_REMEDY = "start its agent with the engine docker"
_KERNEL_OPS = get_args(KernelOp)
_FAILURES = (NetctlError, FirewallError, OSError)


class Host:
    """The one place where operations meet the kernel, the firewall and the engines.

    Args:
        kernel: Links, addresses, routes, sysctls.
        container_backend: Layer 1; None: no backend works here, and no container can be made.
        host_backend: Layer 2.
        engines: Container engines on offer, the default first.
        sandboxes: Docker's namespaces, where its engine is on offer.
        passages: Likewise, through Docker's own firewall.

    Attributes:
        engines: By name.
        sandboxes: See above.
    """

    def __init__(
        self,
        kernel: Kernel,
        container_backend: ContainerBackend | None,
        host_backend: HostBackend,
        engines: Sequence[Engine],
        *,
        sandboxes: Sandboxes | None = None,
        passages: Passages | None = None,
    ) -> None:
        self._kernel = kernel
        self._container_backend = container_backend
        self._host_backend = host_backend
        self._host_firewall = host_backend.unusable()
        self.engines: Mapping[str, Engine] = {engine.name: engine for engine in engines}
        self.sandboxes = sandboxes
        self._passages = passages
        self._owners: dict[str, Engine] = {}

    def facts(self, underlay: str | None) -> HostFacts:
        """Say what the host is. `underlay`: the address to use; None: that of the default route's link.

        Raises:
            KernelError: No such address on this host.
        """
        return attrs.evolve(
            self._kernel.facts(underlay),
            firewall="none" if self._container_backend is None else self._container_backend.name,
            host_firewall=self._host_firewall,
            engines=tuple(self.engines),
        )

    def checks(self, peers: Sequence[str] = ()) -> HostChecks:
        """Look at what of the host may be in our way. `peers`: addresses whose routes are looked up.

        Raises:
            KernelError: Looking failed.
        """
        return self._kernel.checks(peers)

    def observe(self) -> HostState:
        """Read everything of ours; change nothing."""
        containers: dict[str, EngineContainer] = {}
        namespaces: dict[str, int] = {}
        for engine in self.engines.values():
            for container, seen in engine.containers().items():
                containers[container] = _told_by(engine, seen)
                namespace = _namespace(engine, container)
                if namespace is not None:
                    namespaces[container] = namespace
        links = self._kernel.observe(namespaces)
        sandboxes: Mapping[str, bool] = {}
        if self.sandboxes is not None:
            sandboxes = self.sandboxes.present()
            namespaces |= {key: self.sandboxes.namespace(key) for key, there in sandboxes.items() if there}
        return HostState(
            bridge=links.bridge,
            sysctls=links.sysctls,
            tunnels=links.tunnels,
            routes=links.routes,
            ports=links.ports,
            ends=links.ends,
            host_policy=None if self._host_firewall else self._host_backend.read(),
            container_policies=self._container_policies(namespaces),
            containers=containers,
            sandboxes=sandboxes,
            passages={} if self._passages is None else self._passages.read(),
            wireguard=links.wireguard,
        )

    def _container_policies(self, namespaces: Mapping[str, int]) -> Mapping[str, ContainerPolicy]:
        policies = {}
        if self._container_backend is not None:
            for container, namespace in namespaces.items():
                policy = self._container_backend.read(container, namespace)
                if policy is not None:
                    policies[container] = policy
        return policies

    def new_run(self) -> Failures:
        """Begin a run of operations that comes in several calls of `apply`."""
        return Failures(host_rules=bool(self._host_firewall))

    def apply(self, operations: Sequence[Op], failures: Failures | None = None) -> tuple[str, ...]:
        """Do `operations` in order; return one text each: empty, or why it failed or was not tried.

        Kernel operations of one kind that follow each other go to the kernel as one batch.

        Args:
            operations: In the order of `nodeagent.ops.ORDER`.
            failures: Of the earlier calls of the same run; None: this is the whole run.
        """
        failures = self.new_run() if failures is None else failures
        errors: list[str] = []
        for _, group in itertools.groupby(operations, key=type):
            batch = tuple(group)
            refusals = [failures.forbid(operation) for operation in batch]
            allowed = [op for op, refusal in zip(batch, refusals, strict=True) if not refusal]
            done = iter(self._apply_batch(allowed))
            for operation, refusal in zip(batch, refusals, strict=True):
                error = refusal or next(done)
                failures.note(operation, error)
                errors.append(error)
        return tuple(errors)

    def _apply_batch(self, operations: Sequence[Op]) -> list[str]:
        """Do operations of one kind."""
        kernel_operations = [op for op in operations if isinstance(op, _KERNEL_OPS)]
        if not kernel_operations:
            return [self._try(operation) for operation in operations]
        try:
            return self._kernel.apply(kernel_operations, self._namespaces_of(kernel_operations))
        except _FAILURES as error:
            return [str(error)] * len(kernel_operations)

    def _namespaces_of(self, operations: Sequence[KernelOp]) -> Mapping[str, int]:
        namespaces = {}
        for operation in operations:
            if isinstance(operation, SetPort | SetEnd):
                engine = self._engine_of(operation.container)
                namespace = None if engine is None else _namespace(engine, operation.container)
                if namespace is not None:
                    namespaces[operation.container] = namespace
        return namespaces

    def _try(self, operation: Op) -> str:
        try:
            self._do(operation)
        except _FAILURES as error:
            return str(error)
        return ""

    @singledispatchmethod
    def _do(self, operation: Op) -> None:
        raise TypeError(f"{type(operation).__name__} is no operation of a host")

    @_do.register
    def _(self, operation: SetHostRules) -> None:
        self._host_backend.install(operation.policy)

    @_do.register
    def _(self, operation: UpdateHostRules) -> None:
        self._host_backend.update(
            bindings=operation.bindings,
            bindings_removed=operation.bindings_removed,
            pairs=operation.pairs,
            pairs_removed=operation.pairs_removed,
            tunnels=operation.tunnels,
            tunnels_removed=operation.tunnels_removed,
            publications=operation.publications,
            publications_removed=operation.publications_removed,
            internal=operation.internal,
            internal_removed=operation.internal_removed,
        )

    @_do.register
    def _(self, operation: OpenPassage) -> None:
        if self._passages is not None:
            self._passages.open(operation.variant)

    @_do.register
    def _(self, operation: ClosePassage) -> None:
        if self._passages is not None:
            self._passages.close(operation.variant)

    @_do.register
    def _(self, operation: WatchSandbox) -> None:
        if self.sandboxes is None:
            raise KernelError(_NO_DOCKER, _NO_DOCKER_REMEDY)
        self.sandboxes.watch(operation.endpoint, operation.sandbox)

    @_do.register
    def _(self, operation: ForgetSandbox) -> None:
        self._forget_rules(operation.endpoint)
        if self.sandboxes is not None:
            self.sandboxes.forget(operation.endpoint)

    def _forget_rules(self, key: str) -> None:
        """Let go of a namespace: a socket or context of ours inside would keep it alive."""
        if self._container_backend is not None:
            self._container_backend.forget(key)

    def dispatch(self, engine: Engine, changed: Changed) -> None:
        """See `nodeagent.engine.base.Engine.dispatch`."""

        def tell(container: str, seen: EngineContainer | None) -> None:
            if seen is None:
                self._owners.pop(container, None)
            changed(container, None if seen is None else _told_by(engine, seen))

        engine.dispatch(tell)

    def dispatch_sandboxes(self, changed: Callable[[str, bool], None]) -> None:
        """See `nodeagent.sandboxes.Sandboxes.dispatch`."""

        def tell(endpoint: str, present: bool) -> None:  # noqa: FBT001 - as `Sandboxes` calls it
            if not present:
                self._forget_rules(endpoint)
            changed(endpoint, present)

        if self.sandboxes is not None:
            self.sandboxes.dispatch(tell)

    @_do.register
    def _(self, _operation: DeleteHostRules) -> None:
        self._host_backend.remove()

    @_do.register
    def _(self, operation: SetContainerRules) -> None:
        backend, namespace = self._layer_one(operation.container)
        backend.install(operation.container, namespace, operation.policy)

    @_do.register
    def _(self, operation: UpdateContainerRules) -> None:
        backend, namespace = self._layer_one(operation.container)
        backend.update(
            operation.container,
            namespace,
            inbound=operation.inbound,
            inbound_removed=operation.inbound_removed,
            outbound=operation.outbound,
            outbound_removed=operation.outbound_removed,
        )

    @_do.register
    def _(self, operation: CreateContainer) -> None:
        engine = self.engines.get(operation.workload.engine)
        if engine is None:
            raise KernelError(
                f"this node has no container engine {operation.workload.engine!r}",
                "run the container on a node that lists the engine, or start its agent with it",
            )
        engine.create(
            operation.container, operation.name, operation.address, operation.workload, operation.block
        )

    @_do.register
    def _(self, operation: StartContainer) -> None:
        self._owner_of(operation.container).start(operation.container, operation.generation)

    @_do.register
    def _(self, operation: StopContainer) -> None:
        engine = self._engine_of(operation.container)
        if engine is not None:
            engine.stop(operation.container)

    @_do.register
    def _(self, operation: RemoveContainer) -> None:
        engine = self._engine_of(operation.container)
        self._forget_rules(operation.container)
        if engine is not None:
            engine.remove(operation.container)
            if not engine.removes_later:
                del self._owners[operation.container]

    def engine_of(self, container: str) -> Engine:
        """Return the engine in which something may be done for a user in `container`: run, copied, read.

        Docker has more containers than those we made: it says itself which it has not.

        Raises:
            KernelError: None can have it.
        """
        docker = self.engines.get(DOCKER)
        return (
            docker if docker is not None and self._engine_of(container) is None else self._owner_of(container)
        )

    def docker(self) -> Docker:
        """Return the engine that Docker is.

        Raises:
            KernelError: It is not on offer.
        """
        engine = self.engines.get(DOCKER)
        if not isinstance(engine, Docker):
            raise KernelError(_NO_DOCKER, _NO_DOCKER_REMEDY)
        return engine

    def _owner_of(self, container: str) -> Engine:
        """Return the engine that has a container that we made.

        Raises:
            KernelError: None has it.
        """
        engine = self._engine_of(container)
        if engine is None:
            raise KernelError(f"container {container} is not on this node")
        return engine

    def _engine_of(self, container: str) -> Engine | None:
        if container not in self._owners:
            for engine in self.engines.values():
                self._owners.update(dict.fromkeys(engine.containers(), engine))
        return self._owners.get(container)

    def _layer_one(self, container: str) -> tuple[ContainerBackend, int]:
        if self._container_backend is None:
            raise KernelError(
                "no firewall works in containers of this node", "install nftables, and start the agent again"
            )
        if self.sandboxes is not None and self.sandboxes.watches(container):
            return self._container_backend, self.sandboxes.namespace(container)
        return self._container_backend, self._owner_of(container).namespace(container)

    def drifted(self) -> str:
        """Tell cheaply whether someone else has changed one of our firewalls since we last read it.

        Returns:
            One line for the log, naming the first one found; empty: none.
        """
        try:
            return self._drifted()
        except (FirewallError, OSError) as error:
            return f"a firewall cannot be read: {error}"

    def _drifted(self) -> str:
        if not self._host_firewall and self._host_backend.drifted():
            return "the host's firewall was changed by someone else"
        if self._passages is not None and not all(self._passages.read().values()):
            return "our rule in DOCKER-USER is not there, or not first"
        if self._container_backend is None:
            return ""
        for engine in self.engines.values():
            for container in engine.containers():
                namespace = _namespace(engine, container)
                if namespace is not None and self._container_backend.drifted(container, namespace):
                    return f"the firewall of container {container} was changed by someone else"
        if self.sandboxes is not None:
            for endpoint, there in self.sandboxes.present().items():
                if there and self._container_backend.drifted(endpoint, self.sandboxes.namespace(endpoint)):
                    return f"the firewall of Docker's endpoint {endpoint} was changed by someone else"
        return ""


def _told_by(engine: Engine, seen: EngineContainer) -> EngineContainer:
    """Return what an engine says of a container, with what is to be known of the engine itself."""
    return attrs.evolve(seen, removes_later=True) if engine.removes_later else seen


def _namespace(engine: Engine, container: str) -> int | None:
    try:
        return engine.namespace(container)
    except KernelError:
        # It ended, or has not been made yet: an ordinary state of a container.
        return None
