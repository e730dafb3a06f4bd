"""Which backend a node uses for layer 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

from firewall_rules.backends.base import ContainerBackend, FirewallError
from firewall_rules.backends.nftables import NftablesContainerBackend

Preference = Literal["auto", "nftables", "iptables"]


def _iptables(records: Path | None) -> ContainerBackend:
    from firewall_rules.backends.iptables_client import (  # noqa: PLC0415 - few hosts need it, all would wait
        IptablesContainerBackend,
    )

    return IptablesContainerBackend(records)


_BACKENDS: Final[Mapping[str, Callable[[Path | None], ContainerBackend]]] = {
    "nftables": NftablesContainerBackend,
    "iptables": _iptables,
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
