"""One table per record type, the store's own row, and the answers to idempotency keys."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "meta",
        sa.Column("id", sa.Integer, sa.CheckConstraint("id = 1"), primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("supernet", sa.String(18), nullable=False),
        sa.Column("block_size", sa.Integer, nullable=False),
        sa.Column("closed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "accounts",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("key", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "nodes",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("index", sa.Integer, nullable=False, unique=True),
        sa.Column("block", sa.String(18), nullable=False),
        sa.Column("key", sa.String(64), nullable=False, unique=True),
        sa.Column("facts", sa.LargeBinary, nullable=False),
        sa.Column("draining", sa.Boolean, nullable=False),
        sa.Column("removing", sa.Boolean, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "containers",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("account", sa.String(63), nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column(
            "node",
            sa.String(63),
            sa.ForeignKey("nodes.name", deferrable=True, initially="DEFERRED"),
            nullable=False,
        ),
        sa.Column("address", sa.String(15), nullable=False, unique=True),
        sa.Column("workload", sa.LargeBinary, nullable=False),
        sa.Column("wanted", sa.String(7), nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("account", "name"),
    )
    op.create_table(
        "connections",
        *(
            sa.Column(
                end,
                sa.String(32),
                sa.ForeignKey("containers.id", deferrable=True, initially="DEFERRED"),
                primary_key=True,
            )
            for end in ("source", "destination")
        ),
        sa.Column("protocol", sa.String(4), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("created_by", sa.String(63), nullable=False),
        sa.Column("expires_at", sa.Float, nullable=True),
    )
    op.create_table(
        "invites",
        sa.Column("token_hash", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(4), nullable=False),
        sa.Column("name", sa.String(63), nullable=True),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    op.create_table(
        "held",
        sa.Column("subject", sa.String(18), primary_key=True),
        sa.Column("node", sa.String(63), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("awaiting", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "answers",
        sa.Column("account", sa.String(63), primary_key=True),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("request", sa.LargeBinary, nullable=False),
        sa.Column("answer", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False, index=True),
    )
