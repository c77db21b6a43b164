"""The worker that delivers stored turns to the sink, in every replica: claims, delivers in order, settles.

Sessions run side by side, as many as the sink bears; each session has one call at a time. A claim's result is written
even when the worker is told to stop, so that a shutdown repeats nothing.

The decisions stand below the worker, as pure functions: which turns may go (`ready`), when a session is tried again and
when a turn is dead (`after_failure`), and how many deliveries run at once (`ConcurrencyLimiter`).
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from token_broker.memory.drivers.database import Database
from token_broker.memory.store import outbox
from token_broker.memory.store.outbox import Claim, Erasure, Settlement
from token_broker.memory.store_errors import StoreError
from token_broker.memory.types import (
    FULL_BATCH,
    LAST_PLACE,
    Backlog,
    DeliveryBatch,
    Failure,
    Position,
    Sink,
    SinkError,
    StoredTurn,
    backoff_s,
    to_us,
)
from token_broker.settings import Settings

__all__ = [
    "ConcurrencyLimiter",
    "DeliveryCounts",
    "DeliveryPolicy",
    "DeliveryWorker",
    "Ready",
    "Verdict",
    "after_failure",
    "ready",
]

log = structlog.get_logger(__name__)

# A claim outlasts the delivery, the settlement and a slow store: a second claimant would deliver the turns again.
_LEASE_TIMEOUTS = 3
_LONGEST_POLL_S = 30.0
_CLOSE_S = 5.0
PAUSE_LAST_S = 30.0

# One poisoned turn also fails with an answer. Only so many failures in a row, of any sessions, are the sink's own.
UNAVAILABLE_AFTER = 3


@dataclass(frozen=True, slots=True)
class DeliveryPolicy:
    """The limits of delivery; times are seconds."""

    timeout_s: float = 10
    concurrency: int = 8
    max_attempts: int = 20
    max_age_s: float = 7 * 86_400
    gap_s: float = 10
    poll_s: float = 1

    @classmethod
    def of(cls, settings: Settings) -> "DeliveryPolicy":
        return cls(
            timeout_s=settings.delivery_timeout_s,
            concurrency=settings.delivery_concurrency,
            max_attempts=settings.delivery_attempts,
            max_age_s=settings.delivery_max_age_s,
            gap_s=settings.delivery_gap_s,
            poll_s=settings.delivery_poll_s,
        )

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
        self._wake = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._unreachable = False
        self.limiter = ConcurrencyLimiter()
        self.counts = DeliveryCounts()
        self.last_failure: str | None = None

    def nudge(self) -> None:
        """Looks at the outbox soon."""
        self._wake.set()

    async def run(self) -> None:
        """Delivers what is due, and sleeps until more is due."""
        try:
            while True:
                self._wake.clear()
                try:
                    found = await self.round()
                    self._unreachable = False
                except StoreError as error:
                    if not self._unreachable:  # logged once an outage
                        log.warning("outbox_unreachable", reason=str(error))
                    self._unreachable, found = True, 0
                if not found:
                    await self._sleep()
        finally:
            # Deliveries under way may end within one delivery's time, so that they are not repeated.
            if self._running:
                await asyncio.wait(self._running, timeout=_CLOSE_S)
            for task in self._running:
                task.cancel()
            if self._running:
                await asyncio.wait(self._running, timeout=_CLOSE_S)

    async def round(self) -> int:
        """Claims what is due, up to the concurrency limit, and starts delivering it; returns how much it claimed."""
        now_s = self._clock()
        if now_s < self.limiter.resume_at_s:
            return 0
        free = self.limiter.limit - len(self._running)
        if free <= 0:
            return 0
        now_us = to_us(now_s)
        lease_until_us = now_us + to_us(self._policy.lease_s)
        claim = partial(outbox.claim_erasures, limit=1, now_us=now_us, lease_until_us=lease_until_us)
        erasures = await self._database.write(claim)
        for erasure in erasures:
            self._start(self._erase(erasure))
        started = len(erasures)
        buckets = await self._database.read(partial(outbox.due_buckets, now_us=now_us)) if started < free else []
        random.shuffle(buckets)  # replicas that began with the same bucket would wait for each other's locks
        for bucket in buckets:  # a transaction each: a claim locks its rows until its transaction ends
            now_us = to_us(self._clock())
            lease_until_us = now_us + to_us(self._policy.lease_s)
            limit = free - started
            work = partial(outbox.claim, bucket=bucket, limit=limit, now_us=now_us, lease_until_us=lease_until_us)
            claims = await self._database.write(work)
            for held in claims:
                self._start(self._deliver(held))
            started += len(claims)
            if started >= free:
                break
        return started

    async def idle(self) -> None:
        """Returns when no claimed work is under way any more."""
        while self._running:
            await asyncio.wait(self._running)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        def ended(task: "asyncio.Task[None]") -> None:
            self._running.discard(task)
            self._wake.set()  # the next claim has room now
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("delivery_broke_off", error=type(error).__name__, reason=str(error)[:200])

        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(ended)

    async def _deliver(self, claim: Claim) -> None:
        now_us = to_us(self._clock())
        can_go = ready(
            [turn.position for turn in claim.turns],
            [turn.arrived_us for turn in claim.turns],
            claim.last_settled,
            now_us=now_us,
            gap_us=to_us(self._policy.gap_s),
        )
        turns = claim.turns[: min(can_go.count, claim.backlog.batch)]
        if not turns:
            due_us = can_go.wait_until_us or now_us
            await self._settle(claim, Settlement(due_us, claim.backlog, uncertain=claim.uncertain))
            return
        failure: Failure | None = None
        try:
            async with asyncio.timeout(self._policy.timeout_s):
                batch = DeliveryBatch(claim.session_id, claim.principal, claim.user_id, turns, claim.uncertain)
                await self._sink.deliver(batch)
        except SinkError as error:
            failure = error.failure
        except TimeoutError:
            failure = Failure("no answer in time", uncertain=True)
        except Exception as error:  # noqa: BLE001  # a fault in a sink must not end the worker; the turns stay
            log.error("sink_broke", error=type(error).__name__)
            failure = Failure(f"the sink broke ({type(error).__name__})", counts=True, uncertain=True)
        self._note(failure)
        await self._settle(claim, self._settlement(claim, turns, failure))

    def _note(self, failure: Failure | None) -> None:
        if failure is None:
            self.limiter = self.limiter.succeeded(self._policy.concurrency)
            return
        self.counts.failures += 1
        self.last_failure = failure.reason
        self.limiter = self.limiter.failed(failure, self._clock())

    def _settlement(self, claim: Claim, turns: Sequence[StoredTurn], failure: Failure | None) -> Settlement:
        now_us = to_us(self._clock())
        ids = [turn.turn_id for turn in turns]
        if failure is None:
            return Settlement(now_us, Backlog(batch=min(FULL_BATCH, claim.backlog.batch * 2)), delivered=ids)
        verdict = after_failure(
            claim.backlog,
            failure,
            len(turns),
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
        async def write() -> None:
            if await self._database.write(partial(outbox.settle, held=claim, result=result)):
                self.counts.delivered += len(result.delivered)
                self.counts.dead += len(result.dead)
            else:
                self.counts.lost_leases += 1

        # Shielded: the sink has the turns by now, and without a settlement they are delivered again.
        writing = asyncio.ensure_future(write())
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing}, timeout=_CLOSE_S)
            raise

    async def _erase(self, erasure: Erasure) -> None:
        try:
            async with asyncio.timeout(self._policy.timeout_s):
                await self._sink.erase(erasure.principal, erasure.session_id)
        except (SinkError, TimeoutError) as error:
            failure = error.failure if isinstance(error, SinkError) else Failure("no answer in time")
            self._note(Failure(failure.reason, counts=failure.permanent, retry_after_s=failure.retry_after_s))
            wait_s = max(backoff_s(erasure.failures + 1), failure.retry_after_s or 0)
            due_us = to_us(self._clock() + wait_s)
            later = partial(outbox.postpone_erasure, erasure=erasure, due_at_us=due_us, reason=failure.reason)
            await self._database.write(later)
            return
        await self._database.write(partial(outbox.finish_erasure, erasure=erasure))
        self.counts.erased += 1

    async def _sleep(self) -> None:
        """Sleeps until something is due: a nudge, the poll, or the end of the limiter's pause."""
        pause_s = self.limiter.resume_at_s - self._clock()
        if pause_s > 0:
            await asyncio.sleep(min(pause_s, _LONGEST_POLL_S))  # new turns must not hurry a sink that is unavailable
            return
        try:
            # The jitter keeps replicas from polling in step.
            async with asyncio.timeout(self._policy.poll_s * random.uniform(0.75, 1.25)):  # noqa: S311  # not a secret
                await self._wake.wait()
        except TimeoutError:
            return


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to the session after a failure: whether its oldest turn is dead, and when it is due again."""

    dead: bool
    due_in_s: float
    backlog: Backlog


def after_failure(
    backlog: Backlog,
    failure: Failure,
    delivered_together: int,
    *,
    now_us: int,
    max_attempts: int,
    max_age_s: float,
    jitter: Callable[[], float] = random.random,
) -> Verdict:
    """Decides after `delivered_together` turns failed at once.

    A failure that one turn may have caused is tried again with fewer turns, down to one: only the poisoned turn dies.
    It dies for a permanent failure, for too many that count, or when the session has been failing for too long.
    """
    alone = delivered_together <= 1
    since_us = backlog.failing_since_us if backlog.failing_since_us is not None else now_us
    if failure.permanent and not alone:
        return Verdict(False, 0, replace(backlog, batch=max(1, delivered_together // 4)))
    attempts = backlog.attempts + failure.counts
    too_old = now_us - since_us > max_age_s * 1_000_000
    if alone and (failure.permanent or attempts >= max_attempts or too_old):
        return Verdict(True, 0, Backlog(batch=backlog.batch))
    failures = backlog.failures + 1
    fewer = failure.counts or too_old
    wait_s = max(backoff_s(failures, jitter=jitter), failure.retry_after_s or 0)
    batch = max(1, delivered_together // 2) if fewer else backlog.batch
    return Verdict(False, wait_s, Backlog(attempts, failures, since_us, batch))


@dataclass(frozen=True, slots=True)
class ConcurrencyLimiter:
    """How many deliveries a process runs at once, and when the next may begin: additive increase, halved on failure."""

    limit: int = 1
    failures: int = 0
    resume_at_s: float = 0

    def succeeded(self, most: int) -> "ConcurrencyLimiter":
        """After a success: one more at once, up to `most`."""
        return ConcurrencyLimiter(min(most, self.limit + 1))

    def failed(
        self, failure: Failure, now_s: float, *, jitter: Callable[[], float] = random.random
    ) -> "ConcurrencyLimiter":
        """After a failure: half as many at once, and a pause while the sink is unavailable (`Retry-After` at least).

        A failure that a turn may have caused makes no pause until it comes `UNAVAILABLE_AFTER` times in a row.
        """
        if failure.permanent:
            return self
        failures = self.failures + 1
        limit = max(1, self.limit // 2)
        if failure.counts and failures < UNAVAILABLE_AFTER and failure.retry_after_s is None:
            return ConcurrencyLimiter(limit, failures, self.resume_at_s)
        pause_s = max(min(PAUSE_LAST_S, backoff_s(failures, jitter=jitter)), failure.retry_after_s or 0)
        return ConcurrencyLimiter(limit, failures, max(self.resume_at_s, now_s + pause_s))


@dataclass(frozen=True, slots=True)
class Ready:
    """The first `count` queued turns may go; the next must wait until `wait_until_us`, if anything waits."""

    count: int
    wait_until_us: int | None = None


def ready(
    queued: Sequence[Position], arrived_us: Sequence[int], last: Position | None, *, now_us: int, gap_us: int
) -> Ready:
    """Decides how many of `queued` (in order) may be delivered.

    `last` is the newest turn already settled. A turn that leaves a gap in the sequence behind the one before it (or
    that begins a connection beyond sequence 1) waits until `gap_us` after its arrival for the missing one. A turn
    without a sequence never waits.
    """
    before = last
    for index, (position, arrival_us) in enumerate(zip(queued, arrived_us, strict=True)):
        if _leaves_gap(before, position) and now_us < arrival_us + gap_us:
            return Ready(index, arrival_us + gap_us)
        before = position if before is None or position > before else before
    return Ready(len(queued))


def _leaves_gap(before: Position | None, position: Position) -> bool:
    if position.place == LAST_PLACE:
        return False
    if before is None or before.epoch < position.epoch:
        return position.place > 1  # some clients count from 0, others from 1
    if before.epoch > position.epoch or before.place == LAST_PLACE:
        return False
    return position.place > before.place + 1
