"""Invites: one word that carries everything needed to join a broker.

``netctl-invite-`` and then base64url, without padding, of a MessagePack map and four bytes of its BLAKE2b,
so that a truncated or mistyped paste is told from one that the broker refuses.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Annotated, Literal

import attrs
import msgspec

from netctl.errors import InvalidError
from netctl.model import Name, Seconds
from netctl.wire.identity import BrokerAddresses, Key

PREFIX = "netctl-invite-"
MAX_INVITE_CHARACTERS = 4096
TOKEN_BYTES = 32

_CHECKSUM_BYTES = 4
_REMEDY = "copy the whole invite, as one word, or ask for a new one"


@attrs.frozen
class Invite:
    """A permission to join, once.

    Attributes:
        kind: What the bearer may become.
        name: Under which name; None: the bearer chooses.
        addresses: Of the broker.
        broker_key: Its public key, 32 bytes.
        token: Known to the bearer; the broker keeps its hash only. Shown in no repr.
        expires_at: Seconds since 1970.
    """

    kind: Literal["user", "node"]
    name: Name | None
    addresses: BrokerAddresses
    broker_key: Key
    token: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] = attrs.field(repr=False)
    expires_at: Seconds


def new_token(random_bytes: bytes) -> str:
    """Return the token made of `random_bytes`, TOKEN_BYTES of them, from the system's randomness."""
    if len(random_bytes) != TOKEN_BYTES:
        raise ValueError(f"a token is made of {TOKEN_BYTES} bytes")
    return _to_text(random_bytes)


def token_hash(token: str) -> str:
    """Return the BLAKE2b-256 of `token` in hexadecimal: all the broker keeps of it."""
    return hashlib.blake2b(token.encode(), digest_size=32).hexdigest()


def format(invite: Invite) -> str:  # noqa: A001 - read as invite.format
    """Return `invite` as one word that needs no quoting in a shell.

    Raises:
        InvalidError: It would be longer than MAX_INVITE_CHARACTERS.
    """
    data = msgspec.msgpack.encode(invite)
    text = PREFIX + _to_text(data + _checksum(data))
    if len(text) > MAX_INVITE_CHARACTERS:
        raise InvalidError("the invite is too long", "give the broker fewer addresses")
    return text


def parse(text: str) -> Invite:
    """Read what `format` wrote; space around it does not matter.

    Raises:
        InvalidError: It is no invite, or not a whole one.
    """
    word = text.strip()
    if not word.startswith(PREFIX) or len(word) > MAX_INVITE_CHARACTERS:
        raise InvalidError(f"this is no invite: one begins with {PREFIX}", _REMEDY)
    data = _from_text(word.removeprefix(PREFIX))
    contents, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if len(data) <= _CHECKSUM_BYTES or checksum != _checksum(contents):
        raise InvalidError("the invite is incomplete or was changed on its way", _REMEDY)
    try:
        return msgspec.msgpack.decode(contents, type=Invite)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        # The cause may quote the token, so it is not passed on.
        raise InvalidError(
            "the invite is of a form that this version does not know", "install the version the broker has"
        ) from None


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECKSUM_BYTES).digest()


def _to_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _from_text(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidError("the invite is incomplete or was changed on its way", _REMEDY) from None
    if _to_text(data) != text:
        raise InvalidError("the invite is incomplete or was changed on its way", _REMEDY)
    return data
