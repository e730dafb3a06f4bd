"""What of a host may be in the overlay's way, as its kernel shows it; nothing is changed."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from firewall_rules.backends.base import FirewallError
from firewall_rules.backends.forward_chains import ForwardChains, ForwardReader, supported
from firewall_rules.backends.namespaces import in_scratch_namespace
from nodeagent.kernel import decode, netlink
from nodeagent.kernel.channel import Channel, new_namespace
from nodeagent.kernel.host_facts import encapsulations, read_networks
from nodeagent.kernel.observe import is_ours
from nodeagent.kernel_state import HostChecks

_SYS: Final = Path("/proc/sys/net")
_PLAIN_KINDS: Final = ("bridge", "veth")
_TUNNEL_KINDS: Final = ("gre", "vxlan", "wireguard")
_GETROUTE: Final = 26
_REQUEST: Final = 1
_RTA_DST: Final = 1
_HEADER: Final = struct.Struct("=IHHII")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH4s")
_TOGETHER: Final = 64
"""Questions in one datagram: their answers fit the socket's buffer."""


class HostExaminer:
    """Looks at the process's own network namespace. For one thread.

    Args:
        channel: Into that namespace.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._forward = ForwardReader()

    def read(self, peers: Sequence[str]) -> HostChecks:
        """Return what is there. `peers`: addresses whose routes are looked up."""
        forward = self._forward_chains()
        return HostChecks(
            clock=time.time(),
            forwarding=_number(_SYS / "ipv4/ip_forward") == 1,
            reverse_path=_reverse_path(),
            bridge_calls=_bridge_calls(),
            forward_policies=forward.policies,
            docker_user=forward.docker_user,
            features=_features(),
            networks=read_networks(self._channel),
            routes=_routes(self._channel, peers),
        )

    def _forward_chains(self) -> ForwardChains:
        try:
            return self._forward.read()
        except FirewallError:
            # No firewall that can be read is none that drops; what nftables lacks is among the features.
            return ForwardChains({}, {})


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _bridge_calls() -> bool | None:
    number = _number(_SYS / "bridge/bridge-nf-call-iptables")
    return None if number is None else number == 1


def _reverse_path() -> Mapping[str, int]:
    """Return rp_filter of every link but ours, which the agent sets."""
    found = {}
    for folder in (_SYS / "ipv4/conf").iterdir():
        number = None if is_ours(folder.name) else _number(folder / "rp_filter")
        if number is not None:
            found[folder.name] = number
    return found


def _features() -> Mapping[str, bool]:
    able = encapsulations()
    try:
        nftables = in_scratch_namespace(supported)
    except FirewallError:
        nftables = {}
    return {kind: kind in able for kind in _TUNNEL_KINDS} | _plain_links() | dict(nftables)


def _plain_links() -> dict[str, bool]:
    """Say which links that need no settings can be made, by making them in a namespace that ends at once."""
    with contextlib.ExitStack() as stack:
        namespace = new_namespace()
        stack.callback(os.close, namespace)
        channel = stack.enter_context(Channel(namespace))
        messages = [
            netlink.link(
                netlink.NEWLINK,
                netlink.CREATE | netlink.EXCL,
                [("IFLA_IFNAME", f"try-{kind}"), netlink.link_info(kind, [])],
            )
            for kind in _PLAIN_KINDS
        ]
        refusals = channel.send(messages)
    return {kind: refusal is None for kind, refusal in zip(_PLAIN_KINDS, refusals, strict=True)}


def get_route(address: str) -> bytes:
    """Ask by which route packets to `address` leave (RTM_GETROUTE without a dump, rtnetlink(7))."""
    body = _RTMSG.pack(socket.AF_INET, 32, 0, 0, 0, 0, 0, 0, 0)
    body += _ATTRIBUTE.pack(_ATTRIBUTE.size, _RTA_DST, socket.inet_aton(address))
    return _HEADER.pack(_HEADER.size + len(body), _GETROUTE, _REQUEST, 0, 0) + body


def _routes(channel: Channel, peers: Sequence[str]) -> Mapping[str, str]:
    found = {}
    for start in range(0, len(peers), _TOGETHER):
        asked = peers[start : start + _TOGETHER]
        for address, answer in zip(asked, channel.get(*map(get_route, asked)), strict=True):
            index = 0 if answer is None else decode.route(answer.body).index
            found[address] = _name(index)
    return found


def _name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""
