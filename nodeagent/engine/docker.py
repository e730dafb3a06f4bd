"""The engine `docker`: containers that a Docker engine runs, asked for by the docker SDK.

The only module that imports it. What the engine does is in `docker_core`, over what `docker_api` promises.
"""

from __future__ import annotations

import contextlib
import http
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import docker.errors
import requests
from docker.api import APIClient
from docker.constants import DEFAULT_DOCKER_API_VERSION

from nodeagent.engine.docker_api import AnswerError, AwayError, Json, Stream
from nodeagent.engine.docker_core import DockerCore
from nodeagent.engine.docker_jobs import Settings

LOWEST_VERSION: Final = (1, 41)
"""Of the Engine API: Docker 20.10's."""
CONNECT_SECONDS: Final = 5.0
SOCKET: Final = Path("/run/docker.sock")
_CHUNK: Final = 65536


class DockerEngine(DockerCore):
    """A `nodeagent.engine.base.Docker` over one Docker engine, which may be away at any time.

    Args:
        socket: Where Docker listens.
        state_directory: The agent's own; records are kept in ``docker`` below it.
        driver: The name of our network driver.
        network: Docker's network that the broker's containers are put on.
        ipam: The name of our IPAM driver; None: as `driver`.
        guarded: Paths of the node that no volume may reach, beside Docker's socket.
    """

    def __init__(
        self,
        socket: Path,
        state_directory: Path,
        *,
        driver: str = "netctl",
        network: str = "netctl",
        ipam: str | None = None,
        guarded: Iterable[Path] = (),
    ) -> None:
        paths = {str(path.resolve()) for path in (socket, state_directory, *guarded)}
        super().__init__(
            lambda: SdkApi(str(socket), driver),
            state_directory,
            Settings(
                network=network,
                driver=driver,
                ipam=driver if ipam is None else ipam,
                guarded=tuple(sorted(paths)),
            ),
        )


class _Client(APIClient):  # type: ignore[misc]  # the SDK has no annotations
    """The SDK's client, whose every request has an end."""

    silence: float | None = CONNECT_SECONDS

    def request(self, method: str, url: str, **options: Any) -> Any:
        """Send a request; where the SDK would wait for ever, wait so long between two pieces of an answer."""
        if options.get("timeout") is None:
            options["timeout"] = self.silence
        return super().request(method, url, **options)


class SdkApi:
    """A `nodeagent.engine.docker_api.DockerApi`: connected, at a version of the API that both sides have.

    Args:
        path: Docker's socket.
        driver: The name of our network driver.

    Raises:
        AwayError: Docker cannot be reached, or is too old.
    """

    def __init__(self, path: str, driver: str) -> None:
        self.path = path
        self._driver = driver
        lowest = ".".join(map(str, LOWEST_VERSION))
        with _understood():
            offered = _Client(base_url=f"unix://{path}", version=lowest, timeout=CONNECT_SECONDS).version(
                api_version=False
            )
            version = min(_numbers(offered.get("ApiVersion")), _numbers(DEFAULT_DOCKER_API_VERSION))
            if version < LOWEST_VERSION:
                raise AwayError(
                    f"it speaks version {offered.get('ApiVersion')} of its API, and {lowest} is the lowest "
                    "that will do: Docker 20.10's"
                )
            self.version = ".".join(map(str, version))
            self._client = _Client(base_url=f"unix://{path}", version=self.version, timeout=CONNECT_SECONDS)

    @contextlib.contextmanager
    def _asking(self, seconds: float | None) -> Iterator[Any]:
        self._client.timeout = self._client.silence = seconds
        with _understood():
            yield self._client

    def _maybe(self, seconds: float, ask: Callable[[Any], Any]) -> Json | None:
        """Ask for one thing; return None if it does not exist."""
        try:
            with self._asking(seconds) as client:
                return _map(ask(client))
        except AnswerError as error:
            if error.status == http.HTTPStatus.NOT_FOUND:
                return None
            raise

    def events(self, filters: Mapping[str, list[str]]) -> Stream:
        """See `DockerApi`."""
        with self._asking(None) as client:
            stream: Stream = client.events(filters=dict(filters))
            return stream

    def networks(self, seconds: float) -> list[Any]:
        """See `DockerApi`."""
        with self._asking(seconds) as client:
            return _list(client.networks(filters={"driver": [self._driver]}))

    def network(self, name: str, seconds: float) -> Json | None:
        """See `DockerApi`."""
        return self._maybe(seconds, lambda client: client.inspect_network(name))

    def make_network(self, body: Json, seconds: float) -> None:
        """See `DockerApi`."""
        with self._asking(seconds) as client:
            client.create_network(
                body["Name"],
                driver=body["Driver"],
                ipam=body["IPAM"],
                check_duplicate=body["CheckDuplicate"],
                labels=body["Labels"],
            )

    def list(self, filters: Mapping[str, list[str]], seconds: float) -> list[Any]:
        """See `DockerApi`."""
        with self._asking(seconds) as client:
            return _list(client.containers(all=True, filters=dict(filters)))

    def inspect(self, name: str, seconds: float) -> Json | None:
        """See `DockerApi`."""
        return self._maybe(seconds, lambda client: client.inspect_container(name))

    def image(self, name: str, seconds: float) -> Json | None:
        """See `DockerApi`."""
        return self._maybe(seconds, lambda client: client.inspect_image(name))

    def pull(self, name: str, silence: float) -> Iterator[Any]:
        """See `DockerApi`."""
        with self._asking(silence) as client:
            yield from client.pull(name, stream=True, decode=True)

    def make(self, body: Json, name: str, seconds: float) -> str:
        """See `DockerApi`."""
        with self._asking(seconds) as client:
            return _id(client.create_container_from_config(dict(body), name))

    def start(self, name: str, seconds: float) -> None:
        """See `DockerApi`."""
        with self._asking(seconds) as client:
            client.start(name)

    def stop(self, name: str, grace: int, seconds: float) -> None:
        """See `DockerApi`."""
        with self._asking(seconds) as client:
            client.stop(name, timeout=grace)

    def remove(self, name: str, seconds: float) -> None:
        """See `DockerApi`."""
        self._maybe(seconds, lambda client: client.remove_container(name, v=True, force=True) or {})

    def set_restart(self, name: str, policy: Json, seconds: float) -> None:
        """See `DockerApi`."""
        with self._asking(seconds) as client:
            client.update_container(name, restart_policy=dict(policy))

    def connect(self, network: str, name: str, seconds: float) -> None:
        """See `DockerApi`."""
        with self._asking(seconds) as client:
            client.connect_container_to_network(name, network)

    def disconnect(self, network: str, name: str, seconds: float) -> None:
        """See `DockerApi`."""
        with self._asking(seconds) as client:
            client.disconnect_container_from_network(name, network)

    def make_exec(self, name: str, body: Json, seconds: float) -> str:
        """See `DockerApi`."""
        with self._asking(seconds) as client:
            return _id(
                client.exec_create(
                    name,
                    body["Cmd"],
                    stdin=body["AttachStdin"],
                    tty=body["Tty"],
                    environment=body["Env"],
                    user=body["User"],
                )
            )

    def exec_state(self, exec_id: str, seconds: float) -> Json | None:
        """See `DockerApi`."""
        return self._maybe(seconds, lambda client: client.exec_inspect(exec_id))

    def resize_exec(self, exec_id: str, rows: int, columns: int, seconds: float) -> None:
        """See `DockerApi`."""
        with self._asking(seconds) as client:
            client.exec_resize(exec_id, height=rows, width=columns)

    def archive(self, name: str, path: str, silence: float) -> Iterator[bytes]:
        """See `DockerApi`."""
        with self._asking(silence) as client:
            pieces, _ = client.get_archive(name, path, chunk_size=_CHUNK)
            yield from pieces

    def put_archive(self, name: str, path: str, data: Iterable[bytes], silence: float) -> None:
        """See `DockerApi`."""
        with self._asking(silence) as client:
            client.put_archive(name, path, data)


@contextlib.contextmanager
def _understood() -> Iterator[None]:
    """Raise what the SDK raises as our own errors."""
    try:
        yield
    except docker.errors.APIError as error:
        text = error.explanation or str(error)
        text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        raise AnswerError(int(error.status_code or 0), " ".join(text.split())[:4000]) from error
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise AwayError(_reason(error)) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # What the SDK makes of an answer that is not of the form it reckons with.
        raise AwayError(f"what it answers makes no sense: {type(error).__name__}: {error}"[:1000]) from error


def _reason(error: Exception) -> str:
    """Return why Docker cannot be reached: of a chain of exceptions, the one that the kernel gave."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror and not isinstance(cause, requests.RequestException):
            return f"{cause.strerror}"
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())[:1000]


def _numbers(version: object) -> tuple[int, int]:
    major, _, minor = str(version).partition(".")
    return int(major), int(minor)


def _list(answer: object) -> list[Any]:
    if not isinstance(answer, list):
        raise AwayError("it answers no list where one is due")
    return answer


def _map(answer: object) -> Json:
    if not isinstance(answer, Mapping):
        raise AwayError("it answers no object where one is due")
    return answer


def _id(answer: object) -> str:
    identifier = _map(answer).get("Id")
    if not isinstance(identifier, str):
        raise AwayError("it answers no id where one is due")
    return identifier
