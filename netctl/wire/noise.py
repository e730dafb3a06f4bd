"""Noise_IK_25519_ChaChaPoly_BLAKE2b (The Noise Protocol Framework, revision 34) over libsodium's primitives.

Pure: keys are given, bytes go in and come out. Names follow the specification: ``ck`` is the chaining key,
``h`` the handshake hash, ``e`` and ``s`` the ephemeral and static keys, ``r`` the remote side's.

    <- s
    ...
    -> e, es, s, ss
    <- e, ee, se
"""

from __future__ import annotations

import hashlib
import hmac

import attrs
from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError
from nacl.exceptions import RuntimeError as SodiumError

from netctl.errors import ProtocolError

PROTOCOL_NAME = b"Noise_IK_25519_ChaChaPoly_BLAKE2b"
KEY_BYTES = 32
TAG_BYTES = 16
MAX_NONCE = 2**64 - 2
"""The last counter that may seal a message; 2**64-1 is reserved (section 5.1 of the specification)."""

_NONCE_PREFIX = bytes(4)


def public_of(private: bytes) -> bytes:
    """Return the public key of a private one, 32 bytes each."""
    return crypto_scalarmult_base(private)


class CipherState:
    """One direction's key and counter (section 5.1). The counter is the nonce; it never goes back."""

    __slots__ = ("_key", "nonce")

    def __init__(self, key: bytes) -> None:
        """Start with `key` (32 bytes) at counter 0."""
        self._key = key
        self.nonce = 0

    def encrypt(self, ad: bytes, plaintext: bytes) -> bytes:
        """Return `plaintext` sealed, `ad` bound to it; 16 bytes longer.

        Raises:
            ProtocolError: Every counter was used.
        """
        nonce = self._next_nonce()
        self.nonce += 1
        return crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, ad, nonce, self._key)

    def decrypt(self, ad: bytes, ciphertext: bytes) -> bytes:
        """Return what was sealed at the next counter. A failure leaves the counter as it was.

        Raises:
            ProtocolError: It was not sealed with this key, at this counter, with this `ad`.
        """
        nonce = self._next_nonce()
        if len(ciphertext) < TAG_BYTES:
            raise ProtocolError("a sealed message is too short")
        try:
            plaintext = crypto_aead_chacha20poly1305_ietf_decrypt(ciphertext, ad, nonce, self._key)
        except CryptoError:
            raise ProtocolError("a sealed message does not open") from None
        self.nonce += 1
        return plaintext

    def _next_nonce(self) -> bytes:
        if self.nonce > MAX_NONCE:
            raise ProtocolError("every counter of this key was used", "start a new session")
        return _NONCE_PREFIX + self.nonce.to_bytes(8, "little")


@attrs.frozen
class Transport:
    """What a handshake leads to.

    Attributes:
        send: Seals what this side says.
        receive: Opens what the other side says.
        handshake_hash: Names this handshake, 64 bytes, the same on both sides.
    """

    send: CipherState
    receive: CipherState
    handshake_hash: bytes


class _SymmetricState:
    """Section 5.2: the chaining key, the hash of all that was said, and the key of the moment."""

    def __init__(self, prologue: bytes, responder_static: bytes) -> None:
        # HASHLEN is 64, so the name (shorter) is padded with zeros; the pre-message is the responder's key.
        self.h = PROTOCOL_NAME.ljust(64, b"\0")
        self.ck = self.h
        self._cipher: CipherState | None = None
        self.mix_hash(prologue)
        self.mix_hash(responder_static)

    def mix_hash(self, data: bytes) -> None:
        self.h = hashlib.blake2b(self.h + data).digest()

    def mix_key(self, ikm: bytes) -> None:
        self.ck, key = _hkdf(self.ck, ikm)
        self._cipher = CipherState(key[:KEY_BYTES])

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        ciphertext = self._keyed().encrypt(self.h, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        plaintext = self._keyed().decrypt(self.h, ciphertext)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[CipherState, CipherState]:
        """Return the initiator's and the responder's sending keys."""
        one, two = _hkdf(self.ck, b"")
        return CipherState(one[:KEY_BYTES]), CipherState(two[:KEY_BYTES])

    def _keyed(self) -> CipherState:
        if self._cipher is None:
            raise RuntimeError("in IK every payload follows a key")
        return self._cipher


class Initiator:
    """The side that knows the other's static key. Use each method once, in their order."""

    def __init__(self, *, prologue: bytes, static: bytes, ephemeral: bytes, remote_static: bytes) -> None:
        """Keys are private, 32 bytes, but for `remote_static`; an ephemeral one is used once, ever."""
        self._static = static
        self._ephemeral = ephemeral
        self._remote_static = remote_static
        self._state = _SymmetricState(prologue, remote_static)

    def write_first(self, payload: bytes = b"") -> bytes:
        """Return ``e, es, s, ss, payload``.

        Raises:
            ProtocolError: The responder's key is no usable one.
        """
        state = self._state
        e = public_of(self._ephemeral)
        state.mix_hash(e)
        state.mix_key(_dh(self._ephemeral, self._remote_static))
        s = state.encrypt_and_hash(public_of(self._static))
        state.mix_key(_dh(self._static, self._remote_static))
        return e + s + state.encrypt_and_hash(payload)

    def read_second(self, message: bytes) -> tuple[bytes, Transport]:
        """Read ``e, ee, se, payload``; return the payload and what seals from now on.

        Raises:
            ProtocolError: It is not the answer of the holder of the responder's key to our first message.
        """
        state = self._state
        re = _ephemeral_of(message)
        state.mix_hash(re)
        state.mix_key(_dh(self._ephemeral, re))
        state.mix_key(_dh(self._static, re))
        payload = state.decrypt_and_hash(message[KEY_BYTES:])
        ours, theirs = state.split()
        return payload, Transport(ours, theirs, state.h)


class Responder:
    """The side whose static key is known. Use each method once, in their order.

    Attributes:
        remote_static: The initiator's static key, proven once its first transport message opens.
    """

    def __init__(self, *, prologue: bytes, static: bytes, ephemeral: bytes) -> None:
        """Keys are private, 32 bytes; an ephemeral one is used once, ever."""
        self._static = static
        self._ephemeral = ephemeral
        self._remote_ephemeral = b""
        self.remote_static = b""
        self._state = _SymmetricState(prologue, public_of(static))

    def read_first(self, message: bytes) -> bytes:
        """Read ``e, es, s, ss, payload``; return the payload.

        Raises:
            ProtocolError: It was not made for our key and prologue by the holder of the key it names.
        """
        state = self._state
        split = 2 * KEY_BYTES + TAG_BYTES
        self._remote_ephemeral = _ephemeral_of(message)
        state.mix_hash(self._remote_ephemeral)
        state.mix_key(_dh(self._static, self._remote_ephemeral))
        self.remote_static = state.decrypt_and_hash(message[KEY_BYTES:split])
        state.mix_key(_dh(self._static, self.remote_static))
        return state.decrypt_and_hash(message[split:])

    def write_second(self, payload: bytes = b"") -> tuple[bytes, Transport]:
        """Return ``e, ee, se, payload``, and what seals from now on.

        Raises:
            ProtocolError: The initiator's keys are no usable ones.
        """
        state = self._state
        e = public_of(self._ephemeral)
        state.mix_hash(e)
        state.mix_key(_dh(self._ephemeral, self._remote_ephemeral))
        state.mix_key(_dh(self._ephemeral, self.remote_static))
        message = e + state.encrypt_and_hash(payload)
        theirs, ours = state.split()
        return message, Transport(ours, theirs, state.h)


def _ephemeral_of(message: bytes) -> bytes:
    if len(message) < KEY_BYTES:
        raise ProtocolError("a handshake message is too short")
    return message[:KEY_BYTES]


def _dh(private: bytes, public: bytes) -> bytes:
    """Return the shared secret. libsodium refuses an all-zero one, which points of low order lead to."""
    try:
        return crypto_scalarmult(private, public)
    except SodiumError:
        raise ProtocolError("a public key is of low order") from None


def _hkdf(chaining_key: bytes, ikm: bytes) -> tuple[bytes, bytes]:
    """Return the first two outputs of HKDF (section 4.3) over HMAC-BLAKE2b."""
    temporary = _hmac(chaining_key, ikm)
    one = _hmac(temporary, b"\1")
    return one, _hmac(temporary, one + b"\2")


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, hashlib.blake2b)
