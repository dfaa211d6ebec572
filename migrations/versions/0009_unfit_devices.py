"""Devices that a health check took out."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("devices", sa.Column("unfit_reason", sa.Text(), nullable=True))
