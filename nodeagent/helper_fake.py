"""The privileged child without the child: its interface over a `Host` in the same process, for tests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

from netctl.model import PathState
from nodeagent.apply import Host
from nodeagent.execs import Execs
from nodeagent.helper_client import Event
from nodeagent.helper_messages import (
    Adopt,
    ContainerChanged,
    Drifted,
    OpenCopy,
    OpenExec,
    OpenLogs,
    PathsChanged,
    SandboxChanged,
)
from nodeagent.kernel_state import DOCKER, EngineContainer, HostChecks, HostFacts, HostState, ProbeTarget
from nodeagent.ops import Op


def _nothing(_number: int, _operation: Op) -> None:
    return


class LocalHelper:
    """What `nodeagent.helper_client.HelperClient` does, over fakes.

    Operations are done one by one, so that a test can crash between any two.

    Args:
        host: Over fakes; it outlives this object when a test crashes and starts again.
        before: Called with the number (from 0) of each operation of this object's life, and the operation,
            before it is done; raises `nodeagent.kernel.fake.CrashError` to crash there.
        after: The same, once it is done.

    Attributes:
        applied: Every operation done so far: an agent's writes.
        probed: The ways that are probed; `find` says what of them is found.
    """

    def __init__(
        self,
        host: Host,
        before: Callable[[int, Op], None] = _nothing,
        after: Callable[[int, Op], None] = _nothing,
    ) -> None:
        self.applied: list[Op] = []
        self.probed: tuple[ProbeTarget, ...] = ()
        self._host = host
        self._execs = Execs(host)
        self._before = before
        self._after = after
        self._events: list[Event] = []
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        if DOCKER in host.engines:
            host.docker().listen(self._events.append)

    def facts(self, underlay: str | None = None) -> HostFacts:
        """See `Helper`."""
        return self._host.facts(underlay)

    def checks(self, peers: Sequence[str] = ()) -> HostChecks:
        """See `Helper`."""
        return self._host.checks(peers)

    def observe(self) -> HostState:
        """See `Helper`."""
        return self._host.observe()

    def apply(self, operations: Sequence[Op]) -> tuple[str, ...]:
        """See `Helper`."""
        run = self._host.new_run()
        errors: list[str] = []
        for operation in operations:
            number = len(self.applied)
            self._before(number, operation)
            self.applied.append(operation)
            errors.extend(self._host.apply((operation,), run))
            self._after(number, operation)
        return tuple(errors)

    def open_exec(self, request: OpenExec) -> tuple[int, tuple[int, ...]]:
        """See `Helper`."""
        return self._execs.open(request, self._events.append)

    def kill_exec(self, handle: int) -> None:
        """See `Helper`."""
        self._execs.kill(handle)

    def open_logs(self, request: OpenLogs) -> tuple[int, int]:
        """See `Helper`."""
        handle, (descriptor,) = self._execs.logs(request, self._events.append)
        return handle, descriptor

    def open_copy(self, request: OpenCopy) -> tuple[int, int]:
        """See `Helper`."""
        handle, (descriptor,) = self._execs.copy(request, self._events.append)
        return handle, descriptor

    def adopt(self, request: Adopt) -> int:
        """See `Helper`."""
        return self._execs.adopt(request, self._events.append)

    def list_docker(self) -> None:
        """See `Helper`."""
        self._host.docker().list_docker()

    def revive_docker(self) -> None:
        """See `Helper`."""
        self._host.docker().revive()

    def set_probes(self, targets: Sequence[ProbeTarget]) -> None:
        """See `Helper`."""
        self.probed = tuple(targets)

    def find(self, *paths: PathState) -> None:
        """Have the probes find these ways so."""
        self._events.append(PathsChanged(paths))
        self.wake()

    def sandbox_present(self, endpoint: str) -> bool:
        """See `Helper`."""
        sandboxes = self._host.sandboxes
        return sandboxes is not None and sandboxes.present().get(endpoint, False)

    def events(self) -> list[Event]:
        """See `Helper`. Lets the engines' fakes say what happened first."""
        for engine in self._host.engines.values():
            self._host.dispatch(engine, self._container_changed)
        self._host.dispatch_sandboxes(self._sandbox_changed)
        drift = self._host.drifted()
        if drift:
            self._events.append(Drifted(drift))
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 4096)
        events = self._events.copy()
        self._events.clear()
        return events

    def _container_changed(self, container: str, state: EngineContainer | None) -> None:
        self._events.append(ContainerChanged(container, state))

    def _sandbox_changed(self, endpoint: str, present: bool) -> None:  # noqa: FBT001 - as a callback
        self._events.append(SandboxChanged(endpoint, present))

    def tell(self, event: Event) -> None:
        """Let something happen that a fake does not do by itself."""
        self._events.append(event)

    def wake(self) -> None:
        """Make `fileno` readable: a fake has something to tell."""
        os.write(self._writer, b"\\0")

    def fileno(self) -> int:
        """See `Helper`."""
        return self._reader

    def close(self) -> None:
        """See `Helper`."""
        os.close(self._reader)
        os.close(self._writer)
