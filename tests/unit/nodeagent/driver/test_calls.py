"""Docker's calls, read as Docker 20.10 and 26.1 wrote them, or refused."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netctl.errors import InvalidError
from nodeagent.driver import calls
from nodeagent.driver.calls import MAX_MAPPINGS, PortMapping, parse

NETWORK, ENDPOINT = "0f" * 32, "f4" * 32
FOLDERS = frozenset({"/var/run/docker/netns", "/run/docker/netns"})
PORT = {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}


def read(path: str, **body: Any) -> calls.Call:
    return parse(path, json.dumps(body).encode(), FOLDERS)


def test_the_calls_of_a_network_as_docker_writes_them() -> None:
    spaces = {"AddressSpace": "netctl-local"}
    pool = read("/IpamDriver.RequestPool", **spaces, Pool="", SubPool="", Options={"a": "b"}, V6=False)
    assert pool == calls.RequestPool("", "", ("a",), ipv6=False)
    gateway = read(
        "/IpamDriver.RequestAddress",
        PoolID="netctl-1",
        Address="",
        Options={"RequestAddressType": "com.docker.network.gateway"},
    )
    assert gateway == calls.RequestAddress("netctl-1", "", gateway=True)
    network = read(
        "/NetworkDriver.CreateNetwork",
        NetworkID=NETWORK,
        Options={
            "com.docker.network.enable_ipv6": False,
            "com.docker.network.generic": {"x": "y"},
            "com.docker.network.internal": True,
        },
        IPv4Data=[spaces | {"Gateway": "10.1.0.1/16", "Pool": "0.0.0.0/0"}],
        IPv6Data=[],
    )
    assert network == calls.CreateNetwork(
        NETWORK, internal=True, gateways=("10.1.0.1",), auxiliary=False, options=("x",), ipv4=True, ipv6=False
    )
    assert read("/NetworkDriver.DeleteNetwork", NetworkID=NETWORK) == calls.DeleteNetwork(NETWORK)
    assert read("/IpamDriver.ReleasePool", PoolID="netctl-1") == calls.ReleasePool("netctl-1")


def test_the_calls_of_an_endpoint_as_docker_writes_them() -> None:
    ids = {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
    wanted = read("/IpamDriver.RequestAddress", PoolID="netctl-1", Address="10.1.0.9", Options=None)
    assert wanted == calls.RequestAddress("netctl-1", "10.1.0.9", gateway=False)
    options = {"com.docker.network.endpoint.exposedports": [], "com.docker.network.portmap": [PORT]}
    interface = {"Address": "10.1.0.5/16", "AddressIPv6": "", "MacAddress": "6E:63:0A:01:00:05"}
    created = read("/NetworkDriver.CreateEndpoint", **ids, Interface=interface, Options=options)
    mapping = PortMapping("tcp", 80, "", 8080, 8080)
    assert created == calls.CreateEndpoint(NETWORK, ENDPOINT, "10.1.0.5", "6e:63:0a:01:00:05", (mapping,))
    # An internal network's has no options at all.
    assert read("/NetworkDriver.CreateEndpoint", **ids, Interface=interface, Options={}) is not None
    joined = read("/NetworkDriver.Join", **ids, SandboxKey="/var/run/docker/netns/b4bf6369adf1", Options={})
    assert joined == calls.Join(NETWORK, ENDPOINT, "b4bf6369adf1")
    program = read("/NetworkDriver.ProgramExternalConnectivity", **ids, Options=options)
    assert program == calls.ProgramExternalConnectivity(NETWORK, ENDPOINT, (mapping,))
    revoked = read("/NetworkDriver.RevokeExternalConnectivity", **ids)
    assert revoked == calls.RevokeExternalConnectivity(NETWORK, ENDPOINT)
    assert read("/NetworkDriver.Leave", **ids) == calls.Leave(NETWORK, ENDPOINT)
    assert read("/NetworkDriver.DeleteEndpoint", **ids) == calls.DeleteEndpoint(NETWORK, ENDPOINT)
    released = read("/IpamDriver.ReleaseAddress", PoolID="netctl-1", Address="10.1.0.5")
    assert released == calls.ReleaseAddress("netctl-1", "10.1.0.5")


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("/var/run/docker/netns/../../../etc/passwd", "namespace in"),
        ("/var/run/docker/netns/..", "no name"),
        ("/var/run/docker/netns/", "no name"),
        ("/var/run/docker/netns/ABCDEF", "no name"),
        ("/var/run/docker/netns/abcde", "no name"),
        ("/var/run/docker/netns/" + "a" * 65, "no name"),
        ("/proc/1/ns/abcdef", "--docker-exec-root"),
        ("abcdef", "namespace in"),
        ("", "namespace in"),
    ],
)
def test_a_namespace_elsewhere_is_refused(key: str, why: str) -> None:
    with pytest.raises(InvalidError) as caught:
        read("/NetworkDriver.Join", NetworkID=NETWORK, EndpointID=ENDPOINT, SandboxKey=key)
    assert why in str(caught.value)


@pytest.mark.parametrize("folder", sorted(FOLDERS))
def test_a_namespace_in_any_spelling_of_the_right_folder_is_taken(folder: str) -> None:
    ids = {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
    assert read("/NetworkDriver.Join", **ids, SandboxKey=f"{folder}/abcdef") is not None


def create(**changes: Any) -> calls.Call:
    port = PORT | changes
    return read(
        "/NetworkDriver.CreateEndpoint",
        NetworkID=NETWORK,
        EndpointID=ENDPOINT,
        Interface={"Address": "10.1.0.5/16"},
        Options={"com.docker.network.portmap": [port]},
    )


def test_ports_are_read_and_bounded() -> None:
    made = create(HostIP="0.0.0.0", HostPort=0, HostPortEnd=0)  # noqa: S104 - what Docker writes
    assert isinstance(made, calls.CreateEndpoint)
    assert made.mappings == (PortMapping("tcp", 80, "", 0, 0),)
    ranged = create(Proto=17, HostIP="127.0.0.1", HostPort=5000, HostPortEnd=5010)
    assert isinstance(ranged, calls.CreateEndpoint)
    assert ranged.mappings == (PortMapping("udp", 80, "127.0.0.1", 5000, 5010),)
    for wrong in (
        {"Proto": 132},
        {"Proto": "tcp"},
        {"Port": 0},
        {"Port": 65536},
        {"HostPort": -1},
        {"HostIP": "::1"},
        {"HostIP": "localhost"},
    ):
        with pytest.raises(InvalidError):
            create(**wrong)


def test_too_many_ports_are_refused() -> None:
    def many(count: int) -> calls.Call:
        return read(
            "/NetworkDriver.ProgramExternalConnectivity",
            NetworkID=NETWORK,
            EndpointID=ENDPOINT,
            Options={"com.docker.network.portmap": [PORT] * count},
        )

    assert many(MAX_MAPPINGS) is not None
    with pytest.raises(InvalidError):
        many(MAX_MAPPINGS + 1)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/NetworkDriver.AllocateNetwork", {"NetworkID": NETWORK}),
        ("/NetworkDriver.Leave", {"NetworkID": NETWORK}),
        ("/NetworkDriver.Leave", {"NetworkID": NETWORK, "EndpointID": "../" + "f" * 61}),
        ("/NetworkDriver.Leave", {"NetworkID": NETWORK, "EndpointID": "f" * 63}),
        ("/NetworkDriver.Leave", {"NetworkID": NETWORK, "EndpointID": 7}),
        ("/NetworkDriver.Leave", []),
        ("/IpamDriver.ReleasePool", {"PoolID": "a b"}),
        ("/IpamDriver.RequestAddress", {"PoolID": "p", "Address": "10.1.0.300"}),
        ("/IpamDriver.RequestAddress", {"PoolID": "p", "Address": "010.1.0.3"}),
        ("/IpamDriver.RequestAddress", {"PoolID": "p", "Address": "fd00::1"}),
        ("/NetworkDriver.CreateEndpoint", {"NetworkID": NETWORK, "EndpointID": ENDPOINT, "Interface": 5}),
    ],
)
def test_what_is_no_call_of_ours_is_refused(path: str, body: Any) -> None:
    with pytest.raises(InvalidError):
        parse(path, json.dumps(body).encode(), FOLDERS)


IPAM = ("RequestPool", "ReleasePool", "RequestAddress", "ReleaseAddress")
NETWORKS = ("CreateNetwork", "DeleteNetwork", "CreateEndpoint", "DeleteEndpoint", "Join", "Leave")
PROGRAM = "/NetworkDriver.ProgramExternalConnectivity"
PATHS = st.sampled_from(
    [PROGRAM, *(f"/IpamDriver.{name}" for name in IPAM), *(f"/NetworkDriver.{name}" for name in NETWORKS)]
)
NAMES = st.sampled_from(
    [
        *("NetworkID", "EndpointID", "PoolID", "Pool", "SubPool", "Address", "Options", "V6", "Interface"),
        *("SandboxKey", "IPv4Data", "IPv6Data", "MacAddress", "Gateway", "AuxAddresses"),
        *("com.docker.network.portmap", "com.docker.network.generic", "com.docker.network.internal"),
        *("Proto", "Port", "HostIP", "HostPort", "HostPortEnd"),
    ]
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just(NETWORK), st.just("10.1.0.5/16")
)
BODIES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=20,
)


@given(PATHS, BODIES)
def test_whatever_is_in_a_call_it_is_read_or_refused(path: str, body: Any) -> None:
    with contextlib.suppress(InvalidError):
        parse(path, json.dumps(body).encode(), FOLDERS)


@given(PATHS, st.binary(max_size=300))
def test_bytes_that_are_no_json_are_refused(path: str, body: bytes) -> None:
    try:
        parse(path, body, FOLDERS)
    except InvalidError:
        return
    json.loads(body)
