"""The latest checkpoint of each job."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("checkpoint_epoch", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("checkpoint_step", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("checkpoint_at", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(
        op.f("jobs_checkpoint_check"), "jobs", "num_nulls(checkpoint_epoch, checkpoint_step, checkpoint_at) IN (0, 3)"
    )
    op.create_check_constraint(op.f("jobs_checkpoint_epoch_check"), "jobs", "checkpoint_epoch <= epoch")
