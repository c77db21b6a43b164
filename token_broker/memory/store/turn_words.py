"""The folded words of turns, as statements: read for recall, and deleted with the turns.

A search reads the words of its user's newest turns, and nothing else: how long it takes goes by what one user said, not
by what all others did. There is no index of words: on both databases it would cost more with each turn than a search
for all of a user's does (docs/decisions/0047).
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, select, text

from token_broker.memory.store.tables import is_session, turn_words, turns
from token_broker.memory.types import bucket_of

__all__ = ["MAX_SEARCHED_TURNS", "delete_words", "read_words"]

MAX_SEARCHED_TURNS = 10_000  # of a user, the newest
_TURNS_A_CHUNK = 200

_READ_SQLITE = """
SELECT group_concat(arrival, ' '), group_concat(words, char(10)), count(*) FROM (
    SELECT arrival, words FROM turn_words WHERE bucket = ? AND session_id = ? ORDER BY arrival DESC LIMIT ?
)
"""
_READ_POSTGRESQL = """
SELECT string_agg(said.arrival::text, ' ') AS arrivals, string_agg(said.words, E'\\n') AS lines
FROM (
    SELECT turn_words.arrival, turn_words.words, searched.number
    FROM unnest(CAST(:buckets AS smallint[]), CAST(:session_ids AS text[]))
        WITH ORDINALITY AS searched (bucket, session_id, number)
    CROSS JOIN LATERAL (
        SELECT turn_words.arrival, turn_words.words FROM turn_words
        WHERE turn_words.bucket = searched.bucket AND turn_words.session_id = searched.session_id
        ORDER BY turn_words.arrival DESC
        LIMIT :searched
    ) AS turn_words
    ORDER BY searched.number
    LIMIT :searched
) AS said
GROUP BY said.number
ORDER BY said.number
"""


def delete_words(connection: Connection, session_id: str, *which: ColumnElement[bool]) -> None:
    """Deletes the words of a session's turns that `which` names; call it before these turns are deleted."""
    its = select(turns.c.arrival).where(is_session(turns, session_id), *which)
    connection.execute(delete(turn_words).where(is_session(turn_words, session_id), turn_words.c.arrival.in_(its)))


def read_words(connection: Connection, session_ids: Sequence[str]) -> list[tuple[str, str]]:
    """The words of these sessions' newest turns, in chunks: the turns' arrivals, a blank between, and a line each."""
    read: list[tuple[str, str]] = []  # of a session each
    if connection.dialect.name == "sqlite":
        left = MAX_SEARCHED_TURNS
        driver: Any = connection.connection.cursor()  # SQLAlchemy would take longer for each session than SQLite does
        for key in session_ids:
            arrivals, lines, count = driver.execute(_READ_SQLITE, (bucket_of(key), key, left)).fetchone()
            if count:
                read.append((arrivals, lines))
            if (left := left - count) <= 0:
                break
    else:
        wanted = {
            "buckets": [bucket_of(key) for key in session_ids],
            "session_ids": list(session_ids),
            "searched": MAX_SEARCHED_TURNS,
        }
        read = [(row.arrivals, row.lines) for row in connection.execute(text(_READ_POSTGRESQL), wanted)]
    chunks: list[tuple[str, str]] = []
    for arrivals, lines in read:
        if arrivals.count(" ") < _TURNS_A_CHUNK:  # most are
            chunks.append((arrivals, lines))
            continue
        keys, said = iter(arrivals.split(" ")), iter(lines.split("\n"))
        while part := list(islice(keys, _TURNS_A_CHUNK)):
            chunks.append((" ".join(part), "\n".join(islice(said, _TURNS_A_CHUNK))))
    return chunks
