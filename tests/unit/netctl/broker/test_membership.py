from __future__ import annotations

import pytest

from netctl.broker import lookup, plan
from netctl.broker.commands import AddInvite, EnrolNode, EnrolUser, Expire, SetDraining, UpdateFacts
from netctl.broker.snapshot import Delete, Invite
from netctl.errors import ExistsError, InvalidError, NotFoundError, RefusedError, UnauthorisedError
from tests.support.broker import World, facts


@pytest.fixture
def world() -> World:
    made = World()
    made.node("n1")
    made.node("n2")
    return made


def test_joining_uses_the_invite_up_in_the_same_decision(world: World) -> None:
    world.do(AddInvite("hash", "node", None, world.now + 1))
    decision = world.do(EnrolNode("hash", "n3", "its key", facts(3)))
    invite = Invite("hash", "node", None, world.now + 1)
    assert Delete(invite) in decision.changes
    with pytest.raises(UnauthorisedError, match="unknown, used up or expired"):
        world.do(EnrolNode("hash", "n4", "other key", facts(4)))


def test_a_joining_node_is_told_to_all_others_and_not_to_itself(world: World) -> None:
    decision = world.node("n3")
    assert decision.nodes == {"n1", "n2"}
    assert [p.name for p in decision.deltas["n1"].peers] == ["n3"]
    assert decision.deltas["n1"].header is not None
    assert set(world.state("n3").peers) == {"n1", "n2"}
    assert world.snapshot.changed["n3"] == world.snapshot.revision


def test_keys_are_known_by_what_they_open(world: World) -> None:
    admin, node = world.snapshot.accounts["admin"], world.snapshot.nodes["n1"]
    assert lookup.account_by_key(world.snapshot, admin.key) == admin
    assert lookup.node_by_key(world.snapshot, node.key) == node
    assert lookup.node_by_key(world.snapshot, admin.key) is None
    assert lookup.account_by_key(world.snapshot, node.key) is None
    assert lookup.node_by_key(world.snapshot, "nobody's") is None
    assert lookup.account_by_key(world.snapshot, "nobody's") is None


def _refused(world: World, command: EnrolNode | EnrolUser) -> None:
    before = world.snapshot
    with pytest.raises(UnauthorisedError) as caught:
        world.do(command)
    assert caught.value.remedy
    assert world.snapshot is before


def test_an_invite_opens_only_what_it_is_for(world: World) -> None:
    world.do(AddInvite("for a user", "user", None, world.now + 1))
    world.do(AddInvite("for n9", "node", "n9", world.now + 1))
    _refused(world, EnrolNode("nothing", "n3", "k", facts(3)))
    _refused(world, EnrolNode("for a user", "n3", "k", facts(3)))
    _refused(world, EnrolUser("for n9", "n9", "k"))
    _refused(world, EnrolNode("for n9", "n3", "k", facts(3)))
    world.now += 1
    _refused(world, EnrolNode("for n9", "n9", "k", facts(9)))
    world.now -= 0.001
    world.do(EnrolNode("for n9", "n9", "k", facts(9)))


def test_names_keys_and_underlays_are_taken_once(world: World) -> None:
    world.do(AddInvite("t", "node", None, world.now + 1))
    key = world.snapshot.nodes["n1"].key
    with pytest.raises(ExistsError, match="called n1 already"):
        world.do(EnrolNode("t", "n1", "k", facts(3)))
    with pytest.raises(ExistsError, match="belongs to the node n1"):
        world.do(EnrolNode("t", "n3", key, facts(3)))
    with pytest.raises(ExistsError, match=r"underlay address 192\.168\.0\.2 is that of node n1"):
        world.do(EnrolNode("t", "n3", "k", facts(1)))
    with pytest.raises(InvalidError, match="no valid name"):
        world.do(EnrolNode("t", "N_3", "k", facts(3)))
    with pytest.raises(ExistsError, match="an account is called admin"):
        world.do(AddInvite("u", "user", "admin", world.now + 1))
    with pytest.raises(ExistsError, match="a node is called n1"):
        world.do(AddInvite("u", "node", "n1", world.now + 1))
    with pytest.raises(ExistsError, match="recorded already"):
        world.do(AddInvite("t", "node", None, world.now + 1))
    world.do(EnrolNode("t", "n3", "k", facts(3)))


def test_expired_invites_are_dropped(world: World) -> None:
    world.do(AddInvite("short", "user", None, world.now + 1))
    world.do(AddInvite("long", "user", None, world.now + 100))
    world.now += 1
    world.do(Expire())
    assert set(world.snapshot.invites) == {"long"}
    assert world.do(Expire()).changes == ()


def test_facts_that_peers_see_reach_them_and_others_do_not(world: World) -> None:
    assert not world.do(UpdateFacts("n1", facts(1))).changes
    decision = world.do(UpdateFacts("n1", facts(1, version="2", networks=("10.2.0.0/24",))))
    assert decision.changes
    assert not decision.nodes
    decision = world.do(UpdateFacts("n1", facts(1, underlay="192.168.9.9")))
    assert decision.nodes == {"n1", "n2"}
    assert world.state("n2").peers["n1"].underlay == "192.168.9.9"
    assert "192.168.9.9/32" in world.state("n1").closed
    with pytest.raises(ExistsError, match="that of node n2"):
        world.do(UpdateFacts("n1", facts(2)))
    with pytest.raises(NotFoundError, match="did you mean"):
        world.do(UpdateFacts("n3", facts(3)))


def test_draining_reaches_no_node(world: World) -> None:
    decision = world.do(SetDraining("n1", draining=True))
    assert not decision.nodes
    assert world.snapshot.nodes["n1"].draining
    assert not world.do(SetDraining("n1", draining=True)).changes
    world.rm_node("n1")
    with pytest.raises(RefusedError, match="being removed"):
        world.do(SetDraining("n1", draining=False))


def test_a_node_with_containers_goes_only_by_force(world: World) -> None:
    for name in ("a", "b", "c", "d"):
        world.run(name, "n1")
    world.run("far", "n2")
    world.connect("a", "far")
    with pytest.raises(RefusedError, match=r"n1 has containers: a, b, c, \.\.\."):
        world.rm_node("n1")
    decision = world.rm_node("n1", force=True)
    assert decision.nodes == {"n1", "n2"}
    assert set(world.snapshot.bare_names) == {"far"}
    assert not world.snapshot.connections
    assert not world.permits("n2")


def test_a_removed_node_takes_everything_out_and_is_gone_when_it_says_so(world: World) -> None:
    key = world.snapshot.nodes["n1"].key
    removal = world.rm_node("n1").revision
    assert world.state("n1").block is None
    assert not world.state("n1").peers
    assert not world.state("n1").closed
    assert world.held() == {"10.1.0.0/16": {"n1", "n2"}}
    again = world.rm_node("n1")
    assert (again.revision, again.nodes, again.changes) == (removal, {"n1", "n2"}, ())
    world.acknowledge("n1")
    assert set(world.snapshot.nodes) == {"n2"}
    assert lookup.node_by_key(world.snapshot, key) is None
    assert world.held() == {"10.1.0.0/16": {"n2"}}
    with pytest.raises(NotFoundError):
        plan.node_state(world.snapshot, "n1")


@pytest.mark.parametrize("removing", [False, True])
def test_a_node_that_cannot_be_reached_is_fenced(world: World, *, removing: bool) -> None:
    world.node("n3")
    key = world.snapshot.nodes["n1"].key
    world.run("on-n2", "n2")
    world.run("on-n1", "n1")
    world.connect("on-n1", "on-n2")
    world.rm("on-n2")
    world.rm("on-n1")
    if removing:
        world.rm_node("n1")
    decision = world.rm_node("n1", force=True, reachable=False)
    assert "n1" not in decision.nodes
    assert lookup.node_by_key(world.snapshot, key) is None
    assert all("n1" not in awaiting for awaiting in world.held().values())
    assert world.held()["10.1.0.0/16"] == {"n2", "n3"}


def test_the_only_nodes_block_is_free_once_it_is_fenced() -> None:
    world = World()
    world.node("n1")
    world.rm_node("n1", force=True, reachable=False)
    assert world.held() == {}
    world.node("n2")
    assert world.snapshot.nodes["n2"].block == "10.1.0.0/16"
