"""What every container engine does alike, the fake included."""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netctl.errors import KernelError
from nodeagent.engine.base import Direction, ExecRequest
from nodeagent.engine.fake import FakeEngine
from nodeagent.engine.fake_docker import FakeDocker
from tests.support.docker_engine import VERSIONS, DockerEngine, Version
from tests.support.engines import (
    BLOCK,
    DockerRig,
    EngineRig,
    FakeRig,
    ProcessRig,
    made,
    new_id,
    running,
    said,
    until,
    until_state,
)

_REAL = [pytest.mark.root, pytest.mark.docker]


@pytest.fixture(scope="module")
def dockers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Version], DockerEngine]]:
    """One engine of each version, started when it is first asked for."""
    started: dict[Version, DockerEngine] = {}
    with contextlib.ExitStack() as stack:

        def start(version: Version) -> DockerEngine:
            if version not in started:
                engine = DockerEngine(tmp_path_factory.mktemp("engine"), version)
                started[version] = stack.enter_context(engine)
            return started[version]

        yield start


@pytest.fixture(
    params=[
        "fake",
        "fake docker",
        pytest.param("process", marks=pytest.mark.root),
        *(pytest.param(f"docker {version}", marks=_REAL) for version in VERSIONS),
    ]
)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineRig]:
    rig: EngineRig
    match request.param.split():
        case ["fake", *docker]:
            rig = FakeRig(FakeDocker() if docker else FakeEngine())
        case ["process"]:
            rig = ProcessRig(tmp_path)
        case [_, version]:
            rig = DockerRig(tmp_path, request.getfixturevalue("dockers")(version))
    yield rig
    rig.close()


@pytest.fixture(
    params=[
        pytest.param("process", marks=pytest.mark.root),
        *(pytest.param(f"docker {version}", marks=_REAL) for version in VERSIONS),
    ]
)
def real(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EngineRig]:
    """An engine whose containers have files and processes."""
    rig: EngineRig
    if request.param == "process":
        rig = ProcessRig(tmp_path)
    else:
        rig = DockerRig(tmp_path, request.getfixturevalue("dockers")(request.param.split()[1]))
    yield rig
    rig.close()


def keeps_namespaces(rig: EngineRig) -> bool:
    """Docker's come with a start and go with its end."""
    return not rig.engine.removes_later


def request(stdin: int, stdout: int, argv: tuple[str, ...] = ("cat",)) -> ExecRequest:
    return ExecRequest(argv, (), "", tty=False, stdin=stdin, stdout=stdout, stderr=stdout)


def test_a_container_goes_from_creating_to_created_in_an_event(rig: EngineRig) -> None:
    container = new_id()
    rig.engine.create(container, "web", "10.1.0.2", rig.workload(container), BLOCK)
    assert rig.engine.containers()[container].state == "creating"
    with pytest.raises(KernelError):
        rig.engine.namespace(container)
    with pytest.raises(KernelError):
        rig.engine.start(container, 1)
    assert until_state(rig.engine, container, "created") == [(container, "created")]
    if keeps_namespaces(rig):
        assert rig.engine.namespace(container) > 0
    assert rig.engine.containers()[container].generation == 0


def test_creating_what_is_there_changes_nothing(rig: EngineRig) -> None:
    container = running(rig)
    before = rig.engine.containers()[container]
    namespace = rig.engine.namespace(container) if keeps_namespaces(rig) else 0
    rig.engine.create(container, "other", "10.1.0.9", rig.workload(new_id()), BLOCK)
    rig.engine.dispatch(lambda *change: pytest.fail(f"changed: {change}"))
    assert rig.engine.containers()[container] == before
    if keeps_namespaces(rig):
        assert rig.engine.namespace(container) == namespace


def test_a_command_runs_and_ends_with_its_exit_code(rig: EngineRig) -> None:
    container = made(rig)
    rig.engine.start(container, 3)
    until_state(rig.engine, container, "running")
    assert rig.engine.containers()[container].generation == 3
    assert rig.engine.containers()[container].exit_code is None
    rig.end(container, 7)
    until_state(rig.engine, container, "exited")
    seen = rig.engine.containers()[container]
    assert (seen.state, seen.generation, seen.exit_code, seen.message) == ("exited", 3, 7, "")


def test_a_generation_runs_once(rig: EngineRig) -> None:
    container = running(rig)
    rig.engine.start(container, 1)
    rig.end(container, 0)
    until_state(rig.engine, container, "exited")
    rig.engine.start(container, 1)
    rig.engine.dispatch(lambda *change: pytest.fail(f"changed: {change}"))
    assert rig.engine.containers()[container].state == "exited"


def test_a_command_that_ended_runs_again_at_a_higher_generation_in_the_same_namespace(rig: EngineRig) -> None:
    container = running(rig)
    kept = keeps_namespaces(rig)
    namespace = rig.engine.namespace(container) if kept else 0
    rig.end(container, 0)
    until_state(rig.engine, container, "exited")
    if kept:
        assert rig.engine.namespace(container) == namespace
    rig.engine.start(container, 2)
    until_state(rig.engine, container, "running")
    assert rig.engine.containers()[container].generation == 2
    if kept:
        assert rig.engine.namespace(container) == namespace


def test_a_running_command_is_not_replaced(rig: EngineRig) -> None:
    container = running(rig)
    with pytest.raises(KernelError, match="still runs"):
        rig.engine.start(container, 2)
    assert rig.engine.containers()[container].state == "running"


def test_stop_ends_the_command_with_the_signal(rig: EngineRig) -> None:
    container = running(rig)
    rig.engine.stop(container)
    assert until_state(rig.engine, container, "exited") == [(container, "exited")]
    assert rig.engine.containers()[container].exit_code == 143
    rig.engine.stop(container)
    rig.engine.dispatch(lambda *change: pytest.fail(f"changed: {change}"))


def test_a_removed_container_is_gone_at_once_or_an_event_says_when(rig: EngineRig) -> None:
    container, other = running(rig), running(rig, "db", "10.1.0.3")
    rig.engine.remove(container)
    if rig.engine.removes_later:
        assert container in rig.engine.containers()
        rig.engine.remove(container)
        assert until_state(rig.engine, container, "gone")[-1] == (container, "gone")
    assert set(rig.engine.containers()) == {other}
    with pytest.raises(KernelError):
        rig.engine.namespace(container)
    with pytest.raises(KernelError):
        rig.engine.start(container, 2)
    rig.engine.remove(container)
    rig.engine.stop(container)
    rig.engine.dispatch(lambda *change: pytest.fail(f"changed: {change}"))
    assert rig.engine.containers()[other].state == "running"


def test_output_is_kept_by_stream_and_over_starts(rig: EngineRig) -> None:
    container = running(rig)
    assert said(rig.engine, container) == ""
    rig.say(container, 1, "out")
    rig.say(container, 2, "err")
    until(rig.engine, lambda: bool(said(rig.engine, container, 2)))
    rig.end(container, 0)
    until_state(rig.engine, container, "exited")
    rig.engine.start(container, 2)
    rig.say(container, 1, "again")
    until(rig.engine, lambda: "again" in said(rig.engine, container))
    assert said(rig.engine, container, 1) == "out\nagain\n"
    assert said(rig.engine, container, 2) == "err\n"


def test_there_is_no_output_of_what_does_not_exist(rig: EngineRig) -> None:
    with pytest.raises(KernelError):
        rig.engine.logs(new_id(), None, follow=False, ended=lambda *_: None)


def test_an_exec_needs_a_running_container(rig: EngineRig) -> None:
    container = made(rig)
    with pytest.raises(KernelError, match="not running"):
        rig.engine.exec(container, request(0, 1), lambda *_: None)
    with pytest.raises(KernelError):
        rig.engine.exec(new_id(), request(0, 1), lambda *_: None)


def test_a_killed_exec_ends_and_leaves_the_container(rig: EngineRig) -> None:
    container = running(rig)
    ended: list[tuple[int, str]] = []
    stdin, to_stdin = os.pipe()
    out, to_out = os.pipe()
    handle = rig.engine.exec(container, request(stdin, to_out), lambda *end: ended.append(end))
    for descriptor in (stdin, to_out):
        os.close(descriptor)
    assert ended == []
    rig.engine.kill_exec(handle)
    until(rig.engine, lambda: bool(ended))
    assert ended[0][0] >= 128
    # Nobody holds the pipe any more: it reads as ended.
    assert os.read(out, 10) == b""
    os.close(out)
    os.close(to_stdin)
    rig.engine.kill_exec(handle)
    assert rig.engine.containers()[container].state == "running"
    assert len(ended) == 1


def test_removing_a_container_ends_its_execs(rig: EngineRig) -> None:
    container = running(rig)
    ended: list[tuple[int, str]] = []
    stdin, to_stdin = os.pipe()
    rig.engine.exec(container, request(stdin, 2), lambda *end: ended.append(end))
    os.close(stdin)
    rig.engine.remove(container)
    until(rig.engine, lambda: bool(ended))
    os.close(to_stdin)
    (code, message), *others = ended
    # Where it takes a moment to begin, it may not have: then that is what is said.
    assert (code, message) == (137, "") or (rig.engine.removes_later and code in (125, 126))
    assert others == []


def test_handles_are_not_used_twice(rig: EngineRig) -> None:
    container = running(rig)
    ended: list[int] = []
    handles = []
    with Path("/dev/null").open("r+b") as null:
        for _ in range(3):
            handle = rig.engine.exec(
                container, request(null.fileno(), null.fileno(), ("sleep", "60")), lambda *_: ended.append(1)
            )
            handles.append(handle)
            rig.engine.kill_exec(handle)
    until(rig.engine, lambda: len(ended) == 3)
    assert len(set(handles)) == 3


def copied(
    rig: EngineRig, container: str, path: str, direction: Direction, data: bytes = b""
) -> tuple[tuple[int, str], bytes]:
    """Copy; return how it ended, and the archive that came out."""
    ended: list[tuple[int, str]] = []
    reader, writer = os.pipe()
    ours, theirs = (reader, writer) if direction == "out" else (writer, reader)
    rig.engine.copy(container, path, direction, theirs, lambda *end: ended.append(end))
    os.close(theirs)
    with os.fdopen(ours, "rb" if direction == "out" else "wb") as file:
        if direction == "out":
            data = file.read()
        else:
            with contextlib.suppress(BrokenPipeError):
                file.write(data)
                file.flush()
    until(rig.engine, lambda: bool(ended))
    return ended[0], data


def archive(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def test_files_are_copied_in_and_out(real: EngineRig) -> None:
    container = running(real)
    data = os.urandom(300_000)
    assert copied(real, container, "/run", "in", archive("file", data))[0] == (0, "")
    end, out = copied(real, container, "/run/file", "out")
    assert end == (0, "")
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        assert tar.getnames() == ["file"]
        member = tar.extractfile("file")
        assert member is not None
        assert member.read() == data


def test_what_cannot_be_copied_is_said(real: EngineRig) -> None:
    container = running(real)
    cases: tuple[tuple[str, Direction], ...] = (("/nosuch", "out"), ("/run/nosuch", "in"))
    for path, direction in cases:
        (code, message), _ = copied(real, container, path, direction, archive("x", b"y"))
        assert code != 0
        assert "nosuch" in message
    with pytest.raises(KernelError, match="no absolute path"):
        copied(real, container, "relative", "out")
    with pytest.raises(KernelError):
        copied(real, new_id(), "/run", "out")
