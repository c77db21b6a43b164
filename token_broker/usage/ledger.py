"""The ledger of usage: rows by talk, Azure resource and UTC day, written beside the talks.

A row is written when its talk goes live, every 15 s while it goes on, with each answer of a call, and at its end: those
of a replica in one batch. Nothing waits for it. While the store is away, rows wait here, up to a bound; what is beyond
is counted and logged. Each writer of a talk has a part of its own, whose numbers are absolute: the same row may be
written twice.
"""

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import structlog

from token_broker.memory.drivers.database import Database
from token_broker.memory.store_errors import StoreError
from token_broker.security.tokens import Owner
from token_broker.usage.days import StoreClock
from token_broker.usage.talk_usage import UNSEEN, TalkUsage

__all__ = ["GivenSecret", "LedgerCounts", "UsageLedger"]

log = structlog.get_logger("token_broker.usage")

_EVERY_S = 15.0
_GATHER_S = 0.25  # talks that begin or end at once are one batch
_SECRETS_S = 1.0  # likewise the secrets of plans, each of which may be used or not
_CHUNK = 200  # rows in a transaction: turns wait behind it
_MOST_CLOSED = 20_000  # talks that have ended while the store is away
_FLUSH_S = 5.0  # at shutdown


async def _sure() -> None:
    """The default of `confirm`, where no call can move to another replica."""


@dataclass(slots=True)
class LedgerCounts:
    """`lost` are talks whose end was never written, since too many waited for the store.

    `written` are rows, `failed` attempts to write, `repeated` answers that another replica had counted already.
    """

    written: int = 0
    failed: int = 0
    repeated: int = 0
    lost: int = 0


class GivenSecret(NamedTuple):
    """A secret of Azure's that a page was given."""

    owner: Owner
    agent_id: str
    transport: str
    resource: str
    dialect: str

    def usage(self, clock: StoreClock) -> TalkUsage:
        """What the page uses with it, which nobody knows."""
        about = {"agent_id": self.agent_id, "transport": self.transport, "dialect": self.dialect, "part": UNSEEN}
        usage = TalkUsage(self.owner, **about, seen=False, clock=clock)  # type: ignore[arg-type]
        usage.expect(self.resource, self.dialect)
        return usage


class UsageLedger:
    """The ledger of this process. `open` a talk's usage, feed it, and `end` it; `start` writes."""

    def __init__(
        self,
        database: Database | None,
        *,
        clock: StoreClock | None = None,
        every_s: float = _EVERY_S,
        most_closed: int = _MOST_CLOSED,
    ) -> None:
        self.clock = clock or StoreClock()
        self.counts = LedgerCounts()
        self.confirm: Callable[[], Awaitable[None]] = _sure
        """Waits until it is known which calls are still ours."""
        self._database = database
        self._every_s = every_s
        self._open: dict[tuple[str, str], TalkUsage] = {}
        self._closed: deque[TalkUsage] = deque()
        self._secrets: deque[GivenSecret] = deque()  # to be written; they give way to talks that have ended
        self._most_closed = most_closed
        self._wake = asyncio.Event()
        self._changed: set[TalkUsage] = set()  # since they were written
        self._away = False
        self._running: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Talks that have ended, and whose end is not written yet."""
        return len(self._closed)

    def open(self, owner: Owner, *, agent_id: str, transport: str, dialect: str, seen: bool) -> TalkUsage:
        """The usage of the owner's talk; the same for each of its observers over this transport. Each has to end it."""
        key = (owner.talk_id, transport)
        if (known := self._open.get(key)) is not None:
            known.look()
            known.observers += 1
            known.hears = known.hears or seen
            known.handed_over(agent_id)  # over WebRTC another agent is another call of the talk
            return known
        usage = self._open[key] = TalkUsage(
            owner,
            agent_id=agent_id,
            transport=transport,
            dialect=dialect,
            seen=seen,
            part=secrets.token_hex(6),
            clock=self.clock,
            changed=self._note,
            closed=self._close,
        )
        return usage

    def start(self) -> None:
        """Writes in the background, until `aclose`."""
        self._running = asyncio.create_task(self.run(), name="usage-ledger")

    async def run(self) -> None:
        """Writes again and again; a store that is away is logged once."""
        now_s = asyncio.get_running_loop().time
        all_at_s = now_s() + self._every_s
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(all_at_s, now_s() + _SECRETS_S)):
                    await self._wake.wait()
                    await asyncio.sleep(_GATHER_S)
            if writes_all := now_s() >= all_at_s:
                all_at_s = now_s() + self._every_s
            elif not (self._wake.is_set() or self._secrets):
                continue
            self._wake.clear()
            try:
                await self.flush(changed_alone=not writes_all)
            except StoreError as error:
                self.counts.failed += 1
                if not self._away:
                    log.warning("usage_unwritten", reason=str(error), do="it is written once the store answers")
                self._away = True
                await asyncio.sleep(self._every_s / 10)
            else:
                self._away = False

    async def flush(self, *, changed_alone: bool = False) -> None:
        """Writes the time that has passed, too, unless `changed_alone`. Raises StoreError: it is written later."""
        if self._database is None:
            return
        await self.confirm()
        while self._secrets and len(self._closed) < self._most_closed:
            self._closed.append(self._secrets.popleft().usage(self.clock))
        ended = list(self._closed)
        changed, self._changed = self._changed, set()
        going = [usage for usage in self._open.values() if not changed_alone or usage in changed]
        try:
            await self._write(self._database, ended, going)
        except BaseException:
            self._changed |= changed
            raise
        for usage in ended:
            usage.is_kept = True
        done = {id(usage) for usage in ended}
        self._closed = deque(usage for usage in self._closed if id(usage) not in done)

    async def _write(self, database: Database, ended: list[TalkUsage], going: list[TalkUsage]) -> None:
        from token_broker.usage.rows import write_usage

        for usage in going:
            usage.look()
        await self._claim(database, [usage for usage in (*ended, *going) if usage.unclaimed])
        dirty = [(usage, row) for usage in (*ended, *going) for row in usage.rows if row.is_dirty]
        for start in range(0, len(dirty), _CHUNK):
            chunk = dirty[start : start + _CHUNK]
            values = [usage.values(row) for usage, row in chunk]
            billed = [dict(row.billed_ms) for _, row in chunk]
            live_us = [row.live_us for _, row in chunk]
            for _, row in chunk:
                row.is_dirty = False
            try:
                now_us = await database.write(
                    partial(write_usage, rows=values, billed=billed, monotonic_s=self.clock.monotonic_s)
                )
            except BaseException:
                for _, row in chunk:
                    row.is_dirty = True
                raise
            for (_, row), written_us, billed_ms in zip(chunk, live_us, billed, strict=True):
                row.written_us = written_us
                row.billed_ms = dict(row.billed_ms.items() - billed_ms.items())
            self.clock.note(now_us)
            self.counts.written += len(chunk)

    async def _claim(self, database: Database, talks: list[TalkUsage]) -> None:
        """Takes back what another replica has counted first."""
        from token_broker.usage.rows import claim_answers

        counted = [(usage, each) for usage in talks for each in usage.unclaimed]
        for start in range(0, len(counted), _CHUNK):
            chunk = counted[start : start + _CHUNK]
            claims = {
                (each.owner.session_id, each.owner.talk_id, one.key, each.part): (each, one) for each, one in chunk
            }
            lost = await database.write(partial(claim_answers, claims=list(claims)))
            for usage, each in chunk:
                usage.unclaimed.remove(each)
            for claim in lost:
                usage, each = claims[claim]
                usage.counted_elsewhere(each)
                self.counts.repeated += 1

    async def aclose(self) -> None:
        """Writes what is left, for a few seconds; what can't be written is logged."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait((self._running,))
        try:
            async with asyncio.timeout(_FLUSH_S):
                await self.flush()
        except (StoreError, TimeoutError) as error:
            if left := len(self._closed) + len(self._open):
                self.counts.lost += left
                log.error("usage_lost", talks=left, error=type(error).__name__)

    def _note(self, usage: TalkUsage) -> None:
        if usage.observers > 0:
            self._changed.add(usage)
        elif usage not in self._closed:  # an answer's end came after the call had gone to another replica
            self._closed.append(usage)
        self._wake.set()

    def give(self, secret: GivenSecret) -> None:
        """Notes that a page gets a secret of Azure's: its row stands for the talk while nothing of that is seen."""
        if self._database is None:
            return
        if len(self._secrets) >= self._most_closed:
            self._secrets.popleft()
            self._count_lost()
        self._secrets.append(secret)

    def _count_lost(self) -> None:
        self.counts.lost += 1
        log.error("usage_lost", talks=1, why="too many talks wait for the store")

    def _close(self, usage: TalkUsage) -> None:
        self._changed.discard(usage)
        self._open.pop((usage.owner.talk_id, usage.transport), None)
        usage.is_kept = self._database is None or not usage.rows
        if not usage.rows:
            return
        if len(self._closed) >= self._most_closed:
            self._closed.popleft().is_kept = True
            self._count_lost()
        self._closed.append(usage)
        self._wake.set()
