"""The folded words of turns, for recall on both databases, and summaries of talks; SQLite's full text goes."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Makes the tables. Turns that are stored get their words later, in small steps beside the commits."""
    op.create_table(
        "turn_words",
        sa.Column("bucket", sa.SmallInteger, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("arrival", sa.BigInteger, nullable=False),
        sa.Column("words", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("bucket", "session_id", "arrival"),
        sqlite_with_rowid=False,
    )
    op.add_column("turns", sa.Column("folding", sa.SmallInteger))
    unfolded = sa.text("folding IS NULL")
    op.create_index("turns_unfolded", "turns", ["arrival"], sqlite_where=unfolded, postgresql_where=unfolded)
    if op.get_bind().dialect.name == "sqlite":
        op.execute(sa.text("DROP TRIGGER turns_fts_delete"))
        op.execute(sa.text("DROP TABLE turns_fts"))
    op.create_table(
        "summaries",
        sa.Column("bucket", sa.SmallInteger, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("talk_id", sa.Text, nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("due_at_us", sa.BigInteger),
        sa.Column("attempts", sa.SmallInteger, nullable=False),
        sa.Column("made_at_us", sa.BigInteger),
        sa.Column("summary", sa.Text),
        sa.PrimaryKeyConstraint("bucket", "session_id", "talk_id"),
    )
    op.create_index("summaries_due", "summaries", ["due_at_us"])
