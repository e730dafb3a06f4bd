"""What a lab consists of, computed from what was asked for; nothing is done here.

A lab is an underlay bridge in a namespace of its own, and around it a namespace each for the broker,
for every node and, if asked for, for a host outside. Links are made inside these namespaces, so the
host's own never change and two labs never meet. Every lab therefore uses the same underlay addresses.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import attrs
import msgspec

from netctl.errors import InvalidError, RefusedError
from netctl.lab.engine import EngineFiles, engine_argv
from netctl.lab.mounts import keeper_argv
from netctl.model import BROKER_PORT, Encryption

ENCAPSULATIONS: Final = ("gre", "vxlan", "wireguard", "direct")
EncapsulationChoice = Annotated[str, msgspec.Meta(max_length=64)]
"""``auto``, or some of ENCAPSULATIONS with commas between; see `check_encapsulations`."""
FirewallChoice = Literal["auto", "nftables", "iptables"]

UNDERLAY_BRIDGE = "underlay"
LINK = "eth0"
"""Every host's link to the underlay. Nodes are told of it and not of its address, so that they may move."""
PREFIX_LENGTH = 16
BROKER_ADDRESS = "172.31.0.2"
ROUTER_ADDRESS = "172.31.0.1"
"""The outside host's address in the underlay: the nodes' default gateway where there is one."""
OUTSIDE_ADDRESS = "198.51.100.1"
"""A public-looking address behind the router (TEST-NET-2, RFC 5737)."""
MAX_NODES = 250
MIN_MTU, MAX_MTU = 1280, 9000
MAX_SOCKET_PATH = 107
"""Bytes of a UNIX socket's path (unix(7): 108 with its end)."""

MAX_DIRECTORY_BYTES = 4096


@attrs.frozen
class LabSpec:
    """What was asked for.

    Attributes:
        directory: Absolute path; everything the lab keeps is below it.
        nodes: How many, named n1, n2 and so on.
        encapsulation: Given to every node agent.
        firewall: Given to every node agent.
        mtu: Bytes, of the underlay's links.
        outside: Whether there is a host outside, and a default route of the nodes to it.
        docker: Whether every node has a Docker engine of its own.
        encryption: Given to the broker.
    """

    directory: Annotated[str, msgspec.Meta(max_length=MAX_DIRECTORY_BYTES)]
    nodes: Annotated[int, msgspec.Meta(ge=1, le=MAX_NODES)] = 3
    encapsulation: EncapsulationChoice = "auto"
    firewall: FirewallChoice = "auto"
    mtu: Annotated[int, msgspec.Meta(ge=MIN_MTU, le=MAX_MTU)] = 1500
    outside: bool = False
    docker: bool = False
    encryption: Encryption = "off"

    @property
    def root(self) -> Path:
        """The directory as a path."""
        return Path(self.directory)


@attrs.frozen
class Wish:
    """The options of one `lab up`; None: as the lab already has it, else the default."""

    nodes: int | None = None
    encapsulation: EncapsulationChoice | None = None
    firewall: FirewallChoice | None = None
    mtu: int | None = None
    outside: bool | None = None
    docker: bool | None = None
    encryption: Encryption | None = None


@attrs.frozen
class Host:
    """One namespace with a link to the underlay.

    Attributes:
        name: ``broker``, ``outside`` or a node's name; also the name of the underlay bridge's port.
        namespace: Its network namespace, as `ip netns` names it.
        address: In the underlay.
    """

    name: str
    namespace: str
    address: str


@attrs.frozen
class Program:
    """One process of the lab.

    Attributes:
        name: The host's it runs on for the broker and the agents; others add a word, as in ``n1 docker``.
        host: That it runs on.
        argv: From the program's name on; where it lies is the runner's business.
        log: File that receives its output.
        confined: Runs without any right at all.
        mounts: Runs in the node's private mount namespace.
    """

    name: str
    host: str
    namespace: str
    argv: tuple[str, ...]
    log: str
    confined: bool = False
    mounts: bool = False


@attrs.frozen
class Topology:
    """A lab, planned.

    Attributes:
        underlay: Namespace of the underlay bridge.
        hosts: All others, by name: the broker first.
        programs: By name, in the order of their start.
        socket: The broker's socket for the command line.
        broker_endpoint: Where nodes reach the broker.
    """

    spec: LabSpec
    underlay: str
    hosts: Mapping[str, Host]
    programs: Mapping[str, Program]
    socket: str
    broker_endpoint: str

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The names of all namespaces, the underlay's first."""
        return (self.underlay, *(host.namespace for host in self.hosts.values()))

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of the nodes."""
        return tuple(name for name in self.hosts if name not in ("broker", "outside"))


def check_encapsulations(text: str) -> str:
    """Return `text` if it says which encapsulations agents may use.

    Raises:
        InvalidError: It does not.
    """
    words = text.split(",")
    if text != "auto" and (len(set(words)) != len(words) or not set(words) <= set(ENCAPSULATIONS)):
        raise InvalidError(
            f"{text[:80]!r} names no encapsulations",
            f"say auto, or some of {', '.join(ENCAPSULATIONS)}, each once, with commas between",
        )
    return text


def tag(directory: str) -> str:
    """Return the eight hexadecimal digits that tell this lab's namespaces from another's."""
    return hashlib.blake2b(directory.encode(), digest_size=4).hexdigest()


def namespace_prefix(directory: str) -> str:
    """Return what the names of this lab's namespaces begin with."""
    return f"nl-{tag(directory)}-"


def settle(directory: str, wish: Wish, existing: LabSpec | None) -> LabSpec:
    """Return the lab that a `lab up` leads to.

    Raises:
        InvalidError: A value is out of its bounds.
        RefusedError: A lab that is up cannot be changed like this.
    """
    base = existing or LabSpec(directory)
    given = {name: value for name, value in attrs.asdict(wish).items() if value is not None}
    spec = attrs.evolve(base, **given)
    try:
        msgspec.convert(attrs.asdict(spec), LabSpec)
    except msgspec.ValidationError as error:
        raise InvalidError(f"no such lab can be made: {error}", "see `netctl lab up --help`") from error
    check_encapsulations(spec.encapsulation)
    longest = max(len(os.fsencode(path)) for path in _sockets(spec))
    if longest > MAX_SOCKET_PATH:
        raise InvalidError(
            f"the lab's directory is too long by {longest - MAX_SOCKET_PATH} bytes for a socket in it",
            "choose a shorter one with --dir",
        )
    if existing is None:
        return spec
    if spec.nodes < existing.nodes:
        raise RefusedError(
            f"the lab has {existing.nodes} nodes and does not shrink",
            "take it down first: `netctl lab down`",
        )
    fixed = ("encapsulation", "firewall", "mtu", "outside", "docker", "encryption")
    changed = [f"--{name}" for name in fixed if getattr(spec, name) != getattr(existing, name)]
    if changed:
        raise RefusedError(
            f"the lab is up with another {' and '.join(changed)}",
            "take it down first: `netctl lab down`",
        )
    return spec


def plan(spec: LabSpec) -> Topology:
    """Return the namespaces, links and processes of a lab."""
    prefix, root = namespace_prefix(spec.directory), spec.root
    names = [f"n{number}" for number in range(1, spec.nodes + 1)]
    hosts = {"broker": Host("broker", f"{prefix}b", BROKER_ADDRESS)}
    hosts |= {
        name: Host(name, prefix + name, f"172.31.1.{number}") for number, name in enumerate(names, start=1)
    }
    if spec.outside:
        hosts["outside"] = Host("outside", f"{prefix}o", ROUTER_ADDRESS)
    broker = Program(
        "broker",
        "broker",
        hosts["broker"].namespace,
        ("netctl", "broker", "run", "--dir", str(root / "broker")),
        str(root / "log" / "broker.log"),
        confined=True,
    )
    return Topology(
        spec=spec,
        underlay=f"{prefix}u",
        hosts=hosts,
        programs={"broker": broker}
        | {program.name: program for name in names for program in _node_programs(spec, hosts[name])},
        socket=_socket(root),
        broker_endpoint=f"tcp://{BROKER_ADDRESS}:{BROKER_PORT}",
    )


def _socket(root: Path) -> str:
    return str(root / "broker" / "broker.sock")


def _sockets(spec: LabSpec) -> tuple[str, ...]:
    """Return the paths of the lab's sockets that may be too long."""
    engines = (str(engine_files(spec.root, f"n{spec.nodes}").socket),) if spec.docker else ()
    return (_socket(spec.root), *engines)


def engine_files(root: Path, node: str) -> EngineFiles:
    """Return where a node's Docker engine keeps everything."""
    return EngineFiles(root / node / "docker")


def keeper_name(node: str) -> str:
    """Return the name of the process that holds a node's private mount namespace."""
    return f"{node} mounts"


def driver_name(node: str) -> str:
    """Return the name of the process that holds the socket of Docker's driver."""
    return f"{node} driver"


def engine_name(node: str) -> str:
    """Return the name of a node's Docker engine."""
    return f"{node} docker"


def _node_programs(spec: LabSpec, host: Host) -> tuple[Program, ...]:
    """Return a node's processes in the order of their start: Docker waits long for a driver that is late."""
    root, node = spec.root, host.name

    def program(name: str, *argv: str, mounts: bool = spec.docker) -> Program:
        log = str(root / "log" / f"{name.replace(' ', '-')}.log")
        return Program(name, node, host.namespace, argv, log, mounts=mounts)

    agent = program(
        node,
        "nodeagent", "run",
        "--dir", str(root / node / "state"),
        "--run-dir", str(root / node / "run"),
        "--underlay", LINK,
        "--encapsulation", spec.encapsulation,
        "--firewall", spec.firewall,
        "--process-engine", "--process-root",
        "--mask", str(root),
        *(("--docker", "--driver-socket", _driver_socket(root, node)) if spec.docker else ()),
        *_docker_options(spec, node),
    )  # fmt: skip
    if not spec.docker:
        return (agent,)
    return (
        program(keeper_name(node), *keeper_argv(), mounts=False),
        program(driver_name(node), "nodeagent-driver", "--agent", _driver_socket(root, node)),
        program(engine_name(node), *engine_argv(engine_files(root, node), host.namespace)),
        agent,
    )


def _driver_socket(root: Path, node: str) -> str:
    return str(root / node / "driver.sock")


def _docker_options(spec: LabSpec, node: str) -> tuple[str, ...]:
    """Return what an agent must know of the node's engine."""
    if not spec.docker:
        return ()
    return ("--docker-socket", str(engine_files(spec.root, node).socket))


def identity_of(topology: Topology, node: str) -> Path:
    """Return the file that a node has once it has joined."""
    return topology.spec.root / node / "state" / "identity"


def join_command(topology: Topology, node: str, invite: str) -> tuple[str, ...]:
    """Return how a node is enrolled."""
    root = topology.spec.root
    return (
        "nodeagent", "join", invite,
        "--name", node,
        "--dir", str(root / node / "state"),
        "--run-dir", str(root / node / "run"),
        "--underlay", LINK,
        "--encapsulation", topology.spec.encapsulation,
    )  # fmt: skip


def leave_command(topology: Topology, node: str) -> tuple[str, ...]:
    """Return how everything of a node is taken out, its containers' processes too."""
    root = topology.spec.root
    return (
        "nodeagent", "leave", "--force",
        "--dir", str(root / node / "state"),
        "--run-dir", str(root / node / "run"),
        *_docker_options(topology.spec, node),
    )  # fmt: skip


def namespace_lines(topology: Topology, existing: Collection[str]) -> tuple[str, ...]:
    """Return the lines of `ip -batch` that make the namespaces that are missing."""
    return tuple(f"netns add {name}" for name in topology.namespaces if name not in existing)


def underlay_lines(topology: Topology, existing: Collection[str]) -> tuple[str, ...]:
    """Return the lines of `ip -batch`, in the underlay's namespace, for the links that are missing.

    Each veth pair is made with its far end in the host's namespace, so it is never seen anywhere else.
    """
    mtu = topology.spec.mtu
    lines = []
    if UNDERLAY_BRIDGE not in existing:
        lines += [
            f"link add {UNDERLAY_BRIDGE} mtu {mtu} type bridge stp_state 0 mcast_snooping 0",
            f"link set {UNDERLAY_BRIDGE} up",
        ]
    for host in topology.hosts.values():
        if host.name not in existing:
            peer = f"peer name {LINK} mtu {mtu} netns {host.namespace}"
            lines += [
                f"link add {host.name} mtu {mtu} master {UNDERLAY_BRIDGE} type veth {peer}",
                f"link set {host.name} up",
            ]
    return tuple(lines)


def host_lines(topology: Topology, name: str) -> tuple[str, ...]:
    """Return the lines of `ip -batch`, in a host's namespace; done again they change nothing."""
    host = topology.hosts[name]
    lines = [
        "link set lo up",
        f"addr replace {host.address}/{PREFIX_LENGTH} dev {LINK}",
        f"link set {LINK} up",
    ]
    if name == "outside":
        lines.append(f"addr replace {OUTSIDE_ADDRESS}/32 dev lo")
    elif topology.spec.outside:
        lines.append(f"route replace default via {ROUTER_ADDRESS} dev {LINK}")
    return tuple(lines)
