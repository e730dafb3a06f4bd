"""What befalls the underlay of a lab's node: packets are lost on the way to it, its address changes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from tests.support.netns import Namespace

UNDERLAY_LINK = "eth0"
"""Every lab node's link to the underlay."""
_LENGTH = 16


@contextlib.contextmanager
def dropping(node: Namespace, *what: str) -> Iterator[None]:
    """Lose what reaches a node by the underlay, before anything else sees it.

    Args:
        node: The node's.
        what: Which packets, in nft's words; each by itself.
    """
    rules = "\n".join(f"{one} drop" for one in what)
    node.nft(f"""
        table netdev broken {{
            chain ingress {{
                type filter hook ingress device "{UNDERLAY_LINK}" priority -500;
                {rules}
            }}
        }}
    """)
    try:
        yield
    finally:
        node.nft("delete table netdev broken")


def own_address(node: Namespace) -> str:
    """Return a node's address in the underlay."""
    listed = json.loads(node.ip("-j", "addr", "show", UNDERLAY_LINK))[0]["addr_info"]
    (found,) = (entry["local"] for entry in listed if entry["family"] == "inet")
    return str(found)


def move(node: Namespace, old: str, new: str) -> None:
    """Give a node another address in the underlay."""
    node.ip("addr", "del", f"{old}/{_LENGTH}", "dev", UNDERLAY_LINK)
    node.ip("addr", "add", f"{new}/{_LENGTH}", "dev", UNDERLAY_LINK)
