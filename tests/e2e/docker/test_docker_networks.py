"""What Docker's own users type works unmodified, and lets nothing pass that the broker did not record."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

from netctl.lab.image import IMAGE
from tests.support.docker_lab import DockerLab, Placed
from tests.support.netns import BLOCKED_AFTER, Namespace, tcp_passes, wait_for

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.timeout(300)]

OUTSIDE = "198.51.100.1"
UNDERLAY = {"n1": "172.31.1.1", "n2": "172.31.1.2"}


@contextlib.contextmanager
def started(lab: DockerLab, node: str, name: str, *options: str, network: str = "demo") -> Iterator[Placed]:
    """`docker run` a container, and remove it at the end."""
    try:
        yield lab.start(node, name, *options, network=network)
    finally:
        lab.docker(node, "rm", "--force", name, status=None)


@contextlib.contextmanager
def network(lab: DockerLab, node: str, name: str, *options: str) -> Iterator[None]:
    lab.make_network(node, name, *options)
    try:
        yield
    finally:
        lab.docker(node, "network", "rm", name)


def forwarded(source: Namespace, address: str, port: int, target: Namespace, target_port: int) -> bool:
    """Whether a TCP connection to a published port is answered by who listens on `target_port`."""
    with target.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("", target_port))
        listener.listen()
        with source.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.settimeout(BLOCKED_AFTER)
            try:
                client.connect((address, port))
                served, _ = listener.accept()
            except OSError:
                return False
            with served:
                served.sendall(b"x")
                return client.recv(1) == b"x"


def row(lab: DockerLab, name: str) -> dict[str, object]:
    return lab.containers()[name]


@pytest.mark.parametrize("nodes", [("n1", "n2"), ("n1", "n1")], ids=["across nodes", "same node"])
def test_exactly_the_recorded_port_passes(docker_lab: DockerLab, nodes: tuple[str, str]) -> None:
    lab = docker_lab
    with lab.pair("web", "db", nodes) as pair:
        assert not pair.tcp(5432)
        assert not pair.udp(5432)
        assert not pair.ping()
        lab.netctl("connect", "web", "db", "--port", "5432/tcp", "--port", "53/udp")
        assert pair.tcp(5432)
        assert pair.udp(53, size=4000)
        assert not pair.tcp(5433)
        assert not pair.tcp_back(5432)
        assert not pair.ping()
        lab.netctl("disconnect", "web", "db")
        assert not pair.tcp(5432)
    wait_for(lambda: not {"web", "db"} & set(lab.containers()), 5, "the record's end")


def test_what_is_recorded_is_dockers_own(docker_lab: DockerLab) -> None:
    lab = docker_lab
    with started(lab, "n1", "web") as web:
        assert row(lab, "web") == {
            "name": "web", "node": "n1", "address": web.address, "engine": "docker", "state": "running",
            "exit_code": None,
        }  # fmt: skip
        detail = lab.netctl("inspect", "web", "--json").json
        assert detail["id"] == web.id[:32]
        assert detail["image"] == IMAGE
        for command in ("stop", "start", "rm"):
            refused = lab.netctl(command, "web", status=1)
            assert "docker" in refused.err
            assert "n1" in refused.err
        assert lab.placed("n1", "web").pid == web.pid
        lab.docker("n1", "stop", "--time", "0", "web")
        wait_for(lambda: row(lab, "web")["state"] == "exited", 5, "the record of its end")
        lab.docker("n1", "start", "web")
        wait_for(lambda: row(lab, "web")["state"] == "running", 5, "the record of its start")
    wait_for(lambda: "web" not in lab.containers(), 5, "the record's end")


def test_a_name_on_two_nodes_is_made_unique(docker_lab: DockerLab) -> None:
    lab = docker_lab
    with started(lab, "n1", "Web_1") as one, started(lab, "n2", "Web_1") as other:
        found = {entry["address"]: entry for entry in lab.netctl("ps", "--json").json}
        names = [found[one.address]["name"], found[other.address]["name"]]
        assert names[1] == f"{names[0]}-n2"


def test_a_running_container_joins_and_leaves(docker_lab: DockerLab) -> None:
    lab = docker_lab
    with started(lab, "n1", "late", network="bridge") as late, started(lab, "n1", "db") as db:
        assert "late" not in lab.containers()
        inside = lab.inside(late)
        assert not tcp_passes(inside, lab.inside(db), db.address, 5432)
        lab.docker("n1", "network", "connect", "demo", "late")
        wait_for(lambda: "late" in lab.containers(), 5, "the record")
        assert not tcp_passes(inside, lab.inside(db), db.address, 5432)
        lab.netctl("connect", "late", "db", "--port", "5432")
        assert tcp_passes(inside, lab.inside(db), db.address, 5432)
        lab.docker("n1", "network", "disconnect", "demo", "late")
        wait_for(lambda: "late" not in lab.containers(), 5, "the record's end")
        assert not tcp_passes(inside, lab.inside(db), db.address, 5432)
        lab.docker("n1", "network", "connect", "demo", "late")
        wait_for(lambda: "late" in lab.containers(), 5, "the record")
        # The connection went with the first one's record.
        assert not tcp_passes(inside, lab.inside(db), db.address, 5432)


def test_dockers_own_network_beside_ours_is_dockers_business(docker_lab: DockerLab) -> None:
    lab = docker_lab
    with (
        started(lab, "n1", "one", network="bridge") as one,
        started(lab, "n1", "other", network="bridge") as other,
    ):
        pair = (lab.inside(one), lab.inside(other), lab.placed("n1", "other", "bridge").address)
        assert tcp_passes(*pair, 80)
        lab.docker("n1", "network", "connect", "demo", "one")
        lab.docker("n1", "network", "connect", "demo", "other")
        assert tcp_passes(*pair, 80)
        assert not tcp_passes(*pair[:2], lab.placed("n1", "other", "demo").address, 80)


def test_published_ports_lead_in_from_outside(docker_lab: DockerLab) -> None:
    lab = docker_lab
    outside, far = lab.host("outside"), lab.host("n2")
    with started(lab, "n1", "web", "--publish", "8080:80", "--publish", "5353:53/udp") as web:
        inside = lab.inside(web)
        assert forwarded(outside, UNDERLAY["n1"], 8080, inside, 80)
        assert forwarded(far, UNDERLAY["n1"], 8080, inside, 80)
        assert not forwarded(outside, UNDERLAY["n1"], 8081, inside, 80)
        assert not forwarded(outside, UNDERLAY["n1"], 8080, inside, 81)
        with started(lab, "n1", "other") as other:
            assert not forwarded(lab.inside(other), web.address, 80, inside, 80)
    with started(lab, "n1", "web") as web:
        assert not forwarded(outside, UNDERLAY["n1"], 8080, lab.inside(web), 80)


def test_the_internet_is_open_and_an_internal_network_leads_nowhere(docker_lab: DockerLab) -> None:
    lab = docker_lab
    outside = lab.host("outside")
    with (
        network(lab, "n1", "inner", "--internal"),
        started(lab, "n1", "open") as opened,
        started(lab, "n1", "kept", network="inner") as kept,
        started(lab, "n2", "db") as db,
    ):
        assert tcp_passes(lab.inside(opened), outside, OUTSIDE, 80)
        assert not tcp_passes(lab.inside(kept), outside, OUTSIDE, 80)
        assert "default" not in lab.inside(kept).ip("route")
        # Nor with a route of its own making.
        with contextlib.suppress(AssertionError):
            lab.inside(kept).ip("route", "add", "default", "via", "10.1.0.1", "dev", "eth0")
        assert not tcp_passes(lab.inside(kept), outside, OUTSIDE, 80)
        lab.netctl("connect", "kept", "db", "--port", "5432")
        assert tcp_passes(lab.inside(kept), lab.inside(db), db.address, 5432)


def test_static_addresses_are_honoured_or_refused(docker_lab: DockerLab) -> None:
    lab = docker_lab
    with (
        network(lab, "n1", "fixed", "--subnet", "10.1.0.0/16", "--gateway", "10.1.0.1"),
        started(lab, "n1", "one", "--ip", "10.1.200.7", network="fixed") as one,
    ):
        assert one.address == "10.1.200.7"
        assert row(lab, "one")["address"] == "10.1.200.7"
        taken = lab.docker(
                "n1", "run", "--name", "two", "--network", "fixed", "--ip", "10.1.200.7", IMAGE, "true",
                status=None,
            )  # fmt: skip
        assert taken.status != 0
        assert "10.1.200.7" in taken.err
        lab.docker("n1", "rm", "--force", "two")
        bridge = lab.docker(
            "n1",
            "run",
            "--name",
            "two",
            "--network",
            "fixed",
            "--ip",
            "10.1.0.1",
            IMAGE,
            "true",
            status=None,
        )
        assert bridge.status != 0
        lab.docker("n1", "rm", "--force", "two")
        lab.docker("n1", "restart", "--time", "0", "one")
        assert lab.placed("n1", "one").address == "10.1.200.7"
        lab.wait_agreed()
    foreign = lab.docker(
        "n1", "network", "create", "-d", "netctl", "--ipam-driver", "netctl", "--subnet", "10.99.0.0/16",
        "wrong", status=None,
    )  # fmt: skip
    assert foreign.status != 0
    assert "10.1.0.0/16" in foreign.err


def test_networks_go_and_come_again(docker_lab: DockerLab) -> None:
    lab = docker_lab
    for _ in range(3):
        with network(lab, "n1", "again"), started(lab, "n1", "web", network="again") as web:
            assert row(lab, "web")["address"] == web.address
            busy = lab.docker("n1", "network", "rm", "again", status=None)
            assert busy.status != 0
    lab.wait_agreed()


def test_names_are_resolved_by_dockers_own_dns(docker_lab: DockerLab) -> None:
    lab = docker_lab
    with started(lab, "n1", "web"), started(lab, "n1", "db") as db:
        told = lab.docker("n1", "exec", "web", "ping", "-c", "1", "-W", "1", "db", status=None)
        assert f"({db.address})" in told.out
        assert told.status != 0
        lab.netctl("connect", "web", "db", "--port", "icmp")
        assert lab.docker("n1", "exec", "web", "ping", "-c", "1", "-W", "2", "db").status == 0


def test_logs_exec_and_cp_work_on_what_docker_made(docker_lab: DockerLab, tmp_path: object) -> None:
    lab = docker_lab
    command = ("sh", "-c", "echo hello; echo oops >&2; exec sleep 1000000")
    try:
        lab.start("n1", "web", command=command)
        logs = lab.netctl("logs", "web")
        assert (logs.out, logs.err.strip()) == ("hello\n", "oops")
        done = lab.netctl("exec", "web", "--", "sh", "-c", "cat; exit 7", stdin="typed", status=7)
        assert done.out == "typed"
        lab.netctl("exec", "web", "--", "sh", "-c", "echo kept >/tmp/kept")
        lab.netctl("cp", "web:/tmp/kept", f"{tmp_path}/kept")
        lab.netctl("cp", f"{tmp_path}/kept", "web:/root/again")
        assert lab.netctl("exec", "web", "--", "cat", "/root/again").out == "kept\n"
    finally:
        lab.docker("n1", "rm", "--force", "web", status=None)


def test_a_container_without_network_is_adopted(docker_lab: DockerLab) -> None:
    lab = docker_lab
    with started(lab, "n1", "alone", network="none") as alone, started(lab, "n2", "db") as db:
        assert "alone" not in lab.containers()
        lab.netctl("adopt", "alone", "--node", "n1")
        inside = lab.inside(alone)
        assert not tcp_passes(inside, lab.inside(db), db.address, 5432)
        lab.netctl("connect", "alone", "db", "--port", "5432")
        assert tcp_passes(inside, lab.inside(db), db.address, 5432)
        # Asked for twice, it has joined once.
        lab.netctl("adopt", "alone", "--node", "n1")
        assert tcp_passes(inside, lab.inside(db), db.address, 5432)
        missing = lab.netctl("adopt", "nosuch", "--node", "n1", status=1)
        assert "nosuch" in missing.err
