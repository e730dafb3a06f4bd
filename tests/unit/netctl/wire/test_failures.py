"""Errors on their way from the broker to a client."""

from __future__ import annotations

import pytest

from netctl.errors import BY_CODE, NetctlError, PendingError
from netctl.wire.failures import error_of, failure_of
from netctl.wire.messages import Failure


@pytest.mark.parametrize("kind", sorted(BY_CODE.values(), key=lambda kind: kind.code))
def test_every_error_comes_back_as_it_was(kind: type[NetctlError]) -> None:
    more = {"revision": 7} if kind is PendingError else {}
    error = kind("something happened", "do this", ("n1", "n2"), **more)
    again = error_of(failure_of(error))
    assert type(again) is kind
    assert (again.message, again.remedy, again.nodes) == (error.message, error.remedy, error.nodes)
    assert getattr(again, "revision", None) == getattr(error, "revision", None)


def test_a_code_of_a_newer_broker_is_still_an_error() -> None:
    error = error_of(Failure("new-code", "something", "do this", ("n1",)))
    assert type(error) is NetctlError
    assert (error.message, error.remedy, error.nodes) == ("something", "do this", ("n1",))


def test_a_long_text_is_cut_to_what_a_message_takes() -> None:
    failure = failure_of(NetctlError("x" * 5000, "y" * 5000))
    assert (len(failure.message), len(failure.remedy)) == (4096, 4096)
