"""What the commands of `nodeagent` do: join a broker, keep this node, leave."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import netctl
from netctl.errors import (
    ExistsError,
    InvalidError,
    KernelError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)
from netctl.model import NAME_PATTERN, Finding, check_name
from netctl.wire import identity as identities
from netctl.wire import invite as invites
from nodeagent.agent import Agent
from nodeagent.checkup import Subject, examine, refusals
from nodeagent.desired import Desired
from nodeagent.directory import DirectoryLock, NodeDirectory, holder, stop_holder
from nodeagent.driver.service import Driver
from nodeagent.facts import node_facts, restricted
from nodeagent.found import Found
from nodeagent.helper_client import HelperClient
from nodeagent.helper_process import Started, helper_arguments
from nodeagent.membership import enrol, tell_leaving
from nodeagent.removal import take_out
from nodeagent.session import BrokerSession


def perform(options: argparse.Namespace, directory: NodeDirectory, started: Started | None) -> None:
    """Do one command.

    Args:
        options: Of the command line.
        directory: Of the node.
        started: With `run`: the privileged child, the directory being locked; None: there is no node.

    Raises:
        NetctlError: It cannot be done.
    """
    match options.command:
        case "join":
            _join(options, directory)
        case "run":
            _run(options, directory, started)
        case "leave":
            _leave(options, directory)
        case "status":
            _status(options, directory)
        case _:
            _version()


def _join(options: argparse.Namespace, directory: NodeDirectory) -> None:
    invite = invites.parse(options.invite)
    name = check_name(options.name or invite.name or _host_name())
    directory.make()
    with DirectoryLock(directory):
        if directory.identity.exists():
            raise ExistsError(
                f"this host is a node already ({directory.identity})", "run `nodeagent leave` first"
            )
        helper = HelperClient.spawn(helper_arguments(options, directory))
        try:
            facts = restricted(helper.facts(options.underlay), options.encapsulation)
            findings = examine(helper.checks(), facts, Subject(name))
        finally:
            helper.close()
        _check(findings)
        identity = enrol(invite, name, node_facts(facts))
        identities.save(identity, directory.identity)
    _print(f"joined as {identity.name} with the block {identity.block}; next: nodeagent run")


def _check(findings: Sequence[Finding]) -> None:
    """Tell what is in the overlay's way on this host.

    Raises:
        RefusedError: No container could run here.
    """
    for finding in findings:
        _say(f"{finding.severity}: {finding.message}; {finding.remedy}")
    if refusals(findings):
        raise RefusedError(
            "this host cannot be a node as it is, and has not joined", "see to the errors, then join again"
        )


def _run(options: argparse.Namespace, directory: NodeDirectory, started: Started | None) -> None:
    identity = identities.load(directory.identity)
    if identity.kind != "node":
        raise InvalidError(f"{directory.identity} is a user's", "give the directory of a node with --dir")
    desired, found = Desired(directory.path), Found(directory.path)
    desired.load()
    found.load()
    link = BrokerSession(identity)
    agent = Agent(
        link,
        desired,
        found,
        _spawner(helper_arguments(options, directory), started),
        underlay=options.underlay,
        encapsulations=options.encapsulation,
        driver=_driver(options, directory) if options.docker else None,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: agent.stop())
    try:
        agent.run()
    finally:
        agent.close()
        link.close(farewell=agent.removed)
    if agent.removed:
        directory.delete()
        _print(f"the broker removed {identity.name}: everything of netctl is out of this host")


def _driver(options: argparse.Namespace, directory: NodeDirectory) -> Driver:
    return Driver(
        directory.docker_networks,
        directory.run / "docker-endpoints.json",
        Path(options.driver_socket),
        Path(options.docker_exec_root),
    )


def _spawner(arguments: Sequence[str], started: Started | None) -> Callable[[], HelperClient]:
    """Return what starts a child, but for the first, which was started already."""
    waiting = [] if started is None else [started]
    return lambda: HelperClient(*waiting.pop()) if waiting else HelperClient.spawn(arguments)


def _leave(options: argparse.Namespace, directory: NodeDirectory) -> None:
    identity = identities.load(directory.identity)
    directory.make()
    # What Docker's containers had from us is taken out with Docker's help, if it was ever offered here.
    options.docker = directory.docker_networks.exists()
    desired, found = Desired(directory.path), Found(directory.path)
    told = _told_broker(identity, desired, force=options.force)
    stop_holder(directory)
    with DirectoryLock(directory):
        found.load()
        helper = HelperClient.spawn([*helper_arguments(options, directory), "--process-engine"])
        try:
            left = take_out(helper, found.settings).left
        finally:
            helper.close()
        if left:
            raise KernelError(f"not everything is out: {left[0]}", "see what it says, then leave again")
        directory.delete()
    _print(f"{identity.name} left: everything of netctl is out of this host")
    if not told:
        _say(
            "warning: the broker could not be told; "
            f"where it runs, use `netctl node rm --force {identity.name}`"
        )


def _told_broker(identity: identities.Identity, desired: Desired, *, force: bool) -> bool:
    """Tell the broker that this node leaves; return whether it heard.

    Raises:
        RefusedError: There are containers here.
    """
    try:
        tell_leaving(identity, force=force)
    except UnavailableError:
        desired.load()
        held = desired.held
        if held is not None and held.index.containers and not force:
            names = ", ".join(sorted(c.name for c in held.index.containers.values())[:8])
            raise RefusedError(
                f"containers are recorded here ({names}), and the broker cannot be reached",
                "leave with --force to end them",
            ) from None
        return False
    return True


def _status(options: argparse.Namespace, directory: NodeDirectory) -> None:
    identity = identities.load(directory.identity)
    desired = Desired(directory.path)
    desired.peek()
    held = desired.held
    facts: dict[str, object] = {
        "name": identity.name,
        "block": identity.block,
        "broker": list(identity.addresses),
        "pid": holder(directory) or None,
        "epoch": 0 if held is None else held.epoch,
        "revision": 0 if held is None else held.revision,
        "containers": 0 if held is None else len(held.index.containers),
        "peers": 0 if held is None else len(held.index.peers),
    }
    if options.json:
        _print(json.dumps(facts))
        return
    for key, value in facts.items():
        _print(f"{key:<11}{', '.join(value) if isinstance(value, list) else '-' if value is None else value}")


def _version() -> None:
    _print(netctl.__version__)


# --- help -------------------------------------------------------------------------------------------


def _host_name() -> str:
    """Return this host's short name as a DNS label.

    Raises:
        NotFoundError: It has none that could be made one.
    """
    label = (
        re.sub(r"[^a-z0-9-]+", "-", os.uname().nodename.partition(".")[0].lower()).strip("-")[:63].strip("-")
    )
    if re.match(NAME_PATTERN, label) is None:
        raise NotFoundError("this host has no name to join under", "say one with --name")
    return label


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - what a command says is its output


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - what a command says is its output
