"""Numbers of agents' reports, nodes that are closed by the service itself, alarms."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("closed_because", sa.Text(), nullable=True))
    op.add_column("nodes", sa.Column("report_seq", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("nodes", sa.Column("samples_taken", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_check_constraint(op.f("nodes_closed_because_check"), "nodes", "closed_because IS NULL OR cordoned")
    op.create_table(
        "alarms",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("raised_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("kind", "subject", name=op.f("alarms_pkey")),
    )
