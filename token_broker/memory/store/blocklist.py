"""Blocking, as statements: somebody more, somebody less, and who is."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from token_broker.memory.errors import BlocklistFullError
from token_broker.memory.store.tables import blocklist, sessions
from token_broker.memory.store.turns import is_session
from token_broker.memory.types import Block, BlockKind

__all__ = ["MAX_BLOCKS", "Key", "block", "blocked_keys", "is_known", "list_blocks", "unblock"]

Key = tuple[BlockKind, str]

MAX_BLOCKS = 10_000  # each replica holds all of them, and reads them every two seconds


def block(connection: Connection, kind: BlockKind, name: str, now_us: int) -> bool:
    """Blocks a principal or a session; False where it was already. Raises BlocklistFullError."""
    insert: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[connection.dialect.name]
    row = {"kind": kind, "id": name, "since_us": now_us}
    is_new: bool = connection.execute(insert(blocklist).values(row).on_conflict_do_nothing()).rowcount > 0
    if is_new and (connection.scalar(select(func.count()).select_from(blocklist)) or 0) > MAX_BLOCKS:
        raise BlocklistFullError(f"{MAX_BLOCKS} are blocked already: unblock some of them first")
    return is_new


def unblock(connection: Connection, kind: BlockKind, name: str) -> bool:
    """Lets in again; False where it was not blocked."""
    return connection.execute(delete(blocklist).where(_is(kind, name))).rowcount > 0


def list_blocks(connection: Connection) -> list[Block]:
    """All that are blocked, the latest last."""
    rows = connection.execute(select(blocklist).order_by(blocklist.c.since_us, blocklist.c.kind, blocklist.c.id))
    return [Block(row.kind, row.id, datetime.fromtimestamp(row.since_us / 1_000_000, UTC)) for row in rows]


def blocked_keys(connection: Connection, limit: int, *, after: Key | None = None) -> list[Key]:
    """The next `limit` of all that are blocked, by kind and id, behind `after`."""
    key = (blocklist.c.kind, blocklist.c.id)
    wanted = select(*key).order_by(*key).limit(limit)
    if after is not None:
        wanted = wanted.where(tuple_(*key) > after)
    return [(kind, name) for kind, name in connection.execute(wanted)]


def is_known(connection: Connection, kind: BlockKind, name: str) -> bool:
    """Whether a stored session is it, or is its own."""
    its = is_session(sessions, name) if kind == "session" else sessions.c.principal == name
    return connection.execute(select(sessions.c.epoch).where(its).limit(1)).first() is not None


def _is(kind: BlockKind, name: str) -> ColumnElement[bool]:
    return and_(blocklist.c.kind == kind, blocklist.c.id == name)
