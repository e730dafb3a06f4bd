"""A broker that answers from a list, in place of the client; everything above it is real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs
import pytest

from netctl.cli import main, target
from netctl.errors import NetctlError
from netctl.wire import identity
from netctl.wire.identity import Identity, KeyPair
from netctl.wire.messages import Progress


@attrs.define
class Broker:
    """What the fake answers, and what it was asked.

    Attributes:
        answers: By the request's type; an error is raised instead; of a list each is given once, in order.
        asked: Every request, in order.
        progress: What is told before each answer.
    """

    answers: dict[type, Any] = attrs.field(factory=dict)
    asked: list[Any] = attrs.field(factory=list)
    progress: list[Progress] = attrs.field(factory=list)


class FakeClient:
    """Stands where `netctl.client.Client` stands."""

    broker: Broker

    def __init__(self, _: Identity) -> None:
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def request(
        self,
        message: Any,
        timeout: float | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Any:
        del timeout
        self.broker.asked.append(message)
        if progress is not None:
            for each in self.broker.progress:
                progress(each)
        answer = self.broker.answers[type(message)]
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, NetctlError):
            raise answer
        return answer

    open = request


@attrs.frozen
class Outcome:
    status: int
    out: str
    err: str


Netctl = Callable[..., Outcome]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give this test a configuration directory of its own, and no lab."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("NETCTL_LAB", raising=False)
    monkeypatch.setattr("netctl.lab.registry.labs_up", lambda: ())
    return tmp_path


@pytest.fixture
def broker(config: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """Join a broker that answers what the test says."""
    del config
    joined = Identity("user", "ada", KeyPair.generate().private, ("ipc:///nowhere",), bytes(32))
    identity.save(joined, target.identity_path())
    FakeClient.broker = Broker()
    monkeypatch.setattr("netctl.client.Client", FakeClient)
    yield FakeClient.broker
    del FakeClient.broker


@pytest.fixture
def netctl(capfd: pytest.CaptureFixture[str]) -> Netctl:
    """Return a function that runs one command line in this process."""

    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        status = main.run(arguments)
        out, err = capfd.readouterr()
        return Outcome(status, out, err)

    return run
