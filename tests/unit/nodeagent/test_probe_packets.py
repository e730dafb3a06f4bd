"""Probes as bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.probe_packets import LARGEST, SMALL, Probe, decode, encode
from tests.support.netns import checksum

PROBE = Probe("10.1.0.1", "10.2.0.1", "request", b"abcdefgh", 1476)


@given(
    st.builds(
        Probe,
        st.ip_addresses(v=4).map(str),
        st.ip_addresses(v=4).map(str),
        st.sampled_from(("request", "reply")),
        st.binary(min_size=8, max_size=8),
        st.integers(SMALL, LARGEST),
    )
)
def test_what_is_encoded_is_decoded(probe: Probe) -> None:
    packet = encode(probe)
    assert len(packet) == probe.size
    assert decode(packet) == probe


def test_packet_is_what_other_hosts_take() -> None:
    packet = encode(PROBE)
    assert checksum(packet[:20]) == 0
    assert packet[:10].hex() == "450005c400004000fffd"
    assert packet[12:20] == bytes((10, 1, 0, 1, 10, 2, 0, 1))


def test_padding_of_a_link_is_left_out() -> None:
    assert decode(encode(PROBE) + b"\1\2\3") == PROBE


def with_header(packet: bytes, at: int, value: bytes) -> bytes:
    """Change bytes of the IPv4 header, and put its checksum right."""
    header = bytearray(packet[:20])
    header[at : at + len(value)] = value
    header[10:12] = b"\0\0"
    header[10:12] = struct.pack("!H", checksum(bytes(header)))
    return bytes(header) + packet[20:]


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(encode(PROBE)[:63], id="short"),
        pytest.param(encode(PROBE)[:-1], id="cut"),
        pytest.param(with_header(encode(PROBE), 0, b"\x46"), id="options"),
        pytest.param(with_header(encode(PROBE), 6, b"\x20\0"), id="first-fragment"),
        pytest.param(with_header(encode(PROBE), 6, b"\0\0"), id="may-be-fragmented"),
        pytest.param(with_header(encode(PROBE), 8, b"\xfe"), id="forwarded"),
        pytest.param(with_header(encode(PROBE), 9, b"\x11"), id="udp"),
        pytest.param(with_header(encode(PROBE), 2, struct.pack("!H", 100)), id="two-lengths"),
        pytest.param(encode(PROBE)[:10] + b"\1\2" + encode(PROBE)[12:], id="checksum"),
        pytest.param(encode(PROBE)[:20] + b"nctq" + encode(PROBE)[24:], id="magic"),
        pytest.param(encode(PROBE)[:24] + b"\2" + encode(PROBE)[25:], id="version"),
        pytest.param(encode(PROBE)[:25] + b"\0" + encode(PROBE)[26:], id="no-kind"),
        pytest.param(encode(PROBE)[:25] + b"\3" + encode(PROBE)[26:], id="kind"),
    ],
)
def test_what_is_no_probe_is_none(packet: bytes) -> None:
    assert decode(with_header(encode(PROBE), 0, b"\x45")) == PROBE
    assert decode(packet) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_looked_at_without_harm(packet: bytes) -> None:
    assert decode(packet) is None or packet[20:24] == b"nctp"
