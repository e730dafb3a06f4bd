"""The process engine: containers that are commands of the host, in namespaces of their own.

    ProcessEngine --ShimLink--> nodeagent.shim (one per container) --> the command
         |                          |
         | cgroups.Cgroups          | <state directory>/containers/<id>/
         '--------------------------'

The shims are the truth: what is kept here is what they said last. An engine started anew finds them by
their directories and sockets. Of a container whose shim is gone, one that had ended gets a new shim (and
stays ended), any other is forgotten, so that the agent makes it again.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import attrs
import msgspec

from netctl.errors import KernelError
from netctl.model import Workload
from nodeagent.engine.base import Changed, Direction, Ended, ExecRequest
from nodeagent.engine.cgroups import Cgroups
from nodeagent.engine.process_copy import copy_by_tar
from nodeagent.engine.process_spec import exec_of, spec_of
from nodeagent.engine.shim_link import OUTPUT, SPEC, ShimLink, ShimStatus, read_spec
from nodeagent.kernel_state import EngineContainer
from nodeagent.shim_output import open_at_first_record

GREETED_WITHIN: Final = 2.0
"""Seconds a starting engine waits for shims that live to say how they are."""
GONE_WITHIN: Final = 2.0
"""Seconds a removal waits for killed processes."""
_CREATING: Final = EngineContainer("creating")
_CONTAINER: Final = re.compile(r"[0-9a-f]{32}\Z")
_NO_SHIM: Final = "the process that holds the container is gone"


@attrs.frozen
class _Exec:
    container: str
    ended: Ended


class ProcessEngine:
    """An `Engine`; see `nodeagent.engine.base` for what its methods promise.

    Logs: see `nodeagent.shim_output` for the file a descriptor of `logs` reads; follow it by reading on.
    """

    name: str = "process"
    removes_later: bool = False

    def __init__(
        self,
        state_directory: Path,
        *,
        root: bool = False,
        masked: Iterable[str | Path] = (),
        cgroups: Cgroups | None = None,
    ) -> None:
        """Find the containers that are there, and hear from each that lives.

        Args:
            state_directory: The agent's own; containers are kept in ``containers`` below it.
            root: The node is a lab's: containers run as root unless told otherwise.
            masked: Directories and files no container may see, beside `state_directory` and
                `process_spec.MASKED`.
            cgroups: Those of the host unless given.

        Raises:
            OSError: The state directory cannot be used.
        """
        self._directory = state_directory.absolute() / "containers"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Three descriptors for each container: more than the usual soft limit, made for select(2), lets us.
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._root = root
        self._masked = (state_directory.absolute(), *masked)
        self._cgroups = Cgroups() if cgroups is None else cgroups
        self._links: dict[str, ShimLink] = {}
        self._seen: dict[str, EngineContainer] = {}
        self._unconnected: set[str] = set()
        self._by_socket: dict[int, ShimLink] = {}
        self._children: dict[int, int] = {}
        self._execs: dict[int, _Exec] = {}
        self._handles = 0
        self._queued: list[Callable[[], None]] = []
        self._epoll = select.epoll(select.EPOLL_CLOEXEC)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._find()

    def containers(self) -> Mapping[str, EngineContainer]:
        """See `Engine`."""
        for link in [self._links[container] for container in self._unconnected]:
            # Its shim lived but took no connection; it may by now, or be gone.
            if link.doomed:
                continue
            if not link.connect():
                self._forget(link)
                self._settle(link, _no_one)
            elif link.sock is not None:
                self._adopt(link)
        return MappingProxyType(self._seen)

    def namespace(self, container: str) -> int:
        """See `Engine`."""
        link = self._links.get(container)
        if link is None or link.namespace < 0:
            raise KernelError(f"container {container} has no network namespace")
        return link.namespace

    def create(self, container: str, name: str, address: str, workload: Workload, block: str = "") -> None:
        """See `Engine`. A container that is there stays as it is; the block means nothing here."""
        del block
        if container in self._links:
            return
        if _CONTAINER.match(container) is None:
            raise KernelError(f"{container[:80]!r} is no container id")
        spec = spec_of(name, address, workload, root=self._root, masked=self._masked)
        link = ShimLink(container, self._directory / container, spec, _CREATING)
        try:
            self._clear(container)
            link.directory.mkdir(mode=0o700)
            (link.directory / SPEC).write_bytes(msgspec.json.encode(spec))
            self._spawn(link)
        except (OSError, TimeoutError) as error:
            link.close()
            with contextlib.suppress(OSError, TimeoutError):
                self._clear(container)
            raise KernelError(f"cannot make container {name}: {error}") from error

    def start(self, container: str, generation: int) -> None:
        """See `Engine`. A generation that was started already is not started again."""
        link = self._links.get(container)
        if link is None or link.namespace < 0:
            raise KernelError(f"container {container} does not exist or is not made yet")
        if generation <= link.seen.generation:
            return
        if link.seen.state == "running":
            raise KernelError(f"container {link.spec.name} still runs", "stop it first")
        link.send({"do": "start", "generation": generation})

    def stop(self, container: str) -> None:
        """See `Engine`."""
        if (link := self._links.get(container)) is not None and link.sock is not None:
            link.send({"do": "stop"})

    def remove(self, container: str) -> None:
        """See `Engine`.

        Raises:
            KernelError: Processes of it are still there after two seconds; it is still known then.
        """
        link = self._links.get(container)
        if link is None:
            return
        link.doomed = True
        deadline = time.monotonic() + GONE_WITHIN
        if not self._cgroups.kill(container):
            with contextlib.suppress(KernelError):
                link.send({"do": "quit"})
        try:
            self._wait_until_ended(link, deadline)
            self._clear(container, deadline)
        except (OSError, TimeoutError) as error:
            raise KernelError(
                f"container {link.spec.name} cannot be removed: {error}", "it is tried again"
            ) from error
        self._forget(link)
        self._end_execs(container, 128 + signal.SIGKILL, "")

    def exec(self, container: str, request: ExecRequest, ended: Ended) -> int:
        """See `Engine`."""
        link = self._links.get(container)
        if link is None or link.seen.state != "running":
            raise KernelError(f"container {container} is not running", "start it first")
        command = exec_of(link.spec, request.argv, request.env, request.user)
        self._handles += 1
        file = os.memfd_create("command", os.MFD_CLOEXEC)
        try:
            with open(file, "wb", closefd=False) as writer:
                writer.write(msgspec.json.encode(command))
            link.send(
                {
                    "do": "exec",
                    "handle": self._handles,
                    "tty": request.tty,
                    "rows": request.rows,
                    "columns": request.columns,
                },
                (file, request.stdin, request.stdout, request.stderr),
            )
        finally:
            os.close(file)
        self._execs[self._handles] = _Exec(container, ended)
        return self._handles

    def kill_exec(self, handle: int) -> None:
        """See `Engine`. SIGHUP, then SIGKILL, to the command's process group."""
        if (one := self._execs.get(handle)) is not None:
            self._links[one.container].send({"do": "kill", "handle": handle})

    def copy(self, container: str, path: str, direction: Direction, descriptor: int, ended: Ended) -> int:
        """See `Engine`. The container must run."""
        return copy_by_tar(
            lambda request, tell: self.exec(container, request, tell), path, direction, descriptor, ended
        )

    def logs(self, container: str, tail: int | None, *, follow: bool, ended: Ended) -> tuple[int, int]:
        """See `Engine`. Where a record would begin, skip zero bytes: they are output given up meanwhile."""
        del tail, follow, ended
        link = self._links.get(container)
        if link is None:
            raise KernelError(f"container {container} does not exist")
        try:
            return 0, open_at_first_record(str(link.directory / OUTPUT))
        except OSError as error:
            raise KernelError(f"the output of container {link.spec.name} cannot be read: {error}") from error

    def descriptors(self) -> Sequence[int]:
        """See `Engine`. One for all, however many containers there are."""
        return (self._epoll.fileno(),)

    def dispatch(self, changed: Changed) -> None:
        """See `Engine`."""
        for descriptor, _ in self._epoll.poll(0):
            self._handle(descriptor, changed)
        queued, self._queued = self._queued, []
        for call in queued:
            call()

    def close(self) -> None:
        """Let go of everything; the containers live on."""
        for link in list(self._links.values()):
            self._forget(link)
        for descriptor in self._children:
            os.close(descriptor)
        self._children.clear()
        self._epoll.close()
        os.close(self._wake)

    def _find(self) -> None:
        """Connect to every shim that lives, settle those that do not, and wait for greetings."""
        for directory in sorted(self._directory.iterdir()):
            container = directory.name
            if _CONTAINER.match(container) is None:
                continue
            if (spec := read_spec(directory)) is None:
                with contextlib.suppress(OSError, TimeoutError):
                    self._clear(container)
                continue
            link = ShimLink(container, directory, spec, _CREATING)
            if link.connect():
                if link.recorded() is not None:
                    link.seen = EngineContainer("unknown")
                self._adopt(link)
            else:
                self._settle(link, _no_one)
        deadline = time.monotonic() + GREETED_WITHIN
        silent = {link.container for link in self._links.values() if not link.revived}
        while silent and (rest := deadline - time.monotonic()) > 0:
            for descriptor, _ in self._epoll.poll(rest):
                self._handle(descriptor, lambda container, _: silent.discard(container))

    def _adopt(self, link: ShimLink) -> None:
        self._links[link.container] = link
        self._seen[link.container] = link.seen
        if link.sock is None:
            self._unconnected.add(link.container)
        else:
            self._unconnected.discard(link.container)
            self._by_socket[link.sock.fileno()] = link
            self._epoll.register(link.sock.fileno(), select.EPOLLIN)

    def _spawn(self, link: ShimLink) -> None:
        pid = link.spawn()
        child = os.pidfd_open(pid)
        self._children[child] = pid
        self._epoll.register(child, select.EPOLLIN)
        self._cgroups.add(link.container, pid)
        self._adopt(link)

    def _handle(self, descriptor: int, changed: Changed) -> None:
        if descriptor == self._wake:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        elif descriptor in self._children:
            self._reap(descriptor)
        elif (link := self._by_socket.get(descriptor)) is not None:
            self._hear(link, changed)

    def _reap(self, child: int) -> None:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self._children[child], os.WNOHANG)[0] == 0:
                return
        del self._children[child]
        self._epoll.unregister(child)
        os.close(child)

    def _hear(self, link: ShimLink, changed: Changed) -> None:
        try:
            while (heard := link.receive()) is not None:
                event, descriptors = heard
                if event.event == "ended":
                    self._exec_ended(event.handle, event.exit_code or 0, event.message)
                else:
                    self._note_descriptors(link, descriptors)
                    status = ShimStatus(event.state, event.generation, event.exit_code, event.message)
                    self._see(link, status.seen(), changed)
        except ConnectionError:
            self._lost(link, changed)

    def _see(self, link: ShimLink, seen: EngineContainer, changed: Changed) -> None:
        link.seen = self._seen[link.container] = seen
        changed(link.container, seen)

    def _note_descriptors(self, link: ShimLink, descriptors: list[int]) -> None:
        if len(descriptors) == 2 and link.namespace < 0:  # noqa: PLR2004 - namespace and pidfd, see nodeagent.shim
            link.namespace, link.process = descriptors
            return
        for descriptor in descriptors:
            os.close(descriptor)

    def _lost(self, link: ShimLink, changed: Changed) -> None:
        """The connection ended: the shim hung up on an engine that did not listen, or is gone."""
        self._unwatch(link)
        self._end_execs(link.container, 125, _NO_SHIM)
        if link.doomed or link.connect():
            self._adopt(link)
            return
        if link.namespace < 0:
            # It never stood. Kept, so that the user hears why.
            self._see(link, EngineContainer("failed", message=link.last_words()), changed)
            return
        self._forget(link)
        self._settle(link, changed)

    def _settle(self, link: ShimLink, changed: Changed) -> None:
        """Decide what becomes of a container whose shim is gone."""
        recorded = link.recorded()
        self._cgroups.kill(link.container)
        try:
            if recorded is not None and recorded.exit_code is not None and not link.revived:
                again = ShimLink(link.container, link.directory, link.spec, _CREATING, revived=True)
                self._spawn(again)
                changed(link.container, _CREATING)
                return
            self._clear(link.container)
        except (OSError, TimeoutError):
            # What is left is found at the next start; without a shim it is no container.
            pass
        changed(link.container, None)

    def _wait_until_ended(self, link: ShimLink, deadline: float) -> None:
        if link.process >= 0:
            watch = select.poll()
            watch.register(link.process, select.POLLIN)
            if not watch.poll((deadline - time.monotonic()) / 2 * 1000):
                signal.pidfd_send_signal(link.process, signal.SIGKILL)
                if not watch.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise TimeoutError("its processes do not end")
        for child in list(self._children):
            self._reap(child)

    def _clear(self, container: str, deadline: float | None = None) -> None:
        """Remove whatever a container left: processes, cgroups, directory."""
        if deadline is None:
            deadline = time.monotonic() + GONE_WITHIN
        self._cgroups.kill(container)
        self._cgroups.remove(container, deadline)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._directory / container)

    def _forget(self, link: ShimLink) -> None:
        self._unwatch(link)
        link.close()
        self._links.pop(link.container, None)
        self._unconnected.discard(link.container)
        self._seen.pop(link.container, None)

    def _unwatch(self, link: ShimLink) -> None:
        if link.sock is not None and self._by_socket.pop(link.sock.fileno(), None) is not None:
            self._epoll.unregister(link.sock.fileno())
        link.disconnect()

    def _exec_ended(self, handle: int, exit_code: int, message: str) -> None:
        if (one := self._execs.pop(handle, None)) is not None:
            self._queued.append(lambda: one.ended(exit_code, message))
            os.eventfd_write(self._wake, 1)

    def _end_execs(self, container: str, exit_code: int, message: str) -> None:
        for handle in [handle for handle, one in self._execs.items() if one.container == container]:
            self._exec_ended(handle, exit_code, message)


def _no_one(_container: str, _state: EngineContainer | None) -> None:
    """Nobody is told of what an engine finds when it starts."""
