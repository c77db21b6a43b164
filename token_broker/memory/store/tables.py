"""The tables, once for SQLite and PostgreSQL, and what statements about them share; `migrate` makes or upgrades them.

Every row of a session carries the session's `bucket` (`bucket_of`), first in each key: claims stay local, and the
tables can be distributed on it (Citus, in elastic clusters of Azure Database for PostgreSQL) as they are. `calls` has
none, and is not distributed. `blocks`, `disabled_resources`, `replicas`, `sink_rests` and `erased_users` are small:
there they are reference tables. Times are whole microseconds since 1970.

Alembic (`migrations/`) is imported only where an upgrade is needed.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    and_,
    inspect,
    text,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite

from token_broker.memory.store_errors import StoreAwayError
from token_broker.memory.types import Delivery, Position, StoredTurn, bucket_of

__all__ = [
    "ERASED",
    "ERASING",
    "MIGRATIONS",
    "NOW_US",
    "SCHEMA_REVISION",
    "SESSION_TABLES",
    "TURN_ORDER",
    "are_sessions",
    "blocks",
    "budget_reservations",
    "by_bucket",
    "call_events",
    "calls",
    "dead_letters",
    "disabled_resources",
    "erased_users",
    "erasures",
    "insert_for",
    "is_session",
    "metadata",
    "migrate",
    "notices",
    "outbox",
    "recent_erasures",
    "replicas",
    "sessions",
    "sink_ids",
    "sink_rests",
    "stored_turn",
    "summaries",
    "tickets",
    "tool_claims",
    "turn_words",
    "turns",
    "upgrade",
    "usage",
    "usage_answers",
    "within_bytes",
]

K = TypeVar("K")

MIGRATIONS = Path(__file__).parents[1] / "migrations"
_MIGRATION_LOCK = 0x76_6F_69_63_65  # any number, the same in every replica
_VERSION_TABLE = """CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
)"""
ERASING = 0  # the epoch of a tombstone whose turns are still being deleted
ERASED = 1  # the epoch of a tombstone without turns

SCHEMA_REVISION = "0014"  # the newest of migrations/versions

metadata = MetaData()
sessions = Table(
    "sessions",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("session_id", Text, nullable=False),
    # The owner; `anonymous` without authentication. Empty (ERASED_PRINCIPAL) once the session was erased: the row stays
    # as a tombstone, so that nobody gets the id again, and no statement that asks for an owner finds it.
    Column("principal", Text, nullable=False),
    Column("user_id", Text),  # a label
    Column("agent_id", Text),
    Column("epoch", BigInteger, nullable=False),  # of its newest plan; of a tombstone ERASING or ERASED
    Column("created_at_us", BigInteger, nullable=False),
    Column("stored_bytes", BigInteger, nullable=False, server_default=text("0")),  # lags a little: see `SessionSizes`
    Column("talk_id", Text),  # of its newest talk that a replica saw
    Column("talk_over_at_us", BigInteger),  # from then on that talk does not go on
    # Bits of all sinks that its turns were ever queued for: an erasure names those that are not used any more.
    Column("sinks", SmallInteger, nullable=False, server_default=text("0")),
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
    Column("place", Integer, nullable=False),  # the sequence; LAST_PLACE without one
    Column("arrival", BigInteger, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("source", Text, nullable=False),
    Column("interrupted", Boolean, nullable=False),
    Column("channel", Text),
    # Bits of sinks (`SINK_BITS`): where the turn still has to go, and which sinks refused it for good. So a turn stays
    # one row, written once, however many sinks there are.
    Column("pending", SmallInteger, nullable=False, server_default=text("0")),
    Column("dead", SmallInteger, nullable=False, server_default=text("0")),
    Column("folding", SmallInteger),  # the version of the rules by which its words are folded; NULL: not yet
    PrimaryKeyConstraint("bucket", "session_id", "turn_id"),
    Index("turns_in_order", "bucket", "session_id", "epoch", "place", "arrival"),
    Index("turns_by_arrival", "arrival"),
)
TURN_ORDER = (turns.c.epoch, turns.c.place, turns.c.arrival)  # within a session

# Why a sink refused a turn for good.
dead_letters = Table(
    "dead_letters",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("turn_id", Text, nullable=False),
    Column("sink", Text, nullable=False),
    Column("arrival", BigInteger, nullable=False),
    Column("reason", Text),
    PrimaryKeyConstraint("bucket", "session_id", "turn_id", "sink"),
    Index("dead_letters_by_arrival", "arrival"),
)

# One row for each session and sink that has queued turns or notices; the holder of its lease delivers them.
outbox = Table(
    "outbox",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("sink", Text, nullable=False),
    Column("due_at_us", BigInteger, nullable=False),
    Column("lease_until_us", BigInteger, nullable=False),
    Column("fence", BigInteger, nullable=False),  # grows with each claim; only the newest claim may settle
    Column("uncertain", Boolean, nullable=False),  # a delivery began, and its end was not written
    Column("attempts", Integer, nullable=False),  # failures in a row that count against the oldest turn
    Column("failures", Integer, nullable=False),  # all failures in a row, for the backoff
    Column("failing_since_us", BigInteger),
    Column("batch", SmallInteger, nullable=False),  # turns to deliver at once, next time
    Column("queued", Integer, nullable=False),
    Column("oldest_us", BigInteger, nullable=False),
    Column("last_error", Text),
    Column("flight", Text),  # JSON: the turns of a delivery whose end is not known, and the sink's task
    Column("generation", Integer, nullable=False),  # tasks of the sink that failed: a repetition needs another key
    PrimaryKeyConstraint("bucket", "session_id", "sink"),
    Index("outbox_due", "sink", "bucket", "due_at_us"),
)

# What a sink is told of a session beside its turns, in the order of `arrival`.
notices = Table(
    "notices",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("sink", Text, nullable=False),
    Column("arrival", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("body", Text, nullable=False),  # JSON
    PrimaryKeyConstraint("bucket", "session_id", "sink", "arrival"),
)

# What a sink still has to erase; `session_id` is empty where all of `principal` is meant.
erasures = Table(
    "erasures",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("sink", Text, nullable=False),
    Column("principal", Text, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("user_id", Text),  # of the session, for sinks that are told
    Column("agent_id", Text),
    Column("before_us", BigInteger, nullable=False),
    Column("due_at_us", BigInteger, nullable=False),
    Column("lease_until_us", BigInteger, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("last_error", Text),
    Column("task", Text),  # the sink's, which has accepted the erasure and not ended it yet
    PrimaryKeyConstraint("bucket", "sink", "principal", "session_id"),
)

# What a sink calls our users and sessions.
sink_ids = Table(
    "sink_ids",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("sink", Text, nullable=False),
    Column("kind", Text, nullable=False),  # user, thread
    Column("key", Text, nullable=False),
    Column("sink_key", Text),  # None: the sink has lost it
    Column("generation", Integer, nullable=False),  # how often the sink has lost it
    PrimaryKeyConstraint("bucket", "sink", "kind", "key"),
)

# Sinks that asked for a pause; all replicas keep it.
sink_rests = Table(
    "sink_rests",
    metadata,
    Column("sink", Text, nullable=False),
    Column("until_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("sink"),
)

# Users who were erased: sessions of theirs that began before are refused, later ones are kept.
erased_users = Table(
    "erased_users",
    metadata,
    Column("kind", Text, nullable=False),  # principal; label, of callers without authentication
    Column("id", Text, nullable=False),
    Column("before_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("kind", "id"),
)

# Sessions erased within the last hour: every replica looks here, and ends their talks.
recent_erasures = Table(
    "recent_erasures",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("principal", Text, nullable=False),
    Column("at_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("bucket", "session_id"),
    Index("recent_erasures_by_time", "at_us"),
)

# What the operator has blocked: a principal, or one session.
blocks = Table(
    "blocks",
    metadata,
    Column("kind", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("since_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("kind", "id"),
)

# Azure resources that the operator keeps new talks away from.
disabled_resources = Table(
    "disabled_resources",
    metadata,
    Column("name", Text, nullable=False),
    Column("since_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("name"),
)

# The processes that share the quotas of Azure resources; PostgreSQL's alone.
replicas = Table(
    "replicas",
    metadata,
    Column("replica_id", Text, nullable=False),
    Column("seen_at_us", BigInteger, nullable=False),
    PrimaryKeyConstraint("replica_id"),
)

# Calls of tools. A call is claimed before it is made, by one `holder`, until `until_us` by the database's clock. A
# claim that is older and not finished is of a process that ended: nobody knows what came of it. No arguments are kept.
tool_claims = Table(
    "tool_claims",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("talk_id", Text, nullable=False),
    Column("azure_session", Text, nullable=False),
    Column("call_id", Text, nullable=False),
    Column("holder", Text, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("claimed_at_us", BigInteger, nullable=False),
    Column("until_us", BigInteger, nullable=False),
    Column("ok", Boolean),
    Column("output", Text),  # what the model was told; None until then
    PrimaryKeyConstraint("bucket", "session_id", "talk_id", "azure_session", "call_id"),
    Index("tool_claims_by_age", "claimed_at_us"),
)

# The folded words of each turn, for recall. A session's stand together: in SQLite they are read from start to end.
turn_words = Table(
    "turn_words",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("arrival", BigInteger, nullable=False),
    Column("words", Text, nullable=False),
    PrimaryKeyConstraint("bucket", "session_id", "arrival"),
    sqlite_with_rowid=False,
)

# One row for each talk whose agent asks for a summary: due until it is made, then the summary itself.
summaries = Table(
    "summaries",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("talk_id", Text, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("due_at_us", BigInteger),  # NULL: nothing is left to do
    Column("attempts", SmallInteger, nullable=False),
    Column("made_at_us", BigInteger),
    Column("summary", Text),
    PrimaryKeyConstraint("bucket", "session_id", "talk_id"),
    Index("summaries_due", "due_at_us"),
)

# What talks used, by Azure resource and UTC day (counted from 1970). `part` is a writer's own: the sum over all parts
# is the talk's. NULL is unknown. Rows of who was erased lose the session and the principal.
usage = Table(
    "usage",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("talk_id", Text, nullable=False),
    Column("part", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("day", Integer, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("principal", Text, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("transport", Text, nullable=False),
    Column("dialect", Text, nullable=False),
    Column("started_at_us", BigInteger, nullable=False),
    Column("updated_at_us", BigInteger, nullable=False),
    Column("live_ms", BigInteger),
    Column("responses", Integer),
    Column("unmeasured", Integer),  # responses of which Azure did not say what they cost
    Column("input_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("input_text_tokens", BigInteger),
    Column("input_audio_tokens", BigInteger),
    Column("input_image_tokens", BigInteger),
    Column("cached_text_tokens", BigInteger),
    Column("cached_audio_tokens", BigInteger),
    Column("cached_image_tokens", BigInteger),
    Column("output_text_tokens", BigInteger),
    Column("output_audio_tokens", BigInteger),
    Column("transcription_ms", BigInteger),
    Column("transcription_input_tokens", BigInteger),
    Column("transcription_output_tokens", BigInteger),
    Column("tools_run", Integer),
    Column("seen", Boolean, nullable=False),
    Column("complete", Boolean, nullable=False),
    Column("ended", Text),  # NULL: it goes on, or its process was killed
    PrimaryKeyConstraint("bucket", "talk_id", "part", "resource", "day"),
    Index("usage_by_principal", "principal", "day"),
    Index("usage_by_session", "bucket", "session_id"),
)

# Answers of talks that two replicas may hear at once, for as long as such a talk lasts: the first to count one has it.
# Also how much of the time that Azure bills was counted, by session of Azure's.
usage_answers = Table(
    "usage_answers",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("talk_id", Text, nullable=False),
    Column("answer", Text, nullable=False),  # Azure's id of an answer, or of what was transcribed
    Column("part", Text, nullable=False),  # the writer that has counted it
    Column("counted_at_us", BigInteger, nullable=False),
    Column("billed_ms", BigInteger),  # of a session
    PrimaryKeyConstraint("bucket", "talk_id", "answer"),
    Index("usage_answers_by_age", "counted_at_us"),
)

# What a principal's talks have used and hold of the day's budget. The principal is a keyed hash; a holder is a talk's.
budget_reservations = Table(
    "budget_reservations",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("budget_key", Text, nullable=False),
    Column("day", Integer, nullable=False),
    Column("holder", Text, nullable=False),  # empty: the day's own row, which who reserves locks
    Column("used_ms", BigInteger, nullable=False),
    Column("held_ms", BigInteger, nullable=False),
    Column("used_tokens", BigInteger, nullable=False),
    Column("held_tokens", BigInteger, nullable=False),
    Column("until_us", BigInteger, nullable=False),  # what is held beyond is free
    PrimaryKeyConstraint("bucket", "budget_key", "day", "holder"),
    Index("budget_reservations_by_day", "day"),
)

# One row for each WebRTC call that a replica set up, from Azure's first word of it until an hour after its end.
calls = Table(
    "calls",
    metadata,
    Column("call_key", Text, primary_key=True),  # ours; Azure's id is unique at its host alone
    Column("session_id", Text, nullable=False),
    Column("talk_id", Text, nullable=False),
    Column("principal", Text, nullable=False),
    Column("user_id", Text),
    Column("plan_epoch", BigInteger, nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("limit_key", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("call_id", Text, nullable=False),
    Column("transport", Text, nullable=False),
    Column("created_at_us", BigInteger, nullable=False),
    Column("expires_at_us", BigInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("ending", Text),  # the end that is wanted for it
    Column("holder", Text),  # the replica that listens to it
    Column("lease_until_us", BigInteger, nullable=False),  # from then on another may take it
    Column("lease_epoch", BigInteger, nullable=False),
    Column("read_until_us", BigInteger),  # until then a page reads its events at another replica
    Column("over_at_us", BigInteger),  # a replica hung it up then; its holder makes it end
    Column("engaged_until_us", BigInteger),  # until then it stays at its holder, where a client's sideband is
    Column("unheard_since_us", BigInteger),  # its holder has no sideband since then: it may have ended
    Index("calls_by_lease", "state", "lease_until_us"),
    Index("calls_by_session", "session_id"),
    Index("calls_by_name", "call_id"),
)

# What the broker told a call's page: the latest of each stream, which is one replica's. They go with their call.
call_events = Table(
    "call_events",
    metadata,
    Column("bucket", SmallInteger, nullable=False),
    Column("session_id", Text, nullable=False),
    Column("call_id", Text, nullable=False),  # Azure's
    Column("stream", Text, nullable=False),
    Column("number", Integer, nullable=False),
    Column("told_at_us", BigInteger, nullable=False),
    Column("event", Text, nullable=False),  # JSON
    PrimaryKeyConstraint("bucket", "session_id", "call_id", "stream", "number"),
)

# Rows that an erased session takes with it, beside its turns. Each table has `bucket` and `session_id`.
SESSION_TABLES: tuple[Table, ...] = (
    call_events,
    dead_letters,
    notices,
    outbox,
    summaries,
    tool_claims,
    turn_words,
)

# Turns from before the words were kept, or that an older replica stores. Rules that change need another such index.
Index(
    "turns_unfolded",
    turns.c.arrival,
    sqlite_where=turns.c.folding.is_(None),
    postgresql_where=turns.c.folding.is_(None),
)


NOW_US = {
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)",
}
"""The database's own time in microseconds since 1970, as SQL: the clocks of replicas may differ."""


def is_session(table: Table, session_id: str) -> ColumnElement[bool]:
    """The rows of one session."""
    return and_(table.c.bucket == bucket_of(session_id), table.c.session_id == session_id)


def are_sessions(table: Table, session_ids: Iterable[str]) -> ColumnElement[bool]:
    """The rows of several sessions."""
    return tuple_(table.c.bucket, table.c.session_id).in_([(bucket_of(key), key) for key in session_ids])


def by_bucket(session_id: str) -> tuple[int, str]:
    """The key by which rows are sorted before they are locked: replicas that lock in one order never deadlock."""
    return bucket_of(session_id), session_id


def stored_turn(row: Any) -> StoredTurn:
    """The turn of a row of the table `turns`."""
    return StoredTurn(
        turn_id=row.turn_id,
        position=Position(row.epoch, row.place, row.arrival),
        agent_id=row.agent_id,
        role=row.role,
        content=row.content,
        created_at=datetime.fromtimestamp(row.created_at_us / 1_000_000, UTC),
        source=row.source,
        interrupted=bool(row.interrupted),
        channel=row.channel,
        delivery=Delivery.of(row.pending, row.dead),
    )


def within_bytes(sizes: Iterable[tuple[K, int]], max_bytes: int) -> list[K]:
    """The first keys whose sizes add up to `max_bytes` at most; at least one, where there is one.

    For one transaction: turns of others wait behind it.
    """
    keys: list[K] = []
    total_bytes = 0
    for key, size_bytes in sizes:
        total_bytes += size_bytes
        if keys and total_bytes > max_bytes:
            break
        keys.append(key)
    return keys


def insert_for(dialect: str, into: Table) -> Any:
    """The dialect's own `Insert`, which has ON CONFLICT."""
    return {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[dialect](into)


def migrate(connection: Connection) -> bool:
    """Makes or upgrades the tables in the connection's transaction, one replica at a time; True where there were none.

    Raises StoreAwayError where the tables are newer than this version: it must not write what it does not understand.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
    found = None
    if inspect(connection).has_table("alembic_version"):
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if found is None:
        # The newest tables at once, as all migrations together make them: Alembic takes long to load.
        metadata.create_all(connection, checkfirst=False)
        connection.execute(text(_VERSION_TABLE))
        connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": SCHEMA_REVISION})
    elif found != SCHEMA_REVISION:
        upgrade(connection, found)
    return found is None


def upgrade(connection: Connection, found: str | None) -> None:
    """Runs the migrations behind revision `found`. Raises StoreAwayError where no migration has that revision."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    script = ScriptDirectory.from_config(config)
    if found is not None and found not in {revision.revision for revision in script.walk_revisions()}:
        raise StoreAwayError(f"the database is at revision {found}, which is newer than this version knows")
    with EnvironmentContext(config, script, fn=lambda revision, _: script._upgrade_revs("head", revision)):  # noqa: SLF001  # what alembic.command.upgrade does, without its other commands
        script.run_env()
