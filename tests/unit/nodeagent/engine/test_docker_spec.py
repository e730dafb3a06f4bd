from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from netctl.errors import KernelError
from netctl.model import Loosening, Workload
from nodeagent.engine.docker_spec import (
    Creation,
    check_network,
    container_body,
    host_body,
    names_for,
    network_body,
    restart_body,
    user_of,
)

WORKLOAD = Workload("docker", ("serve", "--fast"), image="app:1", env=(("A", "b=c"),))
IMAGE: dict[str, Any] = {"Config": {"User": ""}}
ID = "ab" * 16


def body(workload: Workload = WORKLOAD, image: dict[str, Any] = IMAGE, guarded: tuple[str, ...] = ()) -> Any:
    return container_body(Creation(ID, "web", "10.1.0.5", workload, "netctl", "10.1.0.0/16", guarded), image)


def test_the_defaults_are_hard() -> None:
    host = body()["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["CapAdd"] == []
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["ReadonlyRootfs"] is True
    assert set(host["Tmpfs"]) == {"/tmp", "/run"}  # noqa: S108 - mounts of the container
    assert host["Tmpfs"]["/run"].endswith(",uid=65534,gid=65534")
    assert all("size=" in options and "nosuid" in options for options in host["Tmpfs"].values())
    assert host["Memory"] == host["MemorySwap"] == 512 * 2**20
    assert host["PidsLimit"] == 1024
    assert host["Init"] is True
    assert host["LogConfig"]["Config"]["max-size"] == "10m"
    assert not {"Privileged", "PidMode", "IpcMode", "UTSMode", "NanoCpus"} & set(host)
    assert body()["User"] == "65534:65534"


def test_what_it_runs_and_where_it_is_reached() -> None:
    made = body()
    assert made["Cmd"] == ["serve", "--fast"]
    assert made["Env"] == ["A=b=c"]
    assert made["HostConfig"]["NetworkMode"] == "netctl"
    assert made["NetworkingConfig"]["EndpointsConfig"]["netctl"]["IPAMConfig"]["IPv4Address"] == "10.1.0.5"
    assert made["Labels"] == {"netctl.id": ID, "netctl.restart": "no"}
    assert "WorkingDir" not in made
    assert "Cmd" not in body(attrs.evolve(WORKLOAD, argv=()))
    assert body(attrs.evolve(WORKLOAD, workdir="/srv"))["WorkingDir"] == "/srv"


def test_labels_of_the_user_cannot_take_the_place_of_ours() -> None:
    labels = (("netctl.id", "cd" * 16), ("netctl.unsafe", ""), ("team", "a"))
    made = body(attrs.evolve(WORKLOAD, labels=labels, unsafe="debugging"))
    assert made["Labels"]["netctl.id"] == ID
    assert made["Labels"]["netctl.unsafe"] == "debugging"
    assert made["Labels"]["team"] == "a"


@pytest.mark.parametrize(
    ("loosening", "field", "value"),
    [
        ("writable-root", "ReadonlyRootfs", False),
        ("new-privileges", "SecurityOpt", []),
        ("seccomp-unconfined", "SecurityOpt", ["no-new-privileges:true", "seccomp=unconfined"]),
        ("privileged", "Privileged", True),
        ("host-pid", "PidMode", "host"),
        ("host-ipc", "IpcMode", "host"),
        ("host-uts", "UTSMode", "host"),
    ],
)
def test_a_loosening_changes_its_own_field_alone(loosening: Loosening, field: str, value: object) -> None:
    hard = host_body(WORKLOAD, "netctl")
    loose = host_body(attrs.evolve(WORKLOAD, loosened=(loosening,)), "netctl")
    assert loose[field] == value
    assert {name for name in loose.keys() | hard.keys() if loose.get(name) != hard.get(name)} == {field}


def test_a_host_name_of_its_own_only_with_a_namespace_for_it() -> None:
    assert body(WORKLOAD)["Hostname"] == "web"
    assert "Hostname" not in body(attrs.evolve(WORKLOAD, loosened=("host-uts",))), "Docker refuses both"


def test_docker_is_told_no_name_of_one_letter() -> None:
    creation = Creation(ID, "q", "10.1.0.2", WORKLOAD, "netctl", "10.1.0.0/16")
    assert names_for(creation) == (f"q-{ID[:6]}", f"q-{ID[:6]}")
    assert names_for(attrs.evolve(creation, name="qq")) == ("qq", f"qq-{ID[:6]}")


def test_limits_and_capabilities_of_the_users_choice() -> None:
    workload = attrs.evolve(
        WORKLOAD, memory=2**28, cpus=0.25, pids=9, cap_add=("cap_chown", "NET_BIND_SERVICE")
    )
    host = host_body(workload, "netctl")
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (2**28, 2**28, 9)
    assert host["NanoCpus"] == 250_000_000
    assert host["CapAdd"] == ["CHOWN", "NET_BIND_SERVICE"]


@pytest.mark.parametrize(
    ("own", "asked", "loosened", "expected"),
    [
        ("", "", (), "65534:65534"),
        ("root", "", (), "65534:65534"),
        ("0:5", "", (), "65534:65534"),
        ("00", "", (), "65534:65534"),
        ("app", "", (), ""),
        ("1000:1000", "", (), ""),
        ("", "", ("root-user",), ""),
        ("app", "root", ("root-user",), "root"),
        ("", "1001:5", (), "1001:5"),
    ],
)
def test_root_is_whom_a_container_runs_as_only_where_that_is_recorded(
    own: str, asked: str, loosened: tuple[Loosening, ...], expected: str
) -> None:
    workload = attrs.evolve(WORKLOAD, user=asked, loosened=loosened)
    assert user_of(workload, {"Config": {"User": own}}) == expected


@pytest.mark.parametrize(
    ("own", "owner"),
    [
        ("1000", ",uid=1000,gid=1000"),
        ("1000:5", ",uid=1000,gid=5"),
        ("app", ""),
        ("1000:app", ""),
        ("x=1", ""),
    ],
)
def test_a_users_folder_in_memory_is_its_own_where_its_number_is_known(own: str, owner: str) -> None:
    assert body(image={"Config": {"User": own}})["HostConfig"]["Tmpfs"]["/run"].endswith(f"mode=1777{owner}")


@pytest.mark.parametrize("user", ["root", "0", "0:0", "000", "root:5"])
def test_root_without_a_record_of_it_is_refused(user: str) -> None:
    with pytest.raises(KernelError, match="root"):
        user_of(attrs.evolve(WORKLOAD, user=user), IMAGE)


def test_an_image_that_says_nothing_of_its_user_gets_nobody() -> None:
    for image in ({}, {"Config": None}, {"Config": {"User": None}}):
        assert user_of(WORKLOAD, image) == "65534:65534"


def test_restart_policies() -> None:
    assert restart_body("") == {"Name": "no", "MaximumRetryCount": 0}
    assert restart_body("on-failure:3") == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert restart_body("unless-stopped")["Name"] == "unless-stopped"
    for wrong in ("sometimes", "always:3", "on-failure:", "on-failure:-1"):
        with pytest.raises(KernelError):
            restart_body(wrong)


def test_a_volume_that_leads_to_what_guards_the_node_is_refused_wherever_its_links_go(tmp_path: Path) -> None:
    secret = tmp_path / "engine"
    secret.mkdir()
    (secret / "docker.sock").touch()
    (tmp_path / "link").symlink_to(secret)
    (tmp_path / "data").mkdir()
    guarded = (str(secret / "docker.sock"),)
    for source in (secret / "docker.sock", secret, tmp_path / "link", tmp_path, "/"):
        volume = attrs.evolve(WORKLOAD, volumes=(f"{source}:/x",))
        with pytest.raises(KernelError, match="guards this node"):
            body(volume, guarded=guarded)
        assert body(attrs.evolve(volume, unsafe="it must"), guarded=guarded)["HostConfig"]["Binds"]
    good = attrs.evolve(WORKLOAD, volumes=(f"{tmp_path}/data:/data:ro", "named:/var/lib/x"))
    assert body(good, guarded=guarded)["HostConfig"]["Binds"] == [
        f"{tmp_path}/data:/data:ro",
        "named:/var/lib/x",
    ]


@pytest.mark.parametrize("target", ["/etc/cron.d", "/usr/local/bin", "/proc/self/root/etc"])
def test_a_link_to_what_the_host_trusts_is_refused_too(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(target)
    volume = attrs.evolve(WORKLOAD, volumes=(f"{tmp_path}/link:/x",))
    for reason in ("", " "):
        with pytest.raises(KernelError, match="guards this node"):
            body(attrs.evolve(volume, unsafe=reason))
    assert body(attrs.evolve(volume, unsafe="it must"))["HostConfig"]["Binds"]


@pytest.mark.parametrize("volume", ["", "/x", ":/x", "/x:", "/x:relative"])
def test_what_is_no_volume_is_refused(volume: str) -> None:
    with pytest.raises(KernelError, match="no volume"):
        body(attrs.evolve(WORKLOAD, volumes=(volume,)))


def test_a_network_is_checked_before_it_is_used() -> None:
    made = network_body("netctl", "netctl", "10.1.0.0/16", "netctl")
    assert made["IPAM"]["Config"] == [{"Subnet": "10.1.0.0/16", "Gateway": "10.1.0.1"}]
    good = {"Driver": "netctl", "IPAM": {"Config": [{"Subnet": "10.1.0.0/16"}]}}
    check_network(good, "netctl", "netctl", "10.1.0.0/16")
    for bad in (
        {**good, "Driver": "bridge"},
        {**good, "IPAM": {"Config": [{"Subnet": "10.2.0.0/16"}]}},
        {**good, "IPAM": {"Config": []}},
        {**good, "IPAM": None},
        {**good, "IPAM": {"Config": [{"Subnet": "rubbish"}]}},
    ):
        with pytest.raises(KernelError, match="netctl"):
            check_network(bad, "netctl", "netctl", "10.1.0.0/16")
    with pytest.raises(KernelError, match="block"):
        network_body("netctl", "netctl", "", "netctl")
