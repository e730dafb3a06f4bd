"""Makes what `netctl.lab.topology` plans, starts and ends its processes, and leaves nothing behind.

Wiring:

    LabSpec --> topology.plan --> ip -batch ............. namespaces, links, addresses
                       |
                       +--------> spawn broker ---------> its socket answers
                       |
                       +--------> for each node: invite -> nodeagent join -> spawn its agent
                                      ................. the broker says that all are ready
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs
import msgspec

from netctl.client import Client
from netctl.enrolment import enrol
from netctl.errors import NetctlError, NotFoundError, RefusedError, UnavailableError
from netctl.lab import confine, network, processes, registry, topology
from netctl.lab.processes import ProcessId
from netctl.lab.topology import LabSpec, Topology, Wish
from netctl.lab.waiting import Tell, Wait
from netctl.wire import identity, invite
from netctl.wire.messages import CreateInvite, InviteCreated, ListNodes, NodeList, NodeView
from nodeagent.engine.cgroups import Cgroups

PROCESSES_FILE = "processes.json"
LOG_LINES = 12
START_TIMEOUT = 10.0
READY_TIMEOUT = 30.0


def _silent(_: str) -> None:
    return


@attrs.frozen
class Running:
    """One process of a lab, for `netctl lab status`.

    Attributes:
        name: ``broker``, a node's name, or ``n1 helper`` for its privileged child.
        pid: None: it is not running.
    """

    name: str
    pid: int | None


@attrs.frozen
class LabStatus:
    """What is there of a lab.

    Attributes:
        nodes: As the broker says; empty if it does not answer.
        problem: Why the broker did not answer; empty if it did.
    """

    directory: str
    spec: LabSpec
    namespaces: tuple[str, ...]
    processes: tuple[Running, ...]
    nodes: tuple[NodeView, ...]
    problem: str = ""


def identity_file(directory: str | Path) -> Path:
    """Return where a lab keeps the identity that commands about it speak for."""
    return Path(directory, "user", "identity")


def up(directory: str, wish: Wish, tell: Tell = _silent) -> LabStatus:
    """Bring a lab up, or add what is missing of it.

    Args:
        directory: Absolute.
        wish: What differs from how it is, or from the defaults.
        tell: Told, one line each, what is being waited for when that takes over a second.

    Raises:
        InvalidError: A value is out of its bounds.
        RefusedError: No root, a directory that is something else, or a change a lab cannot make.
        UnavailableError: A process did not come up; the message has its last words.
    """
    _need_root()
    with registry.registered(directory) as file:
        try:
            existing = _load_spec(directory)
            spec = topology.settle(directory, wish, existing)
            if existing is None:
                _check_empty(spec.root)
        except NetctlError:
            if not (Path(directory) / registry.SPEC_FILE).exists():
                registry.forget(file)
            raise
        return _Lab(topology.plan(spec), tell).up()


def down(directory: str, tell: Tell = _silent) -> None:
    """Take a lab down: its containers, processes, namespaces and files.

    Raises:
        NotFoundError: There is no lab in this directory, nor anything left of one.
        RefusedError: No root, or something would not go.
    """
    _need_root()
    spec = _load_spec(directory)
    if spec is None and network.own_namespaces(directory):
        # Its files were removed under it: everything else is known by its name or its arguments.
        spec = LabSpec(directory)
    if spec is None:
        raise NotFoundError(f"there is no lab in {directory}", "see which are up with `netctl lab status`")
    with registry.registered(directory) as file:
        _Lab(topology.plan(spec), tell).down()
        registry.forget(file)


def status(directory: str) -> LabStatus:
    """Return what is there of a lab.

    Raises:
        NotFoundError: There is no lab in this directory.
    """
    spec = _load_spec(directory)
    if spec is None:
        raise NotFoundError(f"there is no lab in {directory}", "start one with `netctl lab up`")
    return _Lab(topology.plan(spec), _silent).status()


def shell_command(directory: str, host: str, argv: Sequence[str]) -> list[str]:
    """Return the command that runs `argv`, or a shell, in the namespace of one host of the lab.

    Raises:
        NotFoundError: There is no such lab, or no such host in it.
        RefusedError: No root.
    """
    _need_root()
    spec = _load_spec(directory)
    if spec is None:
        raise NotFoundError(f"there is no lab in {directory}", "start one with `netctl lab up`")
    planned = topology.plan(spec)
    namespaces = {name: each.namespace for name, each in planned.hosts.items()} | {
        topology.UNDERLAY_BRIDGE: planned.underlay
    }
    if host not in namespaces:
        raise NotFoundError(f"the lab has no host {host[:80]!r}", f"it has {', '.join(namespaces)}")
    return confine.inside(namespaces[host], argv or [os.environ.get("SHELL", "/bin/sh")])


def _need_root() -> None:
    if os.geteuid() != 0:
        raise RefusedError("a lab needs root, for its network namespaces", "run the command with sudo")


def _load_spec(directory: str) -> LabSpec | None:
    try:
        data = Path(directory, registry.SPEC_FILE).read_bytes()
        return msgspec.json.decode(data, type=LabSpec)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise RefusedError(
            f"the lab in {directory} cannot be read: {error}", "run the command as root"
        ) from error


def _check_empty(root: Path) -> None:
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise RefusedError(f"{root} is not empty and holds no lab", "choose another directory with --dir")


def _replace(file: Path, data: bytes) -> None:
    fresh = file.with_name(file.name + ".new")
    fresh.write_bytes(data)
    fresh.rename(file)


class _Lab:
    """One lab, while a command works on it."""

    def __init__(self, planned: Topology, tell: Tell) -> None:
        self._plan = planned
        self._root = planned.spec.root
        self._tell = tell
        self._recorded = self._load_processes()

    # --- up ------------------------------------------------------------------------------------

    def up(self) -> LabStatus:
        self._prepare_files()
        missing = [name for name in self._plan.programs if not self._runs(name)]
        network.prepare(
            self._plan, [name for name in self._plan.hosts if name in missing or name == "outside"]
        )
        if "broker" in missing:
            self._start("broker")
        with self._client() as client:
            for name in (name for name in missing if name != "broker"):
                # One after the other, so that n1 has the first block, n2 the second; the agents that have
                # joined come up meanwhile.
                if not self._joined(name):
                    self._join(client, name)
                self._start(name)
            self._wait_ready(client)
        return self.status()

    def _prepare_files(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        for folder, mode in (("log", 0o750), ("user", 0o700), *((name, 0o700) for name in self._plan.nodes)):
            (self._root / folder).mkdir(mode=mode, exist_ok=True)
        _replace(self._root / registry.SPEC_FILE, msgspec.json.encode(self._plan.spec))

    def _start(self, name: str) -> None:
        program = self._plan.programs[name]
        user = self._prepare_broker() if name == "broker" else 0
        self._recorded[name] = processes.spawn(
            confine.command(program, user), Path(program.log), _environment(program.confined)
        )
        _replace(self._root / PROCESSES_FILE, msgspec.json.encode(self._recorded))

    def _prepare_broker(self) -> int:
        """Make the broker's directory if there is none yet; return whom it runs as."""
        directory, file = self._root / "broker", self._root / "user" / "invite"
        if not identity_file(self._root).exists() and not file.exists():
            # Nobody can have joined what an interrupted start may have left.
            shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            # Imported here since only a lab's first start needs the database's libraries.
            from netctl.broker import service  # noqa: PLC0415 - see above

            text = service.init(
                directory,
                listen=(self._plan.broker_endpoint, f"ipc://{self._plan.socket}"),
                advertise=(self._plan.broker_endpoint,),
            )
            file.touch(mode=0o600)
            file.write_text(text, encoding="ascii")
        user = confine.broker_user(self._root)
        for path in (directory, *directory.iterdir()):
            os.chown(path, user, user, follow_symlinks=False)
        return user

    def _client(self) -> Client:
        """Return a client that has reached the broker, enrolling the lab's own user the first time."""
        file, first = identity_file(self._root), self._root / "user" / "invite"
        wait = Wait(self._tell, START_TIMEOUT, "the broker")
        while True:
            try:
                if not file.exists():
                    given = invite.parse(first.read_text(encoding="ascii"))
                    own = attrs.evolve(given, addresses=(f"ipc://{self._plan.socket}",))
                    identity.save(enrol(own, given.name or "admin"), file)
                    first.unlink()
                client = Client(identity.load(file))
                client.connect()
            except UnavailableError:
                self._check_runs("broker")
                if not wait.again():
                    raise self._failed("broker", "does not answer") from None
            else:
                return client

    def _joined(self, name: str) -> bool:
        return (self._root / name / "state" / "identity").exists()

    def _join(self, client: Client, name: str) -> None:
        """Enrol a node.

        Raises:
            UnavailableError: It did not join; the message has its last words.
        """
        made = client.request(CreateInvite("node", name))
        if not isinstance(made, InviteCreated):
            raise UnavailableError("the broker made no invite", "see its log")
        command = {name: topology.join_command(self._plan, name, made.invite)}
        if self._run_on_nodes(command, START_TIMEOUT, f"{name} to join")[name] != 0:
            raise self._failed(name, "could not join")

    def _run_on_nodes(
        self, commands: Mapping[str, Sequence[str]], seconds: float, what: str
    ) -> dict[str, int]:
        """Run one program of ours on each of these nodes, all at once; return their exit statuses."""
        started = {}
        for name, argv in commands.items():
            command = [confine.program_path(argv[0]), *argv[1:]]
            with Path(self._plan.programs[name].log).open("ab") as log:
                started[name] = subprocess.Popen(
                    confine.inside(self._plan.hosts[name].namespace, command),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(confined=False),
                )  # fmt: skip
        wait = Wait(self._tell, seconds, what)
        while any(each.poll() is None for each in started.values()) and wait.again():
            pass
        for each in started.values():
            if each.poll() is None:
                each.kill()
        return {name: each.wait() for name, each in started.items()}

    def _wait_ready(self, client: Client) -> None:
        wait = Wait(self._tell, READY_TIMEOUT, "the nodes to be ready")
        wanted = set(self._plan.nodes)
        while True:
            answer = client.request(ListNodes())
            nodes = answer.nodes if isinstance(answer, NodeList) else ()
            ready = {node.name for node in nodes if node.state in ("ready", "draining") and node.applied > 0}
            if wanted <= ready:
                return
            for name in sorted(wanted - ready):
                self._check_runs(name)
            if not wait.again():
                name = min(wanted - ready)
                raise self._failed(name, "is not ready")

    # --- down ----------------------------------------------------------------------------------

    def down(self) -> None:
        agents = [process for name, process in self._recorded.items() if name != "broker"]
        helpers = [
            child
            for process in agents
            if processes.alive(process)
            for pid in processes.children(process.pid)
            if (child := processes.identify(pid)) is not None
        ]
        left = processes.stop(agents) + processes.stop(helpers)
        self._leave()
        left += processes.stop(
            [
                *(process for name, process in self._recorded.items() if name == "broker"),
                # A shim that outlived its agent's orderly leave, and whatever else is still inside.
                *processes.with_argument_below(self._root, "nodeagent.shim"),
                *processes.in_namespaces(
                    confine.NETNS / name for name in network.own_namespaces(self._plan.spec.directory)
                ),
            ]
        )
        network.remove(self._plan.spec.directory)
        self._remove_cgroups()
        if left:
            pids = ", ".join(str(process.pid) for process in left)
            raise RefusedError(f"processes of the lab do not end: {pids}", "see what they are with ps(1)")
        self._remove_files()

    def _leave(self) -> None:
        """Have every node take out its containers; what that leaves is ended by its pid afterwards."""
        existing = network.namespaces()
        commands = {
            name: topology.leave_command(self._plan, name)
            for name in self._plan.nodes
            if self._joined(name) and self._plan.hosts[name].namespace in existing
        }
        self._run_on_nodes(commands, READY_TIMEOUT, "the nodes to take their containers out")

    def _remove_cgroups(self) -> None:
        """Take out the cgroups of containers that no agent could take out in order any more."""
        cgroups = Cgroups()
        for container in self._root.glob("n*/state/containers/*"):
            cgroups.kill(container.name)
            with contextlib.suppress(TimeoutError):
                cgroups.remove(container.name, time.monotonic() + 2.0)

    def _remove_files(self) -> None:
        """Remove what the lab put into its directory, and the directory if that leaves it empty."""
        for name in ("broker", "user", "log", *self._plan.nodes):
            shutil.rmtree(self._root / name, ignore_errors=True)
        for name in (PROCESSES_FILE, registry.SPEC_FILE):
            (self._root / name).unlink(missing_ok=True)
        try:
            self._root.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise RefusedError(f"the lab's directory stays: {error}", "look at what else is in it") from error

    # --- status --------------------------------------------------------------------------------

    def status(self) -> LabStatus:
        running = []
        for name in self._plan.programs:
            process = self._recorded.get(name)
            if process is None or not processes.alive(process):
                running.append(Running(name, None))
                continue
            running.append(Running(name, process.pid))
            running += [Running(f"{name} helper", pid) for pid in processes.children(process.pid)]
        nodes: tuple[NodeView, ...] = ()
        problem = ""
        try:
            with Client(identity.load(identity_file(self._root))) as client:
                answer = client.request(ListNodes())
                nodes = answer.nodes if isinstance(answer, NodeList) else ()
        except NetctlError as error:
            problem = error.message
        return LabStatus(
            directory=str(self._root),
            spec=self._plan.spec,
            namespaces=tuple(network.own_namespaces(self._plan.spec.directory)),
            processes=tuple(running),
            nodes=nodes,
            problem=problem,
        )

    # --- processes -----------------------------------------------------------------------------

    def _load_processes(self) -> dict[str, ProcessId]:
        try:
            data = (self._root / PROCESSES_FILE).read_bytes()
            return msgspec.json.decode(data, type=dict[str, ProcessId])
        except FileNotFoundError:
            return {}

    def _runs(self, name: str) -> bool:
        process = self._recorded.get(name)
        return process is not None and processes.alive(process)

    def _check_runs(self, name: str) -> None:
        if not self._runs(name):
            raise self._failed(name, "ended")

    def _failed(self, name: str, what: str) -> UnavailableError:
        log = Path(self._plan.programs[name].log)
        with contextlib.suppress(OSError):
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
            for line in lines:
                self._tell(f"{log.name}: {line}")
        return UnavailableError(
            f"{name} {what}",
            f"see {log}; `netctl lab down` clears the lab away",
            () if name == "broker" else (name,),
        )


def _environment(confined: bool) -> Mapping[str, str]:  # noqa: FBT001 - always given by name where it is no variable
    """Return the environment of a lab's process: nothing of the user's but what programs need to start."""
    wanted = ("PATH", "LANG", "TZ", "NETCTL_LOG", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE")
    kept = {key: os.environ[key] for key in wanted if key in os.environ}
    return kept if confined else kept | {"HOME": os.environ.get("HOME", "/root")}
