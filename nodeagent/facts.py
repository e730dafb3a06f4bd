"""What the operator lets this node use of what its host has, and what the broker hears of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs

import netctl
from netctl.errors import RefusedError
from netctl.model import Encapsulation, NodeFacts
from nodeagent.kernel_state import HostFacts

AUTO: Final[tuple[Encapsulation, ...]] = ("gre", "vxlan", "wireguard")
"""What ``auto`` stands for, best first. ``direct`` needs a shared link, which only the operator knows of."""
_WORD: Final = 64


def restricted(facts: HostFacts, allowed: Sequence[Encapsulation]) -> HostFacts:
    """Return `facts` with the encapsulations that the operator allows, in the operator's order.

    Args:
        facts: Of the host.
        allowed: Best first; empty: `AUTO`.

    Raises:
        RefusedError: None of those that were named is there.
    """
    usable = tuple(mode for mode in allowed or AUTO if mode in facts.encapsulations)
    if allowed and not usable:
        there = ", ".join(facts.encapsulations) or "none"
        raise RefusedError(
            f"this kernel has no {' or '.join(allowed)} (it has: {there})",
            "choose another --encapsulation, or load the kernel's module",
        )
    return attrs.evolve(
        facts, encapsulations=usable, wireguard=facts.wireguard if "wireguard" in usable else ()
    )


def lacking(facts: HostFacts) -> str:
    """Return why no container can be made on this host; empty: they can."""
    if facts.host_firewall:
        return facts.host_firewall
    return "no firewall works in containers of this node" if facts.firewall == "none" else ""


def differ_for_host(one: HostFacts, other: HostFacts) -> bool:
    """Tell whether the host is another one by these facts; its other networks are the broker's business."""
    return attrs.evolve(one, networks=()) != attrs.evolve(other, networks=())


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
        wireguard=facts.wireguard,
    )
