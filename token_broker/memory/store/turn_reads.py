"""Reading turns, as statements: pages of receipts, and what recall shows of a session."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, select, tuple_

from token_broker.memory.store.tables import TURN_ORDER, is_session, sessions, stored_turn, turns
from token_broker.memory.store_errors import NotOwnerError
from token_broker.memory.types import ERASED_PRINCIPAL, StoredTurn
from token_broker.security.tokens import Owner

__all__ = [
    "PAGE_BYTES",
    "Page",
    "last_turns",
    "last_turns_of",
    "list_turns",
    "recent_sessions",
    "turn_columns",
    "turns_at",
]

PAGE_BYTES = 1_048_576  # of content


class Page(list[StoredTurn]):
    """Turns in order; `more` where the session has others behind them."""

    def __init__(self, turns: Iterable[StoredTurn] = (), *, more: bool = False) -> None:
        super().__init__(turns)
        self.more = more


def list_turns(
    connection: Connection,
    session_id: str,
    limit: int,
    after: str | None,
    *,
    principal: str,
    max_bytes: int = PAGE_BYTES,
) -> Page | None:
    """The turns of `principal`'s session in order, behind the turn `after`; None where there is no such turn.

    At most `limit` of them and `max_bytes` of content in UTF-8, but one at least; no more than that is ever fetched.
    A session that is not stored, or was erased, has none. Raises NotOwnerError where the session is another
    principal's: the stored owner decides, in the transaction that reads.
    """
    owner = connection.scalar(select(sessions.c.principal).where(is_session(sessions, session_id)))
    if owner in {None, ERASED_PRINCIPAL}:
        return Page() if after is None else None
    if owner != principal:
        raise NotOwnerError(erased=False)
    wanted = is_session(turns, session_id)
    if after is not None:
        mark = connection.execute(select(*TURN_ORDER).where(wanted, turns.c.turn_id == after)).first()
        if mark is None:
            return None
        wanted = and_(wanted, tuple_(*TURN_ORDER) > tuple_(*mark))
    if connection.dialect.name == "sqlite":
        # Row by row, in the index's order: SQLite reads a row when it is asked for.
        with connection.execute(select(turns).where(wanted).order_by(*TURN_ORDER).limit(limit + 1)) as rows:
            page: list[StoredTurn] = []
            left_bytes = max_bytes
            for row in rows:
                left_bytes -= len(row.content.encode())
                if page and (left_bytes < 0 or len(page) == limit):
                    return Page(page, more=True)
                page.append(stored_turn(row))
        return Page(page, more=False)
    # asyncpg fetches a whole result at once: so the sizes first, which are small, and then so many rows as fit.
    sizes = connection.scalars(
        select(func.octet_length(turns.c.content)).where(wanted).order_by(*TURN_ORDER).limit(limit + 1)
    ).all()
    count = max(1, sum(total <= max_bytes for total in accumulate(sizes[:limit])))
    fitting = connection.execute(select(turns).where(wanted).order_by(*TURN_ORDER).limit(count))
    return Page([stored_turn(row) for row in fitting], more=len(sizes) > count)


def last_turns(connection: Connection, session_id: str, limit: int, *, chars: int | None = None) -> list[StoredTurn]:
    """The newest turns of a session, oldest of them first; of each content the first `chars`, or all."""
    newest = (column.desc() for column in TURN_ORDER)
    wanted = select(*turn_columns(chars)).where(is_session(turns, session_id)).order_by(*newest).limit(limit)
    return [stored_turn(row) for row in reversed(connection.execute(wanted).all())]


def last_turns_of(
    connection: Connection, owner: Owner, limit: int, *, chars: int | None = None
) -> list[StoredTurn] | None:
    """The same, if the session is stored and `owner`'s; else None."""
    principal = connection.scalar(select(sessions.c.principal).where(is_session(sessions, owner.session_id)))
    return last_turns(connection, owner.session_id, limit, chars=chars) if principal == owner.principal else None


def turn_columns(chars: int | None) -> list[ColumnElement[Any]]:
    """A turn's columns, with the first `chars` of its content, or all: recall shows little of a long turn."""
    cut = turns.c.content if chars is None else func.substr(turns.c.content, 1, chars).label("content")
    return [cut if column is turns.c.content else column for column in turns.c]


def recent_sessions(connection: Connection, principal: str, limit: int, *, but: str = "") -> list[str]:
    """A principal's sessions, those with the newest plans first, without `but`."""
    wanted = and_(sessions.c.principal == principal, sessions.c.session_id != but)
    newest = select(sessions.c.session_id).where(wanted).order_by(sessions.c.epoch.desc()).limit(limit)
    return list(connection.scalars(newest))


def turns_at(
    connection: Connection, arrivals: Sequence[int], *, principal: str, chars: int | None = None
) -> list[StoredTurn]:
    """The turns of these arrivals, in this order, in sessions that are still `principal`'s; of each `chars` or all."""
    owned = select(sessions.c.session_id).where(
        sessions.c.bucket == turns.c.bucket,
        sessions.c.session_id == turns.c.session_id,
        sessions.c.principal == principal,
    )
    wanted = select(*turn_columns(chars)).where(turns.c.arrival.in_(arrivals), owned.exists())
    rows = {row.arrival: row for row in connection.execute(wanted)}
    return [stored_turn(rows[arrival]) for arrival in arrivals if arrival in rows]
