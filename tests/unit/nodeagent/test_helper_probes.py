"""What the privileged child lets itself be told to probe, and how what it finds gets out."""

from __future__ import annotations

import os
from collections.abc import Sequence

import attrs
import pytest

from netctl.errors import InvalidError, KernelError
from netctl.model import PathState
from nodeagent.helper_messages import PathsChanged, SetProbes
from nodeagent.kernel.fake import FACTS
from nodeagent.kernel_state import ProbeTarget
from nodeagent.request_checks import check_probes
from tests.support.hosts import ServedHost
from tests.support.netns import wait_for

GRE = ProbeTarget("n2", "gre", "nctg0a020000", "10.1.0.1", "10.2.0.1", "", 1476, chosen=True)
VXLAN = attrs.evolve(
    GRE, encapsulation="vxlan", device="nctv0a020000", mac="6e:63:0a:02:00:01", mtu=1450, chosen=False
)
WIREGUARD = attrs.evolve(GRE, encapsulation="wireguard", device="nctw1", also=("nctw0",), mtu=1440)
DIRECT = attrs.evolve(VXLAN, encapsulation="direct", device=FACTS.underlay_device)
UP = PathState("n2", "gre", up=True, mtu=1476)


class FakeProber:
    """A prober that finds what a test says."""

    def __init__(self) -> None:
        self.aimed: list[Sequence[ProbeTarget]] = []
        self._found: list[PathState] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self._wake

    def aim(self, targets: Sequence[ProbeTarget]) -> None:
        self.aimed.append(targets)

    def changes(self) -> tuple[PathState, ...]:
        os.eventfd_read(self._wake)
        found, self._found = tuple(self._found), []
        return found

    def find(self, *paths: PathState) -> None:
        self._found.extend(paths)
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        os.close(self._wake)


def test_what_is_aimed_at_gets_in_and_what_is_found_gets_out() -> None:
    prober = FakeProber()
    served = ServedHost(prober=prober)
    try:
        served.client.facts()
        targets = (GRE, VXLAN, WIREGUARD, DIRECT)
        served.client.set_probes(targets)
        assert prober.aimed == [targets]
        prober.find(UP)
        told: list[object] = []

        def arrived() -> bool:
            told.extend(served.client.events())
            return bool(told)

        wait_for(arrived)
        assert told == [PathsChanged((UP,))]
        with pytest.raises(KernelError):
            served.client.set_probes((GRE, attrs.evolve(VXLAN, device="eth1")))
        assert prober.aimed == [targets]
    finally:
        served.close()
        prober.close()


@pytest.mark.parametrize(
    "targets",
    [
        pytest.param((attrs.evolve(GRE, device="eth0"),), id="foreign-device"),
        pytest.param((attrs.evolve(GRE, device="nctv0a020000"),), id="other-encapsulation"),
        pytest.param((attrs.evolve(GRE, also=("eth0",)),), id="foreign-second-device"),
        pytest.param((attrs.evolve(DIRECT, device="eth1"),), id="other-link"),
        pytest.param((attrs.evolve(DIRECT, also=("eth1",)),), id="other-second-link"),
        pytest.param((attrs.evolve(GRE, encapsulation="none"),), id="no-way"),
        pytest.param((attrs.evolve(GRE, peer="N2"),), id="name"),
        pytest.param((attrs.evolve(GRE, source="10.1.0"),), id="source"),
        pytest.param((attrs.evolve(GRE, destination="::1"),), id="destination"),
        pytest.param((attrs.evolve(VXLAN, mac=""),), id="no-mac"),
        pytest.param((attrs.evolve(GRE, mac=VXLAN.mac),), id="needless-mac"),
        pytest.param((attrs.evolve(GRE, mtu=63),), id="small"),
        pytest.param((attrs.evolve(GRE, mtu=65536),), id="large"),
        pytest.param((GRE, VXLAN, GRE), id="twice"),
        pytest.param(tuple(attrs.evolve(GRE, peer=f"n{i}") for i in range(2**14 + 1)), id="too-many"),
    ],
)
def test_other_targets_are_refused(targets: tuple[ProbeTarget, ...]) -> None:
    check_probes(SetProbes((GRE, VXLAN, WIREGUARD, DIRECT)), "eth0")
    with pytest.raises(InvalidError):
        check_probes(SetProbes(targets), "eth0")


def test_direct_is_refused_while_the_underlay_is_not_known() -> None:
    with pytest.raises(InvalidError):
        check_probes(SetProbes((DIRECT,)), "")
    with pytest.raises(InvalidError):
        check_probes(SetProbes((attrs.evolve(DIRECT, device=""),)), "")
