"""What an update makes of a policy: pure, and shared by every backend, so that all mean the same by it.

An opening is known by its peer, protocol and port, a pair by its two addresses, a binding by its device
and a tunnel by its peer's block; what else they hold is their value, and setting one replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

import attrs

from firewall_rules.policy import ContainerPolicy, HostPolicy, Opening, Pair, PortBinding, TunnelPolicy

_T = TypeVar("_T")


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


def opening_key(opening: Opening) -> tuple[str, str, int]:
    """Return what `opening` is known by."""
    return opening.peer, opening.protocol, opening.port


def pair_key(pair: Pair) -> tuple[str, str]:
    """Return what `pair` is known by."""
    return pair.one, pair.other


def binding_key(binding: PortBinding) -> str:
    """Return what `binding` is known by."""
    return binding.device


def tunnel_key(tunnel: TunnelPolicy) -> str:
    """Return what `tunnel` is known by."""
    return tunnel.block


def change_container(policy: ContainerPolicy, change: ContainerChange) -> ContainerPolicy:
    """Return `policy` after `change`."""
    return attrs.evolve(
        policy,
        inbound=_merged(policy.inbound, change.inbound_removed, change.inbound, opening_key),
        outbound=_merged(policy.outbound, change.outbound_removed, change.outbound, opening_key),
    )


def change_host(policy: HostPolicy, change: HostChange) -> HostPolicy:
    """Return `policy` after `change`."""
    return attrs.evolve(
        policy,
        bindings=_merged(policy.bindings, change.bindings_removed, change.bindings, binding_key),
        pairs=_merged(policy.pairs, change.pairs_removed, change.pairs, pair_key),
        tunnels=_merged(policy.tunnels, change.tunnels_removed, change.tunnels, tunnel_key),
    )


def live_container(policy: ContainerPolicy, now: float) -> ContainerPolicy:
    """Return `policy` without the openings that have ended at `now`."""
    return attrs.evolve(policy, inbound=_live(policy.inbound, now), outbound=_live(policy.outbound, now))


def live_host(policy: HostPolicy, now: float) -> HostPolicy:
    """Return `policy` without the pairs that have ended at `now`."""
    return attrs.evolve(policy, pairs=_live(policy.pairs, now))


def _merged(
    present: Iterable[_T], removed: Iterable[_T], added: Iterable[_T], key: Callable[[_T], Hashable]
) -> frozenset[_T]:
    kept = {key(item): item for item in present}
    for item in removed:
        kept.pop(key(item), None)
    kept.update((key(item), item) for item in added)
    return frozenset(kept.values())


_Ending = TypeVar("_Ending", Opening, Pair)


def _live(items: frozenset[_Ending], now: float) -> frozenset[_Ending]:
    return frozenset(item for item in items if item.expires_at is None or item.expires_at > now)
