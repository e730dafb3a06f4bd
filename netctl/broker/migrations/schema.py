"""The broker's tables as they are now, which the migrations beside this file lead to (a test compares)."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

_NAME = sa.String(63)
_ID = sa.String(32)
_KEY = sa.String(64)
_EMPTY = sa.text("X'90'")
"""An empty array of MessagePack (its specification, "array format family")."""
_ORDER = sa.text("X'94A6646972656374A3677265A576786C616EA9776972656775617264'")
"""The array direct, gre, vxlan, wireguard in MessagePack."""


def _container_reference(name: str) -> sa.Column[str]:
    # Deferred: a group of decisions is written in bulk, table by table.
    return sa.Column(
        name, _ID, sa.ForeignKey("containers.id", deferrable=True, initially="DEFERRED"), primary_key=True
    )


def _node_reference(name: str) -> sa.Column[str]:
    return sa.Column(
        name, _NAME, sa.ForeignKey("nodes.name", deferrable=True, initially="DEFERRED"), primary_key=True
    )


META = sa.Table(
    "meta",
    metadata,
    sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("supernet", sa.String(18), nullable=False),
    sa.Column("block_size", sa.Integer, nullable=False),
    sa.Column("closed", sa.LargeBinary, nullable=False),
    sa.Column("encapsulations", sa.LargeBinary, nullable=False, server_default=_ORDER),
    sa.Column("encryption", sa.String(8), nullable=False, server_default="off"),
    sa.Column("vxlan_port", sa.Integer, nullable=False, server_default="4789"),
)
ACCOUNTS = sa.Table(
    "accounts",
    metadata,
    sa.Column("name", _NAME, primary_key=True),
    sa.Column("key", _KEY, nullable=False, unique=True),
    sa.Column("created_at", sa.Float, nullable=False),
)
NODES = sa.Table(
    "nodes",
    metadata,
    sa.Column("name", _NAME, primary_key=True),
    sa.Column("index", sa.Integer, nullable=False, unique=True),
    sa.Column("block", sa.String(18), nullable=False),
    sa.Column("key", _KEY, nullable=False, unique=True),
    sa.Column("facts", sa.LargeBinary, nullable=False),
    sa.Column("draining", sa.Boolean, nullable=False),
    sa.Column("removing", sa.Boolean, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("labels", sa.LargeBinary, nullable=False, server_default=_EMPTY),
    sa.Column("account", _NAME, nullable=False, server_default=""),
    sa.Column("generation", sa.Integer, nullable=False, server_default="1"),
)
CONTAINERS = sa.Table(
    "containers",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("account", _NAME, nullable=False),
    sa.Column("name", _NAME, nullable=False),
    sa.Column(
        "node", _NAME, sa.ForeignKey("nodes.name", deferrable=True, initially="DEFERRED"), nullable=False
    ),
    sa.Column("address", sa.String(15), nullable=False, unique=True),
    sa.Column("workload", sa.LargeBinary, nullable=False),
    sa.Column("wanted", sa.String(7), nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("docker", sa.LargeBinary, nullable=True),
    sa.UniqueConstraint("account", "name"),
)
CONNECTIONS = sa.Table(
    "connections",
    metadata,
    _container_reference("source"),
    _container_reference("destination"),
    sa.Column("protocol", sa.String(4), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("created_by", _NAME, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=True),
    sa.Column("wished", sa.Boolean, nullable=False, server_default=sa.false()),
)
INVITES = sa.Table(
    "invites",
    metadata,
    sa.Column("token_hash", _KEY, primary_key=True),
    sa.Column("kind", sa.String(4), nullable=False),
    sa.Column("name", _NAME, nullable=True),
    sa.Column("expires_at", sa.Float, nullable=False),
)
HELD = sa.Table(
    "held",
    metadata,
    sa.Column("subject", sa.String(18), primary_key=True),
    sa.Column("node", _NAME, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("awaiting", sa.LargeBinary, nullable=False),
)
LEASES = sa.Table(
    "leases",
    metadata,
    sa.Column("address", sa.String(15), primary_key=True),
    sa.Column(
        "node", _NAME, sa.ForeignKey("nodes.name", deferrable=True, initially="DEFERRED"), nullable=False
    ),
)
PAIRS = sa.Table(
    "pairs",
    metadata,
    _node_reference("one"),
    _node_reference("other"),
    sa.Column("encapsulation", sa.String(9), nullable=False),
    sa.Column("mtu", sa.Integer, nullable=False),
)
ROTATIONS = sa.Table(
    "rotations",
    metadata,
    _node_reference("node"),
    sa.Column("generation", sa.Integer, nullable=False),
    sa.Column("step", sa.String(9), nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("awaiting", sa.LargeBinary, nullable=False),
)
ANSWERS = sa.Table(
    "answers",
    metadata,
    sa.Column("account", _NAME, primary_key=True),
    sa.Column("key", _KEY, primary_key=True),
    sa.Column("request", sa.LargeBinary, nullable=False),
    sa.Column("answer", sa.LargeBinary, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False, index=True),
)
