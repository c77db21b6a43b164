"""Forgetting, as statements: a session, a user, what is too old; and the erasures that the sink is still owed.

A session is erased in two steps. `mark_erased` makes its row a tombstone: from that commit on nobody reads it, nothing
is stored in it, and its id never becomes anybody's again. `delete_erased` then deletes its turns in short transactions,
since turns of others wait for each of them. `unfinished_erasures` names what a process that ended has left over.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from token_broker.memory.errors import NotOwnerError
from token_broker.memory.store.bulk_insert import insert_for
from token_broker.memory.store.chunks import within_bytes
from token_broker.memory.store.keys import bucket_of
from token_broker.memory.store.session_room import note_removed
from token_broker.memory.store.tables import ERASED, ERASING, erasures, outbox, sessions, turns
from token_broker.memory.store.turns import is_session
from token_broker.memory.types import NOBODY
from token_broker.security.owner import ANONYMOUS

__all__ = [
    "Erasure",
    "claim_erasures",
    "delete_erased",
    "erase_idle_sessions",
    "erase_older",
    "finish_erasure",
    "mark_erased",
    "note_user_erasure",
    "postpone_erasure",
    "sessions_of",
    "unfinished_erasures",
    "users_being_forgotten",
]


@dataclass(frozen=True, slots=True)
class Erasure:
    """Something the sink is to forget: a session, or all of a principal where `session_id` is empty."""

    principal: str
    session_id: str
    failures: int = 0


def mark_erased(
    connection: Connection, session_id: str, now_us: int, *, erase: bool, principal: str | None = None
) -> int:
    """Makes the session a tombstone; how many turns it had. `principal` is whose it has to be, None for an operator.

    With `erase` the sink is asked to forget it, once no delivery is under way. A session that is not stored becomes a
    tombstone as well: what is on its way to the store is refused then. Raises NotOwnerError.
    """
    owner = _held_owner(connection, session_id, now_us)
    if owner == NOBODY:
        return 0
    if principal not in {None, owner}:
        raise NotOwnerError(erased=False)
    lease = connection.execute(select(outbox.c.lease_until_us).where(is_session(outbox, session_id))).scalar()
    if erase:
        _note(connection, owner, session_id, max(now_us, lease or 0))
    connection.execute(delete(outbox).where(is_session(outbox, session_id)))
    tombstone = {"principal": NOBODY, "user_id": None, "agent_id": None, "epoch": ERASING, "stored_bytes": 0}
    connection.execute(update(sessions).where(is_session(sessions, session_id)).values(tombstone))
    return connection.scalar(select(func.count()).select_from(turns).where(is_session(turns, session_id))) or 0


def _held_owner(connection: Connection, session_id: str, now_us: int) -> str:
    """The principal of the session's row, which is locked until the transaction ends, and made where there is none.

    The lock is one that turns under way are waited for by, and that later ones wait for.
    """
    row = {
        "bucket": bucket_of(session_id),
        "session_id": session_id,
        "principal": NOBODY,
        "epoch": ERASED,
        "created_at_us": now_us,
    }
    made: Any = insert_for(connection.dialect.name, sessions).values(row)
    connection.execute(made.on_conflict_do_nothing(index_elements=["bucket", "session_id"]))
    held = select(sessions.c.principal).where(is_session(sessions, session_id)).with_for_update()
    return str(connection.execute(held).scalar_one())


def delete_erased(connection: Connection, session_id: str, *, max_turns: int, max_bytes: int) -> int:
    """Deletes some of an erased session's turns, at least one while any is left; how many."""
    is_erased = and_(is_session(sessions, session_id), sessions.c.principal == NOBODY)
    if connection.execute(select(sessions.c.epoch).where(is_erased).with_for_update()).first() is None:
        return 0
    sizes = select(turns.c.turn_id, func.length(turns.c.content)).where(is_session(turns, session_id)).limit(max_turns)
    turn_ids = within_bytes(connection.execute(sizes).all(), max_bytes)
    if not turn_ids:
        connection.execute(update(sessions).where(is_erased).values(epoch=ERASED))
        return 0
    return connection.execute(
        delete(turns).where(is_session(turns, session_id), turns.c.turn_id.in_(turn_ids))
    ).rowcount


def unfinished_erasures(connection: Connection, limit: int) -> list[str]:
    """Erased sessions whose turns are not all deleted yet."""
    unfinished = and_(sessions.c.principal == NOBODY, sessions.c.epoch == ERASING)
    return list(connection.scalars(select(sessions.c.session_id).where(unfinished).limit(limit)))


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


def erase_older(connection: Connection, before_arrival: int, limit: int, *, max_bytes: int) -> int:
    """Deletes up to `limit` turns, or so many bytes of them, that arrived before; how many turns.

    Their sessions stay until they are idle: an id that a token still names must not become another's.
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
    for session_id in sorted(by_session, key=lambda key: (bucket_of(key), key)):
        _erase_turns(connection, session_id, by_session[session_id])
    return len(old)


def erase_idle_sessions(connection: Connection, before_s: float, limit: int) -> int:
    """Deletes up to `limit` sessions without a turn whose newest plan is older; how many. Tombstones stay."""
    has_turns = select(turns.c.bucket).where(
        turns.c.bucket == sessions.c.bucket, turns.c.session_id == sessions.c.session_id
    )
    idle = connection.scalars(
        select(sessions.c.session_id)
        .where(sessions.c.epoch < round(before_s * 1000), sessions.c.principal != NOBODY, ~has_turns.exists())
        .limit(limit)
        .with_for_update(of=sessions, skip_locked=True)
    ).all()
    for session_id in idle:
        connection.execute(delete(sessions).where(is_session(sessions, session_id)))
    return len(idle)


def _erase_turns(connection: Connection, session_id: str, turn_ids: Iterable[str]) -> None:
    connection.execute(select(sessions.c.epoch).where(is_session(sessions, session_id)).with_for_update())
    its = turns.c.turn_id.in_(list(turn_ids))
    note_removed(connection, session_id, its)
    connection.execute(delete(turns).where(is_session(turns, session_id), its))
    if not connection.scalar(select(func.count()).select_from(turns).where(is_session(turns, session_id))):
        connection.execute(delete(outbox).where(is_session(outbox, session_id)))


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
