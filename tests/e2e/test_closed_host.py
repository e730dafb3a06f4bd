"""What a container cannot reach of its node, other nodes and the broker, and what it can of the internet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from netctl.model import BROKER_PORT
from tests.support.lab import Lab
from tests.support.netns import Namespace, ping_passes, tcp_passes, udp_passes

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

OUTSIDE = "198.51.100.1"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Yield a lab with a host outside that the nodes' default routes lead to."""
    made = Lab(tmp_path_factory.mktemp("lab"), "--outside")
    made.up()
    made.run("web", "--node", "n1")
    yield made
    made.down()


@pytest.fixture(scope="module")
def web(lab: Lab) -> Namespace:
    return lab.namespace("web")


def test_the_internet_is_open_for_what_the_container_starts(lab: Lab, web: Namespace) -> None:
    outside = lab.host("outside")
    assert tcp_passes(web, outside, OUTSIDE, 80)
    assert udp_passes(web, outside, OUTSIDE, 123, size=4000)
    assert ping_passes(web, OUTSIDE)
    # Back in come replies only. The control is the first line: the path there and back works.
    outside.ip("route", "replace", "10.1.0.0/16", "via", "172.31.1.1")
    assert not tcp_passes(outside, web, lab.address("web"), 80)
    assert not ping_passes(outside, lab.address("web"))


@pytest.mark.parametrize("host", ["n1", "n2", "broker"])
def test_nodes_and_broker_are_closed(lab: Lab, web: Namespace, host: str) -> None:
    address = {"n1": "172.31.1.1", "n2": "172.31.1.2", "broker": "172.31.0.2"}[host]
    target = lab.host(host)
    for port in (22, 8080, BROKER_PORT + 1):
        assert not tcp_passes(web, target, address, port)
        assert not udp_passes(web, target, address, port)
    assert not ping_passes(web, address)
    # The control: a node's own process reaches the same address and port.
    assert tcp_passes(lab.host("n3"), target, address, 8080)
    assert ping_passes(lab.host("n3"), address)


def test_the_bridge_answers_nothing(lab: Lab, web: Namespace) -> None:
    node = lab.host("n1")
    assert not tcp_passes(web, node, "10.1.0.1", 8080)
    assert not ping_passes(web, "10.1.0.1")
    assert tcp_passes(node, node, "10.1.0.1", 8080)


def test_the_metadata_address_is_closed(lab: Lab, web: Namespace) -> None:
    outside = lab.host("outside")
    outside.ip("addr", "replace", "169.254.169.254/32", "dev", "lo")
    node = lab.host("n1")
    node.ip("route", "replace", "169.254.169.254/32", "via", "172.31.0.1")
    assert tcp_passes(node, outside, "169.254.169.254", 80)
    assert not tcp_passes(web, outside, "169.254.169.254", 80)
    node.ip("route", "del", "169.254.169.254/32")
