"""The memory as the broker sees it: one object, opened once, that never keeps the broker from starting.

`async with Memory.open(settings) as memory` locks the SQLite file (StoreInUseError where another process has it) and
starts the background tasks: opening the store, group commit, ingest buffer, blocklist, resources' switches, delivery,
sweeping, erasing.
"""

import asyncio
import contextlib
import time
import traceback
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import structlog

from token_broker.hooks.sender import HookSender
from token_broker.memory.delivery.local import LocalFacts
from token_broker.memory.drivers.connect import connect
from token_broker.memory.drivers.database import Database
from token_broker.memory.drivers.sqlite import DiskSpace, free_bytes_of, reusable_bytes, sqlite_path
from token_broker.memory.ingest.buffer import IngestBuffer
from token_broker.memory.ingest.group_commit import GroupWriter, give_up
from token_broker.memory.maintenance import Maintenance, SinkReceipt
from token_broker.memory.memory_status import MemoryStatus, SinkStatus, StoreState
from token_broker.memory.recall import BoundedRecall
from token_broker.memory.repositories import StoredBlocklist, StoredSessions, StoredTickets
from token_broker.memory.resource_switches import ResourceSwitches
from token_broker.memory.store_errors import StoreAwayError, StoreError, StoreUnreachableError
from token_broker.memory.talk_summaries import Summaries
from token_broker.memory.tool_claims import ToolClaims
from token_broker.memory.turn_search import TurnSearch
from token_broker.memory.types import NOTICE_SINKS, FactSource, OutboxStatus, Outcome, SinkName, Turn, backoff_s, to_us
from token_broker.security.limits import BoundedDict
from token_broker.security.tokens import Owner
from token_broker.settings import Settings

if TYPE_CHECKING:
    from token_broker.memory.delivery.worker import DeliveryWorker
    from token_broker.memory.store.turn_reads import Page

__all__ = ["Memory"]

log = structlog.get_logger(__name__)

_REOPEN_LAST_S = 5.0
_STATUS_EVERY_S = 5.0
_SWEEP_EVERY_S = 600.0
_ERASURES_EVERY_S = 60.0
_RESTART_S = 1.0
_NONE = OutboxStatus()
_LOOK_EVERY_S = 1.5
_ERASED_LOOKS_BACK_S = 60.0  # a replica's clock may be behind, and a store may have been away
_ERASED_AT_ONCE = 10_000
_FLUSH_S = 5.0  # at shutdown, for the proxy's turns to reach the store


class Memory:
    """Turns, sessions, tickets, the blocklist, recall, switches, claims of tools; make it with `Memory.open`."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        free_bytes: Callable[[Path], int] = free_bytes_of,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._summaries: Summaries | None = None
        self._sinks = settings.sinks
        self._recalls_from_sink = not {"zep", "zep_cloud"}.isdisjoint(settings.sinks)
        self._facts: FactSource | None = None  # the sink that recall asks, once it is open
        self._workers: dict[SinkName, DeliveryWorker] = {}
        self._outbox: OutboxStatus | None = None
        self._outbox_read_at_s = 0.0
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closing = False
        self._opened = asyncio.Event()
        self._tried = asyncio.Event()  # to open the store, at least once
        self._erasing = asyncio.Event()
        self._state: StoreState = "opening"
        self._reason: str | None = None
        self._watchers: list[Callable[[Owner], None]] = []
        self._database: Database = connect(
            settings.database_url,
            timeout_s=settings.store_timeout_s,
            patience_s=settings.store_patience_s,
            client_id=settings.client_id,
            proxy=settings.proxy,
        )
        is_sqlite = self._database.dialect == "sqlite"
        self._disk: DiskSpace | None = None  # a PostgreSQL server watches its own
        if is_sqlite:
            folder = sqlite_path(settings.database_url.get_secret_value()).parent
            self._disk = DiskSpace(folder, settings.min_free_disk_bytes, free_bytes=free_bytes)
        self._writer = GroupWriter(
            self._database,
            sinks=self._sinks,
            gather_s=settings.group_commit_ms / 1000,
            clock=clock,
            on_stored=self._stored,
            session_bytes=settings.session_bytes,
            disk_is_short=self._disk.is_short if self._disk else lambda _wanted_bytes: False,
        )
        self.ingest = IngestBuffer(
            self._writer,
            max_turns=settings.intake_turns,
            max_bytes=settings.intake_bytes,
            turns_per_minute=settings.turns_per_minute,
            bytes_per_minute=settings.turn_bytes_per_minute,
            on_refused=self._end_talks_of,
        )
        self.sessions = StoredSessions(self._database, self._writer, patience_s=settings.store_patience_s, clock=clock)
        self.tickets = StoredTickets(self._database, patience_s=settings.store_patience_s, clock=clock)
        self.blocklist = StoredBlocklist(self._database, required=settings.require_blocklist == "on", clock=clock)
        self.switches = ResourceSwitches(self._database)
        self.tool_claims = ToolClaims(self._database)
        local = LocalFacts(self._database, TurnSearch(self._database))
        self.recall = BoundedRecall(
            self._database, lambda: self._facts if self._recalls_from_sink else local, budget_s=settings.recall_budget_s
        )
        self._maintenance = Maintenance(
            self._database,
            sinks=self._sinks,
            lease_s=3 * settings.delivery_timeout_s,
            session_token_s=settings.session_token_ttl_s,
            clock=clock,
        )

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        free_bytes: Callable[[Path], int] = free_bytes_of,
    ) -> "AsyncIterator[Memory]":
        """The memory at work; a store that is away is tried until it comes. Raises StoreInUseError.

        `free_bytes` says how much is free on the disk of a folder.
        """
        memory = cls(settings, clock=clock, free_bytes=free_bytes)
        memory._start("store", memory._keep_open)
        memory._start("ingest", memory.ingest.run)
        try:
            yield memory
        finally:
            await memory._close()

    @property
    def database(self) -> Database:
        """The store, for what else is kept in it."""
        return self._database

    async def ready(self) -> None:
        """Returns when the store is open; bound the wait."""
        await self._opened.wait()

    async def append(self, turns: Sequence[Turn]) -> list[Outcome]:
        """Stores turns; returns an outcome each once they are committed and on disk. Raises StoreError.

        After StoreAwayError it may be unknown whether they were stored: the same turn ids may be sent again.
        """
        timeout_s = self._settings.store_timeout_s
        if not self._opened.is_set():
            # A store that is just being opened is waited for; one that would not open is not.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._tried.wait()
            if not self._opened.is_set():
                raise StoreUnreachableError("not yet open")
        done = self._writer.submit(turns)
        # A timer and not `asyncio.timeout`, which costs more for each turn.
        late = asyncio.get_running_loop().call_later(timeout_s, give_up, done, StoreAwayError("not committed in time"))
        try:
            return await done  # the writer's future: a caller that leaves cancels no commit
        finally:
            late.cancel()

    async def turns(self, session_id: str, *, principal: str, limit: int, after: str | None = None) -> "Page | None":
        """A page of the turns of `principal`'s session, behind the turn `after`; None where there is no such turn.

        Raises StoreError, NotOwnerError.
        """
        from token_broker.memory.store.turn_reads import list_turns

        wanted = partial(list_turns, session_id=session_id, principal=principal, limit=limit, after=after)
        return await self._database.read(wanted, pool="bulk")

    async def erase_session(self, session_id: str, *, principal: str) -> "tuple[int, list[SinkReceipt]]":
        """Erases `principal`'s session; how many turns it had, and a receipt by sink. Raises StoreError, NotOwnerError.

        From here on nobody reads it or writes into it, and its talks end. Its rows are deleted soon after, in short
        transactions, and the sinks are asked to erase it.
        """
        marked = await self._maintenance.mark_erased(session_id, principal=principal)
        self._forget(session_id, principal)
        self._erasing.set()
        for worker in self._workers.values():
            worker.nudge()
        return marked.turns, await self._maintenance.receipt(session_id=session_id)

    def _forget(self, session_id: str, principal: str) -> None:
        """Drops what this process knows of an erased session, and ends its talks."""
        self._writer.evict(session_id)
        self.sessions.evict(session_id)
        self.recall.cache.clear()
        self._end_talks_of(Owner(session_id, principal, 0))

    def sum_up(self, sender: HookSender, url_of: Callable[[str], str | None]) -> Summaries:
        """Has the talks summed up whose agents have a hook for it; the task ends with the memory."""
        told = [sink for sink in self._sinks if sink in NOTICE_SINKS]
        self._summaries = Summaries(self._database, sender, url_of, clock=self._clock, sinks=told)
        self._start("summaries", self._summaries.run)
        return self._summaries

    def watch_lost_sessions(self, end_talks_of: Callable[[Owner], None]) -> None:
        """`end_talks_of(owner)` is called where a session turns out not to be `owner`'s, or to be erased."""
        self._watchers.append(end_talks_of)

    def _end_talks_of(self, owner: Owner) -> None:
        for end_talks_of in self._watchers:
            end_talks_of(owner)

    async def refresh(self) -> None:
        """Reads the outbox's status from the store, as long as patience lasts; `status` shows what was read last."""
        try:
            async with asyncio.timeout(self._settings.store_patience_s):
                self._outbox = await self._maintenance.outbox_status()
                if self._disk is not None:
                    self._disk.reusable_bytes = await self._database.read(reusable_bytes)
        except (StoreError, TimeoutError):
            return
        self._outbox_read_at_s = self._clock()

    def status(self) -> MemoryStatus:
        """The memory's status, without waiting for the store."""
        now_s = self._clock()
        outbox, counts = self._outbox, self._writer.counts
        oldest_us = outbox.oldest_us if outbox else None
        by_sink = [self._sink_status(name, now_s) for name in dict.fromkeys([*self._sinks, *(outbox or _NONE).by_sink])]
        failing = self._writer.failing
        disk_is_short = self._disk is not None and self._disk.is_short()
        if disk_is_short and failing is None:
            failing = "disk nearly full"
        away = self._state == "open" and failing is not None
        return MemoryStatus(
            store="away" if away else self._state,
            store_reason=failing or self._reason,
            sinks=by_sink,
            queued=outbox.queued if outbox else 0,
            oldest_age_s=0.0 if oldest_us is None else round(max(0.0, now_s - oldest_us / 1_000_000), 3),
            dead=outbox.dead if outbox else 0,
            pending_erasures=outbox.erasures if outbox else 0,
            outbox_age_s=round(max(0.0, now_s - self._outbox_read_at_s), 3) if outbox else None,
            stored=counts.stored,
            duplicates=counts.duplicates,
            foreign=counts.foreign,
            full_sessions=counts.full,
            disk_is_short=disk_is_short,
            disk_free_bytes=self._disk.free_bytes if self._disk else None,
            short_of_disk=counts.short_of_disk,
            refused=counts.refused + self.ingest.counts.refused,
            commits=counts.commits,
            failed_commits=counts.failed_commits,
            waiting=self._writer.waiting_turns,
            buffered=self.ingest.buffered,
            overflowed=self.ingest.counts.overflowed,
            delivered=sum(one.delivered for one in by_sink) if self._sinks else counts.stored,
            delivery_failures=sum(one.delivery_failures for one in by_sink),
            tickets_spent_locally=self.tickets.spent_locally,
            sessions_unanswered=self.sessions.unanswered,
            blocked=self.blocklist.count,
            blocklist_age_s=self.blocklist.age_s,
            blocklist_unread=self.blocklist.unread,
            recalls=self.recall.counts.asked,
            recalls_late=self.recall.counts.late,
            recalls_failed=self.recall.counts.failed,
            recalls_repeated=self.recall.counts.repeated,
        )

    def _sink_status(self, name: SinkName, now_s: float) -> SinkStatus:
        worker, waiting = self._workers.get(name), (self._outbox or _NONE).by_sink.get(name, _NONE)
        age_s = 0.0 if waiting.oldest_us is None else max(0.0, now_s - waiting.oldest_us / 1_000_000)
        return SinkStatus(
            sink=name,
            used=name in self._sinks,
            queued=waiting.queued,
            oldest_age_s=round(age_s, 3),
            dead=waiting.dead,
            pending_erasures=waiting.erasures,
            delivered=worker.counts.delivered if worker else 0,
            delivery_failures=worker.counts.failures if worker else 0,
            delivery_limit=worker.limiter.limit if worker else 0,
            lost_leases=worker.counts.lost_leases if worker else 0,
            dropped_notices=worker.counts.dropped_notices if worker else 0,
            rests_for_s=round(worker.pause_s, 3) if worker else 0.0,
            last_delivery_failure=worker.last_failure if worker else None,
        )

    def _stored(self, session_ids: Collection[str]) -> None:
        self.recall.cache.invalidate(session_ids)
        for worker in self._workers.values():
            worker.nudge()

    def _start(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs `work` in a task, and again after a fault: one broken task must not end the memory."""
        if self._closing:
            return
        task = self._tasks[name] = asyncio.create_task(work(), name=f"memory-{name}")

        def ended(task: "asyncio.Task[None]") -> None:
            if task.cancelled() or (error := task.exception()) is None:
                return
            at = traceback.format_tb(error.__traceback__)[-1]
            log.error("memory_task_broke", task=name, error=type(error).__name__, at=at)
            asyncio.get_running_loop().call_later(_RESTART_S, self._start, name, work)

        task.add_done_callback(ended)

    async def _keep_open(self) -> None:
        """Opens the store, as often as it takes, and starts what works on it."""
        failures, was_empty = 0, False
        while not self._opened.is_set():
            try:
                was_empty |= await self._database.open()
                from token_broker.memory.store.turn_writes import last_arrival

                self._writer.begin_after(await self._database.read(last_arrival))
                await self.blocklist.refresh()
                await self.switches.refresh()
            except StoreError as error:
                failures += 1
                self._state, self._reason = "away", str(error)
                self._tried.set()
                log.warning("store_away", reason=str(error), failures=failures)
                await asyncio.sleep(min(_REOPEN_LAST_S, backoff_s(failures) / 2))
                continue
            self._state, self._reason = "open", None
            self._opened.set()
            self._tried.set()
            log.info("store_open", after_failures=failures, was_empty=was_empty)
        self._start("writer", self._writer.run)  # turns that came earlier wait, within the writer's bounds
        self._start("blocklist", self.blocklist.run)
        self._start("resources", self.switches.run)
        for name in self._sinks:
            self._start(f"delivery to {name}", partial(self._keep_delivering, name))
        self._start("erased sessions", self._keep_looking_for_erased)
        self._start("sweeping", self._keep_sweeping)
        self._start("erasing", self._keep_erasing)

    async def _keep_delivering(self, name: SinkName) -> None:
        from token_broker.memory.delivery.open_sinks import open_sink, policy_of
        from token_broker.memory.delivery.worker import DeliveryWorker

        if (worker := self._workers.get(name)) is None:
            sink = await open_sink(name, self._settings, self._database)
            policy = policy_of(name, self._settings)
            worker = self._workers[name] = DeliveryWorker(self._database, sink, policy, clock=self._clock)
            if name != "http":
                self._facts = cast("FactSource", sink)
        await worker.run()

    async def _keep_looking_for_erased(self) -> None:
        """Ends the talks of sessions that another process has erased, within two seconds."""
        from token_broker.memory.store.erasure import erased_since

        seen = BoundedDict[str, None](_ERASED_AT_ONCE)
        while True:
            since_us = to_us(self._clock() - _ERASED_LOOKS_BACK_S)
            try:
                found = await self._database.read(partial(erased_since, since_us=since_us, limit=_ERASED_AT_ONCE))
            except StoreError:
                found = []  # the blocklist, which is read as often, has logged it
            for session_id, principal in found:
                if session_id not in seen:
                    seen[session_id] = None
                    self._forget(session_id, principal)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _keep_sweeping(self) -> None:
        """Reads the outbox's status every few seconds, and sweeps every few minutes."""
        swept_at_s = float("-inf")
        while True:
            await self.refresh()
            if time.monotonic() >= swept_at_s + _SWEEP_EVERY_S:
                with contextlib.suppress(StoreError):
                    await self._maintenance.sweep(self._settings.retention_days)
                    if dropped := await self._maintenance.drop_unused(self._settings.delivery_max_age_s):
                        log.warning("unused_sink_dropped", sessions=dropped)
                    swept_at_s = time.monotonic()
            await asyncio.sleep(_STATUS_EVERY_S)

    async def _keep_erasing(self) -> None:
        """Deletes the turns of erased sessions: this process's at once, those that another one left every minute."""
        while True:
            self._erasing.clear()
            try:
                if await self._maintenance.finish_erasures():
                    await self._maintenance.scrub_files()
            except StoreError as error:
                log.warning("erasure_delayed", reason=str(error))
                await asyncio.sleep(_STATUS_EVERY_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ERASURES_EVERY_S):
                    await self._erasing.wait()

    async def _close(self) -> None:
        """Gives the proxy's turns time to reach the store, ends the tasks, closes what is open."""
        if self.ingest.buffered:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_S):
                    await self.ingest.flushed()
        if self._summaries is not None:
            await self._summaries.aclose()
        self._closing = True
        for task in self._tasks.values():
            task.cancel()
        await asyncio.wait(self._tasks.values())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                await self._writer.flush()  # sessions that have just been minted
        await self.sessions.aclose()
        await self._writer.write_sizes(everything=True)
        for worker in self._workers.values():
            await worker.sink.aclose()
        await self._database.close()
