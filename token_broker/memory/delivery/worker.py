"""The worker that delivers stored turns to one sink, in every replica: claims, delivers in order, settles.

Each sink has a worker of its own, with its own limits, pauses and dead letters: a sink that is down holds up no other.
Sessions run side by side, as many as the sink bears; each session has one call at a time. A claim's result is written
even when the worker is told to stop, so that a shutdown repeats nothing.

The decisions stand below the worker, as pure functions: which turns may go (`ready`, `fitting`), when a session is
tried again and when a turn is dead (`after_failure`), and how many deliveries run at once (`ConcurrencyLimiter`).
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from token_broker.memory.drivers.database import Database
from token_broker.memory.store import outbox
from token_broker.memory.store.outbox import Claim, Settlement
from token_broker.memory.store_errors import StoreError
from token_broker.memory.types import (
    LAST_PLACE,
    Backlog,
    DeliveryBatch,
    Failure,
    Position,
    Sink,
    SinkErasure,
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
    "NextTry",
    "Ready",
    "after_failure",
    "fitting",
    "ready",
]

log = structlog.get_logger(__name__)

# A claim outlasts the delivery, the settlement and a slow store: a second claimant would deliver the turns again.
_LEASE_TIMEOUTS = 3
_LONGEST_POLL_S = 30.0
_CLOSE_S = 5.0
PAUSE_LAST_S = 30.0
_SHARED_PAUSE_S = 2.0  # a pause that the sink asked for is written down, for other replicas, if it is longer
_TASK_POLL_S = 2.0
_TASK_POLL_LAST_S = 60.0
_TASK_LASTS_S = 3600.0

# One poisoned turn also fails with an answer. Only so many failures in a row, of any sessions, are the sink's own.
UNAVAILABLE_AFTER = 3
_TURN_BYTES = 400  # of a turn beside its content, as JSON: keys, ids, times
_KEPT_TRIES = 3  # of a batch that is repeated as it is, before a smaller one is tried


@dataclass(frozen=True, slots=True)
class DeliveryPolicy:
    """The limits of delivery; times are seconds.

    `backlog_per_s` is of deliveries that waited until the sink recovered, or this process began.
    """

    timeout_s: float = 10
    concurrency: int = 8
    max_attempts: int = 20
    max_age_s: float = 7 * 86_400
    gap_s: float = 10
    poll_s: float = 1
    backlog_per_s: float | None = None

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
    dropped_notices: int = 0


class DeliveryWorker:
    """Runs until it is cancelled; `nudge` says that there is something new."""

    def __init__(
        self, database: Database, sink: Sink, policy: DeliveryPolicy, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self.sink = sink
        self._policy = policy
        self._clock = clock
        self._wake = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._unreachable = False
        self._recovered_at_us = to_us(clock())
        self._next_backlog_at_s = 0.0
        self.limiter = ConcurrencyLimiter()
        self.counts = DeliveryCounts()
        self.last_failure: str | None = None

    def nudge(self) -> None:
        """Looks at the outbox soon."""
        self._wake.set()

    @property
    def pause_s(self) -> float:
        """How long the sink is left alone from now on."""
        return max(0.0, self.limiter.resume_at_s - self._clock())

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
                        log.warning("outbox_unreachable", sink=self.sink.name, reason=str(error))
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
        sink = self.sink.name
        started = await self.erase_due()
        buckets = await self._due_buckets(to_us(now_s)) if started < free else []
        random.shuffle(buckets)  # replicas that began with the same bucket would wait for each other's locks
        for bucket in buckets:  # a transaction each: a claim locks its rows until its transaction ends
            now_us = to_us(self._clock())
            work = partial(
                outbox.claim,
                sink=sink,
                bucket=bucket,
                limit=free - started,
                now_us=now_us,
                lease_until_us=now_us + to_us(self._policy.lease_s),
                choose=partial(self._choose, now_us=now_us),
                keeps_batches=self.sink.keeps_batches,
                takes_notices=self.sink.takes_notices,
            )
            claims = await self._database.write(work)
            for held in claims:
                self._start(self._deliver(held))
            started += len(claims)
            if started >= free:
                break
        return started

    async def erase_due(self) -> int:
        """Claims an erasure that is due, unless the sink is to be left alone, and starts it; how many it started."""
        now_s = self._clock()
        if now_s < self.limiter.resume_at_s:
            return 0
        claim = partial(
            outbox.claim_erasures,
            sink=self.sink.name,
            limit=1,
            now_us=to_us(now_s),
            lease_until_us=to_us(now_s + self._policy.lease_s),
        )
        erasures = await self._database.write(claim)
        for erasure in erasures:
            self._start(self._erase(erasure))
        return len(erasures)

    async def _due_buckets(self, now_us: int) -> list[int]:
        """The buckets in which sessions wait; none while any replica has found that the sink needs a pause."""
        sink = self.sink.name
        buckets = await self._database.read(partial(outbox.due_buckets, sink=sink, now_us=now_us))
        if not buckets:
            return []
        rests_until_us = await self._database.read(partial(outbox.rests_until, sink=sink))
        if rests_until_us <= now_us:
            return buckets
        self.limiter = replace(self.limiter, resume_at_s=max(self.limiter.resume_at_s, rests_until_us / 1_000_000))
        return []

    def _choose(self, queued: Sequence[StoredTurn], last: Position | None, backlog: Backlog, *, now_us: int) -> int:
        can_go = self._ready(queued, last, now_us).count
        return fitting(queued[: min(can_go, backlog.batch, self.sink.max_turns)], self.sink.max_bytes)

    def _ready(self, queued: Sequence[StoredTurn], last: Position | None, now_us: int) -> "Ready":
        positions, arrived = [turn.position for turn in queued], [turn.arrived_us for turn in queued]
        return ready(positions, arrived, last, now_us=now_us, gap_us=to_us(self._policy.gap_s))

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
        if not claim.going and claim.notice is None:
            now_us = to_us(self._clock())
            can_go = self._ready(claim.turns, claim.last_settled, now_us)
            due_us = can_go.wait_until_us or now_us
            await self._settle(claim, Settlement(due_us, claim.backlog, uncertain=claim.uncertain))
            return
        if claim.task is None:
            await self._wait_for_backlog(claim)
        failure: Failure | None = None
        task: str | None = None
        try:
            async with asyncio.timeout(self._policy.timeout_s):
                task = await self._send(claim)
        except SinkError as error:
            failure = error.failure
        except TimeoutError:
            failure = Failure("no answer in time", uncertain=True)
        except Exception as error:  # noqa: BLE001  # a fault in a sink must not end the worker; the turns stay
            log.error("sink_broke", sink=self.sink.name, error=type(error).__name__)
            failure = Failure(f"the sink broke ({type(error).__name__})", counts=True, uncertain=True)
        await self._note(failure)
        await self._settle(claim, self._settlement(claim, failure, task))

    async def _send(self, claim: Claim) -> str | None:
        """Delivers what is claimed, or asks for the task that it became; the task, while it runs."""
        if claim.notice is not None:
            await self.sink.tell(claim.notice)
            return None
        if claim.task is not None:
            return None if await self.sink.is_done(claim.task) else claim.task
        batch = DeliveryBatch(
            session_id=claim.session_id,
            principal=claim.principal,
            user_id=claim.user_id,
            turns=claim.going,
            uncertain=claim.uncertain,
            agent_id=claim.agent_id,
            missing=claim.missing,
            generation=claim.generation,
        )
        return await self.sink.deliver(batch)

    async def _wait_for_backlog(self, claim: Claim) -> None:
        """Spaces out what had to wait until the sink was there again: it must not be overrun as it recovers."""
        oldest_us = claim.going[0].arrived_us if claim.going else 0
        if self._policy.backlog_per_s is None or oldest_us > self._recovered_at_us:
            return
        now_s = asyncio.get_running_loop().time()
        at_s = max(now_s, self._next_backlog_at_s)
        self._next_backlog_at_s = at_s + 1 / self._policy.backlog_per_s
        await asyncio.sleep(at_s - now_s)

    async def _note(self, failure: Failure | None) -> None:
        if failure is None:
            if self.limiter.failures:
                self._recovered_at_us = to_us(self._clock())
            self.limiter = self.limiter.succeeded(self._policy.concurrency)
            return
        self.counts.failures += 1
        self.last_failure = failure.reason
        self.limiter = self.limiter.failed(failure, self._clock())
        if (failure.retry_after_s or 0) > _SHARED_PAUSE_S:
            until_us = to_us(self._clock() + (failure.retry_after_s or 0))
            try:
                await self._database.write(partial(outbox.rest_sink, sink=self.sink.name, until_us=until_us))
            except StoreError as error:  # this process rests all the same
                log.warning("sink_rest_not_shared", sink=self.sink.name, reason=str(error))

    def _settlement(self, claim: Claim, failure: Failure | None, task: str | None) -> Settlement:
        now_us = to_us(self._clock())
        ids = [turn.turn_id for turn in claim.going]
        backlog = claim.backlog
        if failure is None and task is not None:
            asked = backlog.failures + 1 if claim.task else 1
            since_us = backlog.failing_since_us if claim.task and backlog.failing_since_us else now_us
            wait_s = min(_TASK_POLL_LAST_S, _TASK_POLL_S * 1.5 ** min(asked - 1, 20))
            if now_us - since_us < to_us(_TASK_LASTS_S):
                waiting = replace(backlog, failures=asked, failing_since_us=since_us)
                return Settlement(now_us + to_us(wait_s), waiting, task=task, keeps=True)
            failure = Failure(f"{self.sink.name}: a task does not end", counts=True, uncertain=True)
        if claim.task is not None:
            backlog = replace(backlog, failures=backlog.attempts)  # while a task runs, failures count the questions
        if failure is None:
            batch = min(self.sink.max_turns, backlog.batch * 2)
            # The sink may also have the later turns of a larger batch, to which no answer came.
            uncertain = claim.uncertain and backlog.batch < self.sink.max_turns
            return Settlement(now_us, Backlog(batch=batch), delivered=ids, uncertain=uncertain, noticed=True)
        verdict = after_failure(
            backlog,
            failure,
            len(ids),
            now_us=now_us,
            max_attempts=self._policy.max_attempts,
            max_age_s=self._policy.max_age_s,
            keeps_batches=self.sink.keeps_batches,
        )
        if verdict.dead and claim.notice is not None:
            self.counts.dropped_notices += 1
            log.error("notice_dropped", sink=self.sink.name, kind=claim.notice.kind, reason=failure.reason)
        return Settlement(
            now_us + to_us(verdict.due_in_s),
            verdict.backlog,
            dead=ids[:1] if verdict.dead else (),
            reason=failure.reason,
            uncertain=failure.uncertain or claim.uncertain,
            keeps=verdict.keeps,
            # Nobody knows how a task ended that could not be asked for.
            task=claim.task if not failure.counts and not failure.permanent else None,
            task_failed=claim.task is not None and (failure.counts or failure.permanent),
            noticed=verdict.dead,
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

    async def _erase(self, erasure: SinkErasure) -> None:
        task: str | None = None
        failure: Failure | None = None
        try:
            async with asyncio.timeout(self._policy.timeout_s):
                if erasure.task is None:
                    task = await self.sink.erase(erasure)
                else:
                    task = None if await self.sink.is_done(erasure.task) else erasure.task
        except (SinkError, TimeoutError) as error:
            failure = error.failure if isinstance(error, SinkError) else Failure("no answer in time")
        if failure is None and task is None:
            await self._database.write(partial(outbox.finish_erasure, erasure=erasure))
            self.counts.erased += 1
            return
        if failure is None:
            wait_s = _TASK_POLL_S
        else:
            await self._note(replace(failure, counts=failure.permanent or failure.counts, permanent=False))
            wait_s = max(backoff_s(erasure.failures + 1), failure.retry_after_s or 0)
            task = erasure.task if not failure.counts and not failure.permanent else None
        due_us, reason = to_us(self._clock() + wait_s), failure.reason if failure else None
        later = partial(outbox.postpone_erasure, erasure=erasure, due_at_us=due_us, reason=reason, task=task)
        await self._database.write(later)

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
class NextTry:
    """What happens to the session after a failure: whether its oldest turn is dead, and when it is due again.

    With `keeps` the same turns are delivered again, as they were.
    """

    dead: bool
    due_in_s: float
    backlog: Backlog
    keeps: bool = False


def after_failure(
    backlog: Backlog,
    failure: Failure,
    delivered_together: int,
    *,
    now_us: int,
    max_attempts: int,
    max_age_s: float,
    keeps_batches: bool = False,
    jitter: Callable[[], float] = random.random,
) -> NextTry:
    """Decides after `delivered_together` turns failed at once.

    A failure that one turn may have caused is tried again with fewer turns, down to one: only the poisoned turn dies.
    It dies for a permanent failure, for too many that count, or when the session has been failing for too long.

    A sink that `keeps_batches` gets the same turns a few times first, unless it refused them: it may have them already,
    and knows a repetition only as a whole.
    """
    alone = delivered_together <= 1
    since_us = backlog.failing_since_us if backlog.failing_since_us is not None else now_us
    if failure.permanent and not alone:
        return NextTry(False, 0, replace(backlog, batch=max(1, delivered_together // 4)))
    attempts = backlog.attempts + failure.counts
    too_old = now_us - since_us > max_age_s * 1_000_000
    if alone and (failure.permanent or attempts >= max_attempts or too_old):
        return NextTry(True, 0, Backlog(batch=backlog.batch))
    failures = backlog.failures + 1
    fewer = failure.counts or too_old
    keeps = keeps_batches and not too_old and not failure.refused and (not failure.counts or attempts < _KEPT_TRIES)
    wait_s = max(backoff_s(failures, jitter=jitter), failure.retry_after_s or 0)
    if failure.refused and not alone:
        wait_s = failure.retry_after_s or 0
    batch = max(1, delivered_together // 2) if fewer and not keeps else backlog.batch
    return NextTry(False, wait_s, Backlog(attempts, failures, since_us, batch), keeps)


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
        if failure.permanent or failure.refused:
            return self
        failures = self.failures + 1
        limit = max(1, self.limit // 2)
        if failure.counts and failures < UNAVAILABLE_AFTER and failure.retry_after_s is None:
            return ConcurrencyLimiter(limit, failures, self.resume_at_s)
        pause_s = max(min(PAUSE_LAST_S, backoff_s(failures, jitter=jitter)), failure.retry_after_s or 0)
        return ConcurrencyLimiter(limit, failures, max(self.resume_at_s, now_s + pause_s))


def fitting(turns: Sequence[StoredTurn], max_bytes: int | None) -> int:
    """How many of the first turns have at most `max_bytes` of content together; one at least, where there is one."""
    if max_bytes is None:
        return len(turns)
    total, count = 0, 0
    for turn in turns:
        total += len(json.dumps(turn.content, ensure_ascii=False).encode()) + _TURN_BYTES
        if count and total > max_bytes:
            break
        count += 1
    return count


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
