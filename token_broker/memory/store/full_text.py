"""SQLite's full text, filled behind the commits: a turn is acknowledged first, and its words are found a moment later.

A commit that indexed its own turns would keep its callers waiting, now and then for a merge of the index's own, which
knows no bound; and by the hundred turns cost less. The index itself tells how far it is, so a crash loses nothing, nor
does a while without it (nobody searches here with Zep for a memory): the rest is taken up at the next start.
PostgreSQL searches without an index, see `searching.py`.
"""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import structlog

from token_broker.memory.drivers.database import Database
from token_broker.memory.errors import StoreError, StoreRefusedError
from token_broker.memory.store.chunks import within_bytes

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["WordIndexer", "empty_words", "index_words", "merge_some", "merge_words"]

log = structlog.get_logger(__name__)

_AT_ONCE = 200  # turns a transaction, or so many bytes of them: the next commit waits behind it
_BYTES_AT_ONCE = 1_048_576
_PAGES_AT_ONCE = 16  # of the index, merged in a transaction
_MERGES = 30
_MERGES_BETWEEN = 10  # transactions that each leave a few pieces
_PAUSE_S = 0.25
_AWAY_S = 2.0

# A turn's arrival is its row in the index, and whatever comes later arrives later.
_NEXT = """
SELECT arrival, length(content) FROM turns
WHERE arrival > coalesce((SELECT rowid FROM turn_words ORDER BY rowid DESC LIMIT 1), 0)
ORDER BY arrival LIMIT ?
"""
_INDEX = """
INSERT INTO turn_words (rowid, owner, content)
SELECT arrival, 's' || hex(session_id), content FROM turns WHERE arrival BETWEEN ? AND ? ORDER BY arrival
"""
_MERGE = "INSERT INTO turn_words (turn_words, rank) VALUES ('merge', ?)"
_EMPTY = "INSERT INTO turn_words (turn_words) VALUES ('delete-all')"
_DAMAGED = "SQLITE_CORRUPT_VTAB"  # or else it refuses a row, for which a sound index has no reason
_NO_MERGE = 2  # a merge that changes fewer rows has found nothing to do (FTS5's documentation, §6.8)


def index_words(connection: "Connection", limit: int = _AT_ONCE, *, max_bytes: int = _BYTES_AT_ONCE) -> int:
    """Makes the oldest turns that are not yet in SQLite's full text searchable; how many turns, 0 at the end."""
    arrivals = within_bytes(
        ((arrival, size) for arrival, size in connection.exec_driver_sql(_NEXT, (limit,)).all()), max_bytes
    )
    if not arrivals:
        return 0
    return connection.exec_driver_sql(_INDEX, (arrivals[0], arrivals[-1])).rowcount


def merge_words(connection: "Connection") -> bool:
    """Merges a little of what indexing leaves in pieces, which a search has to go through; whether there was any.

    SQLite would merge as it indexes, and now and then so much at once that a commit waits long behind it.
    """
    driver: Any = connection.connection.dbapi_connection
    before = driver.total_changes
    connection.exec_driver_sql(_MERGE, (_PAGES_AT_ONCE,))
    return bool(driver.total_changes - before >= _NO_MERGE)


async def merge_some(database: Database) -> None:
    """To be called between transactions that index or delete turns of an SQLite store.

    Each leaves a few pieces behind; from some hundreds on SQLite merges them all within one commit, for many seconds.
    """
    for _ in range(_MERGES_BETWEEN):
        if not await database.write(merge_words):
            return


def empty_words(connection: "Connection") -> None:
    """Takes everything out of the index, however damaged it is; `index_words` fills it anew."""
    connection.exec_driver_sql(_EMPTY)


class WordIndexer:
    """Indexes what is stored: at once where it is quiet, else a few times a second. `run` is to be started once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wake = asyncio.Event()
        self._wake.set()  # what an earlier process left
        self._failing: str | None = None
        self._began_anew = False

    def nudge(self) -> None:
        """Something was stored."""
        self._wake.set()

    async def run(self) -> None:
        """Indexes until it is cancelled; a store that is away is tried again."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while await self._database.write(index_words):
                    await merge_some(self._database)
                if await self._merge():
                    self._wake.set()
            except StoreError as error:
                self._tell(str(error))
                self._wake.set()
                if isinstance(error, StoreRefusedError) or str(error) == _DAMAGED:
                    await self._begin_anew()
                await asyncio.sleep(_AWAY_S)
            else:
                self._tell(None)
                await asyncio.sleep(_PAUSE_S)

    def _tell(self, failing: str | None) -> None:
        """Of a trouble that begins or ends; while it lasts recall finds nothing new by its words."""
        if failing and not self._failing:
            log.warning("words_not_indexed", reason=failing)
        elif self._failing and not failing:
            log.info("words_indexed_again")
        self._failing = failing

    async def _begin_anew(self) -> None:
        """All that is in the index is in the turns; and turns can't be forgotten beside one that is damaged.

        Once in a process: what damages it again is not mended so.
        """
        if not self._began_anew:
            self._began_anew = True
            with contextlib.suppress(StoreError):
                await self._database.write(empty_words)

    async def _merge(self) -> bool:
        """Merges for a while; whether there may be more to do."""
        for _ in range(_MERGES):
            if not await self._database.write(merge_words):
                return False
        return True
