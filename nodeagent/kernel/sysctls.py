"""The settings below /proc/sys that we may write, and how they are read and written.

/proc/sys/net shows the network namespace of whoever opens a file in it; see ip-sysctl.rst and
bridge.rst of the kernel's documentation for their meanings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from firewall_rules import names

_ROOT = Path("/proc/sys")

_HOST: Final = (
    "net/ipv4/ip_forward",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/bridge/bridge-nf-call-arptables",
)
_BRIDGE: Final = f"net/ipv4/conf/{names.BRIDGE}/route_localnet"
_DEVICE: Final = (
    "net/ipv4/conf/{}/rp_filter",
    "net/ipv4/conf/{}/send_redirects",
    "net/ipv4/conf/{}/accept_redirects",
    "net/ipv6/conf/{}/disable_ipv6",
)
_ALLOWED = re.compile(
    "|".join(
        (
            *map(re.escape, (*_HOST, _BRIDGE)),
            *(
                re.escape(path).replace(
                    re.escape("{}"), f"({names.BRIDGE}|{names.TUNNEL_PREFIX}([gv][0-9a-f]{{8}}|w[01]))"
                )
                for path in _DEVICE
            ),
        )
    )
)
_VALUES: Final = ("0", "1", "2")


def allowed(path: str, value: str) -> bool:
    """Tell whether a setting is one of those that netctl writes: a few of the host, more of our devices."""
    return _ALLOWED.fullmatch(path) is not None and value in _VALUES


def write(path: str, value: str) -> None:
    """Write a setting of the process's own network namespace.

    Raises:
        OSError: There is no such setting (here), or it takes no such value.
    """
    if _without_ipv6(path):
        return
    (_ROOT / path).write_text(value)


def read(devices: Iterable[str]) -> dict[str, str]:
    """Return the host's settings that may be ours, and those of `devices`; what is not there is left out."""
    paths = [*_HOST, _BRIDGE, *(path.format(device) for device in devices for path in _DEVICE)]
    found = {}
    for path in paths:
        try:
            found[path] = (_ROOT / path).read_text().strip()
        except OSError:
            if _without_ipv6(path):
                found[path] = "1"
    return found


def _without_ipv6(path: str) -> bool:
    """Tell whether `path` disables IPv6 on a device that has none: done already.

    A kernel may lack IPv6, and any kernel takes it from a device whose MTU is below IPv6's minimum of 1,280
    bytes (RFC 8200; addrconf_notify in net/ipv6/addrconf.c), with the device's settings.
    """
    if not path.endswith("/disable_ipv6"):
        return False
    device = path.split("/")[3]
    return (_ROOT / "net/ipv4/conf" / device).exists() and not (_ROOT / path).exists()
