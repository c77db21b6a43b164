"""Searches what a user said: reads the words of their newest turns, and ranks them between the event loop's other work.

The ranking is Python. In a thread it would hold the interpreter's lock for milliseconds at a time, and several threads
would keep the loop from it for much longer. Here it is cut into slices, and one search is in a slice at a time.
"""

import asyncio
import time
from collections.abc import Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

from token_broker.memory.context import TOLD_CHARS
from token_broker.memory.drivers.database import Database
from token_broker.memory.types import StoredTurn
from token_broker.memory.words.ranking import Search
from token_broker.security.tokens import ANONYMOUS, Owner

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["TurnSearch"]

_SESSIONS = 500  # of the user, the newest
_SLICE_S = 0.001
_QUESTIONS = 5
_ASKS = ("?", "\u061f", "\uff1f", "\u037e")  # question marks: Arabic, full width, Greek


class TurnSearch:
    """Finds turns of an owner: of all their sessions, or of the session alone where the owner is nobody known."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turn = asyncio.Lock()

    async def find(self, owner: Owner, question: str, *, limit: int, but: Collection[int] = ()) -> Sequence[StoredTurn]:
        """The turns that answer, best first, their beginnings alone; without those of the arrivals `but`.

        Raises StoreError. The caller bounds the wait.
        """
        search = Search(question)
        if not search.terms:
            return ()

        def read(connection: "Connection") -> list[tuple[str, str]]:
            from token_broker.memory.store.turn_reads import last_turns_of, recent_sessions
            from token_broker.memory.store.turn_words import read_words

            searched: list[str] = []
            if owner.principal != ANONYMOUS:
                searched = recent_sessions(connection, owner.principal, _SESSIONS)
            elif last_turns_of(connection, owner, 1, chars=0) is not None:  # it is nobody else's
                searched = [owner.session_id]
            return read_words(connection, searched)

        chunks = await self._database.read(read, pool="recall")
        async with self._turn:
            until_s = time.perf_counter() + _SLICE_S
            for _ in search.steps(chunks):
                if time.perf_counter() > until_s:
                    await asyncio.sleep(0)
                    until_s = time.perf_counter() + _SLICE_S
        if not (arrivals := search.best(limit + _QUESTIONS, but=but)):
            return ()
        from token_broker.memory.store.turn_reads import turns_at

        found = partial(turns_at, arrivals=arrivals, principal=owner.principal, chars=TOLD_CHARS)
        turns = await self._database.read(found, pool="recall")
        # Somebody who asks has often asked before, in words like these: what says something comes first.
        return sorted(turns, key=lambda turn: turn.content.rstrip().endswith(_ASKS))[:limit]
