"""The privileged child: `python -m nodeagent.helper`, started by the agent, ended with its socket.

It alone touches the kernel, the firewall and the container engine; see `nodeagent.helper_server` for what
it lets itself be asked. Started in a node's network namespace, that is the one it manages.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from firewall_rules.backends.base import ContainerBackend, FirewallError
from firewall_rules.backends.choose import Preference, choose
from firewall_rules.backends.docker_user import DockerUserPassages
from firewall_rules.backends.nftables import NftablesHostBackend
from netctl import log
from netctl.errors import NetctlError
from nodeagent.apply import Host
from nodeagent.engine.base import Engine
from nodeagent.engine.process import ProcessEngine
from nodeagent.helper_server import HelperServer
from nodeagent.kernel import netlink
from nodeagent.kernel.linux import LinuxKernel
from nodeagent.kernel.prober import Prober
from nodeagent.kernel.watch import LinkWatch
from nodeagent.kernel.wireguard_keys import WireguardKeys
from nodeagent.sandboxes import MountedSandboxes

if TYPE_CHECKING:
    from nodeagent.engine.docker_api import DockerApi

DOCKER_EXEC_ROOT: Final = Path("/run/docker")
"""Docker's own default."""


def parser() -> argparse.ArgumentParser:
    """Return what the child understands of its command line."""
    parser = argparse.ArgumentParser("nodeagent.helper", description="The node agent's privileged child.")
    parser.add_argument("--socket-fd", type=int, required=True, help="our end of the SOCK_SEQPACKET pair")
    parser.add_argument("--state-dir", type=Path, required=True, help="what must survive a reboot")
    parser.add_argument("--run-dir", type=Path, required=True, help="what must not")
    parser.add_argument("--firewall", choices=("auto", "nftables", "iptables"), default="auto")
    parser.add_argument("--underlay", help="the only underlay address the agent may name")
    parser.add_argument("--process-engine", action="store_true", help="offer the engine `process`")
    parser.add_argument("--process-root", action="store_true", help="a lab: its containers run as root")
    parser.add_argument("--docker-socket", type=Path, help="offer the engine `docker` that listens there")
    parser.add_argument(
        "--docker-exec-root", type=Path, default=DOCKER_EXEC_ROOT, help="Docker's --exec-root"
    )
    parser.add_argument("--mask", action="append", default=[], type=Path, help="hidden from containers")
    return parser


def _container_backend(preference: Preference, records: Path) -> ContainerBackend | None:
    try:
        return choose(preference, records)
    except FirewallError as error:
        log.get_logger().error("no container can be made here", error=str(error))
        return None


def _docker(options: argparse.Namespace) -> Engine:
    """Return the engine `docker`. It is loaded only where it is on offer.

    Its library takes a third of a second, which is left to the first of its threads that needs it.
    """
    from nodeagent.engine.docker_core import DockerCore  # noqa: PLC0415 - see above
    from nodeagent.engine.docker_jobs import Settings  # noqa: PLC0415 - see above

    def connect() -> DockerApi:
        from nodeagent.engine.docker import SdkApi  # noqa: PLC0415 - see above

        return SdkApi(str(options.docker_socket), Settings().driver)

    guarded = (options.docker_socket, options.state_dir, options.run_dir, *options.mask)
    paths = sorted({str(path.resolve()) for path in guarded})
    return DockerCore(connect, options.state_dir, Settings(guarded=tuple(paths)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the agent until it ends; return the exit status."""
    options = parser().parse_args(arguments)
    log.setup("nodeagent-helper")
    os.umask(0o077)
    # A terminal's ^C goes to the whole group: the agent ends in its own order, and we with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    options.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    engines: list[Engine] = []
    try:
        # The firewalls first: they keep descriptors that hundreds of containers would take.
        host_backend = NftablesHostBackend(options.run_dir)
        container_backend = _container_backend(options.firewall, options.run_dir)
        if options.process_engine:
            engines.append(
                ProcessEngine(
                    options.state_dir,
                    root=options.process_root,
                    masked=(options.run_dir.absolute(), *options.mask),
                )
            )
        sandboxes = passages = None
        if options.docker_socket is not None:
            engines.append(_docker(options))
            sandboxes = MountedSandboxes(options.docker_exec_root / "netns")
            passages = DockerUserPassages()
        host = Host(
            LinuxKernel(WireguardKeys(options.state_dir / "wireguard")),
            container_backend,
            host_backend,
            engines,
            sandboxes=sandboxes,
            passages=passages,
        )
        sock = socket.socket(fileno=options.socket_fd)
        watch = LinkWatch()
        HelperServer(sock, host, watch, options.underlay, prober=Prober(), later=netlink.load).serve()
    except (NetctlError, OSError) as error:
        log.get_logger().error("the privileged child ends", error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
