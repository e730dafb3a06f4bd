"""The node's WireGuard keys in their files."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from netctl.wire.noise import public_of
from nodeagent.kernel.wireguard_keys import WireguardKeys


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "wireguard"


def test_a_key_is_made_once_and_kept(directory: Path) -> None:
    keys = WireguardKeys(directory)
    assert keys.public() == {}
    first = keys.make(1)
    assert keys.make(1) == first
    assert WireguardKeys(directory).make(1) == first
    assert first.public == public_of(first.private).hex()
    second = keys.make(2)
    assert keys.public() == {1: first.public, 2: second.public}
    assert first.public != second.public


def test_only_root_reads_a_key_and_no_repr_shows_it(directory: Path) -> None:
    key = WireguardKeys(directory).make(1)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()] == [0o600]
    assert key.private.hex() not in repr(key)
    assert repr(key.private) not in repr(key)


def test_a_destroyed_key_is_nowhere_in_its_file(directory: Path) -> None:
    keys = WireguardKeys(directory)
    key = keys.make(1)
    kept = directory / "1.key"
    # Another name of the same file shows what was left on the disk.
    (directory / "alias").hardlink_to(kept)
    keys.destroy(1)
    keys.destroy(1)
    assert not kept.exists()
    assert not (directory / "alias").read_bytes().strip(b"\0")
    assert keys.public() == {}
    assert keys.make(1) != key


@pytest.mark.parametrize(
    "damaged", [b"", b"ab" * 32 + b"\n", b"\0" * 130, b"ab" * 32 + b"\n" + b"xy" * 32 + b"\n"]
)
def test_a_damaged_key_is_made_anew(directory: Path, damaged: bytes) -> None:
    keys = WireguardKeys(directory)
    keys.make(1)
    (directory / "1.key").write_bytes(damaged)
    assert keys.public() == {}
    key = keys.make(1)
    assert keys.public() == {1: key.public}


def test_files_of_others_are_no_keys(directory: Path) -> None:
    keys = WireguardKeys(directory)
    key = keys.make(7)
    for name in ("0.key", "x.key", "1.key.new", "7.key~"):
        (directory / name).write_bytes((directory / "7.key").read_bytes())
    assert keys.public() == {7: key.public}
