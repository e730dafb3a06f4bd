"""Docker's calls to its driver, and what it says of containers, in few words."""

from __future__ import annotations

from typing import Any

import attrs

from netctl.model import ContainerRunState, PlacedContainer, Workload
from nodeagent.driver import calls
from nodeagent.driver.book import Answer, Around, Book, Build, Wait, answered, key_of
from nodeagent.driver.calls import PortMapping
from nodeagent.driver.view import DriverView
from nodeagent.helper_messages import DockerNetwork, DockerSeen

BLOCK, GATEWAY = "10.1.0.0/16", "10.1.0.1"
NETWORK = "aa" * 32
RESERVE = frozenset(f"10.1.0.{n}" for n in range(2, 7))


def docker_id(number: int) -> str:
    """Return one of Docker's ids, whose first 32 digits differ from every other's."""
    return f"{number:032x}{'0' * 32}"


def view(**changes: Any) -> DriverView:
    base = DriverView(block=BLOCK, supernet="10.0.0.0/8", reserve=RESERVE, connected=True)
    return attrs.evolve(base, **changes)


def placed(container: str, address: str, engine: Any = "docker", origin: Any = "broker") -> PlacedContainer:
    workload = Workload(engine, ("sleep",), image="i")
    return PlacedContainer(container, "web", address, workload, "running", 1, origin)


def recorded(*containers: PlacedContainer, **changes: Any) -> DriverView:
    """Return a view in which `containers` are recorded, and their addresses on lease no longer."""
    used = {container.address: container.id for container in containers}
    by_id = {container.id: container for container in containers}
    return view(containers=by_id, by_address=used, reserve=RESERVE - used.keys(), **changes)


def around(seen: DriverView | None = None, now: float = 100.0, **changes: Any) -> Around:
    base = Around(view() if seen is None else seen, now, frozenset(), lambda *_: "", "test")
    return attrs.evolve(base, **changes)


class Asked:
    """A book, and what Docker asks of it."""

    def __init__(self, seen: DriverView | None = None) -> None:
        self.view = view() if seen is None else seen
        self.book = Book()
        self.now = 100.0
        self.probe: Any = lambda *_: ""

    def call(self, call: calls.Call) -> dict[str, Any]:
        """Return what is answered; a Join's is what it will be."""
        result = self.result(call)
        assert not isinstance(result, Wait), "it waits"
        return dict(result.answer.body if isinstance(result, Build) else result.body)

    def result(self, call: calls.Call) -> Answer | Wait | Build:
        self.book, result = answered(self.book, call, around(self.view, self.now, probe=self.probe))
        return result

    def network(self, *, internal: bool = False, network: str = NETWORK) -> None:
        self.call(calls.CreateNetwork(network, internal, (GATEWAY,), False, (), True, False))

    def address(self, address: str = "") -> str:
        return str(self.call(calls.RequestAddress("p", address, False))["Address"]).partition("/")[0]

    def endpoint(self, number: int, *mappings: PortMapping, address: str = "", network: str = NETWORK) -> str:
        """Have an endpoint made with an address; return its key."""
        given = self.address(address)
        self.call(calls.CreateEndpoint(network, docker_id(number), given, "", mappings))
        return key_of(docker_id(number))

    def join(self, number: int, sandbox: str, network: str = NETWORK) -> dict[str, Any]:
        return self.call(calls.Join(network, docker_id(number), sandbox))

    def delete(self, number: int, address: str, network: str = NETWORK) -> None:
        self.call(calls.DeleteEndpoint(network, docker_id(number)))
        self.call(calls.ReleaseAddress("p", address))


def seen(
    container: int,
    endpoint: int | None = None,
    state: ContainerRunState = "running",
    **changes: Any,
) -> DockerSeen:
    """Return what Docker says of a container of its user's."""
    name = changes.pop("name", f"c{container}")
    identity = docker_id(container)
    place = "" if endpoint is None else docker_id(endpoint)
    return DockerSeen(identity, name, "tiny:1", state, endpoint=place, **changes)


def network(*endpoints: int, internal: bool = False, identity: str = NETWORK) -> DockerNetwork:
    return DockerNetwork(identity, "demo", internal, tuple(docker_id(number) for number in endpoints))
