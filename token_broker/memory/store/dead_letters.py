"""Dead letters, as statements: turns that the sink refused for good. They are listed, queued again, or deleted."""

from sqlalchemy import ColumnElement, Connection, and_, delete, func, select, update

from token_broker.memory.store.outbox import mark_delivery
from token_broker.memory.store.sessions import subtract_from_size
from token_broker.memory.store.tables import is_session, outbox, stored_turn, turns, within_bytes
from token_broker.memory.store.turn_words import delete_words
from token_broker.memory.store.turn_writes import enqueue
from token_broker.memory.types import FULL_BATCH, DeadLetter, Delivery

__all__ = ["MAX_BYTES", "count_dead", "list_dead", "purge_dead", "retry_dead"]

MAX_BYTES = 1_048_576  # of turns that one transaction rewrites or deletes, since others wait for it


def list_dead(connection: Connection, limit: int, *, session_id: str | None = None) -> list[DeadLetter]:
    """Dead letters, oldest first."""
    rows = connection.execute(select(turns).where(_is_dead(session_id)).order_by(turns.c.arrival).limit(limit))
    return [DeadLetter(row.session_id, stored_turn(row), row.dead_reason or "") for row in rows]


def count_dead(connection: Connection, *, session_id: str | None = None) -> int:
    """How many dead letters there are, of all sessions or of one."""
    return connection.scalar(select(func.count()).select_from(turns).where(_is_dead(session_id))) or 0


def retry_dead(
    connection: Connection, now_us: int, *, session_id: str | None = None, limit: int = 1000, max_bytes: int = MAX_BYTES
) -> int:
    """Queues dead letters once more, at most `limit` or so many bytes of them; how many."""
    letters = _oldest_dead(connection, limit, max_bytes, session_id)
    by_session: dict[str, list[str]] = {}
    for dead_session_id, turn_id in letters:
        by_session.setdefault(dead_session_id, []).append(turn_id)
    for key in sorted(by_session):
        mark_delivery(connection, key, by_session[key], Delivery.QUEUED)
        enqueue(connection, {key: len(by_session[key])}, now_us)
        reset = {"due_at_us": now_us, "attempts": 0, "failures": 0, "failing_since_us": None, "batch": FULL_BATCH}
        connection.execute(update(outbox).where(is_session(outbox, key), outbox.c.lease_until_us == 0).values(reset))
    return len(letters)


def purge_dead(
    connection: Connection, *, session_id: str | None = None, limit: int = 1000, max_bytes: int = MAX_BYTES
) -> int:
    """Deletes dead letters for good, at most `limit` or so many bytes of them; how many."""
    letters = _oldest_dead(connection, limit, max_bytes, session_id)
    for dead_session_id, turn_id in letters:
        its = turns.c.turn_id == turn_id
        subtract_from_size(connection, dead_session_id, its)
        delete_words(connection, dead_session_id, its)
        connection.execute(delete(turns).where(is_session(turns, dead_session_id), its))
    return len(letters)


def _oldest_dead(connection: Connection, limit: int, max_bytes: int, session_id: str | None) -> list[tuple[str, str]]:
    """Session and turn of the oldest dead letters."""
    sizes = connection.execute(
        select(turns.c.session_id, turns.c.turn_id, func.length(turns.c.content))
        .where(_is_dead(session_id))
        .order_by(turns.c.arrival)
        .limit(limit)
    )
    return within_bytes([((row[0], row[1]), row[2]) for row in sizes], max_bytes)


def _is_dead(session_id: str | None) -> ColumnElement[bool]:
    dead = turns.c.delivery == Delivery.DEAD
    return dead if session_id is None else and_(is_session(turns, session_id), dead)
