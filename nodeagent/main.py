"""The console script `nodeagent`: its command line.

What the commands do is in `nodeagent.commands`, which is loaded once it is known that one is to be done: by
then `run` has its privileged child started, and the two load side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from netctl.errors import NetctlError
from netctl.log import setup
from nodeagent.directory import DirectoryLock, NodeDirectory
from nodeagent.helper_process import Started, helper_arguments, start

DIRECTORY: Final = "/var/lib/netctl/node"
RUN_DIRECTORY: Final = "/run/netctl/node"
INTERRUPTED: Final = 130
ENCAPSULATIONS: Final = ("gre", "vxlan", "wireguard", "direct")
DOCKER_SOCKET: Final = "/var/run/docker.sock"
DOCKER_EXEC_ROOT: Final = "/var/run/docker"
DRIVER_SOCKET: Final = "/run/netctl/driver.sock"

_EXAMPLES: Final = {
    "join": "example: nodeagent join netctl-invite-... --name n1 --underlay 192.0.2.11",
    "run": "example: nodeagent run --firewall nftables --underlay eth0 --encapsulation wireguard,vxlan",
    "leave": "example: nodeagent leave --force",
    "status": "example: nodeagent status --json",
    "version": "example: nodeagent version",
}


def encapsulations(text: str) -> tuple[str, ...]:
    """Return what the operator allows; empty: the node agent chooses.

    Args:
        text: ``auto``, or encapsulations with commas between.

    Raises:
        ArgumentTypeError: It is neither.
    """
    words = tuple(text.split(","))
    if words == ("auto",):
        return ()
    if not set(words) <= set(ENCAPSULATIONS) or len(set(words)) != len(words):
        raise argparse.ArgumentTypeError(
            f"say auto, or some of {', '.join(ENCAPSULATIONS)}, each once, with commas between, not {text!r}"
        )
    return words


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="nodeagent", description="Keeps one host as a node of netctl.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=summary, description=summary, epilog=_EXAMPLES[name])

    join = command("join", "Make this host a node: look whether it can be one, and enrol it with the broker.")
    join.add_argument("invite", metavar="INVITE", help="from `netctl invite node`")
    join.add_argument("--name", help="of the node (default: the invite's, else this host's short name)")
    run = command("run", "Keep this node as the broker wants it, until SIGTERM.")
    leave = command("leave", "Take everything of netctl out of this host, and tell the broker.")
    leave.add_argument("--force", action="store_true", help="also while containers are recorded here")
    status = command("status", "Say what this host is to which broker.")
    status.add_argument("--json", action="store_true", help="as one JSON object")
    version = command("version", "Print the version.")
    version.set_defaults(dir=DIRECTORY, run_dir=RUN_DIRECTORY)

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
            "--underlay",
            metavar="A",
            help="this host's address for tunnels, or the link that has it (default: the default route's)",
        )
        made.add_argument(
            "--encapsulation",
            type=encapsulations,
            default=(),
            metavar="E",
            help="of tunnels: some of gre, vxlan, wireguard and direct, with commas between "
            "(default: auto, which is gre,vxlan,wireguard)",
        )
    for made in (run, leave):
        made.add_argument(
            "--firewall",
            choices=("auto", "nftables", "iptables"),
            default="auto",
            help="in containers (default: auto, which is nftables, then iptables)",
        )
        made.add_argument(
            "--docker-socket",
            default=DOCKER_SOCKET,
            metavar="PATH",
            help=f"of the Docker engine (default: {DOCKER_SOCKET})",
        )
        made.add_argument(
            "--docker-exec-root",
            default=DOCKER_EXEC_ROOT,
            metavar="PATH",
            help=f"of the Docker engine, where its namespaces are (default: {DOCKER_EXEC_ROOT})",
        )
    run.add_argument(
        "--docker", action="store_true", help="run containers by Docker, and take in those of its users"
    )
    run.add_argument(
        "--driver-socket",
        default=DRIVER_SOCKET,
        metavar="PATH",
        help=f"of nodeagent-driver, which hears Docker's calls (default: {DRIVER_SOCKET})",
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
        with contextlib.ExitStack() as stack:
            directory = NodeDirectory(Path(options.dir).absolute(), Path(options.run_dir).absolute())
            started = _begun(options, directory, stack) if options.command == "run" else None
            importlib.import_module("nodeagent.commands").perform(options, directory, started)
    except NetctlError as error:
        _say(f"error: {error.message}" + (f"; {error.remedy}" if error.remedy else ""))
        return error.exit_status
    except OSError as error:
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _begun(
    options: argparse.Namespace, directory: NodeDirectory, stack: contextlib.ExitStack
) -> Started | None:
    """Take the directory's lock, kept until `stack` ends, and start the child; None: there is no node."""
    # Loading makes many objects and no garbage; `Agent.run` lets the collector run again.
    gc.disable()
    if not directory.identity.exists():
        return None
    directory.make()
    stack.enter_context(DirectoryLock(directory))
    started = start(helper_arguments(options, directory))
    stack.callback(started[0].close)
    return started


def main() -> None:
    """Run `nodeagent` for the console script."""
    sys.exit(run(sys.argv[1:]))


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201 - what a command says is its output


if __name__ == "__main__":
    main()
