"""What carries the tunnels between the nodes: whose it is, and who may send it; pure.

A node takes what comes from a peer's underlay address for the peer's tunnel. So a node lets nobody send such
packets but its own tunnels: not its users, and not whom it forwards for, which Docker's masquerading would
give the node's own address.
"""

from __future__ import annotations

from typing import Literal

from firewall_rules.compile_container import rule
from firewall_rules.elements import PROTOCOLS
from firewall_rules.ruleset import InSet, Match, Rule

_UNTRACKED = Match("flow_state", ("untracked",))
_GRE = Match("protocol", (PROTOCOLS["gre"],))
_FROM_VXLAN_PEER = InSet(("source", "vxlan_vni"), "vxlan_peers")
_FROM_NO_VXLAN_PEER = InSet(("source", "vxlan_vni"), "vxlan_peers", negated=True)
_USERS = Match("socket_user", ("4294967295",), negated=True)
"""Whether a packet is of a process's socket: nobody has that number (credentials(7)), and without a socket,
or with one of the kernel's own, there is no user to compare, and the answer is no."""


def from_vxlan_peer(port: int) -> Rule:
    """Return the rule that takes what a peer's tunnel sends."""
    return rule("accept", *_vxlan(port), _FROM_VXLAN_PEER)


def from_no_peer(port: int) -> tuple[Rule, ...]:
    """Return the rules that drop what comes in as if for a tunnel, and is of no peer."""
    used = InSet(("protocol",), "encapsulations")
    return (
        rule("drop", _GRE, used, InSet(("source",), "gre_peers", negated=True)),
        rule("drop", *_vxlan(port), used, _FROM_NO_VXLAN_PEER),
    )


def untracked(port: int, peer: Literal["source", "destination"]) -> tuple[Rule, ...]:
    """Return the rules that keep what passes between peers' tunnels out of connection tracking."""
    vxlan = (*_vxlan(port), InSet((peer, "vxlan_vni"), "vxlan_peers"))
    gre = (_GRE, InSet((peer,), "gre_peers"))
    return Rule(vxlan, ("notrack", "accept")), Rule(gre, ("notrack", "accept"))


def sent_untracked(port: int) -> tuple[Rule, ...]:
    """Return the rules that let out what `untracked` was told to leave untracked."""
    return rule("accept", _UNTRACKED, *_vxlan(port)), rule("accept", _UNTRACKED, _GRE)


def never_forwarded(port: int) -> tuple[Rule, ...]:
    """Return the rules that drop what is forwarded for others as if by a tunnel of ours."""
    return _forged(port)


def never_a_users(port: int) -> tuple[Rule, ...]:
    """Return the rules that drop what processes of this node send as if by a tunnel of ours.

    What a tunnel sends is no socket's, or, for an error of the node's own, a socket of the kernel's.
    """
    return _forged(port, _USERS)


def _forged(port: int, *whose: Match) -> tuple[Rule, ...]:
    return (
        rule("drop", *_vxlan(port), *whose, InSet(("destination", "vxlan_vni"), "vxlan_peers")),
        rule("drop", _GRE, *whose, InSet(("destination",), "gre_peers")),
    )


def _vxlan(port: int) -> tuple[Match, Match]:
    return Match("protocol", (PROTOCOLS["vxlan"],)), Match("destination_port", (str(port),))
