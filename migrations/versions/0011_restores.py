"""Epochs that a restore from a backup must not give out again."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.add_column("leadership", sa.Column("least_epoch", sa.Integer(), nullable=False, server_default=sa.text("0")))
