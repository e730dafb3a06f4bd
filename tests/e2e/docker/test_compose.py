"""A Compose file states its connections by labels, and exactly these pass; they go with the containers."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netctl.lab.image import IMAGE
from tests.support.docker_lab import DockerLab
from tests.support.netns import tcp_passes, wait_for

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.timeout(300)]

FILE = f"""
services:
  web:
    image: {IMAGE}
    command: sleep 1000000
    labels: {{netctl.connect: "api:8000/tcp"}}
    depends_on: [api]
  api:
    image: {IMAGE}
    command: sleep 1000000
    labels: {{netctl.connect: "db:5432/tcp"}}
    depends_on: [db]
  db:
    image: {IMAGE}
    command: sleep 1000000
networks:
  default:
    driver: netctl
    ipam: {{driver: netctl}}
"""


@pytest.fixture
def project(docker_lab: DockerLab, tmp_path: Path) -> Iterator[Path]:
    """Yield a folder with the file, and take the project down at the end."""
    (tmp_path / "compose.yaml").write_text(FILE)
    yield tmp_path
    compose(docker_lab, tmp_path, "down", "--timeout", "0")
    docker_lab.netctl("node", "bind", "n1", "--none")
    docker_lab.wait_agreed()


def compose(lab: DockerLab, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["docker", "compose", "--project-name", "shop", *arguments],
        cwd=folder, env=lab.docker_environment("n1"),
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def passing(lab: DockerLab) -> set[tuple[str, str, int]]:
    """Try every service on both ports from every other; return what passes."""
    placed = {name: lab.placed("n1", f"shop-{name}-1") for name in ("web", "api", "db")}
    spaces = {name: lab.inside(each) for name, each in placed.items()}
    return {
        (one, other, port)
        for one in placed
        for other in placed
        for port in (8000, 5432)
        if one != other and tcp_passes(spaces[one], spaces[other], placed[other].address, port)
    }


WANTED = {("web", "api", 8000), ("api", "db", 5432)}


def test_exactly_what_labels_ask_for_passes(docker_lab: DockerLab, project: Path) -> None:
    lab = docker_lab
    compose(lab, project, "up", "--detach")
    # Nobody's containers may ask for nothing.
    assert passing(lab) == set()
    reasons = lab.netctl("inspect", "shop-web-1", "--json").json["wishes"]
    assert [wish["granted"] for wish in reasons] == [False]
    assert reasons[0]["reason"]
    lab.netctl("node", "bind", "n1", "admin")
    wait_for(lambda: passing(lab) == WANTED, 10, "what the labels ask for")
    compose(lab, project, "restart", "--timeout", "0")
    lab.wait_agreed()
    wait_for(lambda: passing(lab) == WANTED, 5, "the connections after a restart")
    compose(lab, project, "up", "--detach", "--force-recreate", "--timeout", "0")
    lab.wait_agreed()
    wait_for(lambda: passing(lab) == WANTED, 5, "the connections of new containers")


def test_connections_go_with_the_containers_and_come_in_any_order(
    docker_lab: DockerLab, project: Path
) -> None:
    lab = docker_lab
    lab.netctl("node", "bind", "n1", "admin")
    compose(lab, project, "up", "--detach", "--no-deps", "web")
    compose(lab, project, "up", "--detach", "--no-deps", "api")
    compose(lab, project, "up", "--detach", "db")
    wait_for(lambda: passing(lab) == WANTED, 10, "what the labels ask for")
    compose(lab, project, "rm", "--force", "--stop", "db")
    wait_for(lambda: len(_connections(lab)) == 1, 5, "the end of db's connection")
    compose(lab, project, "up", "--detach", "db")
    wait_for(lambda: passing(lab) == WANTED, 10, "db's return")


def test_an_image_of_the_same_service_on_another_node_is_none_of_its_business(
    docker_lab: DockerLab, project: Path
) -> None:
    lab = docker_lab
    lab.netctl("node", "bind", "n1", "admin")
    with contextlib.ExitStack() as stack:
        stack.callback(lab.docker, "n2", "rm", "--force", "other")
        other = lab.start(
            "n2",
            "other",
            "--label",
            "com.docker.compose.service=db",
            "--label",
            "com.docker.compose.project=shop",
        )
        compose(lab, project, "up", "--detach", "api")
        api = lab.placed("n1", "shop-api-1")
        assert not tcp_passes(lab.inside(api), lab.inside(other), other.address, 5432)
        db = lab.placed("n1", "shop-db-1")
        wait_for(lambda: tcp_passes(lab.inside(api), lab.inside(db), db.address, 5432), 5, "its own db")


def _connections(lab: DockerLab) -> list[object]:
    return [row for row in lab.netctl("connections", "--json").json if row["from"].startswith("shop-")]
