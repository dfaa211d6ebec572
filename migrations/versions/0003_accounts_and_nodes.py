"""Join tokens, cordon and drain; tokens get an id, so that they can be listed and revoked."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("tokens", sa.Column("id", sa.Text(), nullable=True))
    # As `service.auth.token_id` makes it.
    op.execute("UPDATE tokens SET id = 'token-' || encode(substring(hash FROM 1 FOR 8), 'hex')")
    op.alter_column("tokens", "id", nullable=False)
    op.create_unique_constraint(op.f("tokens_id_key"), "tokens", ["id"])
    op.add_column("tokens", sa.Column("ending", sa.Text(), nullable=True))
    op.create_table(
        "join_tokens",
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("node_name", sa.Text(), nullable=True),
        sa.Column("replace", sa.Boolean(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("used_by", sa.Text(), nullable=True),
        sa.Column("used_hash", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint("num_nulls(used_at, used_by, used_hash) IN (0, 3)", name=op.f("join_tokens_used_check")),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name=op.f("join_tokens_created_by_fkey")),
        sa.PrimaryKeyConstraint("hash", name=op.f("join_tokens_pkey")),
    )
    op.add_column("nodes", sa.Column("cordoned", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.alter_column("nodes", "cordoned", server_default=None)
    op.add_column("nodes", sa.Column("drain_at", sa.DateTime(timezone=True), nullable=True))
    op.create_check_constraint(op.f("nodes_drain_check"), "nodes", "drain_at IS NULL OR cordoned")
