"""What commands print: tables for people, JSON with stable keys for programs, errors as one line."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs
import msgspec
import typer

from netctl.errors import NetctlError
from netctl.model import DockerContainer
from netctl.wire.messages import (
    ConnectionView,
    ContainerDetail,
    ContainerView,
    Done,
    NodeDetail,
    NodeView,
    PathView,
    WishView,
)

Row = Mapping[str, Any]
DOCKER_ONLY = (
    "image", "volumes", "labels", "restart", "limits", "loosened", "unsafe", "docker", "wishes",
)  # fmt: skip
"""Keys of a container that say nothing where it is a process; JSON has them nevertheless."""
DOCKERS_OWN = (
    "command", "env", "user", "cap_add", "workdir", "volumes", "labels", "restart", "limits", "loosened",
    "unsafe",
)  # fmt: skip
"""Keys that say nothing of a container that Docker's own user made: `docker inspect` knows all of it."""
MOMENTS = ("created_at", "last_seen")
"""Keys whose value is a time, in seconds since 1970."""


def printable(text: str) -> str:
    """Return `text` as one line without control characters: what others wrote must not drive a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def to_json(value: Any) -> str:
    """Return `value`, of our own classes or plain, as JSON on one line."""
    return msgspec.json.encode(value).decode()


def node_row(node: NodeView) -> Row:
    """Return a node as JSON has it."""
    return attrs.asdict(node)


def container_row(container: ContainerView) -> Row:
    """Return a container as JSON has it."""
    return attrs.asdict(container)


def connection_row(connection: ConnectionView) -> Row:
    """Return a connection as JSON has it: one object for each record."""
    return {
        "from": connection.source,
        "to": connection.destination,
        "ports": [connection.port],
        "state": connection.state,
        "revision": connection.revision,
    }


def node_detail_row(detail: NodeDetail) -> Row:
    """Return everything about a node as JSON has it."""
    return {
        **node_row(detail.node),
        "facts": detail.facts,
        "peers": dict(detail.peers),
        "errors": detail.errors,
        "last_seen": detail.last_seen,
        "labels": dict(detail.labels),
        "account": detail.account,
        "mtu": detail.mtu,
        "paths": detail.paths,
    }


def container_detail_row(detail: ContainerDetail) -> Row:
    """Return everything about a container as JSON has it."""
    workload = detail.workload
    return {
        **container_row(detail.container),
        "id": detail.id,
        "account": detail.account,
        "command": workload.argv,
        "env": dict(workload.env),
        "user": workload.user,
        "cap_add": workload.cap_add,
        "workdir": workload.workdir,
        "image": workload.image,
        "volumes": workload.volumes,
        "labels": dict(workload.labels),
        "restart": workload.restart,
        "limits": {"memory": workload.memory, "cpus": workload.cpus, "pids": workload.pids},
        "loosened": workload.loosened,
        "unsafe": workload.unsafe,
        "docker": _docker_row(detail.docker),
        "wishes": detail.wishes,
        "wanted": detail.wanted,
        "generation": detail.generation,
        "created_at": detail.created_at,
        "message": detail.message,
        "connections": [connection_row(each) for each in detail.connections],
    }


def _docker_row(docker: DockerContainer | None) -> Row | None:
    """Return what Docker calls a container that its own user made; its image and wishes stand elsewhere."""
    if docker is None:
        return None
    return {"id": docker.id, "name": docker.name, "project": docker.project, "service": docker.service}


def show_done(done: Done, *, as_json: bool) -> None:
    """Print what a command that changed something came to."""
    if as_json:
        typer.echo(to_json({"revision": done.revision, "nodes": done.nodes, "message": done.message}))
    elif done.message:
        typer.echo(printable(done.message))


def show_listing(rows: Sequence[Row], columns: Sequence[str], *, as_json: bool, nothing: str) -> None:
    """Print rows as a table of `columns`, or all their keys as a JSON array."""
    if as_json:
        typer.echo(to_json(list(rows)))
    elif not rows:
        typer.echo(nothing, err=True)
    else:
        show_table(rows, columns)


def show_record(row: Row, *, as_json: bool) -> None:
    """Print one record, a line for each key."""
    if as_json:
        typer.echo(to_json(row))
        return
    width = max(len(key) for key in row)
    for key, value in row.items():
        # Each wish and connection has a line of its own: several in one could not be told apart.
        each_told = _LINES.get(key) if isinstance(value, list | tuple) else None
        lines = [_told(key, value)] if each_told is None else [each_told(each) for each in value]
        for number, line in enumerate(lines or ["-"]):
            typer.echo(f"{(key if number == 0 else '').ljust(width)}  {line}")


def _wish_line(wish: WishView) -> str:
    """Return what a label asks for, and what came of it, as a person reads it best."""
    asked = f"{wish.destination}:{wish.port}"
    return printable(f"{asked} granted" if wish.granted else f"{asked} not granted: {wish.reason}")


def _connection_line(connection: Row) -> str:
    ports = ", ".join(connection["ports"])
    return printable(f"{connection['from']} -> {connection['to']} {ports} {connection['state']}")


def _path_line(path: PathView) -> str:
    """Return a way to a peer as a person reads it best."""
    chosen = " (chosen)" if path.chosen else ""
    return printable(f"{path.destination} by {path.encapsulation}{chosen}: {path_told(path)}")


def path_told(path: PathView) -> str:
    """Return what is known of a way: what fits through it, how long it takes, and what it loses."""
    if path.state == "unknown":
        return "not probed yet"
    if path.state == "down":
        return "down"
    rtt = f"{path.rtt_ms:.2f} ms" if path.rtt_ms else "-"
    return f"up, MTU {path.mtu or '-'}, {rtt}, {path.loss:.0%} lost"


_LINES: Mapping[str, Callable[[Any], str]] = {
    "wishes": _wish_line,
    "connections": _connection_line,
    "paths": _path_line,
}


def _told(key: str, value: Any) -> str:
    """Return a value as a person reads it best."""
    if key in MOMENTS and value:
        return datetime.fromtimestamp(value, tz=UTC).astimezone().isoformat(sep=" ", timespec="seconds")
    if key == "command":
        return printable(shlex.join(value)) or "-"
    if key == "limits":
        return " ".join(f"{name}={each or 'default'}" for name, each in value.items())
    return _cell(value)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, str | int):
        return printable(str(value))
    if isinstance(value, float):
        return f"{value:.1f}"
    if attrs.has(type(value)):
        return _cell(attrs.asdict(value))
    if isinstance(value, Mapping):
        return " ".join(f"{printable(str(name))}={_cell(each)}" for name, each in value.items()) or "-"
    return ", ".join(_cell(each) for each in value) or "-"


def show_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Print rows as a table of `columns`."""
    # Imported here since most commands print no table and should start fast.
    from rich.console import Console  # noqa: PLC0415 - see above
    from rich.table import Table  # noqa: PLC0415 - the same
    from rich.text import Text  # noqa: PLC0415 - the same

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " ").upper(), no_wrap=True)
    for row in rows:
        # Text, since a plain string would be searched for markup.
        table.add_row(*(Text(_cell(row[column])) for column in columns))
    # A narrow terminal wraps lines, and a program reads whole ones: nothing is cut off at some width.
    Console(file=sys.stdout, width=10_000).print(table)


def show_error(error: NetctlError, *, as_json: bool) -> None:
    """Print an error on stderr, on one line."""
    if as_json:
        record = {
            "code": error.code, "message": error.message, "remedy": error.remedy, "nodes": error.nodes,
        }  # fmt: skip
        typer.echo(to_json(record), err=True)
        return
    text = "; ".join(part for part in (error.message, error.remedy) if part)
    typer.echo(f"error: {printable(text)}", err=True)
