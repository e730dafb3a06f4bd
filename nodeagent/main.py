"""The console script `nodeagent`: join a broker, keep this node, leave."""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, get_args

import netctl
from netctl.errors import (
    ExistsError,
    InvalidError,
    KernelError,
    NetctlError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)
from netctl.log import setup
from netctl.model import NAME_PATTERN, check_name
from netctl.wire import identity as identities
from netctl.wire import invite as invites
from nodeagent.agent import Agent
from nodeagent.desired import Desired
from nodeagent.directory import DirectoryLock, NodeDirectory, holder, stop_holder
from nodeagent.facts import EncapsulationChoice, node_facts, restricted
from nodeagent.found import Found
from nodeagent.helper_client import HelperClient
from nodeagent.membership import enrol, tell_leaving
from nodeagent.removal import take_out
from nodeagent.session import BrokerSession

DIRECTORY: Final = "/var/lib/netctl/node"
RUN_DIRECTORY: Final = "/run/netctl/node"
INTERRUPTED: Final = 130

_Act = Callable[[argparse.Namespace], None]
_EXAMPLES: Final = {
    "join": "example: nodeagent join netctl-invite-... --name n1 --underlay 192.0.2.11",
    "run": "example: nodeagent run --firewall nftables --encapsulation vxlan",
    "leave": "example: nodeagent leave --force",
    "status": "example: nodeagent status --json",
    "version": "example: nodeagent version",
}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="nodeagent", description="Keeps one host as a node of netctl.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, summary: str, act: Callable[[argparse.Namespace], None]
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary, epilog=_EXAMPLES[name])
        made.set_defaults(act=act)
        return made

    join = command("join", "Make this host a node: enrol it with the broker.", _join)
    join.add_argument("invite", metavar="INVITE", help="from `netctl invite node`")
    join.add_argument("--name", help="of the node (default: the invite's, else this host's short name)")
    run = command("run", "Keep this node as the broker wants it, until SIGTERM.", _run)
    leave = command("leave", "Take everything of netctl out of this host, and tell the broker.", _leave)
    leave.add_argument("--force", action="store_true", help="also while containers are recorded here")
    status = command("status", "Say what this host is to which broker.", _status)
    status.add_argument("--json", action="store_true", help="as one JSON object")
    command("version", "Print the version.", _version)

    for made in (join, run, leave, status):
        made.add_argument(
            "--dir", default=DIRECTORY, metavar="D", help=f"of this node (default: {DIRECTORY})"
        )
        made.add_argument(
            "--run-dir",
            default=RUN_DIRECTORY,
            metavar="R",
            help=f"emptied by a reboot (default: {RUN_DIRECTORY})",
        )
    for made in (join, run):
        made.add_argument(
            "--underlay", metavar="A", help="this host's address for tunnels (default: the default route's)"
        )
        made.add_argument(
            "--encapsulation",
            choices=get_args(EncapsulationChoice),
            default="auto",
            help="of tunnels (default: auto, which is gre, then vxlan)",
        )
    for made in (run, leave):
        made.add_argument(
            "--firewall",
            choices=("auto", "nftables", "iptables"),
            default="auto",
            help="in containers (default: auto, which is nftables, then iptables)",
        )
    run.add_argument(
        "--process-engine", action="store_true", help="let users run commands of this host as containers"
    )
    run.add_argument(
        "--process-root", action="store_true", help="run them as root, for labs (default: an id of their own)"
    )
    run.add_argument(
        "--mask", action="append", default=[], metavar="PATH", help="hide it from process containers"
    )
    return parser


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        options = make_parser().parse_args(arguments)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 2
    try:
        setup("nodeagent")
        options.act(options)
    except NetctlError as error:
        _say(f"error: {error.message}" + (f"; {error.remedy}" if error.remedy else ""))
        return error.exit_status
    except OSError as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def main() -> None:
    """Run `nodeagent` for the console script."""
    sys.exit(run(sys.argv[1:]))


# --- commands ---------------------------------------------------------------------------------------


def _join(options: argparse.Namespace) -> None:
    directory = _directory(options)
    invite = invites.parse(options.invite)
    name = check_name(options.name or invite.name or _host_name())
    directory.make()
    with DirectoryLock(directory):
        if directory.identity.exists():
            raise ExistsError(
                f"this host is a node already ({directory.identity})", "run `nodeagent leave` first"
            )
        helper = HelperClient.spawn(_helper_arguments(options, directory))
        try:
            facts = node_facts(restricted(helper.facts(options.underlay), options.encapsulation))
        finally:
            helper.close()
        identity = enrol(invite, name, facts)
        identities.save(identity, directory.identity)
    _print(f"joined as {identity.name} with the block {identity.block}; next: nodeagent run")


def _run(options: argparse.Namespace) -> None:
    directory = _directory(options)
    identity = identities.load(directory.identity)
    if identity.kind != "node":
        raise InvalidError(f"{directory.identity} is a user's", "give the directory of a node with --dir")
    directory.make()
    # Loading makes many objects and no garbage; `Agent.run` lets the collector run again.
    gc.disable()
    with DirectoryLock(directory):
        desired, found = Desired(directory.path), Found(directory.path)
        desired.load()
        found.load()
        arguments = _helper_arguments(options, directory)
        link = BrokerSession(identity)
        agent = Agent(
            link,
            desired,
            found,
            lambda: HelperClient.spawn(arguments),
            underlay=options.underlay,
            encapsulation=options.encapsulation,
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


def _leave(options: argparse.Namespace) -> None:
    directory = _directory(options)
    identity = identities.load(directory.identity)
    directory.make()
    desired, found = Desired(directory.path), Found(directory.path)
    told = _told_broker(identity, desired, force=options.force)
    stop_holder(directory)
    with DirectoryLock(directory):
        found.load()
        helper = HelperClient.spawn([*_helper_arguments(options, directory), "--process-engine"])
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


def _status(options: argparse.Namespace) -> None:
    directory = _directory(options)
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


def _version(_options: argparse.Namespace) -> None:
    _print(netctl.__version__)


# --- help -------------------------------------------------------------------------------------------


def _directory(options: argparse.Namespace) -> NodeDirectory:
    return NodeDirectory(Path(options.dir).absolute(), Path(options.run_dir).absolute())


def _helper_arguments(options: argparse.Namespace, directory: NodeDirectory) -> list[str]:
    """Return the privileged child's command line."""
    if os.geteuid() != 0:
        raise RefusedError("a node is kept by root: its helper makes links, namespaces and rules", "use sudo")
    arguments = ["--state-dir", str(directory.path), "--run-dir", str(directory.run)]
    arguments += ["--firewall", getattr(options, "firewall", "auto")]
    if getattr(options, "underlay", None):
        arguments += ["--underlay", options.underlay]
    if getattr(options, "process_engine", False):
        arguments.append("--process-engine")
    if getattr(options, "process_root", False):
        arguments.append("--process-root")
    for path in getattr(options, "mask", ()):
        arguments += ["--mask", path]
    return arguments


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


if __name__ == "__main__":
    main()
