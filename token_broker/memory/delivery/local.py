"""The store itself as the memory: nothing to deliver, and facts are the most relevant earlier turns, by full text."""

import re
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from token_broker.memory.context import TOLD_CHARS
from token_broker.memory.drivers.database import Database
from token_broker.memory.types import LAST_TURNS, Remembered, StoredTurn
from token_broker.security.tokens import ANONYMOUS, Owner

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["LocalFacts", "salient_terms", "search_turns"]

_SESSIONS = 50  # of the user, searched
_FACTS = 8
_TERMS = 12
_MIN_TERM_CHARS = 4  # leaves out most stop words of most languages, without a list for each
_TERM = re.compile(r"\w+")


class LocalFacts:
    """See `FactSource`. An anonymous owner gets facts of the session alone; others get them of all their sessions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def facts(self, owner: Owner, *, of_session: bool) -> list[str]:
        def find(connection: "Connection") -> list[StoredTurn]:
            from token_broker.memory.store.full_text import search
            from token_broker.memory.store.turn_reads import last_turns, recent_sessions

            earlier: list[str] = []
            if owner.principal != ANONYMOUS:
                earlier = recent_sessions(connection, owner.principal, _SESSIONS, but=owner.session_id)
            newest = partial(last_turns, connection, limit=LAST_TURNS, chars=TOLD_CHARS)
            shown = newest(owner.session_id) if of_session else []
            about = shown or [turn for session_id in earlier[:1] for turn in newest(session_id)]
            searched = [owner.session_id, *earlier] if of_session else earlier
            terms, most = salient_terms(about), _FACTS + len(shown)
            found = search(connection, terms, most, session_ids=searched, chars=TOLD_CHARS)
            told = {(turn.turn_id, turn.position) for turn in shown}
            return [turn for turn in found or about if (turn.turn_id, turn.position) not in told][:_FACTS]

        turns = await self._database.read(find, pool="recall")
        return [f"{turn.created_at:%Y-%m-%d} {turn.role}: {turn.content}" for turn in turns]


async def search_turns(database: Database, owner: Owner, query: str, *, limit: int) -> list[Remembered]:
    """The owner's turns that match `query` best. Raises StoreError."""

    def find(connection: "Connection") -> list[StoredTurn]:
        from token_broker.memory.store.full_text import search
        from token_broker.memory.store.turn_reads import last_turns_of, recent_sessions

        is_owners = last_turns_of(connection, owner, 1, chars=0) is not None
        searched = [owner.session_id] if is_owners else []
        if owner.principal != ANONYMOUS:
            searched += recent_sessions(connection, owner.principal, _SESSIONS, but=owner.session_id)
        terms = [term for term in _TERM.findall(query.casefold()) if len(term) >= _MIN_TERM_CHARS]
        return search(connection, terms, limit, session_ids=searched, chars=TOLD_CHARS)

    found = await database.read(find, pool="recall")
    return [Remembered(turn.content, turn.role, turn.created_at) for turn in found]


def salient_terms(turns: list[StoredTurn]) -> list[str]:
    """The terms that most likely say what these turns are about: long ones; the user's before the assistant's."""
    counts: Counter[str] = Counter()
    for turn in turns:
        weight = 2 if turn.role == "user" else 1
        for term in _TERM.findall(turn.content.casefold()):
            if len(term) >= _MIN_TERM_CHARS:
                counts[term] += weight * len(term)
    return [term for term, _ in counts.most_common(_TERMS)]
