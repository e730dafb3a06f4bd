"""Which ports of the node lead to which container: pure but for the probe that it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Literal

from firewall_rules.policy import Publication
from netctl.errors import RefusedError
from nodeagent.driver.calls import PortMapping

FIRST_FREE_PORT: Final = 49153
LAST_PORT: Final = 65535
"""The range that Docker takes ports from where its user names none."""

Probe = Callable[[Literal["tcp", "udp"], str, int], str]
"""Says why a port of the node (protocol, address or empty for all, number) cannot be had; empty: it can."""


def publish(
    mappings: Sequence[PortMapping], address: str, others: Iterable[Publication], probe: Probe
) -> tuple[Publication, ...]:
    """Return what is published for a container.

    Args:
        mappings: What its user asked for.
        address: The container's.
        others: What is published here already.
        probe: Asked of every port before it is taken.

    Raises:
        RefusedError: A port cannot be had.
    """
    taken: dict[tuple[str, int], set[str]] = {}
    for other in others:
        taken.setdefault((other.protocol, other.host_port), set()).add(other.host_address)
    made: list[Publication] = []
    # What asks for one port only goes first: no range may take it away.
    for mapping in sorted(mappings, key=lambda m: (not m.host_port, m.host_port_end - m.host_port)):
        port = _port(mapping, taken, probe)
        taken.setdefault((mapping.protocol, port), set()).add(mapping.host_address)
        made.append(Publication(mapping.protocol, mapping.host_address, port, address, mapping.port))
    return tuple(sorted(set(made)))


def _port(mapping: PortMapping, taken: dict[tuple[str, int], set[str]], probe: Probe) -> int:
    first, last = mapping.host_port, mapping.host_port_end
    if not first:
        first, last = FIRST_FREE_PORT, LAST_PORT
    why = "port is already allocated"
    for port in range(first, last + 1):
        if _conflict(mapping.host_address, taken.get((mapping.protocol, port), set())):
            why = "port is already allocated"
            continue
        why = probe(mapping.protocol, mapping.host_address, port)
        if not why:
            return port
    where = mapping.host_address or "0.0.0.0"  # noqa: S104 - only said
    ports = str(first) if first == last else f"{first}-{last}"
    raise RefusedError(f"Bind for {where}:{ports} failed: {why}", "choose another port with -p")


def _conflict(address: str, taken: set[str]) -> bool:
    """Tell whether an address (empty: all) meets one of those that are taken."""
    return bool(taken) and (not address or address in taken or "" in taken)
