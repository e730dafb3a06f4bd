"""What every backend of layer 1 means by install, update, read, remove and drift: fake and real alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from firewall_rules.backends import libnftables
from firewall_rules.backends.base import ContainerBackend, FirewallError
from firewall_rules.backends.fake import FakeContainerBackend, FakeTable
from firewall_rules.backends.iptables_client import IptablesContainerBackend
from firewall_rules.backends.nftables import NftablesContainerBackend
from firewall_rules.policy import ContainerPolicy, Opening, PublishedPort
from tests.support.netns import Namespace

KEY = "0123456789abcdef0123456789abcdef"
TCP = Opening("10.2.0.2", "tcp", 5432)
UDP = Opening("10.2.0.2", "udp", 53)
PING = Opening("10.2.0.3", "icmp")
ANY = Opening("10.2.0.4", "any")
POLICY = ContainerPolicy(
    address="10.1.0.2",
    gateway="10.1.0.1",
    resolver="10.1.0.1",
    closed=frozenset({"203.0.113.0/24", "192.0.2.7/32", "10.9.0.0/16"}),
    inbound=frozenset({TCP, ANY}),
    outbound=frozenset({PING, ANY}),
)


@attrs.frozen
class Subject:
    """A backend under test.

    Attributes:
        again: Makes the backend of a process that was started again.
        flush: Someone takes our rules out.
        tamper: Someone adds a rule to ours that lets everything pass.
    """

    backend: ContainerBackend
    namespace: int
    again: Callable[[], ContainerBackend]
    flush: Callable[[], None]
    tamper: Callable[[], None]


def fake_subject() -> Subject:
    tables: dict[str, FakeTable] = {}
    backend = FakeContainerBackend(tables=tables)
    return Subject(
        backend,
        -1,
        lambda: FakeContainerBackend(tables=tables),
        lambda: backend.flush(KEY),
        lambda: backend.tamper(KEY),
    )


def nftables_subject(namespace: Namespace, records: Path) -> Subject:
    return Subject(
        NftablesContainerBackend(records),
        namespace.fd,
        lambda: NftablesContainerBackend(records),
        lambda: namespace.nft("flush ruleset") and None,
        lambda: namespace.nft("insert rule inet netctl input accept") and None,
    )


def iptables_subject(namespace: Namespace, records: Path, started: list[IptablesContainerBackend]) -> Subject:
    def make() -> IptablesContainerBackend:
        started.append(IptablesContainerBackend(records))
        return started[-1]

    def flush() -> None:
        for program in ("iptables-legacy", "ip6tables-legacy"):
            namespace.run(program, "-F")
            namespace.run(program, "-X")

    return Subject(
        make(),
        namespace.fd,
        make,
        flush,
        lambda: namespace.run("iptables-legacy", "-I", "INPUT", "-j", "ACCEPT") and None,
    )


@pytest.fixture(
    params=[
        "fake",
        pytest.param("nftables", marks=pytest.mark.root),
        pytest.param("nft-program", marks=pytest.mark.root),
        pytest.param("iptables", marks=pytest.mark.root),
    ]
)
def subject(
    request: pytest.FixtureRequest,
    namespaces: Callable[[], Namespace],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Subject]:
    started: list[IptablesContainerBackend] = []
    match request.param:
        case "fake":
            yield fake_subject()
        case "nft-program":
            # A host that has the program and not the library.
            monkeypatch.setattr(libnftables, "_library", lambda: None)
            yield nftables_subject(namespaces(), tmp_path)
        case "nftables":
            yield nftables_subject(namespaces(), tmp_path)
        case _:
            yield iptables_subject(namespaces(), tmp_path, started)
    for backend in started:
        backend.close()


def test_it_is_usable_where_the_tests_run(subject: Subject) -> None:
    assert subject.backend.unusable() == ""


def test_nothing_is_in_force_before_the_first_install(subject: Subject) -> None:
    assert subject.backend.read(KEY, subject.namespace) is None


def test_what_was_installed_is_in_force(subject: Subject) -> None:
    subject.backend.install(KEY, subject.namespace, POLICY)
    assert subject.backend.read(KEY, subject.namespace) == POLICY
    assert not subject.backend.drifted(KEY, subject.namespace)


def test_an_install_replaces_the_whole(subject: Subject) -> None:
    subject.backend.install(KEY, subject.namespace, POLICY)
    other = attrs.evolve(
        POLICY, resolver=None, closed=frozenset(), inbound=frozenset({UDP}), outbound=frozenset()
    )
    subject.backend.install(KEY, subject.namespace, other)
    assert subject.backend.read(KEY, subject.namespace) == other


def test_an_update_changes_what_it_names_and_nothing_else(subject: Subject) -> None:
    subject.backend.install(KEY, subject.namespace, POLICY)
    subject.backend.update(
        KEY, subject.namespace, inbound=[UDP], inbound_removed=[TCP], outbound=[TCP], outbound_removed=[PING]
    )
    assert subject.backend.read(KEY, subject.namespace) == attrs.evolve(
        POLICY, inbound=frozenset({UDP, ANY}), outbound=frozenset({TCP, ANY})
    )
    assert not subject.backend.drifted(KEY, subject.namespace)


def test_what_is_removed_goes_before_what_is_added(subject: Subject) -> None:
    subject.backend.install(KEY, subject.namespace, POLICY)
    subject.backend.update(KEY, subject.namespace, inbound=[TCP], inbound_removed=[TCP])
    assert subject.backend.read(KEY, subject.namespace) == POLICY


def test_removing_what_is_not_there_and_adding_what_is_changes_nothing(subject: Subject) -> None:
    subject.backend.install(KEY, subject.namespace, POLICY)
    subject.backend.update(
        KEY, subject.namespace, inbound=[TCP], inbound_removed=[UDP], outbound_removed=[TCP]
    )
    assert subject.backend.read(KEY, subject.namespace) == POLICY


def test_an_opening_with_an_end_replaces_the_one_without(subject: Subject) -> None:
    subject.backend.install(KEY, subject.namespace, POLICY)
    ending = attrs.evolve(TCP, expires_at=time.time() + 1000)
    subject.backend.update(KEY, subject.namespace, inbound=[ending])
    assert subject.backend.read(KEY, subject.namespace) == attrs.evolve(
        POLICY, inbound=frozenset({ending, ANY})
    )
    subject.backend.update(KEY, subject.namespace, inbound=[TCP])
    assert subject.backend.read(KEY, subject.namespace) == POLICY


def test_what_has_ended_is_not_in_force(subject: Subject) -> None:
    ended = attrs.evolve(TCP, expires_at=time.time() - 1)
    subject.backend.install(KEY, subject.namespace, attrs.evolve(POLICY, inbound=frozenset({ended, ANY})))
    assert subject.backend.read(KEY, subject.namespace) == attrs.evolve(POLICY, inbound=frozenset({ANY}))


def test_an_update_without_a_table_is_refused(subject: Subject) -> None:
    with pytest.raises(FirewallError):
        subject.backend.update(KEY, subject.namespace, inbound=[TCP])
    assert subject.backend.read(KEY, subject.namespace) is None


def test_removed_twice_it_is_gone(subject: Subject) -> None:
    subject.backend.install(KEY, subject.namespace, POLICY)
    subject.backend.remove(KEY, subject.namespace)
    assert subject.backend.read(KEY, subject.namespace) is None
    subject.backend.remove(KEY, subject.namespace)
    assert subject.backend.read(KEY, subject.namespace) is None


def test_a_process_started_again_finds_what_is_in_force(subject: Subject) -> None:
    subject.backend.install(KEY, subject.namespace, POLICY)
    subject.backend.update(KEY, subject.namespace, inbound=[UDP], outbound_removed=[PING])
    wanted = attrs.evolve(POLICY, inbound=POLICY.inbound | {UDP}, outbound=frozenset({ANY}))
    later = subject.again()
    assert not later.drifted(KEY, subject.namespace)
    assert later.read(KEY, subject.namespace) == wanted
    later.update(KEY, subject.namespace, inbound_removed=[UDP])
    assert later.read(KEY, subject.namespace) == attrs.evolve(wanted, inbound=POLICY.inbound)


def test_a_docker_containers_policy_is_found_by_a_process_started_again(subject: Subject) -> None:
    policy = attrs.evolve(
        POLICY,
        overlay_only=True,
        internet=False,
        published=frozenset({PublishedPort("tcp", 80), PublishedPort("udp", 53)}),
    )
    subject.backend.install(KEY, subject.namespace, policy)
    subject.backend.update(KEY, subject.namespace, inbound_removed=[TCP])
    wanted = attrs.evolve(policy, inbound=frozenset({ANY}))
    later = subject.again()
    assert later.read(KEY, subject.namespace) == wanted
    assert not later.drifted(KEY, subject.namespace)
    # Whatever of it changes is another policy, and replaces the whole.
    for other in (
        attrs.evolve(wanted, overlay_only=False),
        attrs.evolve(wanted, internet=True),
        attrs.evolve(wanted, published=frozenset({PublishedPort("tcp", 81)})),
    ):
        later.install(KEY, subject.namespace, other)
        assert later.read(KEY, subject.namespace) == other
    subject.tamper()
    assert later.drifted(KEY, subject.namespace)
    assert later.read(KEY, subject.namespace) is None


def test_a_container_without_rules_yet_has_not_drifted(subject: Subject) -> None:
    assert not subject.backend.drifted(KEY, subject.namespace)


def test_rules_that_were_flushed_are_missed_and_put_back(subject: Subject) -> None:
    subject.backend.install(KEY, subject.namespace, POLICY)
    subject.flush()
    assert subject.backend.drifted(KEY, subject.namespace)
    assert subject.backend.read(KEY, subject.namespace) is None
    subject.backend.install(KEY, subject.namespace, POLICY)
    assert subject.backend.read(KEY, subject.namespace) == POLICY
    assert not subject.backend.drifted(KEY, subject.namespace)


def test_a_rule_that_someone_added_to_ours_is_noticed(subject: Subject) -> None:
    subject.backend.install(KEY, subject.namespace, POLICY)
    subject.tamper()
    assert subject.backend.drifted(KEY, subject.namespace)
    assert subject.backend.read(KEY, subject.namespace) is None
    assert subject.again().read(KEY, subject.namespace) is None
    subject.backend.install(KEY, subject.namespace, POLICY)
    assert subject.backend.read(KEY, subject.namespace) == POLICY


def test_forgotten_it_is_not_claimed_to_be_in_force(subject: Subject) -> None:
    subject.backend.install(KEY, subject.namespace, POLICY)
    subject.backend.forget(KEY)
    assert subject.backend.read(KEY, subject.namespace) is None


@pytest.mark.parametrize(
    "opening",
    [
        Opening('10.2.0.2 } ; flush ruleset; "', "tcp", 80),
        Opening("10.2.0.2", "tcp", 65536),
        Opening("", "any"),
    ],
    ids=["nft-language", "port", "empty"],
)
def test_a_value_of_another_form_is_refused_and_changes_nothing(subject: Subject, opening: Opening) -> None:
    subject.backend.install(KEY, subject.namespace, POLICY)
    if isinstance(subject.backend, FakeContainerBackend):
        # The fake knows no forms: it stands for a kernel that refuses.
        subject.backend.fail_next = ["not a valid address"] * 2
    with pytest.raises(FirewallError, match="not a valid"):
        subject.backend.update(KEY, subject.namespace, inbound=[opening])
    with pytest.raises(FirewallError, match="not a valid"):
        subject.backend.install(KEY, subject.namespace, attrs.evolve(POLICY, inbound=frozenset({opening})))
    assert subject.backend.read(KEY, subject.namespace) == POLICY


@pytest.mark.root
def test_an_nft_that_does_nothing_is_not_believed(
    namespaces: Callable[[], Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = nftables_subject(namespaces(), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(libnftables.LibraryNft, "run", lambda _self, _commands: "")
        with pytest.raises(FirewallError, match="no change"):
            subject.backend.install(KEY, subject.namespace, POLICY)
    assert subject.backend.read(KEY, subject.namespace) is None
    subject.backend.install(KEY, subject.namespace, POLICY)
    assert subject.backend.read(KEY, subject.namespace) == POLICY
