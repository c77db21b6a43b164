"""Dead letters, as statements: turns that a sink refused for good. They are listed, queued again, or deleted."""

from collections import defaultdict

from sqlalchemy import ColumnElement, Connection, and_, delete, func, select, true, update

from token_broker.memory.store.sessions import subtract_from_size
from token_broker.memory.store.tables import dead_letters, is_session, outbox, stored_turn, turns, within_bytes
from token_broker.memory.store.turn_words import delete_words
from token_broker.memory.store.turn_writes import enqueue
from token_broker.memory.types import FULL_BATCH, SINK_BITS, DeadLetter, SinkName

__all__ = ["MAX_BYTES", "count_dead", "list_dead", "purge_dead", "retry_dead"]

MAX_BYTES = 1_048_576  # of turns that one transaction rewrites or deletes, since others wait for it
_ITS_TURN = and_(
    turns.c.bucket == dead_letters.c.bucket,
    turns.c.session_id == dead_letters.c.session_id,
    turns.c.turn_id == dead_letters.c.turn_id,
)


def list_dead(
    connection: Connection, limit: int, *, session_id: str | None = None, sink: SinkName | None = None
) -> list[DeadLetter]:
    """Dead letters, oldest first."""
    rows = connection.execute(
        select(turns, dead_letters.c.sink, dead_letters.c.reason)
        .join(dead_letters, _ITS_TURN)
        .where(_wanted(session_id, sink))
        .order_by(dead_letters.c.arrival, dead_letters.c.sink)
        .limit(limit)
    )
    return [DeadLetter(row.session_id, stored_turn(row), row.reason or "", row.sink) for row in rows]


def count_dead(connection: Connection, *, session_id: str | None = None, sink: SinkName | None = None) -> int:
    """How many dead letters there are, of all sessions and sinks or of one."""
    return connection.scalar(select(func.count()).select_from(dead_letters).where(_wanted(session_id, sink))) or 0


def retry_dead(
    connection: Connection,
    now_us: int,
    *,
    session_id: str | None = None,
    sink: SinkName | None = None,
    limit: int = 1000,
    max_bytes: int = MAX_BYTES,
) -> int:
    """Queues dead letters once more, at most `limit` or so many bytes of them; how many."""
    letters = _oldest_dead(connection, limit, max_bytes, session_id, sink)
    by_queue: dict[tuple[str, SinkName], list[str]] = defaultdict(list)
    for dead_session_id, turn_id, its_sink in letters:
        by_queue[dead_session_id, its_sink].append(turn_id)
    for key, its_sink in sorted(by_queue):
        bit, turn_ids = SINK_BITS[its_sink], by_queue[key, its_sink]
        # First the row in the outbox, then the turns: the order in which a settlement locks them.
        enqueue(connection, [its_sink], {key: len(turn_ids)}, now_us)
        reset = {
            "due_at_us": now_us, "attempts": 0, "failures": 0, "failing_since_us": None, "batch": FULL_BATCH,
        }  # fmt: skip
        row = and_(is_session(outbox, key), outbox.c.sink == its_sink, outbox.c.lease_until_us == 0)
        connection.execute(update(outbox).where(row).values(reset))
        its_turns = and_(is_session(turns, key), turns.c.turn_id.in_(turn_ids))
        again = {"pending": turns.c.pending.bitwise_or(bit), "dead": turns.c.dead - bit}
        connection.execute(update(turns).where(its_turns, turns.c.dead.bitwise_and(bit) != 0).values(again))
        _delete_letters(connection, key, turn_ids, its_sink)
    return len(letters)


def purge_dead(
    connection: Connection,
    *,
    session_id: str | None = None,
    sink: SinkName | None = None,
    limit: int = 1000,
    max_bytes: int = MAX_BYTES,
) -> int:
    """Deletes dead letters for good, at most `limit` or so many bytes of them; how many.

    A turn goes with its last letter, unless another sink may get it yet.
    """
    letters = _oldest_dead(connection, limit, max_bytes, session_id, sink)
    for dead_session_id, turn_id, its_sink in letters:
        its, bit = turns.c.turn_id == turn_id, SINK_BITS[its_sink]
        _delete_letters(connection, dead_session_id, [turn_id], its_sink)
        left = connection.execute(
            update(turns)
            .where(is_session(turns, dead_session_id), its, turns.c.dead.bitwise_and(bit) != 0)
            .values(dead=turns.c.dead - bit)
            .returning(turns.c.dead, turns.c.pending)
        ).first()
        if left is not None and not left.dead and not left.pending:
            subtract_from_size(connection, dead_session_id, its)
            delete_words(connection, dead_session_id, its)
            connection.execute(delete(turns).where(is_session(turns, dead_session_id), its))
    return len(letters)


def _delete_letters(connection: Connection, session_id: str, turn_ids: list[str], sink: SinkName) -> None:
    is_one = and_(
        is_session(dead_letters, session_id), dead_letters.c.turn_id.in_(turn_ids), dead_letters.c.sink == sink
    )
    connection.execute(delete(dead_letters).where(is_one))


def _oldest_dead(
    connection: Connection, limit: int, max_bytes: int, session_id: str | None, sink: SinkName | None
) -> list[tuple[str, str, SinkName]]:
    """Session, turn and sink of the oldest dead letters."""
    sizes = connection.execute(
        select(dead_letters.c.session_id, dead_letters.c.turn_id, dead_letters.c.sink, func.length(turns.c.content))
        .join(turns, _ITS_TURN)
        .where(_wanted(session_id, sink))
        .order_by(dead_letters.c.arrival)
        .limit(limit)
    )
    return within_bytes([((row[0], row[1], row[2]), row[3]) for row in sizes], max_bytes)


def _wanted(session_id: str | None, sink: SinkName | None) -> ColumnElement[bool]:
    session = true() if session_id is None else is_session(dead_letters, session_id)
    return session if sink is None else and_(session, dead_letters.c.sink == sink)
