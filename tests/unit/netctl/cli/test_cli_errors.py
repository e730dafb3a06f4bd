"""Errors are one line with what to do about it, or one JSON object; statuses are as promised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from netctl.cli import target
from netctl.errors import NotFoundError, PendingError, UnavailableError, UsageError
from netctl.lab import registry
from netctl.wire.messages import Connect, ContainerList, Done, ListContainers, OpenExec, RunContainer
from tests.unit.netctl.cli.conftest import Broker, Netctl


def test_a_refusal_is_one_line_and_status_1(broker: Broker, netctl: Netctl) -> None:
    broker.answers[Connect] = NotFoundError("there is no container 'dbb'", "did you mean db?")
    outcome = netctl("connect", "web", "dbb")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err == "error: there is no container 'dbb'; did you mean db?\n"


def test_pending_is_status_3_and_names_the_nodes(broker: Broker, netctl: Netctl) -> None:
    broker.answers[Connect] = PendingError("not applied on n2: unreachable", "it will be", ("n2",))
    outcome = netctl("connect", "web", "db", "--json")
    assert (outcome.status, outcome.out) == (3, "")
    assert json.loads(outcome.err) == {
        "code": "pending",
        "message": "not applied on n2: unreachable",
        "remedy": "it will be",
        "nodes": ["n2"],
    }


@pytest.mark.parametrize(
    "command",
    [
        "frobnicate", "connect web", "ps --frob", "run web", "exec web", "connect web db --timeout soon",
        "node", "run web --engine rocket -- true", "lab up --encapsulation carrier-pigeon", "exec web ls -l",
    ],
)  # fmt: skip
def test_wrong_usage_is_status_2(broker: Broker, netctl: Netctl, command: str) -> None:
    outcome = netctl(*command.split())
    assert outcome.status == 2
    assert outcome.err
    assert broker.asked == []


def test_wrong_usage_is_one_line_too(broker: Broker, netctl: Netctl) -> None:
    del broker
    outcome = netctl("connect", "web")
    assert outcome.err == "error: Missing argument 'B'; see `netctl connect --help`\n"
    outcome = netctl("connect", "--json", "web")
    assert json.loads(outcome.err)["code"] == "usage"


def test_options_of_a_command_are_told_from_netctls(broker: Broker, netctl: Netctl) -> None:
    del broker
    assert "put -- before the container's command" in netctl("exec", "web", "ls", "-l").err
    assert "put --" not in netctl("exec", "web", "-l", "--", "ls").err
    assert "put --" not in netctl("ps", "-l").err


@pytest.mark.parametrize("command", ["", "node"])
def test_nothing_to_do_is_answered_with_help(netctl: Netctl, command: str) -> None:
    outcome = netctl(*command.split())
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith(f"Usage: netctl {command}")
    assert "Commands:\n" in outcome.err


def test_output_that_cannot_be_written_is_one_line(
    broker: Broker, netctl: Netctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.answers[ListContainers] = ContainerList(())
    with Path("/dev/full").open("w", encoding="ascii") as full:
        monkeypatch.setattr("sys.stdout", full)
        outcome = netctl("ps", "--json")
        # What could not be written would be tried again when the file is closed.
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    assert outcome.status == 1
    assert json.loads(outcome.err)["message"] == "the output cannot be written: No space left on device"


def test_a_closed_stdin_is_not_taken_for_the_next_socket() -> None:
    code = (
        "import os, sys; sys.argv[1:] = ['version']; from netctl.cli import main\n"
        "try: main.main()\n"
        "except SystemExit: print(os.readlink('/proc/self/fd/0'))"
    )
    shown = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" <&-', sys.executable, code],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.splitlines()[1:] == ["/dev/null"]


@pytest.mark.parametrize(
    "command",
    ["connect web db --port 70000", "connect web db --port 1/sctp", "connect Web db", "run -- true",
     "run w_b -- true", "run web -e X -- true", "run web --workdir relative -- true", "invite node --name N",
     "connect web db --port 0", "lab up --nodes 0", "lab up --mtu 100", "node bind n1",
     "node bind n1 a --none", "node bind n1 A_B", "node label n1 a", "node label n1 -",
     "node label n1 a=1 a-", "node label n1 =1"],
)  # fmt: skip
def test_values_out_of_bounds_reach_no_broker(broker: Broker, netctl: Netctl, command: str) -> None:
    outcome = netctl(*command.split())
    assert outcome.status == 2
    assert len(outcome.err.splitlines()) == 1
    assert broker.asked == []


def test_exec_ends_with_125_where_netctl_failed(broker: Broker, netctl: Netctl) -> None:
    broker.answers[OpenExec] = NotFoundError("there is no container 'web'", "see `netctl ps`")
    outcome = netctl("exec", "web", "--", "true")
    assert outcome.status == 125
    assert len(outcome.err.splitlines()) == 1
    # The next error of its kind has its own status again.
    broker.answers[ListContainers] = NotFoundError("nothing", "")
    assert netctl("ps").status == 1


def test_json_after_the_dashes_is_the_commands_own(broker: Broker, netctl: Netctl) -> None:
    broker.answers[RunContainer] = Done(1, (), "runs")
    assert netctl("run", "web", "--", "prog", "--json").out == "runs\n"
    broker.answers[OpenExec] = UnavailableError("the broker is away", "wait")
    assert netctl("exec", "web", "--", "prog", "--json").err == "error: the broker is away; wait\n"
    assert json.loads(netctl("exec", "--json", "web", "--", "prog").err)["code"] == "unavailable"


def test_ctrl_c_is_status_130(broker: Broker, netctl: Netctl, monkeypatch: pytest.MonkeyPatch) -> None:
    del broker

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("netctl.cli.target.choose", interrupted)
    assert netctl("ps").status == 130


def test_a_long_wait_says_what_for(capfd: pytest.CaptureFixture[str]) -> None:
    with target.notice("web to run", after=60):
        pass
    assert capfd.readouterr().err == ""
    with target.notice("web to run", after=0) as _:
        told = ""
        while not told:
            told = capfd.readouterr().err
    assert told == "waiting for web to run ...\n"


def lab(root: Path) -> str:
    (root / "user").mkdir(parents=True)
    (root / registry.SPEC_FILE).touch()
    return str(root)


def test_which_broker(tmp_path: Path) -> None:
    one, other = lab(tmp_path / "one"), lab(tmp_path / "other")
    home = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    # The one lab that is up, where nothing else says.
    assert target.choose(None, home, [one]).name == one
    with pytest.raises(UsageError, match="2 labs are up: ") as several:
        target.choose(None, home, [one, other])
    assert one in several.value.message
    assert other in several.value.message
    with pytest.raises(NotFoundError, match="no lab is up"):
        target.choose(None, home, [])
    # The broker this user joined comes before labs.
    joined = tmp_path / "config" / "netctl" / "identity"
    joined.parent.mkdir(parents=True)
    joined.touch()
    assert target.choose(None, home, [one, other]).identity == joined
    # The environment before that, and the option before all.
    assert target.choose(None, {**home, "NETCTL_LAB": one}, [other]).identity == Path(one, "user", "identity")
    assert target.choose(other, {**home, "NETCTL_LAB": one}, []).name == other
    with pytest.raises(NotFoundError, match="there is no lab in"):
        target.choose(str(tmp_path), home, [one])


def test_the_lab_may_be_named_before_or_after_the_command(config: Path, netctl: Netctl) -> None:
    missing = str(config / "nowhere")
    for command in (("--lab", missing, "ps"), ("ps", "--lab", missing)):
        assert netctl(*command).err.startswith(f"error: there is no lab in {missing}; ")


def test_where_an_identity_is_kept() -> None:
    assert target.identity_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/netctl/identity")
    assert target.identity_path({"HOME": "/home/ada"}) == Path("/home/ada/.config/netctl/identity")
    assert target.identity_path({"HOME": "/h", "XDG_CONFIG_HOME": "rel"}) == Path(
        "/h/.config/netctl/identity"
    )


def test_an_interrupted_lab_says_how_to_go_on(
    netctl: Netctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("netctl.lab.runner.up", interrupted)
    outcome = netctl("lab", "up", "--dir", str(tmp_path))
    assert outcome.status == 130
    assert f"`netctl lab down --dir {tmp_path}`" in outcome.err
