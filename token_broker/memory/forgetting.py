"""Forgetting, as statements: a session, a user, what is too old; and the erasures that the sink is still owed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from token_broker.memory.base import ANONYMOUS
from token_broker.memory.keys import bucket_of
from token_broker.memory.store import is_session
from token_broker.memory.tables import erasures, outbox, sessions, turns

__all__ = [
    "Erasure",
    "claim_erasures",
    "finish_erasure",
    "forget_idle_sessions",
    "forget_older",
    "forget_session",
    "note_user_erasure",
    "postpone_erasure",
    "sessions_of",
    "users_being_forgotten",
]


@dataclass(frozen=True, slots=True)
class Erasure:
    """Something the sink is to forget: a session, or all of a principal where `session_id` is empty."""

    principal: str
    session_id: str
    failures: int = 0


def forget_session(connection: Connection, session_id: str, now_us: int, *, erase: bool) -> int:
    """Deletes a session and its turns; how many. With `erase` the sink is asked to, once no delivery is under way."""
    owner = connection.execute(
        select(sessions.c.principal).where(is_session(sessions, session_id)).with_for_update()
    ).scalar()
    lease = connection.execute(select(outbox.c.lease_until_us).where(is_session(outbox, session_id))).scalar()
    if erase and owner is not None:
        _note(connection, owner, session_id, max(now_us, lease or 0))
    connection.execute(delete(outbox).where(is_session(outbox, session_id)))
    forgotten = connection.execute(delete(turns).where(is_session(turns, session_id))).rowcount
    connection.execute(delete(sessions).where(is_session(sessions, session_id)))
    return forgotten


def sessions_of(connection: Connection, user: str, limit: int) -> list[str]:
    """Sessions of a principal, or of those without authentication that bear this label; any order."""
    is_users = or_(sessions.c.principal == user, and_(sessions.c.principal == ANONYMOUS, sessions.c.user_id == user))
    return list(connection.scalars(select(sessions.c.session_id).where(is_users).limit(limit)))


def note_user_erasure(connection: Connection, principal: str, now_us: int) -> None:
    """The sink is to forget the whole principal."""
    _note(connection, principal, "", now_us)


def users_being_forgotten(connection: Connection) -> set[str]:
    """Principals of whom nothing may be delivered until the sink has forgotten them."""
    return set(connection.scalars(select(erasures.c.principal).where(erasures.c.session_id == "")))


def claim_erasures(connection: Connection, limit: int, *, now_us: int, lease_until_us: int) -> list[Erasure]:
    """Erasures that are due; sessions before their user."""
    rows = connection.execute(
        select(erasures)
        .where(erasures.c.due_at_us <= now_us, erasures.c.lease_until_us <= now_us)
        .order_by(erasures.c.session_id.desc())
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    claimed = [Erasure(row.principal, row.session_id, row.failures) for row in rows]
    for erasure in claimed:
        connection.execute(update(erasures).where(_is(erasure)).values(lease_until_us=lease_until_us))
    return claimed


def finish_erasure(connection: Connection, erasure: Erasure) -> None:
    """The sink has forgotten it."""
    connection.execute(delete(erasures).where(_is(erasure)))


def postpone_erasure(connection: Connection, erasure: Erasure, due_at_us: int, reason: str) -> None:
    """The sink could not; again at `due_at_us`. An erasure is never given up."""
    later = {"due_at_us": due_at_us, "lease_until_us": 0, "failures": erasure.failures + 1, "last_error": reason}
    connection.execute(update(erasures).where(_is(erasure)).values(later))


def forget_older(connection: Connection, before_arrival: int, limit: int) -> int:
    """Deletes up to `limit` turns that arrived before, and the sessions that are empty then; how many turns."""
    old = connection.execute(
        select(turns.c.bucket, turns.c.session_id, turns.c.turn_id)
        .where(turns.c.arrival < before_arrival)
        .order_by(turns.c.arrival)
        .limit(limit)
    ).all()
    by_session: dict[str, list[str]] = {}
    for row in old:
        by_session.setdefault(row.session_id, []).append(row.turn_id)
    for session_id in sorted(by_session, key=lambda key: (bucket_of(key), key)):
        _forget_turns(connection, session_id, by_session[session_id])
    return len(old)


def forget_idle_sessions(connection: Connection, before_s: float, limit: int) -> int:
    """Deletes up to `limit` sessions without a turn whose newest plan is older; how many."""
    has_turns = select(turns.c.bucket).where(
        turns.c.bucket == sessions.c.bucket, turns.c.session_id == sessions.c.session_id
    )
    idle = connection.scalars(
        select(sessions.c.session_id)
        .where(sessions.c.epoch < round(before_s * 1000), ~has_turns.exists())
        .limit(limit)
        .with_for_update(of=sessions, skip_locked=True)
    ).all()
    for session_id in idle:
        connection.execute(delete(sessions).where(is_session(sessions, session_id)))
    return len(idle)


def _forget_turns(connection: Connection, session_id: str, turn_ids: Iterable[str]) -> None:
    connection.execute(select(sessions.c.epoch).where(is_session(sessions, session_id)).with_for_update())
    connection.execute(delete(turns).where(is_session(turns, session_id), turns.c.turn_id.in_(list(turn_ids))))
    if not connection.scalar(select(func.count()).select_from(turns).where(is_session(turns, session_id))):
        connection.execute(delete(outbox).where(is_session(outbox, session_id)))
        connection.execute(delete(sessions).where(is_session(sessions, session_id)))


def _note(connection: Connection, principal: str, session_id: str, due_at_us: int) -> None:
    insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[connection.dialect.name]
    row = {
        "bucket": bucket_of(session_id or principal),
        "principal": principal,
        "session_id": session_id,
        "due_at_us": due_at_us,
        "lease_until_us": 0,
        "failures": 0,
    }
    connection.execute(insert(erasures).values(row).on_conflict_do_nothing())


def _is(erasure: Erasure) -> ColumnElement[bool]:
    return and_(
        erasures.c.bucket == bucket_of(erasure.session_id or erasure.principal),
        erasures.c.principal == erasure.principal,
        erasures.c.session_id == erasure.session_id,
    )
