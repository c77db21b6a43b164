"""Many rows in one statement: bound `VALUES` for SQLite, one JSON parameter for PostgreSQL.

So a batch makes no trip through the interpreter's lock a row. SQLite takes values that are bound in half the time that
it takes to pick them out of JSON, and less (measured: benchmarks/memory).
"""

import json
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
    bindparam,
    cast,
    func,
    literal_column,
    select,
    table,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import asyncpg

__all__ = ["Batch", "batch_fields", "batch_rows", "insert_for", "insert_from_batch"]

_DIALECTS: dict[str, Dialect] = {"sqlite": sqlite.dialect(), "postgresql": asyncpg.dialect()}  # type: ignore[no-untyped-call]
_FEW_ROWS = 64
_MOST_ROWS = 512  # times columns: SQLite takes 32,766 values


class Batch:
    """An `Insert` whose rows are read from `batch_rows`, each of `width` fields.

    It is compiled here, once: SQLAlchemy would walk through such a statement at each execution, to find out that it
    knows it already.
    """

    def __init__(self, width: int, make: Callable[[str], Insert]) -> None:
        self._width = width
        self._sql = {name: str(make(name).compile(dialect=dialect)) for name, dialect in _DIALECTS.items()}

    def run(self, connection: Connection, rows: Sequence[Sequence[Any]]) -> int:
        """How many rows it wrote."""
        sql = self._sql[connection.dialect.name]
        if connection.dialect.name == "postgresql":
            return connection.exec_driver_sql(sql, (json.dumps(rows),)).rowcount
        left, written = iter(rows), 0
        while part := list(islice(left, _MOST_ROWS)):
            size = _rounded(len(part))
            values = [*chain.from_iterable(part), *[None] * (self._width * (size - len(part)))]
            written += connection.exec_driver_sql(_of_size(sql, self._width, size), tuple(values)).rowcount
        return written


def _rounded(count: int) -> int:
    """Statements come in few sizes, so that SQLite keeps them prepared; what is left of one are rows of NULL."""
    if count > _FEW_ROWS:
        return -(-count // _FEW_ROWS) * _FEW_ROWS
    return 1 << (count - 1).bit_length()


@lru_cache(maxsize=64)
def _of_size(sql: str, width: int, size: int) -> str:
    row = f"({', '.join('?' * width)})"
    return sql.replace("FROM batch", f"FROM (VALUES {', '.join([row] * size)}) AS batch", 1)


def batch_rows(dialect: str) -> FromClause:
    """The batch's rows, named `batch`, to read `batch_fields` from."""
    if dialect == "sqlite":
        return table("batch")  # for which `_of_size` puts the values
    array = cast(bindparam("rows", type_=Text()), postgresql.JSONB)
    return func.jsonb_array_elements(array).table_valued("value", name="batch")


def batch_fields(dialect: str, columns: Sequence[Column[Any]]) -> list[ColumnElement[Any]]:
    """The fields of a row of the batch, in their order, as what the columns hold."""
    if dialect == "sqlite":
        return [literal_column(f"batch.column{number}", to.type) for number, to in enumerate(columns, 1)]
    return [cast(literal_column(f"batch.value ->> {index}", Text()), to.type) for index, to in enumerate(columns)]


def insert_from_batch(dialect: str, into: Table, columns: Sequence[Column[Any]]) -> Any:
    """Inserts each row of the batch, of which the first field is never NULL."""
    fields = batch_fields(dialect, columns)
    source = select(*fields).select_from(batch_rows(dialect)).where(fields[0].is_not(None))
    return insert_for(dialect, into).from_select([column.name for column in columns], source)


def insert_for(dialect: str, into: Table) -> Any:
    """The dialect's own `Insert`, which knows ON CONFLICT."""
    return {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[dialect](into)
