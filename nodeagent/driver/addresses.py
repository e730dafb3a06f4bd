"""Which address a container of Docker's may have: pure rules over what is free, on lease, or recorded."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network
from typing import Final

import attrs
from immutables import Map

from netctl.errors import ExhaustedError, RefusedError, UnavailableError
from nodeagent.driver.view import DriverView
from nodeagent.endpoints import Endpoints

HELD_SECONDS: Final = 30.0
"""An address that was asked for and then not used is free again after this: Docker forgot about it."""
_REMEMBERED: Final = 4096


@attrs.frozen
class Addresses:
    """What is known of addresses beside those of endpoints.

    Attributes:
        held: Given out and without an endpoint yet, or left by one and not released yet: since when.
        freed: The how many-th release of all was its last.
        releases: How many there were.
    """

    held: Map[str, float] = attrs.field(factory=Map)
    freed: Map[str, int] = attrs.field(factory=Map)
    releases: int = 0

    def hold(self, address: str, now: float) -> Addresses:
        """Return these with `address` held."""
        return attrs.evolve(self, held=self.held.set(address, now))

    def used(self, address: str) -> Addresses:
        """Return these once an endpoint has `address`."""
        return attrs.evolve(self, held=self.held.delete(address)) if address in self.held else self

    def release(self, address: str) -> Addresses:
        """Return these with `address` free again, to be taken last of all."""
        freed = self.freed if len(self.freed) < _REMEMBERED else Map()
        releases = self.releases + 1
        return attrs.evolve(self.used(address), freed=freed.set(address, releases), releases=releases)

    def expired(self, now: float) -> Addresses:
        """Return these without what was held for too long."""
        after = self
        for address, since in self.held.items():
            if now - since >= HELD_SECONDS:
                after = after.release(address)
        return after

    def choose(self, view: DriverView, endpoints: Endpoints, taken: Collection[str]) -> str | None:
        """Return the address on lease that is free for the longest time; None: the broker must send more.

        Args:
            view: What the broker wants.
            endpoints: Those there are.
            taken: Addresses that Docker says are used.

        Raises:
            ExhaustedError: None is free, and the broker cannot send more now.
        """
        free = [
            address
            for address in view.reserve
            if address not in endpoints.by_address
            and address not in self.held
            and address not in view.by_address
            and address not in taken
        ]
        if free:
            return min(free, key=lambda address: (self.freed.get(address, 0), IPv4Address(address)))
        if not view.connected:
            raise ExhaustedError(
                "the addresses on lease here are used up, and the broker cannot be reached for more",
                "start the container again once the broker is back",
            )
        return None


def check_fixed(address: str, view: DriverView, endpoints: Endpoints) -> bool:
    """Tell whether a container may have this very address; False: the broker must be asked first.

    Raises:
        RefusedError: It may not.
        UnavailableError: The broker must be asked, and cannot be reached.
    """
    check_in_block(address, view)
    if address in endpoints.by_address:
        raise RefusedError(f"{address} is used by another container here", "choose another --ip, or none")
    recorded = view.containers.get(view.by_address.get(address, ""))
    if recorded is not None:
        if recorded.workload.engine != "docker":
            raise RefusedError(f"{address} is that of {recorded.name}", "choose another --ip, or none")
        # One of the broker's own, or one that was there before; its port stays closed for any other.
        return True
    if address in view.reserve:
        return True
    if not view.connected:
        raise UnavailableError(
            f"{address} is not on lease here, and the broker cannot be asked for it",
            "leave out --ip, or start the container again once the broker is back",
        )
    return False


def check_in_block(address: str, view: DriverView) -> None:
    """Refuse what is no container's address.

    Raises:
        RefusedError: It is not in the node's block, or is not a container's there.
    """
    block = IPv4Network(view.block)
    if IPv4Address(address) not in block:
        raise RefusedError(f"{address} is not in this node's block {block}", "choose an --ip in it, or none")
    if address in (view.gateway, str(block.network_address), str(block.broadcast_address)):
        raise RefusedError(f"{address} is not for containers", "choose another --ip, or none")
