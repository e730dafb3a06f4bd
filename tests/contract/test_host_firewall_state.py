"""What is in force after changes of the ways to peers: the same with the fake and the real kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import attrs
import pytest

from firewall_rules.backends.base import HostBackend
from firewall_rules.backends.fake import FakeHostBackend
from firewall_rules.backends.nftables import NftablesHostBackend
from firewall_rules.policy import HostPolicy, TunnelPolicy
from tests.support.host_net import POLICY
from tests.support.netns import Namespace

BLOCK, HERE, THERE = "10.2.0.0/16", "192.0.2.2", "192.0.2.22"
GRE = TunnelPolicy("nctg0a020000", BLOCK, "gre", HERE)
VXLAN = TunnelPolicy("nctv0a020000", BLOCK, "vxlan", HERE, vni=17, routed=False)
WIREGUARD = TunnelPolicy("nctw0", BLOCK, "wireguard", HERE, routed=False)
DIRECT = TunnelPolicy("eth0", BLOCK, "direct", HERE, mac="02:00:00:00:00:02", routed=False)
THIRD = TunnelPolicy("nctw0", "10.3.0.0/16", "wireguard", "192.0.2.3")
CANDIDATES = frozenset({GRE, VXLAN, WIREGUARD, DIRECT, THIRD})


@attrs.frozen
class Firewall:
    """A backend, and where it acts."""

    backend: HostBackend
    entered: Callable[[], contextlib.AbstractContextManager[None]]

    def install(self, policy: HostPolicy) -> None:
        with self.entered():
            self.backend.install(policy)

    def replace(self, removed: frozenset[TunnelPolicy], added: frozenset[TunnelPolicy]) -> None:
        with self.entered():
            self.backend.update(tunnels=sorted(added), tunnels_removed=sorted(removed))

    def tunnels(self) -> frozenset[TunnelPolicy] | None:
        with self.entered():
            policy = self.backend.read()
        return None if policy is None else policy.tunnels


@pytest.fixture(params=["fake", pytest.param("nftables", marks=pytest.mark.root)])
def firewall(request: pytest.FixtureRequest, namespaces: Callable[[], Namespace]) -> Iterator[Firewall]:
    if request.param == "fake":
        made = Firewall(FakeHostBackend(), contextlib.nullcontext)
    else:
        made = Firewall(NftablesHostBackend(), namespaces().entered)
    made.install(attrs.evolve(POLICY, tunnels=CANDIDATES, wireguard_ports=frozenset({51820, 51821})))
    yield made
    with made.entered():
        made.backend.remove()


def test_all_ways_to_a_peer_stand_side_by_side(firewall: Firewall) -> None:
    assert firewall.tunnels() == CANDIDATES


def test_a_pair_changes_its_way(firewall: Firewall) -> None:
    before = frozenset({GRE, VXLAN})
    after = frozenset({attrs.evolve(GRE, routed=False), attrs.evolve(VXLAN, routed=True)})
    firewall.replace(before, after)
    assert firewall.tunnels() == CANDIDATES - before | after
    # What is known by the same name is replaced, whether it is named as removed or not.
    firewall.replace(frozenset(), before)
    assert firewall.tunnels() == CANDIDATES


def test_a_peer_moves_with_all_its_ways(firewall: Firewall) -> None:
    before = CANDIDATES - {THIRD}
    after = frozenset(attrs.evolve(one, outer=THERE) for one in before)
    firewall.replace(before, after)
    assert firewall.tunnels() == after | {THIRD}


def test_a_key_is_rotated(firewall: Firewall) -> None:
    old = frozenset({WIREGUARD, THIRD})
    new = frozenset(attrs.evolve(one, device="nctw1") for one in old)
    firewall.replace(frozenset(), new)
    assert firewall.tunnels() == CANDIDATES | new
    firewall.replace(old, frozenset())
    assert firewall.tunnels() == CANDIDATES - old | new


def test_a_peer_that_leaves_takes_all_its_ways_along(firewall: Firewall) -> None:
    firewall.replace(CANDIDATES - {THIRD}, frozenset())
    assert firewall.tunnels() == {THIRD}
    firewall.replace(frozenset({THIRD}), frozenset())
    assert firewall.tunnels() == frozenset()
