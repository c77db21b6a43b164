"""How many bytes each session has stored, so that none grows without bound."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_FIELDS = "bucket, session_id, principal, user_id, agent_id, epoch, created_at_us"
_TEXTS = ("content", "turn_id", "session_id", "agent_id", "coalesce(channel, '')")
_SIZE_OF = {"sqlite": "length(CAST({} AS BLOB))", "postgresql": "octet_length({})"}


def upgrade() -> None:
    """A column of `sessions`, counted once from what is stored.

    SQLite would write an added column behind the table's key, so the table is made anew: it then reads as a store has
    it that began with this revision.
    """
    dialect = op.get_bind().dialect.name
    if dialect == "sqlite":
        _make_anew()
    else:
        op.add_column("sessions", _column())
    sized = " + ".join(_SIZE_OF[dialect].format(text) for text in _TEXTS)
    op.execute(
        sa.text(
            f"UPDATE sessions SET stored_bytes = coalesce((SELECT sum({sized}) FROM turns "  # noqa: S608  # no input in it
            "WHERE turns.bucket = sessions.bucket AND turns.session_id = sessions.session_id), 0)"
        )
    )


def _column() -> sa.Column[int]:
    return sa.Column("stored_bytes", sa.BigInteger, nullable=False, server_default=sa.text("0"))


def _make_anew() -> None:
    op.execute(sa.text("ALTER TABLE sessions RENAME TO sessions_before"))
    op.execute(sa.text("DROP INDEX sessions_by_principal"))
    op.create_table(
        "sessions",
        sa.Column("bucket", sa.SmallInteger, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("principal", sa.Text, nullable=False),
        sa.Column("user_id", sa.Text),
        sa.Column("agent_id", sa.Text),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("created_at_us", sa.BigInteger, nullable=False),
        _column(),
        sa.PrimaryKeyConstraint("bucket", "session_id"),
    )
    op.execute(sa.text(f"INSERT INTO sessions ({_FIELDS}) SELECT {_FIELDS} FROM sessions_before"))  # noqa: S608  # no input in it
    op.execute(sa.text("DROP TABLE sessions_before"))
    op.create_index("sessions_by_principal", "sessions", ["principal", "epoch"])
