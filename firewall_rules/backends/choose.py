"""Which backend a node uses for layer 1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from firewall_rules.backends.base import ContainerBackend, FirewallError
from firewall_rules.backends.iptables_client import IptablesContainerBackend
from firewall_rules.backends.nftables import NftablesContainerBackend

Preference = Literal["auto", "nftables", "iptables"]

_BACKENDS: Final[Mapping[str, type[NftablesContainerBackend | IptablesContainerBackend]]] = {
    "nftables": NftablesContainerBackend,
    "iptables": IptablesContainerBackend,
}


def choose(preference: Preference, records: Path | None = None) -> ContainerBackend:
    """Return the backend that was asked for; ``auto``: the first that works, nftables before iptables.

    Args:
        preference: What the operator said.
        records: Directory for what was last written, gone after a reboot.

    Raises:
        FirewallError: It does not work here, or none does; the text says why.
    """
    reasons = []
    for name in _BACKENDS if preference == "auto" else (preference,):
        backend = _BACKENDS[name](records)
        reason = backend.unusable()
        if not reason:
            return backend
        reasons.append(f"{name}: {reason}")
    raise FirewallError("no firewall can be had on this host: " + "; ".join(reasons))
