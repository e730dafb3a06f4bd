"""Docker's endpoints on this node: what its driver was asked for, beside what the broker wants. Data.

An endpoint is one container's place on one of our Docker networks. It has a key (the first 32 hexadecimal
digits of Docker's id of it), by which its port, its namespace and its layer 1 are known, and an address, by
which the broker's permits concern it. It comes and goes with every start of its container.
"""

from __future__ import annotations

import attrs
from immutables import Map

from firewall_rules.policy import Publication

KEY_DIGITS = 32


@attrs.frozen
class Endpoint:
    """One endpoint.

    Attributes:
        key: Of it.
        network: Docker's id of its network.
        address: Out of the node's block.
        sandbox: Name of its namespace's file in Docker's folder; empty: it has not joined one (any more),
            and has neither port nor rules.
        internal: Its network leads nowhere but to connected containers.
        publications: Ports of the node that lead to it.
        container: Id of the container, as the broker knows it; empty: not known yet. Only when the broker
            has recorded `address` for this very container is its port opened.
    """

    key: str
    network: str
    address: str
    sandbox: str = ""
    internal: bool = False
    publications: tuple[Publication, ...] = ()
    container: str = ""


@attrs.frozen
class Endpoints:
    """All endpoints of a node; a persistent value.

    Attributes:
        by_key: Every one.
        by_address: Its key, by address.
    """

    by_key: Map[str, Endpoint] = attrs.field(factory=Map)
    by_address: Map[str, str] = attrs.field(factory=Map)

    def with_(self, endpoint: Endpoint) -> Endpoints:
        """Return these with `endpoint`, in the place of what had its key."""
        old = self.by_key.get(endpoint.key)
        base = self if old is None else self.without(old.key)
        return Endpoints(
            base.by_key.set(endpoint.key, endpoint), base.by_address.set(endpoint.address, endpoint.key)
        )

    def without(self, key: str) -> Endpoints:
        """Return these without the one with `key`, if it is there."""
        old = self.by_key.get(key)
        if old is None:
            return self
        by_address = self.by_address
        if by_address.get(old.address) == key:
            by_address = by_address.delete(old.address)
        return Endpoints(self.by_key.delete(key), by_address)
