"""Where the tests run that need a feature of the kernel."""

from __future__ import annotations

from tests.support.lab_kernel import PYTEST, RUN, command


def test_here_where_the_kernel_has_it() -> None:
    assert command(("gre", "vxlan", "direct"), {}) == PYTEST
    assert command(("gre", "vxlan", "direct"), {RUN: "/opt/kernel-run"}) == PYTEST


def test_in_one_boot_of_another_kernel_where_it_has_not() -> None:
    wanted = command(("vxlan", "direct"), {RUN: "/opt/kernel-run"})
    assert wanted[:2] == ("/opt/kernel-run", "--")
    assert wanted[-len(PYTEST) :] == PYTEST


def test_nowhere_says_why() -> None:
    assert RUN in str(command((), {}))
