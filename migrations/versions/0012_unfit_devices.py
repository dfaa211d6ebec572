"""Devices that a health check took out."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("devices", sa.Column("unfit_reason", sa.Text(), nullable=True))
