"""What each of Docker's calls does to the networks, endpoints and addresses of a node."""

from __future__ import annotations

from typing import Any

import pytest

from netctl.errors import (
    ExhaustedError,
    InvalidError,
    NetctlError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)
from netctl.model import mac_of
from nodeagent.driver import calls
from nodeagent.driver.addresses import HELD_SECONDS
from nodeagent.driver.book import ANY_POOL, Answer, Book, Wait, answered
from nodeagent.driver.calls import PortMapping
from nodeagent.driver.publishing import FIRST_FREE_PORT
from nodeagent.driver.view import DriverView
from tests.support.docker_calls import (
    BLOCK,
    GATEWAY,
    NETWORK,
    RESERVE,
    Asked,
    around,
    docker_id,
    placed,
    recorded,
    view,
)

WEB = PortMapping("tcp", 80, "", 8080, 8080)


def refused(asked: Asked, call: calls.Call, kind: type[NetctlError] = InvalidError) -> NetctlError:
    """Return why a call is refused; the book must be as it was."""
    before = asked.book
    with pytest.raises(kind) as caught:
        asked.call(call)
    assert asked.book is before
    return caught.value


# --- pools and networks -------------------------------------------------------------------------------


def test_a_pool_without_a_subnet_overlaps_nothing_and_each_has_an_id_of_its_own() -> None:
    asked = Asked()
    one = asked.call(calls.RequestPool("", "", (), ipv6=False))
    other = asked.call(calls.RequestPool("", "", (), ipv6=False))
    assert one["Pool"] == other["Pool"] == ANY_POOL
    assert one["PoolID"] != other["PoolID"]


def test_a_subnet_must_be_the_nodes_block() -> None:
    asked = Asked()
    assert asked.call(calls.RequestPool(BLOCK, "", (), ipv6=False))["Pool"] == BLOCK
    error = refused(asked, calls.RequestPool("10.2.0.0/16", "", (), ipv6=False))
    assert f"--subnet {BLOCK}" in error.remedy


@pytest.mark.parametrize(
    ("call", "flag"),
    [
        (calls.RequestPool(BLOCK, "10.1.4.0/24", (), ipv6=False), "--ip-range"),
        (calls.RequestPool("", "", ("a",), ipv6=False), "--ipam-opt"),
        (calls.RequestPool("fd00::/64", "", (), ipv6=True), "--ipv6"),
        (calls.RequestAddress("p", "10.1.0.2", gateway=True), "--gateway"),
        (calls.CreateNetwork(NETWORK, False, (GATEWAY,), False, ("x",), True, False), "-o"),
        (calls.CreateNetwork(NETWORK, False, (GATEWAY,), True, (), True, False), "--aux-address"),
        (calls.CreateNetwork(NETWORK, False, (GATEWAY,), False, (), True, True), "--ipv6"),
        (calls.CreateNetwork(NETWORK, False, (GATEWAY,), False, (), False, False), "--ipv6"),
        (calls.CreateNetwork(NETWORK, False, ("172.18.0.1",), False, (), True, False), "--ipam-driver"),
        (calls.CreateNetwork(NETWORK, False, (), False, (), True, False), "--ipam-driver"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_to_write(call: calls.Call, flag: str) -> None:
    assert flag in refused(Asked(), call).remedy


def test_the_gateway_is_the_bridge_and_is_never_given_out_or_released() -> None:
    asked = Asked()
    assert asked.call(calls.RequestAddress("p", "", gateway=True))["Address"] == f"{GATEWAY}/16"
    assert asked.call(calls.RequestAddress("p", GATEWAY, gateway=True))["Address"] == f"{GATEWAY}/16"
    asked.call(calls.ReleaseAddress("p", GATEWAY))
    refused(asked, calls.RequestAddress("p", GATEWAY, gateway=False), RefusedError)


def test_without_a_block_what_gives_is_refused_and_what_takes_back_is_not() -> None:
    asked = Asked(DriverView())
    refused(asked, calls.RequestPool("", "", (), ipv6=False), UnavailableError)
    for call in (
        calls.ReleasePool("p"),
        calls.ReleaseAddress("p", "10.1.0.2"),
        calls.DeleteNetwork(NETWORK),
        calls.DeleteEndpoint(NETWORK, docker_id(1)),
        calls.Leave(NETWORK, docker_id(1)),
        calls.RevokeExternalConnectivity(NETWORK, docker_id(1)),
    ):
        assert asked.call(call) == {}
    assert asked.book == Book()


def test_a_network_that_goes_takes_its_endpoints_with_it() -> None:
    asked = Asked()
    asked.network()
    asked.endpoint(1)
    asked.call(calls.DeleteNetwork(NETWORK))
    assert dict(asked.book.networks) == {}
    assert dict(asked.book.endpoints.by_key) == {}
    asked.call(calls.DeleteNetwork(NETWORK))


# --- addresses ----------------------------------------------------------------------------------------


def test_addresses_come_from_the_lease_and_a_freed_one_comes_last() -> None:
    asked = Asked()
    asked.network()
    asked.endpoint(1)
    first = asked.book.endpoints.by_key[docker_id(1)[:32]].address
    asked.delete(1, first)
    given = [asked.address() for _ in RESERVE]
    assert sorted(given) == sorted(RESERVE)
    assert given[-1] == first


def test_what_is_recorded_or_used_at_docker_is_not_given_out() -> None:
    asked = Asked(view(by_address={"10.1.0.2": "c" * 32}))
    call = calls.RequestAddress("p", "", gateway=False)
    _, result = answered(asked.book, call, around(asked.view, taken={"10.1.0.3"}))
    assert isinstance(result, Answer)
    assert result.body["Address"] == "10.1.0.4/16"


def test_a_lease_that_is_used_up_waits_for_the_broker_while_it_can_be_reached() -> None:
    asked = Asked()
    for _ in RESERVE:
        asked.address()
    assert asked.result(calls.RequestAddress("p", "", gateway=False)) == Wait()
    asked.view = view(reserve=RESERVE | {"10.1.0.77"})
    assert asked.address() == "10.1.0.77"
    asked.view = view(connected=False)
    refused(asked, calls.RequestAddress("p", "", gateway=False), ExhaustedError)


def test_an_address_that_was_asked_for_and_never_used_is_free_again() -> None:
    asked = Asked(view(reserve={"10.1.0.2"}))
    assert asked.address() == "10.1.0.2"
    addresses = asked.book.addresses
    assert addresses.expired(asked.now + HELD_SECONDS - 1) is addresses
    assert "10.1.0.2" not in addresses.expired(asked.now + HELD_SECONDS).held


def test_a_late_release_does_not_free_what_another_has_by_then() -> None:
    asked = Asked(view(reserve={"10.1.0.2"}))
    asked.network()
    asked.endpoint(1)
    asked.call(calls.DeleteEndpoint(NETWORK, docker_id(1)))
    # Until Docker released it, nobody gets it.
    assert asked.result(calls.RequestAddress("p", "", gateway=False)) == Wait()
    asked.call(calls.ReleaseAddress("p", "10.1.0.2"))
    asked.endpoint(2)
    asked.call(calls.ReleaseAddress("p", "10.1.0.2"))
    assert dict(asked.book.endpoints.by_address) == {"10.1.0.2": docker_id(2)[:32]}
    refused(asked, calls.RequestAddress("p", "10.1.0.2", gateway=False), RefusedError)


def test_a_static_address_is_had_from_the_lease_from_the_broker_or_from_its_record() -> None:
    asked = Asked()
    assert asked.address("10.1.0.4") == "10.1.0.4"
    assert asked.result(calls.RequestAddress("p", "10.1.0.90", gateway=False)) == Wait("10.1.0.90")
    asked.view = recorded(placed("c" * 32, "10.1.0.90"))
    assert asked.address("10.1.0.90") == "10.1.0.90"
    asked.view = recorded(placed("c" * 32, "10.1.0.91", origin="engine"))
    assert asked.address("10.1.0.91") == "10.1.0.91"


@pytest.mark.parametrize("address", ["10.2.0.5", "10.1.0.0", GATEWAY, "10.1.255.255", "10.1.0.66"])
def test_a_static_address_that_is_none_of_the_containers_is_refused(address: str) -> None:
    asked = Asked(recorded(placed("c" * 32, "10.1.0.66", engine="process")))
    refused(asked, calls.RequestAddress("p", address, gateway=False), RefusedError)


def test_a_static_address_needs_the_broker_unless_it_is_on_lease() -> None:
    asked = Asked(view(connected=False))
    refused(asked, calls.RequestAddress("p", "10.1.0.90", gateway=False), UnavailableError)
    assert asked.address("10.1.0.3") == "10.1.0.3"


# --- endpoints ----------------------------------------------------------------------------------------


def created(asked: Asked, number: int, address: str, mac: str = "") -> dict[str, Any]:
    return asked.call(calls.CreateEndpoint(NETWORK, docker_id(number), address, mac, ()))


def test_an_endpoint_has_the_ethernet_address_of_its_address() -> None:
    asked = Asked()
    asked.network()
    mac = mac_of(asked.address())
    assert created(asked, 1, "10.1.0.2") == {"Interface": {"MacAddress": mac}}
    assert created(asked, 1, "10.1.0.2") == {"Interface": {"MacAddress": mac}}
    # Docker refuses an answer with a MAC where it asked for one.
    asked.address()
    assert created(asked, 2, "10.1.0.3", mac_of("10.1.0.3")) == {"Interface": {}}
    call = calls.CreateEndpoint(NETWORK, docker_id(3), "10.1.0.4", "02:11:22:33:44:55", ())
    assert "--mac-address" in refused(asked, call).remedy


def test_an_endpoint_is_made_only_with_an_address_that_was_given_out() -> None:
    asked = Asked()
    asked.network()
    call = calls.CreateEndpoint(NETWORK, docker_id(1), "10.1.0.90", "", ())
    refused(asked, call, RefusedError)
    refused(asked, calls.CreateEndpoint(NETWORK, docker_id(1), "", "", ()))
    # One of the lease is as good: what was asked for may have been forgotten since.
    created(asked, 1, "10.1.0.2")
    refused(asked, calls.CreateEndpoint(NETWORK, docker_id(2), "10.1.0.2", "", ()), RefusedError)
    refused(asked, calls.CreateEndpoint(NETWORK, docker_id(1), "10.1.0.3", "", ()), RefusedError)


def test_a_join_names_the_link_and_the_gateway() -> None:
    asked = Asked()
    asked.network()
    key = asked.endpoint(1)
    answer = asked.join(1, "abcdef")
    assert answer == {
        "InterfaceName": {"SrcName": f"nce{key[:12]}", "DstPrefix": "eth"},
        "Gateway": GATEWAY,
        "StaticRoutes": [{"Destination": "10.0.0.0/8", "RouteType": 0, "NextHop": GATEWAY}],
        "DisableGatewayService": True,
    }
    assert asked.book.endpoints.by_key[key].sandbox == "abcdef"
    assert asked.join(1, "abcdef") == answer
    refused(asked, calls.Join(NETWORK, docker_id(1), "fedcba"), RefusedError)
    refused(asked, calls.Join(NETWORK, docker_id(9), "fedcba"), NotFoundError)


def test_an_internal_network_gives_no_gateway_and_publishes_nothing() -> None:
    asked = Asked()
    asked.network(internal=True)
    key = asked.endpoint(1, WEB)
    answer = asked.join(1, "abcdef")
    assert "Gateway" not in answer
    assert answer["StaticRoutes"], "or it would not reach connected containers of other nodes"
    assert asked.book.endpoints.by_key[key].internal
    asked.call(calls.ProgramExternalConnectivity(NETWORK, docker_id(1), (WEB,)))
    assert asked.book.endpoints.by_key[key].publications == ()


def test_a_network_that_was_forgotten_counts_as_internal() -> None:
    asked = Asked()
    asked.endpoint(1)
    assert "Gateway" not in asked.join(1, "abcdef")


def test_a_container_has_one_endpoint_at_most() -> None:
    asked = Asked()
    asked.network()
    asked.endpoint(1)
    asked.join(1, "abcdef")
    asked.endpoint(2)
    call = calls.Join(NETWORK, docker_id(2), "abcdef")
    assert "one address" in refused(asked, call, RefusedError).message
    asked.call(calls.Leave(NETWORK, docker_id(1)))
    assert asked.call(call)["Gateway"] == GATEWAY


def test_leaving_keeps_the_endpoint_and_deleting_it_its_address_until_the_release() -> None:
    asked = Asked()
    asked.network()
    key = asked.endpoint(1)
    asked.join(1, "abcdef")
    asked.call(calls.Leave(NETWORK, docker_id(1)))
    assert asked.book.endpoints.by_key[key].sandbox == ""
    asked.call(calls.DeleteEndpoint(NETWORK, docker_id(1)))
    assert dict(asked.book.endpoints.by_key) == {}
    assert "10.1.0.2" in asked.book.addresses.held
    assert asked.result(calls.ReleaseAddress("p", "10.1.0.2")) == Answer()
    assert dict(asked.book.addresses.held) == {}


# --- published ports ----------------------------------------------------------------------------------


def ports(asked: Asked, key: str) -> list[tuple[str, str, int, int]]:
    publications = asked.book.endpoints.by_key[key].publications
    return [(p.protocol, p.host_address, p.host_port, p.port) for p in publications]


def test_ports_are_published_as_asked_for_and_free_ones_are_found() -> None:
    asked = Asked()
    asked.network()
    key = asked.endpoint(
        1, WEB, PortMapping("udp", 53, "", 0, 0), PortMapping("tcp", 81, "127.0.0.1", 8080, 8082)
    )
    assert ports(asked, key) == [
        ("tcp", "", 8080, 80),
        ("tcp", "127.0.0.1", 8081, 81),
        ("udp", "", FIRST_FREE_PORT, 53),
    ]


def test_a_port_is_published_once() -> None:
    asked = Asked()
    asked.network()
    asked.endpoint(1, WEB)
    asked.address()
    for address in ("", "127.0.0.1"):
        mapping = PortMapping("tcp", 80, address, 8080, 8080)
        call = calls.CreateEndpoint(NETWORK, docker_id(2), "10.1.0.3", "", (mapping,))
        assert "port is already allocated" in refused(asked, call, RefusedError).message
    udp = PortMapping("udp", 80, "", 8080, 8080)
    key = asked.endpoint(2, udp)
    assert ports(asked, key) == [("udp", "", 8080, 80)]


def test_two_addresses_of_the_node_may_offer_the_same_port() -> None:
    asked = Asked()
    asked.network()
    asked.endpoint(1, PortMapping("tcp", 80, "192.0.2.1", 8080, 8080))
    key = asked.endpoint(2, PortMapping("tcp", 80, "192.0.2.2", 8080, 8080))
    assert ports(asked, key) == [("tcp", "192.0.2.2", 8080, 80)]


def test_a_port_that_another_program_has_is_refused_or_passed_over() -> None:
    asked = Asked()
    asked.network()
    asked.probe = lambda _protocol, _address, port: "" if port > FIRST_FREE_PORT + 1 else "port is taken"
    call = calls.CreateEndpoint(NETWORK, docker_id(1), "10.1.0.2", "", (WEB,))
    assert "port is taken" in refused(asked, call, RefusedError).message
    key = asked.endpoint(1, PortMapping("tcp", 80, "", 0, 0))
    assert ports(asked, key) == [("tcp", "", FIRST_FREE_PORT + 2, 80)]


def test_ports_go_when_another_network_leads_to_the_container_and_come_back() -> None:
    asked = Asked()
    asked.network()
    key = asked.endpoint(1, WEB)
    asked.call(calls.RevokeExternalConnectivity(NETWORK, docker_id(1)))
    assert ports(asked, key) == []
    asked.call(calls.ProgramExternalConnectivity(NETWORK, docker_id(1), (WEB,)))
    assert ports(asked, key) == [("tcp", "", 8080, 80)]
    asked.call(calls.ProgramExternalConnectivity(NETWORK, docker_id(1), (WEB,)))
    assert ports(asked, key) == [("tcp", "", 8080, 80)]
    refused(asked, calls.ProgramExternalConnectivity(NETWORK, docker_id(9), (WEB,)), NotFoundError)
