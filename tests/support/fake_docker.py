"""Docker's API without Docker, over a UNIX socket: enough of it for the engine `docker`, with fault switches.

    with FakeDockerApi(tmp_path / "docker.sock") as api:
        api.images["busybox"] = {"Config": {}}
        api.faults["POST /containers/create"] = Fault(status=500, message="disk full")

A test plays Docker's users by `run`, `exit`, `connect`; each tells the events that a real engine tells.
"""

from __future__ import annotations

import json
import queue
import re
import secrets
import socketserver
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import attrs

NEVER = "0001-01-01T00:00:00Z"


@attrs.define
class Fault:
    """What happens to the requests of one kind.

    Attributes:
        status: Answered instead; 0: as usual.
        message: With it.
        raw: Answered instead, as the body of a 200.
        hang: They are not answered until it is set.
        die: The connection ends after Docker did it (True), or before (False); None: it does not.
        times: How many of them; -1: all.
    """

    status: int = 0
    message: str = ""
    raw: bytes = b""
    hang: threading.Event | None = None
    die: bool | None = None
    times: int = -1


@attrs.define
class FakeContainer:
    id: str
    name: str
    body: dict[str, Any]
    status: str = "created"
    exit_code: int = 0
    error: str = ""
    started: str = NEVER
    starts: int = 0
    networks: dict[str, str] = attrs.field(factory=dict)
    endpoints: dict[str, str] = attrs.field(factory=dict)
    log: bytes = b""

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.body.get("Labels") or {})


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    api: FakeDockerApi

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no fault of the server's."""


class FakeDockerApi:
    """One fake engine. `close` and `open` let it go away and come back, with all that it has."""

    def __init__(self, path: Path, *, version: str = "1.43") -> None:
        self.path = path
        self.version = version
        self.lock = threading.RLock()
        self.containers: dict[str, FakeContainer] = {}
        self.networks: dict[str, dict[str, Any]] = {}
        self.images: dict[str, dict[str, Any]] = {}
        self.registry: dict[str, list[Any]] = {}
        self.faults: dict[str, Fault] = {}
        self.requests: list[str] = []
        self.on_start: Callable[[FakeContainer], str] = lambda _container: ""
        """Why a start fails; empty: it does not."""
        self.archives: dict[str, bytes] = {}
        self._listeners: list[queue.Queue[bytes | None]] = []
        self._connections: set[Any] = set()
        self._server: _Server | None = None
        self._clock = 0

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = _Server(str(self.path), _Handler)
        self._server.api = self
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """End every connection, as a killed engine does."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        self.path.unlink(missing_ok=True)
        for fault in self.faults.values():
            if fault.hang is not None:
                fault.hang.set()
        with self.lock:
            for listener in self._listeners:
                listener.put(None)
            for connection in list(self._connections):
                connection.close()

    # What a test does.

    def network(self, name: str, driver: str = "netctl", subnet: str = "10.1.0.0/16") -> str:
        identifier = secrets.token_hex(32)
        with self.lock:
            self.networks[identifier] = {
                "Id": identifier,
                "Name": name,
                "Driver": driver,
                "Internal": False,
                "IPAM": {"Driver": driver, "Config": [{"Subnet": subnet}]},
            }
        return identifier

    def make(self, name: str, body: dict[str, Any]) -> FakeContainer:
        with self.lock:
            container = FakeContainer(secrets.token_hex(32), name, body)
            for network in (body.get("NetworkingConfig") or {}).get("EndpointsConfig") or {}:
                container.networks[network] = ""
            self.containers[container.id] = container
        self.tell("container", "create", container)
        return container

    def run(self, name: str, network: str, labels: dict[str, str] | None = None) -> FakeContainer:
        """As `docker run --network`; a label of the image is one of the container."""
        image = self.images.setdefault("busybox", {"Config": {}})
        body = {
            "Image": "busybox",
            "Labels": {**(image["Config"].get("Labels") or {}), **(labels or {})},
            "HostConfig": {"NetworkMode": network},
            "NetworkingConfig": {"EndpointsConfig": {network: {}}},
        }
        container = self.make(name, body)
        self.start(container)
        return container

    def start(self, container: FakeContainer) -> str:
        """Return why it cannot be started; empty: it runs."""
        container.error = self.on_start(container)
        if container.error:
            container.exit_code = 128
            return container.error
        for network in list(container.networks):
            self.connect(container, network)
        with self.lock:
            self._clock += 1
            container.status, container.started = "running", f"2024-01-01T00:00:00.{self._clock:09}Z"
            container.starts += 1
        self.tell("container", "start", container)
        return ""

    def exit(self, container: FakeContainer, code: int = 0) -> None:
        with self.lock:
            container.status, container.exit_code = "exited", code
        self.tell("container", "die", container, exitCode=str(code))
        for network in list(container.endpoints):
            self.disconnect(container, network, forget=False)

    def remove(self, container: FakeContainer) -> None:
        if container.status == "running":
            self.exit(container, 137)
        with self.lock:
            del self.containers[container.id]
        self.tell("container", "destroy", container)

    def connect(self, container: FakeContainer, network: str) -> None:
        identifier = self.network_id(network)
        with self.lock:
            container.networks[network] = identifier
            container.endpoints[network] = secrets.token_hex(32)
        self._tell_network("connect", identifier, container)

    def disconnect(self, container: FakeContainer, network: str, *, forget: bool = True) -> None:
        with self.lock:
            container.endpoints.pop(network, None)
            if forget:
                container.networks.pop(network, None)
        self._tell_network("disconnect", self.network_id(network), container)

    def network_id(self, name: str) -> str:
        with self.lock:
            return next((i for i, network in self.networks.items() if name in (i, network["Name"])), "0" * 64)

    def find(self, name: str) -> FakeContainer | None:
        with self.lock:
            return next((one for one in self.containers.values() if name in (one.id, one.name)), None)

    def _tell_network(self, action: str, identifier: str, container: FakeContainer) -> None:
        network = self.networks.get(identifier, {"Name": "none", "Driver": "null"})
        attributes = {"container": container.id, "name": network["Name"], "type": network["Driver"]}
        self._event("network", action, identifier, attributes)

    def tell(self, kind: str, action: str, container: FakeContainer, **more: str) -> None:
        attributes = {**container.labels, "name": container.name, "image": "busybox", **more}
        self._event(kind, action, container.id, attributes)

    def _event(self, kind: str, action: str, identifier: str, attributes: dict[str, str]) -> None:
        event = {"Type": kind, "Action": action, "Actor": {"ID": identifier, "Attributes": attributes}}
        self.tell_raw(json.dumps(event).encode() + b"\n")

    def tell_raw(self, line: bytes) -> None:
        with self.lock:
            for listener in self._listeners:
                listener.put(line)

    @property
    def listeners(self) -> int:
        with self.lock:
            return len(self._listeners)

    # What it answers.

    def entry(self, one: FakeContainer) -> dict[str, Any]:
        """As in the list of containers."""
        status = {"exited": f"Exited ({one.exit_code}) 1 second ago"}.get(one.status, one.status.title())
        return {
            "Id": one.id,
            "Names": [f"/{one.name}"],
            "Image": one.body.get("Image"),
            "ImageID": one.body.get("Image"),
            "Labels": one.labels,
            "State": one.status,
            "Status": status,
            "NetworkSettings": {
                "Networks": {name: {"NetworkID": network} for name, network in one.networks.items()}
            },
        }

    def whole(self, one: FakeContainer) -> dict[str, Any]:
        """As `docker inspect` has it."""
        return {
            "Id": one.id,
            "Name": f"/{one.name}",
            "Config": {"Labels": one.labels, "Tty": bool(one.body.get("Tty"))},
            "HostConfig": one.body.get("HostConfig") or {},
            "State": {
                "Status": one.status,
                "Running": one.status == "running",
                "ExitCode": one.exit_code,
                "Error": one.error,
                "StartedAt": one.started,
            },
            "NetworkSettings": {"Networks": {name: {} for name in one.networks}},
        }

    def network_answer(self, name: str) -> dict[str, Any] | None:
        network = self.networks.get(self.network_id(name))
        if network is None:
            return None
        within = {
            one.id: {"Name": one.name, "EndpointID": endpoint, "IPv4Address": f"10.1.0.{at + 2}/16"}
            for at, one in enumerate(self.containers.values())
            for its, endpoint in one.endpoints.items()
            if its in (network["Name"], network["Id"])
        }
        return {**network, "Containers": within}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name in the standard library
        """Say nothing."""

    def setup(self) -> None:
        super().setup()
        with self.server.api.lock:
            self.server.api._connections.add(self.connection)

    def finish(self) -> None:
        with self.server.api.lock:
            self.server.api._connections.discard(self.connection)
        super().finish()

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def do_PUT(self) -> None:
        self._serve("PUT")

    def _serve(self, method: str) -> None:
        api = self.server.api
        parts = urlsplit(self.path)
        path = re.sub(r"^/v[0-9.]+", "", unquote(parts.path))
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        body = self._body()
        with api.lock:
            api.requests.append(f"{method} {path}")
        fault = self._fault(f"{method} {path}")
        if fault is not None:
            if fault.hang is not None:
                fault.hang.wait(60)
            if fault.die is False:
                self._hang_up()
                return
            if fault.raw:
                self._send(200, fault.raw)
                return
            if fault.status:
                self._send(fault.status, {"message": fault.message})
                return
        if fault is not None and fault.die:
            self._hang_up_after = True
        self._answer(method, path, query, body)

    _hang_up_after = False

    def _fault(self, request: str) -> Fault | None:
        api = self.server.api
        with api.lock:
            for pattern, fault in api.faults.items():
                if re.search(pattern, request) and fault.times != 0:
                    fault.times -= 1
                    return fault
        return None

    def _body(self) -> Any:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            return json.loads(data) if data else {}
        except ValueError:
            return data

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def _send(self, status: int, answer: Any = None) -> None:
        if self._hang_up_after:
            self._hang_up()
            return
        data = answer if isinstance(answer, bytes) else b"" if answer is None else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _missing(self, what: str) -> None:
        self._send(404, {"message": f"No such {what}"})

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _chunked(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _answer(self, method: str, path: str, query: dict[str, str], body: Any) -> None:  # noqa: C901, PLR0912 - one case for each request
        api = self.server.api
        match [method, *path.strip("/").split("/")]:
            case ["GET", "version"]:
                self._send(200, {"ApiVersion": api.version, "MinAPIVersion": "1.12"})
            case ["GET", "events"]:
                self._events()
            case ["GET", "networks"]:
                self._send(200, list(api.networks.values()))
            case ["GET", "networks", name]:
                with api.lock:
                    network = api.network_answer(name)
                self._missing("network") if network is None else self._send(200, network)
            case ["POST", "networks", "create"]:
                identifier = api.network(body["Name"], body["Driver"])
                api.networks[identifier]["IPAM"] = body["IPAM"]
                self._send(201, {"Id": identifier})
            case ["POST", "networks", name, "connect" | "disconnect" as action]:
                container = api.find(body["Container"])
                assert container is not None
                (api.connect if action == "connect" else api.disconnect)(container, name)
                self._send(200)
            case ["GET", "images", *name, "json"]:
                image = api.images.get("/".join(name))
                self._missing("image") if image is None else self._send(200, image)
            case ["POST", "images", "create"]:
                self._pull(f"{query['fromImage']}:{query['tag']}")
            case ["GET", "containers", "json"]:
                filters = json.loads(query.get("filters", "{}"))
                with api.lock:
                    self._send(
                        200, [api.entry(one) for one in api.containers.values() if _fits(one, filters)]
                    )
            case ["POST", "containers", "create"]:
                if api.find(query["name"]) is not None:
                    self._send(409, {"message": f"The container name {query['name']} is already in use"})
                else:
                    self._send(201, {"Id": api.make(query["name"], body).id})
            case ["GET" | "POST" | "DELETE" | "PUT", "containers", name, *action]:
                container = api.find(name)
                if container is None:
                    self._missing("container")
                else:
                    self._container(method, container, action[0] if action else "", query, body)
            case _:
                self._missing("page")

    def _container(  # noqa: C901 - one case for each request
        self, method: str, container: FakeContainer, action: str, query: dict[str, str], body: Any
    ) -> None:
        api = self.server.api
        match (method, action):
            case ("GET", "json"):
                self._send(200, api.whole(container))
            case ("POST", "start"):
                error = api.start(container)
                self._send(500, {"message": error}) if error else self._send(204)
            case ("POST", "stop"):
                if container.status == "running":
                    api.exit(container, 143)
                self._send(204)
            case ("POST", "update"):
                container.body.setdefault("HostConfig", {})["RestartPolicy"] = body["RestartPolicy"]
                self._send(200, {})
            case ("DELETE", ""):
                api.remove(container)
                self._send(204)
            case ("GET", "logs"):
                self._chunked()
                for at in range(0, len(container.log), 65536):
                    self._chunk(container.log[at : at + 65536])
                self._chunk(b"")
            case ("GET", "archive"):
                if query["path"] not in api.archives:
                    self._missing(f"container:path: {query['path']}")
                    return
                self.send_response(200)
                self.send_header("X-Docker-Container-Path-Stat", "e30=")
                self.send_header("Content-Length", str(len(api.archives[query["path"]])))
                self.end_headers()
                self.wfile.write(api.archives[query["path"]])
            case ("PUT", "archive"):
                api.archives[query["path"]] = body
                self._send(200)
            case _:
                self._missing("page")

    def _events(self) -> None:
        api = self.server.api
        listener: queue.Queue[bytes | None] = queue.Queue()
        self._chunked()
        self.wfile.flush()
        with api.lock:
            api._listeners.append(listener)
        try:
            while (line := listener.get()) is not None:
                self._chunk(line)
        except OSError:
            pass
        finally:
            with api.lock:
                api._listeners.remove(listener)
            self._hang_up()

    def _pull(self, image: str) -> None:
        api = self.server.api
        if image not in api.registry:
            self._send(404, {"message": f"pull access denied for {image}, repository does not exist"})
            return
        self._chunked()
        for line in api.registry[image]:
            if isinstance(line, threading.Event):
                line.wait(30)
            else:
                self._chunk(json.dumps(line).encode() + b"\r\n")
        if not any("error" in line for line in api.registry[image] if isinstance(line, dict)):
            api.images[image] = {"Config": {}}
        self._chunk(b"")


def _fits(one: FakeContainer, filters: dict[str, Any]) -> bool:
    wanted = {key: list(values) for key, values in filters.items()}
    labels = [f"{name}={value}" for name, value in one.labels.items()]
    return all(label in labels for label in wanted.get("label", [])) and (
        "id" not in wanted or one.id in wanted["id"]
    )


def frame(stream: int, data: bytes) -> bytes:
    """One piece of output, as Docker frames it."""
    return struct.pack(">BxxxI", stream, len(data)) + data
