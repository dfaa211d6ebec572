"""What runs containers on a node."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("container_runtime", sa.Text(), nullable=True))
    op.add_column("nodes", sa.Column("container_fault", sa.Text(), nullable=True))
