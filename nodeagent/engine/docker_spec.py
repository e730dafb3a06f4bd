"""What Docker is told to make: a workload of the broker's as the body of its requests. Pure.

The defaults are hard. What a workload takes back of them is named in its record (`Workload.loosened`,
`cap_add`, `user`, and the reason in `unsafe`), and shows here as the one field that it changes.
"""

from __future__ import annotations

import os.path
import posixpath
import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network
from typing import Any, Final

import attrs

from netctl.errors import KernelError
from netctl.model import Loosening, Workload, bridge_address
from netctl.unsafe import is_guarded

ID_LABEL: Final = "netctl.id"
"""The container's id; what has none is not ours."""
UNSAFE_LABEL: Final = "netctl.unsafe"
"""Why something was let in that weakens layer 1 or the host."""
RESTART_LABEL: Final = "netctl.restart"
"""The restart policy that was asked for; while the container is to stay stopped, Docker has ``no``."""
MEMORY_BYTES: Final = 512 * 2**20
PIDS: Final = 1024
NOBODY: Final = "65534:65534"
LOG: Final[dict[str, Any]] = {"Type": "json-file", "Config": {"max-size": "10m", "max-file": "3"}}
"""What is kept of a container's output; `docker logs` reads it too."""
_TMPFS: Final = "rw,noexec,nosuid,nodev,size=67108864,mode=1777"
NETWORK_LABEL: Final = "netctl.block"

_RESTART: Final = re.compile(r"(no|always|unless-stopped|on-failure)(?::([0-9]{1,4}))?\Z")
_IDS: Final = re.compile(r"([0-9]{1,9})(?::([0-9]{1,9}))?\Z")
_NAMESPACES: Final[dict[Loosening, str]] = {
    "host-pid": "PidMode",
    "host-ipc": "IpcMode",
    "host-uts": "UTSMode",
}


@attrs.frozen
class Creation:
    """A container to make.

    Attributes:
        network: Of Docker's, which it is put on.
        block: The node's.
        guarded: Paths of the node that no volume may reach: the engine's socket and our own state. Only
            what a workload's reason lets through is exempt.
    """

    container: str
    name: str
    address: str
    workload: Workload
    network: str
    block: str
    guarded: tuple[str, ...] = ()


def container_body(creation: Creation, image: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of ``POST /containers/create``.

    Args:
        creation: What to make.
        image: What ``GET /images/NAME/json`` says of its image.

    Raises:
        KernelError: The node does not make such a container.
    """
    workload = creation.workload
    check_volumes(workload, creation.guarded)
    user = user_of(workload, image)
    labels = {**dict(workload.labels), ID_LABEL: creation.container, RESTART_LABEL: workload.restart}
    if workload.unsafe:
        labels[UNSAFE_LABEL] = workload.unsafe
    body: dict[str, Any] = {
        "Image": workload.image,
        "Env": [f"{name}={value}" for name, value in workload.env],
        "Labels": labels,
        "User": user,
        "HostConfig": host_body(workload, creation.network, user or own_user(image)),
        "NetworkingConfig": {
            "EndpointsConfig": {creation.network: {"IPAMConfig": {"IPv4Address": creation.address}}}
        },
    }
    if "host-uts" not in workload.loosened:
        body["Hostname"] = creation.name
    if workload.argv:
        body["Cmd"] = list(workload.argv)
    # A workload that says nothing has "/", and the image's own directory is meant.
    if workload.workdir not in ("", "/"):
        body["WorkingDir"] = workload.workdir
    return body


def host_body(workload: Workload, network: str, user: str = "") -> dict[str, Any]:
    """Return ``HostConfig``: what the container may do and use on its node.

    Args:
        workload: What runs in it.
        network: Of Docker's, which it is put on.
        user: As whom it runs; empty: that is not known.
    """
    loosened = frozenset(workload.loosened)
    memory = workload.memory or MEMORY_BYTES
    security = []
    if "new-privileges" not in loosened:
        security.append("no-new-privileges:true")
    if "seccomp-unconfined" in loosened:
        security.append("seccomp=unconfined")
    body: dict[str, Any] = {
        "NetworkMode": network,
        "RestartPolicy": restart_body(workload.restart),
        "CapDrop": ["ALL"],
        "CapAdd": [capability.upper().removeprefix("CAP_") for capability in workload.cap_add],
        "SecurityOpt": security,
        "ReadonlyRootfs": "writable-root" not in loosened,
        "Tmpfs": tmpfs_of(user),
        "Binds": list(workload.volumes),
        "Memory": memory,
        # Memory and swap together: none of it is swap.
        "MemorySwap": memory,
        "PidsLimit": workload.pids or PIDS,
        "Init": True,
        "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}],
        "LogConfig": LOG,
    }
    if workload.cpus:
        body["NanoCpus"] = round(workload.cpus * 10**9)
    if "privileged" in loosened:
        body["Privileged"] = True
    for loosening, field in _NAMESPACES.items():
        if loosening in loosened:
            body[field] = "host"
    return body


def user_of(workload: Workload, image: Mapping[str, Any]) -> str:
    """Return whom the command runs as; empty: whom the image says.

    Raises:
        KernelError: As root, and its record does not say so.
    """
    if "root-user" in workload.loosened:
        return workload.user
    if workload.user:
        if is_root(workload.user):
            raise KernelError("root is not among what was loosened for this container", "use --user root")
        return workload.user
    return NOBODY if is_root(own_user(image) or "root") else ""


def own_user(image: Mapping[str, Any]) -> str:
    """Return whom an image says its command runs as; empty: it does not, and root is meant."""
    config = image.get("Config")
    return str(config.get("User") or "") if isinstance(config, Mapping) else ""


def tmpfs_of(user: str) -> dict[str, str]:
    """Return what is mounted in memory, so that `user` can write there if its number is known.

    The runtime gives such a mount the mode of the image's directory (runc, ``mountToRootfs``), which for
    /run lets its owner alone write; the owner is ours to choose.
    """
    form = _IDS.match(user)
    owner = f",uid={form[1]},gid={form[2] or form[1]}" if form is not None else ""
    return {"/tmp": _TMPFS, "/run": _TMPFS + owner}  # noqa: S108 - mounts of the container


def is_root(user: str) -> bool:
    """Tell whether ``user[:group]`` means root in any image."""
    name = user.partition(":")[0].strip()
    return name == "root" or (name.isdecimal() and int(name) == 0)


def restart_body(policy: str) -> dict[str, Any]:
    """Return ``RestartPolicy`` for a workload's `restart`.

    Raises:
        KernelError: It is none of them.
    """
    form = _RESTART.match(policy or "no")
    if form is None or (form[2] is not None and form[1] != "on-failure"):
        raise KernelError(
            f"{policy[:40]!r} is no restart policy", "use no, always, unless-stopped or on-failure[:N]"
        )
    return {"Name": form[1], "MaximumRetryCount": int(form[2] or 0)}


def check_volumes(workload: Workload, guarded: Iterable[str]) -> None:
    """See that no volume reaches what guards the node, wherever its symbolic links lead on this node.

    Raises:
        KernelError: One does, or is written in no form that Docker takes.
    """
    for volume in workload.volumes:
        source, _, rest = volume.partition(":")
        if not source or not rest.startswith("/"):
            raise KernelError(f"{volume[:80]!r} is no volume", "write --volume SRC:DST or SRC:DST:ro")
        if not source.startswith("/") or workload.unsafe.strip():
            continue
        try:
            real = os.path.realpath(source)
        except OSError as error:
            raise KernelError(f"volume {source[:80]!r} cannot be followed: {error.strerror}") from error
        if is_guarded(real, writable=not rest.endswith(":ro")):
            raise KernelError(
                f"volume {source[:80]!r} is {real[:80]!r} here, which guards this node or its users",
                "leave it out, or say why it must be with --allow-unsafe REASON",
            )
        for path in guarded:
            if real == path or _lies_in(real, path) or _lies_in(path, real):
                raise KernelError(
                    f"volume {source[:80]!r} reaches {path}, which guards this node",
                    "leave it out, or say why it must be with --allow-unsafe REASON",
                )


def _lies_in(path: str, folder: str) -> bool:
    return posixpath.commonpath((path, folder)) == folder


def network_body(network: str, driver: str, block: str, ipam: str) -> dict[str, Any]:
    """Return the body of ``POST /networks/create`` for the network that the broker's containers are put on.

    Raises:
        KernelError: The node's block is not known.
    """
    if not block:
        raise KernelError("the node has no block to make Docker's network with", "wait until it has joined")
    return {
        "Name": network,
        "Driver": driver,
        "CheckDuplicate": True,
        "IPAM": {"Driver": ipam, "Config": [{"Subnet": block, "Gateway": bridge_address(block)}]},
        "Labels": {NETWORK_LABEL: block},
    }


def check_network(seen: Mapping[str, Any], network: str, driver: str, block: str) -> None:
    """See that the network that is there is the one that is wanted.

    Args:
        seen: What ``GET /networks/NAME`` says.
        network: Its name.
        driver: That it must have.
        block: That it must have been made with.

    Raises:
        KernelError: It is another one.
    """
    remedy = f"remove it with: docker network rm {network}"
    if seen.get("Driver") != driver:
        raise KernelError(
            f"Docker has a network {network!r} of the driver {str(seen.get('Driver'))[:40]!r}", remedy
        )
    try:
        subnets = [str(IPv4Network(config["Subnet"])) for config in seen["IPAM"]["Config"]]
    except (KeyError, TypeError, ValueError):
        subnets = []
    if subnets != [block]:
        raise KernelError(
            f"Docker's network {network!r} was made for {', '.join(subnets) or 'no block'}, "
            f"and this node's block is {block}",
            remedy,
        )


def names_for(creation: Creation) -> tuple[str, str]:
    """Return what to call the container in Docker, and what if somebody else has that name.

    Docker knows no name of a single letter.
    """
    longer = f"{creation.name}-{creation.container[:6]}"
    return creation.name if len(creation.name) > 1 else longer, longer
