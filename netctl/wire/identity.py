"""Key pairs, and the file that holds who a user or node is.

The file is JSON, mode 0600, in a directory of mode 0700; keys are base64. The private key never leaves the
machine it was made on, and shows in no repr.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Annotated, Literal

import attrs
import msgspec

from netctl.errors import ExistsError, InvalidError, NotFoundError
from netctl.model import Cidr, Name
from netctl.wire.noise import KEY_BYTES, public_of

MAX_IDENTITY_BYTES = 65536
"""Bytes of the largest identity file."""

Key = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
"""A Curve25519 key, 32 bytes."""
_PORT = r"([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
BrokerAddress = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"^(tcp://([A-Za-z0-9.-]{{1,253}}|\[[0-9A-Fa-f:.]{{2,45}}\]):{_PORT}|ipc:///[^\x00-\x1f\x7f]+)\Z",
        max_length=270,
    ),
]
"""Where a broker listens, as ZeroMQ writes it: ``tcp://host:2020``, ``tcp://[2001:db8::1]:2020`` or
``ipc:///absolute/path``."""
BrokerAddresses = Annotated[tuple[BrokerAddress, ...], msgspec.Meta(min_length=1, max_length=16)]


def check_address(text: str) -> str:
    """Return `text` if it is a `BrokerAddress`.

    Raises:
        InvalidError: It is not; the remedy shows the forms.
    """
    try:
        return msgspec.convert(text, BrokerAddress)
    except msgspec.ValidationError:
        raise InvalidError(
            f"{ascii(text)[:100]} is no address of a broker",
            "write it as tcp://host:2020 or ipc:///absolute/path",
        ) from None


@attrs.frozen
class KeyPair:
    """A Curve25519 key pair.

    Attributes:
        private: 32 bytes; shown in no repr.
        public: 32 bytes.
    """

    private: Key = attrs.field(repr=False)
    public: Key = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Compute the public key."""
        if len(self.private) != KEY_BYTES:
            raise InvalidError(f"a private key has {KEY_BYTES} bytes, this one {len(self.private)}")
        object.__setattr__(self, "public", public_of(self.private))

    @classmethod
    def generate(cls) -> KeyPair:
        """Return a new one from the system's randomness."""
        return cls(secrets.token_bytes(KEY_BYTES))


@attrs.frozen
class Identity:
    """Who a user or node is, and the broker it belongs to.

    Attributes:
        name: The account's or node's.
        private_key: 32 bytes; shown in no repr.
        addresses: Of the broker, tried in this order.
        broker_key: Its public key, 32 bytes.
        block: A node's block; None for a user.
        supernet: What blocks are cut from; None for a user.
    """

    kind: Literal["user", "node"]
    name: Name
    private_key: Key = attrs.field(repr=False)
    addresses: BrokerAddresses
    broker_key: Key
    block: Cidr | None = None
    supernet: Cidr | None = None

    @property
    def keys(self) -> KeyPair:
        """The key pair."""
        return KeyPair(self.private_key)


def load(path: Path) -> Identity:
    """Read the identity in `path`.

    Raises:
        NotFoundError: There is none.
        InvalidError: Others can read or write it, or it is damaged.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no identity at {path}", "join a broker first, with its invite"
        ) from None
    except OSError as error:
        raise InvalidError(f"cannot read the identity at {path}: {error.strerror}") from error
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise InvalidError(f"the identity at {path} is no regular file", "move it away and join again")
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise InvalidError(f"others may read the private key in {path}", f"run: chmod 600 {path}")
        data = os.read(fd, MAX_IDENTITY_BYTES + 1)
    finally:
        os.close(fd)
    if len(data) > MAX_IDENTITY_BYTES:
        raise InvalidError(f"the identity at {path} is too large", "move it away and join again")
    try:
        return msgspec.json.decode(data, type=Identity)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # The cause may quote the file, so it is not passed on.
        raise InvalidError(f"the identity at {path} is damaged", "move it away and join again") from None


def save(identity: Identity, path: Path, *, replace: bool = False) -> None:
    """Write `identity` to `path`, whole or not at all. Its directory is made (mode 0700) where missing.

    Args:
        identity: What to write.
        path: Where.
        replace: Also over one that is there.

    Raises:
        ExistsError: There is one already.
        InvalidError: Others may write to its directory, or it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _own_directory(path.parent)
        try:
            _write(temporary, msgspec.json.format(msgspec.json.encode(identity), indent=2))
            if replace:
                temporary.replace(path)
            else:
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except FileExistsError:
        raise ExistsError(f"there is an identity at {path} already", "move it away to join anew") from None
    except OSError as error:
        raise InvalidError(f"cannot write the identity to {path}: {error.strerror}") from error


def _own_directory(directory: Path) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        if directory.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise InvalidError(
                f"others may write to {directory}, where the private key is to be kept",
                f"run: chmod 700 {directory}",
            ) from None


def _write(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
