"""The private key stays in a file that only its owner reads."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import pytest

from netctl.errors import ExistsError, InvalidError, NotFoundError
from netctl.wire import identity as identities
from netctl.wire.identity import Identity, KeyPair, check_address

KEYS = KeyPair(bytes(range(32)))
USER = Identity("user", "ada", KEYS.private, ("tcp://broker.example:2020",), b"\7" * 32)
NODE = Identity(
    "node",
    "n1",
    KEYS.private,
    ("tcp://192.0.2.1:2020", "ipc:///run/a b/broker.sock"),
    b"\7" * 32,
    "10.1.0.0/16",
    "10.0.0.0/8",
)


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def saved(directory: Path) -> Path:
    path = directory / "own" / "identity"
    identities.save(USER, path)
    return path


@pytest.mark.parametrize("identity", [USER, NODE])
def test_what_is_saved_is_loaded(tmp_path: Path, identity: Identity) -> None:
    path = tmp_path / "deep" / "own" / "identity"
    before = os.umask(0)
    try:
        identities.save(identity, path)
    finally:
        os.umask(before)
    assert identities.load(path) == identity
    assert (mode_of(path), mode_of(path.parent)) == (0o600, 0o700)
    assert names_in(path.parent) == ["identity"]


def test_saving_never_replaces_unasked(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(ExistsError):
        identities.save(NODE, path)
    assert identities.load(path) == USER
    assert names_in(path.parent) == ["identity"]
    identities.save(NODE, path, replace=True)
    assert identities.load(path) == NODE
    assert names_in(path.parent) == ["identity"]


def test_a_failed_write_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InvalidError, match="No space left"):
        identities.save(NODE, path, replace=True)
    assert identities.load(path) == USER
    assert names_in(path.parent) == ["identity"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666])
def test_a_file_that_others_may_open_is_refused(tmp_path: Path, mode: int) -> None:
    path = saved(tmp_path)
    path.chmod(mode)
    with pytest.raises(InvalidError, match="chmod 600"):
        identities.load(path)
    path.chmod(0o400)
    assert identities.load(path) == USER


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_directory_that_others_may_write_to_gets_no_key(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "own"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(InvalidError, match="chmod 700"):
        identities.save(USER, directory / "identity")
    assert names_in(directory) == []


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "directory").mkdir(mode=0o700)
    for name in ("link", "pipe", "directory"):
        with pytest.raises(InvalidError):
            identities.load(tmp_path / name)
    with pytest.raises(NotFoundError, match="join a broker"):
        identities.load(tmp_path / "missing")


@pytest.mark.parametrize(
    "change",
    [
        lambda _: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"tcp://", b"udp://"),
        lambda data: data.replace(b'"user"', b'"root"'),
        lambda data: data.replace(b'"ada"', b'"Ada"'),
        lambda data: data.replace(b'"private_key": "A', b'"private_key": "'),
        lambda data: data.replace(b'"private_key"', b'"other_key"'),
        lambda _: b"[" * 60000,
        lambda data: data + b" " * 65536,
        lambda _: b"\xff" * 100,
    ],
)
def test_a_damaged_file_is_refused_and_not_quoted(tmp_path: Path, change: object) -> None:
    path = saved(tmp_path)
    data = path.read_bytes()
    assert callable(change)
    changed = change(data)
    assert changed != data
    path.write_bytes(changed)
    with pytest.raises(InvalidError, match=r"damaged|too large") as caught:
        identities.load(path)
    assert caught.value.__cause__ is None
    assert caught.value.remedy


def test_private_keys_show_in_no_repr() -> None:
    for shown in (repr(KEYS), repr(USER), str(USER), repr(attrs.evolve(NODE, name="n2"))):
        assert repr(KEYS.private)[2:-1] not in shown
        assert KEYS.private.hex() not in shown
        assert "private" not in shown
    assert "public" in repr(KEYS)


def test_key_pairs() -> None:
    # RFC 7748, section 5.2: X25519(9, 9), the first of its iterated vectors.
    nine = KeyPair(b"\x09".ljust(32, b"\0"))
    assert nine.public.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert KeyPair.generate() != KeyPair.generate()
    assert KeyPair.generate().private != bytes(32)
    assert USER.keys == KEYS
    for length in (0, 31, 33):
        with pytest.raises(InvalidError, match="32 bytes"):
            KeyPair(bytes(length))


@pytest.mark.parametrize(
    "text",
    [
        "tcp://127.0.0.1:2020",
        "tcp://broker:1",
        "tcp://b-1.example.org:65535",
        "tcp://[2001:db8::1]:2020",
        "ipc:///run/x",
    ],
)
def test_addresses_of_brokers(text: str) -> None:
    assert check_address(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "broker:2020",
        "tcp://broker",
        "tcp://broker:0",
        "tcp://broker:65536",
        "tcp://broker:02020",
        "tcp://broker:2020\n",
        "tcp://:2020",
        "tcp://*:2020",
        "tcp://a;b:2020",
        "tcp://broker:2020/x",
        "ipc://relative",
        "ipc:///",
        "ipc:///a\0b",
        "inproc://x",
        "ipc:///" + "x" * 300,
    ],
)
def test_what_is_no_address_of_a_broker(text: str) -> None:
    with pytest.raises(InvalidError, match="tcp://host:2020"):
        check_address(text)
