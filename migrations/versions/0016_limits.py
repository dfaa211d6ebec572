"""What the kernel limits on a node, as its agent tells."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("limits", postgresql.JSONB(), nullable=True))
