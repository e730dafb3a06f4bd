"""Errors as they travel: `netctl.errors` to a Failure message, and back."""

from __future__ import annotations

from netctl.errors import BY_CODE, NetctlError, PendingError
from netctl.wire.messages import Failure


def failure_of(error: NetctlError) -> Failure:
    """Return the answer that tells a client of an error."""
    revision = error.revision if isinstance(error, PendingError) else 0
    return Failure(error.code, error.message[:4096], error.remedy[:4096], error.nodes, revision)


def error_of(failure: Failure) -> NetctlError:
    """Rebuild the error that was answered; an unknown code becomes a plain `NetctlError`."""
    kind = BY_CODE.get(failure.code, NetctlError)
    if kind is PendingError:
        return PendingError(failure.message, failure.remedy, failure.nodes, failure.revision)
    return kind(failure.message, failure.remedy, failure.nodes)
