"""Everything that is stored of a session or a user, in pages of a bounded size, for an export."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, and_, or_, select, tuple_

from token_broker.memory.store.tables import (
    SESSION_TABLES,
    TURN_ORDER,
    is_session,
    outbox,
    sessions,
    stored_turn,
    turn_words,
    turns,
    usage,
)
from token_broker.memory.types import ERASED_PRINCIPAL, StoredTurn
from token_broker.security.tokens import ANONYMOUS

__all__ = ["Line", "export_rows", "export_session", "export_sessions", "export_turns"]

Line = Mapping[str, Any]
"""A line of an export, as JSON has it; `type` says what it is of."""

_PAGE = 200


def export_sessions(connection: Connection, user: str, after: tuple[int, str], limit: int) -> list[tuple[int, str]]:
    """The next sessions of a principal, or of those without authentication that bear this label, by their keys."""
    is_users = or_(sessions.c.principal == user, and_(sessions.c.principal == ANONYMOUS, sessions.c.user_id == user))
    key = (sessions.c.bucket, sessions.c.session_id)
    rows = connection.execute(select(*key).where(is_users, tuple_(*key) > after).order_by(*key).limit(limit))
    return [(row.bucket, row.session_id) for row in rows]


def export_session(connection: Connection, session_id: str) -> Line | None:
    """The session itself; None where it is not stored, or was erased."""
    wanted = and_(is_session(sessions, session_id), sessions.c.principal != ERASED_PRINCIPAL)
    row = connection.execute(select(sessions).where(wanted)).first()
    if row is None:
        return None
    return {
        "type": "session",
        "session_id": session_id,
        "principal": row.principal,
        "user_id": row.user_id,
        "agent_id": row.agent_id,
        "created_at": datetime.fromtimestamp(row.created_at_us / 1_000_000, UTC).isoformat().replace("+00:00", "Z"),
    }


def export_turns(connection: Connection, session_id: str, after: tuple[int, int, int] | None) -> list[StoredTurn]:
    """The next turns of a session in order, behind the one with that position."""
    wanted = is_session(turns, session_id)
    if after is not None:
        wanted = and_(wanted, tuple_(*TURN_ORDER) > after)
    rows = connection.execute(select(turns).where(wanted).order_by(*TURN_ORDER).limit(_PAGE))
    return [stored_turn(row) for row in rows]


def export_rows(connection: Connection, session_id: str) -> Iterator[Line]:
    """What is stored of a session beside its turns."""
    for table in (*SESSION_TABLES, usage):
        if table in (outbox, turn_words):  # a position, and words that the turns have
            continue
        for row in connection.execute(select(table).where(is_session(table, session_id))).mappings():
            yield {"type": table.name} | {key: value for key, value in row.items() if key != "bucket"}
