from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from netctl.errors import InvalidError, RefusedError
from netctl.model import Encapsulation
from netctl.wire import identity as identities
from netctl.wire.identity import Identity, KeyPair
from netctl.wire.messages import Reset
from nodeagent import commands
from nodeagent import main as program
from nodeagent.desired import Desired
from nodeagent.directory import DirectoryLock, NodeDirectory, holder, stop_holder
from nodeagent.driver.service import Driver
from nodeagent.facts import AUTO
from nodeagent.found import Found
from nodeagent.helper_process import helper_arguments
from tests.support.agents import container, peer, state


@pytest.fixture
def directory(tmp_path: Path) -> NodeDirectory:
    made = NodeDirectory(tmp_path / "state", tmp_path / "run")
    made.make()
    return made


def joined(directory: NodeDirectory) -> Identity:
    identity = Identity(
        kind="node",
        name="n1",
        private_key=KeyPair.generate().private,
        addresses=(f"ipc://{directory.path}/nobody.sock",),
        broker_key=KeyPair.generate().public,
        block="10.1.0.0/16",
        supernet="10.0.0.0/8",
    )
    identities.save(identity, directory.identity)
    return identity


def holding(directory: NodeDirectory) -> subprocess.Popen[bytes]:
    """Start a process that holds the lock until SIGTERM."""
    code = (
        "import signal, sys; from pathlib import Path\n"
        "from nodeagent.directory import DirectoryLock, NodeDirectory\n"
        f"lock = DirectoryLock(NodeDirectory(Path({str(directory.path)!r}), Path('/')))\n"
        "print('held', flush=True); signal.pause()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_one_agent_keeps_a_directory(directory: NodeDirectory) -> None:
    assert holder(directory) == 0
    process = holding(directory)
    assert holder(directory) == process.pid
    with pytest.raises(RefusedError, match="another nodeagent"):
        DirectoryLock(directory)
    stop_holder(directory)
    assert process.wait(10) == -15
    assert holder(directory) == 0
    stop_holder(directory)
    with DirectoryLock(directory):
        assert holder(directory) == os.getpid()
    assert process.stdout is not None
    process.stdout.close()


def test_a_directory_that_others_may_use_is_refused(tmp_path: Path) -> None:
    open_to_all = tmp_path / "state"
    open_to_all.mkdir(mode=0o755)
    with pytest.raises(InvalidError, match="others may use"):
        NodeDirectory(open_to_all, tmp_path / "run").make()


def test_deleting_leaves_what_is_not_ours(directory: NodeDirectory) -> None:
    joined(directory)
    (directory.path / "containers" / "x").mkdir(parents=True)
    (directory.run / "records").mkdir()
    (directory.path / "notes").write_text("the operator's")
    directory.delete()
    assert [path.name for path in directory.path.iterdir()] == ["notes"]
    assert not directory.run.exists()
    (directory.path / "notes").unlink()
    directory.delete()
    assert not directory.path.exists()


def test_settings_found_are_kept_and_nothing_else_is_believed(tmp_path: Path) -> None:
    found = Found(tmp_path)
    found.load()
    assert found.settings == {}
    found.remember({"net/ipv4/ip_forward": "0"})
    again = Found(tmp_path)
    again.load()
    assert again.settings == {"net/ipv4/ip_forward": "0"}
    for text in ('{"kernel/core_pattern": "|/bin/sh", "net/ipv4/ip_forward": "0"}', "{", '{"a": 1}', "[]"):
        (tmp_path / "found.json").write_text(text)
        again = Found(tmp_path)
        again.load()
        assert again.settings.keys() <= {"net/ipv4/ip_forward"}
    found.forget()
    assert list(tmp_path.iterdir()) == []


# --- command line -----------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = program.run(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def at(directory: NodeDirectory) -> tuple[str, ...]:
    return ("--dir", str(directory.path), "--run-dir", str(directory.run))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "version") == (0, "0.1.0\n", "")


@pytest.mark.parametrize(
    "arguments",
    [(), ("nonsense",), ("join",), ("run", "--encapsulation", "smoke"), ("run", "--firewall", "x")],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert "usage: nodeagent" in err


@pytest.mark.parametrize("command", ["join", "run", "leave", "status", "version"])
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    status, out, _ = run(capsys, command, "--help")
    assert status == 0
    assert f"example: nodeagent {command}" in out


@pytest.mark.parametrize("command", ["run", "leave", "status"])
def test_where_no_node_is(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    directory = NodeDirectory(tmp_path / "state", tmp_path / "run")
    status, out, err = run(capsys, command, *at(directory))
    assert (status, out) == (1, "")
    assert err.startswith("error: there is no identity at ")
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_status(capsys: pytest.CaptureFixture[str], directory: NodeDirectory) -> None:
    joined(directory)
    desired = Desired(directory.path)
    desired.take(Reset(3, 14, state([container(2)], [peer(2), peer(3)])))
    desired.flush()
    status, out, _ = run(capsys, "status", "--json", *at(directory))
    assert status == 0
    assert json.loads(out) == {
        "name": "n1",
        "block": "10.1.0.0/16",
        "broker": [f"ipc://{directory.path}/nobody.sock"],
        "pid": None,
        "epoch": 3,
        "revision": 14,
        "containers": 1,
        "peers": 2,
    }
    status, out, _ = run(capsys, "status", *at(directory))
    assert "revision   14" in out


@pytest.mark.parametrize(
    ("invite", "reason"), [("nonsense", "this is no invite"), ("netctl-invite-AAAA", "incomplete")]
)
def test_joining_with_something_else_than_an_invite(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, invite: str, reason: str
) -> None:
    directory = NodeDirectory(tmp_path / "state", tmp_path / "run")
    status, _, err = run(capsys, "join", invite, *at(directory))
    assert status == 1
    assert reason in err
    assert list(tmp_path.iterdir()) == []


def test_how_encapsulations_are_named() -> None:
    def chosen(*words: str) -> object:
        return program.make_parser().parse_args(["run", *words]).encapsulation

    assert chosen() == chosen("--encapsulation", "auto") == ()
    assert chosen("--encapsulation", "direct") == ("direct",)
    assert chosen("--encapsulation", "wireguard,vxlan") == ("wireguard", "vxlan")
    assert set(AUTO) <= set(program.ENCAPSULATIONS) == set(get_args(Encapsulation)) - {"none"}


@pytest.mark.parametrize("text", ["", "none", "gre,", "gre,gre", "gre, vxlan", "auto,gre", "GRE", "gre,ipip"])
def test_what_names_no_encapsulations(capsys: pytest.CaptureFixture[str], text: str) -> None:
    status, _, err = run(capsys, "run", "--encapsulation", text)
    assert status == 2
    assert "each once, with commas between" in err


def test_a_host_name_becomes_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, label in {"Web_01.example.org": "web-01", "n1": "n1", "-X-": "x"}.items():
        fields = list(os.uname())
        fields[1] = name
        result = os.uname_result(fields)
        with monkeypatch.context() as patched:
            patched.setattr(os, "uname", lambda result=result: result)
            assert commands._host_name() == label


@pytest.mark.root
def test_leaving_with_containers_and_no_broker_needs_force(
    capsys: pytest.CaptureFixture[str], directory: NodeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined(directory)
    monkeypatch.setattr("nodeagent.membership.PATIENCE", 0.2)
    desired = Desired(directory.path)
    desired.take(Reset(3, 14, state([container(2)])))
    desired.flush()
    status, _, err = run(capsys, "leave", *at(directory))
    assert status == 1
    assert "containers are recorded here (c2)" in err
    assert directory.identity.exists()


def test_docker_is_offered_only_where_it_is_asked_for(
    directory: NodeDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    parser = program.make_parser()
    without = helper_arguments(parser.parse_args(["run"]), directory)
    assert not any(argument.startswith("--docker") for argument in without)
    given = ["run", "--docker", "--docker-exec-root", "/x/exec"]
    arguments = helper_arguments(parser.parse_args(given), directory)
    assert arguments[: len(without)] == without
    assert arguments[len(without) :] == [
        *("--docker-socket", "/var/run/docker.sock", "--docker-exec-root", "/x/exec")
    ]


def test_what_a_driver_keeps_goes_with_the_node(directory: NodeDirectory) -> None:
    run = directory.run / "docker-endpoints.json"
    driver = Driver(directory.docker_networks, run, directory.run / "driver.sock", directory.run / "exec")
    assert directory.docker_networks.exists()
    assert run.exists()
    driver.close()
    directory.delete()
    assert not directory.path.exists()
    assert not directory.run.exists()
