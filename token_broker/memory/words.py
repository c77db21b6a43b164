"""SQLite's full text, filled behind the commits: a turn is acknowledged first, and its words are found a moment later.

A commit that indexed its own turns would take twice as long; by the hundred they cost a fraction of that (measured:
benchmarks/memory). The index itself tells how far it is, so a crash loses nothing, nor does a while without it (nobody
searches here with Zep for a memory): the rest is taken up at the next start. PostgreSQL's index fills itself.
"""

import asyncio
from typing import TYPE_CHECKING

from token_broker.memory.database import Database
from token_broker.memory.errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["WordIndexer", "index_words"]

_AT_ONCE = 500  # turns a transaction: the next commit waits behind it
_PAUSE_S = 0.25
_AWAY_S = 2.0

# A turn's arrival is its row in the index, and whatever comes later arrives later. A session is `s` and its id as hex.
_INDEX = """
INSERT INTO turn_words (rowid, owner, content)
SELECT t.arrival, 's' || hex(t.session_id) || ' p' || hex(s.principal), t.content
FROM turns t JOIN sessions s ON s.bucket = t.bucket AND s.session_id = t.session_id
WHERE t.arrival > coalesce((SELECT rowid FROM turn_words ORDER BY rowid DESC LIMIT 1), 0)
ORDER BY t.arrival LIMIT ?
"""


def index_words(connection: "Connection", limit: int = _AT_ONCE) -> int:
    """Makes the oldest turns that are not yet in SQLite's full text searchable; how many turns."""
    return connection.exec_driver_sql(_INDEX, (limit,)).rowcount


class WordIndexer:
    """Indexes what is stored: at once where it is quiet, else a few times a second. `run` is to be started once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wake = asyncio.Event()
        self._wake.set()  # what an earlier process left

    def nudge(self) -> None:
        """Something was stored."""
        self._wake.set()

    async def run(self) -> None:
        """Indexes until it is cancelled; a store that is away is tried again."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            pause_s = _PAUSE_S
            try:
                while await self._database.write(index_words):
                    pass
            except StoreError:
                self._wake.set()
                pause_s = _AWAY_S
            await asyncio.sleep(pause_s)
