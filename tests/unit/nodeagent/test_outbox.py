from __future__ import annotations

import socket
import threading

from netctl.model import PathState
from nodeagent import helper_wire
from nodeagent.helper_client import HelperClient
from nodeagent.helper_messages import (
    DockerAway,
    DockerChanged,
    DockerListed,
    DockerSeen,
    Drifted,
    PathsChanged,
    Results,
    SandboxChanged,
)
from nodeagent.outbox import Outbox

KEY = "0123456789abcdef" * 2


def seen(number: int) -> DockerSeen:
    return DockerSeen(
        f"{number:064x}", f"c{number}", "web:1", "running", labels=(("netctl.connect", "x" * 99),)
    )


def delivered(outbox: Outbox) -> list[object]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    outbox.deliver(ours)
    client = HelperClient(theirs)
    events: list[object] = list(client.events())
    ours.close()
    client.close()
    return events


def test_docker_is_told_of_in_the_order_of_the_newest() -> None:
    outbox = Outbox()
    outbox.add(DockerChanged(seen(1).docker_id, seen(1)))
    outbox.add(DockerChanged(seen(2).docker_id, seen(2)))
    outbox.add(DockerChanged(seen(1).docker_id, None))
    assert delivered(outbox) == [
        DockerChanged(seen(2).docker_id, seen(2)),
        DockerChanged(seen(1).docker_id, None),
    ]


def test_a_list_of_all_comes_after_what_was_said_of_single_ones_before() -> None:
    outbox = Outbox()
    outbox.add(DockerListed((), (), fresh=True))
    outbox.add(DockerChanged(seen(1).docker_id, None))
    outbox.add(DockerListed((seen(2),), (), fresh=False))
    outbox.add(DockerChanged(seen(3).docker_id, seen(3)))
    # That Docker was away before is not forgotten by that, nor that one is gone.
    assert delivered(outbox) == [
        DockerChanged(seen(1).docker_id, None),
        DockerListed((seen(2),), (), fresh=True),
        DockerChanged(seen(3).docker_id, seen(3)),
    ]
    outbox.add(DockerListed((), (), fresh=True))
    outbox.add(DockerAway("gone"))
    assert delivered(outbox) == [DockerAway("gone")]


def test_a_namespace_that_was_replaced_went_before_it_came() -> None:
    outbox = Outbox()
    for present in (True, False, True):
        outbox.add(SandboxChanged(KEY, present))
    assert delivered(outbox) == [SandboxChanged(KEY, present=False), SandboxChanged(KEY, present=True)]


def test_an_event_larger_than_the_socket_takes_goes_out_in_pieces_and_before_any_answer() -> None:
    outbox = Outbox()
    listed = DockerListed(tuple(seen(number) for number in range(4000)), (), fresh=True)
    outbox.add(listed)
    outbox.add(Drifted("x"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    outbox.deliver(ours)
    assert len(outbox) == 2
    client = HelperClient(theirs)

    def serve() -> None:
        helper_wire.receive(ours, descriptors=False)
        outbox.finish(ours)
        helper_wire.send(ours, Results(("",)))
        outbox.deliver(ours)

    thread = threading.Thread(target=serve)
    thread.start()
    # The agent asks something while half an event is on its way to it.
    assert client.apply([]) == ("",)
    thread.join(10)
    assert client.events() == [listed, Drifted("x")]
    assert len(outbox) == 0
    ours.close()
    client.close()


def test_of_each_way_only_the_newest_is_told() -> None:
    outbox = Outbox()
    first, second = (PathState("n2", "gre", up=up) for up in (True, False))
    other = PathState("n2", "vxlan", up=True)
    outbox.add(PathsChanged((first, other)))
    outbox.add(PathsChanged((second,)))
    assert delivered(outbox) == [PathsChanged((second, other))]
