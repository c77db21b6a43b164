"""Full text: the index of SQLite, filled behind the commits, and the search in somebody's own sessions.

A commit that indexed its own turns would keep its callers waiting, now and then for a merge of the index, which has no
bound; and a hundred turns at once cost less than one by one. The index itself tells how far it is, so a crash loses
nothing. With Zep nobody searches here, and nothing is indexed; the rest is taken up at the next start without it.
PostgreSQL searches without an index: the index was the dearest part of storing a turn (docs/decisions/0024).

How long a search takes depends on how much was said in the sessions searched, not on how much all others said: nothing
here counts a term in the whole store. What is searched is bounded, the newest first.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import structlog

from token_broker.memory.drivers.database import Database
from token_broker.memory.store_errors import StoreError, StoreRefusedError
from token_broker.memory.types import StoredTurn, bucket_of

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["FullTextIndexer", "clear_index", "index_turns", "merge_segments", "merge_step", "search"]

log = structlog.get_logger(__name__)

_AT_ONCE = 200  # turns a transaction, or so many bytes of them: the next commit waits behind it
_BYTES_AT_ONCE = 1_048_576
_PAGES_AT_ONCE = 16  # of the index, merged in a transaction
_MERGES = 30
_MERGES_BETWEEN = 10  # transactions that each leave a few segments
_PAUSE_S = 0.25
_AWAY_S = 2.0

# A turn's arrival is its row in the index; later turns have greater arrivals.
_NEXT = """
SELECT arrival, length(content) FROM turns
WHERE arrival > coalesce((SELECT rowid FROM turns_fts ORDER BY rowid DESC LIMIT 1), 0)
ORDER BY arrival LIMIT ?
"""
_INDEX = """
INSERT INTO turns_fts (rowid, owner, content)
SELECT arrival, 's' || hex(session_id), content FROM turns WHERE arrival BETWEEN ? AND ? ORDER BY arrival
"""
_MERGE = "INSERT INTO turns_fts (turns_fts, rank) VALUES ('merge', ?)"
_CLEAR = "INSERT INTO turns_fts (turns_fts) VALUES ('delete-all')"
_DAMAGED = "SQLITE_CORRUPT_VTAB"  # a damaged index may also refuse a row, which a sound one never does
_NO_MERGE = 2  # a merge that changes fewer rows has found nothing to do (FTS5's documentation, §6.8)

# FTS5's own rank, bm25, would count each term in everybody's turns, at each search; so turns are ranked here. The index
# is read from its newest turn back, and no further than needed.
_RANKED_TURNS = 150
_RANKED_CHARS = 400  # of each
_FOUND_SQLITE = """
SELECT arrival, substr(content, 1, :chars) FROM turns
WHERE arrival IN (SELECT rowid FROM turns_fts WHERE turns_fts MATCH :query ORDER BY rowid DESC LIMIT :ranked)
"""

# A session's turns are found by their key. websearch_to_tsquery takes any text, and knows OR.
_SEARCHED_TURNS = 2_000
_SEARCHED_CHARS = 400  # of each
_SEARCH_POSTGRESQL = """
SELECT found.arrival FROM (
    SELECT said.*, to_tsvector('simple', substr(said.content, 1, :chars)) AS document
    FROM unnest(CAST(:buckets AS smallint[]), CAST(:session_ids AS text[])) AS searched (bucket, session_id)
    CROSS JOIN LATERAL (
        SELECT turns.* FROM turns
        WHERE turns.bucket = searched.bucket AND turns.session_id = searched.session_id
        ORDER BY turns.epoch DESC, turns.place DESC, turns.arrival DESC
        LIMIT :searched
    ) AS said
    LIMIT :searched
) AS found, websearch_to_tsquery('simple', :terms) AS query
WHERE found.document @@ query
ORDER BY ts_rank(found.document, query) DESC, found.arrival DESC
LIMIT :limit
"""


def search(
    connection: "Connection", terms: Sequence[str], limit: int, *, session_ids: Sequence[str], chars: int | None = None
) -> list[StoredTurn]:
    """The turns of these sessions that match `terms` best, best first; the first `chars` of each, or all."""
    from sqlalchemy import select, text

    from token_broker.memory.store.tables import stored_turn, turns
    from token_broker.memory.store.turn_reads import turn_columns

    if not terms or not session_ids:
        return []
    if connection.dialect.name == "sqlite":
        owners = " OR ".join(f'"s{session_id.encode().hex().upper()}"' for session_id in session_ids)
        contents = " OR ".join(f'"{term}"' for term in (term.replace('"', "") for term in terms) if term)
        query = {"query": f"owner : ({owners}) AND content : ({contents})"}
        bounds = {"chars": _RANKED_CHARS, "ranked": _RANKED_TURNS}
        arrivals = _ranked(connection.execute(text(_FOUND_SQLITE), query | bounds).all(), terms)[:limit]
    else:
        wanted = {
            "buckets": [bucket_of(session_id) for session_id in session_ids],
            "session_ids": list(session_ids),
            "terms": " OR ".join(f'"{term}"' for term in terms),
            "searched": _SEARCHED_TURNS,
            "chars": _SEARCHED_CHARS,
            "limit": limit,
        }
        arrivals = list(connection.scalars(text(_SEARCH_POSTGRESQL), wanted))
    found = connection.execute(select(*turn_columns(chars)).where(turns.c.arrival.in_(arrivals)))
    rows = {row.arrival: row for row in found if row.session_id in session_ids}
    return [stored_turn(rows[arrival]) for arrival in arrivals if arrival in rows]


def _ranked(found: Sequence[Any], terms: Sequence[str]) -> list[int]:
    """Arrivals, best first: the fewer of these turns have a term, the more it weighs. Equals: the newer first."""
    wanted = frozenset(terms)
    # The index has matched whole terms; matching parts of words here costs a tenth of splitting the texts again.
    texts = {arrival: content.casefold() for arrival, content in found}
    hits = {arrival: [term for term in wanted if term in content] for arrival, content in texts.items()}
    counts = Counter(term for matched in hits.values() for term in matched)
    weights = {arrival: sum(1 / counts[term] for term in matched) for arrival, matched in hits.items()}
    return sorted(hits, key=lambda arrival: (weights[arrival], arrival), reverse=True)


def index_turns(connection: "Connection", limit: int = _AT_ONCE, *, max_bytes: int = _BYTES_AT_ONCE) -> int:
    """Adds the oldest turns that are not indexed yet to SQLite's full text; how many turns, 0 at the end."""
    from token_broker.memory.store.tables import within_bytes

    sizes = ((arrival, size) for arrival, size in connection.exec_driver_sql(_NEXT, (limit,)).all())
    if not (arrivals := within_bytes(sizes, max_bytes)):
        return 0
    return connection.exec_driver_sql(_INDEX, (arrivals[0], arrivals[-1])).rowcount


def merge_step(connection: "Connection") -> bool:
    """Merges a few of the segments that indexing leaves, which a search has to go through; whether there were any.

    SQLite would merge as it indexes, and now and then so much at once that a commit waits long behind it.
    """
    driver: Any = connection.connection.dbapi_connection
    before = driver.total_changes
    connection.exec_driver_sql(_MERGE, (_PAGES_AT_ONCE,))
    return bool(driver.total_changes - before >= _NO_MERGE)


async def merge_segments(database: Database, steps: int = _MERGES_BETWEEN) -> bool:
    """Merges in up to `steps` transactions; whether segments may be left.

    Call it between transactions that index or delete turns of an SQLite store. Each leaves a few segments behind; from
    some hundreds on SQLite merges them all within one commit, for many seconds.
    """
    for _ in range(steps):
        if not await database.write(merge_step):
            return False
    return True


def clear_index(connection: "Connection") -> None:
    """Takes everything out of the index, even out of a damaged one; `index_turns` fills it again."""
    connection.exec_driver_sql(_CLEAR)


class FullTextIndexer:
    """Indexes stored turns: at once in a quiet store, else a few times a second. Start `run` once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wake = asyncio.Event()
        self._wake.set()  # an earlier process may have left turns unindexed
        self._failing = False
        self._was_cleared = False

    def nudge(self) -> None:
        """Something was stored."""
        self._wake.set()

    async def run(self) -> None:
        """Indexes until it is cancelled; a store that is away is tried again."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while await self._database.write(index_turns):
                    await merge_segments(self._database)
                if await merge_segments(self._database, _MERGES):
                    self._wake.set()
            except StoreError as error:
                if not self._failing:  # logged once; while it lasts, recall finds no new turn by its terms
                    log.warning("full_text_not_indexed", reason=str(error))
                self._failing = True
                self._wake.set()
                # The index is rebuilt from the turns. Turns cannot be deleted beside a damaged index. Once a process:
                # where it is damaged again, a rebuild is no repair.
                is_damaged = isinstance(error, StoreRefusedError) or str(error) == _DAMAGED
                if is_damaged and not self._was_cleared:
                    self._was_cleared = True
                    with contextlib.suppress(StoreError):
                        await self._database.write(clear_index)
                await asyncio.sleep(_AWAY_S)
            else:
                if self._failing:
                    log.info("full_text_indexed_again")
                self._failing = False
                await asyncio.sleep(_PAUSE_S)
