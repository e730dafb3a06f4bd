"""A lab without tunnels: packets pass as they are over a link that all nodes share."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import attrs
import pytest

from tests.support.lab import Lab
from tests.support.netns import (
    BLOCKED_AFTER,
    PASSES_WITHIN,
    Capture,
    Namespace,
    ethernet,
    ipv4,
    readable,
    send_frames,
    udp,
)
from tests.support.pairs import two

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

IPV4 = 0x0800
UNDERLAY_MTU = 1400


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Yield a lab of three nodes."""
    made = Lab(tmp_path_factory.mktemp("lab"), "--encapsulation", "direct", "--mtu", str(UNDERLAY_MTU))
    made.up()
    yield made
    made.down()


@attrs.frozen
class Port:
    """A node's link to the underlay."""

    node: Namespace
    link: str
    mac: str
    mtu: int


def underlay_port(lab: Lab, name: str) -> Port:
    node = lab.host(name)
    own = next(row["underlay"] for row in lab.netctl("node", "list", "--json").json if row["name"] == name)
    for row in json.loads(node.ip("-j", "addr")):
        if own in {entry.get("local") for entry in row["addr_info"]}:
            return Port(node, row["ifname"], row["address"], row["mtu"])
    raise AssertionError(f"{name} has no link with {own}")


def test_a_connection_passes_across_nodes_and_nothing_else(lab: Lab) -> None:
    assert {row["encapsulation"] for row in lab.netctl("node", "list", "--json").json} == {"direct"}
    with two(lab, "web", "db") as pair:
        assert not pair.tcp(5432)
        lab.netctl("connect", "web", "db", "--port", "5432", "--port", "53/udp")
        assert pair.tcp(5432)
        assert pair.udp(53, size=4000)
        assert not pair.tcp(5433)
        assert not pair.udp(54)
        assert not pair.tcp_back(5432)
        lab.netctl("disconnect", "web", "db")
        assert not pair.tcp(5432)
        assert not pair.udp(53)


def test_packets_are_as_large_as_the_underlays_and_not_wrapped(lab: Lab) -> None:
    port = underlay_port(lab, "n2")
    assert port.mtu == UNDERLAY_MTU
    assert "nct" not in port.node.ip("-o", "link", "show")
    with two(lab, "web", "db") as pair:
        assert f"mtu {UNDERLAY_MTU} " in pair.one.ip("link", "show", "dev", "eth0")
        lab.netctl("connect", "web", "db", "--port", "53/udp")
        with Capture(port.node, port.link) as wire:
            assert pair.udp(53, size=UNDERLAY_MTU - 28)
            addresses = socket.inet_aton(pair.one_address) + socket.inet_aton(pair.other_address)
            frame = wire.until(lambda frame: frame[26:34] == addresses)
        assert frame is not None
        assert len(frame) == 14 + UNDERLAY_MTU


def test_an_inner_source_counts_only_from_its_own_nodes_link(lab: Lab) -> None:
    one, two_, three = (underlay_port(lab, name) for name in ("n1", "n2", "n3"))
    with two(lab, "web", "db") as pair:
        lab.netctl("connect", "db", "web", "--port", "53/udp")
        foreign = "10.3.0.77"
        assert lab.netctl("node", "list", "--json").json[2]["block"] == "10.3.0.0/16"

        def arrives(sender: Port, mac: str, source: str, seconds: float) -> bool:
            packet = ipv4(source, pair.one_address, socket.IPPROTO_UDP, udp(999, 53, b"hello"))
            with pair.one.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
                server.bind((pair.one_address, 53))
                send_frames(sender.node, sender.link, [ethernet(one.mac, mac, IPV4, packet)])
                return readable(server, seconds)

        db = pair.other_address
        assert arrives(two_, two_.mac, db, PASSES_WITHIN), "the control: what n2 sends by hand arrives"
        assert not arrives(three, three.mac, db, BLOCKED_AFTER), "n3 speaks for a container of n2"
        assert not arrives(two_, "02:00:00:00:00:99", db, BLOCKED_AFTER), "a stranger's Ethernet address"
        assert not arrives(two_, two_.mac, foreign, BLOCKED_AFTER), "n2 speaks for a container of n3"
        assert arrives(two_, two_.mac, db, PASSES_WITHIN), "the control: it still arrives"
