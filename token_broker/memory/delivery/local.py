"""The store itself as the memory: nothing to deliver, and facts are the most relevant earlier turns, by their words."""

from functools import partial
from typing import TYPE_CHECKING

from token_broker.memory.context import TOLD_CHARS
from token_broker.memory.drivers.database import Database
from token_broker.memory.turn_search import TurnSearch
from token_broker.memory.types import LAST_TURNS, StoredTurn
from token_broker.security.tokens import ANONYMOUS, Owner

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["LocalFacts"]

_FACTS = 8
_ASKED_CHARS = 400  # of the newest turns: what the talk is about


class LocalFacts:
    """See `FactSource`. An anonymous owner gets facts of the session alone; others get them of all their sessions."""

    def __init__(self, database: Database, search: TurnSearch) -> None:
        self._database = database
        self._search = search

    async def facts(self, owner: Owner, *, of_session: bool) -> list[str]:
        shown, about = await self._database.read(partial(_newest, owner=owner, of_session=of_session), pool="recall")
        asked = " ".join(turn.content for turn in reversed(about) if turn.role == "user")
        told = {turn.position.arrival for turn in shown}
        found = await self._search.find(owner, asked[:_ASKED_CHARS], limit=_FACTS, but=told)
        facts = [turn for turn in found or about[::-1] if turn.position.arrival not in told][:_FACTS]
        return [f"{turn.created_at:%Y-%m-%d} {turn.role}: {turn.content}" for turn in facts]


def _newest(connection: "Connection", owner: Owner, *, of_session: bool) -> tuple[list[StoredTurn], list[StoredTurn]]:
    """The session's newest turns, which are told anyway, and those that the talk goes on from."""
    from token_broker.memory.store.turn_reads import last_turns, recent_sessions

    newest = partial(last_turns, connection, limit=LAST_TURNS, chars=TOLD_CHARS)
    shown = newest(owner.session_id) if of_session else []
    if shown or owner.principal == ANONYMOUS:
        return shown, shown
    earlier = recent_sessions(connection, owner.principal, 1, but=owner.session_id)
    return shown, [turn for session_id in earlier for turn in newest(session_id)]
