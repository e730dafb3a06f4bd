"""What the privileged child refuses of requests that are no operations; see `nodeagent.helper_checks`."""

from __future__ import annotations

import re
from typing import Final

from firewall_rules import names
from netctl.errors import InvalidError
from nodeagent import helper_values as values
from nodeagent.helper_messages import Adopt, OpenCopy, OpenExec, OpenLogs, SetProbes
from nodeagent.kernel_state import ProbeTarget
from nodeagent.probe_packets import LARGEST, SMALL

_MAX_ARGUMENTS: Final = 512
_MAX_LINES: Final = 2**31
_MAX_PROBED: Final = 1 << 14
_DOCKER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
"""What Docker takes for a name or an id of a container."""
_LINK: Final = re.compile(r"(?![0-9.]+\Z)[!-.0-9;-~]{1,15}")
"""What the kernel takes for the name of a link (`dev_valid_name` in net/core/dev.c), in ASCII alone, and none
that could be meant as an address."""
_DEVICES: Final = {
    "gre": re.compile(names.TUNNEL_PREFIX + "g[0-9a-f]{8}"),
    "vxlan": re.compile(names.TUNNEL_PREFIX + "v[0-9a-f]{8}"),
    "wireguard": re.compile(names.TUNNEL_PREFIX + "w[0-9]"),
}


def check_exec(request: OpenExec) -> None:
    """Return if a command to run in a container is of the agreed form.

    Raises:
        InvalidError: It is not.
    """
    if not 1 <= len(request.argv) <= _MAX_ARGUMENTS or len(request.env) > _MAX_ARGUMENTS:
        raise InvalidError(
            f"a command has 1 to {_MAX_ARGUMENTS} arguments, and as many variables at most",
            "put long commands into a script",
        )
    for text in (*request.argv, *(part for pair in request.env for part in pair), request.user):
        values.no_zero(text)
    values.number(request.rows, values.MAX_PORT, "number of rows")
    values.number(request.columns, values.MAX_PORT, "number of columns")


def check_underlay(underlay: str) -> None:
    """Return if `underlay` is a canonical IPv4 address, or may be the name of a link.

    Raises:
        InvalidError: It is neither.
    """
    if values.ADDRESS.fullmatch(underlay) is None:
        values.match(_LINK, underlay, "address, and no name of a link")


def check_logs(request: OpenLogs) -> None:
    """Return if a request for output is of the agreed form.

    Raises:
        InvalidError: It is not.
    """
    values.number(request.tail or 0, _MAX_LINES, "number of lines")


def check_copy(request: OpenCopy) -> None:
    """Return if a request to copy files is of the agreed form.

    Raises:
        InvalidError: It is not.
    """
    values.no_zero(request.path)
    if not request.path.startswith("/"):
        raise values.refuse("absolute path", request.path)


def check_adoption(request: Adopt) -> None:
    """Return if a request to have a container join is of the agreed form.

    Raises:
        InvalidError: It is not.
    """
    values.match(_DOCKER_NAME, request.container, "name or id of a container of Docker's")
    values.block(request.block)


def check_probes(request: SetProbes, underlay_device: str) -> None:
    """Return if all ways to probe lead by tunnels of ours, or by the underlay's own link with direct.

    Args:
        request: All of them.
        underlay_device: That link; empty: it is not known yet.

    Raises:
        InvalidError: One does not; none is probed.
    """
    values.number(len(request.targets), _MAX_PROBED, "number of ways to probe")
    ways = {(target.peer, target.encapsulation) for target in request.targets}
    if len(ways) < len(request.targets):
        raise InvalidError("a way to probe is there twice", "restart the node agent")
    for target in request.targets:
        _check_way(target, underlay_device)


def _check_way(target: ProbeTarget, underlay_device: str) -> None:
    values.match(values.NAME, target.peer, "name of a node")
    for device in (target.device, *target.also):
        if target.encapsulation == "direct":
            values.among((underlay_device,) if underlay_device else (), device, "the underlay's link")
        elif target.encapsulation in _DEVICES:
            values.match(_DEVICES[target.encapsulation], device, "tunnel of ours")
        else:
            raise values.refuse("way to a peer", target.encapsulation)
    values.match(values.ADDRESS, target.source, "address")
    values.match(values.ADDRESS, target.destination, "address")
    if target.encapsulation in ("vxlan", "direct"):
        values.match(values.MAC, target.mac, "Ethernet address")
    elif target.mac:
        raise values.refuse("Ethernet address of a link that has none", target.mac)
    if not SMALL <= target.mtu <= LARGEST:
        raise values.refuse("size of a probe", target.mtu)
