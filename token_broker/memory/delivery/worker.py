"""The worker that brings stored turns to the sink, in every replica: claims, delivers in order, settles.

Sessions run side by side, as many as the sink bears; within one, a call at a time. What a claim came to is written even
when the worker is told to stop, so that a shutdown repeats nothing.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from token_broker.memory.delivery.backoff import (
    FULL_BATCH,
    Backlog,
    ConcurrencyLimiter,
    Failure,
    after_failure,
    backoff_s,
)
from token_broker.memory.delivery.ordering import Ready, ready
from token_broker.memory.delivery.sink import DeliveryBatch, Sink, SinkError
from token_broker.memory.drivers.database import Database
from token_broker.memory.errors import StoreError
from token_broker.memory.store import erasure as forgetting
from token_broker.memory.store import outbox
from token_broker.memory.store.keys import to_us
from token_broker.memory.store.outbox import Claim, Settlement
from token_broker.memory.store.rows import StoredTurn

__all__ = ["DeliveryCounts", "DeliveryPolicy", "DeliveryWorker"]

log = structlog.get_logger(__name__)

_LEASE_TIMEOUTS = 3
_LONGEST_POLL_S = 30.0
_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class DeliveryPolicy:
    """How delivery goes about it; times are seconds."""

    timeout_s: float = 10
    concurrency: int = 8
    max_attempts: int = 20
    max_age_s: float = 7 * 86_400
    gap_s: float = 10
    poll_s: float = 1

    @property
    def lease_s(self) -> float:
        return self.timeout_s * _LEASE_TIMEOUTS


@dataclass(slots=True)
class DeliveryCounts:
    """Since the process began."""

    delivered: int = 0
    dead: int = 0
    failures: int = 0
    lost_leases: int = 0
    erased: int = 0


class DeliveryWorker:
    """Runs until it is cancelled; `nudge` says that there is something new."""

    def __init__(self, database: Database, sink: Sink, policy: DeliveryPolicy, *, clock: Callable[[], float]) -> None:
        self._database = database
        self._sink = sink
        self._policy = policy
        self._clock = clock
        self._limiter = ConcurrencyLimiter()
        self._wake = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self.counts = DeliveryCounts()
        self.last_failure: str | None = None
        self._unreachable = False

    @property
    def limiter(self) -> ConcurrencyLimiter:
        return self._limiter

    def nudge(self) -> None:
        """Looks at the outbox soon."""
        self._wake.set()

    async def run(self) -> None:
        """Delivers what is due, and sleeps until more is."""
        try:
            while True:
                self._wake.clear()
                try:
                    found = await self.round()
                except StoreError as error:
                    self._tell_once(error)
                    found = 0
                else:
                    self._unreachable = False
                if not found:
                    await self._rest()
        finally:
            await self._finish()

    def _tell_once(self, error: StoreError) -> None:
        if not self._unreachable:
            log.warning("outbox_unreachable", reason=str(error))
        self._unreachable = True

    async def round(self) -> int:
        """Claims what is due, up to the free places, and starts delivering it; how much that was."""
        now_s = self._clock()
        if now_s < self._limiter.resume_at_s:
            return 0
        free = self._limiter.limit - len(self._running)
        if free <= 0:
            return 0
        erasures = await self._claim_erasures(1)
        for erasure in erasures:
            self._start(self._erase(erasure))
        claims = await self._claim(free - len(erasures))
        for claim in claims:
            self._start(self._deliver(claim))
        return len(claims) + len(erasures)

    async def idle(self) -> None:
        """Returns when nothing that was claimed is under way any more."""
        while self._running:
            await asyncio.wait(self._running)

    async def _claim(self, limit: int) -> list[Claim]:
        if limit <= 0:
            return []
        now_us = to_us(self._clock())
        buckets = await self._database.read(partial(outbox.due_buckets, now_us=now_us))
        random.shuffle(buckets)  # so that replicas begin at different ends
        claims: list[Claim] = []
        for bucket in buckets:
            now_us = to_us(self._clock())
            lease_until_us = now_us + to_us(self._policy.lease_s)
            wanted = limit - len(claims)
            work = partial(outbox.claim, bucket=bucket, limit=wanted, now_us=now_us, lease_until_us=lease_until_us)
            claims += await self._database.write(work)
            if len(claims) >= limit:
                break
        return claims

    async def _claim_erasures(self, limit: int) -> list[forgetting.Erasure]:
        now_us = to_us(self._clock())
        lease_until_us = now_us + to_us(self._policy.lease_s)
        claim = partial(forgetting.claim_erasures, limit=limit, now_us=now_us, lease_until_us=lease_until_us)
        return await self._database.write(claim)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._wake.set()  # there is a free place
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("delivery_broke_off", error=type(error).__name__, reason=str(error)[:200])

    async def _deliver(self, claim: Claim) -> None:
        now_us = to_us(self._clock())
        can_go = self._ready(claim, now_us)
        batch = claim.turns[: min(can_go.count, claim.backlog.batch)]
        if not batch:
            due_us = can_go.wait_until_us or now_us
            backlog = claim.backlog
            await self._settle(claim, Settlement(due_us, backlog, uncertain=claim.uncertain))
            return
        failure = await self._hand_over(claim, batch)
        self._note(failure)
        await self._settle(claim, self._settlement(claim, batch, failure))

    def _ready(self, claim: Claim, now_us: int) -> Ready:
        return ready(
            [turn.position for turn in claim.turns],
            [turn.arrived_us for turn in claim.turns],
            claim.last_settled,
            now_us=now_us,
            gap_us=to_us(self._policy.gap_s),
        )

    async def _hand_over(self, claim: Claim, batch: Sequence[StoredTurn]) -> Failure | None:
        sent = DeliveryBatch(claim.session_id, claim.principal, claim.user_id, batch, claim.uncertain)
        try:
            async with asyncio.timeout(self._policy.timeout_s):
                await self._sink.deliver(sent)
        except SinkError as error:
            return error.failure
        except TimeoutError:
            return Failure("no answer in time", uncertain=True)
        except Exception as error:  # noqa: BLE001  # a fault in a sink must not end the worker; the turns stay
            log.error("sink_broke", error=type(error).__name__)
            return Failure(f"the sink broke ({type(error).__name__})", counts=True, uncertain=True)
        return None

    def _note(self, failure: Failure | None) -> None:
        if failure is None:
            self._limiter = self._limiter.succeeded(self._policy.concurrency)
            return
        self.counts.failures += 1
        self.last_failure = failure.reason
        self._limiter = self._limiter.failed(failure, self._clock())

    def _settlement(self, claim: Claim, batch: Sequence[StoredTurn], failure: Failure | None) -> Settlement:
        now_us = to_us(self._clock())
        ids = [turn.turn_id for turn in batch]
        if failure is None:
            return Settlement(now_us, Backlog(batch=min(FULL_BATCH, claim.backlog.batch * 2)), delivered=ids)
        verdict = after_failure(
            claim.backlog,
            failure,
            len(batch),
            now_us=now_us,
            max_attempts=self._policy.max_attempts,
            max_age_s=self._policy.max_age_s,
        )
        return Settlement(
            now_us + to_us(verdict.due_in_s),
            verdict.backlog,
            dead=ids[:1] if verdict.dead else (),
            reason=failure.reason,
            uncertain=failure.uncertain or (claim.uncertain and not verdict.dead),
        )

    async def _settle(self, claim: Claim, result: Settlement) -> None:
        """Written whatever happens to the worker: cancelling the wait does not cancel the writing."""
        writing = asyncio.ensure_future(self._write_settlement(claim, result))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing}, timeout=_CLOSE_S)
            raise

    async def _write_settlement(self, claim: Claim, result: Settlement) -> None:
        if await self._database.write(partial(outbox.settle, held=claim, result=result)):
            self.counts.delivered += len(result.delivered)
            self.counts.dead += len(result.dead)
        else:
            self.counts.lost_leases += 1

    async def _erase(self, erasure: forgetting.Erasure) -> None:
        try:
            async with asyncio.timeout(self._policy.timeout_s):
                await self._sink.forget(erasure.principal, erasure.session_id)
        except (SinkError, TimeoutError) as error:
            failure = error.failure if isinstance(error, SinkError) else Failure("no answer in time")
            self._note(Failure(failure.reason, counts=failure.permanent, retry_after_s=failure.retry_after_s))
            wait_s = max(backoff_s(erasure.failures + 1), failure.retry_after_s or 0)
            due_us = to_us(self._clock() + wait_s)
            later = partial(forgetting.postpone_erasure, erasure=erasure, due_at_us=due_us, reason=failure.reason)
            await self._database.write(later)
            return
        await self._database.write(partial(forgetting.finish_erasure, erasure=erasure))
        self.counts.erased += 1

    async def _rest(self) -> None:
        """Sleeps until something is due, a nudge, or the poll's time; the wait has jitter between replicas."""
        pause_s = self._limiter.resume_at_s - self._clock()
        if pause_s > 0:
            await asyncio.sleep(min(pause_s, _LONGEST_POLL_S))  # nudges do not hurry an ill sink
            return
        try:
            async with asyncio.timeout(self._policy.poll_s * random.uniform(0.75, 1.25)):  # noqa: S311  # not a secret
                await self._wake.wait()
        except TimeoutError:
            return

    async def _finish(self) -> None:
        """Lets deliveries under way end, within one delivery's time."""
        if self._running:
            await asyncio.wait(self._running, timeout=_CLOSE_S)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=_CLOSE_S)
