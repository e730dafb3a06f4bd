"""The agent's side of the probes: what the helper is to probe, and what the broker hears of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from firewall_rules import names
from netctl.errors import KernelError
from netctl.log import get_logger
from netctl.model import OVERHEAD, Encapsulation, NodeState, PathState, Peer, bridge_address, mac_of
from netctl.wire.messages import Paths
from nodeagent import tunnels
from nodeagent.desired_index import DesiredIndex
from nodeagent.helper_client import Event, Helper
from nodeagent.helper_messages import PathsChanged
from nodeagent.kernel_state import HostFacts, HostState, ProbeTarget
from nodeagent.latest import Latest
from nodeagent.session import Link


def probe_targets(header: NodeState, peers: Mapping[str, Peer], facts: HostFacts) -> tuple[ProbeTarget, ...]:
    """Return the ways that a node is to probe: all that it has to any of its peers.

    Args:
        header: What the broker wants, without its maps.
        peers: By name.
        facts: Of the host.
    """
    if header.block is None or facts.host_firewall:
        return ()
    source = bridge_address(header.block)
    return tuple(
        _target(header, source, facts, peer, way)
        for _, peer in sorted(peers.items())
        for way in dict.fromkeys(tunnels.ways(header, facts, peer))
        if way != "direct" or peer.underlay_mac
    )


def _target(header: NodeState, source: str, facts: HostFacts, peer: Peer, way: Encapsulation) -> ProbeTarget:
    destination = bridge_address(peer.block)
    macs = {"vxlan": mac_of(destination), "direct": peer.underlay_mac}
    device = tunnels.device_of(header, facts, peer, way)
    links = map(names.wireguard_device, header.wireguard_generations) if way == "wireguard" else ()
    return ProbeTarget(
        peer=peer.name,
        encapsulation=way,
        device=device,
        source=source,
        destination=destination,
        mac=macs.get(way, ""),
        mtu=_largest(facts, peer, way),
        chosen=way == peer.encapsulation,
        also=tuple(sorted({*links} - {device})),
    )


def _largest(facts: HostFacts, peer: Peer, way: Encapsulation) -> int:
    """Return the bytes of the largest inner packet that both nodes' links take."""
    outer = peer.outer_mtu or peer.mtu + OVERHEAD[peer.encapsulation]
    return min(tunnels.device_mtu(facts, peer, way), outer - OVERHEAD[way])


def standing(targets: tuple[ProbeTarget, ...], *devices: Collection[str]) -> tuple[ProbeTarget, ...]:
    """Return those targets whose device is there; the underlay's own link always is.

    Args:
        targets: All that there should be.
        devices: Names of links, in one or more collections.
    """
    return tuple(
        target
        for target in targets
        if target.encapsulation == "direct" or any(target.device in some for some in devices)
    )


class Ways:
    """What the agent does for the ways to its peers in every turn.

    Args:
        link: The session with the broker.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._targets = Latest(probe_targets)
        self._standing = Latest(standing)
        self._helper: Helper | None = None
        self._probed: tuple[ProbeTarget, ...] = ()
        self._found: dict[tuple[str, Encapsulation], PathState] = {}
        # What the broker has not heard yet; None: nothing of it all.
        self._untold: dict[tuple[str, Encapsulation], PathState] | None = None
        self._log = get_logger()

    def settle(
        self, observed: HostState, helper: Helper, desired: DesiredIndex | None, facts: HostFacts | None
    ) -> None:
        """Have the helper probe what stands by now, where that is not what it probes.

        Args:
            observed: What is there.
            helper: The one that probes; another one has been told nothing yet.
            desired: What the broker wants; None: it has not said yet.
            facts: Of the host; None: not known yet.

        Raises:
            UnavailableError: The helper is gone.
        """
        if desired is None or facts is None:
            return
        wanted = self._targets(desired.header, desired.peers, facts)
        targets = self._standing(wanted, observed.tunnels, observed.wireguard)
        before = self._probed if helper is self._helper else ()
        if targets is before or targets == before:
            return
        self._helper, self._probed = helper, targets
        ways = {(target.peer, target.encapsulation) for target in targets}
        self._found = {way: state for way, state in self._found.items() if way in ways}
        try:
            helper.set_probes(targets)
        except KernelError as error:
            self._log.error("the ways to the peers cannot be probed", error=error.message)

    def hear(self, event: Event) -> None:
        """Take what the helper found."""
        if not isinstance(event, PathsChanged):
            return
        probed = {(target.peer, target.encapsulation) for target in self._probed}
        for path in event.paths:
            way = (path.peer, path.encapsulation)
            if way in probed:
                self._found[way] = path
                if self._untold is not None:
                    self._untold[way] = path

    def tell(self, *, welcome: bool) -> None:
        """Tell the broker what it has not heard: after each Hello everything.

        Args:
            welcome: Whether it has answered Hello, and listens.
        """
        if not welcome:
            self._untold = None
            return
        untold = self._found if self._untold is None else self._untold
        if not untold or self._link.send(Paths(tuple(untold.values()))):
            self._untold = {}
