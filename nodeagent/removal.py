"""Taking everything of ours out of a host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs

from nodeagent.diff import diff, removal
from nodeagent.helper_client import Helper
from nodeagent.kernel_state import HostState

TRIES: Final = 3


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


def take_out(helper: Helper, found: Mapping[str, str]) -> Removal:
    """Take everything of ours out, and set back what was set otherwise before us. Done twice, it is no error.

    Args:
        helper: The privileged child.
        found: Settings of the host, by path, as they were before us.

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
        observed = helper.observe()
        if not left and not diff(gone, observed, {}):
            return Removal(observed, (), writes)
    return Removal(observed, left or ("something of ours comes back after it was removed",), writes)
