"""The typed messages between the agent and its privileged child, over a SOCK_SEQPACKET pair.

The agent sends one request at a time and reads until its answer has come; events may arrive in between
and at any other time. Descriptors travel beside an answer (SCM_RIGHTS). Namespaces are named by
container id only; rules are named by policy, never as text of a firewall.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import attrs
import msgspec

from netctl.model import Address, ContainerId, ContainerRunState, DockerId, PathState, Text, Word
from nodeagent.kernel_state import EngineContainer, HostChecks, HostFacts, HostState, ProbeTarget


@attrs.frozen
class GetFacts:
    """Answered by FactsAnswer. `underlay`: the address, or its link; None: the default route's link's."""

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

    Answered by Opened with one descriptor of records ``stream byte, 4 bytes big-endian length, data``.
    With handle 0 it is a file that reads the kept output from its beginning, and `tail` and `follow` are
    the reader's business. With another one it is a pipe of what was asked for, to its end, with ExecEnded.
    """

    container: ContainerId
    tail: int | None = None
    follow: bool = False


@attrs.frozen
class OpenCopy:
    """Copy files out of a container or into it, as a tar archive.

    Answered by Opened with one descriptor: with ``out`` to read the archive of `path` from, with ``in`` to
    write one to that is unpacked in the directory `path`. ExecEnded says what became of it.
    """

    container: ContainerId
    path: Text
    direction: Literal["out", "in"]


@attrs.frozen
class GetSandbox:
    """Is the namespace of this watched Docker endpoint there? Answered by SandboxAnswer."""

    endpoint: ContainerId


@attrs.frozen
class SandboxAnswer:
    """Whether it is; no for one that is not watched."""

    present: bool


@attrs.frozen
class Adopt:
    """Have Docker connect a running container that has no network to ours.

    Answered by Opened without a descriptor; ExecEnded says what became of it (exit code 0: it is
    connected; else the message says why not).

    Attributes:
        container: Docker's name or id of it.
        block: The node's, which Docker's network is made with.
    """

    container: Text
    block: Text


@attrs.frozen
class ListDocker:
    """Look through Docker's containers on our networks.

    Answered by Results with no entry; DockerListed follows.
    """


@attrs.frozen
class ReviveDocker:
    """Start the containers that Docker should keep running and could not start for want of us.

    Answered by Results with no entry.
    """


@attrs.frozen
class SetProbes:
    """Probe these ways from now on, and no others. Answered by Results with no entry; PathsChanged follow."""

    targets: tuple[ProbeTarget, ...]


@attrs.frozen
class GetChecks:
    """Look at what of the host may be in our way. Answered by ChecksAnswer.

    Attributes:
        peers: Underlay addresses of the peers, whose routes are looked up.
    """

    peers: Annotated[tuple[Address, ...], msgspec.Meta(max_length=4096)] = ()


@attrs.frozen
class ChecksAnswer:
    """What was found."""

    checks: HostChecks


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


@attrs.frozen
class PathsChanged:
    """Event: these ways are found otherwise than said before."""

    paths: tuple[PathState, ...]


@attrs.frozen
class FactsChanged:
    """Event: the host's addresses, links or networks are others by now; ask for its facts again."""


@attrs.frozen
class SandboxChanged:
    """Event: the namespace of a watched Docker endpoint came or went. One that is replaced goes and comes."""

    endpoint: ContainerId
    present: bool


@attrs.frozen
class DockerSeen:
    """A container on one of our networks (or made by us), as Docker says it is.

    Attributes:
        docker_id: Docker's.
        name: Docker's, without its slash.
        ours: Id of the container of the broker's that it is; empty: Docker's own user made it.
        labels: Those that mean something to us: ``netctl.*`` and Compose's project and service.
        endpoint: Docker's id of its endpoint on our network, empty: none now.
        address: Of that endpoint.
        state: In our words.
        connected: Whether it is configured to be on one of our networks, also while it is stopped.
    """

    docker_id: DockerId
    name: Text
    image: Text
    state: ContainerRunState
    ours: Word = ""
    labels: tuple[tuple[Text, Text], ...] = ()
    endpoint: Word = ""
    address: Word = ""
    exit_code: int | None = None
    connected: bool = True


@attrs.frozen
class DockerNetwork:
    """One of our networks, as Docker says it is.

    Attributes:
        endpoints: Docker's ids of the endpoints it has now.
    """

    docker_id: DockerId
    name: Text
    internal: bool
    endpoints: tuple[Word, ...] = ()


@attrs.frozen
class DockerListed:
    """Event: everything that Docker has on our networks, at one moment; after each (new) contact with it.

    Attributes:
        fresh: Docker was away (or we were) before this: what was under way then is over.
    """

    containers: tuple[DockerSeen, ...]
    networks: tuple[DockerNetwork, ...]
    fresh: bool


@attrs.frozen
class DockerChanged:
    """Event: a container on one of our networks came, changed or, with None, went."""

    docker_id: DockerId
    container: DockerSeen | None


@attrs.frozen
class DockerAway:
    """Event: Docker cannot be reached; what it had is as it was, for all that is known."""

    reason: Text


MESSAGES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        GetFacts, FactsAnswer, Observe, Observed, Apply, Results, OpenExec, Opened, KillExec, OpenLogs,
        Refused, ContainerChanged, ExecEnded, Drifted, OpenCopy, GetSandbox, SandboxAnswer, Adopt, ListDocker,
        ReviveDocker, SetProbes, PathsChanged, GetChecks, ChecksAnswer, FactsChanged,
        SandboxChanged, DockerListed, DockerChanged, DockerAway,
    )
}  # fmt: skip
"""Every message by its name."""
