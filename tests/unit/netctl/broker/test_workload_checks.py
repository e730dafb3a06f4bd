"""What the broker records as a workload, and what it refuses."""

from __future__ import annotations

import attrs
import pytest

from netctl.broker import workload_checks
from netctl.errors import InvalidError, NetctlError, RefusedError
from netctl.model import Workload
from tests.support.broker import World, facts

PROCESS = Workload("process", ("sleep", "1"))
DOCKER = Workload("docker", (), image="busybox:1.36")
REASON = {"unsafe": "it is the packet sniffer"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"argv": ("sh", "-c", "true"), "env": (("A", "b=c"),), "user": "app:1000", "workdir": ""},
        {"image": "registry.example:5000/team/app@sha256:" + "a" * 64},
        {"volumes": ("/srv/data:/data", "/srv/data:/data:ro", "cache:/var/cache:rw")},
        {"labels": (("com.example.team", "shop"), ("empty", ""))},
        {"restart": "on-failure:3", "memory": 2**30, "cpus": 0.5, "pids": 10},
        {"restart": "unless-stopped"},
        {"cap_add": ("CHOWN", "NET_BIND_SERVICE")},
        {"loosened": ("writable-root", "new-privileges", "seccomp-unconfined", "root-user")},
        {"cap_add": ("NET_ADMIN", "NET_RAW"), **REASON},
        {"loosened": ("privileged", "host-pid", "host-ipc", "host-uts"), **REASON},
        {"volumes": ("/var/run/docker.sock:/var/run/docker.sock",), **REASON},
        REASON,
    ],
)
def test_what_docker_containers_may_be(changes: dict[str, object]) -> None:
    workload_checks.check(attrs.evolve(DOCKER, **changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": ""}, "needs an image"),
        ({"image": "-rm"}, "is no image"),
        ({"image": "a b"}, "is no image"),
        ({"volumes": ("/data",)}, "is no volume"),
        ({"volumes": ("/a:/b:ro:z",)}, "is no volume"),
        ({"volumes": ("/a:/b:z",)}, "is no volume"),
        ({"volumes": ("srv/a:/b",)}, "neither an absolute path nor"),
        ({"volumes": ("/srv/../proc:/b",)}, "neither an absolute path nor"),
        ({"volumes": (":/b",)}, "neither an absolute path nor"),
        ({"volumes": ("/a:b",)}, "no absolute path below /"),
        ({"volumes": ("/a://",)}, "no absolute path below /"),
        ({"volumes": ("/a:/b/../../c",)}, "no absolute path below /"),
        ({"labels": (("", "x"),)}, "no name for a label"),
        ({"labels": (("a=b", "x"),)}, "no name for a label"),
        ({"restart": "sometimes"}, "no restart policy"),
        ({"restart": "on-failure:"}, "no restart policy"),
        ({"memory": 1024}, "too few"),
        ({"cpus": 0.001}, "too few"),
        ({"cpus": float("nan")}, "too few"),
        ({"cap_add": ("CAP_CHOWN",)}, "no capability"),
        ({"cap_add": ("EVERYTHING",)}, "no capability"),
        ({"argv": ("a\0b",)}, "NUL"),
        ({"env": (("", "x"),)}, "no name for a variable"),
        ({"env": (("A=B", "x"),)}, "no name for a variable"),
        ({"env": (("A", "\0"),)}, "NUL"),
        ({"user": "--privileged"}, "is no user"),
        ({"workdir": "tmp"}, "no absolute directory"),
        ({"unsafe": "two\nlines"}, "not one line"),
    ],
)
def test_what_is_of_the_wrong_form(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidError, match=said) as caught:
        workload_checks.check(attrs.evolve(DOCKER, **changes))
    assert caught.value.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"cap_add": ("NET_ADMIN",)}, {"cap_add": ("NET_RAW",)}, {"cap_add": ("SYS_ADMIN",)},
        {"cap_add": ("SYS_MODULE",)}, {"cap_add": ("ALL",)}, {"cap_add": ("BPF",)},
        {"cap_add": ("DAC_READ_SEARCH",)},
        {"loosened": ("privileged",)}, {"loosened": ("host-pid",)}, {"loosened": ("host-ipc",)},
        {"loosened": ("host-uts",)},
        {"volumes": ("/var/run/docker.sock:/s",)}, {"volumes": ("/run/docker.sock:/s:ro",)},
        {"volumes": ("/run/containerd/containerd.sock:/s",)}, {"volumes": ("/srv/engine/docker.sock:/s",)},
        *({"volumes": (volume,)} for volume in (
            "/etc:/x:ro", "/etc/cron.d:/x", "/etc/shadow:/x:ro", "//etc/./ssh/:/x", "/root/.ssh:/x",
            "/boot:/x", "/home/ada:/x", "/var/spool/cron:/x", "/var/lib/dpkg/info:/x",
            "/run/systemd/private:/x", "/var/run/dbus:/x", "/usr/local/bin:/x", "/usr:/x:rw", "/bin:/x",
            "/lib64/security:/x", "/opt:/x",
            "/var/log:/x", "/tmp:/x",  # noqa: S108 - refused
        )),
        {"volumes": ("/:/host",)}, {"volumes": ("//:/host",)}, {"volumes": ("/./run/:/host",)},
        {"volumes": ("/var/run:/host",)}, {"volumes": ("/var/lib/docker/volumes:/v",)},
        {"volumes": ("/proc:/p",)}, {"volumes": ("/sys/fs/cgroup:/p",)}, {"volumes": ("/dev/sda:/d",)},
        {"volumes": ("/etc:/e",)},
    ],
)  # fmt: skip
@pytest.mark.parametrize("reason", ["", "  "])
def test_what_weakens_the_host_needs_a_reason(changes: dict[str, object], reason: str) -> None:
    workload = attrs.evolve(DOCKER, **changes, unsafe=reason)
    with pytest.raises(RefusedError) as caught:
        workload_checks.check(workload)
    assert "--allow-unsafe REASON" in caught.value.remedy
    workload_checks.check(attrs.evolve(workload, unsafe="because"))


@pytest.mark.parametrize("name", ["netctl.id", "netctl.connect", "NETCTL.x"])
def test_labels_of_ours_are_refused_whatever_the_reason(name: str) -> None:
    with pytest.raises(RefusedError, match="netctl's own"):
        workload_checks.check(attrs.evolve(DOCKER, labels=((name, "x"),), unsafe="because"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"argv": ()}, "needs a command"),
        ({"image": "busybox"}, "--image"),
        ({"volumes": ("/a:/b",)}, "--volume"),
        ({"labels": (("a", "b"),)}, "--label"),
        ({"restart": "always"}, "--restart"),
        ({"memory": 2**30}, "--memory"),
        ({"cpus": 1.0}, "--cpus"),
        ({"pids": 9}, "--pids-limit"),
        ({"loosened": ("root-user",)}, "loosens"),
    ],
)
def test_a_process_takes_nothing_of_dockers(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidError, match=said):
        workload_checks.check(attrs.evolve(PROCESS, **changes))


@pytest.mark.parametrize("changes", [{}, {"cap_add": ("NET_ADMIN", "NET_RAW")}, {"user": "1:1"}, REASON])
def test_a_process_takes_what_it_took(changes: dict[str, object]) -> None:
    workload_checks.check(attrs.evolve(PROCESS, **changes))


def test_the_broker_refuses_and_records_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.node("n1", facts(1, engines=("docker",)))
    monkeypatch.setattr("tests.support.broker.WORKLOAD", attrs.evolve(DOCKER, cap_add=("NET_RAW",)))
    before = world.snapshot
    with pytest.raises(NetctlError, match="NET_RAW"):
        world.run("sniffer")
    assert world.snapshot is before
    monkeypatch.setattr("tests.support.broker.WORKLOAD", attrs.evolve(DOCKER, cap_add=("NET_RAW",), **REASON))
    world.run("sniffer")
    assert world.container("sniffer").workload.unsafe == REASON["unsafe"]
