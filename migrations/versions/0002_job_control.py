"""Arrays, dependencies, retries, hold."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "arrays",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("limit", sa.Integer(), nullable=True),
        sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("arrays_user_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("arrays_pkey")),
    )
    op.create_table(
        "dependencies",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.Text(), nullable=False),
        sa.Column("on_success", sa.Boolean(), nullable=False),
        sa.Column("met", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("dependencies_job_id_fkey")),
        sa.ForeignKeyConstraint(["parent_id"], ["jobs.id"], name=op.f("dependencies_parent_id_fkey")),
        sa.PrimaryKeyConstraint("job_id", "parent_id", name=op.f("dependencies_pkey")),
    )
    op.create_index(
        "dependencies_open_idx", "dependencies", ["parent_id"], unique=False, postgresql_where=sa.text("NOT met")
    )

    op.add_column("jobs", sa.Column("array_id", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("array_index", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("origin_id", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("not_before", sa.DateTime(timezone=True), nullable=True))
    op.create_foreign_key(op.f("jobs_array_id_fkey"), "jobs", "arrays", ["array_id"], ["id"])
    op.create_foreign_key(op.f("jobs_origin_id_fkey"), "jobs", "jobs", ["origin_id"], ["id"])
    # Before this revision nobody held a job, and what was repeated had been lost with a node.
    op.add_column("jobs", sa.Column("hold", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("jobs", sa.Column("losses", sa.Integer(), nullable=False, server_default="0"))
    op.execute("UPDATE jobs SET losses = GREATEST(epoch - 1, 0)")
    op.add_column("jobs", sa.Column("faults", sa.Integer(), nullable=False, server_default="0"))
    op.alter_column("jobs", "hold", server_default=None)
    op.alter_column("jobs", "losses", server_default=None)
    op.alter_column("jobs", "faults", server_default=None)
    op.create_index(
        "jobs_array_key",
        "jobs",
        ["array_id", "array_index"],
        unique=True,
        postgresql_where=sa.text("array_id IS NOT NULL"),
    )
    op.create_index(
        "jobs_array_live_idx",
        "jobs",
        ["array_id"],
        unique=False,
        postgresql_where=sa.text("array_id IS NOT NULL AND state IN ('starting', 'running')"),
    )

    # An answer may name many jobs now.
    op.add_column("idempotency", sa.Column("ids", postgresql.ARRAY(sa.Text()), nullable=True))
    op.execute("UPDATE idempotency SET ids = ARRAY[job_id]")
    op.alter_column("idempotency", "ids", nullable=False)
    op.drop_column("idempotency", "job_id")
