"""How fast kinds of devices are beside each other, learned from works that ran on several."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    op.create_table(
        "kind_speeds",
        sa.Column("kind", sa.Text(), primary_key=True),
        sa.Column("log_speed", sa.Float(), nullable=False),
        sa.Column("works", sa.Integer(), nullable=False),
    )
