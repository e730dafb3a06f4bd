"""An invite is one word, and a damaged one is recognised before anyone is asked."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netctl.errors import InvalidError
from netctl.wire import invite as invites
from netctl.wire.invite import Invite, new_token, token_hash

TOKEN = new_token(bytes(range(32)))
INVITE = Invite("node", "n1", ("tcp://192.0.2.1:2020", "ipc:///run/b"), b"\7" * 32, TOKEN, 1_800_000_000.0)


@pytest.mark.parametrize("name", ["n1", None])
@pytest.mark.parametrize("kind", ["user", "node"])
def test_what_is_written_is_read(kind: str, name: str | None) -> None:
    given_invite = Invite(kind, name, INVITE.addresses, INVITE.broker_key, TOKEN, 5.0)  # type: ignore[arg-type]
    text = invites.format(given_invite)
    assert re.fullmatch(r"netctl-invite-[A-Za-z0-9_-]+", text)
    assert invites.parse(text) == given_invite
    assert invites.parse(f"  {text}\n") == given_invite


def test_every_truncation_and_every_changed_character_is_recognised() -> None:
    text = invites.format(INVITE)
    for length in range(len(text)):
        with pytest.raises(InvalidError, match=r"no invite|incomplete"):
            invites.parse(text[:length])
    for place in range(len(text)):
        other = "A" if text[place] != "A" else "B"
        with pytest.raises(InvalidError, match=r"no invite|incomplete"):
            invites.parse(text[:place] + other + text[place + 1 :])


@pytest.mark.parametrize("tail", ["x", "=", "==", "A", "AA", "AAA", "AAAA", " x", "\n\nx", "é", "/", "+"])
def test_what_follows_an_invite_is_recognised(tail: str) -> None:
    with pytest.raises(InvalidError) as caught:
        invites.parse(invites.format(INVITE) + tail)
    assert "copy the whole invite" in caught.value.remedy


@given(st.text(max_size=60))
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidError):
        invites.parse(text)
    with pytest.raises(InvalidError):
        invites.parse(invites.PREFIX + text)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "admin"},
        {"addresses": []},
        {"addresses": ["http://x"]},
        {"addresses": ["tcp://b:1"] * 17},
        {"broker_key": b"\7" * 31},
        {"token": ""},
        {"token": "t" * 129},
        {"expires_at": "soon"},
        {"name": "No Name"},
    ],
)
def test_contents_are_checked_though_the_checksum_is_right(changes: dict[str, object]) -> None:
    plain = msgspec.to_builtins(INVITE, builtin_types=(bytes,))
    assert invites.parse(_written(plain)) == INVITE
    with pytest.raises(InvalidError, match="does not know") as caught:
        invites.parse(_written({**plain, **changes}))
    assert caught.value.__cause__ is None


def _written(plain: dict[str, object]) -> str:
    data = msgspec.msgpack.encode(plain)
    return invites.PREFIX + invites._to_text(data + invites._checksum(data))


def test_the_length_is_bounded() -> None:
    with pytest.raises(InvalidError, match="no invite"):
        invites.parse(invites.PREFIX + "A" * 5000)
    many = Invite("node", None, tuple(f"ipc:///{'x' * 250}{n}" for n in range(16)), b"\7" * 32, TOKEN, 5.0)
    with pytest.raises(InvalidError, match="fewer addresses"):
        invites.format(many)


def test_tokens() -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", TOKEN)
    assert new_token(bytes(32)) != TOKEN
    assert re.fullmatch(r"[0-9a-f]{64}", token_hash(TOKEN))
    # BLAKE2b-256 of "abc", as `b2sum -l 256` prints it.
    assert token_hash("abc") == "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"
    with pytest.raises(ValueError, match="32 bytes"):
        new_token(bytes(16))


def test_the_token_shows_in_no_repr() -> None:
    assert TOKEN not in repr(INVITE)
