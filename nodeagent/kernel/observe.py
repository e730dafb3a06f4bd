"""Reading what of ours is in a kernel: the node's own links, and the ends inside containers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import get_args

import attrs

from firewall_rules import names
from netctl.errors import KernelError
from netctl.model import Encapsulation
from nodeagent.kernel import decode, questions, sysctls
from nodeagent.kernel.addresses import addresses_of
from nodeagent.kernel.base import Links
from nodeagent.kernel.channel import Channel
from nodeagent.kernel.wireguard_links import DEVICES as WIREGUARD
from nodeagent.kernel.wireguard_links import WireguardLinks
from nodeagent.kernel_state import Bridge, ContainerEnd, ContainerPort, Route, Tunnel


def read_links(channel: Channel, wireguard: WireguardLinks, namespaces: Mapping[str, int]) -> Links:
    """Read everything of ours, the node's by `channel`, the ends through `namespaces`.

    Raises:
        KernelError: The kernel does not list what it has.
    """
    named: dict[int, str] = {}
    ours: dict[str, decode.Link] = {}
    waiting: list[decode.Link] = []
    for answer in channel.dump(questions.dump_links()):
        index, name = decode.link_name(answer.body)
        named[index] = name
        if is_ours(name):
            ours[name] = decode.link(answer.body)
        elif name.startswith(names.ENDPOINT_PREFIX):
            waiting.append(decode.link(answer.body))
    # A far end that Docker has not moved, or has moved back, goes with its port; without one it is a stray.
    strays = [link for link in waiting if not named.get(link.peer, "").startswith(names.PORT_PREFIX)]
    bridge = ours.get(names.BRIDGE)
    keyed = {n: wireguard.read(link) for n, link in ours.items() if n in WIREGUARD}
    tunnels = {
        n: _tunnel(link)
        for n, link in ours.items()
        if n.startswith(names.TUNNEL_PREFIX) and n not in WIREGUARD
    }
    devices = [*(() if bridge is None else (bridge.name,)), *tunnels, *keyed]
    return Links(
        bridge=None if bridge is None else _bridge(channel, bridge),
        sysctls=sysctls.read(devices),
        tunnels=tunnels,
        routes=_routes(channel, named),
        ports={
            link.name: ContainerPort(
                device=link.name,
                mtu=link.mtu,
                up=link.up,
                on_bridge=bridge is not None and link.master == bridge.index,
                guarded=link.guarded,
            )
            for link in (*ours.values(), *strays)
            if link.name.startswith((names.PORT_PREFIX, names.ENDPOINT_PREFIX))
        },
        ends=_ends(namespaces),
        wireguard=keyed,
    )


def is_ours(name: str) -> bool:
    """Tell whether a link of the node is one of ours, by its name.

    The far ends of Docker's endpoints are not among them: Docker moves and renames them.
    """
    return name == names.BRIDGE or name.startswith((names.PORT_PREFIX, names.TUNNEL_PREFIX))


def _bridge(channel: Channel, link: decode.Link) -> Bridge | None:
    if link.kind != "bridge":
        return None
    return Bridge(address=several(addresses_of(channel, link.index)), mtu=link.mtu, mac=link.mac, up=link.up)


def _tunnel(link: decode.Link) -> Tunnel:
    """Read a tunnel. A device of our name and another kind has no encapsulation, so that it is replaced."""
    kinds: tuple[Encapsulation, ...] = get_args(Encapsulation)
    kind: Encapsulation = next((kind for kind in kinds if kind == link.kind), "none")
    return Tunnel(
        device=link.name,
        encapsulation=kind,
        local=link.local,
        remote=link.remote,
        mtu=link.mtu,
        vni=link.vni,
        port=link.port,
        mac=link.mac if kind == "vxlan" else "",
        up=link.up,
    )


def read_tunnel(channel: Channel, device: str) -> Tunnel | None:
    """Read one tunnel device; None: there is none of that name."""
    answer = channel.get(questions.get_link(device))[0]
    return None if answer is None else _tunnel(decode.link(answer.body))


def _routes(channel: Channel, named: Mapping[int, str]) -> dict[str, Route]:
    found = [r for r in own_routes(channel) if r.index in named]
    fixed = fixed_neighbours(channel) if any(route.gateway for route in found) else {}
    return {
        route.destination: Route(
            block=route.destination,
            device=named[route.index],
            source=route.source,
            via=route.gateway,
            via_mac=fixed.get((route.index, route.gateway), ""),
            mtu=route.mtu,
        )
        for route in found
    }


def own_routes(channel: Channel) -> list[decode.KernelRoute]:
    """Return the routes that carry our protocol number."""
    answers = channel.dump(questions.dump_routes(protocol=names.ROUTE_PROTOCOL))
    routes = (decode.route(answer.body) for answer in answers)
    return [route for route in routes if route.protocol == names.ROUTE_PROTOCOL]


def fixed_neighbours(channel: Channel) -> dict[tuple[int, str], str]:
    """Return the Ethernet addresses of permanent neighbours, by link index and address."""
    neighbours = (decode.neighbour(a.body) for a in channel.dump(questions.dump_neighbours()))
    return {(n.index, n.address): n.mac for n in neighbours if n.permanent}


# --- inside containers ------------------------------------------------------------------------------


@attrs.frozen
class SeenEnd:
    """A container's end with what is needed to change it.

    Attributes:
        peer: Index of the near end in the node's namespace.
        addresses: All of it, with their lengths.
    """

    index: int
    peer: int
    addresses: tuple[str, ...]
    end: ContainerEnd


def _ends(namespaces: Mapping[str, int]) -> dict[str, ContainerEnd]:
    ends = {}
    for container, namespace in namespaces.items():
        try:
            with Channel(namespace) as channel:
                seen = read_end(channel)
        except KernelError:
            # The namespace ended while we looked; its engine will say so.
            continue
        if seen is not None:
            ends[container] = seen.end
    return ends


def read_end(channel: Channel) -> SeenEnd | None:
    """Read the end inside a container; None: it has no veth of the name that ours have."""
    answer, loopback = channel.get(questions.get_link(names.CONTAINER_LINK), questions.get_loopback())
    if answer is None:
        return None
    link = decode.link(answer.body)
    if link.kind != "veth":
        return None
    addresses = addresses_of(channel, link.index)
    # Nothing is routed along a link that is down.
    routes = [decode.route(a.body) for a in channel.dump(questions.dump_routes())] if link.up else []
    gateways = (r.gateway or "-" for r in routes if r.destination == "0.0.0.0/0")
    return SeenEnd(
        index=link.index,
        peer=link.peer,
        addresses=tuple(addresses),
        end=ContainerEnd(
            address=several(addresses),
            gateway=several(gateways),
            mtu=link.mtu,
            mac=link.mac,
            up=link.up,
            loopback=loopback is not None and decode.link_up(loopback.body),
        ),
    )


def several(values: Iterable[str]) -> str:
    """Return the one value there should be; several joined, which equals no wanted one; none: empty."""
    return ",".join(sorted(values))
