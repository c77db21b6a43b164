"""Cutting off, as statements: somebody more, somebody less, and who is."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from token_broker.memory.errors import CutOffListFullError
from token_broker.memory.store.tables import cutoffs, sessions
from token_broker.memory.store.turns import is_session
from token_broker.memory.types import CutOff, CutOffKind

__all__ = ["MAX_CUT_OFFS", "Key", "cut_off", "cut_off_keys", "is_known", "lift", "list_cut_offs"]

Key = tuple[CutOffKind, str]

MAX_CUT_OFFS = 10_000  # each replica holds all of them, and reads them every two seconds


def cut_off(connection: Connection, kind: CutOffKind, name: str, now_us: int) -> bool:
    """Cuts off a principal or a session; False where it was already. Raises CutOffListFullError."""
    insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[connection.dialect.name]
    row = {"kind": kind, "id": name, "since_us": now_us}
    is_new: bool = connection.execute(insert(cutoffs).values(row).on_conflict_do_nothing()).rowcount > 0
    if is_new and (connection.scalar(select(func.count()).select_from(cutoffs)) or 0) > MAX_CUT_OFFS:
        raise CutOffListFullError(f"{MAX_CUT_OFFS} are cut off already: let some of them in again first (--lift)")
    return is_new


def lift(connection: Connection, kind: CutOffKind, name: str) -> bool:
    """Lets in again; False where it was not cut off."""
    return connection.execute(delete(cutoffs).where(_is(kind, name))).rowcount > 0


def list_cut_offs(connection: Connection) -> list[CutOff]:
    """All that are cut off, the latest last."""
    rows = connection.execute(select(cutoffs).order_by(cutoffs.c.since_us, cutoffs.c.kind, cutoffs.c.id))
    return [CutOff(row.kind, row.id, datetime.fromtimestamp(row.since_us / 1_000_000, UTC)) for row in rows]


def cut_off_keys(connection: Connection, limit: int, *, after: Key | None = None) -> list[Key]:
    """The next `limit` of all that are cut off, by kind and id, behind `after`."""
    key = (cutoffs.c.kind, cutoffs.c.id)
    wanted = select(*key).order_by(*key).limit(limit)
    if after is not None:
        wanted = wanted.where(tuple_(*key) > after)
    return [(kind, name) for kind, name in connection.execute(wanted)]


def is_known(connection: Connection, kind: CutOffKind, name: str) -> bool:
    """Whether a stored session is it, or is its own."""
    its = is_session(sessions, name) if kind == "session" else sessions.c.principal == name
    return connection.execute(select(sessions.c.epoch).where(its).limit(1)).first() is not None


def _is(kind: CutOffKind, name: str) -> ColumnElement[bool]:
    return and_(cutoffs.c.kind == kind, cutoffs.c.id == name)
