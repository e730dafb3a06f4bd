"""The forms of the values that the privileged child takes.

Every check raises `netctl.errors.InvalidError`, which says what a value should be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import Any, Final, get_args

import msgspec

from firewall_rules import names
from firewall_rules.policy import Opening
from netctl.errors import InvalidError
from netctl.model import Address, Cidr, ContainerId, Mac, Name, PublicKey
from nodeagent.kernel_state import ContainerEnd

MAX_PORT: Final = 65535
MAX_VNI: Final = 2**24
MAX_GENERATION: Final = 2**62
MAX_KEY_GENERATION: Final = 2**31
_SHORTEST_BLOCK: Final = 8
_NO_HOSTS: Final = tuple(map(IPv4Network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")))
"""RFC 6890; multicast: RFC 5771."""
_MTU: Final = range(576, 65536)


def _pattern(annotated: Any) -> re.Pattern[str]:
    meta: msgspec.Meta = get_args(annotated)[1]
    return re.compile(meta.pattern or "")


ADDRESS: Final = _pattern(Address)
CIDR: Final = _pattern(Cidr)
MAC: Final = _pattern(Mac)
CONTAINER: Final = _pattern(ContainerId)
NAME: Final = _pattern(Name)
KEY: Final = _pattern(PublicKey)
TUNNEL: Final = re.compile(f"{names.TUNNEL_PREFIX}[gv][0-9a-f]{{8}}")
WIREGUARD: Final = re.compile("|".join(map(names.wireguard_device, (0, 1))))
"""Our WireGuard links take turns with two names."""
PORT: Final = re.compile(f"{names.PORT_PREFIX}[0-9a-f]{{12}}")
OUR_LINK: Final = re.compile(
    f"({names.TUNNEL_PREFIX}|{names.PORT_PREFIX}|{names.ENDPOINT_PREFIX})[0-9A-Za-z_.-]{{0,12}}"
)
"""What is to be deleted may have been named by an older version of ours; 15 bytes are all a link has."""


def refuse(what: str, value: object) -> InvalidError:
    """Return the error for a value that is no such thing."""
    return InvalidError(f"{str(value)[:80]!a} is no {what}")


def match(pattern: re.Pattern[str], value: str, what: str) -> None:
    """Return if a text has the form of a thing."""
    if pattern.fullmatch(value) is None:
        raise refuse(what, value)


def among(allowed: tuple[str, ...], value: str, what: str) -> None:
    """Return if a word is one of a few."""
    if value not in allowed:
        raise refuse(what, value)


def number(value: int, largest: int, what: str) -> None:
    """Return if a number is from 0 to `largest`."""
    if not 0 <= value <= largest:
        raise refuse(what, value)


def mtu(value: int) -> None:
    """Return if a number may be an MTU."""
    if value not in _MTU:
        raise refuse("MTU", value)


def time_or_never(value: float | None) -> None:
    """Return if a number may be a point in time; None is never."""
    # Not a number is neither.
    if value is not None and not 0 <= value < MAX_GENERATION:
        raise refuse("point in time", value)


def no_zero(text: str) -> None:
    """Return if a text can be handed to a program."""
    if "\0" in text:
        raise refuse("text of a command", text)


def interface(text: str) -> None:
    """Return if a text is an address with its length that a host may have."""
    match(CIDR, text, "address with its length")
    try:
        network = IPv4Network(text, strict=False)
    except ValueError:
        raise refuse("address with its length", text) from None
    _of_hosts(network, text)


def block(text: str) -> None:
    """Return if a text is a network that may be a node's block."""
    match(CIDR, text, "network")
    try:
        network = IPv4Network(text)
    except ValueError:
        raise refuse("network", text) from None
    _of_hosts(network, text)


def _of_hosts(network: IPv4Network, text: str) -> None:
    """Refuse what would take the host's default route, its loopback, or what hosts cannot have."""
    if network.prefixlen < _SHORTEST_BLOCK or any(network.overlaps(other) for other in _NO_HOSTS):
        raise refuse("block of a node", text)


def networks(found: Iterable[str]) -> None:
    """Return if all are networks."""
    for network in found:
        match(CIDR, network, "network")


def end_of_container(end: ContainerEnd) -> None:
    """Return if a container's end is of the agreed form."""
    interface(end.address)
    match(ADDRESS, end.gateway, "address")
    mtu(end.mtu)
    match(MAC, end.mac, "Ethernet address")


def openings(found: Iterable[Opening]) -> None:
    """Return if all openings are of the agreed form."""
    for opening in found:
        match(ADDRESS, opening.peer, "address")
        among(("tcp", "udp", "icmp", "any"), opening.protocol, "protocol")
        number(opening.port, MAX_PORT, "port")
        time_or_never(opening.expires_at)


def port(protocol: str, number_of_port: int) -> None:
    """Return if a protocol has ports, and this is one."""
    among(("tcp", "udp"), protocol, "protocol with ports")
    if number_of_port == 0:
        raise refuse("port", number_of_port)
    number(number_of_port, MAX_PORT, "port")
