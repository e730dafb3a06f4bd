"""Starting the privileged child; little need be loaded for it, so that the child loads beside the agent."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from netctl.errors import RefusedError, UnavailableError
from nodeagent.directory import NodeDirectory

Started = tuple[socket.socket, subprocess.Popen[bytes]]
"""Our end of the SOCK_SEQPACKET pair, and the child, which ends when that is closed."""


def start(arguments: Sequence[str]) -> Started:
    """Start the child. It needs root, and changes nothing before it is asked to.

    Args:
        arguments: For `python -m nodeagent.helper`, all but ``--socket-fd``.

    Raises:
        UnavailableError: It cannot be started.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        # Safe path: whoever can write to the current folder must not choose root's modules.
        command = [sys.executable, "-P", "-m", "nodeagent.helper", "--socket-fd", str(theirs.fileno())]
        try:
            process = subprocess.Popen(
                [*command, *arguments], pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL
            )
        except OSError as error:
            ours.close()
            raise UnavailableError(f"the privileged child cannot be started: {error}") from error
    return ours, process


def helper_arguments(options: argparse.Namespace, directory: NodeDirectory) -> list[str]:
    """Return the child's command line for the agent's.

    Raises:
        RefusedError: We are not root.
    """
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
    if getattr(options, "docker", False):
        arguments += ["--docker-socket", options.docker_socket]
        arguments += ["--docker-exec-root", options.docker_exec_root]
    for path in getattr(options, "mask", ()):
        arguments += ["--mask", path]
    return arguments
