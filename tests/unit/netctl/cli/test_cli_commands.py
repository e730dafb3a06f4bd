"""Every command asks for what was typed, and prints what came back: tables, JSON with its promised keys."""

from __future__ import annotations

import json
from typing import Any

import pytest

from netctl.errors import PendingError
from netctl.model import DockerContainer, NodeFacts, Port, Wish, Workload
from netctl.wire.messages import (
    BindNode,
    BrokerStatus,
    Connect,
    ConnectionList,
    ConnectionView,
    ContainerDetail,
    ContainerList,
    ContainerView,
    CreateInvite,
    Disconnect,
    Done,
    DrainNode,
    GetStatus,
    InspectContainer,
    InviteCreated,
    LabelNode,
    ListConnections,
    ListContainers,
    ListNodes,
    NodeDetail,
    NodeList,
    NodeView,
    RemoveContainer,
    RemoveNode,
    RotateNodeKey,
    RunContainer,
    ShowNode,
    StartContainer,
    StopContainer,
    WishView,
)
from tests.unit.netctl.cli.conftest import Broker, Netctl

NODE = NodeView("n1", "10.1.0.0/16", "172.31.1.1", "ready", "vxlan", 2, 7, "0.1.0")
WEB = ContainerView("web", "n1", "10.1.0.2", "process", "running", None)
GONE = ContainerView("gone", "n1", "10.1.0.3", "process", "exited", 3)
TO_DB = ConnectionView("web", "db", "5432/tcp", "active", 9)
BOTH = ConnectionView("cache", "web", "all", "pending", 10)
DONE = Done(11, ("n1", "n2"), "web runs on n1 at 10.1.0.2")


def test_nodes(broker: Broker, netctl: Netctl) -> None:
    broker.answers[ListNodes] = NodeList((NODE,))
    rows = json.loads(netctl("node", "list", "--json").out)
    assert list(rows[0])[:5] == ["name", "block", "underlay", "state", "encapsulation"]
    assert list(rows[0].values())[:5] == ["n1", "10.1.0.0/16", "172.31.1.1", "ready", "vxlan"]
    table = netctl("node", "list").out.splitlines()
    assert table[0].split() == ["NAME", "BLOCK", "UNDERLAY", "STATE", "ENCAPSULATION", "CONTAINERS"]
    assert table[1].split() == ["n1", "10.1.0.0/16", "172.31.1.1", "ready", "vxlan", "2"]


def test_containers(broker: Broker, netctl: Netctl) -> None:
    broker.answers[ListContainers] = ContainerList((WEB, GONE))
    keys = ("name", "node", "address", "engine", "state", "exit_code")
    assert json.loads(netctl("ps", "--json").out) == [
        dict(zip(keys, ("web", "n1", "10.1.0.2", "process", "running", None), strict=True)),
        dict(zip(keys, ("gone", "n1", "10.1.0.3", "process", "exited", 3), strict=True)),
    ]
    assert netctl("ps").out.splitlines()[2].split() == ["gone", "n1", "10.1.0.3", "process", "exited", "3"]


def test_connections_are_one_object_for_each_record(broker: Broker, netctl: Netctl) -> None:
    broker.answers[ListConnections] = ConnectionList((TO_DB, BOTH))
    assert json.loads(netctl("connections", "--json").out) == [
        {"from": "web", "to": "db", "ports": ["5432/tcp"], "state": "active", "revision": 9},
        {"from": "cache", "to": "web", "ports": ["all"], "state": "pending", "revision": 10},
    ]
    assert netctl("connections").out.splitlines()[1].split() == ["web", "db", "5432/tcp", "active", "9"]


@pytest.mark.parametrize(
    ("command", "request_type", "answer"),
    [
        ("node list", ListNodes, NodeList(())),
        ("ps", ListContainers, ContainerList(())),
        ("connections", ListConnections, ConnectionList(())),
    ],
)
def test_empty_listings(
    broker: Broker, netctl: Netctl, command: str, request_type: type, answer: Any
) -> None:
    broker.answers[request_type] = answer
    assert netctl(*command.split(), "--json").out == "[]\n"
    plain = netctl(*command.split())
    assert (plain.status, plain.out) == (0, "")
    assert plain.err.startswith("no ")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "run web -- sleep 9",
            RunContainer("web", Workload("process", ("sleep", "9")), None, 10.0),
        ),
        (
            "run web --node n2 -e A=1 -e B=x=y -u 1:2 --cap-add net_admin -w /srv --timeout 3 -- prog --json",
            RunContainer(
                "web",
                Workload(
                    "process", ("prog", "--json"), (("A", "1"), ("B", "x=y")), "1:2", ("NET_ADMIN",), "/srv"
                ),
                "n2",
                3.0,
            ),
        ),
        ("stop web", StopContainer("web", 10.0)),
        ("start web --timeout 1.5", StartContainer("web", 1.5)),
        ("rm web", RemoveContainer("web", False, 10.0)),
        ("rm --force web", RemoveContainer("web", True, 10.0)),
        ("connect web db", Connect("web", "db", (), 10.0)),
        (
            "connect web db --port 5432 -p 53/udp --port icmp -p 5432/tcp",
            Connect("web", "db", (Port("tcp", 5432), Port("udp", 53), Port("icmp")), 10.0),
        ),
        ("disconnect web db", Disconnect("web", "db", (), 10.0)),
        ("disconnect web db --port 5432/tcp --timeout 0", Disconnect("web", "db", (Port("tcp", 5432),), 0.0)),
        ("node drain n1", DrainNode("n1", False)),
        ("node drain n1 --undo", DrainNode("n1", True)),
        ("node rm n1", RemoveNode("n1", False, 10.0)),
        ("node rm n1 --force", RemoveNode("n1", True, 10.0)),
        ("node bind n1 ada", BindNode("n1", "ada")),
        ("node bind n1 --none", BindNode("n1", None)),
        ("node rotate-key n1", RotateNodeKey("n1", 30.0)),
        ("node rotate-key n1 --timeout 4.5", RotateNodeKey("n1", 4.5)),
        ("node label n1 disk=ssd zone=a-", LabelNode("n1", (("disk", "ssd"), ("zone", "a-")))),
        ("node label n1 zone- disk= rack-", LabelNode("n1", (("disk", ""),), ("zone", "rack"))),
    ],
)  # fmt: skip
def test_commands_ask_for_what_was_typed(broker: Broker, netctl: Netctl, command: str, expected: Any) -> None:
    broker.answers[type(expected)] = DONE
    plain = netctl(*command.split())
    assert (plain.status, plain.out, plain.err) == (0, "web runs on n1 at 10.1.0.2\n", "")
    words = command.split()
    first, rest = (words[: words.index("--")], words[words.index("--") :]) if "--" in words else (words, [])
    assert json.loads(netctl(*first, "--json", *rest).out) == {
        "revision": 11,
        "nodes": ["n1", "n2"],
        "message": "web runs on n1 at 10.1.0.2",
    }
    assert broker.asked == [expected, expected]


def test_details(broker: Broker, netctl: Netctl) -> None:
    facts = NodeFacts("172.31.1.1", "", 1500, ("vxlan",), "nftables", ("process",))
    broker.answers[ShowNode] = NodeDetail(
        NODE, facts, {"n2": "vxlan"}, labels=(("disk", "ssd"),), account="ada"
    )
    shown = json.loads(netctl("node", "show", "n1", "--json").out)
    assert (shown["name"], shown["peers"], shown["facts"]["underlay_mtu"]) == ("n1", {"n2": "vxlan"}, 1500)
    assert (shown["labels"], shown["account"]) == ({"disk": "ssd"}, "ada")
    told = netctl("node", "show", "n1").out
    assert "172.31.1.1" in told
    assert "disk=ssd\n" in told

    broker.answers[InspectContainer] = ContainerDetail(
        WEB,
        "0" * 32,
        "ada",
        Workload("process", ("sleep", "9"), (("A", "1"),)),
        "running",
        1,
        5.0,
        "",
        (TO_DB,),
    )
    inspected = json.loads(netctl("inspect", "web", "--json").out)
    assert list(inspected)[:6] == ["name", "node", "address", "engine", "state", "exit_code"]
    assert (inspected["command"], inspected["env"]) == (["sleep", "9"], {"A": "1"})
    assert inspected["connections"][0]["ports"] == ["5432/tcp"]
    told = netctl("inspect", "web").out
    assert "sleep 9\n" in told
    assert "A=1\n" in told
    assert "connections  web -> db 5432/tcp active\n" in told
    assert "5.0" not in told


WALLED = Workload(
    "docker",
    (),
    image="busybox:1",
    volumes=("/srv:/srv:ro",),
    labels=(("tier", "front"),),
    restart="always",
    memory=2**29,
    cpus=1.25,
    cap_add=("NET_RAW",),
    loosened=("writable-root",),
    unsafe="to look why",
)
WISHES = (
    WishView("db", "5432/tcp", True),
    WishView("cache", "6379/tcp", False, "there is no container cache"),
)


def test_what_docker_has_to_say(broker: Broker, netctl: Netctl) -> None:
    view = ContainerView("web", "n1", "10.1.0.2", "docker", "running", None)
    theirs = DockerContainer(
        "a" * 32, "shop_web_1", "busybox:1", "10.1.0.2", (Wish("db", Port("tcp", 5432)),), "shop", "web"
    )
    broker.answers[InspectContainer] = ContainerDetail(
        view, "a" * 32, "ada", WALLED, "running", 1, 5.0, "", (), theirs, WISHES
    )
    shown = json.loads(netctl("inspect", "web", "--json").out)
    assert (shown["image"], shown["volumes"], shown["labels"], shown["restart"], shown["command"]) == (
        "busybox:1", ["/srv:/srv:ro"], {"tier": "front"}, "always", [],
    )  # fmt: skip
    assert shown["limits"] == {"memory": 2**29, "cpus": 1.25, "pids": 0}
    assert (shown["cap_add"], shown["loosened"], shown["unsafe"]) == (
        ["NET_RAW"], ["writable-root"], "to look why",
    )  # fmt: skip
    assert shown["docker"] == {"id": "a" * 32, "name": "shop_web_1", "project": "shop", "service": "web"}
    assert shown["wishes"] == [
        {"destination": "db", "port": "5432/tcp", "granted": True, "reason": ""},
        {
            "destination": "cache",
            "port": "6379/tcp",
            "granted": False,
            "reason": "there is no container cache",
        },
    ]
    told = netctl("inspect", "web").out
    assert "name=shop_web_1" in told
    assert "wishes       db:5432/tcp granted\n" in told
    assert "\n             cache:6379/tcp not granted: there is no container cache\n" in told
    # What Docker's own user gave it is Docker's to say; of the broker's containers it is told here.
    assert "limits" not in told
    broker.answers[InspectContainer] = ContainerDetail(
        view, "a" * 32, "ada", WALLED, "running", 1, 5.0, "", ()
    )
    told = netctl("inspect", "web").out
    assert "memory=536870912 cpus=1.25 pids=default\n" in told
    assert "wishes       -\n" in told
    # The same keys, whatever the engine; people are not told what a process cannot have.
    broker.answers[InspectContainer] = ContainerDetail(
        WEB, "0" * 32, "ada", Workload("process", ("sleep", "9")), "running", 1, 5.0, "", ()
    )
    assert list(json.loads(netctl("inspect", "web", "--json").out)) == list(shown)
    assert "image" not in netctl("inspect", "web").out


def test_status_and_version(broker: Broker, netctl: Netctl) -> None:
    broker.answers[GetStatus] = BrokerStatus(
        "0.1.0", 1, 12, "10.0.0.0/8", 16, 3.5, {"ready": 3}, 4, 5, 6, "ada"
    )
    status = json.loads(netctl("status", "--json").out)
    assert (status["revision"], status["nodes"], status["account"]) == (12, {"ready": 3}, "ada")
    assert "10.0.0.0/8" in netctl("status").out
    assert netctl("version").out.startswith("netctl ")
    assert set(json.loads(netctl("version", "--json").out)) == {"version"}


def test_an_invite_stands_alone_on_stdout(broker: Broker, netctl: Netctl) -> None:
    broker.answers[CreateInvite] = InviteCreated("netctl-invite-abc", 1e10)
    node = netctl("invite", "node", "--name", "n4", "--ttl", "60")
    assert node.out == "netctl-invite-abc\n"
    assert "nodeagent join" in node.err
    assert json.loads(netctl("invite", "user", "--json").out) == {
        "invite": "netctl-invite-abc",
        "expires_at": 1e10,
    }
    assert broker.asked == [CreateInvite("node", "n4", 60), CreateInvite("user", None, 3600)]


def test_what_others_wrote_cannot_drive_the_terminal(broker: Broker, netctl: Netctl) -> None:
    broker.answers[StopContainer] = Done(1, (), "\x1b[2Jweb\r\nended [bold]")
    assert netctl("stop", "web").out == " [2Jweb  ended [bold]\n"
    broker.answers[ListNodes] = NodeList((NodeView("n1", "10.1.0.0/16", "\x1b]0;x\x07", "ready", "gre"),))
    assert "\x1b" not in netctl("node", "list").out
    broker.answers[StopContainer] = PendingError("n1\n\x1b[31m", "wait")
    assert netctl("stop", "web").err == "error: n1  [31m; wait\n"
