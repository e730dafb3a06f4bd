"""A lab as data: what is planned, and which changes a lab that is up can take."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from netctl.errors import InvalidError, RefusedError
from netctl.lab import topology
from netctl.lab.topology import LabSpec, Wish

HERE = "/run/netctl/lab"


def test_names_come_from_the_directory_and_two_labs_share_none() -> None:
    one, other = topology.plan(LabSpec("/srv/one")), topology.plan(LabSpec("/srv/other"))
    assert topology.plan(LabSpec("/srv/one")).namespaces == one.namespaces
    assert not set(one.namespaces) & set(other.namespaces)
    assert all(name.startswith(topology.namespace_prefix("/srv/one")) for name in one.namespaces)


def test_every_host_has_its_own_address_outside_the_supernet() -> None:
    planned = topology.plan(LabSpec(HERE, nodes=topology.MAX_NODES, outside=True))
    addresses = [host.address for host in planned.hosts.values()]
    assert len(set(addresses)) == topology.MAX_NODES + 2
    assert not any(ip_address(address) in ip_network("10.0.0.0/8") for address in addresses)
    assert all(ip_address(address) in ip_network("172.31.0.0/16") for address in addresses)


def test_names_of_links_fit_the_kernel() -> None:
    planned = topology.plan(LabSpec(HERE, nodes=topology.MAX_NODES, outside=True))
    assert max(len(name) for name in planned.hosts) <= 15
    assert len(topology.UNDERLAY_BRIDGE) <= 15


def test_nothing_that_is_there_is_made_again() -> None:
    planned = topology.plan(LabSpec(HERE))
    links = (topology.UNDERLAY_BRIDGE, *planned.hosts)
    assert len(topology.namespace_lines(planned, ())) == 5
    assert topology.namespace_lines(planned, planned.namespaces) == ()
    assert topology.underlay_lines(planned, links) == ()
    grown = topology.plan(LabSpec(HERE, nodes=4))
    assert topology.namespace_lines(grown, planned.namespaces) == (
        f"netns add {grown.hosts['n4'].namespace}",
    )
    assert [line.split()[2] for line in topology.underlay_lines(grown, links)] == ["n4", "n4"]


def test_links_are_made_with_their_far_end_in_place() -> None:
    planned = topology.plan(LabSpec(HERE, nodes=1, mtu=9000))
    lines = topology.underlay_lines(planned, ())
    peer = f"peer name eth0 mtu 9000 netns {planned.hosts['n1'].namespace}"
    assert f"link add n1 mtu 9000 master underlay type veth {peer}" in lines
    # Nothing ever changes on the host itself: each line is done inside a namespace of the lab.
    assert not any("netns add" in line for line in lines)


def test_a_default_route_only_where_there_is_an_outside() -> None:
    without, with_one = topology.plan(LabSpec(HERE)), topology.plan(LabSpec(HERE, outside=True))
    assert not any("default" in line for line in topology.host_lines(without, "n1"))
    assert any("default via 172.31.0.1" in line for line in topology.host_lines(with_one, "n1"))
    assert not any("default" in line for line in topology.host_lines(with_one, "outside"))


def test_programs_get_the_options_and_hide_the_lab_from_containers() -> None:
    planned = topology.plan(LabSpec(HERE, encapsulation="vxlan", firewall="iptables"))
    argv = planned.programs["n2"].argv
    for option, value in (
        ("--encapsulation", "vxlan"),
        ("--firewall", "iptables"),
        # By its link, so that the node may move.
        ("--underlay", "eth0"),
        ("--dir", f"{HERE}/n2/state"),
        ("--mask", HERE),
    ):
        assert argv[argv.index(option) + 1] == value
    assert list(planned.programs) == ["broker", "n1", "n2", "n3"]
    assert [program.confined for program in planned.programs.values()] == [True, False, False, False]


def test_with_docker_every_node_has_an_engine_that_starts_after_its_driver() -> None:
    planned = topology.plan(LabSpec(HERE, nodes=2, docker=True))
    assert list(planned.programs) == [
        "broker",
        "n1 mounts", "n1 driver", "n1 docker", "n1",
        "n2 mounts", "n2 driver", "n2 docker", "n2",
    ]  # fmt: skip
    assert planned.nodes == ("n1", "n2")
    engine, agent, driver = (planned.programs[name] for name in ("n2 docker", "n2", "n2 driver"))
    assert engine.mounts
    assert agent.mounts
    assert not planned.programs["n2 mounts"].mounts
    # What one says, the others must be told: where the engine listens, and whom it asks.
    files = topology.engine_files(planned.spec.root, "n2")
    assert f"unix://{files.socket}" in engine.argv
    assert agent.argv[agent.argv.index("--docker-socket") + 1] == str(files.socket)
    assert (
        agent.argv[agent.argv.index("--driver-socket") + 1] == driver.argv[driver.argv.index("--agent") + 1]
    )
    assert topology.leave_command(planned, "n2")[-2:] == agent.argv[-2:]
    assert len({program.log for program in planned.programs.values()}) == len(planned.programs)


def test_the_same_again_changes_nothing() -> None:
    existing = LabSpec(HERE, nodes=4, encapsulation="vxlan", mtu=1400)
    assert topology.settle(HERE, Wish(), existing) == existing
    assert topology.settle(HERE, Wish(nodes=4, encapsulation="vxlan", mtu=1400), existing) == existing
    assert topology.settle(HERE, Wish(nodes=6), existing).nodes == 6


@pytest.mark.parametrize(
    "wish",
    [
        Wish(nodes=2),
        Wish(encapsulation="vxlan"),
        Wish(firewall="iptables"),
        Wish(mtu=1400),
        Wish(outside=True),
        Wish(docker=True),
        Wish(encryption="required"),
    ],
)
def test_a_lab_that_is_up_refuses_other_changes(wish: Wish) -> None:
    with pytest.raises(RefusedError, match="lab") as caught:
        topology.settle(HERE, wish, LabSpec(HERE))
    assert "netctl lab down" in caught.value.remedy


@pytest.mark.parametrize("wish", [Wish(nodes=0), Wish(nodes=251), Wish(mtu=1279), Wish(mtu=9001)])
def test_bounds(wish: Wish) -> None:
    with pytest.raises(InvalidError):
        topology.settle(HERE, wish, None)


@pytest.mark.parametrize("text", ["auto", "gre", "vxlan,wireguard", "direct,gre,vxlan,wireguard"])
def test_encapsulations_may_be_listed(text: str) -> None:
    spec = topology.settle(HERE, Wish(encapsulation=text), None)
    argv = topology.plan(spec).programs["n1"].argv
    assert argv[argv.index("--encapsulation") + 1] == text
    # A node says the same when it joins as when it runs.
    joining = topology.join_command(topology.plan(spec), "n1", "netctl-invite-x")
    for option in ("--encapsulation", "--underlay"):
        assert joining[joining.index(option) + 1] == argv[argv.index(option) + 1]


@pytest.mark.parametrize("text", ["", "ipip", "gre,", "gre,gre", "auto,gre", "gre vxlan", "GRE"])
def test_what_is_no_list_of_encapsulations(text: str) -> None:
    with pytest.raises(InvalidError, match="no encapsulations"):
        topology.settle(HERE, Wish(encapsulation=text), None)


def test_a_directory_too_long_for_a_socket_is_refused() -> None:
    room = topology.MAX_SOCKET_PATH - len("/broker/broker.sock")
    assert topology.settle("/" + "x" * (room - 1), Wish(), None).nodes == 3
    with pytest.raises(InvalidError, match="too long by 1 bytes"):
        topology.settle("/" + "x" * room, Wish(), None)


def test_with_docker_sockets_are_longer() -> None:
    room = topology.MAX_SOCKET_PATH - len("/n3/docker/docker.sock")
    assert topology.settle("/" + "x" * (room - 1), Wish(docker=True), None).docker
    with pytest.raises(InvalidError, match="too long by 1 bytes"):
        topology.settle("/" + "x" * room, Wish(docker=True), None)
