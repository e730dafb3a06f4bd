"""What the driver looks at of the desired state: data."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import attrs

from netctl.model import PlacedContainer, bridge_address
from nodeagent.desired_index import DesiredIndex


@attrs.frozen
class DriverView:
    """What the broker wants of this node, as far as the driver must know it.

    Attributes:
        block: The node's, as ``a.b.c.d/len``; empty: the broker has not given it one, or took it back.
        supernet: What all nodes' blocks are cut from; empty as `block` is.
        reserve: Addresses on lease.
        containers: By id.
        by_address: Container id by address.
        connected: Whether the broker can be asked for an address now.
    """

    block: str = ""
    supernet: str = ""
    reserve: Collection[str] = frozenset()
    containers: Mapping[str, PlacedContainer] = attrs.field(factory=dict)
    by_address: Mapping[str, str] = attrs.field(factory=dict)
    connected: bool = False

    @classmethod
    def of(cls, index: DesiredIndex | None, *, connected: bool) -> DriverView:
        """Return the view of a desired state; None: there is none yet."""
        if index is None:
            return cls(connected=connected)
        return cls(
            block=index.header.block or "",
            supernet=index.header.supernet,
            reserve=index.reserve,
            containers=index.containers,
            by_address=index.by_address,
            connected=connected,
        )

    @property
    def gateway(self) -> str:
        """The bridge's address; there must be a block."""
        return bridge_address(self.block)

    @property
    def length(self) -> int:
        """Leading bits of the block that do not change."""
        return int(self.block.partition("/")[2])
