"""Calls of tools: each is claimed before it is made, and its output kept for a while."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "tool_claims",
        sa.Column("bucket", sa.SmallInteger, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("talk_id", sa.Text, nullable=False),
        sa.Column("azure_session", sa.Text, nullable=False),
        sa.Column("call_id", sa.Text, nullable=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("claimed_at_us", sa.BigInteger, nullable=False),
        sa.Column("until_us", sa.BigInteger, nullable=False),
        sa.Column("ok", sa.Boolean),
        sa.Column("output", sa.Text),
        sa.PrimaryKeyConstraint("bucket", "session_id", "talk_id", "azure_session", "call_id"),
    )
    op.create_index("tool_claims_by_age", "tool_claims", ["claimed_at_us"])
