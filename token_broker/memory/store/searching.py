"""Full text: the turns of somebody's sessions that have most to do with some words.

How long it takes goes by how much was said in these sessions, not by how much all the others said: nothing here counts
a word in the whole store. What is looked through is bounded, the newest of it first.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, select, text

from token_broker.memory.store.keys import bucket_of
from token_broker.memory.store.reading import turn_columns
from token_broker.memory.store.rows import StoredTurn, stored_turn
from token_broker.memory.store.tables import turns

__all__ = ["search"]

# FTS5's own rank, bm25, would count each word in everybody's turns, at each search; so these are weighed here.
# The index is read from its newest turn back, and no further than it takes.
_WEIGHED_TURNS = 150
_WEIGHED_CHARS = 400  # of each
_FOUND_SQLITE = text("""
SELECT arrival, substr(content, 1, :chars) FROM turns
WHERE arrival IN (SELECT rowid FROM turn_words WHERE turn_words MATCH :query ORDER BY rowid DESC LIMIT :weighed)
""")

# An index of all words would have to be read for everybody's; a session's turns are found by their key.
# websearch_to_tsquery takes any text, and knows OR.
_SEARCHED_TURNS = 2_000
_SEARCHED_CHARS = 400  # of each
_SEARCH_POSTGRESQL = text("""
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
) AS found, websearch_to_tsquery('simple', :words) AS query
WHERE found.document @@ query
ORDER BY ts_rank(found.document, query) DESC, found.arrival DESC
LIMIT :limit
""")


def search(
    connection: Connection, words: Sequence[str], limit: int, *, session_ids: Sequence[str], chars: int | None = None
) -> list[StoredTurn]:
    """The turns of these sessions that have most to do with `words`, best first; the first `chars` of each, or all."""
    if not words or not session_ids:
        return []
    find = _search_sqlite if connection.dialect.name == "sqlite" else _search_postgresql
    arrivals = find(connection, words, limit, session_ids)
    found = connection.execute(select(*turn_columns(chars)).where(turns.c.arrival.in_(arrivals)))
    rows = {row.arrival: row for row in found if row.session_id in session_ids}
    return [stored_turn(rows[arrival]) for arrival in arrivals if arrival in rows]


def _search_sqlite(connection: Connection, words: Sequence[str], limit: int, session_ids: Sequence[str]) -> list[int]:
    owners = " OR ".join(f'"s{session_id.encode().hex().upper()}"' for session_id in session_ids)
    contents = " OR ".join(f'"{word}"' for word in (word.replace('"', "") for word in words) if word)
    wanted = {
        "query": f"owner : ({owners}) AND content : ({contents})",
        "chars": _WEIGHED_CHARS,
        "weighed": _WEIGHED_TURNS,
    }
    return _most_telling(connection.execute(_FOUND_SQLITE, wanted), words, limit)


def _most_telling(found: Iterable[Any], words: Sequence[str], limit: int) -> list[int]:
    """Arrivals, best first: the fewer of these turns have a word, the more it says. Of like ones the newer first."""
    wanted = frozenset(words)
    # The index has found them by whole words; to weigh them by parts of words costs a tenth of splitting them again.
    hits = {arrival: _words_in(content.casefold(), wanted) for arrival, content in found}
    counts = Counter(word for having in hits.values() for word in having)
    weights = {arrival: sum(1 / counts[word] for word in having) for arrival, having in hits.items()}
    return sorted(hits, key=lambda arrival: (weights[arrival], arrival), reverse=True)[:limit]


def _words_in(text: str, wanted: Iterable[str]) -> frozenset[str]:
    return frozenset(word for word in wanted if word in text)


def _search_postgresql(
    connection: Connection, words: Sequence[str], limit: int, session_ids: Sequence[str]
) -> list[int]:
    wanted = {
        "buckets": [bucket_of(session_id) for session_id in session_ids],
        "session_ids": list(session_ids),
        "words": " OR ".join(f'"{word}"' for word in words),
        "searched": _SEARCHED_TURNS,
        "chars": _SEARCHED_CHARS,
        "limit": limit,
    }
    return list(connection.scalars(_SEARCH_POSTGRESQL, wanted))
