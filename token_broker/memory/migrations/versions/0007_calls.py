"""WebRTC calls, each held by one replica's lease."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "calls",
        sa.Column("call_key", sa.Text, primary_key=True),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("talk_id", sa.Text, nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text),
        sa.Column("plan_epoch", sa.BigInteger, nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("limit_key", sa.Text, nullable=False),
        sa.Column("resource", sa.Text, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("call_id", sa.Text, nullable=False),
        sa.Column("transport", sa.Text, nullable=False),
        sa.Column("created_at_us", sa.BigInteger, nullable=False),
        sa.Column("expires_at_us", sa.BigInteger, nullable=False),
        sa.Column("state", sa.SmallInteger, nullable=False),
        sa.Column("ending", sa.Text),
        sa.Column("holder", sa.Text),
        sa.Column("lease_until_us", sa.BigInteger, nullable=False),
        sa.Column("lease_epoch", sa.BigInteger, nullable=False),
    )
    op.create_index("calls_by_lease", "calls", ["state", "lease_until_us"])
    op.create_index("calls_by_session", "calls", ["session_id"])
    op.create_index("calls_by_name", "calls", ["call_id"])
