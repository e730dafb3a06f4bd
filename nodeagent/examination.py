"""The agent's answer to `Examine`: its host looked at by the helper, and judged."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from netctl.errors import KernelError
from netctl.model import Finding
from netctl.wire.messages import Examined
from nodeagent.checkup import Subject, examine
from nodeagent.desired_index import DesiredIndex
from nodeagent.helper_client import Helper
from nodeagent.kernel_state import HostFacts

_UNNAMED: Final = "this node"
"""What a node is called that the broker has not told anything yet."""


def examined(
    helper: Helper | None,
    facts: HostFacts | None,
    index: DesiredIndex | None,
    now: Callable[[], float] = time.time,
) -> Examined:
    """Return what is not as it should be on this host.

    Args:
        helper: Looks at the host; None: it is gone, and will be started again.
        facts: The latest ones.
        index: What the broker wants; None: it has not said yet.
        now: Seconds since 1970.

    Raises:
        UnavailableError: The helper is gone.
    """
    name = _UNNAMED if index is None else index.header.name
    if helper is None or facts is None:
        return _unseen(name, "the privileged half of its agent is being started again", now())
    peers = {} if index is None else index.peers
    try:
        checks = helper.checks(sorted({peer.underlay for peer in peers.values()}))
    except KernelError as error:
        return _unseen(name, error.message, now())
    header = None if index is None else index.header
    return Examined(examine(checks, facts, Subject(name, header, peers)), checks.clock)


def _unseen(name: str, why: str, now: float) -> Examined:
    finding = Finding("error", name, f"this host cannot be looked at: {why}", "see the node agent's log")
    return Examined((finding,), now)
