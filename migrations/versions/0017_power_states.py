"""Power states of nodes: on, suspending, off, booting; what becomes of their commands; and since when."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("power", sa.Text(), nullable=False, server_default="on"))
    op.add_column("nodes", sa.Column("power_since", sa.DateTime(timezone=True), nullable=True))
    op.add_column("nodes", sa.Column("power_kept", sa.Text(), nullable=True))
    op.add_column("nodes", sa.Column("hook_began_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("nodes", sa.Column("hook_ended_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("nodes", sa.Column("hook_retry_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("nodes", sa.Column("hook_failures", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("nodes", sa.Column("hook_error", sa.Text(), nullable=True))
    op.create_check_constraint(op.f("nodes_power_check"), "nodes", "power IN ('on', 'suspending', 'off', 'booting')")
    op.create_check_constraint(op.f("nodes_power_kept_check"), "nodes", "power_kept IN ('on', 'off')")
    op.create_table(
        "power_spells",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("node_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("began_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("state IN ('suspending', 'off', 'booting')", name=op.f("power_spells_state_check")),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("power_spells_node_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("power_spells_pkey")),
    )
    op.create_index(
        "power_spells_open_key", "power_spells", ["node_id"], unique=True, postgresql_where=sa.text("ended_at IS NULL")
    )
    op.create_index("power_spells_began_at_idx", "power_spells", ["began_at"])
    op.create_index("members_released_at_idx", "members", ["released_at"])
