"""The tables, once for SQLite and PostgreSQL; `migrations/` makes them.

Every row of a session carries the session's `bucket` (see `keys.py`), first in each key: claims stay local, and the
tables can be distributed on it (Citus, Cosmos DB for PostgreSQL) as they are; `cutoffs`, which is small and read whole,
is the same on each node then. Times are whole microseconds since 1970.
"""

from enum import IntEnum
from typing import Literal

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    text,
)

__all__ = [
    "ERASED",
    "ERASING",
    "SCHEMA_REVISION",
    "SQLITE_SEARCH",
    "Delivery",
    "blocklist",
    "erasures",
    "metadata",
    "outbox",
    "sessions",
    "tickets",
    "turns",
]

ERASING = 0  # the epoch of a tombstone whose turns are still being deleted
ERASED = 1  # and of one that has none left

SCHEMA_REVISION = "0005"  # the newest of migrations/versions

metadata = MetaData()


class Delivery(IntEnum):
    """What became of a turn on its way to the sink."""

    QUEUED = 0
    DELIVERED = 1
    DEAD = 2

    @property
    def label(self) -> Literal["queued", "delivered", "dead"]:
        """As receipts have it."""
        return _LABELS[self]


_LABELS: dict[Delivery, Literal["queued", "delivered", "dead"]] = {
    Delivery.QUEUED: "queued",
    Delivery.DELIVERED: "delivered",
    Delivery.DEAD: "dead",
}


sessions = Table(
    "sessions",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("session_id", Text, nullable=False),
    # Who owns it; `anonymous` without authentication. Empty (NOBODY) once it was erased: the row stays as a tombstone,
    # so that the id never becomes anybody's again, and no statement that asks for an owner finds it.
    Column("principal", Text, nullable=False),
    Column("user_id", Text),  # a label
    Column("agent_id", Text),
    Column("epoch", BigInteger, nullable=False),  # of its newest plan; of a tombstone ERASING or ERASED
    Column("created_at_us", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False, server_default=text("0")),  # lags a little: see `sizes.py`
    PrimaryKeyConstraint("bucket", "session_id"),
    Index("sessions_by_principal", "principal", "epoch"),
)

tickets = Table(
    "tickets",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("ticket_id", Text, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("bucket", "ticket_id"),
)

turns = Table(
    "turns",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("turn_id", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("place", Integer, nullable=False),  # the sequence; LAST_PLACE where none was said
    Column("arrival", BigInteger, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("source", Text, nullable=False),
    Column("interrupted", Boolean, nullable=False),
    Column("channel", Text),
    Column("delivery", SmallInteger, nullable=False),
    Column("dead_reason", Text),
    PrimaryKeyConstraint("bucket", "session_id", "turn_id"),
    Index("turns_in_order", "bucket", "session_id", "epoch", "place", "arrival"),
    Index("turns_by_arrival", "arrival"),
)
Index(
    "turns_dead",
    turns.c.arrival,
    sqlite_where=turns.c.delivery == Delivery.DEAD,
    postgresql_where=turns.c.delivery == Delivery.DEAD,
)

# A row a session that has queued turns; who holds its lease delivers them.
outbox = Table(
    "outbox",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("due_at_us", BigInteger, nullable=False),
    Column("lease_until_us", BigInteger, nullable=False),
    Column("fence", BigInteger, nullable=False),  # grows with each claim; only the newest claim may settle
    Column("uncertain", Boolean, nullable=False),  # a delivery began whose end nobody wrote down
    Column("attempts", Integer, nullable=False),  # failures in a row that count against the oldest turn
    Column("failures", Integer, nullable=False),  # all failures in a row, for the backoff
    Column("failing_since_us", BigInteger),
    Column("batch", SmallInteger, nullable=False),  # turns to deliver at once, next time
    Column("queued", Integer, nullable=False),
    Column("oldest_us", BigInteger, nullable=False),
    Column("last_error", Text),
    PrimaryKeyConstraint("bucket", "session_id"),
    Index("outbox_due", "bucket", "due_at_us"),
)

# What the sink still has to be asked to forget; `session_id` is empty where all of `principal` is meant.
erasures = Table(
    "erasures",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("principal", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("due_at_us", BigInteger, nullable=False),
    Column("lease_until_us", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("last_error", Text),
    PrimaryKeyConstraint("bucket", "principal", "session_id"),
)

# Whom the operator has blocked: a principal, or one session.
blocklist = Table(
    "cutoffs",
    metadata,
    Column("kind", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("since_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("kind", "id"),
)

# SQLite's full text. It is contentless: rows are found by `rowid`, a turn's arrival; `owner` holds a token of the
# session, so that a search touches nobody else's words. `words.py` fills it behind the commits and merges it in small
# steps; SQLite's own are large, and wait until there are hundreds of pieces. PostgreSQL has no table for it, see
# `searching.py`.
SQLITE_SEARCH = (
    "CREATE VIRTUAL TABLE turn_words USING fts5(owner, content, content='')",
    "INSERT INTO turn_words (turn_words, rank) VALUES ('automerge', 0)",
    "INSERT INTO turn_words (turn_words, rank) VALUES ('crisismerge', 500)",
    """CREATE TRIGGER turns_unworded AFTER DELETE ON turns
        WHEN EXISTS (SELECT 1 FROM turn_words WHERE rowid = old.arrival) BEGIN
        INSERT INTO turn_words (turn_words, rowid, owner, content)
        VALUES ('delete', old.arrival, 's' || hex(old.session_id), old.content);
    END""",
)
