"""Process containers on the real kernel: what runs, what it sees and may do, what survives, what is left."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import termios
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from firewall_rules.backends.fake import FakeHostBackend
from netctl.errors import KernelError
from netctl.model import Workload
from nodeagent.apply import Host
from nodeagent.engine.base import ExecRequest
from nodeagent.engine.cgroups import PARENT, Cgroups, find_hierarchies
from nodeagent.engine.process import ProcessEngine
from nodeagent.engine.process_spec import OWN_IDS
from nodeagent.execs import Execs
from nodeagent.helper_messages import ExecEnded, OpenExec
from nodeagent.kernel.fake import FakeKernel
from nodeagent.shim_output import LIMIT, STEP
from nodeagent.shim_process import MOST_PROCESSES
from tests.support.engines import (
    ProcessRig,
    execute,
    made,
    new_id,
    output_of,
    ran,
    records,
    running,
    said,
    until,
    until_state,
)

pytestmark = pytest.mark.root

RECORD_HEAD = 5
"""Bytes before each record of output, see `nodeagent.shim_output`."""
DOCKERS_CAPABILITIES = 0xA80425FB
"""CapBnd of a container that Docker starts without options."""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ProcessRig]:
    rig = ProcessRig(tmp_path)
    yield rig
    rig.close()


def run(rig: ProcessRig, workload: Workload, name: str = "web") -> str:
    """Make and start a container, and wait until its command has ended or runs."""
    container = new_id()
    rig.engine.create(container, name, "10.1.0.2", workload)
    until_state(rig.engine, container, "created")
    rig.engine.start(container, 1)
    until_state(rig.engine, container, "running", "failed", "exited")
    return container


def ends(rig: ProcessRig, *argv: str, **how: object) -> tuple[int | None, str]:
    """Run a container to its end; return its exit code and its stdout."""
    container = run(rig, Workload("process", argv, **how))  # type: ignore[arg-type]
    until_state(rig.engine, container, "exited", "failed")
    return rig.engine.containers()[container].exit_code, said(rig.engine, container)


def pids_of(container: str) -> set[int]:
    """The processes in a container's cgroups, the shim included."""
    return {
        int(pid) for cgroup in cgroups_of(container) for pid in (cgroup / "cgroup.procs").read_text().split()
    }


def cgroups_of(container: str) -> list[Path]:
    hierarchies = find_hierarchies(Path("/proc/self/mountinfo").read_text())
    assert hierarchies, "this host has no cgroups"
    return [
        hierarchy / PARENT / container
        for hierarchy in hierarchies
        if (hierarchy / PARENT / container).exists()
    ]


def shim_of(container: str) -> int:
    return next(pid for pid in pids_of(container) if name_of(pid) == "netctl-shim")


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# What runs, and how it ends.


@pytest.mark.parametrize(
    ("argv", "code"), [(("true",), 0), (("sh", "-c", "exit 3"), 3), (("sh", "-c", "kill -KILL $$"), 137)]
)
def test_the_exit_code_is_the_commands(rig: ProcessRig, argv: tuple[str, ...], code: int) -> None:
    assert ends(rig, *argv)[0] == code


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("/no/such/program",), 127, "No such file"),
        (("no-such-program",), 127, "No such file"),
        (("/etc/passwd",), 126, "Permission denied"),
        (("/",), 126, "Permission denied"),
    ],
)
def test_what_cannot_be_run_has_failed(rig: ProcessRig, argv: tuple[str, ...], code: int, says: str) -> None:
    container = run(rig, Workload("process", argv))
    seen = rig.engine.containers()[container]
    assert (seen.state, seen.generation, seen.exit_code) == ("failed", 1, code)
    assert says in seen.message
    assert argv[0] in seen.message


def test_a_missing_directory_to_start_in_has_failed(rig: ProcessRig) -> None:
    container = run(rig, Workload("process", ("true",), workdir="/no/such"))
    assert rig.engine.containers()[container].state == "failed"
    assert "/no/such" in rig.engine.containers()[container].message


def test_a_command_starts_where_and_with_what_it_was_told(rig: ProcessRig) -> None:
    code, out = ends(rig, "sh", "-c", "pwd; echo $GREETING; echo $HOSTNAME; hostname; umask", workdir="/usr",
                     env=(("GREETING", "hello you"),))  # fmt: skip
    assert (code, out) == (0, "/usr\nhello you\nweb\nweb\n0022\n")


def test_a_command_that_ignores_the_signal_is_killed_when_its_time_is_up(
    rig: ProcessRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The shim is another process; a copy of its program with a shorter time stands in.
    shorten_stop(monkeypatch)
    container = run(
        rig, Workload("process", ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 60; done"))
    )
    until(rig.engine, lambda: "ready" in said(rig.engine, container))
    rig.engine.stop(container)
    until_state(rig.engine, container, "exited")
    assert rig.engine.containers()[container].exit_code == 137


def shorten_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "nodeagent.engine.shim_link._BOOT",
        "import sys; sys.path.append(sys.argv[1]); from nodeagent import shim; "
        "shim.STOP_AFTER = 0.3; shim.main()",
    )


def test_what_the_command_leaves_behind_ends_with_it(rig: ProcessRig) -> None:
    container = run(rig, Workload("process", ("sh", "-c", "setsid sleep 300 & sleep 301 & exit 0")))
    until_state(rig.engine, container, "exited")
    assert pids_of(container) == {shim_of(container)}


def test_orphans_are_reaped(rig: ProcessRig) -> None:
    container = running(rig)
    ran(rig.engine, container, "sh", "-c", "(sh -c 'exit 0' &) ; (sh -c 'exit 0' &)")
    until(rig.engine, lambda: "Z" not in ran(rig.engine, container, "ps", "-eo", "stat="))


# Walls.


def test_only_its_own_processes_are_seen(rig: ProcessRig) -> None:
    container = running(rig)
    names = ran(rig.engine, container, "ps", "-eo", "pid=,comm=").split("\n")
    # init, the command, and ps itself; the control is that the host has more.
    assert len([line for line in names if line]) == 3
    assert len(subprocess.run(["ps", "-e"], capture_output=True, check=True).stdout.splitlines()) > 5
    assert os.getpid() not in {int(line.split()[0]) for line in names if line} - {1, 2}


def test_every_namespace_is_its_own(rig: ProcessRig) -> None:
    container = running(rig)
    kinds = ("net", "mnt", "pid", "uts", "ipc", "cgroup")
    inside = ran(rig.engine, container, "readlink", *(f"/proc/self/ns/{kind}" for kind in kinds)).split()
    outside = [str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in kinds]
    assert len(inside) == len(kinds)
    assert not set(inside) & set(outside)
    assert os.fstat(rig.engine.namespace(container)).st_ino == int(inside[0].strip("net:[]"))
    assert ran(rig.engine, container, "hostname") == "web\n"
    assert socket.gethostname() != "web"


def test_loopback_is_left_down_for_the_agent(rig: ProcessRig) -> None:
    container = running(rig)
    assert ran(rig.engine, container, "cat", "/sys/class/net/lo/operstate") == "down\n"
    assert ran(rig.engine, container, "ls", "/sys/class/net").split() == ["lo"]


def test_capabilities_are_dockers(rig: ProcessRig) -> None:
    code, out = ends(rig, "cat", "/proc/self/status")
    status = dict(line.split(":\t", 1) for line in out.splitlines() if ":\t" in line)
    assert code == 0
    assert int(status["CapBnd"], 16) == DOCKERS_CAPABILITIES
    assert int(status["CapEff"], 16) == DOCKERS_CAPABILITIES
    assert int(status["CapPrm"], 16) == DOCKERS_CAPABILITIES
    assert int(status["CapInh"], 16) == 0
    assert int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Groups"].strip() == ""
    assert status["SigBlk"].strip("0\n") == ""
    # Signals 32 and 33 are the C library's own; a shell that ignores them hands that on.
    assert int(status["SigIgn"], 16) & ~(0b11 << 31) == 0


def test_an_added_capability_is_held_and_no_other(rig: ProcessRig) -> None:
    container = run(rig, Workload("process", ("sleep", "300"), cap_add=("CAP_NET_ADMIN",)))
    status = ran(rig.engine, container, "cat", "/proc/self/status")
    assert f"CapEff:\t{DOCKERS_CAPABILITIES | 1 << 12:016x}\n" in status
    ran(rig.engine, container, "ip", "link", "set", "lo", "up")
    without = running(rig, "db", "10.1.0.3")
    assert execute(rig.engine, without, ("ip", "link", "set", "lo", "up"))[0] != 0


def test_a_capability_that_undoes_the_walls_is_refused(rig: ProcessRig) -> None:
    with pytest.raises(KernelError, match="SYS_ADMIN"):
        rig.engine.create(new_id(), "web", "10.1.0.2", Workload("process", ("true",), cap_add=("SYS_ADMIN",)))
    assert rig.engine.containers() == {}


def test_masks_cannot_be_taken_off(rig: ProcessRig) -> None:
    container = running(rig)
    assert execute(rig.engine, container, ("umount", str(rig.directory / "state")))[0] != 0
    # A user namespace gives every privilege but that one: mounts that came from outside it are locked.
    _, out, _, _ = execute(
        rig.engine,
        container,
        ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c",
         f"umount {rig.directory}/state; umount /run; ls {rig.directory}/state /run"),
    )  # fmt: skip
    assert "containers" not in out
    assert "netctl" not in out


def test_the_agents_state_is_hidden(rig: ProcessRig, tmp_path: Path) -> None:
    other = tmp_path / "beside"
    other.write_text("seen")
    (tmp_path / "state" / "key").write_text("secret")
    container = running(rig)
    assert ran(rig.engine, container, "cat", str(other)) == "seen"
    assert ran(rig.engine, container, "ls", "-A", str(tmp_path / "state")) == ""
    assert execute(rig.engine, container, ("cat", str(tmp_path / "state" / "key")))[0] != 0
    assert execute(rig.engine, container, ("touch", str(tmp_path / "state" / "x")))[0] != 0


def test_masked_files_directories_and_what_links_to_them_are_hidden(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key").write_text("secret")
    (tmp_path / "key").write_text("secret")
    (tmp_path / "link").symlink_to(tmp_path / "secrets")
    (tmp_path / "beside").write_text("seen")
    rig = ProcessRig(tmp_path)
    rig.engine.close()
    rig.engine = ProcessEngine(
        tmp_path / "state", root=True, masked=(tmp_path / "link", tmp_path / "key", tmp_path / "none")
    )
    try:
        container = running(rig)
        assert ran(rig.engine, container, "cat", f"{tmp_path}/beside") == "seen"
        assert (
            ran(rig.engine, container, "ls", "-A", f"{tmp_path}/secrets", f"{tmp_path}/link/").count("key")
            == 0
        )
        assert "Permission denied" in execute(rig.engine, container, ("cat", f"{tmp_path}/key"))[2]
    finally:
        rig.close()


def test_a_secret_is_hidden_wherever_it_is_bound(tmp_path: Path) -> None:
    """A bind mount shows the state a second time; it is made in a mount namespace of the test's own."""
    script = textwrap.dedent("""
        import pathlib, subprocess, sys
        from tests.support.engines import ProcessRig, ran, running
        top = pathlib.Path(sys.argv[1])
        for name in ("whole", "part"):
            (top / name).mkdir()
        (top / "state" / "deep").mkdir(parents=True)
        (top / "state" / "deep" / "key").write_text("secret")
        (top / "beside").write_text("seen")
        subprocess.run(["mount", "--bind", top, top / "whole"], check=True)
        subprocess.run(["mount", "--bind", top / "state" / "deep", top / "part"], check=True)
        assert (top / "whole/state/deep/key").read_text() == (top / "part/key").read_text() == "secret"
        rig = ProcessRig(top)
        try:
            container = running(rig)
            assert ran(rig.engine, container, "cat", f"{top}/whole/beside") == "seen"
            places = [str(top / name) for name in ("whole", "part", "state")]
            print(ran(rig.engine, container, "find", *places, "-name", "key"))
        finally:
            rig.close()
    """)
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", script, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parent.parent.parent,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


def test_sockets_below_run_are_hidden(rig: ProcessRig) -> None:
    path = Path("/run") / f"netctl-test-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        try:
            assert stat.S_ISSOCK(path.stat().st_mode)
            container = running(rig)
            assert ran(rig.engine, container, "ls", "-A", "/run", "/var/run/").split() == [
                "/run:", "lock", "/var/run/:", "lock",
            ]  # fmt: skip
        finally:
            path.unlink()


def test_kernel_file_systems_of_the_host_are_gone(rig: ProcessRig) -> None:
    container = running(rig)
    ran(rig.engine, container, "sh", "-c", 'test -z "$(ls /sys/fs/cgroup)"')
    assert any(Path("/sys/fs/cgroup").iterdir())
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper"):
        assert execute(rig.engine, container, ("sh", "-c", f"echo x > {path}"))[0] != 0, path
    assert execute(rig.engine, container, ("cat", "/proc/keys"))[1] == ""
    assert Path("/proc/keys").read_text() != ""


def test_devices_are_the_harmless_ones_and_no_other_opens(rig: ProcessRig, tmp_path: Path) -> None:
    os.mknod(tmp_path / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    assert (tmp_path / "zero").open("rb").read(1) == b"\0"
    container = running(rig)
    names = set(ran(rig.engine, container, "ls", "/dev").split())
    assert names == {
        "null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm", "fd",
        "stdin", "stdout", "stderr",
    }  # fmt: skip
    assert len(ran(rig.engine, container, "sh", "-c", "head -c 4 /dev/urandom | od -An -tx1").split()) == 4
    assert ran(rig.engine, container, "head", "-c", "1", "/dev/zero") == "\0"
    for where in (tmp_path, Path("/dev"), Path("/dev/shm"), Path("/run")):  # noqa: S108 - the container's
        made_there = where / "made"
        code, _, err, _ = execute(rig.engine, container, ("mknod", str(made_there), "c", "1", "5"))
        if code == 0:
            code, _, err, _ = execute(rig.engine, container, ("head", "-c", "1", str(made_there)))
        assert code != 0, where
        assert "Permission denied" in err
    assert execute(rig.engine, container, ("head", "-c", "1", str(tmp_path / "zero")))[0] != 0


def test_terminals_can_be_made_inside(rig: ProcessRig) -> None:
    container = running(rig)
    assert ran(rig.engine, container, "script", "-qc", "tty", "/dev/null").strip() == "/dev/pts/0"


# Who it runs as.


def test_outside_a_lab_a_container_has_an_id_of_its_own_and_no_privilege(tmp_path: Path) -> None:
    engine = ProcessEngine(tmp_path / "state")
    container = new_id()
    try:
        workload = Workload("process", ("sh", "-c", "id -u; id -g; id -G; grep Cap /proc/self/status"))
        engine.create(container, "web", "10.1.2.3", workload)
        until_state(engine, container, "created")
        engine.start(container, 1)
        until_state(engine, container, "exited", "failed")
        own = str(OWN_IDS + 0x010203)
        lines = said(engine, container).splitlines()
        assert lines[:3] == [own, own, own]
        held = {line.split(":\t")[0]: int(line.split(":\t")[1], 16) for line in lines[3:]}
        assert held == {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": DOCKERS_CAPABILITIES, "CapAmb": 0}
        for user in ("root", "0", "0:0", "daemon", "65534:0", "1000"):
            with pytest.raises(KernelError, match="refused"):
                engine.create(new_id(), "db", "10.1.2.4", attrs_user(workload, user))
        assert list(engine.containers()) == [container]
    finally:
        engine.remove(container)
        engine.close()


_FORK_BOMB = """
import os, time
made = 0
try:
    while made < 1000:
        if os.fork() == 0:
            time.sleep(1000000)
        made += 1
except BlockingIOError:
    print("refused after", made, flush=True)
time.sleep(1000000)
"""


def test_a_fork_bomb_is_bounded_and_taken_out(tmp_path: Path) -> None:
    most = 60
    engine = ProcessEngine(tmp_path / "state", root=True, cgroups=Cgroups(most_processes=most))
    container, other = new_id(), new_id()
    try:
        for each, address in ((container, "10.1.0.2"), (other, "10.1.0.3")):
            argv = (sys.executable, "-c", _FORK_BOMB) if each == container else ("sleep", "1000000")
            engine.create(each, "web", address, Workload("process", argv))
            until_state(engine, each, "created")
            engine.start(each, 1)
            until_state(engine, each, "running", "failed")
        until(engine, lambda: "refused after" in said(engine, container))
        made = int(said(engine, container).split()[-1])
        assert most / 2 < made < most
        # The control: nobody else is short of processes, and the bomb itself is taken out like any other.
        assert ran(engine, other, "echo", "still here") == "still here\n"
    finally:
        for each in (container, other):
            engine.remove(each)
        engine.close()


def test_a_user_is_bounded_without_a_cgroup_too(tmp_path: Path) -> None:
    engine = ProcessEngine(tmp_path / "state", cgroups=Cgroups(()))
    container = new_id()
    try:
        engine.create(container, "web", "10.1.0.2", Workload("process", ("bash", "-c", "ulimit -Hu")))
        until_state(engine, container, "created")
        engine.start(container, 1)
        until_state(engine, container, "exited", "failed")
        most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        assert int(said(engine, container)) == (MOST_PROCESSES if most < 0 else min(MOST_PROCESSES, most))
    finally:
        engine.remove(container)
        engine.close()


def attrs_user(workload: Workload, user: str) -> Workload:
    return Workload(workload.engine, workload.argv, user=user)


def test_an_unprivileged_command_can_ping_and_bind_low_ports(rig: ProcessRig) -> None:
    program = textwrap.dedent("""
        import os, socket
        assert os.getuid() == 65534
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
        socket.socket().bind(("0.0.0.0", 80))
        try:
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        except PermissionError:
            print("no raw sockets")
    """)
    code, out = ends(rig, "/usr/bin/env", "python3", "-c", program, user="65534:65534")
    assert (code, out) == (0, "no raw sockets\n")


@pytest.mark.parametrize(
    ("user", "ids"), [("nobody", "65534:65534"), ("1234", "1234:1234"), ("1234:77", "1234:77"), ("", "0:0")]
)
def test_a_lab_runs_as_whom_it_is_told(rig: ProcessRig, user: str, ids: str) -> None:
    assert ends(rig, "sh", "-c", "echo $(id -u):$(id -g)", user=user) == (0, ids + "\n")


# Commands beside the container's own.


def test_an_exec_has_three_streams_and_its_own_exit_code(rig: ProcessRig) -> None:
    container = running(rig)
    script = "read line; echo out $line; echo err $line >&2; pwd; echo $A; hostname; exit 42"
    done = execute(rig.engine, container, ("sh", "-c", script), stdin=b"hello\n", env=(("A", "b c"),))
    assert done == (42, "out hello\n/\nb c\nweb\n", "err hello\n", "")
    assert rig.engine.containers()[container].state == "running"
    assert said(rig.engine, container) == ""


def test_an_exec_carries_what_no_terminal_would(rig: ProcessRig) -> None:
    container = running(rig)
    argv = ("sh", "-c", 'printf %s "$2" | wc -c; printf %s "$1"', "sh", "zwölf\nГ", "x" * 100_000)
    assert execute(rig.engine, container, argv) == (0, "100000\nzwölf\nГ", "", "")


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [(("no-such-program",), 127, "No such file"), (("/etc/passwd",), 126, "Permission denied")],
)
def test_an_exec_that_cannot_run_says_so(
    rig: ProcessRig, argv: tuple[str, ...], code: int, says: str
) -> None:
    container = running(rig)
    got = execute(rig.engine, container, argv)
    assert (got[0], got[1], got[2]) == (code, "", "")
    assert says in got[3]


def test_an_exec_ended_by_a_signal_says_which(rig: ProcessRig) -> None:
    assert execute(rig.engine, running(rig), ("sh", "-c", "kill -TERM $$"))[0] == 143


def test_an_exec_has_the_containers_privileges_and_user(rig: ProcessRig) -> None:
    container = running(rig)
    assert f"CapEff:\t{DOCKERS_CAPABILITIES:016x}\n" in ran(rig.engine, container, "cat", "/proc/self/status")
    assert ran(rig.engine, container, "id", "-u") == "0\n"
    assert ran(rig.engine, container, "id", "-u", user="nobody") == "65534\n"
    status = ran(rig.engine, container, "cat", "/proc/self/status", user="nobody")
    assert "CapEff:\t0000000000000000\n" in status
    assert "NoNewPrivs:\t1\n" in status
    with pytest.raises(KernelError, match="no user"):
        execute(rig.engine, container, ("id",), user="no-such-user")


def test_an_exec_inherits_no_descriptor(rig: ProcessRig) -> None:
    assert ran(rig.engine, running(rig), "sh", "-c", "ls /proc/$$/fd").split() == ["0", "1", "2"]


def on_a_terminal(
    rig: ProcessRig, container: str, script: str, user: str = ""
) -> tuple[int, list[ExecEnded]]:
    """Run a shell on a terminal of 33 rows and 101 columns; return its master, and where its end is told."""
    ended: list[ExecEnded] = []
    execs = Execs(Host(FakeKernel(), None, FakeHostBackend(), [rig.engine]))
    request = OpenExec(container, ("sh", "-c", script), (("TERM", "xterm"),), user, True, 33, 101)
    _, (master,) = execs.open(request, ended.append)
    return master, ended


def seen_on(master: int, wanted: bytes) -> bytes:
    """Read until something is on the terminal."""
    seen = b""
    while wanted not in seen:
        assert select.select([master], [], [], 15)[0], seen
        seen += os.read(master, 1024)
    return seen


def test_an_exec_on_a_terminal_is_controlled_by_it(rig: ProcessRig) -> None:
    container = running(rig)
    script = "test -t 0 && test -t 1 && test -t 2 && echo terminal > /dev/tty; read line; exit 9"
    master, ended = on_a_terminal(rig, container, script)
    seen_on(master, b"terminal")
    os.write(master, b"\x03")
    until(rig.engine, lambda: bool(ended))
    assert [(end.exit_code, end.message) for end in ended] == [(130, "")]
    os.close(master)


@pytest.mark.parametrize("user", ["", "nobody"])
def test_a_terminal_is_the_containers_own_and_of_the_size_asked_for(rig: ProcessRig, user: str) -> None:
    container = running(rig)
    script = "tty; stty size; stat -c %u:%a $(tty); ls -1 /proc/self/fd; ls -1 /dev/pts; read line; stty size"
    master, ended = on_a_terminal(rig, container, script, user)
    uid = 65534 if user else 0
    wanted = f"/dev/pts/0\r\n33 101\r\n{uid}:620\r\n0\r\n1\r\n2\r\n3\r\n0\r\nptmx\r\n".encode()
    assert seen_on(master, b"ptmx\r\n") == wanted
    # The agent holds the master, and needs nobody to change the size.
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
    os.write(master, b"\n")
    seen_on(master, b"50 132")
    until(rig.engine, lambda: bool(ended))
    assert ended[0].exit_code == 0
    with pytest.raises(OSError, match="Input/output error"):
        os.read(master, 1)
    os.close(master)


def test_a_command_without_a_program_on_a_terminal_says_why(rig: ProcessRig) -> None:
    container = running(rig)
    ended: list[ExecEnded] = []
    execs = Execs(Host(FakeKernel(), None, FakeHostBackend(), [rig.engine]))
    _, (master,) = execs.open(OpenExec(container, ("/no/such",), tty=True), ended.append)
    until(rig.engine, lambda: bool(ended))
    assert ended[0].exit_code == 127
    assert "/no/such" in ended[0].message
    os.close(master)


def test_a_terminal_of_a_container_that_has_none_is_refused_in_time(
    rig: ProcessRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodeagent.execs.TERMINAL_WITHIN", 0.2)
    container = running(rig)
    shim = shim_of(container)
    os.kill(shim, signal.SIGSTOP)
    try:
        with pytest.raises(KernelError, match="no terminal"):
            on_a_terminal(rig, container, "true")
    finally:
        os.kill(shim, signal.SIGCONT)
    # The control: it is the shim that was waited for.
    master, ended = on_a_terminal(rig, container, "echo $((6*7))")
    seen_on(master, b"42")
    until(rig.engine, lambda: bool(ended))
    os.close(master)


def test_a_hostile_container_cannot_put_itself_where_terminals_are_made(rig: ProcessRig) -> None:
    container = running(rig)
    ran(rig.engine, container, "sh", "-c", "rm /dev/ptmx; ln -s null /dev/ptmx")
    for attempt in ("mv /dev/pts /dev/old", "rm -rf /dev/pts", "ln -sf /dev/null /dev/pts/ptmx"):
        assert execute(rig.engine, container, ("sh", "-c", attempt))[0] != 0
    master, ended = on_a_terminal(rig, container, "tty")
    seen_on(master, b"/dev/pts/0")
    until(rig.engine, lambda: bool(ended))
    os.close(master)


def test_a_killed_exec_takes_its_process_group_along(rig: ProcessRig) -> None:
    container = running(rig)
    out, to_out = os.pipe()
    ended: list[tuple[int, str]] = []
    with Path("/dev/null").open("rb") as null:
        request = ExecRequest(
            ("sh", "-c", "sleep 300 & echo started; wait"), (), "", tty=False,
            stdin=null.fileno(), stdout=to_out, stderr=to_out,
        )  # fmt: skip
        handle = rig.engine.exec(container, request, lambda *end: ended.append(end))
    os.close(to_out)
    assert os.read(out, 100) == b"started\n"
    rig.engine.kill_exec(handle)
    until(rig.engine, lambda: bool(ended))
    assert ended == [(129, "")]
    # The pipe ends only when the one in the background is gone as well.
    assert os.read(out, 100) == b""
    os.close(out)


def test_execs_end_with_the_engine_that_asked_for_them(rig: ProcessRig) -> None:
    container = running(rig)
    before = pids_of(container)
    out, to_out = os.pipe()
    with Path("/dev/null").open("rb") as null:
        request = ExecRequest(
            ("sh", "-c", "echo started; sleep 300"), (), "", tty=False,
            stdin=null.fileno(), stdout=to_out, stderr=to_out,
        )  # fmt: skip
        rig.engine.exec(container, request, lambda *_: None)
    os.close(to_out)
    assert os.read(out, 100) == b"started\n"
    assert len(pids_of(container)) > len(before)
    rig.again()
    assert os.read(out, 100) == b""
    os.close(out)
    until(rig.engine, lambda: pids_of(container) == before)
    assert rig.engine.containers()[container].state == "running"


# What survives what.


def test_a_container_survives_the_end_of_whoever_made_it(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os, pathlib, signal, sys
        from tests.support.engines import ProcessRig, running
        print(running(ProcessRig(pathlib.Path(sys.argv[1]))), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parent.parent.parent,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    container = done.stdout.strip()
    rig = ProcessRig(tmp_path)
    try:
        assert rig.engine.containers()[container].state == "running"
        # It is in a session and cgroups of its own, not in ours.
        assert os.getsid(shim_of(container)) == shim_of(container)
        ours = Path("/proc/self/cgroup").read_text()
        assert f"/{PARENT}/{container}" not in ours
        assert f"0::/{PARENT}/{container}\n" in Path(f"/proc/{shim_of(container)}/cgroup").read_text()
        assert ran(rig.engine, container, "hostname") == "web\n"
    finally:
        rig.close()


def test_an_engine_started_anew_finds_every_container_as_it_is(rig: ProcessRig) -> None:
    up, ended, fresh = running(rig), running(rig, "db", "10.1.0.3"), made(rig, "cache", "10.1.0.4")
    rig.end(ended, 5)
    until_state(rig.engine, ended, "exited")
    before = dict(rig.engine.containers())
    inodes = {container: os.fstat(rig.engine.namespace(container)).st_ino for container in before}
    rig.again()
    assert dict(rig.engine.containers()) == before
    assert {container: os.fstat(rig.engine.namespace(container)).st_ino for container in before} == inodes
    rig.engine.start(fresh, 1)
    until_state(rig.engine, fresh, "running")
    rig.end(up, 6)
    until_state(rig.engine, up, "exited")
    assert rig.engine.containers()[up].exit_code == 6


def test_what_ends_while_no_engine_looks_is_known_afterwards(rig: ProcessRig) -> None:
    container = running(rig)
    processes = pids_of(container)
    rig.engine.close()
    rig.end(container, 5)
    shim = shim_of(container)
    for pid in processes - {shim}:
        wait_for_end(pid)
    rig.engine = ProcessEngine(rig.directory / "state", root=True)
    until_state(rig.engine, container, "exited")
    assert rig.engine.containers()[container].exit_code == 5


def wait_for_end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([descriptor], [], [], 10)[0], f"{name_of(pid)} has not ended"
    os.close(descriptor)


def test_a_killed_shim_takes_the_command_along_and_the_container_is_gone(rig: ProcessRig) -> None:
    container, other = running(rig), running(rig, "db", "10.1.0.3")
    processes = pids_of(container)
    assert len(processes) >= 3
    os.kill(shim_of(container), signal.SIGKILL)
    assert until_state(rig.engine, container, "gone") == [(container, "gone")]
    for pid in processes:
        wait_for_end(pid)
    assert cgroups_of(container) == []
    assert not (rig.directory / "state" / "containers" / container).exists()
    assert rig.engine.containers()[other].state == "running"
    # It can be made again under the same id.
    (rig.directory / f"{container}.fifo").unlink()
    rig.engine.create(container, "web", "10.1.0.2", rig.workload(container))
    until_state(rig.engine, container, "created")


def test_the_command_dies_with_the_shim_even_without_an_engine(rig: ProcessRig) -> None:
    container = running(rig)
    processes = pids_of(container)
    rig.engine.close()
    os.kill(shim_of(container), signal.SIGKILL)
    for pid in processes:
        wait_for_end(pid)
    rig.engine = ProcessEngine(rig.directory / "state", root=True)
    assert rig.engine.containers() == {}
    assert not list((rig.directory / "state" / "containers").iterdir())
    assert cgroups_of(container) == []


def test_one_that_had_ended_gets_a_new_shim_and_stays_ended(rig: ProcessRig) -> None:
    container = running(rig)
    rig.say(container, 1, "before")
    rig.end(container, 5)
    until_state(rig.engine, container, "exited")
    before = rig.engine.containers()[container]
    os.kill(shim_of(container), signal.SIGKILL)
    changes = until(rig.engine, lambda: rig.engine.containers()[container].state == "creating")
    changes += until_state(rig.engine, container, "exited")
    assert changes == [(container, "creating"), (container, "exited")]
    assert rig.engine.containers()[container] == before
    assert rig.engine.namespace(container) > 0
    assert said(rig.engine, container) == "before\n"
    rig.engine.start(container, 2)
    until_state(rig.engine, container, "running")


def test_a_host_that_shuts_down_ends_containers_but_does_not_forget_that_they_ran(rig: ProcessRig) -> None:
    container = running(rig)
    shim = shim_of(container)
    rig.engine.close()
    os.kill(shim, signal.SIGTERM)
    wait_for_end(shim)
    status = (rig.directory / "state" / "containers" / container / "status.json").read_text()
    assert '"running"' in status
    rig.engine = ProcessEngine(rig.directory / "state", root=True)
    assert rig.engine.containers() == {}


def test_a_stopped_shim_is_left_alone_until_it_goes_on(
    rig: ProcessRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodeagent.engine.process.GREETED_WITHIN", 0.05)
    container = running(rig)
    shim = shim_of(container)
    os.kill(shim, signal.SIGSTOP)
    try:
        # More engines than its queue has room for.
        for _ in range(12):
            rig.again()
            assert rig.engine.containers()[container].state == "unknown"
    finally:
        os.kill(shim, signal.SIGCONT)
    rig.again()
    until_state(rig.engine, container, "running")
    assert ran(rig.engine, container, "hostname") == "web\n"


def test_a_stopped_shim_that_is_killed_is_noticed(rig: ProcessRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodeagent.engine.process.GREETED_WITHIN", 0.05)
    container = running(rig)
    shim = shim_of(container)
    os.kill(shim, signal.SIGSTOP)
    for _ in range(12):
        rig.again()
    os.kill(shim, signal.SIGKILL)
    until_state(rig.engine, container, "gone")
    assert cgroups_of(container) == []


def test_a_stopped_shim_can_be_removed(rig: ProcessRig) -> None:
    container = running(rig)
    processes = pids_of(container)
    os.kill(shim_of(container), signal.SIGSTOP)
    rig.engine.remove(container)
    assert not [pid for pid in processes if alive(pid)]


def test_a_directory_that_was_never_finished_is_swept_up(rig: ProcessRig) -> None:
    half = rig.directory / "state" / "containers" / new_id()
    half.mkdir()
    (half / "spec.json").write_text('{"argv": [')
    strange = half.with_name("not-ours")
    strange.mkdir()
    rig.again()
    assert rig.engine.containers() == {}
    assert not half.exists()
    assert strange.exists()


def test_a_shim_that_cannot_begin_is_a_container_that_failed(
    rig: ProcessRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nodeagent.engine.shim_link._BOOT", "import sys; sys.exit('no namespaces today')")
    container = new_id()
    rig.engine.create(container, "web", "10.1.0.2", Workload("process", ("true",)))
    until_state(rig.engine, container, "failed")
    assert rig.engine.containers()[container].message == "no namespaces today"
    rig.engine.remove(container)
    assert not list((rig.directory / "state" / "containers").iterdir())


def test_bad_requests_change_nothing(rig: ProcessRig, monkeypatch: pytest.MonkeyPatch) -> None:
    container = running(rig)
    monkeypatch.chdir(rig.directory / "state" / "containers" / container)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect("shim.sock")
        sock.settimeout(5)
        assert b'"running"' in sock.recv(65536)
        for data in (
            b"{", b"[]", b"null", b"\xff", b"{}", b'{"do": "dance"}', b'{"do": "start"}', b"x" * 40000,
            b'{"do": "start", "generation": "x"}', b'{"do": "start", "generation": 9}',
            b'{"do": "exec", "handle": 1, "tty": false}', b'{"do": "kill", "handle": null}', b"[" * 10000,
            b'{"do": "exec", "handle": 1, "tty": true}',
        ):  # fmt: skip
            sock.send(data)
        # The answer to the one that could be read, and no other.
        assert b'"ended"' in sock.recv(65536)
        with Path("/dev/null").open("rb") as null, tempfile.TemporaryFile() as command:
            whole = b'{"do": "exec", "handle": 2, "tty": true, "rows": 1, "columns": 70000}'
            socket.send_fds(sock, [whole], [null.fileno()] * 4)
            assert b"125" in sock.recv(65536)
            # A command this time, and a size that no terminal has.
            text = {"argv": ["true"], "env": {}, "uid": 0, "gid": 0, "capabilities": 0, "workdir": "/"}
            command.write(json.dumps(text).encode())
            command.flush()
            socket.send_fds(sock, [whole], [command.fileno()] * 4)
            assert b"125" in sock.recv(65536)
    assert ran(rig.engine, container, "hostname") == "web\n"
    assert rig.engine.containers()[container].state == "running"
    assert rig.engine.containers()[container].generation == 1


# What is kept, and what is left.


def test_output_is_capped_and_what_is_left_begins_with_a_whole_record(rig: ProcessRig) -> None:
    total = LIMIT + 4 * STEP
    container = run(
        rig, Workload("process", ("sh", "-c", f"yes 0123456789 | head -c {total}; echo; echo last"))
    )
    until_state(rig.engine, container, "exited")
    kept = records(output_of(rig.engine, container))
    size = sum(RECORD_HEAD + len(data) for _, data in kept)
    assert LIMIT <= size <= LIMIT + 2 * STEP
    assert {stream for stream, _ in kept} == {1}
    assert kept[-1][1].endswith(b"last\n")
    file = rig.directory / "state" / "containers" / container / "output"
    assert file.stat().st_blocks * 512 < LIMIT + 3 * STEP < file.stat().st_size


def test_removal_leaves_nothing(rig: ProcessRig) -> None:
    container = running(rig)
    processes = pids_of(container)
    inode = os.fstat(rig.engine.namespace(container)).st_ino
    mounts = Path("/proc/self/mountinfo").read_text()
    rig.engine.remove(container)
    assert not [pid for pid in processes if alive(pid)]
    assert cgroups_of(container) == []
    assert not (rig.directory / "state" / "containers" / container).exists()
    assert Path("/proc/self/mountinfo").read_text() == mounts
    holders = {holder for holder in Path("/proc").glob("[0-9]*/ns/net") if inode_of(holder) == inode}
    assert holders == set()


def inode_of(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def test_removal_works_without_cgroups(tmp_path: Path) -> None:
    rig = ProcessRig(tmp_path)
    rig.engine.close()
    rig.engine = ProcessEngine(tmp_path / "state", root=True, cgroups=Cgroups(()))
    container = running(rig)
    pid = int(ran(rig.engine, container, "sh", "-c", "echo 1"))
    assert pid == 1
    everyone = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    shims = {
        pid
        for pid in everyone
        if name_of(pid) == "netctl-shim" and container in Path(f"/proc/{pid}/cmdline").read_text()
    }
    assert len(shims) == 1
    rig.engine.remove(container)
    assert not [shim for shim in shims if alive(shim)]
    rig.close()


def test_a_failed_creation_leaves_nothing(rig: ProcessRig, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr("nodeagent.engine.shim_link.os.posix_spawn", refuse)
    with pytest.raises(KernelError, match="no more processes"):
        rig.engine.create(new_id(), "web", "10.1.0.2", Workload("process", ("true",)))
    assert rig.engine.containers() == {}
    assert not list((rig.directory / "state" / "containers").iterdir())


def test_fifty_containers_come_and_go(rig: ProcessRig) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    containers = [new_id() for _ in range(50)]
    for number, container in enumerate(containers):
        rig.engine.create(container, f"c{number}", f"10.1.1.{number}", Workload("process", ("sleep", "300")))
    until(rig.engine, lambda: all(seen.state == "created" for seen in rig.engine.containers().values()))
    for container in containers:
        rig.engine.start(container, 1)
    until(rig.engine, lambda: all(seen.state == "running" for seen in rig.engine.containers().values()))
    before = dict(rig.engine.containers())
    assert len({os.fstat(rig.engine.namespace(container)).st_ino for container in containers}) == 50
    rig.again()
    assert dict(rig.engine.containers()) == before
    for container in containers:
        rig.engine.remove(container)
    assert rig.engine.containers() == {}
    assert not list((rig.directory / "state" / "containers").iterdir())
    assert not [cgroup for container in containers for cgroup in cgroups_of(container)]
    rig.engine.dispatch(lambda *change: pytest.fail(f"changed: {change}"))
    assert len(list(Path("/proc/self/fd").iterdir())) <= descriptors


@pytest.mark.full
def test_an_engine_finds_500_containers_in_a_moment(rig: ProcessRig) -> None:
    containers = [new_id() for _ in range(500)]
    for number, container in enumerate(containers):
        workload = Workload("process", ("sleep", "300"))
        rig.engine.create(container, f"c{number}", f"10.1.{number >> 8}.{number & 255}", workload)
    until(rig.engine, lambda: all(seen.state == "created" for seen in rig.engine.containers().values()), 60)
    for container in containers:
        rig.engine.start(container, 1)
    until(rig.engine, lambda: all(seen.state == "running" for seen in rig.engine.containers().values()), 60)
    times = []
    for _ in range(5):
        rig.engine.close()
        before = time.monotonic()
        rig.engine = ProcessEngine(rig.directory / "state", root=True)
        times.append(time.monotonic() - before)
        assert {seen.state for seen in rig.engine.containers().values()} == {"running"}
        assert len(rig.engine.containers()) == 500
    assert sorted(times)[2] < 0.3, times
