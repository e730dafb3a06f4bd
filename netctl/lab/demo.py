"""The program behind `scripts/demo`: tells a story (`demo_story`, `demo_docker`), and clears away after it.

It ends with 0 only if every step came out as said, and nothing was left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape

from firewall_rules import names
from netctl.errors import NetctlError
from netctl.lab import confine, mounts, network, processes, registry, runner, topology
from netctl.lab.demo_docker import DockerStory, compose_folder
from netctl.lab.demo_story import Story
from netctl.lab.telling import UnexpectedError

COMPOSE_FILE = Path(__file__).parents[2] / "examples" / "compose.yaml"
DIRECTORY = registry.RUNTIME / "demo"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
NEXT = ("netctl ps", "netctl connect cache db --port icmp", "netctl exec -it web -- sh")
DOCKER_NEXT = (
    "netctl lab docker n1 -- network create -d netctl --ipam-driver netctl demo",
    "netctl lab docker n1 -- run -d --network demo --name web busybox httpd -f -h /etc",
    "netctl run cache --image busybox --node n2 -- sleep infinity",
    "netctl connect cache web --port 80",
    "netctl ps",
)
"""What can be done in the lab as its story leaves it; this one takes its containers and networks away."""
OUR_LINKS = (names.BRIDGE, names.PORT_PREFIX, names.TUNNEL_PREFIX, topology.UNDERLAY_BRIDGE)


def _listing(directory: Path) -> dict[str, frozenset[str]]:
    """Return what is on this host that could be a lab's: others may come and go meanwhile."""
    cgroups = f"**/{topology.namespace_prefix(str(directory))}*"
    links = subprocess.run(["ip", "-json", "link"], capture_output=True, check=True).stdout
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    return {
        "link": frozenset(
            link["ifname"] for link in msgspec.json.decode(links) if link["ifname"].startswith(OUR_LINKS)
        ),
        "table": frozenset(line for line in tables.splitlines() if line.endswith(f" {names.TABLE}")),
        "namespace": frozenset(network.own_namespaces(str(directory))),
        "process": frozenset(str(each.pid) for each in processes.with_argument_below(directory)),
        "control group": frozenset(str(path) for path in Path("/sys/fs/cgroup").glob(cgroups)),
        "file": frozenset(str(path) for path in (directory, *mounts.FOLDERS) if path.exists()),
    }


def _check_left(directory: Path, before: Mapping[str, frozenset[str]]) -> None:
    """Compare the host with how it was before the lab."""
    left = {what: sorted(after - before[what]) for what, after in _listing(directory).items()}
    if any(left.values()):
        raise UnexpectedError(f"the lab left something behind: {left}")


def _clear_away(directory: Path) -> None:
    if (directory / registry.SPEC_FILE).exists():
        runner.down(str(directory))


def _try_next(console: Console, directory: Path, lines: Sequence[str]) -> None:
    console.print()
    console.print("The lab is still up. Things to try:", style="bold")
    netctl = confine.program_path("netctl")
    for line in (
        f"export NETCTL_LAB={directory} PATH={Path(netctl).parent}:$PATH",
        *lines,
        "netctl lab shell n1 -- nft list table bridge netctl",
        "netctl node list",
        "netctl lab down",
    ):
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/demo", description="Show on one machine what netctl does.")
    parser.add_argument("--keep", action="store_true", help="leave the lab up, and say what to try next")
    parser.add_argument(
        "--dir", type=Path, default=DIRECTORY, metavar="DIR", help="where the lab keeps everything"
    )
    parser.add_argument("--docker", action="store_true", help="show it with real containers of Docker")
    parser.add_argument(
        "--busybox", type=Path, metavar="FILE", help="a static one, to make Docker's image from"
    )
    parser.add_argument("--compose", type=Path, metavar="DIR", help="a folder with Compose as a plugin in it")
    options = parser.parse_args(argv)
    if options.docker and options.busybox is None:
        parser.error("--docker needs --busybox; scripts/demo gives both")
    return options


def _story(options: argparse.Namespace, console: Console, directory: Path) -> Story | DockerStory:
    if not options.docker:
        return Story(console, directory)
    if options.compose is not None:
        compose_folder(options.compose)
    return DockerStory(console, directory, options.busybox, COMPOSE_FILE)


def _ignore(*_: object) -> None:
    return


def _end(*_: object) -> None:
    """Have the lab taken down; whoever presses Ctrl-C again, or closes the terminal, does not stop that."""
    for number in ENDING:
        # No SIG_IGN, which the programs that clear away would inherit.
        signal.signal(number, _ignore)
    with contextlib.suppress(PermissionError):
        # A terminal's Ctrl-C goes to its foreground group, whose programs would end of it.
        os.setpgid(0, 0)
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> int:
    """Tell the story; return 0 if every step came out as said, else 1."""
    options = _arguments(argv)
    keep, directory = options.keep, options.dir.resolve()
    console = Console(highlight=False)
    for number in ENDING:
        signal.signal(number, _end)
    try:
        _clear_away(directory)
        before = _listing(directory)
        try:
            _story(options, console, directory).tell()
        except KeyboardInterrupt:
            keep = False
            raise
        finally:
            if not keep:
                with contextlib.suppress(OSError):
                    console.print("\ntaking the lab down", style="dim")
                _clear_away(directory)
        if keep:
            _try_next(console, directory, DOCKER_NEXT if options.docker else NEXT)
            return 0
        _check_left(directory, before)
        console.print("[green]ok[/]  it left no namespace, link, table, process or file behind")
    except (UnexpectedError, NetctlError) as error:
        console.print(f"[bold red]failed:[/] {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
