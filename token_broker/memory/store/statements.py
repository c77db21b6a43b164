"""What the statements share: the rows of a session, many rows in one statement, and how much a transaction works on.

A batch of rows is parameters of one statement: `VALUES` for SQLite, an array a column for PostgreSQL. So it makes no
trip through the interpreter's lock for each row, and neither database has to pick its values out of JSON.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain, islice
from typing import Any, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Dialect,
    FromClause,
    Insert,
    Table,
    Text,
    and_,
    literal_column,
    select,
    table,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import asyncpg

from token_broker.memory.types import Delivery, Position, StoredTurn, bucket_of

__all__ = [
    "BATCH_ROWS",
    "Batch",
    "are_sessions",
    "batch_fields",
    "by_bucket",
    "insert_for",
    "insert_from_batch",
    "is_session",
    "stored_turn",
    "within_bytes",
]

K = TypeVar("K")

_DIALECTS: dict[str, Dialect] = {"sqlite": sqlite.dialect(), "postgresql": asyncpg.dialect()}  # type: ignore[no-untyped-call]
_FEW_ROWS = 64
_MOST_ROWS = 512  # times columns: SQLite takes 32,766 values

BATCH_ROWS: FromClause = table("batch")  # a placeholder to read `batch_fields` from; `Batch` puts the rows in its place


def is_session(table: Table, session_id: str) -> ColumnElement[bool]:
    """The rows of one session."""
    return and_(table.c.bucket == bucket_of(session_id), table.c.session_id == session_id)


def are_sessions(table: Table, session_ids: Iterable[str]) -> ColumnElement[bool]:
    """The rows of several sessions."""
    return tuple_(table.c.bucket, table.c.session_id).in_([(bucket_of(key), key) for key in session_ids])


def by_bucket(session_id: str) -> tuple[int, str]:
    """The key by which rows are sorted before they are locked: replicas that lock in one order never deadlock."""
    return bucket_of(session_id), session_id


def stored_turn(row: Any) -> StoredTurn:
    """The turn of a row of the table `turns`."""
    return StoredTurn(
        turn_id=row.turn_id,
        position=Position(row.epoch, row.place, row.arrival),
        agent_id=row.agent_id,
        role=row.role,
        content=row.content,
        created_at=datetime.fromtimestamp(row.created_at_us / 1_000_000, UTC),
        source=row.source,
        interrupted=bool(row.interrupted),
        channel=row.channel,
        delivery=Delivery(row.delivery),
    )


def within_bytes(sizes: Iterable[tuple[K, int]], max_bytes: int) -> list[K]:
    """The first keys whose sizes add up to `max_bytes` at most; at least one, where there is one.

    For one transaction: turns of others wait behind it.
    """
    keys: list[K] = []
    total_bytes = 0
    for key, size_bytes in sizes:
        total_bytes += size_bytes
        if keys and total_bytes > max_bytes:
            break
        keys.append(key)
    return keys


class Batch:
    """An `Insert` that reads `BATCH_ROWS`, whose rows have fields for these columns.

    It is compiled here, once: SQLAlchemy would walk through such a statement at each execution, to find its cached
    form again.
    """

    def __init__(self, columns: Sequence[Column[Any]], make: Callable[[str], Insert]) -> None:
        self._width = len(columns)
        compiled = {name: str(make(name).compile(dialect=dialect)) for name, dialect in _DIALECTS.items()}
        self._values = compiled["sqlite"]
        # Each array is one text: PostgreSQL parses it in less time than asyncpg takes to encode its elements.
        types = [column.type.compile(dialect=_DIALECTS["postgresql"]) for column in columns]
        arrays = ", ".join(f"${number}::text::{name}[]" for number, name in enumerate(types, 1))
        names = ", ".join(f"column{number}" for number, _ in enumerate(columns, 1))
        self._arrays = _replace_rows(compiled["postgresql"], f"unnest({arrays}) AS batch ({names})")
        self._literals = [_text_array if isinstance(column.type, Text) else _plain_array for column in columns]

    def run(self, connection: Connection, rows: Sequence[Sequence[Any]]) -> int:
        """Writes at least one row; how many rows were written."""
        if connection.dialect.name == "postgresql":
            columns = zip(*rows, strict=True)
            arrays = tuple(literal(values) for literal, values in zip(self._literals, columns, strict=True))
            return connection.exec_driver_sql(self._arrays, arrays).rowcount
        left, written = iter(rows), 0
        while part := list(islice(left, _MOST_ROWS)):
            # Statements come in few sizes, so that SQLite's statement cache keeps them; the rest are rows of NULL.
            count = len(part)
            size = -(-count // _FEW_ROWS) * _FEW_ROWS if count > _FEW_ROWS else 1 << (count - 1).bit_length()
            values = [*chain.from_iterable(part), *[None] * (self._width * (size - count))]
            statement = _with_values(self._values, self._width, size)
            written += connection.exec_driver_sql(statement, tuple(values)).rowcount
        return written


@lru_cache(maxsize=64)
def _with_values(statement: str, width: int, size: int) -> str:
    row = f"({', '.join('?' * width)})"
    return _replace_rows(
        statement, f"(VALUES {', '.join([row] * size)}) AS batch"
    )  # SQLite names its columns `column1`…


def _plain_array(values: Sequence[Any]) -> str:
    """PostgreSQL's literal for numbers and booleans."""
    return f"{{{','.join(['NULL' if value is None else str(value) for value in values])}}}"


def _text_array(values: Sequence[str | None]) -> str:
    """PostgreSQL's literal for texts: in quotes only `"` and the backslash are special (manual, §8.15.6)."""
    quoted = []
    for value in values:
        if value is None:
            quoted.append("NULL")
        else:
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            quoted.append(f'"{escaped}"')
    return f"{{{','.join(quoted)}}}"


def _replace_rows(statement: str, rows: str) -> str:
    before, _, behind = statement.partition("FROM batch")
    return f"{before}FROM {rows}{behind}"


def batch_fields(columns: Sequence[Column[Any]]) -> list[ColumnElement[Any]]:
    """The fields of a row of the batch, in their order."""
    return [literal_column(f"batch.column{number}", column.type) for number, column in enumerate(columns, 1)]


def insert_from_batch(dialect: str, into: Table, columns: Sequence[Column[Any]]) -> Any:
    """Inserts each row of the batch; a row's first field is NULL only in the rows that fill up a statement."""
    fields = batch_fields(columns)
    source = select(*fields).select_from(BATCH_ROWS).where(fields[0].is_not(None))
    return insert_for(dialect, into).from_select([column.name for column in columns], source)


def insert_for(dialect: str, into: Table) -> Any:
    """The dialect's own `Insert`, which has ON CONFLICT."""
    return {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[dialect](into)
