"""The privileged child and its client, over a real socket pair and fakes behind it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netctl.errors import KernelError, ProtocolError, UnavailableError
from nodeagent import helper_wire
from nodeagent.helper_client import Event, HelperClient
from nodeagent.helper_fake import LocalHelper
from nodeagent.helper_messages import (
    Apply,
    ContainerChanged,
    Drifted,
    ExecEnded,
    FactsChanged,
    KillExec,
    Opened,
    OpenExec,
    OpenLogs,
    Refused,
    Results,
)
from nodeagent.helper_server import FACTS_SECONDS
from nodeagent.kernel.fake import FACTS, CrashError
from nodeagent.kernel_state import EngineContainer
from nodeagent.ops import OPS, Op, SetBridge, SetSysctl, ordered
from nodeagent.outbox import Outbox
from tests.support.hosts import BRIDGE, CONTAINER, OTHER, PREPARING, FakeHost, ServedHost, attaching, creating
from tests.support.netns import wait_for


@pytest.fixture
def served() -> Iterator[ServedHost]:
    served = ServedHost()
    yield served
    served.close()
    assert served.failed is None


def events_until(client: HelperClient, wanted: Callable[[Event], bool]) -> list[Event]:
    """Collect events until one is `wanted`."""
    told: list[Event] = []

    def arrived() -> bool:
        told.extend(client.events())
        return any(map(wanted, told))

    wait_for(arrived, what="the event")
    return told


def descriptors_of(served: ServedHost) -> int:
    """Count what this process has open, once the child has done what it was asked."""
    served.client.kill_exec(0)
    return len(list(Path("/proc/self/fd").iterdir()))


def attached(served: ServedHost) -> None:
    client = served.client
    assert client.apply([*PREPARING, creating()]) == ("", "", "")
    events_until(client, lambda event: event == ContainerChanged(CONTAINER, EngineContainer("created")))
    assert client.apply(attaching()) == ("",) * 4
    events_until(client, lambda event: event == ContainerChanged(CONTAINER, EngineContainer("running", 1)))


def test_facts_operations_and_observation_cross_the_pair(served: ServedHost) -> None:
    facts = served.client.facts("192.0.2.1")
    assert (facts.underlay, facts.firewall, facts.engines) == ("192.0.2.1", "nftables", ("process",))
    attached(served)
    assert served.client.observe() == served.fakes.host().observe()
    assert served.client.observe().ends.keys() == {CONTAINER}


def test_errors_of_operations_are_told_one_by_one(served: ServedHost) -> None:
    served.fakes.kernel.refuse[SetBridge] = "no bridge today"
    errors = served.client.apply([*PREPARING, SetSysctl("net/ipv4/ip_forward", "1")])
    assert errors == ("", "no bridge today", "")


def test_large_messages_cross_in_pieces(served: ServedHost) -> None:
    count = 20_000
    errors = served.client.apply([SetSysctl("net/ipv4/ip_forward", str(n % 2)) for n in range(count)])
    assert errors == ("",) * count
    assert served.fakes.kernel.writes == count


@pytest.mark.parametrize(
    "operation",
    [
        SetSysctl("kernel/core_pattern", "1"),
        SetSysctl("net/ipv4/../../kernel/panic", "1"),
        SetSysctl("net/ipv4/ip_forward", "1\n"),
    ],
)
def test_one_operation_that_is_not_allowed_refuses_all(served: ServedHost, operation: Op) -> None:
    with pytest.raises(KernelError, match="setting"):
        served.client.apply([SetSysctl("net/ipv4/ip_forward", "1"), operation])
    assert served.fakes.kernel.writes == 0
    # The control: it serves on.
    assert served.client.apply([SetSysctl("net/ipv4/ip_forward", "1")]) == ("",)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        helper_wire.encode(Results(())),
        helper_wire.encode(Opened(3)),
        helper_wire.encode(Apply((("Nonsense", {}),))),
        helper_wire.encode(Apply((("SetBridge", {"bridge": {"address": 7}}),))),
        helper_wire.encode(OpenExec(CONTAINER, ())),
        helper_wire.encode(OpenExec(CONTAINER, ("a\0b",))),
        helper_wire.encode(OpenExec(CONTAINER, ("true",), rows=-1)),
    ],
)
def test_what_is_no_request_changes_nothing(served: ServedHost, data: bytes) -> None:
    served.ours.send(b"\0" + data)
    answer, _ = helper_wire.receive(served.ours, descriptors=True)
    assert isinstance(answer, Refused)
    assert served.fakes.kernel.writes == 0
    assert served.client.observe().bridge is None


def test_descriptors_sent_to_the_child_do_not_arrive(served: ServedHost) -> None:
    before = descriptors_of(served)
    read, write = os.pipe()
    request = b"\0" + helper_wire.encode(KillExec(99))
    socket.send_fds(served.ours, [request], [write])
    helper_wire.receive(served.ours, descriptors=True)
    os.close(write)
    assert os.read(read, 1) == b""  # nobody else holds the other end
    os.close(read)
    assert descriptors_of(served) == before


def test_exec_has_three_streams_and_an_end(served: ServedHost) -> None:
    attached(served)
    handle, (stdin, stdout, stderr) = served.client.open_exec(OpenExec(CONTAINER, ("cat",), (("A", "b"),)))
    (command,) = served.fakes.engine.execs.values()
    assert (command.request.argv, command.request.env) == (("cat",), (("A", "b"),))
    os.write(stdin, b"in")
    assert os.read(command.stdin, 9) == b"in"
    os.write(command.stdout, b"out")
    os.write(command.stderr, b"err")
    assert (os.read(stdout, 9), os.read(stderr, 9)) == (b"out", b"err")
    served.fakes.engine.end_exec(next(iter(served.fakes.engine.execs)), 7)
    told = events_until(served.client, lambda event: isinstance(event, ExecEnded))
    assert ExecEnded(handle, 7) in told
    assert (os.read(stdout, 9), os.read(stderr, 9)) == (b"", b"")  # the child holds no copies
    helper_wire.close_all((stdin, stdout, stderr))


def test_exec_with_a_terminal_has_one_stream_of_its_size(served: ServedHost) -> None:
    attached(served)
    handle, descriptors = served.client.open_exec(
        OpenExec(CONTAINER, ("sh",), tty=True, rows=33, columns=101)
    )
    (master,) = descriptors
    assert os.get_terminal_size(master) == (101, 33)
    (command,) = served.fakes.engine.execs.values()
    assert command.request.tty
    served.client.kill_exec(handle)
    told = events_until(served.client, lambda event: isinstance(event, ExecEnded))
    assert ExecEnded(handle, 137) in told
    served.client.kill_exec(handle)  # gone already: no error
    os.close(master)


def test_exec_and_logs_of_what_is_not_there_are_refused(served: ServedHost) -> None:
    before = descriptors_of(served)
    with pytest.raises(KernelError, match="not on this node"):
        served.client.open_exec(OpenExec(OTHER, ("true",)))
    with pytest.raises(KernelError, match="not on this node"):
        served.client.open_logs(OpenLogs(OTHER))
    assert descriptors_of(served) == before


def test_logs_are_read_from_their_beginning(served: ServedHost) -> None:
    attached(served)
    served.fakes.engine.write_output(CONTAINER, 1, b"hello")
    handle, descriptor = served.client.open_logs(OpenLogs(CONTAINER))
    assert handle == 0
    assert os.read(descriptor, 99) == b"\x01\0\0\0\x05hello"
    os.close(descriptor)


def test_links_changed_by_others_are_told_at_once(served: ServedHost) -> None:
    served.watch.tell("netctl0 was deleted")
    assert events_until(served.client, lambda _: True) == [Drifted("netctl0 was deleted")]


def test_changed_facts_are_told_once_for_many_changes(served: ServedHost) -> None:
    began = time.monotonic()
    for _ in range(20):
        served.watch.tell_facts()
    assert events_until(served.client, lambda _: True) == [FactsChanged()]
    assert time.monotonic() - began >= FACTS_SECONDS
    served.watch.tell("netctl0 was deleted")
    # The control: what comes next is not another one.
    assert events_until(served.client, lambda _: True) == [Drifted("netctl0 was deleted")]
    served.watch.tell_facts()
    assert events_until(served.client, lambda _: True) == [FactsChanged()]


def test_firewalls_changed_by_others_are_told_by_the_timer(served: ServedHost) -> None:
    attached(served)
    served.fakes.firewall.flush(CONTAINER)
    (event, *_) = events_until(served.client, lambda event: isinstance(event, Drifted))
    assert CONTAINER in str(event)


def test_own_changes_are_settled_before_anything_is_awaited(served: ServedHost) -> None:
    served.client.apply([SetSysctl("net/ipv4/ip_forward", "1")])
    assert served.watch.settled == 1


def test_only_the_operators_underlay_may_be_named() -> None:
    served = ServedHost(underlay="192.0.2.9")
    try:
        assert served.client.facts(None).underlay == "192.0.2.9"
        assert served.client.facts("192.0.2.9").underlay == "192.0.2.9"
        with pytest.raises(KernelError, match=r"192\.0\.2\.9, not 192\.0\.2\.1"):
            served.client.facts("192.0.2.1")
    finally:
        served.close()


@pytest.mark.parametrize(
    "underlay", ["192.0.2", "192.0.2.256", "10.0.0.1/8", "a name", "a/b", "a:b", "\u00e9th0", "x" * 16]
)
def test_an_underlay_is_an_address_or_a_link(served: ServedHost, underlay: str) -> None:
    for there in ("192.0.2.1", "eth0", "br-0.7@x"):
        assert served.client.facts(there).underlay == there
    with pytest.raises(KernelError, match="is no address, and no name of a link"):
        served.client.facts(underlay)


def test_child_ends_with_the_agent() -> None:
    served = ServedHost()
    served.close()
    assert served.failed is None


def test_client_says_that_the_child_is_gone() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client = HelperClient(ours)
    theirs.close()
    for call in (client.facts, client.observe, client.events):
        with pytest.raises(UnavailableError, match="gone"):
            call()
    client.close()


def test_client_refuses_an_answer_to_something_else() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client = HelperClient(ours)
    helper_wire.send(theirs, Results(()))
    with pytest.raises(ProtocolError, match="Results"):
        client.observe()
    client.close()
    theirs.close()


def test_outbox_keeps_the_newest_of_each_thing() -> None:
    outbox = Outbox()
    for number in range(1000):
        outbox.add(ContainerChanged(CONTAINER, EngineContainer("running", number)))
        outbox.add(Drifted(str(number)))
    outbox.add(ExecEnded(1, 0))
    assert len(outbox) == 3
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    outbox.deliver(ours)
    assert len(outbox) == 0
    client = HelperClient(theirs)
    assert client.events() == [
        ContainerChanged(CONTAINER, EngineContainer("running", 999)),
        Drifted("999"),
        ExecEnded(1, 0),
    ]
    ours.close()
    client.close()


def test_outbox_waits_while_the_agent_does_not_read() -> None:
    outbox = Outbox()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    count = 5000
    for number in range(count):
        outbox.add(ExecEnded(number, 0))
    outbox.deliver(ours)
    assert 0 < len(outbox) < count
    client = HelperClient(theirs)
    told = client.events()
    while len(outbox):
        outbox.deliver(ours)
        told += client.events()
    assert told == [ExecEnded(number, 0) for number in range(count)]
    ours.close()
    client.close()


def test_local_helper_counts_and_crashes_where_it_is_told() -> None:
    fakes = FakeHost()

    def crash(number: int, _operation: Op) -> None:
        if number == 1:
            raise CrashError

    operations = ordered(PREPARING)
    for arguments in ({"before": crash}, {"after": crash}):
        helper = LocalHelper(fakes.host(), **arguments)
        with pytest.raises(CrashError):
            helper.apply(operations)
        assert helper.applied == list(operations[: 1 if "before" in arguments else 2])
        helper.close()
    helper = LocalHelper(fakes.host())
    assert helper.observe().bridge == BRIDGE
    assert helper.facts().underlay == FACTS.underlay
    helper.close()


def test_every_operation_can_cross() -> None:
    assert set(OPS) == {kind.__name__ for kind in OPS.values()}
