"""What an update makes of a policy: pure, and shared by every backend, so that all mean the same by it.

What an item is known by is said in `firewall_rules.elements.item_key`; what else it holds is its value, and
setting one replaces it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import attrs

from firewall_rules.elements import item_key
from firewall_rules.policy import (
    ContainerPolicy,
    HostPolicy,
    Opening,
    Pair,
    PortBinding,
    Publication,
    TunnelPolicy,
)

_T = TypeVar("_T", Opening, Pair, PortBinding, TunnelPolicy, Publication, str)


@attrs.frozen
class ContainerChange:
    """A change of layer 1; what is removed goes first. Fields as in `ContainerBackend.update`."""

    inbound: tuple[Opening, ...] = ()
    inbound_removed: tuple[Opening, ...] = ()
    outbound: tuple[Opening, ...] = ()
    outbound_removed: tuple[Opening, ...] = ()


@attrs.frozen
class HostChange:
    """A change of layer 2; what is removed goes first. Fields as in `HostBackend.update`."""

    bindings: tuple[PortBinding, ...] = ()
    bindings_removed: tuple[PortBinding, ...] = ()
    pairs: tuple[Pair, ...] = ()
    pairs_removed: tuple[Pair, ...] = ()
    tunnels: tuple[TunnelPolicy, ...] = ()
    tunnels_removed: tuple[TunnelPolicy, ...] = ()
    publications: tuple[Publication, ...] = ()
    publications_removed: tuple[Publication, ...] = ()
    internal: tuple[str, ...] = ()
    internal_removed: tuple[str, ...] = ()


def change_container(policy: ContainerPolicy, change: ContainerChange) -> ContainerPolicy:
    """Return `policy` after `change`."""
    return attrs.evolve(
        policy,
        inbound=_merged(policy.inbound, change.inbound_removed, change.inbound),
        outbound=_merged(policy.outbound, change.outbound_removed, change.outbound),
    )


def change_host(policy: HostPolicy, change: HostChange) -> HostPolicy:
    """Return `policy` after `change`."""
    return attrs.evolve(
        policy,
        bindings=_merged(policy.bindings, change.bindings_removed, change.bindings),
        pairs=_merged(policy.pairs, change.pairs_removed, change.pairs),
        tunnels=_merged(policy.tunnels, change.tunnels_removed, change.tunnels),
        publications=_merged(policy.publications, change.publications_removed, change.publications),
        internal=_merged(policy.internal, change.internal_removed, change.internal),
    )


def live_container(policy: ContainerPolicy, now: float) -> ContainerPolicy:
    """Return `policy` without the openings that have ended at `now`."""
    return attrs.evolve(policy, inbound=_live(policy.inbound, now), outbound=_live(policy.outbound, now))


def live_host(policy: HostPolicy, now: float) -> HostPolicy:
    """Return `policy` without the pairs that have ended at `now`."""
    return attrs.evolve(policy, pairs=_live(policy.pairs, now))


def _merged(present: Iterable[_T], removed: Iterable[_T], added: Iterable[_T]) -> frozenset[_T]:
    kept = {item_key(item): item for item in present}
    for item in removed:
        kept.pop(item_key(item), None)
    kept.update((item_key(item), item) for item in added)
    return frozenset(kept.values())


_Ending = TypeVar("_Ending", Opening, Pair)


def _live(items: frozenset[_Ending], now: float) -> frozenset[_Ending]:
    return frozenset(item for item in items if item.expires_at is None or item.expires_at > now)
