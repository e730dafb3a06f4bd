"""A lab's namespaces and links, made and removed by iproute2 in batches."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from netctl.errors import RefusedError
from netctl.lab import confine, registry, topology
from netctl.lab.topology import Topology


def namespaces() -> frozenset[str]:
    """Return the names of all network namespaces that `ip netns` knows, whoever made them."""
    try:
        return frozenset(entry.name for entry in confine.NETNS.iterdir())
    except FileNotFoundError:
        return frozenset()


def own_namespaces(directory: str) -> list[str]:
    """Return the names of the namespaces of the lab in `directory`."""
    prefix = topology.namespace_prefix(directory)
    return sorted(name for name in namespaces() if name.startswith(prefix))


def prepare(planned: Topology, hosts: Sequence[str]) -> None:
    """Make what is missing of namespaces and links, and give these hosts their addresses.

    Raises:
        RefusedError: The kernel or ip refused; the message is ip's.
    """
    _note_folder()
    _ip(topology.namespace_lines(planned, namespaces()))
    links = subprocess.run(["ip", "-n", planned.underlay, "-json", "link"], capture_output=True, check=True)
    present = {link["ifname"] for link in msgspec.json.decode(links.stdout)}
    _ip(topology.underlay_lines(planned, present), planned.underlay)
    for name in hosts:
        _ip(topology.host_lines(planned, name), planned.hosts[name].namespace)


def remove(directory: str) -> None:
    """Remove the namespaces of the lab in `directory`, and with them their links."""
    _ip([f"netns delete {name}" for name in own_namespaces(directory)])
    _forget_folder()


def _ip(lines: Sequence[str], namespace: str | None = None) -> None:
    """Do a batch of `ip` commands.

    Raises:
        RefusedError: One was refused; the message is ip's.
    """
    if not lines:
        return
    where = ["-n", namespace] if namespace is not None else []
    done = subprocess.run(
        ["ip", *where, "-batch", "-"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        what = " ".join(done.stderr.split())
        raise RefusedError(f"the lab's network could not be made: {what}", "see what ip(8) says about it")


def _mounted() -> bool:
    """Return whether `ip netns` has made its folder a mount (it binds the folder to itself)."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return any(line.split()[4] == str(confine.NETNS) for line in mounts)


def _note_folder() -> None:
    """Note, before the first namespace, if the folder of `ip netns` is one that a lab brings about."""
    if not _mounted():
        registry.NETNS_MARK.write_text("a folder" if confine.NETNS.exists() else "", encoding="ascii")


def _forget_folder() -> None:
    """Have the folder of `ip netns` as it was before the labs, once it is empty."""
    if not registry.NETNS_MARK.exists() or namespaces():
        return
    subprocess.run(["umount", str(confine.NETNS)], capture_output=True, check=False)
    if not registry.NETNS_MARK.read_text(encoding="ascii"):
        with contextlib.suppress(OSError):
            confine.NETNS.rmdir()
    registry.NETNS_MARK.unlink()
