"""`netctl broker init` and `netctl lab up`: what was typed is what is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from netctl.lab import registry
from netctl.lab.topology import LabSpec, Wish
from tests.unit.netctl.cli.conftest import Netctl


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the options of the broker that a command makes."""
    asked: dict[str, Any] = {}

    def init(directory: Path, **options: Any) -> str:
        asked.update(options, directory=directory)
        return "netctl-invite-abc"

    monkeypatch.setattr("netctl.broker.service.init", init)
    return asked


def test_a_broker_is_made_without_encryption_unless_it_is_asked_for(
    netctl: Netctl, made: dict[str, Any]
) -> None:
    assert netctl("broker", "init", "--dir", "/srv/b").out == "netctl-invite-abc\n"
    assert (made["encryption"], made["vxlan_port"]) == ("off", 4789)
    assert netctl("broker", "init", "--encryption", "required", "--vxlan-port", "8472").status == 0
    assert (made["encryption"], made["vxlan_port"]) == ("required", 8472)


@pytest.mark.parametrize(
    "options", [("--encryption", "maybe"), ("--vxlan-port", "0"), ("--vxlan-port", "65536")]
)
def test_no_broker_is_made_of_nonsense(
    netctl: Netctl, made: dict[str, Any], options: tuple[str, ...]
) -> None:
    assert netctl("broker", "init", *options).status == 2
    assert made == {}


@pytest.fixture
def wishes(monkeypatch: pytest.MonkeyPatch, config: Path) -> list[Wish]:
    """Return what labs were asked to be."""
    asked: list[Wish] = []

    @attrs.frozen
    class Status:
        spec: LabSpec
        nodes: tuple[()] = ()

    def up(directory: str, wish: Wish, _tell: object) -> Status:
        asked.append(wish)
        return Status(LabSpec(directory))

    monkeypatch.setattr("netctl.lab.runner.up", up)
    monkeypatch.setattr(registry, "DEFAULT_LAB", config / "lab")
    return asked


def test_a_lab_with_encapsulations_and_encryption(netctl: Netctl, wishes: list[Wish]) -> None:
    assert netctl("lab", "up").status == 0
    assert netctl("lab", "up", "--encapsulation", "vxlan,wireguard", "--encryption", "required").status == 0
    assert wishes == [Wish(), Wish(encapsulation="vxlan,wireguard", encryption="required")]


@pytest.mark.parametrize(
    "options", [("--encapsulation", "ipip"), ("--encapsulation", "gre,gre"), ("--encryption", "on")]
)
def test_no_lab_is_made_of_nonsense(netctl: Netctl, wishes: list[Wish], options: tuple[str, ...]) -> None:
    shown = netctl("lab", "up", *options)
    assert (shown.status, shown.out, wishes) == (2, "", [])
    assert shown.err.startswith("error: ")
