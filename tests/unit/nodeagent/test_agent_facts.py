"""An agent whose host changes while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

from netctl.errors import KernelError, UnavailableError
from netctl.model import Encapsulation, NodeDelta, NodeFacts
from netctl.wire.messages import Applied, Facts, Hello, Reset, Update
from nodeagent.helper_fake import LocalHelper
from nodeagent.helper_messages import FactsChanged
from nodeagent.host_side import RESYNC
from nodeagent.kernel.fake import FACTS
from nodeagent.kernel_state import HostFacts
from nodeagent.ops import SetRoute, SetTunnel
from nodeagent.own_facts import SHARE, OwnFacts
from tests.support.agents import FULL_FACTS, FakeNode, Life, container, peer, permit, state

WEB = container(2)
BASE = state([WEB], [peer(2), peer(3, "vxlan")], [permit(WEB.address, "10.2.0.2", "80/tcp")])
DIRECT = state([WEB], [peer(2, "direct")])
ALL_ENCAPSULATIONS: tuple[Encapsulation, ...] = ("gre", "vxlan", "wireguard", "direct")


class Host(LocalHelper):
    """A helper of a host that can be moved."""

    missing = ""
    asked = 0
    slowly: Callable[[], None] = staticmethod(lambda: None)

    def facts(self, underlay: str | None = None) -> HostFacts:
        type(self).asked += 1
        self.slowly()
        if self.missing:
            raise KernelError(self.missing, "give it one")
        return super().facts(underlay)


@attrs.define
class Moving:
    """A node with an agent whose facts a test changes."""

    node: FakeNode
    life: Life
    helpers: list[Host]

    def become(self, **changes: object) -> None:
        """Let the host be another one, and the helper notice."""
        self.node.kernel.host_facts = attrs.evolve(self.node.kernel.host_facts, **changes)
        self.notice()

    def lose(self, why: str = "eth0 has no IPv4 address") -> None:
        """Let the underlay's address vanish, and the helper notice."""
        self.helpers[-1].missing = why
        self.notice()

    def notice(self) -> None:
        self.helpers[-1].tell(FactsChanged())
        self.life.turn(2)

    @property
    def told(self) -> list[NodeFacts]:
        """Return the facts the broker heard, in order."""
        return [message.facts for message in self.life.link.sent if isinstance(message, Hello | Facts)]

    @property
    def locals(self) -> set[str]:
        """Return the addresses that tunnels go out from."""
        return {tunnel.local for tunnel in self.node.observed().tunnels.values()}


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[Moving]:
    node = FakeNode(tmp_path)
    helpers: list[Host] = []

    def spawn() -> Host:
        made = Host(node.host)
        made.missing = helpers[-1].missing if helpers else ""
        helpers.append(made)
        return made

    life = Life(node, spawn)
    life.agent.begin()
    life.meet(1, 10, BASE)
    life.turn(4)
    assert life.link.applied.errors == ()
    yield Moving(node, life, helpers)
    life.agent.close()


def test_a_moved_node_makes_its_tunnels_anew_and_tells_the_broker(moving: Moving) -> None:
    assert moving.locals == {"192.0.2.1"}
    before = moving.node.observed()
    moving.become(underlay="198.51.100.1", networks=("198.51.100.0/24",))
    after = moving.node.observed()
    assert moving.locals == {"198.51.100.1"}
    assert after.tunnels.keys() == before.tunnels.keys()
    assert after.routes == before.routes
    assert (after.host_policy, after.container_policies) == (before.host_policy, before.container_policies)
    assert [facts.underlay for facts in moving.told] == ["192.0.2.1", "198.51.100.1"]
    assert moving.told[-1].networks == ("198.51.100.0/24",)
    assert moving.life.link.applied.errors == ()


def test_only_what_changed_is_written(moving: Moving) -> None:
    moving.helpers[-1].applied.clear()
    moving.become(underlay="198.51.100.1")
    kinds = {type(operation) for operation in moving.helpers[-1].applied}
    assert {SetTunnel, SetRoute} <= kinds
    assert not {kind.__name__ for kind in kinds} & {"SetHostRules", "SetContainerRules", "SetPort", "SetEnd"}


def test_facts_that_are_as_they_were_are_told_to_nobody(moving: Moving) -> None:
    asked, looks = Host.asked, moving.node.kernel.observations
    moving.notice()
    assert Host.asked == asked + 1
    assert len(moving.told) == 1
    assert moving.node.kernel.observations == looks


def test_another_network_of_the_host_is_told_and_costs_no_look(moving: Moving) -> None:
    looks = moving.node.kernel.observations
    moving.become(networks=("192.0.2.0/24", "172.17.0.0/16"))
    assert moving.told[-1].networks == ("192.0.2.0/24", "172.17.0.0/16")
    assert moving.node.kernel.observations == looks
    moving.become(underlay_mtu=1400)
    assert moving.told[-1].underlay_mtu == 1400
    assert moving.node.kernel.observations > looks  # the control


def test_routes_along_the_underlay_are_looked_for_when_links_change(moving: Moving) -> None:
    moving.life.link.say(Reset(1, 11, DIRECT))
    moving.life.turn(3)
    assert moving.life.link.applied.revision == 11
    moving.life.clock += RESYNC / 10
    # The kernel takes them along with a link that goes down, and tells nobody.
    moving.node.kernel.routes.clear()
    moving.notice()
    assert list(moving.node.observed().routes) == ["10.2.0.0/16"]


def test_the_last_facts_stay_in_force_while_the_address_is_away(moving: Moving) -> None:
    moving.lose()
    (error,) = moving.life.link.applied.errors
    assert (error.subject, error.remedy) == ("", "give it one")
    assert "eth0 has no IPv4 address" in error.message
    assert moving.locals == {"192.0.2.1"}
    assert len(moving.told) == 1
    # What the broker wants is done all the same.
    moving.life.link.say(Update(1, 10, 11, NodeDelta(permits=(permit(WEB.address, "10.2.0.9"),))))
    moving.life.turn(2)
    assert moving.life.link.applied.revision == 11
    # It is tried again without being told, and ever more slowly.
    asked = Host.asked
    for _ in range(100):
        moving.life.clock += 1.0
        moving.life.turn()
    assert 3 < Host.asked - asked < 12
    assert [e.message for e in moving.life.link.applied.errors] == [error.message]
    moving.helpers[-1].missing = ""
    moving.become(underlay="198.51.100.1")
    assert moving.life.link.applied.errors == ()
    assert moving.locals == {"198.51.100.1"}
    assert moving.told[-1].underlay == "198.51.100.1"


def test_a_new_session_and_a_new_helper_begin_while_the_address_is_away(moving: Moving) -> None:
    moving.lose()
    moving.life.link.lose()
    moving.life.turn()
    moving.life.link.connect()
    moving.life.turn()
    assert [facts.underlay for facts in moving.told] == ["192.0.2.1", "192.0.2.1"]
    assert moving.life.link.postponed == []
    moving.life.link.say(Update(1, 10, 10, NodeDelta()))
    moving.life.turn(2)
    assert len(moving.life.link.applied.errors) == 1
    moving.life.agent._helper_lost(UnavailableError("killed"))
    moving.life.clock += 1.0
    moving.life.turn(2)
    assert len(moving.helpers) == 2
    assert len(moving.life.link.applied.errors) == 1
    moving.life.link.say(Update(1, 10, 11, NodeDelta(permits=(permit(WEB.address, "10.2.0.9"),))))
    moving.life.turn(2)
    assert moving.life.link.applied.revision == 11


def test_a_session_hears_of_facts_that_changed_without_one(moving: Moving) -> None:
    moving.life.link.lose()
    moving.life.turn()
    moving.become(underlay="198.51.100.1")
    assert moving.locals == {"198.51.100.1"}
    assert len(moving.told) == 1
    moving.life.link.connect()
    moving.life.turn()
    assert [type(message) for message in moving.life.link.sent].count(Hello) == 2
    assert moving.told[-1].underlay == "198.51.100.1"
    moving.life.link.say(Update(1, 10, 10, NodeDelta()))
    moving.life.turn(2)
    assert moving.life.link.said(Facts) == []
    # The control: within the session, what is new is told by itself.
    moving.become(underlay="198.51.100.2")
    assert [type(message) for message in moving.life.link.sent].count(Facts) == 1


def test_facts_that_change_before_the_broker_listens_are_told_once_it_does(moving: Moving) -> None:
    moving.life.link.lose()
    moving.life.turn()
    moving.life.link.connect()
    moving.life.turn()
    moving.become(underlay="198.51.100.1")
    assert moving.told[-1].underlay == "192.0.2.1"
    moving.life.link.say(Update(1, 10, 10, NodeDelta()))
    moving.life.turn(2)
    assert moving.told[-1].underlay == "198.51.100.1"


def test_the_session_looks_at_its_own_address_whenever_addresses_changed(moving: Moving) -> None:
    checks = moving.life.link.checks
    moving.notice()
    assert moving.life.link.checks == checks + 1
    moving.lose()
    assert moving.life.link.checks == checks + 2


def test_a_new_key_of_the_nodes_is_told_without_notice(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    node.kernel.host_facts = attrs.evolve(FACTS, encapsulations=ALL_ENCAPSULATIONS)
    life = Life(node)
    life.agent.begin()
    life.meet(1, 10, attrs.evolve(BASE, wireguard_generations=(1,)))
    life.turn(4)
    life.link.say(Reset(1, 11, attrs.evolve(BASE, wireguard_generations=(1, 2))))
    life.turn(4)
    assert life.link.applied.revision == 11
    told = life.link.said(Facts)[-1]
    assert isinstance(told, Facts)
    assert [end.generation for end in told.facts.wireguard] == [1, 2]
    life.link.say(Reset(1, 12, attrs.evolve(BASE, wireguard_generations=(2,))))
    life.turn(4)
    told = life.link.said(Facts)[-1]
    assert isinstance(told, Facts)
    assert [end.generation for end in told.facts.wireguard] == [2]
    life.agent.close()


def test_an_agent_cannot_begin_where_the_address_never_was(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)

    def spawn() -> Host:
        made = Host(node.host)
        made.missing = "eth9 is no address and no link of this host"
        return made

    life = Life(node, spawn)
    with pytest.raises(KernelError, match="eth9"):
        life.agent.begin()
    assert life.link.said(Applied) == []
    life.agent.close()


def test_facts_that_take_long_are_asked_rarely(tmp_path: Path) -> None:
    node = FakeNode(tmp_path)
    now = 100.0

    def slowly() -> None:
        nonlocal now
        now += 0.5

    helper = Host(node.host)
    helper.slowly = slowly  # type: ignore[method-assign]
    facts = OwnFacts(monotonic=lambda: now)
    assert facts.ask(helper) == attrs.evolve(FULL_FACTS, encapsulations=("gre", "vxlan"))
    assert facts.deadline == float("inf")
    facts.doubt()
    facts.doubt()
    assert not facts.due
    assert facts.deadline == now + SHARE * 0.5
    now = facts.deadline
    assert facts.due
    facts.ask(helper)
    assert not facts.due
    helper.close()
