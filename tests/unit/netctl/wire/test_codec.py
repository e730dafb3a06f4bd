"""Whatever comes in is bounded and typed before anyone looks at it."""

from __future__ import annotations

import math
import random
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netctl.errors import InvalidError, ProtocolError
from netctl.model import NodeFacts, NodeState, Permit, Port, Workload
from netctl.wire.codec import (
    MAX_CLIENT_MESSAGE,
    MAX_ID,
    MAX_MESSAGE,
    Decoded,
    convert_body,
    decode,
    decode_tagged,
    encode,
    encode_tagged,
)
from netctl.wire.messages import (
    REGISTRY,
    Connect,
    Envelope,
    Hello,
    Ping,
    Pong,
    Reset,
    RunContainer,
    StreamData,
)
from tests.support.examples import examples
from tests.unit.netctl.wire.message_strategies import messages_of, with_unknown_fields

CONNECT = Envelope(7, Connect("web", "db", (Port("tcp", 5432),)))


def wrap(name: Any, body: Any, number: Any = 1) -> bytes:
    return msgspec.msgpack.encode({"t": name, "i": number, "b": body})


def connect_with(**changes: Any) -> bytes:
    return wrap("Connect", {"source": "web", "destination": "db", **changes})


@pytest.mark.parametrize("kind", REGISTRY.values(), ids=list(REGISTRY))
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_message_comes_back_as_it_was(kind: type, data: st.DataObject) -> None:
    envelope = Envelope(data.draw(st.integers(0, MAX_ID)), data.draw(messages_of(kind)))
    assert decode(encode(envelope)) == Decoded(envelope, 0)


@pytest.mark.parametrize("kind", REGISTRY.values(), ids=list(REGISTRY))
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_unknown_fields_are_skipped_and_counted_at_any_depth(
    kind: type, data: st.DataObject, seed: int
) -> None:
    message = data.draw(messages_of(kind))
    body, added = with_unknown_fields(message, random.Random(seed))
    assert decode(wrap(kind.__name__, msgspec.Raw(body), 3)) == Decoded(Envelope(3, message), added)


def test_unknown_fields_of_the_envelope_count_too() -> None:
    data = msgspec.msgpack.encode({"t": "Ping", "i": 0, "b": {}, "trace": [1, 2], "z": None})
    assert decode(data) == Decoded(Envelope(0, Ping()), 2)


def test_a_misspelt_optional_field_is_seen_though_the_length_is_the_same() -> None:
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(CONNECT.message))
    plain["kex"] = plain.pop("key")
    decoded = decode(wrap("Connect", plain, 7))
    assert decoded == Decoded(CONNECT, 1)


def test_left_out_optional_fields_and_another_order_are_nothing_unknown() -> None:
    assert decode(wrap("Connect", {"destination": "db", "source": "web"})) == Decoded(
        Envelope(1, Connect("web", "db")), 0
    )
    swapped = msgspec.msgpack.encode({"b": {}, "i": 1, "t": "Ping"})
    assert decode(swapped) == Decoded(Envelope(1, Ping()), 0)


def test_maps_and_sets_of_any_size_are_counted_right() -> None:
    permits = frozenset(Permit("10.1.0.2", "10.2.0.2", Port("tcp", n)) for n in range(1, 300))
    message = Reset(1, 2, NodeState("n1", "10.1.0.0/16", "10.0.0.0/8", "gre", 1400, permits=permits))
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    plain.update((f"later{n}", n) for n in range(70_000))
    plain["state"].update((f"later{n}", n) for n in range(300))
    plain["state"]["permits"][17]["port"]["later"] = 1
    assert decode(wrap("Reset", plain, 0)) == Decoded(Envelope(0, message), 70_301)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (connect_with(source="Web"), "matching regex"),
        (connect_with(source="web\n"), "matching regex"),
        (connect_with(source="a" * 64), "matching regex|length"),
        (connect_with(source=b"web"), "Expected `str`"),
        (connect_with(source=None), "Expected `str`"),
        (connect_with(timeout=-1.0), ">= 0"),
        (connect_with(timeout=math.nan), ">= 0"),
        (connect_with(timeout=math.inf), "<= "),
        (connect_with(timeout="10"), "Expected `float`"),
        (connect_with(key="k" * 65), "length <= 64"),
        (connect_with(ports=[{"protocol": "tcp"}]), "tcp with port number 0"),
        (connect_with(ports=[{"protocol": "tcp", "number": 65536}]), "<= 65535"),
        (connect_with(ports=[{"protocol": "tcp", "number": 5.0}]), "Expected `int`"),
        (connect_with(ports=[{"protocol": "tcp", "number": True}]), "Expected `int`"),
        (connect_with(ports=[{"protocol": "sctp", "number": 5}]), "Invalid enum"),
        (connect_with(ports=[{"protocol": "tcp", "number": 1}] * 257), "length <= 256"),
        (wrap("Connect", {"source": "web"}), "missing required field"),
        (wrap("Connect", []), "Expected `object`"),
        (wrap("Connect", None), "Expected `object`"),
        (wrap("Ping", {}, -1), ">= 0"),
        (wrap("Ping", {}, 2**31), "<= 2147483647"),
        (wrap("Ping", {}, "1"), "Expected `int`"),
        (wrap(1, {}), "Expected `str`"),
        (wrap("P" * 65, {}), "length <= 64"),
        (wrap("Nope", {}), "unknown message 'Nope'"),
        (wrap("Pi\x1b[31mng", {}), r"unknown message 'Pi\\x1b\[31mng'"),
        (wrap("Envelope", {"id": 1, "message": None}), "unknown message"),
        (msgspec.msgpack.encode({"t": "Ping", "i": 1}), "missing required field"),
        (msgspec.msgpack.encode(["Ping", 1, {}]), "Expected `object`"),
        (wrap("Ping", {}) + b"\0", "trailing"),
        (b"", "truncated"),
        (b"\xc1", "malformed"),
        (b"\x83\xa1t\xa2\xff\xfe\xa1i\x01\xa1b\x80", "malformed"),
        (b"\x83\xa1t\xa4Ping\xa1i\x01\xa1b\xdf\xff\xff\xff\xff", "truncated"),
        (wrap("StreamData", {"stream": 1, "channel": 1, "data": bytes(65537)}), "length <= 65536"),
        (wrap("StreamData", {"stream": 1, "channel": 3}), "Invalid enum"),
    ],
)
def test_what_is_not_of_the_agreed_form_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        decode(data)


def test_the_control_of_those_refusals_is_taken() -> None:
    data = connect_with(timeout=1.5, key="k" * 64, ports=[{"protocol": "tcp", "number": 65535}] * 256)
    assert decode(data).envelope.message.ports == (Port("tcp", 65535),) * 256


def test_a_message_that_is_not_allowed_is_refused_unread() -> None:
    data = encode(CONNECT)
    assert decode(data, {Connect, Ping}).envelope == CONNECT
    with pytest.raises(ProtocolError, match="Connect may not be sent"):
        decode(data, {Ping, Pong})
    with pytest.raises(ProtocolError, match="Connect may not be sent"):
        decode(wrap("Connect", {"garbage": 1}), {Ping})


@pytest.mark.parametrize("limit", [MAX_CLIENT_MESSAGE, MAX_MESSAGE])
def test_the_size_is_bounded_to_the_byte(limit: int) -> None:
    empty = len(wrap("Ping", {"x": bytes(70_000)})) - 70_000
    fits = wrap("Ping", {"x": bytes(limit - empty)})
    assert len(fits) == limit
    assert decode(fits, None, limit) == Decoded(Envelope(1, Ping()), 1)
    with pytest.raises(ProtocolError, match=f"{limit} are allowed"):
        decode(wrap("Ping", {"x": bytes(limit - empty + 1)}), None, limit)


def test_what_is_too_large_is_not_sent() -> None:
    workload = Workload("process", ("x" * 4096,) * 100)
    large = Envelope(1, RunContainer("web", workload))
    assert len(encode(large)) > MAX_CLIENT_MESSAGE
    with pytest.raises(InvalidError, match="262144 are allowed"):
        encode(large, MAX_CLIENT_MESSAGE)


def test_what_is_no_message_is_not_sent() -> None:
    with pytest.raises(TypeError, match="no registry"):
        encode(Envelope(1, Port("any")))


@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1x", b"\xdd\0\0\0\1", b"\xc7\x01"])
def test_depth_is_bounded(opening: bytes) -> None:
    nested = b"\x81\xa1x" + opening * 100_000 + b"\xc0"
    with pytest.raises(ProtocolError):
        decode(wrap("Ping", msgspec.Raw(nested)))


def test_unknown_fields_are_not_built_in_memory() -> None:
    body = msgspec.Raw(b"\x81\xa1x\xdd" + (4_000_000).to_bytes(4, "big") + b"\x80" * 4_000_000)
    data = wrap("Ping", body)
    tracemalloc.start()
    try:
        assert decode(data).unknown_fields == 1
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_an_error_quotes_little_and_nothing_that_steers_a_terminal() -> None:
    data = wrap("Connect", {"source": "web", "destination": "db", "ports": [{"protocol": "\x1b[2J" * 1000}]})
    with pytest.raises(ProtocolError) as caught:
        decode(data)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


@settings(max_examples=examples(300), deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data)


JSON_LIKE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=9),
        st.binary(max_size=9),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=examples(400), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(REGISTRY)), st.integers(-2, 2**32), st.data())
def test_random_bodies_never_raise_anything_else(name: str, number: int, data: st.DataObject) -> None:
    fields = [field.name for field in REGISTRY[name].__attrs_attrs__]  # type: ignore[attr-defined]
    body = data.draw(st.dictionaries(st.sampled_from([*fields, "later"]), JSON_LIKE, max_size=6))
    try:
        message = decode(wrap(name, body, number)).envelope.message
    except ProtocolError:
        return
    assert type(message) is REGISTRY[name]


@settings(max_examples=examples(400), deadline=None)
@given(st.integers(0, 2**32))
def test_damaged_messages_never_raise_anything_else(seed: int) -> None:
    chance = random.Random(seed)
    facts = NodeFacts("192.0.2.1", "", 1500, ("gre", "vxlan"), "nftables", ("process",))
    envelope = chance.choice(
        [CONNECT, Envelope(0, Hello(1, 2, "d", facts)), Envelope(0, StreamData(1, 1, b"data"))]
    )
    data = bytearray(encode(envelope))
    for _ in range(chance.randint(1, 4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    del data[chance.randint(len(data) // 2, len(data)) :]
    try:
        decoded = decode(bytes(data))
    except ProtocolError:
        return
    assert type(decoded.envelope.message) in REGISTRY.values()


def test_tagged_objects_of_any_registry() -> None:
    registry = {"Port": Port, "Permit": Permit}
    permit = Permit("10.1.0.2", "10.2.0.2", Port("udp", 53), 5.0)
    assert decode_tagged(encode_tagged(permit, registry), registry) == permit
    with pytest.raises(ProtocolError, match="unknown message 'Port'"):
        decode_tagged(encode_tagged(Port("any"), registry), {"Permit": Permit})
    with pytest.raises(ProtocolError, match="malformed Permit"):
        decode_tagged(msgspec.msgpack.encode({"t": "Permit", "b": {"source": "nowhere"}}), registry)
    with pytest.raises(ProtocolError, match="malformed tagged object"):
        decode_tagged(b"\x90", registry)
    with pytest.raises(ProtocolError, match="10 are allowed"):
        decode_tagged(encode_tagged(permit, registry), registry, 10)
    with pytest.raises(InvalidError, match="10 are allowed"):
        encode_tagged(permit, registry, 10)
    with pytest.raises(TypeError, match="no registry"):
        encode_tagged(permit, {"Port": Port})


def test_bodies_carried_as_plain_data() -> None:
    registry = {"Port": Port}
    assert convert_body("Port", {"protocol": "udp", "number": 53}, registry) == Port("udp", 53)
    for body in ({"protocol": "udp"}, {"protocol": "udp", "number": "53"}, [], None):
        with pytest.raises(ProtocolError, match="malformed Port"):
            convert_body("Port", body, registry)
    with pytest.raises(ProtocolError, match="unknown message"):
        convert_body("Permit", {}, registry)
