"""What a host is, whatever we want of it: its underlay, its networks, and the tunnels its kernel can do."""

from __future__ import annotations

import contextlib
import functools
import os
from ipaddress import IPv4Interface, IPv4Network

from firewall_rules import names
from netctl.errors import KernelError
from netctl.model import Encapsulation
from nodeagent.kernel import decode, questions
from nodeagent.kernel.channel import Channel, new_namespace
from nodeagent.kernel.observe import is_ours
from nodeagent.kernel.wireguard_links import WireguardLinks
from nodeagent.kernel_state import HostFacts

_TABLE_LOCAL = 255
_KINDS: tuple[Encapsulation, ...] = ("gre", "vxlan", "wireguard")
_CLAIMING = (1, 6, 7, 8)  # RTN_UNICAST, _BLACKHOLE, _UNREACHABLE, _PROHIBIT
_EVERYWHERE = 0  # RT_SCOPE_UNIVERSE
_LOOPBACK = IPv4Network("127.0.0.0/8")
_MULTICAST = IPv4Network("224.0.0.0/4")


def read_facts(channel: Channel, wireguard: WireguardLinks, underlay: str | None) -> HostFacts:
    """See `nodeagent.kernel.base.Kernel.facts`."""
    named = dict(decode.link_name(answer.body) for answer in channel.dump(questions.dump_links()))
    addresses = [decode.link_address(a.body) for a in channel.dump(questions.dump_addresses())]
    routes = [decode.route(a.body) for a in channel.dump(questions.dump_routes(table=0))]
    found = _underlay(underlay, named, addresses, routes)
    answer = channel.get(questions.get_link(named[found.index]))[0]
    if answer is None:
        raise KernelError(f"the link of {found.address} went away", "try again")
    link = decode.link(answer.body)
    able = encapsulations()
    ends = wireguard.ends() if "wireguard" in able else ()
    return HostFacts(
        underlay=str(IPv4Interface(found.address).ip),
        underlay_device=link.name,
        underlay_mac=link.mac,
        underlay_mtu=link.mtu,
        encapsulations=tuple(one for one in able if one != "wireguard" or ends),
        firewall="none",
        host_firewall="",
        engines=(),
        networks=_networks(named, addresses, routes),
        wireguard=ends,
    )


def read_networks(channel: Channel) -> tuple[str, ...]:
    """Return every network this host knows, ours and the default route left out."""
    named = dict(decode.link_name(answer.body) for answer in channel.dump(questions.dump_links()))
    addresses = [decode.link_address(a.body) for a in channel.dump(questions.dump_addresses())]
    routes = [decode.route(a.body) for a in channel.dump(questions.dump_routes(table=0))]
    return _networks(named, addresses, routes)


def _underlay(
    wanted: str | None,
    named: dict[int, str],
    addresses: list[decode.LinkAddress],
    routes: list[decode.KernelRoute],
) -> decode.LinkAddress:
    if wanted is not None:
        return _named_underlay(wanted, named, addresses)
    defaults = sorted(
        (r for r in routes if r.destination == "0.0.0.0/0" and r.kind == 1 and r.table != _TABLE_LOCAL),
        key=lambda route: route.metric,
    )
    for route in defaults:
        own = [one for one in addresses if one.index == route.index]
        chosen = [one for one in own if one.address.partition("/")[0] == route.source]
        if own:
            return (chosen or own)[0]
    raise KernelError(
        "this host has no default route whose link has an IPv4 address",
        "say which address the other nodes reach, with --underlay",
    )


def _named_underlay(
    wanted: str, named: dict[int, str], addresses: list[decode.LinkAddress]
) -> decode.LinkAddress:
    """Return the address that is `wanted`, or the first of the link of that name that others may reach."""
    for one in addresses:
        if one.address.partition("/")[0] == wanted:
            return one
    for one in addresses:
        if named.get(one.index) == wanted and one.scope == _EVERYWHERE:
            return one
    if wanted in named.values():
        raise KernelError(
            f"the link {wanted} has no IPv4 address", "give it one, or name another link with --underlay"
        )
    raise KernelError(
        f"{wanted} is no address and no link of this host",
        "name one of the host's own addresses, or the link that has it, with --underlay",
    )


def _networks(
    named: dict[int, str], addresses: list[decode.LinkAddress], routes: list[decode.KernelRoute]
) -> tuple[str, ...]:
    """Return every network this host knows, ours and the default route left out."""
    networks = {
        IPv4Interface(one.address).network for one in addresses if not is_ours(named.get(one.index, ""))
    }
    networks.update(
        IPv4Network(route.destination)
        for route in routes
        if claims(route) and not is_ours(named.get(route.index, ""))
    )
    return tuple(
        str(network)
        for network in sorted(networks)
        if network.prefixlen > 0 and not network.subnet_of(_LOOPBACK) and not network.subnet_of(_MULTICAST)
    )


def claims(route: decode.KernelRoute) -> bool:
    """Tell whether a route that is not ours says where a network is, or that it is nowhere."""
    return route.kind in _CLAIMING and route.table != _TABLE_LOCAL and route.protocol != names.ROUTE_PROTOCOL


@functools.cache
def encapsulations() -> tuple[Encapsulation, ...]:
    """Return what this kernel can do, best first, by trying it in a namespace that ends at once.

    Raises:
        KernelError: The right to make a namespace is missing.
    """
    namespace = new_namespace()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, namespace)
        channel = stack.enter_context(Channel(namespace))
        refusals = channel.send([questions.try_kind(kind) for kind in _KINDS])
    able = [kind for kind, refusal in zip(_KINDS, refusals, strict=True) if refusal is None]
    return (*able, "direct")
