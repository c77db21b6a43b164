"""What the broker tells a call's page, so that any replica can; and which answers of a call were counted."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Makes both tables, and adds until when a page reads a call's events at a replica that does not hold it."""
    op.add_column("calls", sa.Column("read_until_us", sa.BigInteger))
    op.create_table(
        "call_events",
        sa.Column("bucket", sa.SmallInteger, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("call_id", sa.Text, nullable=False),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("told_at_us", sa.BigInteger, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("bucket", "session_id", "call_id", "stream", "number"),
    )
    op.create_table(
        "usage_answers",
        sa.Column("bucket", sa.SmallInteger, nullable=False),
        sa.Column("talk_id", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("part", sa.Text, nullable=False),
        sa.Column("counted_at_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("bucket", "talk_id", "answer"),
    )
    op.create_index("usage_answers_by_age", "usage_answers", ["counted_at_us"])
