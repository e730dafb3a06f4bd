"""The address plan: which block a node gets, and which address a container gets. Pure arithmetic.

The supernet is cut into blocks of one size, numbered from 0; block 0 is reserved. In a block the first
address is the bridge's; its network and broadcast addresses are never given out (RFC 1122 3.2.1.3).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from itertools import chain

from netctl.broker.snapshot import Node, Snapshot
from netctl.errors import ExhaustedError, InvalidError, RefusedError
from netctl.model import NodeFacts

MAX_NODES = 4095
"""A pair of block numbers makes the pair's 24-bit VXLAN identifier, so a number has 12 bits."""
_SMALLEST_BLOCK = 30
FIRST_CONTAINER = 2
"""Host numbers: 0 is the network, 1 the bridge."""


def check_plan(supernet: str, block_size: int) -> None:
    """Check what an operator wants to cut into blocks.

    Args:
        supernet: Network as ``a.b.c.d/len``.
        block_size: Prefix length of a block.

    Raises:
        InvalidError: No canonical unicast network, or no room for one block beside the reserved one.
    """
    try:
        network = IPv4Network(supernet)
    except ValueError as error:
        raise InvalidError(
            f"{supernet[:80]!r} is no IPv4 network", "write it as 10.0.0.0/8, without host bits"
        ) from error
    # 0/8, 127/8 and 240/4 are never routed between hosts (RFC 6890), 224/4 is multicast, 169.254/16 stays
    # on a link; none of them can carry an overlay, and the firewall closes them to every container.
    forbidden = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")
    if any(network.overlaps(IPv4Network(other)) for other in forbidden):
        raise InvalidError(
            f"{supernet} holds addresses that no host may have",
            "use a private range: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or a part of one",
        )
    if not network.prefixlen < block_size <= _SMALLEST_BLOCK:
        raise InvalidError(
            f"blocks of /{block_size} cannot be cut from {supernet}",
            f"use a block size from {network.prefixlen + 1} to {_SMALLEST_BLOCK}",
        )


def usable_blocks(supernet: str, block_size: int) -> int:
    """Return how many nodes the plan has room for: all blocks but the reserved first, at most MAX_NODES."""
    return min((1 << (block_size - IPv4Network(supernet).prefixlen)) - 1, MAX_NODES)


def block_at(supernet: str, block_size: int, index: int) -> str:
    """Return the block of this number as ``a.b.c.d/len``."""
    first = int(IPv4Network(supernet).network_address)
    return f"{IPv4Address(first + index * 2 ** (32 - block_size))}/{block_size}"


def give_block(snapshot: Snapshot, name: str, facts: NodeFacts) -> tuple[int, str]:
    """Choose the block of a node that joins: the lowest that is free and collides with no host.

    Blocks that overlap a network or the underlay address of any node, the joiner included, or an address
    of the broker are skipped: a route to them would take packets away from the overlay, or the overlay
    from them.

    Returns:
        Its number and the block.

    Raises:
        RefusedError: A network of the joiner overlaps a block given to another node, or all free blocks
            collide with something.
        ExhaustedError: All blocks are given out or held.
    """
    count = usable_blocks(snapshot.supernet, snapshot.block_size)
    given = {node.index: node for node in snapshot.nodes.values()}
    _check_host(snapshot, name, facts, given)
    collides = bytearray(count + 1)
    for network in _networks(snapshot, facts):
        low, high = _overlap(snapshot, network)
        collides[low : high + 1] = b"\1" * len(collides[low : high + 1])
    skipped = ""
    for index in range(1, count + 1):
        if index in given:
            continue
        block = block_at(snapshot.supernet, snapshot.block_size, index)
        if block in snapshot.held:
            continue
        if not collides[index]:
            return index, block
        skipped = skipped or block
    if skipped:
        culprit = next(n for n in _networks(snapshot, facts) if overlaps(n, skipped))
        raise RefusedError(
            f"every free block collides with a network of a node, e.g. {skipped} with {culprit}",
            "remove that network, or make a broker with another supernet (`netctl broker init --supernet`)",
        )
    raise ExhaustedError(
        f"all {count} blocks of {snapshot.supernet} are given out or not yet acknowledged as free",
        "remove a node (`netctl node rm`, with --force where it cannot be reached)",
    )


def give_address(block: str, cursor: int, taken: Callable[[str], bool]) -> tuple[str, int]:
    """Choose the address of a new container: the next free one after the last given out.

    Args:
        block: The node's.
        cursor: Host number last given out; 0: none yet.
        taken: Whether an address is in use, held or on lease.

    Returns:
        The address and its host number, the next cursor.

    Raises:
        ExhaustedError: None is free.
    """
    network = IPv4Network(block)
    first = int(network.network_address)
    end = network.num_addresses - 1
    start = max(cursor + 1, FIRST_CONTAINER)
    for number in chain(range(start, end), range(FIRST_CONTAINER, min(start, end))):
        address = str(IPv4Address(first + number))
        if not taken(address):
            return address, number
    count = end - FIRST_CONTAINER
    raise ExhaustedError(
        f"all {count} addresses of {block} are in use, on lease or not yet acknowledged as free",
        "remove containers, or run this one on another node",
    )


def addresses(block: str) -> int:
    """Return how many addresses a block has, its own, its bridge's and its broadcast's among them."""
    return IPv4Network(block).num_addresses


def host_number(block: str, address: str) -> int:
    """Return the position of `address` within its block."""
    return int(IPv4Address(address)) - int(IPv4Network(block).network_address)


def overlaps(one: str, other: str) -> bool:
    """Return whether two networks share an address."""
    low, high = _range(one)
    other_low, other_high = _range(other)
    return low <= other_high and other_low <= high


def contains(network: str, inner: str) -> bool:
    """Return whether all of `inner` lies in `network`."""
    low, high = _range(network)
    inner_low, inner_high = _range(inner)
    return low <= inner_low and inner_high <= high


def _check_host(snapshot: Snapshot, name: str, facts: NodeFacts, given: dict[int, Node]) -> None:
    indexes = sorted(given)
    for network in (*facts.networks, f"{facts.underlay}/32"):
        low, high = _overlap(snapshot, network)
        at = bisect_left(indexes, low)
        if at < len(indexes) and indexes[at] <= high:
            owner = given[indexes[at]]
            raise RefusedError(
                f"network {network} of {name} overlaps block {owner.block} of node {owner.name}",
                f"remove {network} from {name}, or use another supernet (`netctl broker init --supernet`)",
                (owner.name,),
            )


def _networks(snapshot: Snapshot, joiner: NodeFacts) -> Iterator[str]:
    yield from snapshot.closed
    everyone: Iterable[NodeFacts] = (joiner, *(node.facts for node in snapshot.nodes.values()))
    for facts in everyone:
        yield f"{facts.underlay}/32"
        yield from facts.networks


def _overlap(snapshot: Snapshot, network: str) -> tuple[int, int]:
    """Return the first and last number of the blocks that overlap `network`; last < first: none."""
    base, end = _range(snapshot.supernet)
    low, high = _range(network)
    low, high = max(low, base), min(high, end)
    if high < low:
        return 1, 0
    bits = 32 - snapshot.block_size
    return (low - base) >> bits, (high - base) >> bits


def _range(network: str) -> tuple[int, int]:
    address, _, length = network.partition("/")
    size = 2 ** (32 - int(length))
    first = int(IPv4Address(address)) & -size
    return first, first + size - 1
