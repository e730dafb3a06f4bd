"""What only the real kernel can show: mending, foreign things, bounds, notices, and packets that pass."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator

import attrs
import pytest

from firewall_rules import names
from netctl.errors import KernelError
from netctl.model import mac_of
from nodeagent.kernel import netlink, questions
from nodeagent.kernel.channel import Channel, inside
from nodeagent.kernel.observe import read_end
from nodeagent.kernel.watch import LinkWatch
from nodeagent.kernel_state import Bridge, ContainerEnd, ContainerPort, Route, Tunnel
from nodeagent.ops import (
    DeleteBridge,
    DeletePort,
    DeleteTunnel,
    SetBridge,
    SetEnd,
    SetPort,
    SetRoute,
    SetSysctl,
    SetTunnel,
)
from tests.support.kernels import KernelIn, OverlayNode
from tests.support.netns import (
    BLOCKED_AFTER,
    Namespace,
    address,
    ethernet,
    ping_passes,
    readable,
    send_frames,
    udp_passes,
    veth,
    wait_for,
)

pytestmark = pytest.mark.root

ID = "0123456789ab" + "0" * 20
BRIDGE = Bridge("10.1.0.1/16", 1450, mac_of("10.1.0.1"))
PORT = ContainerPort(names.port_device(ID), 1450)
END = ContainerEnd("10.1.0.2/16", "10.1.0.1", 1450, mac_of("10.1.0.2"))
TUNNEL = Tunnel("nctv0a020000", "vxlan", "192.0.2.1", "192.0.2.2", 1450, 7, 4789, mac_of("10.1.0.1"))
ROUTE = Route("10.2.0.0/16", "nctv0a020000", "10.1.0.1", "10.2.0.1", mac_of("10.2.0.1"))

# linux/in.h
_IP_MTU_DISCOVER = 10
_IP_MTU = 14
_IP_PMTUDISC_DO = 2

Make = Callable[[], Namespace]


@pytest.fixture
def node(namespaces: Make) -> Namespace:
    return namespaces()


@pytest.fixture
def kernel(node: Namespace) -> Iterator[KernelIn]:
    with contextlib.closing(KernelIn(node)) as kernel:
        yield kernel


def attach(kernel: KernelIn, container: Namespace) -> dict[str, int]:
    ids = {ID: container.fd}
    kernel.done(SetBridge(BRIDGE), SetPort(ID, PORT, END), SetEnd(ID, END), namespaces=ids)
    return ids


# --- mending ----------------------------------------------------------------------------------------


def test_port_that_someone_changed_is_mended(kernel: KernelIn, node: Namespace, namespaces: Make) -> None:
    ids = attach(kernel, namespaces())
    node.ip("link", "set", PORT.device, "nomaster", "down", "mtu", "1300")
    assert kernel.observe(ids).ports[PORT.device] == ContainerPort(
        PORT.device, 1300, up=False, on_bridge=False, guarded=False
    )
    kernel.done(SetPort(ID, PORT, END), namespaces=ids)
    assert kernel.observe(ids).ports[PORT.device] == PORT


@pytest.mark.parametrize("setting", ["learning on", "flood on", "mcast_flood on", "group_fwd_mask 0"])
def test_a_port_that_lost_a_guard_is_mended(
    kernel: KernelIn, node: Namespace, namespaces: Make, setting: str
) -> None:
    ids = attach(kernel, namespaces())
    node.ip("link", "set", PORT.device, "type", "bridge_slave", *setting.split())
    assert kernel.observe(ids).ports[PORT.device] == attrs.evolve(PORT, guarded=False)
    kernel.done(SetPort(ID, PORT, END), namespaces=ids)
    assert kernel.observe(ids).ports[PORT.device] == PORT


def test_a_port_says_nothing_of_its_own_to_its_container(
    kernel: KernelIn, node: Namespace, namespaces: Make
) -> None:
    container = namespaces()
    ids = attach(kernel, container)
    wait_for(lambda: "state UP" in node.ip("link", "show", PORT.device), what="the carrier")
    assert "inet6" not in node.ip("addr", "show", "dev", PORT.device)
    # The control: what the kernel gives to any other link that is up.
    veth(node, "other0", container, "other0")
    node.ip("link", "set", "other0", "up")
    container.ip("link", "set", "other0", "up")
    wait_for(lambda: "inet6" in node.ip("addr", "show", "dev", "other0"), what="an address")
    assert kernel.observe(ids).ports == {PORT.device: PORT}


def test_a_port_too_small_for_ipv6_is_made_all_the_same(kernel: KernelIn, namespaces: Make) -> None:
    small = attrs.evolve(PORT, mtu=1200)
    ids = {ID: namespaces().fd}
    kernel.done(SetBridge(attrs.evolve(BRIDGE, mtu=1200)))
    kernel.done(SetPort(ID, small, attrs.evolve(END, mtu=1200)), namespaces=ids)
    assert kernel.observe(ids).ports == {PORT.device: small}


def test_the_bridge_learns_no_address_from_a_container(
    kernel: KernelIn, node: Namespace, namespaces: Make
) -> None:
    container = namespaces()
    attach(kernel, container)
    # Not even by frames to the bridge group addresses, which the kernel lets past a bridge's rules.
    frames = [
        ethernet(f"01:80:c2:00:00:{group:02x}", "02:00:00:00:00:09", 0x0800, b"x" * 50) for group in range(16)
    ]
    send_frames(container, "eth0", frames)
    known = node.run("bridge", "fdb", "show", "br", names.BRIDGE)
    assert f"{END.mac} dev {PORT.device} master {names.BRIDGE} static" in known
    assert "02:00:00:00:00:09" not in known
    # The control: those frames are learnt from as soon as the port is as the kernel makes it.
    node.ip("link", "set", PORT.device, "type", "bridge_slave", "learning", "on", "group_fwd_mask", "0")
    send_frames(container, "eth0", frames)
    assert "02:00:00:00:00:09" in node.run("bridge", "fdb", "show", "br", names.BRIDGE)


def test_a_bridge_too_small_for_ipv6_counts_as_one_without_it(kernel: KernelIn) -> None:
    path = f"net/ipv6/conf/{names.BRIDGE}/disable_ipv6"
    kernel.done(SetBridge(BRIDGE))
    assert kernel.observe({}).sysctls[path] == "0"
    kernel.done(SetBridge(attrs.evolve(BRIDGE, mtu=1230)))
    assert kernel.observe({}).sysctls[path] == "1"
    kernel.done(SetSysctl(path, "1"))
    # The control: with room for IPv6 it is back, open, and closed by the setting.
    kernel.done(SetBridge(BRIDGE))
    assert kernel.observe({}).sysctls[path] == "0"
    kernel.done(SetSysctl(path, "1"))
    assert kernel.observe({}).sysctls[path] == "1"


def test_end_that_someone_changed_is_mended(kernel: KernelIn, namespaces: Make) -> None:
    container = namespaces()
    ids = attach(kernel, container)
    container.ip("addr", "add", "10.66.0.1/16", "dev", "eth0")
    container.ip("route", "add", "default", "via", "10.1.0.77", "metric", "5")
    container.ip("link", "set", "lo", "down")
    container.ip("link", "set", "eth0", "address", "02:00:00:00:00:09", "mtu", "1300")
    changed = kernel.observe(ids).ends[ID]
    assert changed.address == "10.1.0.2/16,10.66.0.1/16"
    assert changed.gateway == "10.1.0.1,10.1.0.77"
    assert not changed.loopback
    container.ip("route", "del", "default", "metric", "5")
    kernel.done(SetEnd(ID, END), namespaces=ids)
    assert kernel.observe(ids).ends[ID] == END


def test_pair_whose_far_end_was_renamed_is_made_anew(kernel: KernelIn, namespaces: Make) -> None:
    container = namespaces()
    ids = attach(kernel, container)
    container.ip("link", "set", "eth0", "down")
    container.ip("link", "set", "eth0", "name", "mine")
    assert kernel.observe(ids).ends == {}
    kernel.done(SetPort(ID, PORT, END), SetEnd(ID, END), namespaces=ids)
    links = kernel.observe(ids)
    assert (links.ports, links.ends) == ({PORT.device: PORT}, {ID: END})
    assert "mine" not in container.ip("link")


def test_foreign_address_is_taken_from_the_bridge(kernel: KernelIn, node: Namespace) -> None:
    kernel.done(SetBridge(BRIDGE))
    node.ip("addr", "add", "10.66.0.1/16", "dev", names.BRIDGE)
    node.ip("link", "set", names.BRIDGE, "down")
    assert kernel.observe({}).bridge != BRIDGE
    kernel.done(SetBridge(BRIDGE))
    assert kernel.observe({}).bridge == BRIDGE


def test_tunnel_device_of_another_kind_is_replaced(kernel: KernelIn, node: Namespace) -> None:
    node.ip("link", "add", TUNNEL.device, "type", "bridge")
    assert kernel.observe({}).tunnels[TUNNEL.device].encapsulation == "none"
    kernel.done(SetTunnel(TUNNEL))
    assert kernel.observe({}).tunnels == {TUNNEL.device: TUNNEL}


def test_tunnel_that_someone_took_down_is_mended(kernel: KernelIn, node: Namespace) -> None:
    kernel.done(SetTunnel(TUNNEL))
    node.ip("link", "set", TUNNEL.device, "down", "mtu", "1300")
    assert kernel.observe({}).tunnels[TUNNEL.device] == attrs.evolve(TUNNEL, mtu=1300, up=False)
    kernel.done(SetTunnel(TUNNEL))
    assert kernel.observe({}).tunnels[TUNNEL.device] == TUNNEL


@pytest.mark.parametrize("mtu", [1230, 1450, 1500, 8950])
def test_bridge_keeps_its_mtu_whatever_its_ports_do(kernel: KernelIn, namespaces: Make, mtu: int) -> None:
    bridge = attrs.evolve(BRIDGE, mtu=mtu)
    ids = {ID: namespaces().fd}
    kernel.done(SetBridge(bridge))
    kernel.done(
        SetPort(ID, attrs.evolve(PORT, mtu=mtu), attrs.evolve(END, mtu=mtu)),
        namespaces=ids,
    )
    assert kernel.observe(ids).bridge == bridge
    kernel.done(DeletePort(PORT.device))
    assert kernel.observe(ids).bridge == bridge


# --- what is not ours -------------------------------------------------------------------------------


def test_route_of_someone_else_is_left_alone(kernel: KernelIn, node: Namespace) -> None:
    kernel.done(SetBridge(BRIDGE), SetTunnel(TUNNEL))
    node.ip("route", "add", ROUTE.block, "dev", "lo")
    before = node.ip("route", "show", ROUTE.block)
    (error,) = kernel.apply([SetRoute(ROUTE)], {})
    assert "another route to 10.2.0.0/16" in error
    assert node.ip("route", "show", ROUTE.block) == before
    node.ip("route", "del", ROUTE.block, "dev", "lo")
    kernel.done(SetRoute(ROUTE))


def test_link_of_our_bridges_name_that_is_no_bridge_is_left_alone(kernel: KernelIn, node: Namespace) -> None:
    node.ip("link", "add", names.BRIDGE, "type", "veth", "peer", "name", "other")
    (error,) = kernel.apply([SetBridge(BRIDGE)], {})
    assert "no bridge" in error
    assert kernel.observe({}).bridge is None


def test_container_link_of_someone_else_is_left_alone(kernel: KernelIn, namespaces: Make) -> None:
    container = namespaces()
    container.ip("link", "add", "eth0", "type", "bridge")
    kernel.done(SetBridge(BRIDGE))
    (error,) = kernel.apply([SetPort(ID, PORT, END)], {ID: container.fd})
    assert PORT.device in error
    links = kernel.observe({ID: container.fd})
    assert (links.ports, links.ends) == ({}, {})


def test_everything_goes_without_a_trace(kernel: KernelIn, node: Namespace, namespaces: Make) -> None:
    def listed() -> str:
        # Indexes count on for ever; a link-local address of IPv6 comes a moment late.
        return node.ip("-4", "addr") + node.ip("route", "show", "table", "all") + node.ip("-br", "link")

    before = listed()
    attach(kernel, namespaces())
    kernel.done(SetTunnel(TUNNEL), SetRoute(ROUTE))
    kernel.facts("127.0.0.1")
    assert listed() != before
    kernel.done(DeletePort(PORT.device), DeleteTunnel(TUNNEL.device), DeleteBridge())
    assert listed() == before


# --- bounds -----------------------------------------------------------------------------------------


def test_full_bridge_says_so(kernel: KernelIn, node: Namespace, namespaces: Make) -> None:
    kernel.done(SetBridge(BRIDGE))
    with node.entered(), Channel() as channel:
        # Both ends of a pair are ports, and stay down: up they would be loops.
        ends = [f"{side}{n}" for n in range(512) for side in "ab"][:1023]
        pairs = [f"link add a{n} type veth peer name b{n}\n" for n in range(512)]
        ports = [f"link set {end} master {names.BRIDGE}\n" for end in ends]
        node.run("ip", "-batch", "-", text="".join(pairs + ports))
        ids = {ID: namespaces().fd}
        (error,) = kernel.apply([SetPort(ID, PORT, END)], ids)
        assert "bridge is full" in error
        assert kernel.observe(ids).ports == {}
        channel.send([netlink.delete_link(ends[0])])
        kernel.done(SetPort(ID, PORT, END), namespaces=ids)
        # Together, which is quicker than leaving them to the namespace's end.
        channel.send([*(netlink.doom_link(end) for end in ends), netlink.delete_doomed()])


def test_long_batches_say_which_messages_were_refused(node: Namespace) -> None:
    with node.entered(), Channel() as channel:
        wanted = [netlink.loopback_up() for _ in range(200)]
        for place in (0, 63, 64, 130, 199):
            wanted[place] = netlink.delete_link(f"absent{place}")
        refusals = channel.send(wanted)
        assert [place for place, refusal in enumerate(refusals) if refusal] == [0, 63, 64, 130, 199]
        assert channel.send([]) == []


def test_large_listings_come_whole(node: Namespace) -> None:
    node.run(
        "ip", "-batch", "-", text="".join(f"link add v{n} type veth peer name w{n}\n" for n in range(100))
    )
    node.run("ip", "-batch", "-", text="".join(f"route add 10.3.{n}.0/24 dev lo\n" for n in range(250)))
    with node.entered(), Channel() as channel:
        assert len(channel.dump(questions.dump_links())) == 201
        assert len(channel.dump(questions.dump_routes())) == 250
        assert channel.dump(questions.dump_routes(protocol=names.ROUTE_PROTOCOL)) == []


def test_thread_is_back_home_whatever_happens_inside(node: Namespace, namespaces: Make) -> None:
    other = namespaces()
    other.ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
    with node.entered(), Channel() as here:
        with pytest.raises(ZeroDivisionError), inside(other.fd):
            raise ZeroDivisionError
        with Channel() as still_here, Channel(other.fd) as there:
            assert [bool(channel.index("v0")) for channel in (here, still_here, there)] == [
                False,
                False,
                True,
            ]
        with open("/dev/null", "rb") as no_namespace, pytest.raises(KernelError, match="namespace"):  # noqa: PTH123 - a descriptor is wanted
            Channel(no_namespace.fileno())


def test_end_is_found_by_kind_and_name(namespaces: Make) -> None:
    container = namespaces()
    container.ip("link", "add", "eth0", "type", "bridge")
    with Channel(container.fd) as channel:
        assert read_end(channel) is None


# --- facts ------------------------------------------------------------------------------------------


def test_facts_say_what_the_host_is(kernel: KernelIn, node: Namespace, namespaces: Make) -> None:
    far = namespaces()
    veth(node, "up0", far, "up0", mtu=1400)
    address(node, "up0", "192.0.2.7/24", "192.0.2.8/24")
    address(far, "up0", "192.0.2.1/24")
    with pytest.raises(KernelError, match="default route"):
        kernel.facts(None)
    node.ip("route", "add", "default", "via", "192.0.2.1", "src", "192.0.2.8")
    node.ip("route", "add", "10.77.0.0/16", "via", "192.0.2.1")
    node.ip("route", "add", "unreachable", "10.88.0.0/16", "table", "500")
    kernel.done(SetBridge(BRIDGE), SetTunnel(TUNNEL), SetRoute(ROUTE))
    facts = kernel.facts(None)
    assert (facts.underlay, facts.underlay_device, facts.underlay_mtu) == ("192.0.2.8", "up0", 1400)
    assert facts.underlay_mac in node.ip("link", "show", "up0")
    assert facts.networks == ("10.77.0.0/16", "10.88.0.0/16", "192.0.2.0/24")
    assert facts.encapsulations[-2:] == ("vxlan", "direct")
    assert kernel.facts("192.0.2.7").underlay == "192.0.2.7"
    with pytest.raises(KernelError, match=r"192\.0\.2\.9 is no address"):
        kernel.facts("192.0.2.9")
    with pytest.raises(KernelError, match=r"up9 is no address and no link"):
        kernel.facts("up9")


def test_a_link_as_underlay_stands_for_its_first_global_address(node: Namespace, kernel: KernelIn) -> None:
    node.ip("link", "add", "up0", "type", "bridge")
    node.ip("link", "set", "up0", "up")
    with pytest.raises(KernelError, match="up0 has no IPv4 address"):
        kernel.facts("up0")
    node.ip("addr", "add", "169.254.7.7/16", "dev", "up0", "scope", "link")
    with pytest.raises(KernelError, match="up0 has no IPv4 address"):
        kernel.facts("up0")
    node.ip("addr", "add", "192.0.2.7/24", "dev", "up0")
    node.ip("addr", "add", "198.51.100.7/24", "dev", "up0")
    facts = kernel.facts("up0")
    assert (facts.underlay, facts.underlay_device) == ("192.0.2.7", "up0")
    node.ip("addr", "del", "192.0.2.7/24", "dev", "up0")
    assert kernel.facts("up0").underlay == "198.51.100.7"


# --- notices ----------------------------------------------------------------------------------------


@pytest.fixture
def watch(kernel: KernelIn, node: Namespace) -> Iterator[LinkWatch]:
    kernel.done(SetBridge(BRIDGE), SetTunnel(TUNNEL), SetRoute(ROUTE))
    with node.entered():
        watch = LinkWatch()
    with contextlib.closing(watch):
        yield watch


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (f"link set {TUNNEL.device} down", "nctv0a020000 changed"),
        (f"link set {names.BRIDGE} mtu 1400", "netctl0 changed"),
        (f"link del {names.BRIDGE}", "netctl0"),
        (f"addr del 10.1.0.1/16 dev {names.BRIDGE}", "the addresses of netctl0 changed"),
        (f"route del {ROUTE.block}", "the route to 10.2.0.0/16 changed"),
        ("link add netctl0x type bridge", ""),
        ("link set lo down", ""),
    ],
)
def test_notices_of_what_others_do(watch: LinkWatch, node: Namespace, command: str, said: str) -> None:
    assert watch.foreign_change() == ""
    node.ip(*command.split())
    change = watch.foreign_change()
    assert said in change
    assert bool(change) == bool(said)


UP0 = "link add up0 type bridge; addr add 192.0.2.9/24 dev up0"


@pytest.mark.parametrize(
    ("before", "command", "said"),
    [
        ("", "addr add 192.0.2.9/24 dev lo", "facts"),
        ("addr add 192.0.2.9/24 dev lo", "addr del 192.0.2.9/24 dev lo", "facts"),
        (UP0, "link set up0 mtu 1400", "facts"),
        (UP0, "link set up0 address 02:00:00:00:00:07", "facts"),
        (UP0, "link set up0 up", "facts"),
        (UP0, "link set up0 name up1", "facts"),
        (UP0, "link del up0", "facts"),
        ("", "route add blackhole 198.51.100.0/24", "facts"),
        ("route add blackhole 198.51.100.0/24", "route del blackhole 198.51.100.0/24", "facts"),
        ("", "link add up0 type bridge", ""),
        ("link add up0 type bridge", "link del up0", ""),
        ("link add up0 type bridge", "link set up0 mtu 1400", ""),
        ("link add up0 type bridge", "link set up0 up", ""),
        (UP0, "link set up0 txqueuelen 7", ""),
        (UP0, "addr replace 192.0.2.9/24 dev up0 valid_lft 600 preferred_lft 600", ""),
        ("link set lo up", "route add local 198.51.100.7 dev lo", ""),
        ("", "route add blackhole 198.51.100.0/24 proto 110", ""),
        ("", f"link set {names.BRIDGE} mtu 1400", ""),
        ("", f"addr add 10.1.0.9/16 dev {names.BRIDGE}", ""),
        ("", f"route add 198.51.100.0/24 dev {names.BRIDGE}", ""),
        ("", f"link del {names.BRIDGE}", ""),
    ],
)
def test_notices_by_which_the_facts_may_be_others(
    watch: LinkWatch, node: Namespace, before: str, command: str, said: str
) -> None:
    for one in filter(None, before.split("; ")):
        node.ip(*one.split())
    watch.settle()
    watch.facts_changed()
    node.ip(*command.split())
    watch.foreign_change()
    assert watch.facts_changed() == bool(said)
    assert not watch.facts_changed()  # it is told once


def test_facts_that_changed_during_changes_of_our_own_are_not_lost(
    watch: LinkWatch, node: Namespace, kernel: KernelIn
) -> None:
    kernel.done(SetBridge(BRIDGE))
    node.ip("addr", "add", "192.0.2.9/24", "dev", "lo")
    watch.settle()
    assert watch.foreign_change() == ""
    assert watch.facts_changed()


def test_a_link_that_takes_or_gives_up_a_name_of_ours_is_noticed(watch: LinkWatch, node: Namespace) -> None:
    node.ip("link", "set", names.BRIDGE, "down")
    watch.settle()
    node.ip("link", "set", names.BRIDGE, "name", "br9")
    assert watch.foreign_change() == "br9 changed"
    node.ip("link", "set", "br9", "name", names.BRIDGE)
    assert watch.foreign_change() == f"{names.BRIDGE} changed"


def test_own_changes_are_no_notice(watch: LinkWatch, kernel: KernelIn, namespaces: Make) -> None:
    container = namespaces()
    ids = attach(kernel, container)
    watch.settle()
    # What the kernel tells a moment later, of carriers, is no change either.
    wait_for(lambda: "state UP" in container.ip("link", "show", "eth0"), what="the carrier")
    assert watch.foreign_change() == ""
    kernel.done(DeletePort(PORT.device), namespaces=ids)
    assert PORT.device in watch.foreign_change()  # the control: it would have been told


# --- packets ----------------------------------------------------------------------------------------


def test_containers_of_one_node_and_of_two_reach_each_other(namespaces: Make) -> None:
    one, two = namespaces(), namespaces()
    veth(one, "up0", two, "up0")
    address(one, "up0", "192.0.2.1/24")
    address(two, "up0", "192.0.2.2/24")
    with contextlib.ExitStack() as stack:
        nodes = [
            OverlayNode(number, namespace, f"192.0.2.{number}", 1450)
            for number, namespace in ((1, one), (2, two))
        ]
        for node in nodes:
            stack.callback(node.close)
        web, api, database = namespaces(), namespaces(), namespaces()
        nodes[0].attach(web, 2)
        api_address = nodes[0].attach(api, 3)
        database_address = nodes[1].attach(database, 2)
        assert ping_passes(web, api_address, seconds=5)
        assert not ping_passes(web, database_address)  # the control: no tunnel yet
        nodes[0].tunnel_to(nodes[1], "vxlan")
        nodes[1].tunnel_to(nodes[0], "vxlan")
        assert ping_passes(web, database_address, seconds=5)
        assert udp_passes(web, database, database_address, 9000, size=1422, seconds=5)
        assert udp_passes(web, database, database_address, 9000, size=4000, seconds=5)


def test_what_is_too_large_for_a_pairs_path_is_answered_by_the_node_itself(namespaces: Make) -> None:
    one, two = namespaces(), namespaces()
    veth(one, "up0", two, "up0")
    address(one, "up0", "192.0.2.1/24")
    address(two, "up0", "192.0.2.2/24")
    with contextlib.ExitStack() as stack:
        near = OverlayNode(1, one, "192.0.2.1", 1450)
        far = OverlayNode(2, two, "192.0.2.2", 1450)
        for node in (near, far):
            stack.callback(node.close)
        web, database = namespaces(), namespaces()
        near.attach(web, 2)
        target = far.attach(database, 2)
        near.tunnel_to(far, "vxlan")
        far.tunnel_to(near, "vxlan")
        client = stack.enter_context(web.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server = stack.enter_context(database.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind((target, 9000))
        client.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
        client.connect((target, 9000))
        client.send(bytes(1422))
        assert readable(server, 5)  # the control: the device takes it
        server.recv(2048)
        (route,) = near.kernel.observe({}).routes.values()
        near.kernel.done(SetRoute(attrs.evolve(route, mtu=1300)))
        client.send(bytes(1422))
        wait_for(lambda: client.getsockopt(socket.IPPROTO_IP, _IP_MTU) == 1300, what="the path's MTU")
        # Read, or it would be the error of the next send.
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
        assert not readable(server, BLOCKED_AFTER)
        client.send(bytes(1272))
        assert readable(server, 5)
