"""The search for the largest packet of a path."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.mtu_search import SIZES, MtuSearch, OuterSizes


def rounds(search: MtuSearch, truth: int) -> tuple[int, int]:
    """Search a path that takes `truth` bytes; return what was found, and in how many rounds."""
    count = 0
    while search.found is None:
        assert 1 <= len(search.sizes) <= SIZES
        assert all(search.low < size < search.high for size in search.sizes)
        search = search.after([size for size in search.sizes if size <= truth])
        count += 1
    return search.found, count


@given(st.data())
def test_every_size_is_found_in_few_rounds(data: st.DataObject) -> None:
    low = data.draw(st.integers(64, 9000))
    high = data.draw(st.integers(low + 1, 9001))
    truth = data.draw(st.integers(low, high - 1))
    guesses = tuple(data.draw(st.lists(st.integers(0, 10000), max_size=6)))
    found, count = rounds(MtuSearch(low, high, guesses), truth)
    assert found == truth
    assert count <= 6


def test_size_that_was_guessed_is_found_in_one_round() -> None:
    assert rounds(MtuSearch(64, 1476, (1376, 1256)), 1376) == (1376, 1)
    assert rounds(MtuSearch(64, 1476), 1376)[1] > 1


def test_what_came_back_of_other_sizes_means_nothing() -> None:
    search = MtuSearch(64, 1476)
    assert search.after([63, 1476, 9000]).low == 64


def test_sizes_found_lately_are_guessed_first() -> None:
    sizes = OuterSizes()
    assert 1400 - 24 in sizes.guesses(24)
    sizes.found(1333)
    sizes.found(1400)
    assert sizes.guesses(50)[:2] == (1350, 1283)
    assert 2 * len(sizes.guesses(0)) <= SIZES
