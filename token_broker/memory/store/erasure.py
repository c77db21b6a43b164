"""Erasure and retention, as statements: a session, a user, turns that are too old, sessions that are idle.

A session is erased in two steps. `mark_erased` makes its row a tombstone: from that commit on nobody reads it, nothing
is stored in it, and its id never becomes anybody's again. `delete_erased` then deletes its turns in short transactions,
since turns of others wait for each of them. `unfinished_erasures` names what a process that ended has left over.
"""

from typing import Any

from sqlalchemy import Connection, and_, delete, func, or_, select, update

from token_broker.memory.store.outbox import request_erasure
from token_broker.memory.store.sessions import subtract_from_size
from token_broker.memory.store.summaries import delete_summaries
from token_broker.memory.store.tables import (
    ERASED,
    ERASING,
    by_bucket,
    insert_for,
    is_session,
    outbox,
    sessions,
    tool_claims,
    turns,
    within_bytes,
)
from token_broker.memory.store.turn_words import delete_words
from token_broker.memory.store_errors import NotOwnerError
from token_broker.memory.types import ERASED_PRINCIPAL, bucket_of
from token_broker.security.tokens import ANONYMOUS

__all__ = [
    "delete_erased",
    "delete_idle_sessions",
    "delete_older_turns",
    "mark_erased",
    "sessions_of",
    "unfinished_erasures",
]


def mark_erased(
    connection: Connection, session_id: str, now_us: int, *, erase: bool, principal: str | None = None
) -> int:
    """Makes the session a tombstone; how many turns it had. `principal` has to own it; None is an operator.

    With `erase` the sink is asked to erase it, once no delivery is under way. A session that is not stored becomes a
    tombstone as well: turns of it that are on their way to the store are refused then. Raises NotOwnerError.
    """
    row = {
        "bucket": bucket_of(session_id),
        "session_id": session_id,
        "principal": ERASED_PRINCIPAL,
        "epoch": ERASED,
        "created_at_us": now_us,
    }
    made: Any = insert_for(connection.dialect.name, sessions).values(row)
    connection.execute(made.on_conflict_do_nothing(index_elements=["bucket", "session_id"]))
    # The lock waits for turns that are being stored, and later ones wait for it: none slips in beside the tombstone.
    held = select(sessions.c.principal).where(is_session(sessions, session_id)).with_for_update()
    owner = str(connection.execute(held).scalar_one())
    if owner != ERASED_PRINCIPAL and principal not in {None, owner}:
        raise NotOwnerError(erased=False)
    connection.execute(delete(tool_claims).where(is_session(tool_claims, session_id)))
    if owner == ERASED_PRINCIPAL:
        return 0
    lease = connection.execute(select(outbox.c.lease_until_us).where(is_session(outbox, session_id))).scalar()
    if erase:
        request_erasure(connection, owner, session_id, max(now_us, lease or 0))
    connection.execute(delete(outbox).where(is_session(outbox, session_id)))
    delete_summaries(connection, session_id)
    tombstone = {
        "principal": ERASED_PRINCIPAL,
        "user_id": None,
        "agent_id": None,
        "epoch": ERASING,
        "stored_bytes": 0,
    }
    connection.execute(update(sessions).where(is_session(sessions, session_id)).values(tombstone))
    return connection.scalar(select(func.count()).select_from(turns).where(is_session(turns, session_id))) or 0


def delete_erased(connection: Connection, session_id: str, *, max_turns: int, max_bytes: int) -> int:
    """Deletes some of an erased session's turns, at least one while any is left; how many."""
    is_erased = and_(is_session(sessions, session_id), sessions.c.principal == ERASED_PRINCIPAL)
    if connection.execute(select(sessions.c.epoch).where(is_erased).with_for_update()).first() is None:
        return 0
    sizes = select(turns.c.turn_id, func.length(turns.c.content)).where(is_session(turns, session_id)).limit(max_turns)
    turn_ids = within_bytes(connection.execute(sizes).all(), max_bytes)
    if not turn_ids:
        connection.execute(update(sessions).where(is_erased).values(epoch=ERASED))
        return 0
    delete_words(connection, session_id, turns.c.turn_id.in_(turn_ids))
    return connection.execute(
        delete(turns).where(is_session(turns, session_id), turns.c.turn_id.in_(turn_ids))
    ).rowcount


def unfinished_erasures(connection: Connection, limit: int) -> list[str]:
    """Erased sessions whose turns are not all deleted yet."""
    unfinished = and_(sessions.c.principal == ERASED_PRINCIPAL, sessions.c.epoch == ERASING)
    return list(connection.scalars(select(sessions.c.session_id).where(unfinished).limit(limit)))


def sessions_of(connection: Connection, user: str, limit: int) -> list[str]:
    """Sessions of a principal, or of those without authentication that bear this label; any order."""
    is_users = or_(sessions.c.principal == user, and_(sessions.c.principal == ANONYMOUS, sessions.c.user_id == user))
    return list(connection.scalars(select(sessions.c.session_id).where(is_users).limit(limit)))


def delete_older_turns(connection: Connection, before_arrival: int, limit: int, *, max_bytes: int) -> int:
    """Deletes up to `limit` turns, or so many bytes of them, that arrived before; how many turns.

    Their sessions stay until they are idle: an id that a token still names must not become another principal's.
    """
    sizes = connection.execute(
        select(turns.c.session_id, turns.c.turn_id, func.length(turns.c.content))
        .where(turns.c.arrival < before_arrival)
        .order_by(turns.c.arrival)
        .limit(limit)
    ).all()
    old = within_bytes([((row[0], row[1]), row[2]) for row in sizes], max_bytes)
    by_session: dict[str, list[str]] = {}
    for session_id, turn_id in old:
        by_session.setdefault(session_id, []).append(turn_id)
    for session_id in sorted(by_session, key=by_bucket):
        connection.execute(select(sessions.c.epoch).where(is_session(sessions, session_id)).with_for_update())
        its = turns.c.turn_id.in_(by_session[session_id])
        subtract_from_size(connection, session_id, its)
        delete_words(connection, session_id, its)
        connection.execute(delete(turns).where(is_session(turns, session_id), its))
        if not connection.scalar(select(func.count()).select_from(turns).where(is_session(turns, session_id))):
            connection.execute(delete(outbox).where(is_session(outbox, session_id)))
    return len(old)


def delete_idle_sessions(connection: Connection, before_s: float, limit: int) -> int:
    """Deletes up to `limit` sessions without a turn whose newest plan is older; how many. Tombstones stay."""
    has_turns = select(turns.c.bucket).where(
        turns.c.bucket == sessions.c.bucket, turns.c.session_id == sessions.c.session_id
    )
    idle = connection.scalars(
        select(sessions.c.session_id)
        .where(sessions.c.epoch < round(before_s * 1000), sessions.c.principal != ERASED_PRINCIPAL, ~has_turns.exists())
        .limit(limit)
        .with_for_update(of=sessions, skip_locked=True)
    ).all()
    for session_id in idle:
        delete_summaries(connection, session_id)
        connection.execute(delete(sessions).where(is_session(sessions, session_id)))
    return len(idle)
