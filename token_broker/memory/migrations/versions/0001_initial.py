"""The first schema, as `tables.py` had it then: never import from there what a later version may change."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

SQLITE_FULL_TEXT = (
    "CREATE VIRTUAL TABLE turns_fts USING fts5(owner, content, content='')",
    "INSERT INTO turns_fts (turns_fts, rank) VALUES ('automerge', 0)",
    "INSERT INTO turns_fts (turns_fts, rank) VALUES ('crisismerge', 500)",
    """CREATE TRIGGER turns_fts_delete AFTER DELETE ON turns
        WHEN EXISTS (SELECT 1 FROM turns_fts WHERE rowid = old.arrival) BEGIN
        INSERT INTO turns_fts (turns_fts, rowid, owner, content)
        VALUES ('delete', old.arrival, 's' || hex(old.session_id), old.content);
    END""",
)


def bucket() -> sa.Column[int]:
    """The session's bucket: first in each key."""
    return sa.Column("bucket", sa.SmallInteger, nullable=False)


def upgrade() -> None:
    """Makes all tables."""
    op.create_table(
        "sessions",
        bucket(),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text),
        sa.Column("agent_id", sa.Text),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("created_at_us", sa.BigInteger, nullable=False),
        sa.Column("stored_bytes", sa.BigInteger, nullable=False, server_default=sa.text("0")),
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
    op.create_table(
        "blocks",
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("since_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("kind", "id"),
    )
    for statement in SQLITE_FULL_TEXT if op.get_bind().dialect.name == "sqlite" else ():
        op.execute(sa.text(statement))
