"""Maintenance of the memory: erasure, retention, dead letters, blocks. For the broker and the command line."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from token_broker.memory.drivers.connect import connect
from token_broker.memory.drivers.database import Database
from token_broker.memory.drivers.sqlite import SqliteDatabase
from token_broker.memory.types import arrival_at, to_us
from token_broker.security.tokens import ANONYMOUS, LEEWAY_S, RESUME_GRACE_S
from token_broker.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from token_broker.memory.store.erasure import Marked
    from token_broker.memory.store.exports import Line
    from token_broker.memory.store.outbox import OutboxStatus
    from token_broker.memory.types import Block, BlockKind, DeadLetter, SinkName

__all__ = ["Maintenance", "Progress", "SinkReceipt", "open_maintenance"]

Progress = Callable[[int, int], None]  # how many are done, of how many

# What one transaction deletes at most, so that turns wait only briefly behind it: deleting a megabyte from SQLite
# takes tens of milliseconds.
_CHUNK = 100
_CHUNK_BYTES = 1_048_576
_SESSIONS_CHUNK = 500
_DAY_S = 86_400
_RECENT_S = 3600.0  # every replica has looked by then which sessions were erased
_BETWEEN_S = 0.01  # transactions that nobody waits for
CLAIMS_KEPT_S = 7_200.0  # a session of Azure's lasts an hour, and no call of it is told again later
_LOCK_PATIENCE_S = 5.0  # for a transaction of the running broker


@dataclass(frozen=True, slots=True)
class SinkReceipt:
    """How far a sink has come with an erasure. `accepted` is followed by the broker; `cannot` is tried again."""

    sink: str
    state: Literal["done", "accepted", "cannot"]
    detail: str = ""


class Maintenance:
    """Works on an open database. `sinks` have to erase too, by whichever replica delivers.

    `session_token_s` is the lifetime of a session token: a session is kept as long as a token may name it.
    """

    def __init__(
        self,
        database: Database,
        *,
        sinks: "Sequence[SinkName]",
        lease_s: float,
        session_token_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.database = self._database = database
        self._sinks = tuple(sinks)
        self._lease_s = lease_s
        self._named_s = session_token_s + RESUME_GRACE_S + LEEWAY_S
        self._clock = clock

    async def erase_session(self, session_id: str) -> int:
        """Erases a session with all its turns; how many. Raises StoreError."""
        marked = await self.mark_erased(session_id)
        await self.delete_erased(session_id)
        return marked.turns

    async def mark_erased(self, session_id: str, *, principal: str | None = None) -> "Marked":
        """Erases a session for everybody who could read it or write into it.

        `delete_erased` deletes the turns themselves. With `principal`, that principal has to own the session. Raises
        StoreError, NotOwnerError.
        """
        from token_broker.memory.store.erasure import mark_erased

        now_us = to_us(self._clock())
        return await self._database.write(
            partial(mark_erased, session_id=session_id, now_us=now_us, sinks=self._sinks, principal=principal)
        )

    async def delete_erased(self, session_id: str) -> int:
        """Deletes the turns of an erased session, in short transactions; how many. Raises StoreError."""
        from token_broker.memory.store.erasure import delete_erased

        chunk = partial(delete_erased, session_id=session_id, max_turns=_CHUNK, max_bytes=_CHUNK_BYTES)
        return await self._delete_turns(chunk)

    async def finish_erasures(self) -> int:
        """Deletes the turns that any process has left of erased sessions; how many. Raises StoreError."""
        from token_broker.memory.store.erasure import unfinished_erasures

        deleted = 0
        while session_ids := await self._database.read(partial(unfinished_erasures, limit=_SESSIONS_CHUNK)):
            for session_id in session_ids:
                deleted += await self.delete_erased(session_id)
        return deleted

    async def erase_user(self, user: str) -> int:
        """Erases all sessions of a principal (or of an unauthenticated label); how many turns. Raises StoreError.

        What they said before is refused from here on, wherever it still waits. The sinks are asked once no delivery of
        theirs can be under way any more.
        """
        from token_broker.memory.store.erasure import hide_usage, mark_user_erased, sessions_of, sinks_of
        from token_broker.memory.store.outbox import hasten_erasures, request_erasure
        from token_broker.memory.store.tables import usage
        from token_broker.memory.types import SinkErasure

        now_us = to_us(self._clock())

        def begin(connection: "Connection") -> None:
            mark_user_erased(connection, user, now_us)
            if user != ANONYMOUS:  # also of sessions that are not stored any more
                hide_usage(connection, usage.c.principal == user)
            for sink in {*self._sinks, *sinks_of(connection, user)}:
                whole = SinkErasure(sink, user, "", before_us=now_us)
                request_erasure(connection, whole, now_us + to_us(self._lease_s))

        await self._database.write(begin)
        erased, busy_until_us = 0, 0
        while session_ids := await self._database.read(partial(sessions_of, user=user, limit=_SESSIONS_CHUNK)):
            for session_id in session_ids:
                marked = await self.mark_erased(session_id)
                await self.delete_erased(session_id)
                erased += marked.turns
                busy_until_us = max(busy_until_us, marked.busy_until_us)
        due_us = max(busy_until_us, to_us(self._clock()))
        await self._database.write(partial(hasten_erasures, principal=user, due_at_us=due_us))
        return erased

    async def receipt(self, *, session_id: str | None = None, user: str | None = None) -> "list[SinkReceipt]":
        """How far each sink has come with the erasure of a session or a user. Raises StoreError."""
        from token_broker.memory.store.outbox import open_erasures

        still_open = await self._database.read(partial(open_erasures, session_id=session_id, user=user))
        receipts = []
        for sink in dict.fromkeys([*self._sinks, *still_open]):
            count, task, error = still_open.get(sink, (0, None, None))
            if not count:
                receipts.append(SinkReceipt(sink, "done"))
            elif sink not in self._sinks:
                receipts.append(SinkReceipt(sink, "cannot", "not among BROKER_MEMORY_SINKS any more"))
            elif error:
                receipts.append(SinkReceipt(sink, "cannot", f"{error}; it is asked again"))
            else:
                receipts.append(SinkReceipt(sink, "accepted", f"task {task}" if task else "not asked yet"))
        return receipts

    async def export(self, *, session_id: str | None = None, user: str | None = None) -> "AsyncIterator[Line]":
        """All that is stored of a session or a user, a line after the other, read in pages. Raises StoreError."""
        from token_broker.memory.store.exports import export_sessions

        if session_id is not None:
            async for line in self._export_session(session_id):
                yield line
            return
        after = (-1, "")
        while page := await self._database.read(
            partial(export_sessions, user=user or "", after=after, limit=_SESSIONS_CHUNK), pool="bulk"
        ):
            for _, one in page:
                async for line in self._export_session(one):
                    yield line
            after = page[-1]

    async def _export_session(self, session_id: str) -> "AsyncIterator[Line]":
        from token_broker.memory.store.exports import export_rows, export_session, export_turns

        session = await self._database.read(partial(export_session, session_id=session_id), pool="bulk")
        if session is None:
            return
        yield session
        after: tuple[int, int, int] | None = None
        while turns := await self._database.read(
            partial(export_turns, session_id=session_id, after=after), pool="bulk"
        ):
            for turn in turns:
                after = (turn.position.epoch, turn.position.place, turn.position.arrival)
                yield {
                    "type": "turn",
                    "session_id": session_id,
                    "turn_id": turn.turn_id,
                    "agent_id": turn.agent_id or None,
                    "role": turn.role,
                    "content": turn.content,
                    "sequence": turn.sequence,
                    "created_at": turn.created_at.isoformat().replace("+00:00", "Z"),
                    "source": turn.source,
                    "interrupted": turn.interrupted,
                    "channel": turn.channel,
                    "delivery": turn.delivery.label,
                }

        def others(connection: "Connection") -> "list[Line]":
            return list(export_rows(connection, session_id))

        for line in await self._database.read(others, pool="bulk"):
            yield line

    async def scrub_files(self) -> bool | None:
        """Takes what was deleted out of SQLite's files; whether it could. None: PostgreSQL does it with a vacuum.

        Raises StoreError.
        """
        return await self._database.scrub_files() if isinstance(self._database, SqliteDatabase) else None

    async def sweep(self, retention_days: int) -> int:
        """Deletes expired tickets, old claims of tools, turns that are too old, sessions left empty; how many turns.

        Usage of who was erased becomes anonymous. Raises StoreError.
        """
        from token_broker.memory.store.claim_rows import prune_claims
        from token_broker.memory.store.erasure import (
            delete_idle_sessions,
            delete_older_turns,
            forget_recent,
            forget_usage,
        )
        from token_broker.memory.store.sessions import remove_expired_tickets

        now_s = self._clock()
        await self._database.write(forget_usage)
        await self._database.write(partial(forget_recent, before_us=to_us(now_s - _RECENT_S)))
        await self._database.write(partial(remove_expired_tickets, before_s=now_s - 2 * LEEWAY_S))
        while await self._database.write(partial(prune_claims, older_than_s=CLAIMS_KEPT_S, limit=_CHUNK)):
            pass
        from token_broker.memory.store.turn_writes import fold_stored

        while await self._database.write(fold_stored):  # noqa: ASYNC110  # it works between the pauses
            await asyncio.sleep(_BETWEEN_S)
        if not retention_days:
            return 0
        before_s = now_s - retention_days * _DAY_S
        older = partial(delete_older_turns, before_arrival=arrival_at(before_s), limit=_CHUNK, max_bytes=_CHUNK_BYTES)
        deleted = await self._delete_turns(older)
        idle_s = min(before_s, now_s - self._named_s)
        while await self._database.write(partial(delete_idle_sessions, before_s=idle_s, limit=_SESSIONS_CHUNK)):
            pass
        return deleted

    async def drop_unused(self, max_age_s: float) -> int:
        """Gives up what waits for longer for sinks that are not used any more; how many sessions. Raises StoreError."""
        from token_broker.memory.store.outbox import drop_unused

        before_us = to_us(self._clock() - max_age_s)
        work = partial(drop_unused, used=self._sinks, before_us=before_us, limit=_CHUNK)
        dropped = 0
        while count := await self._database.write(work):
            dropped += count
        return dropped

    async def dead_letters(
        self, limit: int, *, session_id: str | None = None, sink: "SinkName | None" = None
    ) -> "list[DeadLetter]":
        """Turns that a sink refused for good, oldest first. Raises StoreError."""
        from token_broker.memory.store.dead_letters import list_dead

        return await self._database.read(partial(list_dead, limit=limit, session_id=session_id, sink=sink))

    async def retry_dead(
        self,
        *,
        session_id: str | None = None,
        sink: "SinkName | None" = None,
        tell: Progress = lambda _done, _total: None,
    ) -> int:
        """Queues dead letters again; how many. `tell` gets the progress after each few hundred. Raises StoreError.

        Those that die while it runs are left for the next time: with a broken sink there would be no end.
        """
        from token_broker.memory.store.dead_letters import count_dead, retry_dead

        total = await self._database.read(partial(count_dead, session_id=session_id, sink=sink))
        retried = 0
        while retried < total:
            retry = partial(retry_dead, session_id=session_id, sink=sink, limit=min(_CHUNK, total - retried))
            if not (count := await self._database.write(partial(retry, now_us=to_us(self._clock())))):
                break
            retried += count
            tell(retried, total)
        return retried

    async def purge_dead(self, *, session_id: str | None = None, sink: "SinkName | None" = None) -> int:
        """Deletes dead letters for good; how many. Raises StoreError."""
        from token_broker.memory.store.dead_letters import purge_dead

        return await self._delete_turns(partial(purge_dead, session_id=session_id, sink=sink, limit=_CHUNK))

    async def block(self, kind: "BlockKind", name: str) -> bool:
        """Blocks a principal or a session; False where it was already. Raises BlocklistFullError, StoreError."""
        from token_broker.memory.store.sessions import block

        return await self._database.write(partial(block, kind=kind, name=name, now_us=to_us(self._clock())))

    async def unblock(self, kind: "BlockKind", name: str) -> bool:
        """Unblocks a principal or a session; False where it was not blocked. Raises StoreError."""
        from token_broker.memory.store.sessions import unblock

        return await self._database.write(partial(unblock, kind=kind, name=name))

    async def blocked(self) -> "list[Block]":
        """All that are blocked, the latest last. Raises StoreError."""
        from token_broker.memory.store.sessions import list_blocks

        return await self._database.read(list_blocks)

    async def knows(self, kind: "BlockKind", name: str) -> bool:
        """Whether a session of that id, or of that principal, is stored: a mistyped id has none. Raises StoreError."""
        from token_broker.memory.store.sessions import is_known

        return await self._database.read(partial(is_known, kind=kind, name=name))

    async def switch_resource(self, name: str, *, enabled: bool) -> bool:
        """Enables or disables an Azure resource; False where it was so already. Raises StoreError."""
        from token_broker.memory.store.resource_rows import disable_resource, enable_resource

        if enabled:
            return await self._database.write(partial(enable_resource, name=name))
        return await self._database.write(partial(disable_resource, name=name, now_us=to_us(self._clock())))

    async def disabled_resources(self) -> list[str]:
        """The names of the Azure resources that are disabled. Raises StoreError."""
        from token_broker.memory.store.resource_rows import disabled_names

        return await self._database.read(disabled_names)

    async def outbox_status(self) -> "OutboxStatus":
        """The outbox in numbers. Raises StoreError."""
        from token_broker.memory.store.outbox import read_status

        return await self._database.read(read_status)

    async def _delete_turns(self, work: "Callable[[Connection], int]") -> int:
        """Deletes in transactions of a chunk each; how many turns."""
        done = 0
        while count := await self._database.write(work):
            done += count
        return done


@contextlib.asynccontextmanager
async def open_maintenance(
    settings: Settings, *, tell_of_empty: Callable[[], None] = lambda: None
) -> AsyncIterator[Maintenance]:
    """A maintenance on the settings' store, for the command line. A running broker may write to it at the same time.

    `tell_of_empty` is called where the store had no tables: no broker has ever worked on it. Raises StoreError where
    the store is away.
    """
    database = connect(
        settings.database_url,
        timeout_s=max(30.0, settings.store_timeout_s),
        patience_s=_LOCK_PATIENCE_S,
        exclusive=False,
        client_id=settings.client_id,
        proxy=settings.proxy,
    )
    try:
        if await database.open():
            tell_of_empty()
        yield Maintenance(
            database,
            sinks=settings.sinks,
            lease_s=3 * settings.delivery_timeout_s,
            session_token_s=settings.session_token_ttl_s,
        )
    finally:
        await database.close()
