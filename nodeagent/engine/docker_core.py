"""The engine `docker` without the docker SDK: what is known of the broker's containers, and who does what.

    main thread:  Engine's calls --> boxes --jobs--> Lanes (threads)   --results--> Outbox --> dispatch
                                              DockerWatch (2 threads)  --news----->   ^
                                              Users (a thread each)    --ends----->   '

Docker is the truth. What is kept here is what it said last; on disk is kept which start of a container was
the last one (`docker_records`), and so which containers there are while Docker has not been heard. The main
thread never asks Docker: it may be waiting for us.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

import attrs

from netctl import log
from netctl.errors import KernelError
from netctl.model import Workload
from nodeagent.engine import docker_jobs
from nodeagent.engine.base import Changed, Direction, DockerNews, Ended, ExecRequest
from nodeagent.engine.docker_api import AnswerError, AwayError, DockerApi
from nodeagent.engine.docker_jobs import ASK_SECONDS, CancelledError, Settings, reason_of
from nodeagent.engine.docker_records import Records, Start
from nodeagent.engine.docker_spec import Creation
from nodeagent.engine.docker_users import Users
from nodeagent.engine.docker_views import container_of
from nodeagent.engine.docker_watch import DockerWatch, Listed, OursChanged
from nodeagent.engine.docker_work import Lanes, Outbox
from nodeagent.helper_messages import DockerAway, DockerListed, DockerSeen
from nodeagent.kernel_state import EngineContainer

DIGITS: Final = 32
"""Of Docker's id of a foreign container: so many are its id with us."""
MOST_NEWS: Final = 65536
"""Pieces kept until somebody listens."""
_UNKNOWN: Final = EngineContainer("unknown")


@attrs.define
class _Box:
    """A container of the broker's, on the main thread.

    Attributes:
        docker_id: Docker's; empty: not known (yet).
        creation: What it is made from, if it was made in this life.
        making: A job is at it that may make it.
        unmade: It could not be made, so Docker has none of it.
        going: It is being removed.
        lost: An answer about it never came: what is heard next is told even if it is nothing new.
        looking: A look at it waits already.
        cancelled: What is being done to make it is not wanted any more.
    """

    seen: EngineContainer
    docker_id: str = ""
    creation: Creation | None = None
    making: bool = False
    unmade: bool = False
    going: bool = False
    lost: bool = False
    looking: bool = False
    cancelled: threading.Event = attrs.field(factory=threading.Event)


class DockerCore:
    """A `nodeagent.engine.base.Docker`; see there for what its methods promise.

    States: ``creating`` while it is pulled and made; ``created``, ``running``, ``exited`` as Docker says;
    ``failed`` when it could not be made or started; ``unknown`` while Docker is away.

    Args:
        connect: Makes a way to ask Docker, for the thread that calls it. Raises AwayError.
        state_directory: The agent's own; records are kept in ``docker`` below it.
        settings: Of this engine.
    """

    name: str = "docker"
    removes_later: bool = True

    def __init__(self, connect: Callable[[], DockerApi], state_directory: Path, settings: Settings) -> None:
        self._connect = connect
        self._settings = settings
        self._records = Records(state_directory / "docker")
        self._outbox = Outbox()
        self._lanes = Lanes("docker-job")
        self._users = Users(self._api, self._outbox.post)
        self._local = threading.local()
        # Counts contacts: a connection that is older than the last one leads to an engine that is gone.
        self._contact = 0
        self._away = ""
        self._boxes = {container: _Box(_UNKNOWN) for container in self._records.containers()}
        self._seen: dict[str, EngineContainer] = dict.fromkeys(self._boxes, _UNKNOWN)
        self._foreign: dict[str, DockerSeen] = {}
        self._hear: Callable[[DockerNews], None] | None = None
        self._news: list[DockerNews] = []
        self._changed: Changed = _no_one
        self._watch = DockerWatch(
            connect, settings.driver, lambda found: self._outbox.post(lambda: self._take(found))
        )
        self._watch.start()

    # --- what Engine promises -----------------------------------------------------------------------

    def containers(self) -> Mapping[str, EngineContainer]:
        """See `Engine`. While Docker is away they are those that were there, all of them ``unknown``."""
        return MappingProxyType(self._seen)

    def namespace(self, container: str) -> int:
        """See `Engine`. Docker makes namespaces at every start, and our driver guards them.

        Raises:
            KernelError: Always.
        """
        raise KernelError(f"the namespace of Docker's container {container} is known by its endpoint")

    def create(self, container: str, name: str, address: str, workload: Workload, block: str = "") -> None:
        """See `Engine`. A container that is there stays as it is."""
        if container in self._boxes:
            return
        self._check_here()
        creation = Creation(
            container, name, address, workload, self._settings.network, block, self._settings.guarded
        )
        box = _Box(EngineContainer("creating"), creation=creation, making=True)
        self._lanes.submit(container, lambda: self._do_create(container, box, 0))
        self._boxes[container] = box
        self._seen[container] = box.seen

    def start(self, container: str, generation: int) -> None:
        """See `Engine`. One that could not be made is tried once more."""
        box = self._boxes.get(container)
        if box is None or box.seen.state in ("creating", "unknown") or box.going:
            raise KernelError(f"container {container} does not exist or is not made yet")
        if generation <= box.seen.generation:
            return
        if box.seen.state == "running":
            raise KernelError(f"container {container} still runs", "stop it first")
        self._check_here()
        if box.unmade:
            box.unmade, box.making = False, True
            self._lanes.submit(container, lambda: self._do_create(container, box, generation))
        else:
            self._lanes.submit(container, lambda: self._do_start(container, box, generation))

    def stop(self, container: str) -> None:
        """See `Engine`."""
        box = self._boxes.get(container)
        if box is None or not box.docker_id:
            return
        self._check_here()
        # Beside the container's other jobs: to remove it must not wait for it to end in its own time.
        self._lanes.submit(f"{container} stop", lambda: self._do_stop(container, box))

    def remove(self, container: str) -> None:
        """See `Engine`."""
        box = self._boxes.get(container)
        if box is None or box.going:
            return
        if not (box.unmade or box.making):
            self._check_here()
        box.going = True
        box.cancelled.set()
        self._lanes.submit(container, lambda: self._do_remove(container, box))

    def exec(self, container: str, request: ExecRequest, ended: Ended) -> int:
        """See `Engine`. Also in the containers of Docker's own users."""
        docker_id, state = self._find(container)
        if state != "running":
            raise KernelError(f"container {container} is not running", "start it first")
        self._check_here()
        return self._users.exec(docker_id, request, ended)

    def kill_exec(self, handle: int) -> None:
        """See `Engine`. SIGHUP, then SIGKILL, to a command's process group."""
        self._users.kill(handle)

    def copy(self, container: str, path: str, direction: Direction, descriptor: int, ended: Ended) -> int:
        """See `Engine`. Also of the containers of Docker's own users."""
        docker_id, _ = self._find(container)
        self._check_here()
        return self._users.copy(docker_id, path, direction, descriptor, ended)

    def logs(self, container: str, tail: int | None, *, follow: bool, ended: Ended) -> tuple[int, int]:
        """See `Engine`. Also of the containers of Docker's own users."""
        docker_id, _ = self._find(container)
        self._check_here()
        return self._users.logs(docker_id, tail, follow=follow, ended=ended)

    def descriptors(self) -> Sequence[int]:
        """See `Engine`."""
        return (self._outbox.fileno(),)

    def dispatch(self, changed: Changed) -> None:
        """See `Engine`."""
        self._changed = changed
        try:
            self._outbox.run()
        finally:
            self._changed = _no_one
        if self._hear is not None:
            news, self._news = self._news, []
            for one in news:
                self._hear(one)

    def close(self) -> None:
        """Let go of everything; Docker and its containers go on."""
        self._watch.close()
        self._lanes.close()
        self._users.close()
        self._outbox.close()

    # --- what Docker promises beside it -----------------------------------------------------------------

    def listen(self, hear: Callable[[DockerNews], None]) -> None:
        """See `Docker`."""
        self._hear = hear
        self._outbox.post(_nothing)

    def list_docker(self) -> None:
        """See `Docker`."""
        self._watch.look()

    def revive(self) -> None:
        """See `Docker`."""
        for seen in self._foreign.values():
            if seen.state != "running":
                self._lanes.submit(seen.docker_id, functools.partial(self._do_revive, seen.docker_id))
        for container, box in self._boxes.items():
            if box.docker_id and box.seen.state not in ("running", "creating"):
                self._lanes.submit(container, functools.partial(self._do_revive, box.docker_id))

    def adopt(self, container: str, block: str, ended: Ended) -> int:
        """See `Docker`."""
        self._check_here()
        return self._users.run(
            lambda api, _: (0, docker_jobs.adopt(api, self._settings, container, block)), (), ended
        )

    # --- on the main thread: what came in ---------------------------------------------------------------

    def _take(self, found: DockerNews | Listed | OursChanged) -> None:
        if isinstance(found, Listed):
            self._listed(found)
            return
        if isinstance(found, OursChanged):
            self._ours_changed(found)
            return
        if isinstance(found, DockerAway):
            self._gone_away(found.reason)
        elif isinstance(found, DockerListed):
            if found.fresh:
                self._contact += 1
            self._away = ""
            self._foreign = {one.docker_id[:DIGITS]: one for one in found.containers if not one.ours}
        elif found.container is None:
            self._foreign.pop(found.docker_id[:DIGITS], None)
        elif not found.container.ours:
            self._foreign[found.docker_id[:DIGITS]] = found.container
        if len(self._news) < MOST_NEWS:
            self._news.append(found)

    def _gone_away(self, reason: str) -> None:
        self._away = reason or "it does not answer"
        for container, box in self._boxes.items():
            box.lost = True
            if not (box.making or box.unmade) and box.seen.state != "unknown":
                self._set(container, box, attrs.evolve(box.seen, state="unknown", message=""))

    def _listed(self, listed: Listed) -> None:
        for container, docker_id in listed.ours.items():
            box = self._boxes.get(container)
            if box is None:
                # Made in another life of ours, whose records are lost.
                box = self._boxes[container] = _Box(_UNKNOWN)
                self._seen[container] = _UNKNOWN
            box.docker_id, box.unmade = docker_id, False
            self._look(container, box)
        for container, box in list(self._boxes.items()):
            if container not in listed.ours and not box.making and not (box.unmade and not box.lost):
                self._drop(container, box)

    def _ours_changed(self, change: OursChanged) -> None:
        box = self._boxes.get(change.container)
        if box is None or (box.docker_id and box.docker_id != change.docker_id):
            return
        if not change.gone:
            box.docker_id = change.docker_id
            self._look(change.container, box)
        elif not box.making:
            self._drop(change.container, box)

    def _set(self, container: str, box: _Box, seen: EngineContainer) -> None:
        """Take a state in, if the box is still the container's."""
        if self._boxes.get(container) is not box:
            return
        news = box.lost or box.seen != seen
        box.lost = box.lost and seen.state == "unknown"
        box.seen = self._seen[container] = seen
        if news:
            self._changed(container, seen)

    def _drop(self, container: str, box: _Box) -> None:
        """Docker has no such container any more."""
        if self._boxes.get(container) is not box:
            return
        del self._boxes[container], self._seen[container]
        self._records.drop(container)
        box.cancelled.set()
        self._changed(container, None)

    def _lose(self, box: _Box) -> None:
        """An answer did not come: look how everything is, once Docker is there."""
        box.making = box.going = False
        box.lost = True
        self._watch.look()

    def _check_here(self) -> None:
        if self._away:
            raise KernelError(f"Docker cannot be reached: {self._away}", "start it; it is tried again")

    def _find(self, container: str) -> tuple[str, str]:
        """Return Docker's id of a container, and its state.

        Raises:
            KernelError: Docker has none of it.
        """
        box = self._boxes.get(container)
        if box is not None and box.docker_id:
            return box.docker_id, box.seen.state
        if (foreign := self._foreign.get(container)) is not None:
            return foreign.docker_id, foreign.state
        raise KernelError(f"Docker has no container {container}")

    # --- on other threads: what asks Docker -------------------------------------------------------------

    def _api(self) -> DockerApi:
        """Return this thread's way to ask Docker."""
        contact = self._contact
        if getattr(self._local, "api", None) is None or self._local.contact != contact:
            self._local.api, self._local.contact = self._connect(), contact
        api: DockerApi = self._local.api
        return api

    def _post(self, container: str, box: _Box, seen: EngineContainer) -> None:
        self._outbox.post(lambda: self._set(container, box, seen))

    def _try(self, box: _Box, job: Callable[[DockerApi], None], failed: Callable[[str], None]) -> None:
        """Do a job; `failed` is called, on this thread, with why Docker will not do it."""
        try:
            job(self._api())
        except AwayError as error:
            self._local.api = None
            log.get_logger().warning("Docker did not answer", reason=str(error))
            self._outbox.post(lambda: self._lose(box))
        except CancelledError:
            pass
        except Exception as error:  # noqa: BLE001 - Docker may answer anything, and the container must not stay as if asked
            failed(reason_of(error))

    def _do_create(self, container: str, box: _Box, generation: int) -> None:
        creation = box.creation
        if creation is None:
            return

        def tell(message: str) -> None:
            self._post(container, box, EngineContainer("creating", message=message))

        def job(api: DockerApi) -> None:
            # First: whoever comes after us must know that it may be there.
            self._records.put(container, Start())
            docker_id = docker_jobs.create(api, self._settings, creation, tell, box.cancelled.is_set)
            self._outbox.post(lambda: self._made(box, docker_id))
            if generation:
                self._do_start(container, box, generation, docker_id)
            else:
                self._see(api, container, box, docker_id)

        def failed(reason: str) -> None:
            self._outbox.post(lambda: self._unmade(container, box, generation, reason))

        self._try(box, job, failed)

    def _made(self, box: _Box, docker_id: str) -> None:
        box.docker_id, box.making = docker_id, False

    def _unmade(self, container: str, box: _Box, generation: int, reason: str) -> None:
        box.making, box.unmade = False, True
        self._records.drop(container)
        self._set(container, box, EngineContainer("failed", generation, None, reason))

    def _do_start(self, container: str, box: _Box, generation: int, made: str = "") -> None:
        docker_id = made or box.docker_id

        def job(api: DockerApi) -> None:
            if docker_jobs.start(api, self._records, container, docker_id, generation):
                self._see(api, container, box, docker_id)
            else:
                self._outbox.post(lambda: self._drop(container, box))

        self._try(
            box,
            job,
            lambda reason: self._post(container, box, EngineContainer("failed", generation, None, reason)),
        )

    def _do_stop(self, container: str, box: _Box) -> None:
        def job(api: DockerApi) -> None:
            docker_jobs.stop(api, box.docker_id)
            self._see(api, container, box, box.docker_id)

        # The message goes with whatever it is doing: it could not be stopped.
        self._try(box, job, lambda reason: self._post(container, box, attrs.evolve(box.seen, message=reason)))

    def _do_remove(self, container: str, box: _Box) -> None:
        def job(api: DockerApi) -> None:
            docker_jobs.remove(api, container, box.docker_id)
            self._outbox.post(lambda: self._drop(container, box))

        def failed(reason: str) -> None:
            def not_gone() -> None:
                box.going = False
                box.lost = True
                self._set(container, box, attrs.evolve(box.seen, state="failed", message=reason))

            self._outbox.post(not_gone)

        self._try(box, job, failed)

    def _look(self, container: str, box: _Box) -> None:
        """Have the container looked at, on another thread."""
        if not box.looking:
            box.looking = True
            self._lanes.submit(container, lambda: self._do_look(container, box))

    def _do_look(self, container: str, box: _Box) -> None:
        box.looking = False
        self._try(
            box,
            lambda api: self._see(api, container, box, box.docker_id),
            lambda reason: self._post(container, box, attrs.evolve(_UNKNOWN, message=reason)),
        )

    def _see(self, api: DockerApi, container: str, box: _Box, docker_id: str) -> None:
        answer = api.inspect(docker_id, ASK_SECONDS)
        if answer is None:
            self._outbox.post(lambda: self._drop(container, box))
        else:
            self._post(container, box, container_of(answer, self._records.get(container)))

    def _do_revive(self, docker_id: str) -> None:
        try:
            if docker_jobs.revive(self._api(), self._settings, docker_id):
                log.get_logger().info("started again what could not start without us", container=docker_id)
        except (AwayError, AnswerError) as error:
            log.get_logger().warning(
                "a container could not be started again", container=docker_id, error=str(error)
            )


def _no_one(_container: str, _state: EngineContainer | None) -> None:
    """Nobody is told outside of `dispatch`, where alone something changes."""


def _nothing() -> None:
    """Wakes the main thread, no more."""
