"""Taking everything of ours out of a host."""

from __future__ import annotations

import select
import time
from collections.abc import Mapping
from typing import Final

import attrs

from nodeagent.diff import diff, removal
from nodeagent.helper_client import Helper
from nodeagent.helper_messages import ContainerChanged
from nodeagent.kernel_state import HostState

TRIES: Final = 3
PATIENCE: Final = 30.0
"""Seconds an engine may take to remove its containers, where somebody waits for that."""
_COMES_BACK: Final = "something of ours comes back after it was removed"


@attrs.frozen
class Removal:
    """What became of it.

    Attributes:
        observed: What is there now.
        left: Why it is not all gone, one line each; empty: it is.
        writes: Operations sent to the helper.
    """

    observed: HostState
    left: tuple[str, ...]
    writes: int


def take_out(helper: Helper, found: Mapping[str, str], *, patience: float = PATIENCE) -> Removal:
    """Take everything of ours out, and set back what was set otherwise before us. Done twice, it is no error.

    Containers that Docker's users made stay, cut off from the overlay.

    Args:
        helper: The privileged child.
        found: Settings of the host, by path, as they were before us.
        patience: Seconds to wait for an engine that takes its own time to remove containers.

    Raises:
        KernelError: The host cannot be read, or an operation is not allowed.
        UnavailableError: The helper is gone.
    """
    gone = HostState(sysctls=found)
    observed = helper.observe()
    left: tuple[str, ...] = ()
    writes = 0
    for _ in range(TRIES):
        operations = removal(observed, found)
        writes += len(operations)
        left = tuple(error for error in helper.apply(operations) if error)
        going = {identifier for identifier, one in observed.containers.items() if one.removes_later}
        _wait(helper, going, patience)
        observed = helper.observe()
        if not left and not diff(gone, observed, {}):
            return Removal(observed, (), writes)
        patience = 0.0
    slow = sum(one.removes_later for one in observed.containers.values())
    if not left:
        left = (f"{slow} containers are still being removed",) if slow else (_COMES_BACK,)
    return Removal(observed, left, writes)


def _wait(helper: Helper, going: set[str], patience: float) -> None:
    """Wait until an event told of each of some containers that it is gone."""
    deadline = time.monotonic() + patience
    while going and (left := deadline - time.monotonic()) > 0:
        select.select([helper.fileno()], [], [], left)
        for event in helper.events():
            if isinstance(event, ContainerChanged) and event.state is None:
                going.discard(event.container)
