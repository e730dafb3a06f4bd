"""What carries the tunnels between the nodes: whose it is, and who may send it; pure.

A node takes what comes from a peer's underlay address for the peer's tunnel. So a node lets nobody send such
packets but its own tunnels: not its users, and not whom it forwards for, which Docker's masquerading would
give the node's own address.

WireGuard knows its peers by their keys, and would follow one to any address that its packets come from. Here
peers do not roam: they are where the broker says, and nobody else reaches WireGuard's ports, nor over IPv6.
"""

from __future__ import annotations

from typing import Literal

from firewall_rules.compile_container import rule
from firewall_rules.elements import PROTOCOLS
from firewall_rules.names import OUTER_MARK
from firewall_rules.ruleset import Field, InSet, Match, Rule

_UNTRACKED = Match("flow_state", ("untracked",))
_GRE = Match("protocol", (PROTOCOLS["gre"],))
_FROM_VXLAN_PEER = InSet(("source", "vxlan_vni"), "vxlan_peers")
_FROM_NO_VXLAN_PEER = InSet(("source", "vxlan_vni"), "vxlan_peers", negated=True)
_FROM_WIREGUARD_PEER = InSet(("source",), "wireguard_peers")
_TO_WIREGUARD_PEER = InSet(("destination",), "wireguard_peers")
_USERS = (
    Match("socket_user", ("4294967295",), negated=True),
    Match("mark", (str(OUTER_MARK),), negated=True),
)
"""Whether a packet is of a process's socket: nobody has that number (credentials(7)), and without a socket,
or with one of the kernel's own, there is no user to compare, and the answer is no. What a tunnel has wrapped
keeps the socket of what is in it: a probe's, which has our mark."""


def from_peers(port: int) -> tuple[Rule, ...]:
    """Return the rules that take what a peer's tunnel sends, where it is carried by UDP."""
    return (
        rule("accept", *_vxlan(port), _FROM_VXLAN_PEER),
        rule("accept", *_wireguard("destination_port"), _FROM_WIREGUARD_PEER),
    )


def from_no_peer(port: int) -> tuple[Rule, ...]:
    """Return the rules that drop what comes in as if for a tunnel, and is of no peer."""
    used = InSet(("protocol",), "encapsulations")
    return (
        rule("drop", _GRE, used, InSet(("source",), "gre_peers", negated=True)),
        rule("drop", *_vxlan(port), used, _FROM_NO_VXLAN_PEER),
        # Peers' were accepted before: this is everybody else's, IPv6 too.
        rule("drop", *_wireguard("destination_port")),
    )


def untracked(port: int, peer: Literal["source", "destination"]) -> tuple[Rule, ...]:
    """Return the rules that keep what passes between peers' tunnels out of connection tracking."""
    vxlan = (*_vxlan(port), InSet((peer, "vxlan_vni"), "vxlan_peers"))
    gre = (_GRE, InSet((peer,), "gre_peers"))
    wireguard = (
        (*_wireguard("destination_port"), _FROM_WIREGUARD_PEER)
        if peer == "source"
        else (*_wireguard("source_port"), _TO_WIREGUARD_PEER)
    )
    return tuple(Rule(outer, ("notrack", "accept")) for outer in (vxlan, gre, wireguard))


def sent_untracked(port: int) -> tuple[Rule, ...]:
    """Return the rules that let out what `untracked` was told to leave untracked."""
    return (
        rule("accept", _UNTRACKED, *_vxlan(port)),
        rule("accept", _UNTRACKED, _GRE),
        rule("accept", _UNTRACKED, *_wireguard("source_port")),
    )


def never_forwarded(port: int) -> tuple[Rule, ...]:
    """Return the rules that drop what is forwarded for others as if by a tunnel of ours."""
    return _forged(port)


def never_a_users(port: int) -> tuple[Rule, ...]:
    """Return the rules that drop what processes of this node send as if by a tunnel of ours.

    What a tunnel sends is no socket's, or, for an error of the node's own, a socket of the kernel's; a probe
    is told by its mark.
    """
    return _forged(port, *_USERS)


def _forged(port: int, *whose: Match) -> tuple[Rule, ...]:
    return (
        rule("drop", *_vxlan(port), *whose, InSet(("destination", "vxlan_vni"), "vxlan_peers")),
        rule("drop", _GRE, *whose, InSet(("destination",), "gre_peers")),
        rule("drop", *_wireguard("source_port"), *whose, _TO_WIREGUARD_PEER),
    )


def _vxlan(port: int) -> tuple[Match, Match]:
    return Match("protocol", (PROTOCOLS["udp"],)), Match("destination_port", (str(port),))


def _wireguard(own_port: Field) -> tuple[Match, InSet]:
    return Match("protocol", (PROTOCOLS["udp"],)), InSet((own_port,), "wireguard_ports")
