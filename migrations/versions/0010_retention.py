"""Old jobs lose their output, and are forgotten in the end."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("trimmed", sa.Boolean(), nullable=False, server_default="false"))
    op.create_index(
        "jobs_ended_at_idx", "jobs", ["ended_at"], unique=False, postgresql_where=sa.text("ended_at IS NOT NULL")
    )
