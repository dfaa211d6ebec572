"""Power caps: what devices can be limited to, and with which limit attempts run."""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"


def upgrade() -> None:
    op.add_column("devices", sa.Column("least_cap_w", sa.Float(), nullable=True))
    op.add_column("attempts", sa.Column("cap_w", sa.Float(), nullable=True))
    op.add_column("attempts", sa.Column("slower", sa.Float(), nullable=False, server_default="1"))
