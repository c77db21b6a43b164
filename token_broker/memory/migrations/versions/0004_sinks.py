"""Several sinks: what is pending and dead for each, what each calls our users, and erasures that are followed.

What waited before waits for the sink `zep`, which was the only one.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def bucket() -> sa.Column[int]:
    """The session's bucket: first in each key."""
    return sa.Column("bucket", sa.SmallInteger, nullable=False)


def text(name: str) -> sa.Column[str]:
    """A text that every row has."""
    return sa.Column(name, sa.Text, nullable=False)


def upgrade() -> None:
    """Adds the columns and tables, and moves what waits."""
    # Bits of the one state that a turn had (0 queued, 2 dead), and rows of the reasons.
    for name in ("pending", "dead"):
        op.add_column("turns", sa.Column(name, sa.SmallInteger, nullable=False, server_default=sa.text("0")))
    op.create_table(
        "dead_letters",
        sa.Column("bucket", sa.SmallInteger, nullable=False),
        text("session_id"),
        text("turn_id"),
        text("sink"),
        sa.Column("arrival", sa.BigInteger, nullable=False),
        sa.Column("reason", sa.Text),
        sa.PrimaryKeyConstraint("bucket", "session_id", "turn_id", "sink"),
    )
    op.create_index("dead_letters_by_arrival", "dead_letters", ["arrival"])
    op.execute("UPDATE turns SET pending = 1 WHERE delivery = 0")
    op.execute("UPDATE turns SET dead = 1 WHERE delivery = 2")
    op.execute(
        "INSERT INTO dead_letters SELECT bucket, session_id, turn_id, 'zep', arrival, dead_reason FROM turns "
        "WHERE delivery = 2"
    )
    op.drop_index("turns_dead", "turns")
    for name in ("delivery", "dead_reason"):
        op.drop_column("turns", name)
    _remake(
        "outbox",
        "bucket, session_id, due_at_us, lease_until_us, fence, uncertain, attempts, failures, failing_since_us, batch, "
        "queued, oldest_us, last_error",
        {"sink": "'zep'", "generation": "0"},
        bucket(),
        text("session_id"),
        text("sink"),
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
        sa.Column("flight", sa.Text),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("bucket", "session_id", "sink"),
    )
    op.create_index("outbox_due", "outbox", ["sink", "bucket", "due_at_us"])
    op.create_table(
        "notices",
        bucket(),
        text("session_id"),
        text("sink"),
        sa.Column("arrival", sa.BigInteger, nullable=False),
        text("kind"),
        text("body"),
        sa.PrimaryKeyConstraint("bucket", "session_id", "sink", "arrival"),
    )
    _remake(
        "erasures",
        "bucket, principal, session_id, due_at_us, lease_until_us, failures, last_error",
        {"sink": "'zep'", "before_us": "due_at_us"},
        bucket(),
        text("sink"),
        text("principal"),
        text("session_id"),
        sa.Column("user_id", sa.Text),
        sa.Column("agent_id", sa.Text),
        sa.Column("before_us", sa.BigInteger, nullable=False),
        sa.Column("due_at_us", sa.BigInteger, nullable=False),
        sa.Column("lease_until_us", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("last_error", sa.Text),
        sa.Column("task", sa.Text),
        sa.PrimaryKeyConstraint("bucket", "sink", "principal", "session_id"),
    )
    op.create_table(
        "sink_ids",
        bucket(),
        text("sink"),
        text("kind"),
        text("key"),
        sa.Column("sink_key", sa.Text),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("bucket", "sink", "kind", "key"),
    )
    op.create_table(
        "sink_rests",
        text("sink"),
        sa.Column("until_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("sink"),
    )
    op.create_table(
        "erased_users",
        text("kind"),
        text("id"),
        sa.Column("before_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("kind", "id"),
    )
    op.create_table(
        "recent_erasures",
        bucket(),
        text("session_id"),
        text("principal"),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("bucket", "session_id"),
    )
    op.create_index("recent_erasures_by_time", "recent_erasures", ["at_us"])


def _remake(table: str, kept: str, added: dict[str, str], *columns: sa.schema.SchemaItem) -> None:
    """Makes a table anew with its rows: neither database changes a primary key in place."""
    op.execute(f"CREATE TABLE before_sinks AS SELECT * FROM {table}")  # noqa: S608  # our own names
    op.drop_table(table)
    op.create_table(table, *columns)
    names, values = ", ".join([kept, *added]), ", ".join([kept, *added.values()])
    op.execute(f"INSERT INTO {table} ({names}) SELECT {values} FROM before_sinks")  # noqa: S608
    op.drop_table("before_sinks")
