from __future__ import annotations

import pytest

from netctl.broker import ipam, state
from netctl.errors import ExhaustedError, InvalidError, RefusedError
from tests.support.broker import World, facts


@pytest.mark.parametrize(("size", "usable"), [(16, 255), (20, 4095), (9, 1), (24, 4095)])
def test_the_first_block_is_reserved_and_numbers_have_twelve_bits(size: int, usable: int) -> None:
    assert ipam.usable_blocks("10.0.0.0/8", size) == usable


@pytest.mark.parametrize(
    ("supernet", "size"),
    [
        ("10.0.0.1/8", 16),  # host bits
        ("10.0.0.0/8", 8),  # no second block
        ("10.0.0.0/8", 31),  # no room for a container
        ("10.0.0.0/8", 33),
        ("fd00::/8", 16),
        ("ten", 16),
        ("0.0.0.0/0", 16),
        ("127.0.0.0/8", 16),
        ("169.254.0.0/16", 24),
        ("224.0.0.0/8", 16),
        ("240.0.0.0/8", 16),
    ],
)
def test_a_plan_that_cannot_work_is_refused(supernet: str, size: int) -> None:
    with pytest.raises(InvalidError) as caught:
        state.empty(supernet, size)
    assert caught.value.remedy


def test_nodes_get_blocks_from_the_lowest_up() -> None:
    world = World("10.8.0.0/13", 16)
    for number in range(1, 8):
        world.node(f"n{number}")
    assert [world.snapshot.nodes[f"n{n}"].block for n in range(1, 8)] == [
        f"10.{8 + n}.0.0/16" for n in range(1, 8)
    ]
    with pytest.raises(ExhaustedError, match="all 7 blocks"):
        world.node("n8")


def test_blocks_that_collide_with_any_host_or_the_broker_are_skipped() -> None:
    world = World()
    world.node("n1", facts(1, networks=("10.2.8.0/24", "172.17.0.0/16")))
    assert world.snapshot.nodes["n1"].block == "10.1.0.0/16"
    world.node("n2", facts(2, networks=("10.3.0.0/17",), underlay="10.4.0.7"))
    assert world.snapshot.nodes["n2"].block == "10.5.0.0/16"


def test_a_block_with_the_brokers_address_is_skipped() -> None:
    world = World()
    world.snapshot = state.empty("10.0.0.0/8", 16, closed=("10.1.2.3/32",))
    given = ipam.give_block(world.snapshot, "n1", facts(1))
    assert given == (2, "10.2.0.0/16")


def test_a_host_whose_network_overlaps_a_given_block_is_refused_naming_both() -> None:
    world = World()
    world.node("n1")
    with pytest.raises(RefusedError, match=r"10\.1\.7\.0/24 of n2 overlaps block 10\.1\.0\.0/16 of node n1"):
        world.node("n2", facts(2, networks=("10.1.7.0/24",)))
    with pytest.raises(RefusedError, match=r"10\.1\.0\.9/32 of n2"):
        world.node("n2", facts(2, underlay="10.1.0.9"))
    world.node("n2", facts(2, networks=("10.2.7.0/24",)))
    assert world.snapshot.nodes["n2"].block == "10.3.0.0/16"


def test_a_network_over_the_whole_supernet_is_named() -> None:
    world = World()
    with pytest.raises(RefusedError, match=r"10\.1\.0\.0/16 with 10\.0\.0\.0/8"):
        world.node("n1", facts(1, networks=("10.0.0.0/8",)))


def test_addresses_leave_out_network_bridge_and_broadcast() -> None:
    given: list[str] = []
    cursor = 0
    for _ in range(5):
        address, cursor = ipam.give_address("10.1.0.0/29", cursor, given.__contains__)
        given.append(address)
    assert given == [f"10.1.0.{n}" for n in range(2, 7)]
    with pytest.raises(ExhaustedError, match="all 5 addresses"):
        ipam.give_address("10.1.0.0/29", cursor, given.__contains__)


def test_a_freed_address_comes_back_last() -> None:
    given = {"10.1.0.2", "10.1.0.4"}
    address, cursor = ipam.give_address("10.1.0.0/29", 4, given.__contains__)
    assert (address, cursor) == ("10.1.0.5", 5)
    given |= {"10.1.0.5", "10.1.0.6"}
    assert ipam.give_address("10.1.0.0/29", 6, given.__contains__) == ("10.1.0.3", 3)


@pytest.mark.parametrize("cursor", [0, 1, 2, 3, 6, 7, 8, 200])
def test_a_cursor_anywhere_finds_the_one_free_address(cursor: int) -> None:
    taken = {f"10.1.0.{n}" for n in range(8)} - {"10.1.0.3"}
    assert ipam.give_address("10.1.0.0/29", cursor, taken.__contains__) == ("10.1.0.3", 3)


def test_after_a_restart_addresses_go_on_after_the_newest_container() -> None:
    world = World()
    world.node("n1")
    for name in ("a", "b", "c"):
        world.now += 1
        world.run(name)
    world.rm("a")
    world.acknowledge()
    world.snapshot = world.reloaded()
    world.run("d")
    assert world.container("d").address == "10.1.0.5"
