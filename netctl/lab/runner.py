"""Makes what `netctl.lab.topology` plans, starts its processes, and says how it is.

Wiring:

    LabSpec --> topology.plan --> ip -batch ............. namespaces, links, addresses
                       |
                       +--------> spawn broker ---------> its socket answers
                       |
                       +--------> for each node: with Docker: its mount namespace, driver and engine;
                                      invite -> nodeagent join -> spawn its agent
                                      ................. the broker says that all are ready
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import attrs
import msgspec

from netctl.client import Client
from netctl.enrolment import enrol
from netctl.errors import NetctlError, NotFoundError, RefusedError, UnavailableError
from netctl.lab import clearing, confine, engine, mounts, network, processes, registry, topology
from netctl.lab.hosts import Hosts, replace
from netctl.lab.topology import LabSpec, Program, Topology, Wish
from netctl.lab.waiting import Tell, Wait
from netctl.wire import identity, invite
from netctl.wire.messages import CreateInvite, InviteCreated, ListNodes, NodeList, NodeView

ENGINE_TIMEOUT = 30.0
START_TIMEOUT = 10.0
READY_TIMEOUT = 30.0


def _silent(_: str) -> None:
    return


@attrs.frozen
class Running:
    """One process of a lab, for `netctl lab status`.

    Attributes:
        name: ``broker``, a node's name, or with another word, as ``n1 helper`` for its privileged child.
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
        planned = topology.plan(spec)
        clearing.clear(planned, Hosts(planned, tell), tell)
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
    command = argv or [os.environ.get("SHELL", "/bin/sh")]
    keeper = Hosts(planned, _silent).keeper(host)
    return confine.inside(namespaces[host], command) if keeper is None else mounts.inside(keeper, command)


def docker_command(directory: str, node: str, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return Docker's command line for a node's engine, and what its environment must have.

    Raises:
        NotFoundError: There is no such lab, or no such node in it.
        RefusedError: No root, or the lab has no engines.
    """
    _need_root()
    spec = _load_spec(directory)
    if spec is None:
        raise NotFoundError(f"there is no lab in {directory}", "start one with `netctl lab up --docker`")
    nodes = topology.plan(spec).nodes
    if node not in nodes:
        raise NotFoundError(f"the lab has no node {node[:80]!r}", f"it has {', '.join(nodes)}")
    if not spec.docker:
        raise RefusedError(
            "the nodes of this lab have no Docker",
            "take it down, and bring it up with `netctl lab up --docker`",
        )
    return ["docker", *argv], {"DOCKER_HOST": f"unix://{topology.engine_files(spec.root, node).socket}"}


def _need_root() -> None:
    if os.geteuid() != 0:
        raise RefusedError("a lab needs root, for its network namespaces", "run the command with sudo")


def _hosts_of(programs: Iterable[Program]) -> set[str]:
    return {program.host for program in programs}


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


class _Lab:
    """One lab, while a command works on it."""

    def __init__(self, planned: Topology, tell: Tell) -> None:
        self._plan = planned
        self._root = planned.spec.root
        self._tell = tell
        self._hosts = Hosts(planned, tell)

    # --- up ------------------------------------------------------------------------------------

    def up(self) -> LabStatus:
        self._prepare_files()
        programs = self._plan.programs.values()
        missing = [program for program in programs if self._hosts.process(program.name) is None]
        network.prepare(
            self._plan, [name for name in self._plan.hosts if name == "outside" or name in _hosts_of(missing)]
        )
        if any(program.name == "broker" for program in missing):
            self._hosts.start("broker", self._prepare_broker())
        with self._client() as client:
            for program in missing:
                # One after the other, so that n1 has the first block, n2 the second; the agents that have
                # joined come up meanwhile.
                if program.name in self._plan.nodes and not self._joined(program.name):
                    self._join(client, program.name)
                if program.name != "broker":
                    self._start(program)
            self._wait_for_engines()
            self._wait_ready(client)
        return self.status()

    def _start(self, program: Program) -> None:
        """Start a program of a node, and wait where the next one needs it."""
        node = program.host
        if program.name == topology.engine_name(node):
            # A driver's socket that is missing would cost an engine with networks of it 15 s.
            keeper = self._hosts.check_runs(topology.keeper_name(node)).pid
            self._wait(topology.driver_name(node), keeper, mounts.has_driver)
            engine.prepare(topology.engine_files(self._root, node), mounts.run_folder(keeper))
        if program.name == topology.keeper_name(node):
            mounts.prepare()
            process = self._hosts.start_keeper(node)
            self._wait(program.name, process.pid, mounts.kept)
        else:
            self._hosts.start(program.name)

    def _wait(self, name: str, pid: int, condition: Callable[[int], bool]) -> None:
        """Wait until `condition` holds for a process of the node."""
        wait = Wait(self._tell, START_TIMEOUT, name)
        while not condition(pid):
            self._hosts.check_runs(name)
            if not wait.again():
                raise self._hosts.failed(name, "did not come up")

    def _wait_for_engines(self) -> None:
        for node in self._plan.nodes if self._plan.spec.docker else ():
            files, name = topology.engine_files(self._root, node), topology.engine_name(node)
            wait = Wait(self._tell, ENGINE_TIMEOUT, name)
            while not engine.answers(files):
                self._hosts.check_runs(name)
                if not wait.again():
                    raise self._hosts.failed(name, "does not answer")

    def _prepare_files(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        for folder, mode in (("log", 0o750), ("user", 0o700), *((name, 0o700) for name in self._plan.nodes)):
            (self._root / folder).mkdir(mode=mode, exist_ok=True)
        replace(self._root / registry.SPEC_FILE, msgspec.json.encode(self._plan.spec))

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
                encryption=self._plan.spec.encryption,
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
                self._hosts.check_runs("broker")
                if not wait.again():
                    raise self._hosts.failed("broker", "does not answer") from None
            else:
                return client

    def _joined(self, name: str) -> bool:
        return topology.identity_of(self._plan, name).exists()

    def _join(self, client: Client, name: str) -> None:
        """Enrol a node.

        Raises:
            UnavailableError: It did not join; the message has its last words.
        """
        made = client.request(CreateInvite("node", name))
        if not isinstance(made, InviteCreated):
            raise UnavailableError("the broker made no invite", "see its log")
        command = {name: topology.join_command(self._plan, name, made.invite)}
        if self._hosts.run(command, START_TIMEOUT, f"{name} to join")[name] != 0:
            raise self._hosts.failed(name, "could not join")

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
                self._hosts.check_runs(name)
            if not wait.again():
                name = min(wanted - ready)
                raise self._hosts.failed(name, "is not ready")

    # --- status --------------------------------------------------------------------------------

    def status(self) -> LabStatus:
        running = []
        for name in self._plan.programs:
            process = self._hosts.process(name)
            running.append(Running(name, None if process is None else process.pid))
            if process is not None and name in self._plan.nodes:
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
