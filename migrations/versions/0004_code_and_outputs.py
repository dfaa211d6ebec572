"""Archives of code, outputs of attempts."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "archives",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("blob", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("archives_pkey")),
        sa.UniqueConstraint("blob", name=op.f("archives_blob_key")),
    )
    op.create_table(
        "archive_owners",
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["digest"], ["archives.digest"], name=op.f("archive_owners_digest_fkey")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("archive_owners_user_id_fkey")),
        sa.PrimaryKeyConstraint("digest", "user_id", name=op.f("archive_owners_pkey")),
    )
    op.create_index("archive_owners_user_id_used_at_idx", "archive_owners", ["user_id", "used_at"], unique=False)
    op.create_table(
        "outputs",
        sa.Column("attempt_id", sa.Text(), nullable=False),
        sa.Column("member", sa.Integer(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("blob", sa.Text(), nullable=False),
        sa.Column("stored_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["attempt_id", "member"],
            ["members.attempt_id", "members.member"],
            name=op.f("outputs_attempt_id_member_fkey"),
        ),
        sa.PrimaryKeyConstraint("attempt_id", "member", name=op.f("outputs_pkey")),
        sa.UniqueConstraint("blob", name=op.f("outputs_blob_key")),
    )
