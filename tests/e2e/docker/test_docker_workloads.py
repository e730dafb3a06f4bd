"""Containers that the broker makes with Docker: what they may not, what can be loosened, their use."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from netctl.lab.image import IMAGE
from tests.support.docker_lab import DockerLab
from tests.support.netns import (
    Capture,
    Namespace,
    arp,
    ethernet,
    ipv4,
    send_frames,
    tcp_passes,
    udp,
    wait_for,
)
from tests.support.slow_forwarder import SlowForwarder

pytestmark = [pytest.mark.root, pytest.mark.docker, pytest.mark.timeout(300)]

FOREVER = ("sleep", "1000000")
TMP = "/tmp"  # noqa: S108 - a container's


@contextlib.contextmanager
def made(
    lab: DockerLab, name: str, *options: str, command: tuple[str, ...] = FOREVER
) -> Iterator[dict[str, Any]]:
    """Have the broker make a container on n1; yield what Docker says of it; remove it at the end."""
    try:
        lab.netctl("run", name, "--image", IMAGE, "--node", "n1", *options, "--", *command)
        yield inspected(lab, name)
    finally:
        lab.netctl("rm", "--force", name, status=None)


def inspected(lab: DockerLab, name: str) -> dict[str, Any]:
    """Return what Docker says of a container of the broker's."""
    wanted = lab.netctl("inspect", name, "--json").json["id"]
    found = lab.docker("n1", "ps", "--all", "--quiet", "--filter", f"label=netctl.id={wanted}").out.split()
    assert len(found) == 1
    return lab.inspect("n1", found[0])


def inside(lab: DockerLab, name: str) -> Namespace:
    return lab.namespace_of(inspected(lab, name)["State"]["Pid"])


def test_defaults_are_hard(docker_lab: DockerLab) -> None:
    lab = docker_lab
    with made(lab, "hard") as found:
        host = found["HostConfig"]
        assert host["CapDrop"] == ["ALL"]
        assert not host["CapAdd"]
        assert not host["Privileged"]
        assert "no-new-privileges" in "".join(host["SecurityOpt"])
        assert "unconfined" not in "".join(host["SecurityOpt"])
        assert host["ReadonlyRootfs"]
        assert {TMP, "/run"} <= set(host["Tmpfs"])
        assert 0 < host["PidsLimit"] <= 4096
        assert host["Memory"] > 0
        assert (host["PidMode"], host["UTSMode"]) == ("", "")
        assert host["IpcMode"] in ("private", "shareable", "")
        status = lab.netctl("exec", "hard", "--", "cat", "/proc/self/status").out
        values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert int(values["CapBnd"], 16) == 0
        assert values["NoNewPrivs"] == "1"
        assert values["Seccomp"] == "2"
        assert lab.netctl("exec", "hard", "--", "touch", "/etc/x", status=None).status != 0
        lab.netctl("exec", "hard", "--", "touch", "/run/x", f"{TMP}/x")
        row = lab.containers()["hard"]
        assert (row["engine"], row["state"], row["node"]) == ("docker", "running", "n1")
        addresses = [each["IPAddress"] for each in found["NetworkSettings"]["Networks"].values()]
        assert addresses == [row["address"]]


def test_not_root_where_the_image_allows(docker_lab: DockerLab) -> None:
    lab = docker_lab
    with made(lab, "user") as found:
        assert found["Config"]["User"] not in ("0", "root")
        uid = lab.netctl("exec", "user", "--", "id", "-u").out.strip()
        assert uid != "0" or "root-user" in lab.netctl("inspect", "user", "--json").json["loosened"]


@pytest.mark.parametrize(
    ("options", "path", "value", "loosened"),
    [
        (("--writable",), "ReadonlyRootfs", False, "writable-root"),
        (("--seccomp", "unconfined"), "SecurityOpt", "seccomp=unconfined", "seccomp-unconfined"),
        (("--allow-new-privileges",), "SecurityOpt", None, "new-privileges"),
        (("--cap-add", "CHOWN"), "CapAdd", "CHOWN", None),
        (("--memory", "64m"), "Memory", 64 * 2**20, None),
        (("--cpus", "0.5"), "NanoCpus", 500_000_000, None),
        (("--pids-limit", "77"), "PidsLimit", 77, None),
        (("--restart", "on-failure:3"), "RestartPolicy", "on-failure", None),
        (("--volume", "/usr:/host:ro"), "Binds", "/usr:/host:ro", None),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_each_loosening_is_by_name_and_recorded(
    docker_lab: DockerLab, options: tuple[str, ...], path: str, value: object, loosened: str | None
) -> None:
    lab = docker_lab
    with made(lab, "loose", *options) as found:
        actual = found["HostConfig"][path]
        if loosened == "new-privileges":
            assert "no-new-privileges" not in "".join(actual or [])
        elif isinstance(actual, list | dict):
            assert str(value) in str(actual)
        else:
            assert actual == value
        recorded = lab.netctl("inspect", "loose", "--json").json
        assert recorded["loosened"] == ([loosened] if loosened else [])


@pytest.mark.parametrize(
    "options",
    [
        ("--cap-add", "NET_ADMIN"),
        ("--cap-add", "NET_RAW"),
        ("--privileged",),
        ("--pid", "host"),
        ("--ipc", "host"),
        ("--uts", "host"),
        ("--volume", "/var/run/docker.sock:/s"),
        ("--volume", "/run:/host"),
        ("--volume", "/:/host"),
    ],
    ids=" ".join,
)
def test_what_weakens_the_node_needs_a_reason(docker_lab: DockerLab, options: tuple[str, ...]) -> None:
    lab = docker_lab
    refused = lab.netctl("run", "bad", "--image", IMAGE, *options, "--", *FOREVER, status=1)
    assert "--allow-unsafe" in refused.err
    assert "bad" not in lab.containers()
    if options[0] in ("--cap-add", "--pid"):
        with made(lab, "bad", *options, "--allow-unsafe", "a test"):
            assert lab.netctl("inspect", "bad", "--json").json["unsafe"] == "a test"


def test_a_privileged_one_still_reaches_nobody(docker_lab: DockerLab) -> None:
    lab = docker_lab
    # Where this machine's root lacks a capability, Docker 20.10 makes no privileged container at all; then
    # one with the two that concern its network must do.
    able = lab.docker("n1", "run", "--rm", "--privileged", IMAGE, "true", status=None).status == 0
    rights = ("--privileged",) if able else ("--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW")
    with (
        made(lab, "evil", *rights, "--user", "0", "--allow-unsafe", "a test"),
        made(lab, "near"),
    ):
        lab.run("far", "--node", "n2")
        try:
            rows = lab.containers()
            evil, near, far = inside(lab, "evil"), inside(lab, "near"), lab.namespace("far")
            mac = {
                name: "6e:63:" + ":".join(f"{int(o):02x}" for o in rows[name]["address"].split("."))
                for name in ("evil", "near", "far")
            }
            address = {name: str(rows[name]["address"]) for name in mac}
            lab.netctl("connect", "near", "far", "--port", "5000/udp")
            lab.netctl("connect", "evil", "near", "--port", "5001/udp")
            # It has every right there, and takes out its own firewall: layer 2 is what holds.
            lab.netctl("exec", "--user", "0", "evil", "--", "true")
            evil.run("nft", "flush", "ruleset")

            def frame(source: str, target: str, port: int, mark: bytes, sender: str = "evil") -> bytes:
                return ethernet(
                    mac[target],
                    mac[sender],
                    0x0800,
                    ipv4(address[source], address[target], 17, udp(9, port, mark)),
                )

            def arrives(at: Namespace, *frames: bytes, mark: bytes) -> bool:
                with Capture(at, "eth0") as capture:
                    send_frames(evil, "eth0", frames)
                    return capture.until(lambda seen: mark in seen, 0.4) is not None

            control, spoof = os.urandom(16), os.urandom(16)
            assert arrives(near, frame("evil", "near", 5001, control), mark=control)
            assert not arrives(near, frame("far", "near", 5001, spoof), mark=spoof)
            assert not arrives(near, frame("evil", "near", 5001, spoof, sender="near"), mark=spoof)
            assert not arrives(
                near,
                ethernet(
                    "ff:ff:ff:ff:ff:ff",
                    mac["evil"],
                    0x0806,
                    arp(2, mac["evil"], address["far"], mac["near"], address["near"]),
                ),
                mark=b"\x00\x02" + bytes.fromhex(mac["evil"].replace(":", "")),
            )
            # Nobody it has no connection to: neither on its node, nor on another one, nor the node itself.
            assert not tcp_passes(evil, far, address["far"], 80)
            assert not tcp_passes(evil, lab.host("n1"), "172.31.1.1", 22)
            # What others say to each other does not come by.
            with Capture(evil, "eth0") as capture:
                near.run("true")
                heard = os.urandom(16)
                send_frames(near, "eth0", [ethernet("ff:ff:ff:ff:ff:ff", mac["near"], 0x88B5, heard)])
                assert capture.until(lambda seen: heard in seen, 0.4) is None
        finally:
            lab.netctl("rm", "--force", "far", status=None)


def test_logs_exec_cp_stop_start_rm(docker_lab: DockerLab, tmp_path: Path) -> None:
    lab = docker_lab
    command = ("sh", "-c", "echo hello; echo oops >&2; exec sleep 1000000")
    with made(lab, "used", "-e", "COLOUR=blue", "--label", "tier=web", command=command) as found:
        assert found["Config"]["Labels"]["tier"] == "web"
        wait_for(lambda: "hello" in lab.netctl("logs", "used").out, 5, "its output")
        logs = lab.netctl("logs", "used", "--tail", "1")
        assert (logs.out + logs.err).strip() in ("hello", "oops")
        done = lab.netctl(
            "exec", "used", "--", "sh", "-c", "cat; echo $COLOUR; exit 7", stdin="typed ", status=7
        )
        assert done.out == "typed blue\n"
        (tmp_path / "sent").write_text("kept\n")
        lab.netctl("cp", f"{tmp_path}/sent", "used:/tmp")
        lab.netctl("cp", "used:/tmp/sent", f"{tmp_path}/back")
        assert (tmp_path / "back").read_text() == "kept\n"
        address = lab.address("used")
        lab.netctl("stop", "used")
        assert lab.containers()["used"]["state"] == "exited"
        lab.netctl("start", "used")
        assert lab.containers()["used"]["state"] == "running"
        assert lab.address("used") == address
    wait_for(
        lambda: not lab.docker("n1", "ps", "--all", "--quiet", "--filter", "label=netctl.id").out,
        5,
        "its end",
    )


def test_cp_works_on_process_containers_too(docker_lab: DockerLab, tmp_path: Path) -> None:
    lab = docker_lab
    lab.run("plain", "--node", "n1")
    try:
        (tmp_path / "sent").write_text("kept\n")
        lab.netctl("cp", f"{tmp_path}/sent", f"plain:{TMP}/netctl-sent")
        lab.netctl("cp", f"plain:{TMP}/netctl-sent", f"{tmp_path}/back")
        assert (tmp_path / "back").read_text() == "kept\n"
    finally:
        lab.netctl("exec", "plain", "--", "rm", "-f", f"{TMP}/netctl-sent", status=None)
        lab.netctl("rm", "--force", "plain")


def test_connections_between_engines_and_a_container_that_docker_removed(docker_lab: DockerLab) -> None:
    lab = docker_lab
    with made(lab, "web"), lab.pair("api", "db", ("n1", "n2")) as pair:
        lab.netctl("connect", "web", "db", "--port", "5432")
        web = inside(lab, "web")
        assert tcp_passes(web, pair.other, pair.other_address, 5432)
        assert not tcp_passes(pair.one, pair.other, pair.other_address, 5432)
        # What the broker wants comes again, with its address and connections.
        before = lab.address("web")
        lab.docker("n1", "rm", "--force", inspected(lab, "web")["Id"])
        wait_for(lambda: _runs(lab, "web"), 10, "its return")
        assert lab.address("web") == before
        assert tcp_passes(inside(lab, "web"), pair.other, pair.other_address, 5432)


def _runs(lab: DockerLab, name: str) -> bool:
    wanted = lab.netctl("inspect", name, "--json").json["id"]
    return bool(lab.docker("n1", "ps", "--quiet", "--filter", f"label=netctl.id={wanted}").out.strip())


def test_placement_by_label_and_load(docker_lab: DockerLab) -> None:
    lab = docker_lab
    lab.netctl("node", "label", "n2", "disk=fast")
    try:
        for number in range(2):
            lab.netctl("run", f"on{number}", "--image", IMAGE, "--constraint", "disk=fast", "--", *FOREVER)
            assert lab.containers()[f"on{number}"]["node"] == "n2"
        lab.netctl("run", "least", "--image", IMAGE, "--", *FOREVER)
        assert lab.containers()["least"]["node"] == "n1"
        nowhere = lab.netctl(
            "run", "none", "--image", IMAGE, "--constraint", "disk=slow", "--", *FOREVER, status=1
        )
        assert "disk=slow" in nowhere.err
    finally:
        for name in ("on0", "on1", "least", "none"):
            lab.netctl("rm", "--force", name, status=None)
        lab.netctl("node", "label", "n2", "disk-")


def test_an_image_that_cannot_be_had(docker_lab: DockerLab) -> None:
    lab = docker_lab
    failed = lab.netctl(
        "run", "gone", "--image", "127.0.0.1:9/none:1", "--node", "n1", "--", *FOREVER, status=None
    )
    assert failed.status in (1, 3)
    assert "127.0.0.1:9" in failed.err
    lab.netctl("rm", "--force", "gone", status=None)


@pytest.fixture
def registry(docker_lab: DockerLab, tmp_path: Path) -> Iterator[str]:
    """Yield the name of an image that only a registry on n1's loopback has."""
    config = tmp_path / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/blobs}}}}\n"
        "http: {addr: 127.0.0.1:5000}\n"
    )
    lab, name = docker_lab, "127.0.0.1:5001/big:1"
    process = subprocess.Popen(
        ["nsenter", f"--net={lab.host('n1').path}", "--", "docker-registry", "serve", str(config)]
    )
    try:
        node = lab.host("n1")
        wait_for(lambda: ":5000" in node.run("ss", "-Hltn"), 10, "the registry")
        layer = tmp_path / "layer.tar"
        with tarfile.open(layer, "w") as tar:
            (tmp_path / "noise").write_bytes(os.urandom(40 * 2**20))
            tar.add(tmp_path / "noise", "noise")
        (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nADD layer.tar /big/\n")
        with SlowForwarder(node, 5001, 5000, 20 * 2**20):
            lab.docker("n1", "build", "--tag", name, str(tmp_path))
            lab.docker("n1", "push", name, seconds=120)
            lab.docker("n1", "rmi", "--force", name)
            lab.docker("n1", "image", "prune", "--force")
            yield name
    finally:
        process.kill()
        process.wait()
        lab.docker("n1", "rmi", "--force", name, status=None)


def test_pulling_shows_progress(docker_lab: DockerLab, registry: str) -> None:
    lab = docker_lab
    try:
        done = lab.netctl(
            "run", "pulled", "--image", registry, "--node", "n1", "--timeout", "60", "--", *FOREVER
        )
        assert "pull" in done.err
        assert "%" in done.err
        assert lab.containers()["pulled"]["state"] == "running"
    finally:
        lab.netctl("rm", "--force", "pulled", status=None)
