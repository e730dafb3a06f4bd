"""One lab for each version of Docker, for all tests with engines: they use names of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.docker_engine import TRIED
from tests.support.docker_lab import DockerLab


@pytest.fixture(scope="session", params=TRIED)
def docker_lab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DockerLab]:
    """Yield a lab of two nodes with a network of ours on each engine."""
    lab = DockerLab(tmp_path_factory.mktemp("docker"), request.param, "--outside")
    try:
        lab.up()
        lab.furnish()
        yield lab
    finally:
        lab.down()
