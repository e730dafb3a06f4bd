"""A broker's directory: who may read it, its settings, its key, and the lock that one broker holds.

broker.toml     where to listen and what invites name; the operator may edit it
broker.key      the private key, mode 0600
broker.sqlite   the records (`netctl.broker.store`)
broker.lock     locked by the broker that runs on this directory
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import attrs
import msgspec

from netctl.errors import ExistsError, InvalidError, NotFoundError, RefusedError
from netctl.wire.identity import BrokerAddresses, KeyPair

SETTINGS: Final = "broker.toml"
KEY: Final = "broker.key"
LOCK: Final = "broker.lock"
_OTHERS: Final = 0o077
_MAX_SETTINGS: Final = 65536


@attrs.frozen
class Settings:
    """What the operator decides about a broker.

    Attributes:
        listen: Endpoints to bind.
        advertise: Endpoints that invites name, in the order to try.
    """

    listen: BrokerAddresses
    advertise: BrokerAddresses


def make(directory: Path) -> None:
    """Make a broker's directory, or take one that is empty or was left half-made.

    Raises:
        ExistsError: There is a broker in it.
        InvalidError: It cannot be made, or others may read it.
    """
    if (directory / SETTINGS).exists():
        raise ExistsError(f"there is a broker in {directory} already", "choose another directory")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        check(directory)
        check_own(directory)
        for leftover in (KEY, *(f"broker.sqlite{suffix}" for suffix in ("", "-wal", "-shm"))):
            (directory / leftover).unlink(missing_ok=True)
    except OSError as error:
        raise InvalidError(f"{directory} cannot be used: {error.strerror}") from error


def check(directory: Path) -> None:
    """Refuse a directory that is not the broker's alone.

    Raises:
        NotFoundError: It is not there.
        InvalidError: It is no directory, or its mode lets others in.
    """
    try:
        status = directory.stat()
    except OSError:
        raise NotFoundError(
            f"there is no broker in {directory}", f"make one: netctl broker init --dir {directory}"
        ) from None
    if not directory.is_dir():
        raise InvalidError(f"{directory} is no directory", "choose another one")
    if status.st_mode & _OTHERS:
        raise InvalidError(f"others may look into {directory}", f"run: chmod 700 {directory}")


def check_own(directory: Path) -> None:
    """Refuse another user's directory: what root leaves in it, its owner could not use.

    Raises:
        InvalidError: It is not this user's.
    """
    owner = directory.stat().st_uid
    if owner != os.geteuid():
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        raise InvalidError(
            f"{directory} belongs to {name}", f"run the command as: runuser -u {name} -- netctl ..."
        )


def write_key(directory: Path, keys: KeyPair) -> None:
    """Write the private key, readable by its owner only."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(directory / KEY, flags, 0o600), "w") as file:
        file.write(keys.private.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_key(directory: Path) -> KeyPair:
    """Read the broker's key pair.

    Raises:
        InvalidError: It is missing or damaged, or others may read it.
    """
    path = directory / KEY
    try:
        with path.open() as file:
            if os.fstat(file.fileno()).st_mode & _OTHERS:
                raise InvalidError(f"others may read {path}", f"run: chmod 600 {path}")
            return KeyPair(bytes.fromhex(file.read(256).strip()))
    except (OSError, ValueError):
        # What is in the file does not belong in a message.
        raise InvalidError(f"{path} cannot be read as a key", "restore it from a backup") from None


def write_settings(directory: Path, settings: Settings) -> None:
    """Write the settings; their being there says that the broker is complete."""
    lines = [
        "# Where the broker listens, and what invites name (in the order to try).",
        # JSON's strings and arrays are TOML's, as long as nothing is escaped into surrogates.
        *(
            f"{field.name} = {json.dumps(getattr(settings, field.name), ensure_ascii=False)}"
            for field in attrs.fields(Settings)
        ),
    ]
    temporary = directory / f"{SETTINGS}.new"
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(directory / SETTINGS)


def read_settings(directory: Path) -> Settings:
    """Read the settings.

    Raises:
        NotFoundError: There is no broker in this directory.
        InvalidError: They are not of the right form.
    """
    path = directory / SETTINGS
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_SETTINGS).decode()
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no broker in {directory}", f"make one: netctl broker init --dir {directory}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path} cannot be read: {error}") from error
    try:
        return msgspec.convert(tomllib.loads(text), Settings)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidError(f"{path} is not of the right form: {error}", "mend it by hand") from error


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory for this process.

    Raises:
        RefusedError: Another broker holds it.
        InvalidError: It cannot be written to.
    """
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(directory / LOCK, flags, 0o600)
    except OSError as error:
        raise InvalidError(
            f"{directory} cannot be used: {error.strerror}", "run the broker as the directory's owner"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise RefusedError(
            f"a broker runs on {directory} already", "stop it first, or choose another directory"
        ) from None
    finally:
        os.close(fd)


def become(user: str, directory: Path) -> None:
    """Give the directory to a user and become that user, with no groups but its own.

    Raises:
        InvalidError: There is no such user, or this process may not become it.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise InvalidError(f"there is no user {user!r} on this host", "make it, or name another") from None
    if os.geteuid() == entry.pw_uid:
        return
    try:
        for path in (directory, *directory.iterdir()):
            os.chown(path, entry.pw_uid, entry.pw_gid, follow_symlinks=False)
        os.setgroups([])
        os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
        os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
    except PermissionError as error:
        raise InvalidError(f"this process may not become {user}", "start the broker as root") from error


def closed_networks(settings: Settings) -> tuple[str, ...]:
    """Return the broker's own addresses, which no container may reach, as far as they are IPv4 literals."""
    hosts = {_host(endpoint) for endpoint in (*settings.listen, *settings.advertise)}
    return tuple(
        sorted(
            f"{host}/32"
            for host in hosts
            if isinstance(host, IPv4Address) and not host.is_unspecified and not host.is_loopback
        )
    )


def advertised(listen: tuple[str, ...], own_address: str | None) -> tuple[str, ...]:
    """Return what invites name where the operator says nothing: the endpoints bound, as others see them.

    Args:
        listen: Endpoints to bind.
        own_address: This host's, in place of "any address"; None: it is not known.

    Raises:
        InvalidError: An endpoint says neither where it is nor is this host's address known.
    """
    result = []
    for endpoint in listen:
        host = _host(endpoint)
        if endpoint.startswith("ipc://") or (host is not None and not host.is_unspecified):
            result.append(endpoint)
        elif host is not None and own_address is not None:
            result.append(f"tcp://{own_address}:{urlsplit(endpoint).port}")
        else:
            raise InvalidError(
                f"{endpoint} does not say under which address nodes and users reach the broker",
                "say so with `--advertise tcp://ADDRESS:PORT`",
            )
    return tuple(result)


def _host(endpoint: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(urlsplit(endpoint).hostname or "")
    except ValueError:
        return None
