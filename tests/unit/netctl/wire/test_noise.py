"""The handshake against published vectors, and against whoever tampers with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from netctl.errors import ProtocolError
from netctl.wire.noise import MAX_NONCE, CipherState, Initiator, Responder, Transport, public_of

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "noise-vectors.json").read_text())[
    "vectors"
]
# Points of order 1, 2, 4 and 8 on Curve25519 and its twist, and their non-canonical forms
# (https://cr.yp.to/ecdh.html, "validate"): a shared secret made with one is known to everybody.
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]
STATIC_I, EPHEMERAL_I, STATIC_R, EPHEMERAL_R = (bytes([n]) * 32 for n in (1, 2, 3, 4))


def initiator(prologue: bytes = b"p", remote: bytes | None = None) -> Initiator:
    remote = public_of(STATIC_R) if remote is None else remote
    return Initiator(prologue=prologue, static=STATIC_I, ephemeral=EPHEMERAL_I, remote_static=remote)


def responder(prologue: bytes = b"p", static: bytes = STATIC_R) -> Responder:
    return Responder(prologue=prologue, static=static, ephemeral=EPHEMERAL_R)


def shake_hands() -> tuple[Transport, Transport]:
    one, two = initiator(), responder()
    two.read_first(one.write_first())
    answer, transport_two = two.write_second()
    _, transport_one = one.read_second(answer)
    return transport_one, transport_two


@pytest.mark.parametrize("vector", VECTORS)
def test_published_vector(vector: dict[str, Any]) -> None:
    given = {
        key: bytes.fromhex(value) for key, value in vector.items() if key not in ("protocol_name", "messages")
    }
    said = [
        (bytes.fromhex(message["payload"]), bytes.fromhex(message["ciphertext"]))
        for message in vector["messages"]
    ]
    one = Initiator(
        prologue=given["init_prologue"],
        static=given["init_static"],
        ephemeral=given["init_ephemeral"],
        remote_static=given["init_remote_static"],
    )
    two = Responder(
        prologue=given["resp_prologue"], static=given["resp_static"], ephemeral=given["resp_ephemeral"]
    )

    assert vector["protocol_name"] == "Noise_IK_25519_ChaChaPoly_BLAKE2b"
    assert one.write_first(said[0][0]) == said[0][1]
    assert two.read_first(said[0][1]) == said[0][0]
    assert two.remote_static == public_of(given["init_static"])
    answer, transport_two = two.write_second(said[1][0])
    assert answer == said[1][1]
    payload, transport_one = one.read_second(said[1][1])
    assert payload == said[1][0]
    assert transport_one.handshake_hash == transport_two.handshake_hash == given["handshake_hash"]
    sides = [(transport_one, transport_two), (transport_two, transport_one)]
    assert len(said) > 4
    for index, (plaintext, ciphertext) in enumerate(said[2:]):
        sender, receiver = sides[index % 2]
        assert sender.send.encrypt(b"", plaintext) == ciphertext
        assert receiver.receive.decrypt(b"", ciphertext) == plaintext


def test_every_changed_bit_of_the_first_message_is_refused() -> None:
    first = initiator().write_first(b"payload")
    assert responder().read_first(first) == b"payload"
    for place in range(len(first) * 8):
        if place == 255:
            continue  # the top bit of a Curve25519 key is ignored by the DH (RFC 7748), see below
        changed = bytearray(first)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(ProtocolError):
            responder().read_first(bytes(changed))


def test_the_ignored_bit_of_an_ephemeral_key_is_bound_by_the_hash() -> None:
    changed = bytearray(initiator().write_first())
    changed[31] ^= 0x80
    with pytest.raises(ProtocolError, match="does not open"):
        responder().read_first(bytes(changed))


def test_every_changed_byte_of_the_second_message_is_refused() -> None:
    one, two = initiator(), responder()
    two.read_first(one.write_first())
    second, _ = two.write_second(b"payload")
    for place in range(len(second)):
        again = initiator()
        again.write_first()
        changed = bytearray(second)
        changed[place] ^= 0xFF
        with pytest.raises(ProtocolError):
            again.read_second(bytes(changed))
    assert one.read_second(second)[0] == b"payload"


def test_every_truncation_is_refused() -> None:
    one, two = initiator(), responder()
    first = one.write_first()
    for length in range(len(first)):
        with pytest.raises(ProtocolError):
            responder().read_first(first[:length])
    two.read_first(first)
    second, _ = two.write_second()
    for length in range(len(second)):
        again = initiator()
        again.write_first()
        with pytest.raises(ProtocolError):
            again.read_second(second[:length])


def test_another_prologue_or_another_responder_opens_nothing() -> None:
    with pytest.raises(ProtocolError):
        responder(prologue=b"q").read_first(initiator(prologue=b"p").write_first())
    with pytest.raises(ProtocolError):
        responder(static=bytes([9]) * 32).read_first(initiator().write_first())


def test_only_the_holder_of_the_known_key_can_answer() -> None:
    one = initiator()
    impostor = Responder(prologue=b"p", static=bytes([9]) * 32, ephemeral=EPHEMERAL_R)
    with pytest.raises(ProtocolError):
        impostor.read_first(one.write_first())
    # One that skips reading, and only knows the initiator's public keys, makes no valid answer either.
    impostor._remote_ephemeral = public_of(EPHEMERAL_I)
    impostor.remote_static = public_of(STATIC_I)
    with pytest.raises(ProtocolError):
        one.read_second(impostor.write_second()[0])


@pytest.mark.parametrize("point", LOW_ORDER)
def test_points_of_low_order_are_refused(point: str) -> None:
    bad = bytes.fromhex(point)
    with pytest.raises(ProtocolError, match="low order"):
        initiator(remote=bad).write_first()
    with pytest.raises(ProtocolError, match="low order"):
        responder().read_first(bad + bytes(64))
    one = initiator()
    one.write_first()
    with pytest.raises(ProtocolError, match="low order"):
        one.read_second(bad + bytes(16))


def test_each_direction_has_its_own_key() -> None:
    one, two = shake_hands()
    assert one.send.encrypt(b"", b"x") != two.send.encrypt(b"", b"x")
    sealed = one.send.encrypt(b"", b"reflected")
    with pytest.raises(ProtocolError):
        one.receive.decrypt(b"", sealed)


def test_a_failure_leaves_the_counter() -> None:
    one, two = shake_hands()
    sealed = one.send.encrypt(b"ad", b"x")
    with pytest.raises(ProtocolError):
        two.receive.decrypt(b"other", sealed)
    with pytest.raises(ProtocolError):
        two.receive.decrypt(b"ad", sealed[:10])
    assert two.receive.nonce == 0
    assert two.receive.decrypt(b"ad", sealed) == b"x"
    assert two.receive.nonce == 1


def test_counters_run_out_instead_of_around() -> None:
    cipher = CipherState(bytes(32))
    cipher.nonce = MAX_NONCE
    last = cipher.encrypt(b"", b"x")
    with pytest.raises(ProtocolError, match="counter"):
        cipher.encrypt(b"", b"x")
    opener = CipherState(bytes(32))
    opener.nonce = MAX_NONCE
    assert opener.decrypt(b"", last) == b"x"
    with pytest.raises(ProtocolError, match="counter"):
        opener.decrypt(b"", last)
