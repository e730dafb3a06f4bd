"""A WireGuard key is changed under way: nothing is lost, nothing is seen, nothing of the old one is left."""

from __future__ import annotations

import socket

import pytest

from firewall_rules import names
from tests.support.agents import permit
from tests.support.carrying import Counted, Wire
from tests.support.netns import PASSES_WITHIN, udp_passes
from tests.support.whole_nodes import UNDERLAY, overlay

pytestmark = [pytest.mark.root, pytest.mark.needs_kernel("wireguard")]

PORTS = ("1000/udp", "1001/udp", "1002/udp")
OLD, NEW = 1, 2


def test_a_key_is_rotated_without_loss() -> None:
    with overlay(["wireguard"], nodes=3, containers=1) as net:
        n1, n2, n3 = net.nodes
        (one, web), (other, database), (third, cache) = net.containers.items()
        permits = [
            permit(source, destination, port)
            for source, destination in ((one, other), (other, one), (third, one), (other, third))
            for port in PORTS
        ]
        net.want(*permits)
        assert udp_passes(web, database, other, 1002, seconds=PASSES_WITHIN)
        assert udp_passes(cache, web, one, 1002, seconds=PASSES_WITHIN)
        old = n1.facts.wireguard
        with (
            Wire(n1.namespace, UNDERLAY) as wire,
            Counted(web, database, (other, 1000)) as there,
            Counted(database, web, (one, 1000)) as back,
            Counted(cache, web, (one, 1001)) as from_third,
            Counted(database, cache, (third, 1000)) as elsewhere,
        ):
            n1.hold(OLD, NEW)  # it makes the new key and a second link, and says so
            net.want(*permits)
            n1.look()
            assert [end.generation for end in n1.facts.wireguard] == [OLD, NEW]
            n1.hold(NEW, OLD)  # it sends from the new one
            n1.want(*permits)
            for peer in (n2, n3):  # its peers follow, each in its own time
                peer.knows(n1.peer_of(peer))
                net.want(*permits)
            n1.hold(NEW)  # the old one goes
            n1.want(*permits)
            lost = [stream.lost() for stream in (there, back, from_third, elsewhere)]
        assert lost == [[], [], [], []]
        inside = [socket.inet_aton(one) + socket.inet_aton(a) for a in (other, third)]
        inside += [socket.inet_aton(a) + socket.inet_aton(one) for a in (other, third)]
        assert len(wire.frames) > 100
        assert not any(text in frame for frame in wire.frames for text in inside), "no packet in clear"
        n1.look()
        assert [end.generation for end in n1.facts.wireguard] == [NEW]
        assert not {end.key for end in old} & {end.key for end in n1.facts.wireguard}
        assert set(n1.links().wireguard) == {names.wireguard_device(NEW)}
        assert udp_passes(web, database, other, 1002, seconds=PASSES_WITHIN)
