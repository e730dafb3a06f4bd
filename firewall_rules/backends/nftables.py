"""The nftables backends: layer 1 in containers' namespaces, layer 2 on the host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import attrs

from firewall_rules.backends.base import FirewallError
from firewall_rules.backends.libnftables import keep_low_descriptors, open_nft, why_no_nft
from firewall_rules.backends.namespaces import in_scratch_namespace
from firewall_rules.backends.nftables_keeper import Doors, References, TableKeeper
from firewall_rules.backends.nftables_text import install_text
from firewall_rules.backends.records import Records, form_of
from firewall_rules.backends.tracked_flows import forget_flows
from firewall_rules.change import ContainerChange, HostChange
from firewall_rules.compile_container import compile_container
from firewall_rules.compile_host import compile_host
from firewall_rules.policy import (
    ContainerPolicy,
    HostPolicy,
    Opening,
    Pair,
    PortBinding,
    Publication,
    PublishedPort,
    TunnelPolicy,
)
from firewall_rules.ruleset import Ruleset

_HOST_KEY = "host"
_SAMPLE_CONTAINER = ContainerPolicy(address="192.0.2.2", gateway="192.0.2.1", resolver="192.0.2.1")
_EVERYTHING = attrs.evolve(
    _SAMPLE_CONTAINER,
    closed=frozenset({"192.0.2.0/24"}),
    overlay_only=True,
    published=frozenset({PublishedPort("tcp", 80), PublishedPort("udp", 53)}),
)
_SAMPLE_HOST = HostPolicy(
    bridge="bridge", address="192.0.2.1", block="192.0.2.0/24", supernet="192.0.2.0/24", resolver="192.0.2.1"
)


class NftablesContainerBackend:
    """Layer 1 by nftables. Implements `firewall_rules.backends.base.ContainerBackend`.

    Args:
        records: Directory, gone after a reboot, for what was last written; None: a restarted process lists
            and replaces every table once.
    """

    name: Literal["nftables", "iptables"] = "nftables"

    def __init__(self, records: Path | None = None) -> None:
        directory = None if records is None else records / "nftables"
        keep_low_descriptors()
        form = form_of(install_text(compile_container(_EVERYTHING), 0.0))
        self._records = Records(directory, ContainerPolicy, ContainerChange, form)
        self._doors = Doors()
        self._references = References(compile_container(_SAMPLE_CONTAINER))
        self._keepers: dict[str, TableKeeper[ContainerPolicy]] = {}

    def unusable(self) -> str:
        """Return why nftables cannot be used here, empty if it can."""
        return _unusable(lambda: compile_container(_SAMPLE_CONTAINER))

    def install(self, key: str, namespace: int, policy: ContainerPolicy) -> None:
        """Put `policy` in place, whole, in one transaction."""
        self._keeper(key).install(namespace, policy)

    def update(
        self,
        key: str,
        namespace: int,
        *,
        inbound: Sequence[Opening] = (),
        inbound_removed: Sequence[Opening] = (),
        outbound: Sequence[Opening] = (),
        outbound_removed: Sequence[Opening] = (),
    ) -> None:
        """Change elements in one transaction."""
        change = ContainerChange(
            tuple(inbound), tuple(inbound_removed), tuple(outbound), tuple(outbound_removed)
        )
        self._keeper(key).update(namespace, change)

    def read(self, key: str, namespace: int) -> ContainerPolicy | None:
        """Return the policy that is in force; None: no table of ours, or one that is not as we made it."""
        return self._keeper(key).read(namespace)

    def remove(self, key: str, namespace: int) -> None:
        """Take our table out."""
        self._keeper(key).remove(namespace)

    def drifted(self, key: str, namespace: int) -> bool:
        """Tell whether someone else has written since our last write or read."""
        return self._keeper(key).drifted(namespace)

    def forget(self, key: str) -> None:
        """The namespace is gone."""
        self._keepers.pop(key, None)
        self._doors.close(key)
        self._records.drop(key)

    def _keeper(self, key: str) -> TableKeeper[ContainerPolicy]:
        keeper = self._keepers.get(key)
        if keeper is None:
            keeper = TableKeeper(key, self._doors, self._records, compile_container, self._references)
            self._keepers[key] = keeper
        return keeper


class NftablesHostBackend:
    """Layer 2 in the network namespace of the calling thread. Implements `HostBackend` of the base.

    Args:
        records: As with `NftablesContainerBackend`.
    """

    def __init__(self, records: Path | None = None) -> None:
        directory = None if records is None else records / "nftables"
        keep_low_descriptors()
        self._keeper = TableKeeper(
            _HOST_KEY,
            Doors(),
            Records(
                directory, HostPolicy, HostChange, form_of(install_text(compile_host(_SAMPLE_HOST), 0.0))
            ),
            compile_host,
            References(compile_host(_SAMPLE_HOST)),
        )

    def unusable(self) -> str:
        """Return why layer 2 cannot be had here, empty if it can."""
        return _unusable(lambda: compile_host(_SAMPLE_HOST))

    def install(self, policy: HostPolicy) -> None:
        """Put both tables in place, whole, in one transaction."""
        before = self._published()
        self._keeper.install(None, policy)
        _forget_flows(before ^ policy.publications)

    def update(
        self,
        *,
        bindings: Sequence[PortBinding] = (),
        bindings_removed: Sequence[PortBinding] = (),
        pairs: Sequence[Pair] = (),
        pairs_removed: Sequence[Pair] = (),
        tunnels: Sequence[TunnelPolicy] = (),
        tunnels_removed: Sequence[TunnelPolicy] = (),
        publications: Sequence[Publication] = (),
        publications_removed: Sequence[Publication] = (),
        internal: Sequence[str] = (),
        internal_removed: Sequence[str] = (),
    ) -> None:
        """Change elements in one transaction."""
        before = self._published() if publications or publications_removed else frozenset()
        self._keeper.update(
            None,
            HostChange(
                tuple(bindings),
                tuple(bindings_removed),
                tuple(pairs),
                tuple(pairs_removed),
                tuple(tunnels),
                tuple(tunnels_removed),
                tuple(publications),
                tuple(publications_removed),
                tuple(internal),
                tuple(internal_removed),
            ),
        )
        if publications or publications_removed:
            _forget_flows(before ^ self._published())

    def read(self) -> HostPolicy | None:
        """Return the policy in force; None: missing, or not as we made it."""
        return self._keeper.read(None)

    def remove(self) -> None:
        """Take both tables out."""
        self._keeper.remove(None)

    def drifted(self) -> bool:
        """Tell whether someone else has written since our last write or read."""
        return self._keeper.drifted(None)

    def _published(self) -> frozenset[Publication]:
        known = self._keeper.known()
        return frozenset() if known is None else known.publications


def _forget_flows(publications: Iterable[Publication]) -> None:
    # The tables stand. What is not forgotten ends by itself once its client is silent for a while.
    with contextlib.suppress(FirewallError):
        forget_flows(publications)


def _unusable(sample: Callable[[], Ruleset]) -> str:
    if reason := why_no_nft():
        return reason
    try:
        in_scratch_namespace(lambda: _try_out(sample()))
    except FirewallError as error:
        return str(error)
    return ""


def _try_out(ruleset: Ruleset) -> None:
    nft = open_nft()
    try:
        nft.run(install_text(ruleset, 0.0))
    finally:
        nft.close()
