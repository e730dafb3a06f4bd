"""The typed messages between the agent and its privileged child, over a SOCK_SEQPACKET pair.

The agent sends one request at a time and reads until its answer has come; events may arrive in between
and at any other time. Descriptors travel beside an answer (SCM_RIGHTS). Namespaces are named by
container id only; rules are named by policy, never as text of a firewall.
"""

from __future__ import annotations

from typing import Any

import attrs

from netctl.model import ContainerId, Text, Word
from nodeagent.kernel_state import EngineContainer, HostFacts, HostState


@attrs.frozen
class GetFacts:
    """Answered by FactsAnswer. `underlay`: the address to use; None: the default route's link's."""

    underlay: str | None


@attrs.frozen
class FactsAnswer:
    """What the host is."""

    facts: HostFacts


@attrs.frozen
class Observe:
    """Read everything of ours. Answered by Observed."""


@attrs.frozen
class Observed:
    """What is."""

    state: HostState


@attrs.frozen
class Apply:
    """Do operations in their order. Answered by Results.

    Attributes:
        operations: Each as (name in `nodeagent.ops.OPS`, body), since a union has no tag of its own.
    """

    operations: tuple[tuple[Word, Any], ...]


@attrs.frozen
class Results:
    """One text for each operation: empty, or why it failed.

    One that failed does not stop those after it, except those that it guards or that build on it: the
    same container's, and every link if the host's rules failed. They are not tried, and their text says so.
    """

    errors: tuple[Text, ...]


@attrs.frozen
class OpenExec:
    """Run a command in a container.

    Answered by Opened with descriptors: with a terminal one (its master); else stdin (write end), stdout
    and stderr (read ends).
    """

    container: ContainerId
    argv: tuple[Text, ...]
    env: tuple[tuple[Text, Text], ...] = ()
    user: Word = ""
    tty: bool = False
    rows: int = 0
    columns: int = 0


@attrs.frozen
class Opened:
    """The command runs; `handle` names it until ExecEnded."""

    handle: int


@attrs.frozen
class KillExec:
    """The user went away. Answered by Results with no entry."""

    handle: int


@attrs.frozen
class OpenLogs:
    """Read what a container has written so far.

    Answered by Opened with handle 0 and one descriptor that reads the kept output from its beginning:
    records of ``stream byte, 4 bytes big-endian length, data``.
    """

    container: ContainerId


@attrs.frozen
class Refused:
    """A request was not understood, not allowed, or failed whole."""

    message: Text


@attrs.frozen
class ContainerChanged:
    """Event: a container's state changed by itself; None: its engine forgot it."""

    container: ContainerId
    state: EngineContainer | None


@attrs.frozen
class ExecEnded:
    """Event: an exec's command ended with `exit_code`; 125 and a message: it could not run."""

    handle: int
    exit_code: int
    message: Text = ""


@attrs.frozen
class Drifted:
    """Event: someone else changed something of ours; observe again.

    Attributes:
        what: One line for the log.
    """

    what: Text


MESSAGES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        GetFacts, FactsAnswer, Observe, Observed, Apply, Results, OpenExec, Opened, KillExec, OpenLogs,
        Refused, ContainerChanged, ExecEnded, Drifted,
    )
}  # fmt: skip
"""Every message by its name."""
