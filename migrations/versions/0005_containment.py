"""How an agent keeps the processes of an attempt together."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("containment", sa.Text(), nullable=True))
