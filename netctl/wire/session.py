"""Sealed sessions as pure state machines; the ZeroMQ shells only carry their frames.

A frame has two parts. The header is 10 bytes in the clear::

    type (1) | version (1) | session id (8)

The session id is chosen by the broker, at random. In the client's first frame, where there is none yet, its
place holds the role the client asks for, padded with zeros; the prologue binds protocol, version and role, so
a changed role opens nothing. The first body is the first Noise message and carries no payload, the second's
payload repeats the session id, so that the client knows it is the broker's. From then on a body is one sealed
envelope, its header bound to it, its counter the number of frames before it in that direction: a frame that
is lost, doubled, reordered, reflected or changed does not open.

The first message of a handshake may be a replay. So a broker's `Session` is not `confirmed` until the first
sealed message has opened, and the broker must change nothing, and evict no older session, before that.
A client's role and key are what it claims; whether the key is enrolled in that role is the broker's to check.

A restart frame (empty body, sealed by nobody) says: this session is unknown here, start another. It is a hint
that costs a client a handshake, never data.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Container
from typing import Literal, NamedTuple

import attrs

from netctl.errors import ProtocolError
from netctl.wire import codec
from netctl.wire.identity import KeyPair
from netctl.wire.messages import Envelope
from netctl.wire.noise import KEY_BYTES, TAG_BYTES, Initiator, Responder, Transport

VERSION = 1
SESSION_ID_BYTES = 8
HEADER_BYTES = 10
FIRST_BODY_BYTES = 2 * KEY_BYTES + 2 * TAG_BYTES
SECOND_BODY_BYTES = KEY_BYTES + SESSION_ID_BYTES + TAG_BYTES
MAX_BODY_BYTES = codec.MAX_MESSAGE + TAG_BYTES
"""Bytes of the largest part of any frame: what ZMQ_MAXMSGSIZE must let pass."""
MAX_FRAMES = 2**32
"""Frames that one direction of a session may carry; then a new session, with new keys, must be made."""

FIRST, SECOND, DATA, RESTART = 1, 2, 3, 4
"""The types of frames."""

Role = Literal["user", "node", "enrol"]
_ROLES: dict[bytes, Role] = {b"user\0\0\0\0": "user", b"node\0\0\0\0": "node", b"enrol\0\0\0": "enrol"}
_ROLE_IDS: dict[Role, bytes] = {role: session_id for session_id, role in _ROLES.items()}
_HEADER = struct.Struct("!BB8s")


class Frame(NamedTuple):
    """What goes over the wire at once; a tuple, since that is what a multipart message is sent as."""

    header: bytes
    body: bytes


@attrs.frozen
class Header:
    """A header's contents. `type` is one of FIRST, SECOND, DATA and RESTART."""

    type: int
    session_id: bytes


def parse_header(header: bytes) -> Header:
    """Read a header.

    Raises:
        ProtocolError: It has another length, version or type than the ones known here.
    """
    if len(header) != HEADER_BYTES:
        raise ProtocolError(f"a frame's header has {len(header)} bytes instead of {HEADER_BYTES}")
    kind, version, session_id = _HEADER.unpack(header)
    if version != VERSION:
        raise ProtocolError(
            f"the other side speaks version {version} of the protocol, this one {VERSION}",
            "install the same version of netctl on both",
        )
    if kind not in (FIRST, SECOND, DATA, RESTART):
        raise ProtocolError(f"a frame is of the unknown type {kind}")
    return Header(kind, session_id)


def restart_frame(session_id: bytes) -> Frame:
    """Return what answers a frame of a session that is not known."""
    return Frame(_HEADER.pack(RESTART, VERSION, session_id), b"")


@attrs.define(eq=False)
class Session:
    """A session after its handshake, either side's.

    Attributes:
        id: 8 bytes, the broker's choice.
        role: What the client is, or wants to become.
        peer_key: The other side's static public key.
        confirmed: Whether the other side is known to take part now. Nothing can be sealed before.
        send_limit: Bytes of the largest message this side may send.
        receive_limit: Bytes of the largest message taken from the other side.
        unknown_fields: How many fields that came in were skipped as unknown.
    """

    id: bytes
    role: Role
    peer_key: bytes
    confirmed: bool
    send_limit: int
    receive_limit: int
    _transport: Transport = attrs.field(repr=False)
    _header: bytes = attrs.field(init=False, repr=False)
    unknown_fields: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        """Build the one header all of this session's frames have."""
        self._header = _HEADER.pack(DATA, VERSION, self.id)

    def seal(self, envelope: Envelope) -> Frame:
        """Return `envelope` as the next frame to send. A frame that is sealed must be sent.

        Raises:
            InvalidError: The message is larger than `send_limit`; the session is as it was.
            ProtocolError: The session is not confirmed, or has carried MAX_FRAMES.
        """
        if not self.confirmed:
            raise ProtocolError("nothing is said in a session before the other side has proven itself")
        cipher = self._transport.send
        if cipher.nonce >= MAX_FRAMES:
            raise ProtocolError("the session has carried all it may", "start a new session")
        return Frame(self._header, cipher.encrypt(self._header, codec.encode(envelope, self.send_limit)))

    def open(self, header: bytes, body: bytes, allowed: Container[type] | None = None) -> Envelope:
        """Return the envelope in the next frame that came in.

        A frame that does not open leaves the session as it was: ending it is up to the caller, who knows
        whether the frame came from this session's own connection. One that opens and holds something
        malformed has come from the peer itself.

        Args:
            header: As it came in.
            body: As it came in.
            allowed: Classes of messages taken in this session; None: all.

        Raises:
            ProtocolError: It is not the next frame of this session, or not of the agreed form inside.
        """
        if header != self._header:
            raise ProtocolError("a frame's header is not this session's")
        if len(body) > self.receive_limit + TAG_BYTES:
            raise ProtocolError(f"a frame of {len(body)} bytes is larger than this session allows")
        cipher = self._transport.receive
        if cipher.nonce >= MAX_FRAMES:
            raise ProtocolError("the session has carried all it may", "start a new session")
        plaintext = cipher.decrypt(header, body)
        self.confirmed = True
        decoded = codec.decode(plaintext, allowed, self.receive_limit)
        self.unknown_fields += decoded.unknown_fields
        return decoded.envelope


class ClientHandshake:
    """The client's side of one handshake: `first`, then `finish`, once each."""

    def __init__(self, keys: KeyPair, broker_key: bytes, role: Role) -> None:
        """Prepare to prove `keys` to the holder of `broker_key`."""
        self._broker_key = broker_key
        self._role: Role = role
        self._noise = Initiator(
            prologue=_prologue(role),
            static=keys.private,
            ephemeral=secrets.token_bytes(KEY_BYTES),
            remote_static=broker_key,
        )

    def first(self) -> Frame:
        """Return the frame that opens the handshake.

        Raises:
            ProtocolError: The broker's key is no usable one.
        """
        return Frame(_HEADER.pack(FIRST, VERSION, _ROLE_IDS[self._role]), self._noise.write_first())

    def finish(self, header: bytes, body: bytes) -> Session:
        """Return the session that the broker's answer leads to.

        Raises:
            ProtocolError: It is no answer of that broker to this handshake. Begin another.
        """
        parsed = parse_header(header)
        if parsed.type != SECOND or len(body) != SECOND_BODY_BYTES:
            raise ProtocolError("the broker's answer is no second message of a handshake")
        session_id, transport = self._noise.read_second(body)
        if session_id != parsed.session_id:
            raise ProtocolError("the session id in the clear is not the broker's")
        return Session(
            id=session_id,
            role=self._role,
            peer_key=self._broker_key,
            confirmed=True,
            send_limit=_client_limit(self._role),
            receive_limit=codec.MAX_MESSAGE,
            transport=transport,
        )


def accept_first(keys: KeyPair, header: bytes, body: bytes, session_id: bytes) -> tuple[Frame, Session]:
    """Answer a client's first frame: the broker's side of a handshake.

    Args:
        keys: The broker's.
        header: As it came in.
        body: As it came in.
        session_id: 8 random bytes that no other session has.

    Raises:
        ProtocolError: It is no first frame made for this broker; nothing is to be answered.
    """
    parsed = parse_header(header)
    role = _ROLES.get(parsed.session_id)
    if parsed.type != FIRST or role is None or len(body) != FIRST_BODY_BYTES:
        raise ProtocolError("no first message of a handshake")
    noise = Responder(prologue=_prologue(role), static=keys.private, ephemeral=secrets.token_bytes(KEY_BYTES))
    noise.read_first(body)
    answer, transport = noise.write_second(session_id)
    session = Session(
        id=session_id,
        role=role,
        peer_key=noise.remote_static,
        confirmed=False,
        send_limit=codec.MAX_MESSAGE,
        receive_limit=_client_limit(role),
        transport=transport,
    )
    return Frame(_HEADER.pack(SECOND, VERSION, session_id), answer), session


def _prologue(role: Role) -> bytes:
    return f"netctl/{VERSION}/{role}".encode()


def _client_limit(role: Role) -> int:
    return codec.MAX_MESSAGE if role == "node" else codec.MAX_CLIENT_MESSAGE
