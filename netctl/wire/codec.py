"""Bytes to messages and back: strict, size-limited, without any input or output.

A message travels as a MessagePack map ``{"t": name, "i": id, "b": body}``; the name is one of a registry, the
body a map of the class's fields. Whatever comes in is checked against the class before anyone looks at it:
known fields strictly (no coercion, bounds and patterns included), unknown ones are skipped and counted,
unknown messages refused. Depth is bounded by the types; what is skipped, by the interpreter's own limit.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Mapping
from typing import Annotated, Any, TypeVar

import attrs
import msgspec

from netctl.errors import InvalidError, ProtocolError
from netctl.wire.messages import REGISTRY, Envelope
from netctl.wire.unknown_fields import count_unknown

MAX_MESSAGE = 8 * 2**20
"""Bytes of the largest message: a node's whole desired state."""
MAX_CLIENT_MESSAGE = 256 * 2**10
"""Bytes of the largest message a user, or an unknown key, may send."""
MAX_ID = 2**31 - 1
"""The largest id of a request."""

T = TypeVar("T")

_Tag = Annotated[str, msgspec.Meta(max_length=64)]
_ENCODER = msgspec.msgpack.Encoder()


class _Outer(msgspec.Struct):
    """An envelope whose body has not been looked at."""

    t: _Tag
    i: Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)]
    b: msgspec.Raw


class _Tagged(msgspec.Struct):
    """A tagged object whose body has not been looked at."""

    t: _Tag
    b: msgspec.Raw


_OUTER = msgspec.msgpack.Decoder(_Outer)
_TAGGED = msgspec.msgpack.Decoder(_Tagged)


@attrs.frozen
class Decoded:
    """What came in.

    Attributes:
        unknown_fields: How many fields, at any depth, were skipped because this version does not know them.
    """

    envelope: Envelope
    unknown_fields: int


def encode(envelope: Envelope, limit: int = MAX_MESSAGE) -> bytes:
    """Return the bytes of `envelope`, whose message is of a class in REGISTRY.

    Raises:
        InvalidError: The message takes more than `limit` bytes.
    """
    message = envelope.message
    data = _ENCODER.encode({"t": _name(message, REGISTRY), "i": envelope.id, "b": message})
    _check_own_size(data, limit)
    return data


def decode(data: bytes, allowed: Container[type] | None = None, limit: int = MAX_MESSAGE) -> Decoded:
    """Read one envelope.

    Args:
        data: As it came in.
        allowed: The classes this sender may send; None: all of REGISTRY.
        limit: Bytes it may have at most.

    Raises:
        ProtocolError: It is too large, not of the agreed form, or of a class that is unknown or not allowed.
    """
    _check_size(data, limit)
    outer = _read(_OUTER, data, "envelope")
    kind = _kind(outer.t, REGISTRY)
    if allowed is not None and kind not in allowed:
        raise ProtocolError(f"{outer.t} may not be sent in this session")
    message = _body(kind, outer.b)
    # A sender of this very version writes what we would write: then nothing can be unknown. Comparing
    # bytes is far cheaper than looking, and right in whatever order a set was written.
    if _ENCODER.encode({"t": outer.t, "i": outer.i, "b": message}) == data:
        return Decoded(Envelope(outer.i, message), 0)
    unknown = count_unknown(_Outer, data) + count_unknown(kind, outer.b)
    return Decoded(Envelope(outer.i, message), unknown)


def encode_tagged(obj: Any, registry: Mapping[str, type], limit: int = MAX_MESSAGE) -> bytes:
    """Return the bytes of one object of a class in `registry`, without an id: ``{"t": name, "b": body}``.

    Raises:
        InvalidError: It takes more than `limit` bytes.
    """
    data = _ENCODER.encode({"t": _name(obj, registry), "b": obj})
    _check_own_size(data, limit)
    return data


def decode_tagged(data: bytes, registry: Mapping[str, type], limit: int = MAX_MESSAGE) -> Any:
    """Read one object written by `encode_tagged`: an instance of a class in `registry`, checked.

    Raises:
        ProtocolError: It is too large, not of the agreed form, or of a class that is not in `registry`.
    """
    _check_size(data, limit)
    tagged = _read(_TAGGED, data, "tagged object")
    return _body(_kind(tagged.t, registry), tagged.b)


def convert_body(name: str, body: Any, registry: Mapping[str, type]) -> Any:
    """Check a body that was carried as plain data: return it as an instance of the class `name`.

    Raises:
        ProtocolError: The name is not in `registry`, or the body is not of its class.
    """
    kind = _kind(name, registry)
    try:
        return msgspec.convert(body, kind)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise malformed(name, error) from None


def _name(obj: Any, registry: Mapping[str, type]) -> str:
    name = type(obj).__name__
    if registry.get(name) is not type(obj):
        raise TypeError(f"{type(obj)} is in no registry of messages")
    return name


def _kind(name: str, registry: Mapping[str, type]) -> type:
    kind = registry.get(name)
    if kind is None:
        raise ProtocolError(f"unknown message {name!a}", "both sides may be of different versions")
    return kind


def _check_size(data: bytes, limit: int) -> None:
    if len(data) > limit:
        raise ProtocolError(f"a message of {len(data)} bytes came in, {limit} are allowed")


def _check_own_size(data: bytes, limit: int) -> None:
    if len(data) > limit:
        raise InvalidError(f"the message has {len(data)} bytes, {limit} are allowed", "send less at once")


@functools.cache
def _decoder(kind: type) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind)


def _body(kind: type, body: msgspec.Raw) -> Any:
    return _read(_decoder(kind), body, kind.__name__)


def _read(decoder: msgspec.msgpack.Decoder[T], data: bytes | msgspec.Raw, what: str) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        raise malformed(what, error) from None


def malformed(what: str, error: Exception) -> ProtocolError:
    """Return the error for bytes that are no `what`, quoting `error` shortly and in plain characters."""
    return ProtocolError(f"malformed {what}: {ascii(str(error))[1:-1][:200]}")
