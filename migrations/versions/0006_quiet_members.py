"""Members whose ranks have written nothing for too long."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("members", sa.Column("quiet", sa.Boolean(), nullable=False, server_default=sa.false()))
