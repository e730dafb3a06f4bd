"""What a firewall backend must be able to do.

A backend acts in the network namespace named by a descriptor (``/proc/*/ns/net``) that the caller keeps
open; it forks no process on the way of an attach or a change. It is used from one thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from firewall_rules.policy import (
    ContainerPolicy,
    HostPolicy,
    Opening,
    Pair,
    PortBinding,
    Publication,
    TunnelPolicy,
)


class FirewallError(Exception):
    """The kernel refused a ruleset or a change; nothing of it stands. The text is one line, for the user."""


class ContainerBackend(Protocol):
    """Layer 1: the firewall inside one container's namespace."""

    name: Literal["nftables", "iptables"]

    def unusable(self) -> str:
        """Return why this backend cannot work on this host, empty if it can. Changes nothing."""

    def install(self, key: str, namespace: int, policy: ContainerPolicy) -> None:
        """Put `policy` in place, whole, in one transaction. `key` (the container's id) names what is cached.

        Raises:
            FirewallError: The kernel refused.
        """

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
        """Change elements in one transaction; what is removed goes first. Flat in the number of peers.

        Removing what is not there is no error; adding what is there refreshes its lifetime.

        Raises:
            FirewallError: The kernel refused; nothing of the change stands.
        """

    def read(self, key: str, namespace: int) -> ContainerPolicy | None:
        """Return the policy that is in force; None: no table of ours, or one that is not as we made it.

        Costs one generation query where nothing changed since our last write, and no listing.
        """

    def remove(self, key: str, namespace: int) -> None:
        """Take our table out; no error if there is none."""

    def drifted(self, key: str, namespace: int) -> bool:
        """Tell if someone else has changed what is ours since our last write or read.

        Costs one generation query where nobody has written anything.

        Raises:
            FirewallError: What is there cannot be read.
        """

    def forget(self, key: str) -> None:
        """The namespace is gone: close sockets and contexts, drop records."""


class HostBackend(Protocol):
    """Layer 2 (bridge family) and the host's own protection and NAT (inet family), always by nftables."""

    def unusable(self) -> str:
        """Return why it cannot work on this host, empty if it can. Changes nothing."""

    def install(self, policy: HostPolicy) -> None:
        """Put both tables in place, whole, in one transaction.

        Raises:
            FirewallError: The kernel refused.
        """

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
        """Change elements in one transaction; what is removed goes first.

        Raises:
            FirewallError: The kernel refused; nothing of the change stands.
        """

    def read(self) -> HostPolicy | None:
        """Return the policy in force; None: missing, or not as we made it."""

    def remove(self) -> None:
        """Take both tables out; no error if there are none."""

    def drifted(self) -> bool:
        """Tell if someone else has changed what is ours; see `ContainerBackend.drifted`."""


Variant = Literal["nft", "legacy"]
"""Which of the two iptables a table was written with; both are evaluated, and any drop wins."""


class Passages(Protocol):
    """Our one rule in Docker's chain DOCKER-USER: what our own table let through passes Docker's firewall.

    It accepts packets with `names.FORWARD_MARK`, and nothing else.
    """

    def read(self) -> Mapping[Variant, bool]:
        """Return whether our rule stands in DOCKER-USER, once and first, of variants that have the chain."""

    def open(self, variant: Variant) -> None:
        """Put the rule first in the chain, once. No error where there is no such chain (any more).

        Raises:
            FirewallError: It cannot be written.
        """

    def close(self, variant: Variant) -> None:
        """Take the rule out, however often it is there; no error if it is not.

        Raises:
            FirewallError: It cannot be written.
        """
