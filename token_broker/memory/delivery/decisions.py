"""The decisions of delivery, as pure functions: which turns may go, when a session is tried again, when a turn is dead,
and how many deliveries run at once. `worker.py` acts upon them.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from token_broker.memory.types import FULL_BATCH, LAST_PLACE, Backlog, Failure, Position, backoff_s

__all__ = ["FULL_BATCH", "Backlog", "ConcurrencyLimiter", "Ready", "Verdict", "after_failure", "backoff_s", "ready"]

PAUSE_LAST_S = 30.0
# One poisoned turn also fails with an answer. Only so many failures in a row, of any sessions, are the sink's own.
UNAVAILABLE_AFTER = 3


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
