"""Many rows in one statement, whose rows are parameters: `VALUES` for SQLite, an array a column for PostgreSQL.

So a batch makes no trip through the interpreter's lock a row, and neither database has to pick its values out of JSON.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Dialect,
    FromClause,
    Insert,
    Table,
    Text,
    literal_column,
    select,
    table,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import asyncpg

__all__ = ["BATCH_ROWS", "Batch", "batch_fields", "insert_for", "insert_from_batch"]

_DIALECTS: dict[str, Dialect] = {"sqlite": sqlite.dialect(), "postgresql": asyncpg.dialect()}  # type: ignore[no-untyped-call]
_FEW_ROWS = 64
_MOST_ROWS = 512  # times columns: SQLite takes 32,766 values

BATCH_ROWS: FromClause = table("batch")  # to read `batch_fields` from; `Batch` puts the rows themselves there


class Batch:
    """An `Insert` that reads `BATCH_ROWS`, whose rows have fields for these columns.

    It is compiled here, once: SQLAlchemy would walk through such a statement at each execution, to find out that it
    knows it already.
    """

    def __init__(self, columns: Sequence[Column[Any]], make: Callable[[str], Insert]) -> None:
        self._width = len(columns)
        compiled = {name: str(make(name).compile(dialect=dialect)) for name, dialect in _DIALECTS.items()}
        self._values = compiled["sqlite"]
        self._arrays = _from(compiled["postgresql"], _unnested(columns))
        self._literals = [_literal_of(column) for column in columns]

    def run(self, connection: Connection, rows: Sequence[Sequence[Any]]) -> int:
        """How many rows it wrote; there is at least one to write."""
        if connection.dialect.name == "postgresql":
            columns = zip(*rows, strict=True)
            arrays = tuple(literal(values) for literal, values in zip(self._literals, columns, strict=True))
            return connection.exec_driver_sql(self._arrays, arrays).rowcount
        left, written = iter(rows), 0
        while part := list(islice(left, _MOST_ROWS)):
            size = _rounded(len(part))
            values = [*chain.from_iterable(part), *[None] * (self._width * (size - len(part)))]
            statement = _with_values(self._values, self._width, size)
            written += connection.exec_driver_sql(statement, tuple(values)).rowcount
        return written


def _rounded(count: int) -> int:
    """Statements come in few sizes, so that SQLite keeps them prepared; what is left of one are rows of NULL."""
    if count > _FEW_ROWS:
        return -(-count // _FEW_ROWS) * _FEW_ROWS
    return 1 << (count - 1).bit_length()


@lru_cache(maxsize=64)
def _with_values(statement: str, width: int, size: int) -> str:
    row = f"({', '.join('?' * width)})"
    return _from(statement, f"(VALUES {', '.join([row] * size)}) AS batch")  # whose columns SQLite names as we do


def _unnested(columns: Sequence[Column[Any]]) -> str:
    """Each array is one text, which PostgreSQL reads in less time than asyncpg takes to encode elements one by one."""
    types = [column.type.compile(dialect=_DIALECTS["postgresql"]) for column in columns]
    arrays = ", ".join(f"${number}::text::{name}[]" for number, name in enumerate(types, 1))
    return f"unnest({arrays}) AS batch ({', '.join(f'column{number}' for number, _ in enumerate(columns, 1))})"


def _literal_of(column: Column[Any]) -> Callable[[Sequence[Any]], str]:
    return _quoted_array if isinstance(column.type, Text) else _plain_array


def _plain_array(values: Sequence[Any]) -> str:
    """PostgreSQL's literal for numbers and booleans."""
    return f"{{{','.join(['NULL' if value is None else str(value) for value in values])}}}"


def _quoted_array(values: Sequence[str | None]) -> str:
    """PostgreSQL's literal for texts: between quotes only `"` and the backslash mean more (manual, §8.15.6)."""
    return f"{{{','.join(['NULL' if value is None else _quoted(value) for value in values])}}}"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _from(statement: str, rows: str) -> str:
    before, _, behind = statement.partition("FROM batch")
    return f"{before}FROM {rows}{behind}"


def batch_fields(columns: Sequence[Column[Any]]) -> list[ColumnElement[Any]]:
    """The fields of a row of the batch, in their order."""
    return [literal_column(f"batch.column{number}", column.type) for number, column in enumerate(columns, 1)]


def insert_from_batch(dialect: str, into: Table, columns: Sequence[Column[Any]]) -> Any:
    """Inserts each row of the batch, of which the first field is never NULL."""
    fields = batch_fields(columns)
    source = select(*fields).select_from(BATCH_ROWS).where(fields[0].is_not(None))
    return insert_for(dialect, into).from_select([column.name for column in columns], source)


def insert_for(dialect: str, into: Table) -> Any:
    """The dialect's own `Insert`, which knows ON CONFLICT."""
    return {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[dialect](into)
