"""Who owns which session, and which tickets are used up: across replicas by the store, else as the process remembers.

What is promised while the store is silent: within a process a ticket still works once, and a session made or seen here
is still its owner's. Across replicas neither is known then; signed tokens go on proving what they prove.
"""

import asyncio
import heapq
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial

from token_broker.memory.base import Owner, SessionRecord
from token_broker.memory.database import Database
from token_broker.memory.errors import StoreError
from token_broker.memory.writer import GroupWriter
from token_broker.tokens import LEEWAY_S

__all__ = ["StoredSessions", "StoredTickets"]

_SESSIONS_KEPT = 20_000
_TICKETS_KEPT = 100_000


class StoredSessions:
    """See `SessionBook`."""

    def __init__(self, database: Database, writer: GroupWriter, *, patience_s: float) -> None:
        self._database = database
        self._writer = writer
        self._patience_s = patience_s
        self._seen: OrderedDict[str, SessionRecord] = OrderedDict()
        self.unanswered = 0  # times the store was silent

    async def find(self, session_id: str) -> SessionRecord | None:
        from token_broker.memory.store import find_session

        seen = self._seen.get(session_id)
        try:
            async with asyncio.timeout(self._patience_s):
                found = await self._database.read(partial(find_session, session_id=session_id))
        except (StoreError, TimeoutError):
            self.unanswered += 1
            return seen
        if found is None or (seen is not None and seen.principal == found.principal and seen.epoch > found.epoch):
            return seen  # recorded beside an answer, and not yet committed
        return self._remember(found)

    def record(self, owner: Owner, agent_id: str) -> None:
        self._remember(SessionRecord(owner.session_id, owner.principal, owner.epoch))
        self._writer.submit_session(owner, agent_id)

    def forget(self, session_id: str) -> None:
        """The session is no more, as far as this process knows."""
        self._seen.pop(session_id, None)

    def _remember(self, record: SessionRecord) -> SessionRecord:
        self._seen[record.session_id] = record
        self._seen.move_to_end(record.session_id)
        if len(self._seen) > _SESSIONS_KEPT:
            self._seen.popitem(last=False)
        return record


class StoredTickets:
    """See `TicketBook`. What the process spent it remembers until it expires, whatever the store says."""

    def __init__(self, database: Database, *, patience_s: float, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._patience_s = patience_s
        self._clock = clock
        self._spent: set[str] = set()
        self._by_end: list[tuple[float, str]] = []  # a heap: secrets of hours stand among tickets of minutes
        self.spent_locally = 0  # tickets that this process alone vouched for

    async def spend(self, ticket_id: str, expires_at_s: float) -> bool:
        from token_broker.memory.store import spend_ticket

        if ticket_id in self._spent:
            return False
        remembered = self._remember(ticket_id, expires_at_s)  # first: of two at once, one is told no
        work = partial(spend_ticket, ticket_id=ticket_id, expires_at_s=expires_at_s)
        try:
            async with asyncio.timeout(self._patience_s):
                return await self._database.write(work, again=False)
        except (StoreError, TimeoutError):
            self.spent_locally += remembered
            return remembered

    def _remember(self, ticket_id: str, expires_at_s: float) -> bool:
        """False where it holds all it can: then the store alone can say."""
        now_s = self._clock()
        while self._by_end and self._by_end[0][0] + 2 * LEEWAY_S < now_s:
            self._spent.discard(heapq.heappop(self._by_end)[1])
        if len(self._spent) >= _TICKETS_KEPT:
            return False
        self._spent.add(ticket_id)
        heapq.heappush(self._by_end, (expires_at_s, ticket_id))
        return True
