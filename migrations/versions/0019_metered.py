"""What meters counted of each member's devices while its attempt ran: what power is learned from."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    for name in ("metered_j", "metered_s"):
        op.add_column("members", sa.Column(name, sa.Float(), nullable=False, server_default="0"))
