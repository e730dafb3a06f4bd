"""The options of `netctl run`: what they make of a workload, and what is refused before anybody is asked."""

from __future__ import annotations

import io
import json
import os
import pty
from typing import Any

import attrs
import pytest

from netctl.cli.progress import ProgressLine
from netctl.model import Workload
from netctl.unsafe import unsafe_options
from netctl.wire.messages import Done, Progress, RunContainer
from tests.unit.netctl.cli.conftest import Broker, Netctl

DONE = Done(11, ("n1",), "web runs on n1 at 10.1.0.2")
PLAIN = Workload("docker", (), image="busybox", workdir="")


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ("", {}),
        ("--engine docker", {}),
        ("-- sleep 9", {"argv": ("sleep", "9")}),
        ("-e A=1 -e B=", {"env": (("A", "1"), ("B", ""))}),
        ("-v /srv:/data -v data:/x:ro -v /a:/b:rw", {"volumes": ("/srv:/data", "data:/x:ro", "/a:/b")}),
        ("--label a=b --label c=", {"labels": (("a", "b"), ("c", ""))}),
        ("--restart always", {"restart": "always"}),
        ("--restart on-failure:3", {"restart": "on-failure:3"}),
        ("--user 1000:1000", {"user": "1000:1000"}),
        ("--user rooty", {"user": "rooty"}),
        ("--user root", {"user": "root", "loosened": ("root-user",)}),
        ("-u 0:5", {"user": "0:5", "loosened": ("root-user",)}),
        ("-w /srv", {"workdir": "/srv"}),
        ("--memory 512m", {"memory": 512 * 2**20}),
        ("--memory 1g", {"memory": 2**30}),
        ("--memory 1.5GB", {"memory": 3 * 2**29}),
        ("-m 8000000", {"memory": 8_000_000}),
        ("--cpus 1.5", {"cpus": 1.5}),
        ("--pids-limit 50", {"pids": 50}),
        ("--cap-add chown --cap-add CAP_KILL", {"cap_add": ("CHOWN", "KILL")}),
        ("--writable", {"loosened": ("writable-root",)}),
        ("--allow-new-privileges", {"loosened": ("new-privileges",)}),
        ("--seccomp unconfined", {"loosened": ("seccomp-unconfined",)}),
        (
            "--uts host --ipc host --pid host --privileged --cap-add NET_ADMIN --allow-unsafe debugging",
            {
                "loosened": ("privileged", "host-pid", "host-ipc", "host-uts"),
                "cap_add": ("NET_ADMIN",),
                "unsafe": "debugging",
            },
        ),
        (
            "-v /var/run/docker.sock:/run/docker.sock --allow-unsafe ci",
            {"volumes": ("/var/run/docker.sock:/run/docker.sock",), "unsafe": "ci"},
        ),
    ],
)
def test_a_workload_from_an_image(
    broker: Broker, netctl: Netctl, options: str, changes: dict[str, Any]
) -> None:
    broker.answers[RunContainer] = DONE
    assert netctl("run", "web", "--image", "busybox", *options.split()).status == 0
    assert broker.asked == [RunContainer("web", attrs.evolve(PLAIN, **changes), None, 300.0)]


def test_where_it_runs_and_how_long_is_waited(broker: Broker, netctl: Netctl) -> None:
    broker.answers[RunContainer] = DONE
    netctl("run", "web", "--image", "x", "--constraint", "disk=ssd", "--constraint", "zone=a", "--timeout=5")
    netctl("run", "web", "--node", "n2", "--", "true")
    first, second = broker.asked
    assert (first.timeout, first.constraints) == (5.0, (("disk", "ssd"), ("zone", "a")))
    assert (second.timeout, second.node, second.constraints) == (10.0, "n2", ())


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("-v a:/b", "--volume"), ("--label a=b", "--label"), ("--restart no", "--restart"),
        ("--memory 1g", "--memory"), ("--cpus 1", "--cpus"), ("--pids-limit 5", "--pids-limit"),
        ("--writable", "--writable"), ("--allow-new-privileges", "--allow-new-privileges"),
        ("--seccomp unconfined", "--seccomp"), ("--privileged", "--privileged"), ("--pid host", "--pid"),
        ("--ipc host", "--ipc"), ("--uts host", "--uts"), ("--allow-unsafe x", "--allow-unsafe"),
        ("--engine process --image x", "--image"),
    ],
)  # fmt: skip
def test_options_that_only_docker_has(broker: Broker, netctl: Netctl, option: str, named: str) -> None:
    outcome = netctl("run", "web", *option.split(), "--", "true")
    assert outcome.status == 2
    assert outcome.err.startswith(f"error: {named} is for the docker engine only; ")
    assert broker.asked == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--engine docker -- true", "say which with --image"),
        ("--engine rocket -- true", "the engines are process and docker"),
        ("--network host -- true", "no choice of networks"),
        ("--image x --net host", "no choice of networks"),
        ("--image x -v /srv", "is no volume"),
        ("--image x -v srv/x:/a", "is no volume"),
        ("--image x -v /a:b", "is no volume"),
        ("--image x -v /a:/b:exec", "is no volume"),
        ("--image x --label a", "is no label"),
        ("--image x --label netctl.id=5", "one of netctl's own"),
        ("--image x --restart never", "is no restart policy"),
        ("--image x --restart on-failure:0", "is no restart policy"),
        ("--image x --memory 1k", "is no amount of memory"),
        ("--image x --memory many", "is no amount of memory"),
        ("--image x --memory -1", "is no amount of memory"),
        ("--image x --memory 9999999999999t", "is no amount of memory"),
        ("--image x --cpus 0", "is no number of processors"),
        ("--image x --cpus nan", "is no number of processors"),
        ("--image x --pids-limit 0", "pids-limit"),
        ("--image x --seccomp mine.json", "a filter of one's own"),
        ("--image x --pid container:a", "--pid takes host"),
        ("--image x -w srv", "is no absolute directory"),
        ("--image x --constraint disk", "is no constraint"),
        ("--image x --privileged --allow-unsafe=", "wants a reason"),
        ("--image x --allow-unsafe habit", "needs --allow-unsafe; leave it out"),
    ],
)
def test_wrong_options(broker: Broker, netctl: Netctl, options: str, said: str) -> None:
    outcome = netctl("run", "web", *options.split())
    assert (outcome.status, len(outcome.err.splitlines())) == (2, 1)
    assert said in outcome.err
    assert broker.asked == []


UNSAFE = (
    "--cap-add NET_ADMIN", "--cap-add net_raw", "--cap-add ALL", "--cap-add SYS_ADMIN", "--cap-add NEW_ONE",
    "--privileged", "--pid host", "--ipc host", "--uts host", "-v /var/run/docker.sock:/s",
    "-v /run/docker.sock:/s:ro", "-v /run:/r", "-v /:/host", "-v /var:/v", "-v //run//docker.sock:/s",
    "-v /srv/../run/docker.sock:/s", "-v /run/containerd/containerd.sock:/s", "-v /home/a/docker.sock:/s",
    "-v /var/lib/docker/volumes:/v", "-v /proc:/p", "-v /var/run/../../run/podman/podman.sock:/s",
)  # fmt: skip


@pytest.mark.parametrize("options", UNSAFE)
def test_what_weakens_the_walls_needs_a_reason(broker: Broker, netctl: Netctl, options: str) -> None:
    broker.answers[RunContainer] = DONE
    refused = netctl("run", "web", "--image", "x", *options.split(), "--json")
    assert refused.status == 1
    error = json.loads(refused.err)
    assert (error["code"], "--allow-unsafe REASON" in error["remedy"]) == ("refused", True)
    assert broker.asked == []
    # The control: with a reason it is asked for, and the reason goes along.
    assert netctl("run", "web", "--image", "x", *options.split(), "--allow-unsafe", "so").status == 0
    assert broker.asked[0].workload.unsafe == "so"


@pytest.mark.parametrize(
    "options",
    ["-v /srv:/srv", "-v docker.sock:/d", "-v /running:/r", "-v /srv/etc/x:/d", "-v /usr:/u:ro",
     "--cap-add CHOWN", "-v /homes/x:/x", "--seccomp unconfined", "--writable", "--user root",
     "-v /var/runner:/r"],
)  # fmt: skip
def test_what_does_not_needs_none(broker: Broker, netctl: Netctl, options: str) -> None:
    broker.answers[RunContainer] = DONE
    assert netctl("run", "web", "--image", "x", *options.split()).status == 0
    assert broker.asked[0].workload.unsafe == ""


def test_a_process_is_its_nodes_to_judge() -> None:
    assert unsafe_options(Workload("process", ("true",), cap_add=("NET_ADMIN",))) == ()
    assert unsafe_options(Workload("docker", ("true",), cap_add=("NET_ADMIN",))) == ("--cap-add NET_ADMIN",)


# --- progress ---------------------------------------------------------------------------------------

PULLING = (
    Progress("web", "pulling 5 %"), Progress("web", "pulling 5 %"), Progress("web", "pulling\x1b[2J [b]50"),
)  # fmt: skip


def test_progress_is_told_line_by_line(broker: Broker, netctl: Netctl) -> None:
    broker.answers[RunContainer] = DONE
    broker.progress.extend(PULLING)
    outcome = netctl("run", "web", "--image", "x")
    assert outcome.out == "web runs on n1 at 10.1.0.2\n"
    assert outcome.err == "web: pulling 5 %\nweb: pulling [2J [b]50\n"


def test_with_json_nothing_but_the_answer_is_said(broker: Broker, netctl: Netctl) -> None:
    broker.answers[RunContainer] = DONE
    broker.progress.extend(PULLING)
    outcome = netctl("run", "web", "--image", "x", "--json")
    assert (json.loads(outcome.out)["revision"], outcome.err) == (11, "")


def test_other_commands_show_none(broker: Broker, netctl: Netctl) -> None:
    broker.answers[RunContainer] = DONE
    with ProgressLine(enabled=False) as line:
        line.show(PULLING[0])
    assert netctl("run", "web", "--image", "x").err == ""


def until(descriptor: int, shown: bytes, wanted: bytes) -> bytes:
    """Read what a terminal shows until it has shown something; the test's own time limit ends it."""
    while wanted not in shown:
        shown += os.read(descriptor, 4096)
    return shown


def test_a_terminal_has_one_live_line_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    main, other = pty.openpty()
    with os.fdopen(other, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "80")
        with ProgressLine(enabled=True) as line:
            line.show(PULLING[0])
            shown = until(main, b"", b"web: pulling 5 %")
            line.show(PULLING[2])
            shown = until(main, shown, b"web: pulling [2J [b]50")
        terminal.write("after")
        terminal.flush()
        shown = until(main, shown, b"after")
    os.close(main)
    # Nothing scrolls: the line is taken away (ECMA-48, EL) before anything else is written.
    assert shown.count(b"\r\n") <= 1
    assert shown[: -len(b"after")].rstrip().endswith((b"\x1b[2K", b"\x1b[?25h"))


def test_progress_needs_no_terminal_library_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr("sys.stderr", told)
    with ProgressLine(enabled=True) as line:
        line.show(PULLING[0])
    assert told.getvalue() == "web: pulling 5 %\n"
