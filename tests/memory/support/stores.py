"""Stores held open for a block, and one that does what the test says."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, TypeVar

from token_broker.memory.database import Database
from token_broker.memory.errors import StoreError, StoreRefusedError

__all__ = ["Obstinate", "opened"]

D = TypeVar("D", bound=Database)


@contextlib.asynccontextmanager
async def opened(database: D) -> AsyncIterator[D]:
    """The database, open until the block ends."""
    await database.open()
    try:
        yield database
    finally:
        await database.close()


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
