"""`netctl run`: a new container."""

from __future__ import annotations

from typing import Annotated

import typer

from netctl.cli import output, target
from netctl.cli import workload_options as given
from netctl.cli.options import (
    ContainerArgument,
    EnvOption,
    JsonOption,
    LabOption,
    checked,
    examples,
    pairs,
)
from netctl.model import check_name
from netctl.wire.messages import Done, RunContainer

PROCESS_TIMEOUT = 10.0
DOCKER_TIMEOUT = 300.0
"""Seconds; an image may have to be pulled first."""


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command(
        "run",
        epilog=examples(
            "netctl run web -- python3 -m http.server 8000",
            "netctl run db --node n2 --env MODE=test --user 1000:1000 -- /usr/local/bin/db --port 5432",
            "netctl run cache --image redis:7 --memory 512m --restart unless-stopped",
            "netctl run app --image debian:12 --constraint disk=ssd -v data:/data -- /data/app",
            "netctl run trace --image tools -u root --cap-add NET_RAW --allow-unsafe 'db is slow' -- tcpdump",
        ),
    )(run)


def run(
    context: typer.Context,
    name: ContainerArgument,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND",
            help="Program and arguments; put -- before them. With an image it may be left out.",
            show_default=False,
        ),
    ] = None,
    *,
    node: Annotated[
        str | None, typer.Option("--node", metavar="N", help="Where; the broker chooses otherwise.")
    ] = None,
    constraint: Annotated[
        list[str] | None,
        typer.Option(
            "--constraint", metavar="NAME=VALUE", show_default=False,
            help="Only on a node with this label (`netctl node label`); may be repeated.",
        ),
    ] = None,
    engine: given.EngineOption = None,
    image: given.ImageOption = None,
    env: EnvOption = None,
    user: given.RunUserOption = "",
    workdir: given.WorkdirOption = None,
    volume: given.VolumeOption = None,
    label: given.LabelOption = None,
    restart: given.RestartOption = None,
    memory: given.MemoryOption = None,
    cpus: given.CpusOption = None,
    pids_limit: given.PidsOption = None,
    cap_add: given.CapabilityOption = None,
    writable: given.WritableOption = False,
    allow_new_privileges: given.NewPrivilegesOption = False,
    seccomp: given.SeccompOption = None,
    privileged: given.PrivilegedOption = False,
    pid: given.PidOption = None,
    ipc: given.IpcOption = None,
    uts: given.UtsOption = None,
    allow_unsafe: given.UnsafeOption = None,
    network: given.NetworkOption = None,
    lab: LabOption = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", metavar="SECONDS", min=0.0, max=3600.0,
            show_default="10, or 300 from an image, which may have to be pulled",
            help="How long to wait for the nodes; after that the exit status is 3.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Start a container; nothing passes to or from other containers until they are connected.

    Returns when its command runs. One that ends stays listed with its exit status.

    From an image, defaults are hard: no capabilities, no new privileges, the engine's system call filter, a
    read-only root file system with a tmpfs on /tmp and /run, limits on processes and memory, not root where
    the image allows. Each has an option that loosens it; `netctl inspect` shows what was loosened.
    NET_ADMIN, NET_RAW and other far-reaching capabilities, --privileged, the host's namespaces, and the
    engine's socket as a volume are refused without --allow-unsafe REASON.
    """
    workload = given.workload(
        given.Options(
            engine=engine,
            image=image,
            env=env or (),
            user=user,
            workdir=workdir,
            cap_add=cap_add or (),
            volume=volume or (),
            label=label or (),
            restart=restart,
            memory=memory,
            cpus=cpus,
            pids_limit=pids_limit,
            writable=writable,
            allow_new_privileges=allow_new_privileges,
            seccomp=seccomp,
            privileged=privileged,
            pid=pid,
            ipc=ipc,
            uts=uts,
            allow_unsafe=allow_unsafe,
            network=network,
        ),
        command or (),
    )
    if timeout is None:
        timeout = PROCESS_TIMEOUT if workload.engine == "process" else DOCKER_TIMEOUT
    message = RunContainer(
        checked(check_name, name), workload, node, timeout, constraints=pairs(constraint, "constraint")
    )
    done = target.ask(context, lab, message, Done, f"{name} to run", shows_progress=not as_json)
    output.show_done(done, as_json=as_json)
