"""Stores held open for a block, one that does what the test says, and whether a file is whole."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, text

from token_broker.memory.drivers.database import Database, PoolName
from token_broker.memory.store.erasure import delete_erased, mark_erased
from token_broker.memory.store_errors import StoreError, StoreRefusedError
from token_broker.memory.types import SinkName

__all__ = ["MAKE_DEAD", "Obstinate", "assert_sound", "erase_session", "make_dead", "opened"]

D = TypeVar("D", bound=Database)


@contextlib.asynccontextmanager
async def opened(database: D) -> AsyncIterator[D]:
    """The database, open until the block ends."""
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def assert_sound(path: Path) -> None:
    """An SQLite file is whole."""
    with contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def erase_session(database: Database, session_id: str, *, now_us: int = 1, sinks: Sequence[SinkName] = ()) -> int:
    """Erases a session and deletes its turns, as a maintenance does; how many it deleted. `sinks` are asked, too."""
    await database.write(partial(mark_erased, session_id=session_id, now_us=now_us, sinks=sinks))
    deleted = 0
    chunk = partial(delete_erased, session_id=session_id, max_turns=100, max_bytes=1_000_000)
    while count := await database.write(chunk):
        deleted += count
    return deleted


MAKE_DEAD = (
    "UPDATE turns SET dead = 1",
    "INSERT INTO dead_letters SELECT bucket, session_id, turn_id, 'zep', arrival, 'refused' FROM turns WHERE dead = 1",
)
"""Makes dead letters of the sink `zep` of all turns, or of those that a condition is added for to the first."""


async def make_dead(database: Database, turn_id: str) -> None:
    """Makes a turn a dead letter of the sink `zep`."""

    def work(connection: Connection) -> None:
        connection.execute(text(f"{MAKE_DEAD[0]} WHERE turn_id = :turn_id"), {"turn_id": turn_id})
        connection.execute(text(MAKE_DEAD[1]))

    await database.write(work)


class Obstinate:
    """A real database, behind something that fails or hangs when it is told to."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.dialect = database.dialect
        self.error: StoreError | None = None
        self.refuses: str | None = None  # a turn id that spoils its batch
        self.free = asyncio.Event()
        self.free.set()
        self.writes = 0
        self.asked = asyncio.Event()

    async def open(self) -> bool:
        return False

    async def write(self, work: Any, *, idempotent: bool = True, one_statement: bool = False) -> Any:
        self.writes += 1
        self.asked.set()
        await self.free.wait()
        if self.error is not None:
            raise self.error
        if any(item.turn.turn_id == self.refuses for item in getattr(work, "keywords", {}).get("batch", [])):
            raise StoreRefusedError("spoilt")
        return await self._database.write(work, idempotent=idempotent, one_statement=one_statement)

    async def read(self, work: Any, *, pool: PoolName = "quick") -> Any:
        await self.free.wait()
        if self.error is not None:
            raise self.error
        return await self._database.read(work, pool=pool)

    async def close(self) -> None: ...
