"""Sessions, tickets, turns, outbox, erasures, and the words of turns for search."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def bucket() -> sa.Column[int]:
    """Of the session: first in each key."""
    return sa.Column("bucket", sa.SmallInteger, nullable=False)


SQLITE_SEARCH = (
    "CREATE VIRTUAL TABLE turn_words USING fts5(owner, content, content='')",
    """CREATE TRIGGER turns_worded AFTER INSERT ON turns BEGIN
        INSERT INTO turn_words (rowid, owner, content)
        SELECT new.arrival, 's' || hex(s.session_id) || ' p' || hex(s.principal), new.content
        FROM sessions s WHERE s.bucket = new.bucket AND s.session_id = new.session_id;
    END""",
    """CREATE TRIGGER turns_unworded AFTER DELETE ON turns BEGIN
        INSERT INTO turn_words (turn_words, rowid, owner, content)
        SELECT 'delete', old.arrival, 's' || hex(s.session_id) || ' p' || hex(s.principal), old.content
        FROM sessions s WHERE s.bucket = old.bucket AND s.session_id = old.session_id;
    END""",
)
POSTGRESQL_SEARCH = ("CREATE INDEX turns_words ON turns USING gin (to_tsvector('simple', content))",)


def upgrade() -> None:
    """All of the first schema."""
    op.create_table(
        "sessions",
        bucket(),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text),
        sa.Column("agent_id", sa.Text),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("created_at_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("bucket", "session_id"),
    )
    op.create_index("sessions_by_principal", "sessions", ["principal", "epoch"])
    op.create_table(
        "tickets",
        bucket(),
        sa.Column("ticket_id", sa.Text, nullable=False),
        sa.Column("expires_at_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("bucket", "ticket_id"),
    )
    _create_turns()
    op.create_table(
        "outbox",
        bucket(),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("due_at_us", sa.BigInteger, nullable=False),
        sa.Column("lease_until_us", sa.BigInteger, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("uncertain", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("failing_since_us", sa.BigInteger),
        sa.Column("batch", sa.SmallInteger, nullable=False),
        sa.Column("queued", sa.Integer, nullable=False),
        sa.Column("oldest_us", sa.BigInteger, nullable=False),
        sa.Column("last_error", sa.Text),
        sa.PrimaryKeyConstraint("bucket", "session_id"),
    )
    op.create_index("outbox_due", "outbox", ["bucket", "due_at_us"])
    op.create_table(
        "erasures",
        bucket(),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("due_at_us", sa.BigInteger, nullable=False),
        sa.Column("lease_until_us", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("last_error", sa.Text),
        sa.PrimaryKeyConstraint("bucket", "principal", "session_id"),
    )
    for statement in SQLITE_SEARCH if op.get_bind().dialect.name == "sqlite" else POSTGRESQL_SEARCH:
        op.execute(sa.text(statement))


def _create_turns() -> None:
    op.create_table(
        "turns",
        bucket(),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("turn_id", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("arrival", sa.BigInteger, nullable=False),
        sa.Column("agent_id", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("created_at_us", sa.BigInteger, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("interrupted", sa.Boolean, nullable=False),
        sa.Column("channel", sa.Text),
        sa.Column("delivery", sa.SmallInteger, nullable=False),
        sa.Column("dead_reason", sa.Text),
        sa.PrimaryKeyConstraint("bucket", "session_id", "turn_id"),
    )
    op.create_index("turns_in_order", "turns", ["bucket", "session_id", "epoch", "place", "arrival"])
    op.create_index("turns_by_arrival", "turns", ["arrival"])
    dead = sa.text("delivery = 2")
    op.create_index("turns_dead", "turns", ["arrival"], sqlite_where=dead, postgresql_where=dead)
