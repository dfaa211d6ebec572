"""Checkpoints that the service keeps for nodes without a shared folder."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("checkpoint_stored", sa.Boolean(), nullable=False, server_default="false"))
    op.create_table(
        "checkpoint_parts",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("world_size", sa.Integer(), nullable=False),
        sa.Column("files", JSONB(), nullable=False),
        sa.Column("arrived", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "epoch", "step", "rank", name=op.f("checkpoint_parts_pkey")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("checkpoint_parts_job_id_fkey")),
        sa.CheckConstraint("rank < world_size", name=op.f("checkpoint_parts_rank_check")),
    )
    op.create_table(
        "checkpoint_files",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("blob", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "digest", name=op.f("checkpoint_files_pkey")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("checkpoint_files_job_id_fkey")),
        sa.UniqueConstraint("blob", name=op.f("checkpoint_files_blob_key")),
    )
