"""Which memory the agent of a node has: one with another does not know what was started there."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("state_folder", sa.Text(), nullable=True))
