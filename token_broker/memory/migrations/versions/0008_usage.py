"""What talks use: rows by talk, Azure resource and UTC day."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Makes the table."""
    op.create_table(
        "usage",
        sa.Column("bucket", sa.SmallInteger, nullable=False),
        sa.Column("talk_id", sa.Text, nullable=False),
        sa.Column("part", sa.Text, nullable=False),
        sa.Column("resource", sa.Text, nullable=False),
        sa.Column("day", sa.Integer, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("transport", sa.Text, nullable=False),
        sa.Column("dialect", sa.Text, nullable=False),
        sa.Column("started_at_us", sa.BigInteger, nullable=False),
        sa.Column("updated_at_us", sa.BigInteger, nullable=False),
        sa.Column("live_ms", sa.BigInteger),
        sa.Column("responses", sa.Integer),
        sa.Column("unmeasured", sa.Integer),
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("input_text_tokens", sa.BigInteger),
        sa.Column("input_audio_tokens", sa.BigInteger),
        sa.Column("input_image_tokens", sa.BigInteger),
        sa.Column("cached_text_tokens", sa.BigInteger),
        sa.Column("cached_audio_tokens", sa.BigInteger),
        sa.Column("cached_image_tokens", sa.BigInteger),
        sa.Column("output_text_tokens", sa.BigInteger),
        sa.Column("output_audio_tokens", sa.BigInteger),
        sa.Column("transcription_ms", sa.BigInteger),
        sa.Column("transcription_input_tokens", sa.BigInteger),
        sa.Column("transcription_output_tokens", sa.BigInteger),
        sa.Column("tools_run", sa.Integer),
        sa.Column("seen", sa.Boolean, nullable=False),
        sa.Column("complete", sa.Boolean, nullable=False),
        sa.Column("ended", sa.Text),
        sa.PrimaryKeyConstraint("bucket", "talk_id", "part", "resource", "day"),
    )
    op.create_index("usage_by_principal", "usage", ["principal", "day"])
    op.create_index("usage_by_session", "usage", ["bucket", "session_id"])
