"""Stores held open for a block, one that does what the test says, and whether a file is whole."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

from token_broker.memory.database import Database
from token_broker.memory.errors import StoreError, StoreRefusedError

__all__ = ["Obstinate", "assert_sound", "opened"]

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
    """An SQLite file is whole, and so is its index of words."""
    with contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        file.execute("INSERT INTO turn_words (turn_words) VALUES ('integrity-check')")


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

    async def write(self, work: Any, *, again: bool = True) -> Any:
        self.writes += 1
        self.asked.set()
        await self.free.wait()
        if self.error is not None:
            raise self.error
        if any(item.turn.turn_id == self.refuses for item in getattr(work, "keywords", {}).get("batch", [])):
            raise StoreRefusedError("spoilt")
        return await self._database.write(work, again=again)

    async def read(self, work: Any) -> Any:
        await self.free.wait()
        if self.error is not None:
            raise self.error
        return await self._database.read(work)

    async def close(self) -> None: ...
