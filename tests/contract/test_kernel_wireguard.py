"""WireGuard links and keys: the kernel in memory and the real one mean the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from netctl.model import mac_of
from nodeagent.kernel.base import Kernel, KernelOp
from nodeagent.kernel.fake import FACTS, FakeKernel
from nodeagent.kernel.wireguard_keys import WireguardKeys
from nodeagent.kernel_state import Bridge, Route, WireguardLink, WireguardPeer
from nodeagent.ops import DeleteWireguard, SetBridge, SetRoute, SetSysctl, SetWireguard
from tests.support.kernels import KernelIn
from tests.support.netns import address, veth

PEER = WireguardPeer("10.2.0.0/16", "ab" * 32, "192.0.2.2", 51821)
OTHER = WireguardPeer("10.3.0.0/16", "cd" * 32, "192.0.2.3", 51820)
LINK = WireguardLink("nctw1", 1, 51821, 1440, frozenset({PEER}))
NEXT = WireguardLink("nctw0", 2, 51820, 1440, frozenset({PEER}))
BRIDGE = Bridge("10.1.0.1/16", 1440, mac_of("10.1.0.1"))
ROUTE = Route("10.2.0.0/16", "nctw1", "10.1.0.1")
REVERSE_PATH = "net/ipv4/conf/nctw1/rp_filter"


@pytest.fixture(
    params=["fake", pytest.param("linux", marks=[pytest.mark.root, pytest.mark.needs_kernel("wireguard")])]
)
def kernel(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kernel]:
    if request.param == "fake":
        yield FakeKernel(host_facts=attrs.evolve(FACTS, encapsulations=("gre", "vxlan", "wireguard")))
        return
    make = request.getfixturevalue("namespaces")
    node, far = make(), make()
    veth(node, FACTS.underlay_device, far, "eth0")
    address(node, FACTS.underlay_device, f"{FACTS.underlay}/24")
    with contextlib.closing(KernelIn(node, WireguardKeys(tmp_path / "wireguard"))) as real:
        yield real


def done(kernel: Kernel, *operations: KernelOp) -> None:
    assert kernel.apply(operations, {}) == [""] * len(operations)


def keys(kernel: Kernel) -> dict[int, str]:
    return {end.generation: end.key for end in kernel.facts(FACTS.underlay).wireguard}


def test_the_first_key_comes_with_the_first_facts(kernel: Kernel) -> None:
    facts = kernel.facts(FACTS.underlay)
    assert "wireguard" in facts.encapsulations
    assert [(end.generation, end.port) for end in facts.wireguard] == [(1, 51821)]
    assert kernel.facts(FACTS.underlay).wireguard == facts.wireguard


def test_a_link_comes_changes_and_goes_with_its_key(kernel: Kernel) -> None:
    first = keys(kernel)
    for link in (
        LINK,
        attrs.evolve(LINK, peers=frozenset({OTHER, attrs.evolve(PEER, endpoint="192.0.2.9")})),
        attrs.evolve(LINK, mtu=1300, peers=frozenset()),
    ):
        done(kernel, SetWireguard(link))
        assert kernel.observe({}).wireguard == {"nctw1": link}
        assert keys(kernel) == first
    done(kernel, DeleteWireguard("nctw1", 1), DeleteWireguard("nctw1", 1))
    assert kernel.observe({}).wireguard == {}
    assert keys(kernel)[1] != first[1]


def test_two_generations_stand_beside_each_other(kernel: Kernel) -> None:
    old = keys(kernel)
    done(kernel, SetWireguard(LINK), SetWireguard(NEXT))
    assert kernel.observe({}).wireguard == {"nctw1": LINK, "nctw0": NEXT}
    both = keys(kernel)
    assert both.keys() == {1, 2}
    assert both[1] == old[1] != both[2]
    done(kernel, DeleteWireguard("nctw1", 1))
    assert kernel.observe({}).wireguard == {"nctw0": NEXT}
    assert keys(kernel) == {2: both[2]}


def test_a_later_generation_takes_its_link_and_its_key_away(kernel: Kernel) -> None:
    later = attrs.evolve(LINK, generation=3)
    done(kernel, SetBridge(BRIDGE), SetWireguard(LINK), SetSysctl(REVERSE_PATH, "2"), SetRoute(ROUTE))
    assert kernel.observe({}).routes == {ROUTE.block: ROUTE}
    done(kernel, SetWireguard(later))
    links = kernel.observe({})
    assert links.wireguard == {"nctw1": later}
    assert links.routes == {}
    assert links.sysctls.get(REVERSE_PATH) != "2"
    assert keys(kernel).keys() == {3}


def test_routes_and_settings_need_the_link_and_go_with_it(kernel: Kernel) -> None:
    done(kernel, SetBridge(BRIDGE))
    assert all(kernel.apply([SetSysctl(REVERSE_PATH, "2"), SetRoute(ROUTE)], {}))
    done(kernel, SetWireguard(LINK), SetSysctl(REVERSE_PATH, "2"), SetRoute(ROUTE))
    # Another form of the link leaves both as they are.
    done(kernel, SetWireguard(attrs.evolve(LINK, mtu=1300, peers=frozenset({OTHER}))))
    links = kernel.observe({})
    assert links.routes == {ROUTE.block: ROUTE}
    assert links.sysctls[REVERSE_PATH] == "2"
    done(kernel, DeleteWireguard("nctw1", 1))
    links = kernel.observe({})
    assert links.routes == {}
    assert REVERSE_PATH not in links.sysctls
