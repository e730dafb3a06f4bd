"""The errors a user can meet: each has a code, says what happened, and what to do about it."""

from __future__ import annotations

from typing import ClassVar

import attrs


@attrs.define(slots=False)
class NetctlError(Exception):
    """Something the user must know about. One line, with its remedy.

    Attributes:
        message: What happened, as one line without a full stop.
        remedy: What the user can do about it, as one line; empty if nothing.
        nodes: Names of the nodes it concerns.
    """

    code: ClassVar[str] = "failed"
    exit_status: ClassVar[int] = 1

    message: str
    remedy: str = ""
    nodes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.message} ({self.remedy})" if self.remedy else self.message


class InvalidError(NetctlError):
    """A value is out of its bounds or of the wrong form."""

    code = "invalid"


class NotFoundError(NetctlError):
    """What was named does not exist."""

    code = "not-found"


class ExistsError(NetctlError):
    """What was to be made is there already."""

    code = "exists"


class RefusedError(NetctlError):
    """The broker understood, and will not do it in the present state."""

    code = "refused"


class UnauthorisedError(NetctlError):
    """The session's identity may not do this, or is not known."""

    code = "unauthorised"


class ExhaustedError(NetctlError):
    """A bound was reached: addresses, blocks, ports of a bridge, sessions."""

    code = "exhausted"


class UnavailableError(NetctlError):
    """The other side cannot be reached or does not answer."""

    code = "unavailable"


@attrs.define(slots=False)
class PendingError(NetctlError):
    """Recorded, but not applied everywhere before the deadline.

    Attributes:
        revision: At which the change is recorded.
    """

    code: ClassVar[str] = "pending"
    exit_status: ClassVar[int] = 3

    revision: int = 0


class UsageError(NetctlError):
    """The command line is not of the right form."""

    code = "usage"
    exit_status = 2


class ProtocolError(NetctlError):
    """Bytes from outside are not of the agreed form. It costs their sender the session."""

    code = "protocol"


class KernelError(NetctlError):
    """The kernel or the container engine refused an operation."""

    code = "kernel"


BY_CODE: dict[str, type[NetctlError]] = {
    kind.code: kind
    for kind in (
        NetctlError,
        InvalidError,
        NotFoundError,
        ExistsError,
        RefusedError,
        UnauthorisedError,
        ExhaustedError,
        UnavailableError,
        PendingError,
        UsageError,
        ProtocolError,
        KernelError,
    )
}
"""Every error by its code, to rebuild at the client what the broker answered."""
