"""What pairs of nodes use, nodes' keys that are being replaced, and what the operator allows of tunnels."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def _node(name: str) -> sa.Column[str]:
    reference = sa.ForeignKey("nodes.name", deferrable=True, initially="DEFERRED")
    return sa.Column(name, sa.String(63), reference, primary_key=True)


def upgrade() -> None:
    """Add what was not there, with what was so before: SQLite adds columns in place, no table is copied."""
    # The array direct, gre, vxlan, wireguard in MessagePack.
    order = sa.text("X'94A6646972656374A3677265A576786C616EA9776972656775617264'")
    op.add_column("meta", sa.Column("encapsulations", sa.LargeBinary, nullable=False, server_default=order))
    op.add_column("meta", sa.Column("encryption", sa.String(8), nullable=False, server_default="off"))
    op.add_column("meta", sa.Column("vxlan_port", sa.Integer, nullable=False, server_default="4789"))
    op.add_column("nodes", sa.Column("generation", sa.Integer, nullable=False, server_default="1"))
    op.create_table(
        "pairs",
        _node("one"),
        _node("other"),
        sa.Column("encapsulation", sa.String(9), nullable=False),
        sa.Column("mtu", sa.Integer, nullable=False),
    )
    op.create_table(
        "rotations",
        _node("node"),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("step", sa.String(9), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("awaiting", sa.LargeBinary, nullable=False),
    )
