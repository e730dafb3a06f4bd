"""What every implementation of `Passages` means by read, open and close: fake and real alike."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import attrs
import pytest

from firewall_rules.backends import docker_user
from firewall_rules.backends.base import FirewallError, Passages, Variant
from firewall_rules.backends.docker_user import RULE, DockerUserPassages
from firewall_rules.backends.fake import OUR_RULE, FakePassages
from tests.support.netns import Namespace


@attrs.frozen
class Subject:
    """Passages under test.

    Attributes:
        variant: The one that is written.
        docker: Docker makes its chain, anew.
        rules: How many rules the chain has, and how many of them are ours.
        first: Somebody puts a rule of his before all others.
        again: Our rule is there once more, at the end.
        gone: Somebody takes the chain out.
    """

    passages: Passages
    variant: Variant
    docker: Callable[[], object]
    rules: Callable[[], tuple[int, int]]
    first: Callable[[], object]
    again: Callable[[], object]
    gone: Callable[[], object]


def fake_subject() -> Subject:
    fake = FakePassages()
    return Subject(
        fake,
        "nft",
        lambda: fake.flush("nft"),
        lambda: (len(fake.chains["nft"]), fake.chains["nft"].count(OUR_RULE)),
        lambda: fake.chains["nft"].insert(0, "theirs"),
        lambda: fake.chains["nft"].append(OUR_RULE),
        lambda: fake.chains.pop("nft"),
    )


def real_subject(variant: Variant, node: Namespace) -> Subject:
    def iptables(*arguments: str, check: bool = True) -> str:
        return node.run(f"iptables-{variant}", *arguments, check=check)

    def gone() -> None:
        iptables("-F", "DOCKER-USER", check=False)
        iptables("-X", "DOCKER-USER", check=False)

    def docker() -> None:
        gone()
        iptables("-N", "DOCKER-USER")
        iptables("-A", "DOCKER-USER", "-j", "RETURN")

    def rules() -> tuple[int, int]:
        lines = [line for line in iptables("-S", "DOCKER-USER").splitlines() if line.startswith("-A")]
        return len(lines), sum("netctl" in line for line in lines)

    return Subject(
        DockerUserPassages(),
        variant,
        docker,
        rules,
        lambda: iptables("-I", "DOCKER-USER", "-s", "203.0.113.1", "-j", "DROP"),
        lambda: iptables("-A", "DOCKER-USER", *RULE),
        gone,
    )


@pytest.fixture(
    params=[
        "fake",
        pytest.param("nft", marks=pytest.mark.root),
        pytest.param("legacy", marks=pytest.mark.root),
    ]
)
def subject(request: pytest.FixtureRequest, namespaces: Callable[[], Namespace]) -> Iterator[Subject]:
    if request.param == "fake":
        yield fake_subject()
        return
    node = namespaces()
    with node.entered():
        yield real_subject(request.param, node)


def test_where_docker_has_no_chain_there_is_nothing_to_open_or_close(subject: Subject) -> None:
    assert subject.passages.read() == {}
    subject.passages.open(subject.variant)
    subject.passages.close(subject.variant)
    assert subject.passages.read() == {}


def test_the_rule_is_put_in_once_and_taken_out(subject: Subject) -> None:
    subject.docker()
    assert subject.passages.read() == {subject.variant: False}
    for _ in range(2):
        subject.passages.open(subject.variant)
        assert subject.passages.read() == {subject.variant: True}
        assert subject.rules() == (2, 1)
    for _ in range(2):
        subject.passages.close(subject.variant)
        assert subject.passages.read() == {subject.variant: False}
        assert subject.rules() == (1, 0)


def test_flushed_or_made_anew_it_is_missed(subject: Subject) -> None:
    subject.docker()
    subject.passages.open(subject.variant)
    subject.docker()
    assert subject.passages.read() == {subject.variant: False}
    subject.passages.open(subject.variant)
    assert subject.passages.read() == {subject.variant: True}
    subject.gone()
    assert subject.passages.read() == {}


def test_it_is_to_stand_first_and_alone(subject: Subject) -> None:
    subject.docker()
    subject.passages.open(subject.variant)
    subject.first()
    assert subject.passages.read() == {subject.variant: False}
    subject.passages.open(subject.variant)
    assert subject.passages.read() == {subject.variant: True}
    subject.again()
    assert subject.passages.read() == {subject.variant: False}
    assert subject.rules() == (4, 2)
    subject.passages.open(subject.variant)
    assert subject.passages.read() == {subject.variant: True}
    assert subject.rules() == (3, 1)
    subject.again()
    subject.passages.close(subject.variant)
    assert subject.rules() == (2, 0), "somebody else's rules stay"


@pytest.mark.root
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_a_program_that_fails_is_told_and_read_as_not_open(
    variant: Variant, namespaces: Callable[[], Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    node = namespaces()
    with node.entered():
        subject = real_subject(variant, node)
        subject.docker()

        def fails(*_: object, **__: object) -> object:
            raise subprocess.TimeoutExpired("iptables", 10)

        with monkeypatch.context() as patched:
            patched.setattr(docker_user.subprocess, "run", fails)
            assert subject.passages.read() == {variant: False}
            with pytest.raises(FirewallError, match="does not run"):
                subject.passages.open(variant)
        subject.passages.open(variant)
        assert subject.passages.read() == {variant: True}


@pytest.mark.root
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_reading_starts_a_program_only_where_something_changed(
    variant: Variant, namespaces: Callable[[], Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, started = namespaces(), []
    run = docker_user.subprocess.run

    def counting(command: list[str], **options: object) -> object:
        started.append(command[0])
        return run(command, **options)

    with node.entered():
        subject = real_subject(variant, node)
        monkeypatch.setattr(docker_user.subprocess, "run", counting)
        assert subject.passages.read() == {}
        assert not started, "no chain, no program"
        subject.docker()
        subject.passages.open(variant)
        assert subject.passages.read() == {variant: True}
        started.clear()
        assert subject.passages.read() == {variant: True}
        node.nft("add table ip someone-elses")
        assert subject.passages.read() == {variant: True}
        assert not [command for command in started if command.startswith("iptables")]
