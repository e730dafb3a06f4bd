"""One lab for all the tests of a file: bringing it up costs seconds, and tests use names of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.lab import Lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Yield a lab of three nodes."""
    made = Lab(tmp_path_factory.mktemp("lab"))
    made.up()
    yield made
    made.down()
