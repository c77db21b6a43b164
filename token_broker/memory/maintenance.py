"""What is done to the memory now and then: forgetting, retention, dead letters, blocking.

For the broker and the command line.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from token_broker.memory.drivers.database import Database
from token_broker.memory.store.full_text import merge_some
from token_broker.memory.store.keys import arrival_at, to_us
from token_broker.security.tokens import LEEWAY_S, RESUME_GRACE_S

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from token_broker.memory.store.outbox import Figures
    from token_broker.memory.store.rows import DeadLetter
    from token_broker.memory.types import Block, BlockKind

__all__ = ["Maintenance", "Progress"]

Progress = Callable[[int, int], None]  # how many are done, of how many

# What one transaction deletes at most, so that turns need not wait long behind it: deleting a megabyte from SQLite, its
# words among it, takes 100 to 200 ms.
_CHUNK = 100
_CHUNK_BYTES = 1_048_576
_SESSIONS_CHUNK = 500
_DAY_S = 86_400


class Maintenance:
    """Works on an open database. With `erase` the sink is asked to forget too, by whichever replica delivers.

    `session_token_s` is how long a session token is good: a session is kept as long as one may name it.
    """

    def __init__(
        self,
        database: Database,
        *,
        erase: bool,
        lease_s: float,
        session_token_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._erase = erase
        self._lease_s = lease_s
        self._named_s = session_token_s + RESUME_GRACE_S + LEEWAY_S
        self._clock = clock

    async def erase_session(self, session_id: str) -> int:
        """Erases a session with all its turns; how many. Raises StoreError."""
        marked = await self.mark_erased(session_id)
        await self.delete_erased(session_id)
        return marked

    async def mark_erased(self, session_id: str, *, principal: str | None = None) -> int:
        """Erases a session for everybody who could read it or write into it; how many turns it had.

        `delete_erased` deletes the turns themselves. With `principal` the session has to be theirs. Raises StoreError,
        NotOwnerError.
        """
        from token_broker.memory.store.erasure import mark_erased

        now_us = to_us(self._clock())
        return await self._database.write(
            partial(mark_erased, session_id=session_id, now_us=now_us, erase=self._erase, principal=principal)
        )

    async def delete_erased(self, session_id: str) -> None:
        """Deletes the turns of an erased session, in short transactions. Raises StoreError."""
        from token_broker.memory.store.erasure import delete_erased

        chunk = partial(delete_erased, session_id=session_id, max_turns=_CHUNK, max_bytes=_CHUNK_BYTES)
        await self._delete_turns(chunk)

    async def finish_erasures(self) -> None:
        """Deletes what any process left of erased sessions. Raises StoreError."""
        from token_broker.memory.store.erasure import unfinished_erasures

        while session_ids := await self._database.read(partial(unfinished_erasures, limit=_SESSIONS_CHUNK)):
            for session_id in session_ids:
                await self.delete_erased(session_id)

    async def erase_user(self, user: str) -> int:
        """Deletes all sessions of a principal (or of an unauthenticated label); how many turns. Raises StoreError.

        The sink is asked once no delivery of theirs can be under way any more.
        """
        from token_broker.memory.store.erasure import note_user_erasure, sessions_of

        if self._erase:
            due_us = to_us(self._clock() + self._lease_s)
            await self._database.write(partial(note_user_erasure, principal=user, now_us=due_us))
        forgotten = 0
        while session_ids := await self._database.read(partial(sessions_of, user=user, limit=_SESSIONS_CHUNK)):
            for session_id in session_ids:
                forgotten += await self.erase_session(session_id)
        return forgotten

    async def sweep(self, retention_days: int) -> int:
        """Deletes expired tickets, turns that are too old, sessions left empty; how many turns. Raises StoreError."""
        from token_broker.memory.store.erasure import erase_idle_sessions, erase_older
        from token_broker.memory.store.turns import remove_expired_tickets

        now_s = self._clock()
        await self._database.write(partial(remove_expired_tickets, before_s=now_s - 2 * LEEWAY_S))
        if not retention_days:
            return 0
        before_s = now_s - retention_days * _DAY_S
        older = partial(erase_older, before_arrival=arrival_at(before_s), limit=_CHUNK, max_bytes=_CHUNK_BYTES)
        forgotten = await self._delete_turns(older)
        idle_s = min(before_s, now_s - self._named_s)
        await self._repeat(partial(erase_idle_sessions, before_s=idle_s, limit=_SESSIONS_CHUNK))
        return forgotten

    async def dead_letters(self, limit: int, *, session_id: str | None = None) -> "list[DeadLetter]":
        """Turns that the sink would not take, oldest first. Raises StoreError."""
        from token_broker.memory.store.outbox import list_dead

        return await self._database.read(partial(list_dead, limit=limit, session_id=session_id))

    async def retry_dead(self, *, session_id: str | None = None, tell: Progress = lambda _done, _total: None) -> int:
        """Queues dead letters again; how many. `tell` hears how far it is after each few hundred. Raises StoreError.

        Those that die while it runs are left for the next time: with an ill sink there would be no end.
        """
        from token_broker.memory.store.outbox import count_dead, retry_dead

        total = await self._database.read(partial(count_dead, session_id=session_id))
        retried = 0
        while retried < total:
            retry = partial(retry_dead, session_id=session_id, limit=min(_CHUNK, total - retried))
            if not (count := await self._database.write(partial(retry, now_us=to_us(self._clock())))):
                break
            retried += count
            tell(retried, total)
        return retried

    async def purge_dead(self, *, session_id: str | None = None) -> int:
        """Deletes dead letters for good; how many. Raises StoreError."""
        from token_broker.memory.store.outbox import purge_dead

        return await self._delete_turns(partial(purge_dead, session_id=session_id, limit=_CHUNK))

    async def block(self, kind: "BlockKind", name: str) -> bool:
        """Blocks a principal or a session; False where it was already. Raises BlocklistFullError, StoreError."""
        from token_broker.memory.store.blocklist import block

        return await self._database.write(partial(block, kind=kind, name=name, now_us=to_us(self._clock())))

    async def unblock(self, kind: "BlockKind", name: str) -> bool:
        """Lets in again whom `block` shut out; False where nobody was. Raises StoreError."""
        from token_broker.memory.store.blocklist import unblock

        return await self._database.write(partial(unblock, kind=kind, name=name))

    async def blocked(self) -> "list[Block]":
        """Who is blocked, the latest last. Raises StoreError."""
        from token_broker.memory.store.blocklist import list_blocks

        return await self._database.read(list_blocks)

    async def knows(self, kind: "BlockKind", name: str) -> bool:
        """Whether a session of theirs is stored: of a mistyped id there is none. Raises StoreError."""
        from token_broker.memory.store.blocklist import is_known

        return await self._database.read(partial(is_known, kind=kind, name=name))

    async def _repeat(self, work: "Callable[[Connection], int]") -> int:
        """Works in transactions of a chunk each until there is nothing left; how many rows that were."""
        done = 0
        while count := await self._database.write(work):
            done += count
        return done

    async def _delete_turns(self, work: "Callable[[Connection], int]") -> int:
        """The same for turns, whose words leave SQLite's full text with them."""
        done = 0
        while count := await self._database.write(work):
            done += count
            if self._database.dialect == "sqlite":
                await merge_some(self._database)
        return done

    async def figures(self) -> "Figures":
        """The outbox in numbers. Raises StoreError."""
        from token_broker.memory.store.outbox import figures

        return await self._database.read(figures)
