"""Where the tests run that need a feature of the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import lab_kernel
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


def test_results_are_written_where_the_guest_may_write() -> None:
    wanted = command(("vxlan",), {RUN: "/opt/kernel-run"}, Path("/tmp/it/kernel.json"))  # noqa: S108 - nothing is written
    assert wanted[:4] == ("/opt/kernel-run", "-w", "/tmp/it", "--")  # noqa: S108 - nothing is written
    assert wanted[-2:] == ("--results", "/tmp/it/kernel.json")  # noqa: S108 - nothing is written


@pytest.mark.parametrize(("ci", "status"), [("true", 1), ("", 0)])
def test_a_skip_says_its_reason_and_is_a_failure_in_ci(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ci: str, status: int
) -> None:
    monkeypatch.setattr(lab_kernel, "host_features", lambda: ("vxlan", "direct"))
    monkeypatch.delenv(RUN, raising=False)
    monkeypatch.setenv("CI", ci)
    assert lab_kernel.main([]) == status
    assert capsys.readouterr().out.startswith("SKIPPED the tests marked kernel: this kernel has no GRE")
