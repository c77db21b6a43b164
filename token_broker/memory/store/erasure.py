"""Erasure and retention, as statements: a session, a user, turns that are too old, sessions that are idle.

A session is erased in two steps. `mark_erased` makes its row a tombstone: from that commit on nobody reads it, nothing
is stored in it, and its id never becomes anybody's again. `delete_erased` then deletes its turns in short transactions,
since turns of others wait for each of them. `unfinished_erasures` names what a process that ended has left over.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, literal_column, or_, select, update

from token_broker.memory.store.outbox import request_erasure
from token_broker.memory.store.sessions import subtract_from_size
from token_broker.memory.store.tables import (
    ERASED,
    ERASING,
    NOW_US,
    SESSION_TABLES,
    budget_reservations,
    by_bucket,
    dead_letters,
    erased_users,
    insert_for,
    is_session,
    notices,
    outbox,
    recent_erasures,
    sessions,
    sink_ids,
    summaries,
    tool_claims,
    turns,
    usage,
    within_bytes,
)
from token_broker.memory.store.turn_words import delete_words
from token_broker.memory.store_errors import NotOwnerError
from token_broker.memory.types import ERASED_PRINCIPAL, SINK_BITS, SinkErasure, SinkName, bucket_of
from token_broker.security.tokens import ANONYMOUS

__all__ = [
    "Marked",
    "delete_erased",
    "delete_idle_sessions",
    "delete_older_turns",
    "erased_since",
    "forget_recent",
    "forget_usage",
    "hide_usage",
    "mark_erased",
    "mark_user_erased",
    "sessions_of",
    "sinks_of",
    "unfinished_erasures",
]

_HIDDEN = "erased:"


@dataclass(frozen=True, slots=True)
class Marked:
    """What was erased: so many turns, and until when a delivery of them may be under way (µs since 1970; 0: none)."""

    turns: int
    busy_until_us: int = 0


def mark_erased(
    connection: Connection, session_id: str, now_us: int, *, sinks: Sequence[SinkName], principal: str | None = None
) -> Marked:
    """Makes the session a tombstone. `principal` has to own it; None is an operator.

    Each of `sinks` is asked to erase it, once no delivery is under way, and each that is known to have some of it. A
    session that is not stored becomes a tombstone as well: turns of it that are on their way to the store are refused
    then, and an operator's erasure reaches what the sinks have kept for longer. Raises NotOwnerError.
    """
    row = {
        "bucket": bucket_of(session_id),
        "session_id": session_id,
        "principal": ERASED_PRINCIPAL,
        "epoch": ERASED,
        "created_at_us": now_us,
    }
    made: Any = insert_for(connection.dialect.name, sessions).values(row)
    is_new = connection.execute(made.on_conflict_do_nothing(index_elements=["bucket", "session_id"])).rowcount == 1
    # The lock waits for turns that are being stored, and later ones wait for it: none slips in beside the tombstone.
    held = select(sessions.c.principal, sessions.c.user_id, sessions.c.agent_id, sessions.c.sinks)
    found = connection.execute(held.where(is_session(sessions, session_id)).with_for_update()).one()
    owner = found.principal
    if owner != ERASED_PRINCIPAL and principal not in {None, owner}:
        raise NotOwnerError(erased=False)
    connection.execute(delete(tool_claims).where(is_session(tool_claims, session_id)))
    if owner == ERASED_PRINCIPAL and not (is_new and principal is None):
        return Marked(0)
    busy = select(outbox.c.sink, outbox.c.lease_until_us).where(is_session(outbox, session_id))
    leases = {row.sink: row.lease_until_us for row in connection.execute(busy)}
    # A sink that was taken out may have some of it, too: it stays open, in case the sink comes back.
    named = select(sink_ids.c.sink).where(sink_ids.c.bucket == bucket_of(session_id), sink_ids.c.key == session_id)
    refused = select(dead_letters.c.sink).where(is_session(dead_letters, session_id))
    known = {*_named(found.sinks), *leases, *connection.scalars(named), *connection.scalars(refused)}
    for sink in sorted({*sinks, *known}):
        erasure = SinkErasure(sink, owner or ANONYMOUS, session_id, found.user_id, found.agent_id, before_us=now_us)
        request_erasure(connection, erasure, max(now_us, leases.get(sink, 0)))
    for table in (outbox, notices, summaries):
        connection.execute(delete(table).where(is_session(table, session_id)))
    recent: Any = insert_for(connection.dialect.name, recent_erasures).values(
        bucket=bucket_of(session_id), session_id=session_id, principal=owner, at_us=now_us
    )
    connection.execute(recent.on_conflict_do_nothing())
    hide_usage(connection, is_session(usage, session_id))
    tombstone = {
        "principal": ERASED_PRINCIPAL,
        "user_id": None,
        "agent_id": None,
        "epoch": ERASING,
        "stored_bytes": 0,
        "sinks": 0,
    }
    connection.execute(update(sessions).where(is_session(sessions, session_id)).values(tombstone))
    count = select(func.count()).select_from(turns).where(is_session(turns, session_id))
    return Marked(connection.scalar(count) or 0, max(leases.values(), default=0))


def hide_usage(connection: Connection, whose: ColumnElement[bool]) -> None:
    """Takes session and principal from rows of usage; one name in their place says that they belong together."""
    hidden = {"session_id": "", "principal": f"{_HIDDEN}{secrets.token_hex(8)}"}
    connection.execute(update(usage).where(whose).values(hidden))


def forget_usage(connection: Connection) -> None:
    """Hides usage that was written after an erasure, and makes anonymous what was hidden and whose day has ended.

    Budgets of ended days go, too.
    """
    for row in connection.execute(select(recent_erasures.c.session_id)).all():
        hide_usage(connection, is_session(usage, row.session_id))
    is_hidden = and_(usage.c.principal >= _HIDDEN, usage.c.principal < f"{_HIDDEN[:-1]};")
    today = literal_column(NOW_US[connection.dialect.name]) / literal_column("86400000000")
    connection.execute(update(usage).where(is_hidden, usage.c.day < func.floor(today)).values(principal=""))
    connection.execute(delete(budget_reservations).where(budget_reservations.c.day < func.floor(today)))


def mark_user_erased(connection: Connection, user: str, now_us: int) -> None:
    """From here on sessions of the user that began before are refused: a principal's, and those that bear the label."""
    for kind in ("principal", "label"):
        made: Any = insert_for(connection.dialect.name, erased_users).values(kind=kind, id=user, before_us=now_us)
        later = {"before_us": made.excluded.before_us}
        connection.execute(made.on_conflict_do_update(index_elements=["kind", "id"], set_=later))


def erased_since(connection: Connection, since_us: int, limit: int) -> list[tuple[str, str]]:
    """Sessions that were erased since then, and whose they were; the newest first."""
    recent = recent_erasures.c
    wanted = select(recent.session_id, recent.principal).where(recent.at_us >= since_us)
    return [(row[0], row[1]) for row in connection.execute(wanted.order_by(recent.at_us.desc()).limit(limit))]


def forget_recent(connection: Connection, before_us: int) -> int:
    """Deletes rows of erasures that every replica has seen; how many."""
    return connection.execute(delete(recent_erasures).where(recent_erasures.c.at_us < before_us)).rowcount


def delete_erased(connection: Connection, session_id: str, *, max_turns: int, max_bytes: int) -> int:
    """Deletes some of an erased session's turns, at least one while any is left; how many."""
    is_erased = and_(is_session(sessions, session_id), sessions.c.principal == ERASED_PRINCIPAL)
    if connection.execute(select(sessions.c.epoch).where(is_erased).with_for_update()).first() is None:
        return 0
    sizes = select(turns.c.turn_id, func.length(turns.c.content)).where(is_session(turns, session_id)).limit(max_turns)
    turn_ids = within_bytes(connection.execute(sizes).all(), max_bytes)
    if not turn_ids:
        for table in SESSION_TABLES:
            connection.execute(delete(table).where(is_session(table, session_id)))
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


def sinks_of(connection: Connection, user: str) -> list[SinkName]:
    """The sinks that turns of the user's stored sessions went to."""
    bits = connection.scalars(select(sessions.c.sinks).where(_are_users(user)).distinct())
    return sorted({sink for each in bits for sink in _named(each)})


def _named(bits: int) -> list[SinkName]:
    return [sink for sink, bit in SINK_BITS.items() if bits & bit]


def _are_users(user: str) -> ColumnElement[bool]:
    return or_(sessions.c.principal == user, and_(sessions.c.principal == ANONYMOUS, sessions.c.user_id == user))


def sessions_of(connection: Connection, user: str, limit: int) -> list[str]:
    """Sessions of a principal, or of those without authentication that bear this label; any order."""
    return list(connection.scalars(select(sessions.c.session_id).where(_are_users(user)).limit(limit)))


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
        letters = dead_letters.c.turn_id.in_(by_session[session_id])
        connection.execute(delete(dead_letters).where(is_session(dead_letters, session_id), letters))
        if not connection.scalar(select(func.count()).select_from(turns).where(is_session(turns, session_id))):
            for table in (notices, outbox):
                connection.execute(delete(table).where(is_session(table, session_id)))
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
        for table in (summaries, sessions):
            connection.execute(delete(table).where(is_session(table, session_id)))
    return len(idle)
