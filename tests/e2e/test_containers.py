"""Containers as a user meets them: run, exec, logs, stop, start, rm, and the states between."""

from __future__ import annotations

import time

import pytest

from nodeagent.shim import STOP_AFTER
from tests.support.lab import Lab
from tests.support.netns import wait_for

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def test_a_command_that_ends_stays_listed_with_its_status(lab: Lab) -> None:
    lab.run("brief", command=("sh", "-c", "echo out; echo err >&2; exit 7"))
    wait_for(lambda: lab.containers()["brief"]["state"] == "exited", 10, "the end")
    assert lab.containers()["brief"]["exit_code"] == 7
    logs = lab.netctl("logs", "brief")
    assert (logs.out, logs.err) == ("out\n", "err\n")
    lab.netctl("rm", "brief")
    assert "brief" not in lab.containers()


def test_listing_has_the_promised_keys(lab: Lab) -> None:
    lab.run("keys", "--node", "n3")
    row = lab.containers()["keys"]
    assert {"name", "node", "address", "engine", "state", "exit_code"} <= row.keys()
    assert (row["node"], row["engine"], row["state"], row["exit_code"]) == ("n3", "process", "running", None)
    nodes = lab.netctl("node", "list", "--json").json
    assert [node["name"] for node in nodes] == ["n1", "n2", "n3"]
    assert {"name", "block", "underlay", "state", "encapsulation"} <= nodes[0].keys()
    assert nodes[0]["block"] == "10.1.0.0/16"
    assert row["address"].startswith(nodes[2]["block"].rsplit(".", 2)[0] + ".")
    lab.netctl("rm", "--force", "keys")


def test_exec_carries_streams_and_status(lab: Lab) -> None:
    lab.run("shell")
    assert lab.netctl("exec", "shell", "--", "cat", stdin="through and back\n").out == "through and back\n"
    both = lab.netctl("exec", "shell", "--", "sh", "-c", "echo o; echo e >&2; exit 3", status=3)
    assert (both.out, both.err) == ("o\n", "e\n")
    assert lab.netctl("exec", "shell", "--", "sh", "-c", "kill -9 $$", status=137).out == ""
    assert lab.netctl("exec", "shell", "--", "/no/such/program", status=127).out == ""
    missing = lab.netctl("exec", "nobody", "--", "true", status=125)
    assert len(missing.err.strip().splitlines()) == 1
    big = bytes(range(256)) * 8192
    done = lab.netctl("exec", "shell", "--", "sh", "-c", "wc -c", stdin=big)
    assert int(done.out) == len(big)
    assert len(lab.netctl("exec", "shell", "--", "head", "-c", "3000000", "/dev/zero").out) == 3000000
    lab.netctl("rm", "--force", "shell")


def test_a_container_sees_the_host_and_nothing_of_netctl(lab: Lab) -> None:
    lab.run("inside")
    run = lambda *words, status=0: lab.netctl("exec", "inside", "--", *words, status=status)  # noqa: E731 - a short name for one test
    assert run("hostname").out == "inside\n"
    assert "root:" in run("cat", "/etc/passwd").out
    processes = run("sh", "-c", "ls -d /proc/[0-9]*").out.split()
    assert len(processes) < 10
    assert run("sh", "-c", f"ls -A {lab.directory} | wc -l").out.strip() == "0"
    assert lab.directory.joinpath("broker").exists()
    status = run("grep", "-E", "NoNewPrivs|CapBnd", "/proc/self/status").out.split()
    assert status[status.index("NoNewPrivs:") + 1] == "1"
    # Docker's default bounding set (moby, oci/caps/defaults.go).
    assert int(status[status.index("CapBnd:") + 1], 16) == 0xA80425FB
    lab.netctl("rm", "--force", "inside")


def test_stop_start_and_rm(lab: Lab) -> None:
    lab.run("again", command=("sh", "-c", "echo started; exec sleep 1000000"))
    before = lab.containers()["again"]
    refused = lab.netctl("rm", "again", status=1)
    assert "--force" in refused.err
    lab.netctl("stop", "again")
    stopped = lab.containers()["again"]
    assert (stopped["state"], stopped["exit_code"]) == ("exited", 143)
    lab.netctl("start", "again")
    started = lab.containers()["again"]
    assert started == before
    wait_for(lambda: lab.netctl("logs", "again").out.count("started") == 2, 10, "the second start")
    lab.netctl("rm", "--force", "again")
    lab.netctl("inspect", "again", status=1)


def test_stop_of_a_command_that_ignores_it_is_done_in_the_time_it_waits_by_default(lab: Lab) -> None:
    lab.run("stubborn", command=("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done"))
    wait_for(lambda: "ready" in lab.netctl("logs", "stubborn").out, 10, "the trap")
    began = time.monotonic()
    lab.netctl("stop", "stubborn")
    # The control: it was not the first signal that ended it.
    assert time.monotonic() - began > STOP_AFTER / 2
    row = lab.containers()["stubborn"]
    assert (row["state"], row["exit_code"]) == ("exited", 137)
    lab.netctl("rm", "stubborn")


def test_a_command_that_cannot_start_is_refused_with_its_reason(lab: Lab) -> None:
    failed = lab.netctl("run", "typo", "--", "/no/such/program", status=1)
    assert "/no/such/program" in failed.err
    lab.netctl("rm", "--force", "typo")


def test_names_are_checked(lab: Lab) -> None:
    for name in ("Web", "a_b", "-a", "a" * 64, "a.b"):
        assert lab.netctl("run", name, "--", "true", status=None).status in (1, 2)
    lab.run("a" * 63)
    taken = lab.netctl("run", "a" * 63, "--", "true", status=1)
    assert len(taken.err.strip().splitlines()) == 1
    lab.netctl("rm", "--force", "a" * 63)


def test_drain_keeps_new_containers_away(lab: Lab) -> None:
    lab.netctl("node", "drain", "n1")
    try:
        assert {n["name"]: n["state"] for n in lab.netctl("node", "list", "--json").json}["n1"] == "draining"
        lab.netctl("run", "placed", "--node", "n1", "--", "true", status=1)
        lab.run("placed")
        assert lab.containers()["placed"]["node"] != "n1"
        lab.netctl("rm", "--force", "placed")
    finally:
        lab.netctl("node", "drain", "n1", "--undo")
