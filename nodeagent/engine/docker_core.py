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
from typing import Final

import attrs

from netctl import log
from netctl.errors import KernelError
from netctl.model import Workload
from nodeagent.engine import docker_jobs
from nodeagent.engine.base import Changed, Direction, DockerNews, Ended, ExecRequest
from nodeagent.engine.docker_api import AnswerError, AwayError, DockerApi
from nodeagent.engine.docker_boxes import UNKNOWN, Box, Boxes, no_one
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
        self._boxes = Boxes(self._records)
        self._foreign: dict[str, DockerSeen] = {}
        self._hear: Callable[[DockerNews], None] | None = None
        self._news: list[DockerNews] = []
        self._watch = DockerWatch(
            connect,
            settings.driver,
            self._records.knows,
            lambda found: self._outbox.post(lambda: self._take(found)),
        )
        self._watch.start()

    # --- what Engine promises -----------------------------------------------------------------------

    def containers(self) -> Mapping[str, EngineContainer]:
        """See `Engine`. While Docker is away they are those that were there, all of them ``unknown``."""
        return self._boxes.seen()

    def namespace(self, container: str) -> int:
        """See `Engine`. Docker makes namespaces at every start, and our driver guards them.

        Raises:
            KernelError: Always.
        """
        raise KernelError(f"the namespace of Docker's container {container} is known by its endpoint")

    def create(self, container: str, name: str, address: str, workload: Workload, block: str = "") -> None:
        """See `Engine`. A container that is there stays as it is."""
        if self._boxes.get(container) is not None:
            return
        self._check_here()
        creation = Creation(
            container, name, address, workload, self._settings.network, block, self._settings.guarded
        )
        box = Box(EngineContainer("creating"), creation=creation, making=True)
        self._lanes.submit(container, lambda: self._do_create(container, box, 0))
        self._boxes.add(container, box)

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
        box.going, box.refused = True, ""
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
        self._boxes.changed = changed
        try:
            self._outbox.run()
        finally:
            self._boxes.changed = no_one
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
            self._boxes.listed(found)
            for container, box in self._boxes.items():
                if box.docker_id:
                    self._look(container, box)
        elif isinstance(found, OursChanged):
            changed = self._boxes.ours_changed(found)
            if changed is not None:
                self._look(found.container, changed)
        else:
            self._note(found)

    def _note(self, found: DockerNews) -> None:
        if isinstance(found, DockerAway):
            self._away = found.reason or "it does not answer"
            self._boxes.gone_away()
        elif isinstance(found, DockerListed):
            self._contact += found.fresh
            self._away = ""
            self._foreign = {one.docker_id[:DIGITS]: one for one in found.containers if not one.ours}
        elif found.container is None:
            self._foreign.pop(found.docker_id[:DIGITS], None)
        elif not found.container.ours:
            self._foreign[found.docker_id[:DIGITS]] = found.container
        if len(self._news) < MOST_NEWS:
            self._news.append(found)

    def _lose(self, container: str, box: Box) -> None:
        """An answer did not come: nobody knows how it is, until everything was looked at."""
        box.lost = True
        if not (box.making or box.unmade):
            self._boxes.set(container, box, attrs.evolve(box.seen, state="unknown", message=""))
        box.making = box.going = False
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

    def _post(self, container: str, box: Box, seen: EngineContainer) -> None:
        self._outbox.post(lambda: self._boxes.set(container, box, seen))

    def _try(
        self, container: str, box: Box, job: Callable[[DockerApi], None], failed: Callable[[str], None]
    ) -> None:
        """Do a job; `failed` is called, on this thread, with why Docker will not do it."""
        try:
            job(self._api())
        except AwayError as error:
            self._local.api = None
            log.get_logger().warning("Docker did not answer", reason=str(error))
            self._outbox.post(lambda: self._lose(container, box))
        except CancelledError:
            pass
        except Exception as error:  # noqa: BLE001 - Docker may answer anything, and the container must not stay as if asked
            failed(reason_of(error))

    def _do_create(self, container: str, box: Box, generation: int) -> None:
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
            self._records.put(container, Start(docker_id=docker_id))
            if generation:
                self._do_start(container, box, generation, docker_id)
            else:
                self._see(api, container, box, docker_id)

        def failed(reason: str) -> None:
            self._outbox.post(lambda: self._unmade(container, box, generation, reason))

        self._try(container, box, job, failed)

    def _made(self, box: Box, docker_id: str) -> None:
        box.docker_id, box.making = docker_id, False

    def _unmade(self, container: str, box: Box, generation: int, reason: str) -> None:
        if box.docker_id:
            # Docker made it; what came after failed.
            self._lose(container, box)
            return
        box.making, box.unmade = False, True
        self._records.drop(container)
        self._boxes.set(container, box, EngineContainer("failed", generation, None, reason))

    def _do_start(self, container: str, box: Box, generation: int, made: str = "") -> None:
        docker_id = made or box.docker_id

        def job(api: DockerApi) -> None:
            if docker_jobs.start(api, self._records, container, docker_id, generation):
                self._see(api, container, box, docker_id)
            else:
                self._outbox.post(lambda: self._boxes.drop(container, box))

        self._try(
            container,
            box,
            job,
            lambda reason: self._post(container, box, EngineContainer("failed", generation, None, reason)),
        )

    def _do_stop(self, container: str, box: Box) -> None:
        def job(api: DockerApi) -> None:
            docker_jobs.stop(api, box.docker_id)
            self._see(api, container, box, box.docker_id)

        # The message goes with whatever it is doing: it could not be stopped.
        self._try(
            container,
            box,
            job,
            lambda reason: self._post(container, box, attrs.evolve(box.seen, message=reason)),
        )

    def _do_remove(self, container: str, box: Box) -> None:
        def job(api: DockerApi) -> None:
            docker_jobs.remove(api, container, box.docker_id)
            self._outbox.post(lambda: self._boxes.drop(container, box))

        def failed(reason: str) -> None:
            def not_gone() -> None:
                box.going, box.lost, box.refused = False, True, reason
                self._boxes.set(container, box, box.seen)

            self._outbox.post(not_gone)

        self._try(container, box, job, failed)

    def _look(self, container: str, box: Box) -> None:
        """Have the container looked at, on another thread."""
        if not box.looking:
            box.looking = True
            self._lanes.submit(container, lambda: self._do_look(container, box))

    def _do_look(self, container: str, box: Box) -> None:
        box.looking = False
        self._try(
            container,
            box,
            lambda api: self._see(api, container, box, box.docker_id),
            lambda reason: self._post(container, box, attrs.evolve(UNKNOWN, message=reason)),
        )

    def _see(self, api: DockerApi, container: str, box: Box, docker_id: str) -> None:
        answer = api.inspect(docker_id, ASK_SECONDS)
        if answer is None:
            self._outbox.post(lambda: self._boxes.drop(container, box))
            return
        start = self._records.get(container)
        if start is not None and not start.docker_id:
            # That it was made is heard only now.
            start = attrs.evolve(start, docker_id=docker_id)
            self._records.put(container, start)
        self._post(container, box, container_of(answer, start))

    def _do_revive(self, docker_id: str) -> None:
        try:
            if docker_jobs.revive(self._api(), self._settings, docker_id):
                log.get_logger().info("started again what could not start without us", container=docker_id)
        except (AwayError, AnswerError) as error:
            log.get_logger().warning(
                "a container could not be started again", container=docker_id, error=str(error)
            )


def _nothing() -> None:
    """Wakes the main thread, no more."""
