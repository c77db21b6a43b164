"""What is read back of the turns: pages for receipts, and what the local recall is made of."""

from sqlalchemy import Connection, and_, select, tuple_

from token_broker.memory.base import NOBODY, Owner
from token_broker.memory.errors import NotOwnerError
from token_broker.memory.rows import StoredTurn, stored_turn
from token_broker.memory.store import is_session
from token_broker.memory.tables import sessions, turns

__all__ = ["last_turns", "last_turns_of", "list_turns", "recent_sessions"]

_ORDER = (turns.c.epoch, turns.c.place, turns.c.arrival)


def list_turns(
    connection: Connection, session_id: str, limit: int, after: str | None, *, principal: str
) -> list[StoredTurn] | None:
    """`principal`'s session's turns in order, those behind the turn `after`; None where there is no such turn.

    A session that is not stored, or was erased, has none. Raises NotOwnerError where the session is another's: the
    stored owner decides, in the transaction that reads.
    """
    owner = connection.scalar(select(sessions.c.principal).where(is_session(sessions, session_id)))
    if owner in {None, NOBODY}:
        return [] if after is None else None
    if owner != principal:
        raise NotOwnerError(erased=False)
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
