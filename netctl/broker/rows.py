"""Records as rows of the store's tables, and back: what is more than a column is MessagePack. No SQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import attrs
import msgspec

from netctl.broker.snapshot import DEFAULT_ORDER, Connection, Container, Node, Pair, Rotation
from netctl.model import (
    VXLAN_PORT,
    DockerContainer,
    Encapsulation,
    Encryption,
    NodeFacts,
    Port,
    TransportProtocol,
    Wanted,
    Workload,
)

T = TypeVar("T")


@attrs.frozen
class Meta:
    """What the store says of itself; see `netctl.broker.snapshot.Snapshot`."""

    epoch: int
    revision: int
    supernet: str
    block_size: int
    closed: tuple[str, ...] = ()
    encapsulations: tuple[Encapsulation, ...] = DEFAULT_ORDER
    encryption: Encryption = "off"
    vxlan_port: int = VXLAN_PORT


def pack(value: object) -> bytes:
    """Return a value as it lies in a column of bytes."""
    return msgspec.msgpack.encode(value)


def unpack(data: bytes, kind: type[T]) -> T:
    """Read what `pack` wrote.

    Raises:
        msgspec.MsgspecError: It is not of that kind.
    """
    return msgspec.msgpack.decode(data, type=kind)


def fields(record: attrs.AttrsInstance) -> dict[str, Any]:
    """Return a record whose fields are columns as they are."""
    return {field.name: getattr(record, field.name) for field in attrs.fields(type(record))}


def meta_row(meta: Meta) -> dict[str, Any]:
    """Return the row of a meta."""
    return fields(meta) | {"closed": pack(meta.closed), "encapsulations": pack(meta.encapsulations)}


def meta_of(row: Mapping[str, Any]) -> Meta:
    """Return the meta of a row."""
    return Meta(
        **dict(row)
        | {
            "closed": unpack(row["closed"], tuple[str, ...]),
            "encapsulations": unpack(row["encapsulations"], tuple[Encapsulation, ...]),
            "encryption": msgspec.convert(row["encryption"], Encryption),
        }
    )


def container_row(record: Container) -> dict[str, Any]:
    """Return the row of a container."""
    docker = pack(record.docker) if record.docker is not None else None
    return fields(record) | {"workload": pack(record.workload), "docker": docker}


def container_of(row: Mapping[str, Any]) -> Container:
    """Return the container of a row."""
    return Container(
        **dict(row)
        | {
            "workload": unpack(row["workload"], Workload),
            "wanted": msgspec.convert(row["wanted"], Wanted),
            "docker": unpack(row["docker"], DockerContainer) if row["docker"] is not None else None,
        }
    )


def node_row(record: Node) -> dict[str, Any]:
    """Return the row of a node."""
    return fields(record) | {"facts": pack(record.facts), "labels": pack(record.labels)}


def node_of(row: Mapping[str, Any]) -> Node:
    """Return the node of a row."""
    return Node(
        **dict(row)
        | {
            "facts": unpack(row["facts"], NodeFacts),
            "labels": unpack(row["labels"], tuple[tuple[str, str], ...]),
        }
    )


def connection_row(record: Connection) -> dict[str, Any]:
    """Return the row of a connection."""
    row = fields(record)
    port: Port = row.pop("port")
    return row | {"protocol": port.protocol, "number": port.number}


def connection_of(row: Mapping[str, Any]) -> Connection:
    """Return the connection of a row."""
    values = dict(row)
    protocol = msgspec.convert(values.pop("protocol"), TransportProtocol)
    return Connection(port=Port(protocol, values.pop("number")), **values)


def pair_of(row: Mapping[str, Any]) -> Pair:
    """Return the pair of a row."""
    return Pair(**dict(row) | {"encapsulation": msgspec.convert(row["encapsulation"], Encapsulation)})


def rotation_row(record: Rotation) -> dict[str, Any]:
    """Return the row of a rotation."""
    return fields(record) | {"awaiting": pack(sorted(record.awaiting))}


def rotation_of(row: Mapping[str, Any]) -> Rotation:
    """Return the rotation of a row."""
    return Rotation(
        **dict(row)
        | {
            "step": msgspec.convert(row["step"], Literal["making", "switching", "spreading"]),
            "awaiting": frozenset(unpack(row["awaiting"], list[str])),
        }
    )
