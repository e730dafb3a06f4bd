"""Takes a lab down, in whatever state it is: what can be ended in order is, everything else by its pid."""

from __future__ import annotations

import contextlib
import shutil
import time

from netctl.errors import RefusedError
from netctl.lab import confine, engine, mounts, network, processes, registry, topology
from netctl.lab.hosts import PROCESSES_FILE, Hosts
from netctl.lab.processes import ProcessId
from netctl.lab.topology import Topology
from netctl.lab.waiting import Tell, Wait
from nodeagent.engine.cgroups import Cgroups

LEAVE_SECONDS = 30.0
ENGINE_GRACE = 0.3
"""Seconds for what an engine left: its containers' supervisors take no SIGTERM."""
CGROUP_SECONDS = 10.0


def clear(planned: Topology, hosts: Hosts, tell: Tell) -> None:
    """End a lab's containers and processes, remove its namespaces and files.

    Raises:
        RefusedError: Something would not go.
    """
    agents = [process for name in planned.nodes if (process := hosts.process(name)) is not None]
    helpers = [
        child
        for process in agents
        for pid in processes.children(process.pid)
        if (child := processes.identify(pid)) is not None
    ]
    left = processes.stop(agents) + processes.stop(helpers)
    _leave(planned, hosts)
    if planned.spec.docker:
        left += _end_engines(planned, hosts, tell)
    broker = hosts.process("broker")
    left += processes.stop(
        [
            *([broker] if broker is not None else []),
            # A shim that outlived its agent's orderly leave, and whatever else is still inside.
            *processes.with_argument_below(planned.spec.root, "nodeagent.shim"),
            *processes.in_namespaces(
                confine.NETNS / name for name in network.own_namespaces(planned.spec.directory)
            ),
        ]
    )
    network.remove(planned.spec.directory)
    if planned.spec.docker:
        mounts.forget()
    _remove_cgroups(planned)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise RefusedError(f"processes of the lab do not end: {pids}", "see what they are with ps(1)")
    _remove_files(planned)


def _leave(planned: Topology, hosts: Hosts) -> None:
    """Have every node take out its containers; what that leaves is ended by its pid afterwards."""
    existing = network.namespaces()
    commands = {
        name: topology.leave_command(planned, name)
        for name in planned.nodes
        if topology.identity_of(planned, name).exists() and planned.hosts[name].namespace in existing
    }
    hosts.run(commands, LEAVE_SECONDS, "the nodes to take their containers out")


def _end_engines(planned: Topology, hosts: Hosts, tell: Tell) -> tuple[ProcessId, ...]:
    """Kill every node's engine, and then what it ran: while it lives, it may start containers again."""
    names = [planned.hosts[node].namespace for node in planned.nodes]
    engines = [
        process
        for node in planned.nodes
        if (process := hosts.process(topology.engine_name(node))) is not None
    ]
    left = processes.stop(engines, 0.0)
    for name in names:
        engine.kill_containers(name)
    left += processes.stop(processes.in_namespaces(confine.NETNS / name for name in names), ENGINE_GRACE)
    wait = Wait(tell, CGROUP_SECONDS, "the containers to end")
    # No generator: each one is to be tried every time.
    while not all([engine.remove_cgroups(name) for name in names]):  # noqa: C419 - see above
        for name in names:
            engine.kill_containers(name)
        if not wait.again():
            raise RefusedError("Docker's containers do not end", "see what they are with ps(1)")
    return left


def _remove_cgroups(planned: Topology) -> None:
    """Take out the cgroups of containers that no agent could take out in order any more."""
    cgroups = Cgroups()
    for container in planned.spec.root.glob("n*/state/containers/*"):
        cgroups.kill(container.name)
        with contextlib.suppress(TimeoutError):
            cgroups.remove(container.name, time.monotonic() + 2.0)


def _remove_files(planned: Topology) -> None:
    """Remove what the lab put into its directory, and the directory if that leaves it empty."""
    root = planned.spec.root
    for name in ("broker", "user", "log", *planned.nodes):
        shutil.rmtree(root / name, ignore_errors=True)
    for name in (PROCESSES_FILE, registry.SPEC_FILE):
        (root / name).unlink(missing_ok=True)
    try:
        root.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise RefusedError(f"the lab's directory stays: {error}", "look at what else is in it") from error
