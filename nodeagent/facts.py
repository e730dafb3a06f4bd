"""What the operator lets this node use of what its host has, and what the broker hears of it."""

from __future__ import annotations

from typing import Final, Literal

import attrs

import netctl
from netctl.errors import RefusedError
from netctl.model import Encapsulation, NodeFacts
from nodeagent.kernel_state import HostFacts

EncapsulationChoice = Literal["auto", "gre", "vxlan", "direct"]

AUTO: Final[tuple[Encapsulation, ...]] = ("gre", "vxlan")
"""What ``auto`` stands for, best first. ``direct`` needs a shared link, which only the operator knows of."""
_WORD: Final = 64


def restricted(facts: HostFacts, choice: EncapsulationChoice) -> HostFacts:
    """Return `facts` with the encapsulations that the operator allows.

    Raises:
        RefusedError: The one that was chosen is not there.
    """
    allowed: tuple[Encapsulation, ...] = AUTO if choice == "auto" else (choice,)
    usable = tuple(mode for mode in allowed if mode in facts.encapsulations)
    if choice != "auto" and not usable:
        there = ", ".join(facts.encapsulations) or "none"
        raise RefusedError(
            f"this kernel has no {choice} (it has: {there})",
            "choose another --encapsulation, or load the kernel's module",
        )
    return attrs.evolve(facts, encapsulations=usable)


def lacking(facts: HostFacts) -> str:
    """Return why no container can be made on this host; empty: they can."""
    if facts.host_firewall:
        return facts.host_firewall
    return "no firewall works in containers of this node" if facts.firewall == "none" else ""


def node_facts(facts: HostFacts) -> NodeFacts:
    """Return what the broker hears. A host that can take no container offers no engine, and says why."""
    why = lacking(facts)
    return NodeFacts(
        underlay=facts.underlay,
        underlay_mac=facts.underlay_mac,
        underlay_mtu=facts.underlay_mtu,
        encapsulations=facts.encapsulations,
        firewall=f"none: {why}"[:_WORD] if why else facts.firewall,
        engines=() if why else facts.engines,
        networks=facts.networks,
        version=netctl.__version__,
    )
