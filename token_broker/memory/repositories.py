"""Sessions, tickets and the blocklist: across replicas by the store, else as this process remembers them.

While the store is silent, a ticket still works once within a process, and nobody is told whose a session is. Signed
tokens go on proving what they prove; a caller without one is refused until the store answers. The blocklist that was
read last holds.
"""

import asyncio
import contextlib
import heapq
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from token_broker.memory.drivers.database import Database
from token_broker.memory.ingest.group_commit import GroupWriter
from token_broker.memory.store_errors import StoreAwayError, StoreError
from token_broker.memory.types import SessionRecord
from token_broker.observability.logging import audit_blocks
from token_broker.security.limits import BoundedDict
from token_broker.security.tokens import LEEWAY_S, Owner

if TYPE_CHECKING:
    from token_broker.memory.store.sessions import BlockKey, TalkNote

__all__ = ["Refused", "StoredBlocklist", "StoredSessions", "StoredTickets"]

log = structlog.get_logger(__name__)

Refused = Callable[[str, str | None], bool]
"""`Blocklist.refused`: of a principal and a session."""

_SESSIONS_KEPT = 20_000
_NOTES_KEPT = 10_000
_NOTE_TRIES = 4
_NOTE_AGAIN_S = 0.5
_RELEASES_AT_ONCE = 100
_TICKETS_KEPT = 100_000
_BLOCKLIST_EVERY_S = 1.5  # a block holds everywhere within 2 s, the reading included
_BLOCKLIST_PAGE = 500  # rows at once: decoding more would hold up talks


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
        self._notes: BoundedDict[str, TalkNote] = BoundedDict(_NOTES_KEPT)
        self._noting: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self.unanswered = 0  # times the store was silent

    async def find(self, session_id: str) -> SessionRecord | None:
        from token_broker.memory.store.sessions import find_session

        try:
            async with asyncio.timeout(self._patience_s):
                found = await self._database.read(partial(find_session, session_id=session_id))
        except (StoreError, TimeoutError) as error:
            raise self._unanswered(error) from None
        seen = self._seen.get(session_id)
        if found is None or (seen is not None and seen.principal == found.principal and seen.epoch > found.epoch):
            return seen
        return self._remember(found)

    async def claim(self, owner: Owner, agent_id: str) -> bool:
        from token_broker.memory.store.sessions import claim_session

        work = partial(claim_session, owner=owner, agent_id=agent_id, now_s=self._clock())
        claiming = asyncio.ensure_future(self._database.write(work, idempotent=False))
        try:
            async with asyncio.timeout(self._patience_s):
                is_owners = await asyncio.shield(claiming)
        except (StoreError, TimeoutError) as error:
            self._release_later(claiming, owner)
            raise self._unanswered(error) from None
        except asyncio.CancelledError:
            self._release_later(claiming, owner)
            raise
        if is_owners:
            self._remember(SessionRecord(owner.session_id, owner.principal, owner.epoch))
        return is_owners

    def record(self, owner: Owner, agent_id: str) -> None:
        self._remember(SessionRecord(owner.session_id, owner.principal, owner.epoch))
        self._writer.submit_session(owner, agent_id)

    def note_talk(self, owner: Owner, *, over_in_s: float, begins: bool) -> None:
        from token_broker.memory.store.sessions import TalkNote

        known = self._notes.get(owner.talk_id)
        begins = begins or (known is not None and known.begins)
        self._notes[owner.talk_id] = TalkNote(owner, self._clock() + over_in_s, begins)
        if self._noting is None or self._noting.done():
            self._noting = asyncio.create_task(self._write_notes(), name="memory-talks")

    async def _write_notes(self) -> None:
        from token_broker.memory.store.sessions import note_talks

        while self._notes:
            notes = list(self._notes.values())
            self._notes.clear()
            try:
                unwritten = await self._database.write(partial(note_talks, notes=notes))
            except StoreError as error:  # other replicas go by the token alone
                log.warning("talks_not_noted", talks=len(notes), reason=str(error))
                continue
            if self._closing.is_set():
                continue  # nobody writes the missing rows any more
            # A session's row is written beside its plan: a talk that begins at once may come before it.
            if again := [replace(each, tries=each.tries + 1) for each in unwritten if each.tries < _NOTE_TRIES]:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_NOTE_AGAIN_S):
                        await self._closing.wait()
                for each in again:
                    newer = self._notes.get(each.owner.talk_id, each)
                    self._notes[each.owner.talk_id] = replace(newer, begins=newer.begins or each.begins)

    def evict(self, session_id: str) -> None:
        """Drops what this process knows of a session: it was erased."""
        self._seen.pop(session_id, None)

    async def aclose(self) -> None:
        """Writes the talks that have just ended, and gives up the claims that are just being released."""
        self._closing.set()
        if self._noting is not None:
            await asyncio.wait((self._noting,), timeout=self._patience_s)
        ending = [*self._releasing, *([self._noting] if self._noting else [])]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)

    def _unanswered(self, error: Exception) -> StoreError:
        self.unanswered += 1
        return error if isinstance(error, StoreError) else StoreAwayError("no answer in time")

    def _release_later(self, claiming: "asyncio.Future[bool]", owner: Owner) -> None:
        """Releases a claim that may be stored though its caller was refused: the caller may ask for that id again."""
        if len(self._releasing) >= _RELEASES_AT_ONCE:
            claiming.cancel()
            log.warning("claim_not_released", session_id=owner.session_id)
            return

        async def release() -> None:
            from token_broker.memory.store.sessions import release_session

            try:
                with contextlib.suppress(StoreError):  # a lost connection may have committed all the same
                    if not await claiming:
                        return
                await self._database.write(partial(release_session, owner=owner))
                # Somebody may have found the row in between: remembered, it would refuse the next caller.
                if (seen := self._seen.get(owner.session_id)) is not None and seen.epoch == owner.epoch:
                    self.evict(owner.session_id)
            except StoreError as error:
                log.warning("claim_not_released", session_id=owner.session_id, reason=str(error))

        task = asyncio.create_task(release())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    def _remember(self, record: SessionRecord) -> SessionRecord:
        self._seen[record.session_id] = record
        return record


class StoredTickets:
    """See `TicketRepository`. The process remembers what it spent until it expires, whatever the store says."""

    def __init__(self, database: Database, *, patience_s: float, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._patience_s = patience_s
        self._clock = clock
        self._spent: set[str] = set()
        self._by_end: list[tuple[float, str]] = []  # a heap: client secrets last for hours, tickets for minutes
        self.spent_locally = 0  # tickets that this process alone vouched for

    async def spend(self, ticket_id: str, expires_at_s: float) -> bool:
        from token_broker.memory.store.sessions import spend_ticket

        if ticket_id in self._spent:
            return False
        remembered = self._remember(
            ticket_id, expires_at_s
        )  # before the store is asked: of two at once, one is refused
        work = partial(spend_ticket, ticket_id=ticket_id, expires_at_s=expires_at_s)
        try:
            async with asyncio.timeout(self._patience_s):
                return await self._database.write(work, idempotent=False)
        except (StoreError, TimeoutError):
            self.spent_locally += remembered
            return remembered

    def _remember(self, ticket_id: str, expires_at_s: float) -> bool:
        """False where the memory is full: then only the store can say."""
        now_s = self._clock()
        while self._by_end and self._by_end[0][0] + 2 * LEEWAY_S < now_s:
            self._spent.discard(heapq.heappop(self._by_end)[1])
        if len(self._spent) >= _TICKETS_KEPT:
            return False
        self._spent.add(ticket_id)
        heapq.heappush(self._by_end, (expires_at_s, ticket_id))
        return True


class StoredBlocklist:
    """See `Blocklist`. `refresh` once, and `run` from then on: it is read again every second and a half.

    Tokens are proof enough by themselves, so a compatible endpoint asks no store: it looks at the list that was read
    last. While the store is away that list holds. A process that starts while it is away has no list (`was_read`): it
    serves only new sessions, by transports that it can end, or nobody where the list is `required`. Once it has the
    list it ends the talks of the blocked.
    """

    def __init__(
        self,
        database: Database,
        *,
        required: bool = False,
        every_s: float = _BLOCKLIST_EVERY_S,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._required = required
        self._every_s = every_s
        self._clock = clock
        self._keys: frozenset[BlockKey] = frozenset()
        self._principals: frozenset[str] = frozenset()
        self._sessions: frozenset[str] = frozenset()
        self._watchers: list[Callable[[Refused], None]] = []
        self._read_at_s: float | None = None
        self._stale = False
        self.unread = 0  # readings that failed

    @property
    def was_read(self) -> bool:
        return self._read_at_s is not None

    @property
    def is_missed(self) -> bool:
        return self._required and not self.was_read

    @property
    def count(self) -> int:
        """Principals and sessions that are blocked."""
        return len(self._keys)

    @property
    def age_s(self) -> float | None:
        """How long ago the list was read; None where it never was."""
        return None if self._read_at_s is None else round(max(0.0, self._clock() - self._read_at_s), 3)

    def refused(self, principal: str, session_id: str | None) -> bool:
        return principal in self._principals or session_id in self._sessions

    def watch(self, end_where: Callable[[Refused], None]) -> None:
        """`end_where(refused)` is called after each reading that finds blocks: it ends what the blocked have open.

        Each time, not only for new blocks: a talk that began beside one reading is ended after the next.
        """
        self._watchers.append(end_where)

    async def run(self) -> None:
        """Reads again and again; a store that is away is logged once."""
        self._end_open()
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.refresh()
            except StoreError as error:
                self.unread += 1
                if not self._stale:
                    log.warning("blocklist_unread", reason=str(error), blocked=len(self._keys))
                self._stale = True
                continue
            self._end_open()

    async def refresh(self) -> None:
        """Reads the list. Raises StoreError: then it stays as it was."""
        from token_broker.memory.store.sessions import blocked_keys

        keys = page = await self._database.read(partial(blocked_keys, limit=_BLOCKLIST_PAGE))
        while len(page) == _BLOCKLIST_PAGE:
            page = await self._database.read(partial(blocked_keys, limit=_BLOCKLIST_PAGE, after=page[-1]))
            keys = keys + page
        found = frozenset(keys)
        self._read_at_s = self._clock()
        if self._stale:
            self._stale = False
            log.info("blocklist_read_again")
        if found != self._keys:
            before, self._keys = self._keys, found
            self._principals = frozenset(name for kind, name in found if kind == "principal")
            self._sessions = frozenset(name for kind, name in found if kind == "session")
            audit_blocks(found - before, unblocked=before - found)

    def _end_open(self) -> None:
        """Calls every watcher: one that fails must not keep the others, or the next reading, from their work."""
        for end_where in self._watchers if self._keys else ():
            try:
                end_where(self.refused)
            except Exception as error:  # noqa: BLE001  # logged; it is called again after the next reading
                log.error("blocked_talk_not_ended", error=type(error).__name__)
