"""The engine `docker` without Docker, for tests: `FakeEngine`, and news of Docker's own users' containers."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from netctl.errors import KernelError
from nodeagent.engine.base import Changed, DockerNews, Ended
from nodeagent.engine.fake import FakeEngine
from nodeagent.helper_messages import DockerAway, DockerListed, DockerNetwork, DockerSeen


@attrs.define
class FakeAdoption:
    """A container a caller asked to have connected, until a test ends it with `FakeDocker.end_adoption`."""

    container: str
    block: str
    ended: Ended


@attrs.define
class FakeDocker(FakeEngine):
    """A `nodeagent.engine.base.Docker` in memory.

    Attributes:
        foreign: What `list_docker` and `come_back` list; a test changes it.
        networks: Likewise.
        revivals: How often `revive` was called.
        adoptions: By handle.
    """

    name: str = "docker"
    removes_later: bool = True
    pipes_logs: bool = True
    foreign: dict[str, DockerSeen] = attrs.field(factory=dict)
    networks: dict[str, DockerNetwork] = attrs.field(factory=dict)
    revivals: int = 0
    adoptions: dict[int, FakeAdoption] = attrs.field(factory=dict)
    _hear: Callable[[DockerNews], None] | None = None
    _news: list[DockerNews] = attrs.field(factory=list)

    def tell(self, news: DockerNews) -> None:
        """Let Docker have something to say; it shows at the next dispatch."""
        self._news.append(news)
        self.ring()

    def go(self, reason: str = "its socket is gone") -> None:
        """Let Docker go away."""
        self.away = True
        self.tell(DockerAway(reason))

    def come_back(self) -> None:
        """Let Docker be there (again)."""
        self.away = False
        self._list(fresh=True)

    def end_adoption(self, handle: int, exit_code: int, message: str) -> None:
        """Let an adoption end; its caller hears at the next dispatch."""
        self._ended.append((self.adoptions.pop(handle).ended, exit_code, message))
        self.ring()

    def listen(self, hear: Callable[[DockerNews], None]) -> None:
        """See `Docker`."""
        self._hear = hear
        self.ring()

    def list_docker(self) -> None:
        """See `Docker`."""
        if not self.away:
            self._list(fresh=False)

    def revive(self) -> None:
        """See `Docker`."""
        self.revivals += 1

    def adopt(self, container: str, block: str, ended: Ended) -> int:
        """See `Docker`."""
        if self.away:
            raise KernelError("the engine docker cannot be reached")
        self._handles += 1
        self.adoptions[self._handles] = FakeAdoption(container, block, ended)
        return self._handles

    def dispatch(self, changed: Changed) -> None:
        """See `Engine`."""
        FakeEngine.dispatch(self, changed)
        if self._hear is not None:
            news, self._news = self._news, []
            for one in news:
                self._hear(one)

    def _list(self, *, fresh: bool) -> None:
        self.tell(DockerListed(tuple(self.foreign.values()), tuple(self.networks.values()), fresh=fresh))
