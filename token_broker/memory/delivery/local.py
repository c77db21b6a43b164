"""The store itself as the memory: nothing to deliver, and facts are the most relevant earlier turns, by full text."""

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from token_broker.memory.context import TOLD_CHARS
from token_broker.memory.delivery.sink import DeliveryBatch
from token_broker.memory.drivers.database import Database
from token_broker.memory.text import words_of
from token_broker.memory.types import LAST_TURNS
from token_broker.security.owner import ANONYMOUS, Owner

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from token_broker.memory.store.rows import StoredTurn

__all__ = ["LocalFacts", "LocalSink", "telling_words"]

_SESSIONS = 50  # of the user's, looked through
_FACTS = 8
_WORDS = 12
_MIN_WORD_CHARS = 4


class LocalSink:
    """See `Sink`. What was queued for another memory, before the configuration changed, is at its end here."""

    async def deliver(self, sent: DeliveryBatch) -> None:
        del sent

    async def forget(self, principal: str, session_id: str) -> None:
        del principal, session_id


class LocalFacts:
    """See `FactSource`. Anonymous owners are told of their own session alone; others of all their sessions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def facts(self, owner: Owner, *, of_session: bool) -> list[str]:
        def find(connection: "Connection") -> "list[StoredTurn]":
            from token_broker.memory.store.reading import last_turns, recent_sessions
            from token_broker.memory.store.searching import search

            earlier: list[str] = []
            if owner.principal != ANONYMOUS:
                earlier = recent_sessions(connection, owner.principal, _SESSIONS, but=owner.session_id)
            newest = partial(last_turns, connection, limit=LAST_TURNS, chars=TOLD_CHARS)
            shown = newest(owner.session_id) if of_session else []
            about = shown or [turn for session_id in earlier[:1] for turn in newest(session_id)]
            searched = [owner.session_id, *earlier] if of_session else earlier
            words, most = telling_words(about), _FACTS + len(shown)
            found = search(connection, words, most, session_ids=searched, chars=TOLD_CHARS)
            told = {(turn.turn_id, turn.position) for turn in shown}
            return [turn for turn in found or about if (turn.turn_id, turn.position) not in told][:_FACTS]

        turns = await self._database.read(find, lane="recall")
        return [f"{turn.created_at:%Y-%m-%d} {turn.role}: {turn.content}" for turn in turns]


def telling_words(turns: "list[StoredTurn]") -> list[str]:
    """The words that most likely say what these turns are about: long ones, and the user's before the assistant's."""
    counts: Counter[str] = Counter()
    for turn in turns:
        weight = 2 if turn.role == "user" else 1
        for word in words_of(turn.content):
            if len(word) >= _MIN_WORD_CHARS:
                counts[word] += weight * len(word)
    return [word for word, _ in counts.most_common(_WORDS)]
