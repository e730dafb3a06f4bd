"""Encryption required: whatever happens to nodes, nothing of what containers say is seen between them."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.support.carrying import Counted, Wire
from tests.support.lab import Lab
from tests.support.netns import PASSES_WITHIN, wait_for
from tests.support.pairs import two
from tests.support.underlay_faults import dropping, move, own_address

pytestmark = [pytest.mark.root, pytest.mark.timeout(600), pytest.mark.needs_kernel("wireguard")]

WIREGUARD = "udp dport { 51820, 51821 }"
"""What carries everything, in nft's words."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Yield a lab of three nodes that must encrypt."""
    made = Lab(tmp_path_factory.mktemp("encrypted"), "--encryption", "required", "--nodes", "3")
    made.up()
    yield made
    made.down()


def test_nothing_is_seen_in_clear_while_nodes_join_move_rotate_and_restart(lab: Lab) -> None:
    underlay = lab.host("underlay")
    with two(lab, "web", "db") as pair:
        lab.netctl("connect", "web", "db", "--port", "5432", "--port", "1000/udp")
        assert pair.tcp(5432, seconds=PASSES_WITHIN)
        assert not pair.tcp(5433)
        node = lab.host("n2")
        old, new = own_address(node), "172.31.77.2"
        with (
            Wire(underlay, "n1") as first,
            Wire(underlay, "n2") as second,
            Wire(pair.one, "eth0") as inside,
            Counted(pair.one, pair.other, (pair.other_address, 1000)),
        ):
            lab.netctl("node", "rotate-key", "n1")
            four = ("lab", "up", "--dir", str(lab.directory), "--nodes", "4")
            lab.netctl(*four)
            os.kill(lab.pid("n2"), signal.SIGKILL)
            wait_for(lambda: {row["name"]: row["pid"] for row in lab.state()["processes"]}["n2"] is None, 10)
            lab.netctl(*four)
            move(node, old, new)
            wait_for(lambda: lab.netctl("node", "show", "n2", "--json").json["underlay"] == new, 10)
            assert pair.tcp(5432, seconds=PASSES_WITHIN)
            move(node, new, old)
            wait_for(lambda: lab.netctl("node", "show", "n2", "--json").json["underlay"] == old, 10)
            assert pair.tcp(5432, seconds=PASSES_WITHIN)
        ends = socket.inet_aton(pair.one_address), socket.inet_aton(pair.other_address)
        clear = ends[0] + ends[1], ends[1] + ends[0]

        def seen(wire: Wire) -> int:
            return sum(any(text in frame for text in clear) for frame in wire.frames)

        # The control: where it is not encrypted yet, it is found.
        assert seen(inside) > 100
        assert min(len(first.frames), len(second.frames)) > 100
        assert (seen(first), seen(second)) == (0, 0)


def test_what_cannot_be_encrypted_is_down_and_says_so(lab: Lab) -> None:
    underlay = lab.host("underlay")
    assert "nctg" not in lab.host("n1").ip("-o", "link")
    assert "nctv" not in lab.host("n1").ip("-o", "link")
    with two(lab, "web", "db") as pair:
        lab.netctl("connect", "web", "db", "--port", "5432")
        assert pair.tcp(5432, seconds=PASSES_WITHIN)
        with dropping(lab.host("n2"), WIREGUARD), Wire(underlay, "n2") as wire:
            assert not pair.tcp(5432)
            wait_for(lambda: lab.netctl("doctor", status=None).status == 1, 15, "the doctor to say so")
            assert not pair.tcp(5432)
        ends = socket.inet_aton(pair.one_address) + socket.inet_aton(pair.other_address)
        assert not any(ends in frame for frame in wire.frames)
        wait_for(lambda: lab.netctl("doctor", status=None).status == 0, 30, "the doctor to be content")
        assert pair.tcp(5432, seconds=PASSES_WITHIN)
