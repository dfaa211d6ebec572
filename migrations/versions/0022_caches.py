"""What nodes keep of code and data, and how fast they fetched it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0022"
down_revision = "0021"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("links", JSONB(), nullable=True))
    op.create_table(
        "node_cache",
        sa.Column("node_id", sa.Text(), sa.ForeignKey("nodes.id", name="node_cache_node_id_fkey"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "kind", "key", name="node_cache_pkey"),
    )
    op.create_index("node_cache_key_idx", "node_cache", ["key"])
