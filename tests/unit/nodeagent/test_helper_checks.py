"""What the privileged child refuses, one value at a time, with the untouched operation as control."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from firewall_rules import names
from firewall_rules.policy import (
    ContainerPolicy,
    HostPolicy,
    Opening,
    Pair,
    PortBinding,
    Publication,
    PublishedPort,
    TunnelPolicy,
)
from netctl.errors import InvalidError
from netctl.model import Workload, mac_of
from nodeagent.helper_checks import OperationChecks
from nodeagent.helper_messages import Adopt, OpenCopy, OpenLogs
from nodeagent.kernel_state import (
    Bridge,
    ContainerEnd,
    ContainerPort,
    Route,
    Tunnel,
    WireguardLink,
    WireguardPeer,
)
from nodeagent.ops import (
    OPS,
    ClosePassage,
    CreateContainer,
    DeleteBridge,
    DeleteHostRules,
    DeletePort,
    DeleteRoute,
    DeleteTunnel,
    DeleteWireguard,
    ForgetSandbox,
    Op,
    OpenPassage,
    RemoveContainer,
    SetBridge,
    SetContainerRules,
    SetEnd,
    SetEndpoint,
    SetHostRules,
    SetPort,
    SetRoute,
    SetSysctl,
    SetTunnel,
    SetWireguard,
    StartContainer,
    StopContainer,
    UpdateContainerRules,
    UpdateHostRules,
    WatchSandbox,
)
from nodeagent.request_checks import check_adoption, check_copy, check_logs

ID = "0123456789abcdef0123456789abcdef"
MAC = mac_of("10.1.0.2")
END = ContainerEnd("10.1.0.2/16", "10.1.0.1", 1450, MAC)
TUNNEL = Tunnel("nctv0a020000", "vxlan", "192.0.2.1", "192.0.2.2", 1450, 7, 4789, MAC)
WIREGUARD = WireguardLink(
    "nctw1",
    1,
    51821,
    1440,
    frozenset({WireguardPeer("10.2.0.0/16", "ab" * 32, "192.0.2.2", 51820)}),
)
OPENING = Opening("10.2.0.2", "tcp", 5432, 2_000_000_000.0)
PAIR = Pair("10.1.0.2", "10.2.0.2", 2_000_000_000.0)
BINDING = PortBinding(names.port_device(ID), MAC, "10.1.0.2")
TUNNEL_POLICY = TunnelPolicy("nctv0a020000", "10.2.0.0/16", "vxlan", "192.0.2.2", 7)
CONTAINER_POLICY = ContainerPolicy(
    "10.1.0.2",
    "10.1.0.1",
    resolver="10.1.0.1",
    closed=frozenset({"192.0.2.0/24"}),
    inbound=frozenset({OPENING}),
    outbound=frozenset({OPENING}),
    published=frozenset({PublishedPort("tcp", 80)}),
)
PUBLICATION = Publication("tcp", "192.0.2.1", 8080, "10.1.0.2", 80)
HOST_POLICY = HostPolicy(
    names.BRIDGE,
    "10.1.0.1",
    "10.1.0.0/16",
    "10.0.0.0/8",
    resolver="10.1.0.1",
    closed=frozenset({"192.0.2.0/24"}),
    bindings=frozenset({BINDING}),
    pairs=frozenset({PAIR}),
    tunnels=frozenset({TUNNEL_POLICY}),
    publications=frozenset({PUBLICATION}),
    internal=frozenset({"10.1.0.2"}),
    wireguard_ports=frozenset({51820, 51821}),
)
DOCKER_WORKLOAD = Workload(
    "docker",
    (),
    image="registry.example:5000/web:1",
    volumes=("/srv/web:/data:ro", "web:/var/lib/web"),
    labels=(("A", "b"),),
    restart="on-failure:5",
    cap_add=("NET_BIND_SERVICE",),
)

GOOD: tuple[Op, ...] = (
    SetSysctl("net/ipv4/ip_forward", "1"),
    SetSysctl("net/ipv4/conf/nctv0a020000/rp_filter", "1"),
    SetSysctl("net/ipv6/conf/netctl0/disable_ipv6", "1"),
    SetSysctl("net/ipv4/conf/nctw1/rp_filter", "2"),
    SetBridge(Bridge("10.1.0.1/16", 1450, MAC)),
    DeleteBridge(),
    SetTunnel(TUNNEL),
    DeleteTunnel("nctv0a020000"),
    SetTunnel(attrs.evolve(TUNNEL, device="nctg0a020000", encapsulation="gre")),
    SetWireguard(WIREGUARD),
    DeleteWireguard("nctw1", 1),
    DeleteWireguard("nctw0", 0),
    SetRoute(Route("10.2.0.0/16", "nctw1", "10.1.0.1")),
    SetRoute(Route("10.2.0.0/16", "nctv0a020000", "10.1.0.1", "10.2.0.1", MAC, 1400)),
    SetRoute(Route("10.2.0.0/16", "eth0", "10.1.0.1", "192.0.2.2")),
    DeleteRoute("10.2.0.0/16"),
    SetHostRules(HOST_POLICY),
    UpdateHostRules((BINDING,), (BINDING,), (PAIR,), (PAIR,), (TUNNEL_POLICY,), (TUNNEL_POLICY,)),
    UpdateHostRules(
        publications=(PUBLICATION,),
        publications_removed=(PUBLICATION,),
        internal=("10.1.0.2",),
        internal_removed=("10.1.0.2",),
    ),
    DeleteHostRules(),
    OpenPassage("nft"),
    ClosePassage("legacy"),
    WatchSandbox(ID, "0123456789ab"),
    ForgetSandbox(ID),
    SetEndpoint(ID, ContainerPort(names.port_device(ID), 1450), MAC),
    CreateContainer(ID, "web", "10.1.0.2", Workload("process", ("sleep", "1"), (("A", "b"),))),
    CreateContainer(ID, "web", "10.1.0.2", DOCKER_WORKLOAD, "10.1.0.0/16"),
    SetContainerRules(ID, CONTAINER_POLICY),
    UpdateContainerRules(ID, (OPENING,), (OPENING,), (OPENING,), (OPENING,)),
    SetPort(ID, ContainerPort(names.port_device(ID), 1450), END),
    SetEnd(ID, END),
    DeletePort(names.port_device(ID)),
    StartContainer(ID, 1),
    StopContainer(ID),
    RemoveContainer(ID),
)

BAD_TEXT: dict[str, tuple[str, ...]] = {
    "path": ("kernel/core_pattern", "net/ipv4/conf/eth0/rp_filter", "net/ipv4/ip_forward/../../x"),
    "value": ("3", "", "1 "),
    "mac": ("6e:63", MAC.upper(), MAC + "\n"),
    "via_mac": ("6e:63",),
    "device": ("eth0.5", "lo", "netctl0", "nct/../x", "ncp0123456789ab ", "nctv0a020000\n"),
    "encapsulation": ("none", "ipip"),
    "key": ("ab" * 31, "AB" * 32, "ab" * 32 + "\n"),
    "local": ("::1", "192.0.2.01", "192.0.2.1\n"),
    "remote": ("example.org",),
    "outer": ("192.0.2.256",),
    "source": ("10.1.0.1/16", ""),
    "via": ("10.2.0",),
    "block": (
        "0.0.0.0/0",
        "10.2.0.1/16",
        "10.0.0.0/7",
        "fe80::/64",
        "127.0.0.0/16",
        "169.254.0.0/16",
        "224.0.0.0/8",
    ),
    "supernet": ("10.0.0.0",),
    "container": ("web", ID.upper(), ID + "0", "../" + ID[3:]),
    "name": ("Web", "-web", "a" * 64, "web\n", "a/b"),
    "gateway": ("", "10.1.0.1/16"),
    "resolver": ("dns",),
    "bridge": ("docker0",),
    "peer": ("10.2.0.0/16",),
    "one": ("10.1.0.2.3",),
    "other": ("x",),
    "workdir": ("/\0",),
    "user": ("a\0",),
    "unsafe": ("a\0",),
    "restart": ("", "sometimes", "on-failure:", "no\n"),
    "image": ("", "-web", "web latest", "web\n", "web$(x)"),
    "endpoint": ("web", ID.upper(), ID[1:]),
    "sandbox": ("", "default", "../123456", "0123456789ab\n", "a" * 65),
    "variant": ("nft\n", "other"),
    "host_address": ("192.0.2.1/24", "*"),
    "protocol": ("sctp", "tcp\n"),
}
BAD_ITEMS: dict[str, tuple[object, ...]] = {
    "argv": ("a\0b",),
    "cap_add": ("a\0b",),
    "env": (("A", "b\0"),),
    "labels": (("A", "b\0"),),
    "volumes": ("/a", "/a:b", "/a:/b:z", "../a:/b", "/a\0:/b", ":/b"),
    "closed": ("192.0.2.0", "drop;"),
    "internal": ("10.1.0.0/24",),
    "internal_removed": ("10.1.0.0/24",),
}
BAD_NUMBERS = (-1, 2**70)


def _worse(value: Any, field: str = "") -> list[Any]:  # noqa: PLR0911 - one for each kind of value
    """Return `value` made bad in one place, in every way there is."""
    if attrs.has(type(value)):
        return [
            attrs.evolve(value, **{one.name: bad})
            for one in attrs.fields(type(value))
            for bad in _worse(
                getattr(value, one.name),
                "interface" if one.name == "address" and "/" in str(value.address) else one.name,
            )
        ]
    if isinstance(value, tuple | frozenset):
        if field in BAD_ITEMS:
            return [type(value)((item,)) for item in BAD_ITEMS[field]]
        return [type(value)((bad,)) for good in value for bad in _worse(good)]
    if field in ("address", "interface"):
        # An interface so wide would take the default route, or loopback, from the host.
        wide = ["10.1.0.1/0", "10.1.0.1/7", "127.0.0.2/8", "169.254.169.254/32", "224.0.0.1/24"]
        return [
            *(wide if field == "interface" else []),
            "10.1.0.2/33",
            "10.1.0.2/",
            "10.1.0",
            "10.1.0.2\n",
            "10.1.0.2/16" if field == "address" else "10.1.0.2",
        ]
    if isinstance(value, str):
        return list(BAD_TEXT.get(field, ()))
    if isinstance(value, float):
        return [float("nan"), float("inf"), -1.0]
    if isinstance(value, int) and not isinstance(value, bool):
        return list(BAD_NUMBERS)
    return []


@pytest.fixture
def checks() -> OperationChecks:
    return OperationChecks(lambda: "eth0")


@pytest.mark.parametrize("operation", GOOD, ids=repr)
def test_good_operations_pass(checks: OperationChecks, operation: Op) -> None:
    checks.check(operation)


def test_every_kind_is_among_the_good() -> None:
    assert {type(operation) for operation in GOOD} == set(OPS.values())


@pytest.mark.parametrize("operation", GOOD, ids=repr)
def test_each_value_made_bad_is_refused(checks: OperationChecks, operation: Op) -> None:
    worse = _worse(operation)
    assert worse or not attrs.fields(type(operation))
    for bad in worse:
        if isinstance(bad, SetRoute) and bad.route.via == "":
            continue
        if bad == operation:
            continue  # no image, which is bad with Docker only
        assert _is_refused(checks, bad), f"passed: {bad}"


def _is_refused(checks: OperationChecks, operation: Op) -> bool:
    try:
        checks.check(operation)
    except InvalidError:
        return True
    return False


def test_port_belongs_to_its_container(checks: OperationChecks) -> None:
    with pytest.raises(InvalidError, match="port of this container"):
        checks.check(SetPort(ID, ContainerPort("ncpffffffffffff", 1450), END))


def test_underlay_is_no_device_of_ours_until_it_is_known() -> None:
    route = SetRoute(Route("10.2.0.0/16", "eth0", "10.1.0.1", "192.0.2.2"))
    with pytest.raises(InvalidError):
        OperationChecks(lambda: "").check(route)
    with pytest.raises(InvalidError):
        OperationChecks(lambda: "").check(attrs.evolve(route, route=attrs.evolve(route.route, device="")))
    with pytest.raises(InvalidError):
        OperationChecks(lambda: "eth1").check(route)


def test_links_of_older_versions_may_be_deleted(checks: OperationChecks) -> None:
    checks.check(DeletePort("ncpold"))
    checks.check(DeleteTunnel("nct-x"))
    for other in ("eth0", "docker0", "netctl0", "ncp" + "x" * 13):
        with pytest.raises(InvalidError):
            checks.check(DeletePort(other))


def test_a_wireguard_link_has_the_name_and_port_of_its_generation(checks: OperationChecks) -> None:
    checks.check(SetWireguard(attrs.evolve(WIREGUARD, generation=3)))
    for changes in (
        {"generation": 2},
        {"generation": 0},
        {"device": "nctw2"},
        {"device": "nctw0"},
        {"port": 51820},
        {"port": 22},
        {"mtu": 20},
    ):
        with pytest.raises(InvalidError):
            checks.check(SetWireguard(attrs.evolve(WIREGUARD, **changes)))
    with pytest.raises(InvalidError):
        checks.check(DeleteWireguard("nctw1", 2))
    with pytest.raises(InvalidError):
        checks.check(DeleteWireguard("nctv0a020000", 0))


def test_a_tunnel_has_the_name_of_its_encapsulation(checks: OperationChecks) -> None:
    with pytest.raises(InvalidError, match="device of vxlan"):
        checks.check(SetTunnel(attrs.evolve(TUNNEL, device="nctg0a020000")))


def test_port_belongs_to_its_endpoint(checks: OperationChecks) -> None:
    with pytest.raises(InvalidError, match="port of this endpoint"):
        checks.check(SetEndpoint(ID, ContainerPort("ncpffffffffffff", 1450), MAC))


def test_requests_about_one_container() -> None:
    check_logs(OpenLogs(ID, 10))
    check_copy(OpenCopy(ID, "/etc/hosts", "out"))
    check_adoption(Adopt("web_1.x", "10.1.0.0/16"))
    for check, bad in (
        (check_logs, OpenLogs(ID, -1)),
        (check_copy, OpenCopy(ID, "etc", "out")),
        (check_copy, OpenCopy(ID, "/a\0", "in")),
        (check_adoption, Adopt("", "10.1.0.0/16")),
        (check_adoption, Adopt("../web", "10.1.0.0/16")),
        (check_adoption, Adopt("web?force=1", "10.1.0.0/16")),
        (check_adoption, Adopt("web", "10.1.0.0")),
    ):
        with pytest.raises(InvalidError):
            check(bad)  # type: ignore[operator]
