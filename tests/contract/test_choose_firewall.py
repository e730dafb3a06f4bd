"""Which backend a host gets, and what it is told where there is none."""

from __future__ import annotations

import pytest

from firewall_rules.backends import libnftables
from firewall_rules.backends.base import FirewallError
from firewall_rules.backends.choose import choose
from firewall_rules.backends.iptables_client import IptablesContainerBackend

pytestmark = pytest.mark.root


@pytest.fixture
def no_nft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libnftables, "_library", lambda: None)
    monkeypatch.setattr(libnftables.shutil, "which", lambda _program: None)


def test_auto_is_nftables_where_it_works() -> None:
    assert choose("auto").name == "nftables"


def test_what_was_asked_for_is_given() -> None:
    backend = choose("iptables")
    assert isinstance(backend, IptablesContainerBackend)
    backend.close()


@pytest.mark.usefixtures("no_nft")
def test_auto_is_iptables_where_there_is_no_nftables() -> None:
    backend = choose("auto")
    assert isinstance(backend, IptablesContainerBackend)
    backend.close()


@pytest.mark.usefixtures("no_nft")
def test_what_was_asked_for_and_does_not_work_is_refused_with_what_to_do() -> None:
    with pytest.raises(FirewallError, match="install the package nftables"):
        choose("nftables")


@pytest.mark.usefixtures("no_nft")
def test_where_nothing_works_every_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(IptablesContainerBackend, "unusable", lambda _self: "no tables")
    with pytest.raises(FirewallError, match=r"nftables: .*; iptables: no tables"):
        choose("auto")
