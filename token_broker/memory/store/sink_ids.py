"""What a sink calls our users and sessions, as statements."""

from typing import Any

from sqlalchemy import Connection, and_, delete, func, select, update

from token_broker.memory.store.tables import erased_users, insert_for, sessions, sink_ids
from token_broker.memory.types import SinkName, bucket_of

__all__ = ["SinkId", "drop_id", "find_id", "forget_id", "keep_id", "newest_thread", "user_generation"]

SinkId = tuple[str | None, int]
"""What the sink calls it, if it has it, and how often the sink has lost it."""


def find_id(connection: Connection, sink: SinkName, kind: str, key: str) -> SinkId:
    """What `sink` calls our `key`."""
    row = connection.execute(select(sink_ids.c.sink_key, sink_ids.c.generation).where(_is_row(sink, kind, key))).first()
    return (row.sink_key, row.generation) if row else (None, 0)


def keep_id(connection: Connection, sink: SinkName, kind: str, key: str, *, sink_key: str) -> None:
    """`sink` calls our `key` so from now on."""
    made: Any = insert_for(connection.dialect.name, sink_ids).values(
        bucket=bucket_of(key), sink=sink, kind=kind, key=key, sink_key=sink_key, generation=0
    )
    keys = ["bucket", "sink", "kind", "key"]
    connection.execute(made.on_conflict_do_update(index_elements=keys, set_={"sink_key": made.excluded.sink_key}))


def forget_id(connection: Connection, sink: SinkName, kind: str, key: str, *, sink_key: str) -> None:
    """The sink has nothing of that name any more: the next one that is made needs another idempotency key."""
    lost = {"sink_key": None, "generation": sink_ids.c.generation + 1}
    connection.execute(update(sink_ids).where(_is_row(sink, kind, key), sink_ids.c.sink_key == sink_key).values(lost))


def drop_id(connection: Connection, sink: SinkName, kind: str, key: str) -> None:
    """Deletes what is known of our `key`: it is erased."""
    connection.execute(delete(sink_ids).where(_is_row(sink, kind, key)))


def newest_thread(connection: Connection, sink: SinkName, principal: str, limit: int) -> str | None:
    """What the sink calls the thread of the principal's newest session that it has, of their `limit` newest."""
    newest = (
        select(sessions.c.bucket, sessions.c.session_id, sessions.c.epoch)
        .where(sessions.c.principal == principal)
        .order_by(sessions.c.epoch.desc())
        .limit(limit)
        .subquery()
    )
    its = and_(
        sink_ids.c.bucket == newest.c.bucket,
        sink_ids.c.sink == sink,
        sink_ids.c.kind == "thread",
        sink_ids.c.key == newest.c.session_id,
        sink_ids.c.sink_key.is_not(None),
    )
    found = select(sink_ids.c.sink_key).join(newest, its).order_by(newest.c.epoch.desc()).limit(1)
    return connection.scalar(found)


def user_generation(connection: Connection, principal: str) -> int:
    """Grows when a user is erased: who comes back is a new user to every sink."""
    wanted = and_(erased_users.c.kind == "principal", erased_users.c.id == principal)
    return connection.scalar(select(func.max(erased_users.c.before_us)).where(wanted)) or 0


def _is_row(sink: SinkName, kind: str, key: str) -> Any:
    return and_(
        sink_ids.c.bucket == bucket_of(key), sink_ids.c.sink == sink, sink_ids.c.kind == kind, sink_ids.c.key == key
    )
