"""Docker's own containers, addresses on lease for them, connections their labels ask for; nodes' labels."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what was not there, as nothing of it: SQLite adds columns in place, so no table is copied."""
    # X'90' is an empty array of MessagePack.
    op.add_column(
        "nodes", sa.Column("labels", sa.LargeBinary, nullable=False, server_default=sa.text("X'90'"))
    )
    op.add_column("nodes", sa.Column("account", sa.String(63), nullable=False, server_default=""))
    op.add_column("containers", sa.Column("docker", sa.LargeBinary, nullable=True))
    op.add_column("connections", sa.Column("wished", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_table(
        "leases",
        sa.Column("address", sa.String(15), primary_key=True),
        sa.Column(
            "node",
            sa.String(63),
            sa.ForeignKey("nodes.name", deferrable=True, initially="DEFERRED"),
            nullable=False,
        ),
    )
