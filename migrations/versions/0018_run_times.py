"""What run times are learned from: which work a job is, and how fast its attempt gets on."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("signature", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("pace", postgresql.JSONB(none_as_null=True), nullable=True))
    op.create_index(
        "jobs_past_runs_idx",
        "jobs",
        ["user_id", "signature", "ended_at"],
        postgresql_where=sa.text("state = 'succeeded' AND signature IS NOT NULL"),
    )
    op.create_index(
        "jobs_past_estimates_idx",
        "jobs",
        ["user_id", "ended_at"],
        postgresql_where=sa.text("state = 'succeeded' AND (spec ->> 'expected_run_s') IS NOT NULL"),
    )
