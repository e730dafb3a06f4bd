"""A broker's directory, and what is refused about it."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

import pytest

from netctl.broker import directory as place
from netctl.broker import service
from netctl.errors import ExistsError, InvalidError, NotFoundError, RefusedError
from netctl.wire import invite

LISTEN = ("tcp://127.0.0.1:2020",)


def made(tmp_path: Path, **options: object) -> tuple[Path, invite.Invite]:
    directory = tmp_path / "broker"
    text = service.init(directory, **{"listen": LISTEN} | options)  # type: ignore[arg-type]
    return directory, invite.parse(text)


def test_init_makes_a_private_directory_and_an_invite_for_its_key(tmp_path: Path) -> None:
    directory, first = made(tmp_path, name="root-of-all")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {path.name for path in directory.iterdir()} == {"broker.toml", "broker.key", "broker.sqlite"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in directory.iterdir())
    assert first.broker_key == place.read_key(directory).public
    assert (first.kind, first.name, first.addresses) == ("user", "root-of-all", LISTEN)
    assert first.token.encode() not in (directory / "broker.sqlite").read_bytes()


def test_init_leaves_a_broker_that_is_there_alone(tmp_path: Path) -> None:
    directory, _ = made(tmp_path)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(ExistsError):
        made(tmp_path)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_init_takes_over_what_was_left_half_made(tmp_path: Path) -> None:
    directory, _ = made(tmp_path)
    (directory / "broker.toml").unlink()
    _, again = made(tmp_path)
    assert again.broker_key == place.read_key(directory).public


@pytest.mark.parametrize(
    "options",
    [
        {"supernet": "10.0.0.1/8"},
        {"block_size": 4},
        {"listen": ("udp://127.0.0.1:1",)},
        {"advertise": ("nowhere",)},
        {"name": "Not A Name"},
        {"listen": ("tcp://broker.example:2020",)},
    ],
)
def test_init_refuses_what_cannot_be_and_makes_nothing(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        made(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o777])
def test_a_directory_that_others_look_into_is_refused(tmp_path: Path, mode: int) -> None:
    directory, _ = made(tmp_path)
    directory.chmod(mode)
    with pytest.raises(InvalidError, match="others may look") as caught:
        service.run(directory)
    assert "chmod 700" in caught.value.remedy


@pytest.mark.root
def test_what_its_owner_could_not_use_afterwards_is_not_written(tmp_path: Path) -> None:
    directory, _ = made(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    nobody = pwd.getpwnam("nobody")
    for each in (directory, empty):
        os.chown(each, nobody.pw_uid, nobody.pw_gid)
    before = sorted(directory.iterdir())
    with pytest.raises(InvalidError, match="belongs to nobody") as refused:
        service.run(directory)
    assert "runuser -u nobody" in refused.value.remedy
    with pytest.raises(InvalidError, match="belongs to nobody"):
        service.init(empty, listen=LISTEN)
    assert (sorted(directory.iterdir()), list(empty.iterdir())) == (before, [])


def test_a_key_that_others_read_is_refused(tmp_path: Path) -> None:
    directory, _ = made(tmp_path)
    (directory / "broker.key").chmod(0o640)
    with pytest.raises(InvalidError, match="others may read"):
        place.read_key(directory)


def test_a_damaged_key_is_refused_without_showing_it(tmp_path: Path) -> None:
    directory, _ = made(tmp_path)
    key = (directory / "broker.key").read_text().strip()
    (directory / "broker.key").write_text(key[:-2] + "zz")
    with pytest.raises(InvalidError, match="cannot be read as a key") as caught:
        place.read_key(directory)
    assert key[:20] not in str(caught.value)


def test_there_must_be_a_broker(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no broker"):
        service.run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir(mode=0o700)
    with pytest.raises(NotFoundError, match="no broker"):
        service.run(tmp_path / "empty")


@pytest.mark.parametrize("text", ["listen = 5", "listen = []\nadvertise = []", "[", "listen = ['udp://x']"])
def test_settings_are_checked(tmp_path: Path, text: str) -> None:
    directory, _ = made(tmp_path)
    (directory / "broker.toml").write_text(text)
    with pytest.raises(InvalidError, match="right form"):
        place.read_settings(directory)


def test_settings_come_back_as_written(tmp_path: Path) -> None:
    settings = place.Settings(("tcp://[::1]:1", 'ipc:///a "quoted" \\ päth'), ("tcp://host.example:2020",))
    place.write_settings(tmp_path, settings)
    assert place.read_settings(tmp_path) == settings


def test_one_broker_runs_on_a_directory(tmp_path: Path) -> None:
    with place.locked(tmp_path), pytest.raises(RefusedError, match="already"), place.locked(tmp_path):
        pass
    with place.locked(tmp_path):
        pass


def test_an_unknown_user_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="no user"):
        place.become("no-such-user-anywhere", tmp_path)


def test_becoming_who_one_is_changes_nothing(tmp_path: Path) -> None:
    before = tmp_path.stat()
    place.become(pwd.getpwuid(os.geteuid()).pw_name, tmp_path)
    assert tmp_path.stat() == before


def test_what_is_advertised_says_where_it_is() -> None:
    listen = ("tcp://0.0.0.0:2020", "ipc:///run/x", "tcp://192.0.2.7:1", "tcp://[::]:3")
    assert place.advertised(listen, "198.51.100.4") == (
        "tcp://198.51.100.4:2020", "ipc:///run/x", "tcp://192.0.2.7:1", "tcp://198.51.100.4:3",
    )  # fmt: skip
    with pytest.raises(InvalidError, match="does not say") as caught:
        place.advertised(listen, None)
    assert "--advertise" in caught.value.remedy


def test_the_brokers_own_addresses_are_closed_to_containers() -> None:
    settings = place.Settings(
        ("tcp://0.0.0.0:2020", "tcp://192.0.2.7:1", "ipc:///x", "tcp://127.0.0.1:2"),
        ("tcp://198.51.100.4:2020", "tcp://[2001:db8::1]:4", "tcp://broker.example:2020"),
    )
    assert place.closed_networks(settings) == ("192.0.2.7/32", "198.51.100.4/32")
