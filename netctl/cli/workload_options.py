"""The options of `netctl run`, and the workload they make together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import attrs
import typer

from netctl.cli.options import environment, pairs
from netctl.errors import UsageError
from netctl.model import Loosening, Workload
from netctl.unsafe import check_reasoned, unsafe_options

Engine = Literal["process", "docker"]

ImageOption = Annotated[
    str | None,
    typer.Option("--image", metavar="IMAGE", help="What it is made from; implies --engine docker."),
]
EngineOption = Annotated[
    str | None, typer.Option("--engine", metavar="ENGINE", help="process or docker.", show_default="process")
]
RunUserOption = Annotated[
    str,
    typer.Option(
        "--user", "-u", metavar="UID[:GID]", show_default=False,
        help="Whom it runs as; a number or a name. With docker nothing else makes it root.",
    ),
]  # fmt: skip
WorkdirOption = Annotated[
    str | None,
    typer.Option(
        "--workdir", "-w", metavar="DIR", help="Where it starts.", show_default="/, or the image's own"
    ),
]
CapabilityOption = Annotated[
    list[str] | None,
    typer.Option(
        "--cap-add",
        metavar="CAPABILITY",
        help="One more than Docker's default set (process), or than none (docker, where only root has the "
        "use of it: add --user root); may be repeated.",
        show_default=False,
    ),
]
VolumeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--volume", "-v", metavar="SRC:DST[:ro]", show_default=False,
        help="A directory or file of the node, or a volume of its engine, at DST (docker); may be repeated.",
    ),
]  # fmt: skip
LabelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label", "-l", metavar="NAME=VALUE", show_default=False,
        help="A label its engine keeps (docker); may be repeated.",
    ),
]  # fmt: skip
RestartOption = Annotated[
    str | None,
    typer.Option(
        "--restart", metavar="POLICY", show_default="no",
        help="no, always, unless-stopped, on-failure or on-failure:N (docker).",
    ),
]  # fmt: skip
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory", "-m", metavar="SIZE", help="At most so much memory: bytes, 512m, 1g (docker).",
        show_default="512m",
    ),
]  # fmt: skip
CpusOption = Annotated[
    str | None,
    typer.Option(
        "--cpus", metavar="NUMBER", help="At most so many processors, e.g. 1.5 (docker).",
        show_default="no limit",
    ),
]  # fmt: skip
PidsOption = Annotated[
    int | None,
    typer.Option(
        "--pids-limit", metavar="N", min=1, max=2**22, help="At most so many processes and threads (docker).",
        show_default="1024",
    ),
]  # fmt: skip
WritableOption = Annotated[
    bool,
    typer.Option("--writable", help="Let it write its root file system, not only /tmp and /run (docker)."),
]
NewPrivilegesOption = Annotated[
    bool,
    typer.Option("--allow-new-privileges", help="Let its programs gain rights, as setuid ones do (docker)."),
]
SeccompOption = Annotated[
    str | None,
    typer.Option(
        "--seccomp", metavar="unconfined", help="Leave the engine's system call filter out (docker).",
        show_default=False,
    ),
]  # fmt: skip
PrivilegedOption = Annotated[
    bool, typer.Option("--privileged", help="All rights and devices (docker); needs --allow-unsafe.")
]


PidOption = Annotated[
    str | None,
    typer.Option(
        "--pid", metavar="host", help="See the node's processes (docker); needs --allow-unsafe.",
        show_default=False,
    ),
]  # fmt: skip
IpcOption = Annotated[
    str | None,
    typer.Option(
        "--ipc", metavar="host", help="Share the node's shared memory (docker); needs --allow-unsafe.",
        show_default=False,
    ),
]  # fmt: skip
UtsOption = Annotated[
    str | None,
    typer.Option(
        "--uts", metavar="host", help="Share the node's host name (docker); needs --allow-unsafe.",
        show_default=False,
    ),
]  # fmt: skip
UnsafeOption = Annotated[
    str | None,
    typer.Option(
        "--allow-unsafe", metavar="REASON", show_default=False,
        help="Why something that weakens its firewall or node is let in (docker); it is recorded.",
    ),
]  # fmt: skip
NetworkOption = Annotated[str | None, typer.Option("--network", "--net", hidden=True)]
"""Offered to say that there is no such choice."""

SMALLEST_MEMORY: Final = 6 * 2**20
"""Docker takes no less (moby, daemon/daemon_unix.go: linuxMinMemory)."""
MOST_MEMORY: Final = 2**50
MOST_CPUS: Final = 4096
_UNITS: Final = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_RESTART: Final = re.compile(r"no|always|unless-stopped|on-failure(:[1-9][0-9]{0,8})?")


@attrs.frozen
class Options:
    """What was typed; None, False and () where nothing was."""

    engine: str | None = None
    image: str | None = None
    env: Sequence[str] = ()
    user: str = ""
    workdir: str | None = None
    cap_add: Sequence[str] = ()
    volume: Sequence[str] = ()
    label: Sequence[str] = ()
    restart: str | None = None
    memory: str | None = None
    cpus: str | None = None
    pids_limit: int | None = None
    writable: bool = False
    allow_new_privileges: bool = False
    seccomp: str | None = None
    privileged: bool = False
    pid: str | None = None
    ipc: str | None = None
    uts: str | None = None
    allow_unsafe: str | None = None
    network: str | None = None


def workload(options: Options, command: Sequence[str]) -> Workload:
    """Return what `netctl run` was asked to run.

    Raises:
        UsageError: An option is of the wrong form, or of no use with the engine.
        RefusedError: Something weakens the container's firewall or its node, and no reason is given.
    """
    engine = _engine(options)
    if options.network is not None:
        raise UsageError(
            "there is no choice of networks: every container is on the overlay, and none on its node's own",
            "leave --network out, and open what it needs with `netctl connect`",
        )
    if engine == "process":
        return _process(options, command)
    made = Workload(
        "docker",
        tuple(command),
        environment(options.env),
        options.user,
        _capabilities(options.cap_add),
        # Empty: the image's own.
        "" if options.workdir is None else _directory(options.workdir),
        image=options.image or "",
        volumes=tuple(_volume(each) for each in options.volume),
        labels=tuple(_label(*each) for each in pairs(options.label, "label")),
        restart=_restart(options.restart or "no"),
        memory=0 if options.memory is None else _memory(options.memory),
        cpus=0.0 if options.cpus is None else _cpus(options.cpus),
        pids=options.pids_limit or 0,
        loosened=_loosened(options),
        unsafe=_reason(options.allow_unsafe),
    )
    check_reasoned(made)
    if options.allow_unsafe is not None and not unsafe_options(made):
        raise UsageError("nothing that was asked for needs --allow-unsafe", "leave it out")
    return made


def _engine(options: Options) -> Engine:
    named = options.engine or ("process" if options.image is None else "docker")
    if named not in ("process", "docker"):
        raise UsageError(f"there is no engine {named[:80]!r}", "the engines are process and docker")
    if named == "docker" and not options.image:
        raise UsageError("the docker engine makes a container from an image", "say which with --image IMAGE")
    return "docker" if named == "docker" else "process"


def _process(options: Options, command: Sequence[str]) -> Workload:
    nothing = Options()
    shared = {"engine", "env", "user", "workdir", "cap_add"}
    for field in attrs.fields(Options):
        if field.name not in shared and getattr(options, field.name) != getattr(nothing, field.name):
            raise UsageError(
                f"--{field.name.replace('_', '-')} is for the docker engine only",
                "leave it out, or run the container from an image (--engine docker --image IMAGE)",
            )
    if not command:
        raise UsageError(
            "nothing is said to be run", "put it behind --, as in `netctl run web -- python3 -m http.server`"
        )
    return Workload(
        "process",
        tuple(command),
        environment(options.env),
        options.user,
        _capabilities(options.cap_add),
        "/" if options.workdir is None else _directory(options.workdir),
    )


def _capabilities(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(each.upper().removeprefix("CAP_") for each in names)


def _directory(path: str) -> str:
    if not path.startswith("/"):
        raise UsageError(f"{path[:80]!r} is no absolute directory", "give --workdir from / on")
    return path


def _volume(text: str) -> str:
    source, _, rest = text.partition(":")
    destination, _, mode = rest.partition(":")
    named = re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}", source)
    if (
        not (source.startswith("/") or named)
        or not destination.startswith("/")
        or mode not in ("", "ro", "rw")
    ):
        raise UsageError(
            f"{text[:80]!r} is no volume",
            "write it as SRC:DST or SRC:DST:ro, SRC a path of the node from / on or the name of a volume",
        )
    return text.removesuffix(":rw")


def _label(name: str, value: str) -> tuple[str, str]:
    if name.startswith("netctl."):
        raise UsageError(f"the label {name[:80]!r} is one of netctl's own", "choose another name for it")
    return name, value


def _restart(text: str) -> str:
    if _RESTART.fullmatch(text) is None:
        raise UsageError(
            f"{text[:80]!r} is no restart policy",
            "the policies are no, always, unless-stopped, on-failure and on-failure:N",
        )
    return text


def _memory(text: str) -> int:
    form = re.fullmatch(r"([0-9]{1,16}(?:\.[0-9]{1,6})?)([bkmgt]?)b?", text.lower())
    size = int(float(form[1]) * _UNITS[form[2]]) if form else 0
    if not SMALLEST_MEMORY <= size <= MOST_MEMORY:
        raise UsageError(
            f"{text[:80]!r} is no amount of memory",
            "write bytes, or a number with k, m or g, as in 512m; Docker takes 6m or more",
        )
    return size


def _cpus(text: str) -> float:
    number = float(text) if re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,9})?|\.[0-9]{1,9}", text) else 0.0
    if not 0.01 <= number <= MOST_CPUS:  # noqa: PLR2004 - Docker's own least number of processors
        raise UsageError(f"{text[:80]!r} is no number of processors", "write it as in 0.5 or 2")
    return number


def _loosened(options: Options) -> tuple[Loosening, ...]:
    if options.seccomp not in (None, "unconfined"):
        raise UsageError("a filter of one's own is not offered", "give --seccomp unconfined or leave it out")
    asked: dict[Loosening, bool] = {
        "writable-root": options.writable,
        "new-privileges": options.allow_new_privileges,
        "seccomp-unconfined": options.seccomp is not None,
        "root-user": _is_root(options.user),
        "privileged": options.privileged,
        "host-pid": _is_host("--pid", options.pid),
        "host-ipc": _is_host("--ipc", options.ipc),
        "host-uts": _is_host("--uts", options.uts),
    }
    return tuple(each for each, wanted in asked.items() if wanted)


def _is_root(user: str) -> bool:
    return re.fullmatch(r"root|0+", user.partition(":")[0]) is not None


def _is_host(option: str, value: str | None) -> bool:
    if value not in (None, "host"):
        raise UsageError(f"{option} takes host and nothing else", f"give {option} host or leave it out")
    return value is not None


def _reason(text: str | None) -> str:
    if text is not None and not text.strip():
        raise UsageError("--allow-unsafe wants a reason", "say in a few words why it must be")
    return text or ""
