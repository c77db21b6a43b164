"""Who owns which session, and which tickets are used up: across replicas by the store, else as the process remembers.

What is promised while the store is silent: within a process a ticket still works once, and nobody is told whose a
session is. Signed tokens go on proving what they prove; who has none is refused until the store answers.
"""

import asyncio
import contextlib
import heapq
import time
from collections.abc import Callable
from functools import partial

import structlog

from token_broker.bounded_dict import BoundedDict
from token_broker.memory.drivers.database import Database
from token_broker.memory.errors import StoreAwayError, StoreError
from token_broker.memory.ingest.group_commit import GroupWriter
from token_broker.memory.types import SessionRecord
from token_broker.security.owner import Owner
from token_broker.security.tokens import LEEWAY_S

__all__ = ["StoredSessions", "StoredTickets"]

log = structlog.get_logger(__name__)

_SESSIONS_KEPT = 20_000
_RELEASES_AT_ONCE = 100
_TICKETS_KEPT = 100_000


class StoredSessions:
    """See `SessionRepository`. A session recorded beside an answer, and not committed yet, counts as stored."""

    def __init__(
        self, database: Database, writer: GroupWriter, *, patience_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._writer = writer
        self._patience_s = patience_s
        self._clock = clock
        self._seen = BoundedDict[str, SessionRecord](_SESSIONS_KEPT)
        self._releasing: set[asyncio.Task[None]] = set()
        self.unanswered = 0  # times the store was silent

    async def find(self, session_id: str) -> SessionRecord | None:
        from token_broker.memory.store.turns import find_session

        try:
            async with asyncio.timeout(self._patience_s):
                found = await self._database.read(partial(find_session, session_id=session_id))
        except (StoreError, TimeoutError) as error:
            raise self._silent(error) from None
        seen = self._seen.get(session_id)
        if found is None or (seen is not None and seen.principal == found.principal and seen.epoch > found.epoch):
            return seen
        return self._remember(found)

    async def claim(self, owner: Owner, agent_id: str) -> bool:
        from token_broker.memory.store.turns import claim_session

        work = partial(claim_session, owner=owner, agent_id=agent_id, now_s=self._clock())
        claiming = asyncio.ensure_future(self._database.write(work, again=False))
        try:
            async with asyncio.timeout(self._patience_s):
                is_owners = await asyncio.shield(claiming)
        except (StoreError, TimeoutError) as error:
            self._release_later(claiming, owner)
            raise self._silent(error) from None
        except asyncio.CancelledError:
            self._release_later(claiming, owner)
            raise
        if is_owners:
            self._remember(SessionRecord(owner.session_id, owner.principal, owner.epoch))
        return is_owners

    def record(self, owner: Owner, agent_id: str) -> None:
        self._remember(SessionRecord(owner.session_id, owner.principal, owner.epoch))
        self._writer.submit_session(owner, agent_id)

    def forget(self, session_id: str) -> None:
        """The session is no more, as far as this process knows."""
        self._seen.pop(session_id, None)

    async def aclose(self) -> None:
        """Gives up the claims that are just being taken back."""
        for task in self._releasing:
            task.cancel()
        if self._releasing:
            await asyncio.wait(self._releasing)

    def _silent(self, error: Exception) -> StoreError:
        self.unanswered += 1
        return error if isinstance(error, StoreError) else StoreAwayError("no answer in time")

    def _release_later(self, claiming: "asyncio.Future[bool]", owner: Owner) -> None:
        """Takes a claim back that may be stored though its caller was refused: they may ask for that id again."""
        if len(self._releasing) >= _RELEASES_AT_ONCE:
            claiming.cancel()
            log.warning("claim_not_released", session_id=owner.session_id)
            return
        task = asyncio.create_task(self._release(claiming, owner))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _release(self, claiming: "asyncio.Future[bool]", owner: Owner) -> None:
        from token_broker.memory.store.turns import release_session

        try:
            with contextlib.suppress(StoreError):  # of a connection that was lost nobody knows what it did
                if not await claiming:
                    return
            await self._database.write(partial(release_session, owner=owner))
            if (seen := self._seen.get(owner.session_id)) is not None and seen.epoch == owner.epoch:
                self.forget(owner.session_id)  # somebody may have found it, and would refuse whoever comes now
        except StoreError as error:
            log.warning("claim_not_released", session_id=owner.session_id, reason=str(error))

    def _remember(self, record: SessionRecord) -> SessionRecord:
        self._seen[record.session_id] = record
        return record


class StoredTickets:
    """See `TicketRepository`. What the process spent it remembers until it expires, whatever the store says."""

    def __init__(self, database: Database, *, patience_s: float, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._patience_s = patience_s
        self._clock = clock
        self._spent: set[str] = set()
        self._by_end: list[tuple[float, str]] = []  # a heap: secrets of hours stand among tickets of minutes
        self.spent_locally = 0  # tickets that this process alone vouched for

    async def spend(self, ticket_id: str, expires_at_s: float) -> bool:
        from token_broker.memory.store.turns import spend_ticket

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
