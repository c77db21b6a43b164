"""What is read back of the turns: pages for receipts, and what the local recall is made of."""

from collections.abc import Sequence

from sqlalchemy import Connection, and_, select, text, tuple_

from token_broker.memory.base import Owner
from token_broker.memory.keys import bucket_of
from token_broker.memory.rows import StoredTurn, stored_turn
from token_broker.memory.store import is_session
from token_broker.memory.tables import sessions, turns

__all__ = ["last_turns", "last_turns_of", "list_turns", "recent_sessions", "search"]

_ORDER = (turns.c.epoch, turns.c.place, turns.c.arrival)


def list_turns(connection: Connection, session_id: str, limit: int, after: str | None) -> list[StoredTurn] | None:
    """A session's turns in order, those behind the turn `after`; None where there is no such turn."""
    wanted = is_session(turns, session_id)
    if after is not None:
        mark = connection.execute(select(*_ORDER).where(wanted, turns.c.turn_id == after)).first()
        if mark is None:
            return None
        wanted = and_(wanted, tuple_(*_ORDER) > tuple_(*mark))
    return [stored_turn(row) for row in connection.execute(select(turns).where(wanted).order_by(*_ORDER).limit(limit))]


def last_turns(connection: Connection, session_id: str, limit: int) -> list[StoredTurn]:
    """The newest turns of a session, oldest of them first."""
    newest = (column.desc() for column in _ORDER)
    rows = connection.execute(select(turns).where(is_session(turns, session_id)).order_by(*newest).limit(limit)).all()
    return [stored_turn(row) for row in reversed(rows)]


def last_turns_of(connection: Connection, owner: Owner, limit: int) -> list[StoredTurn] | None:
    """The same, if the session is stored and `owner`'s; else None."""
    principal = connection.scalar(select(sessions.c.principal).where(is_session(sessions, owner.session_id)))
    return last_turns(connection, owner.session_id, limit) if principal == owner.principal else None


def recent_sessions(connection: Connection, principal: str, limit: int, *, but: str) -> list[str]:
    """A principal's sessions with the newest plans first, without `but`."""
    wanted = and_(sessions.c.principal == principal, sessions.c.session_id != but)
    newest = select(sessions.c.session_id).where(wanted).order_by(sessions.c.epoch.desc()).limit(limit)
    return list(connection.scalars(newest))


def search(connection: Connection, words: Sequence[str], limit: int, *, session_ids: Sequence[str]) -> list[StoredTurn]:
    """The turns of these sessions that have most to do with `words`, best first."""
    if not words or not session_ids:
        return []
    find = _search_sqlite if connection.dialect.name == "sqlite" else _search_postgresql
    return find(connection, words, limit, session_ids)


def _search_sqlite(
    connection: Connection, words: Sequence[str], limit: int, session_ids: Sequence[str]
) -> list[StoredTurn]:
    owners = " OR ".join(f'"s{session_id.encode().hex().upper()}"' for session_id in session_ids)
    contents = " OR ".join(f'"{word}"' for word in (word.replace('"', "") for word in words) if word)
    query = f"owner : ({owners}) AND content : ({contents})"
    hits = text(
        "SELECT rowid FROM turn_words WHERE turn_words MATCH :query ORDER BY bm25(turn_words, 0.0, 1.0) LIMIT :limit"
    )
    arrivals = list(connection.scalars(hits, {"query": query, "limit": limit}))
    rows = {row.arrival: row for row in connection.execute(select(turns).where(turns.c.arrival.in_(arrivals)))}
    return [stored_turn(rows[arrival]) for arrival in arrivals if arrival in rows]


def _search_postgresql(
    connection: Connection, words: Sequence[str], limit: int, session_ids: Sequence[str]
) -> list[StoredTurn]:
    wanted = {
        "buckets": [bucket_of(session_id) for session_id in session_ids],
        "session_ids": list(session_ids),
        "words": " OR ".join(f'"{word}"' for word in words),
        "searched": _SEARCHED_TURNS,
        "limit": limit,
    }
    return [stored_turn(row) for row in connection.execute(_SEARCH_POSTGRESQL, wanted)]


# An index of all words would have to be read for everybody's; by its key a session's turns are found at once, and as
# many as are looked through here are through in half of what recall may take. The newest come first, session by session.
# websearch_to_tsquery takes any text, and knows OR.
_SEARCHED_TURNS = 5_000
_SEARCH_POSTGRESQL = text("""
SELECT found.* FROM (
    SELECT said.*, to_tsvector('simple', said.content) AS document
    FROM unnest(CAST(:buckets AS smallint[]), CAST(:session_ids AS text[])) AS searched (bucket, session_id)
    CROSS JOIN LATERAL (
        SELECT turns.* FROM turns
        WHERE turns.bucket = searched.bucket AND turns.session_id = searched.session_id
        ORDER BY turns.epoch DESC, turns.place DESC, turns.arrival DESC
        LIMIT :searched
    ) AS said
    LIMIT :searched
) AS found, websearch_to_tsquery('simple', :words) AS query
WHERE found.document @@ query
ORDER BY ts_rank(found.document, query) DESC, found.arrival DESC
LIMIT :limit
""")
