"""Whether a port of this host can be had, asked of its kernel."""

from __future__ import annotations

import socket
from typing import Literal

import pytest

from nodeagent.driver.ports import probe_port

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
Protocol = Literal["tcp", "udp"]


def taken(protocol: Protocol, family: socket.AddressFamily, address: str) -> socket.socket:
    """Return a program's socket at a port that the kernel chose."""
    sock = socket.socket(family, KINDS[protocol])
    if protocol == "tcp":
        # As servers do.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, 0))
    if protocol == "tcp":
        sock.listen()
    return sock


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("address", ["127.0.0.1", ""])
def test_a_port_that_a_program_has_cannot_be_had(protocol: Protocol, address: str) -> None:
    with taken(protocol, socket.AF_INET, address) as sock:
        port = sock.getsockname()[1]
        for asked in ("", "127.0.0.1"):
            assert probe_port(protocol, asked, port) == "port is already allocated"
    assert probe_port(protocol, "", port) == ""


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_program_that_listens_for_both_families_has_it_too(protocol: Protocol) -> None:
    with taken(protocol, socket.AF_INET6, "::") as sock:
        assert probe_port(protocol, "", sock.getsockname()[1]) == "port is already allocated"


def test_connections_that_ended_are_not_in_the_way() -> None:
    with taken("tcp", socket.AF_INET, "127.0.0.1") as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = listener.accept()
        # The side that ends first keeps the port, in TIME-WAIT.
        served.close()
        client.close()
    assert probe_port("tcp", "", port) == ""


def test_an_address_that_is_not_the_hosts_cannot_be_had() -> None:
    assert "cannot assign requested address" in probe_port("tcp", "198.51.100.7", 8080)
