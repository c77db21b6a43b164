"""How delivery answers to failure: when a session comes again, when a turn is dead, how hard the sink is pressed.

Pure decisions, acted upon in `delivery.py`.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

__all__ = ["FULL_BATCH", "Backlog", "ConcurrencyLimiter", "Failure", "Verdict", "after_failure", "backoff_s"]

FULL_BATCH = 30  # messages a call, at most (docs/azure.md §11)
BACKOFF_FIRST_S = 1.0
BACKOFF_LAST_S = 300.0
PAUSE_LAST_S = 30.0
ILL_AFTER = 3  # so many failures on end, whoever's turns they were, are the sink's own


@dataclass(frozen=True, slots=True)
class Failure:
    """How a delivery failed.

    `permanent`: these turns, as they are, will never be taken. `counts`: the sink spoke about this delivery (a 500, a
    malformed answer), so the oldest turn may be its cause; else the sink is ill, whatever it is given.
    `uncertain`: it may have been stored all the same.
    """

    reason: str
    permanent: bool = False
    counts: bool = False
    uncertain: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is remembered of a session's failures."""

    attempts: int = 0
    failures: int = 0
    failing_since_us: int | None = None
    batch: int = FULL_BATCH


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the session: its oldest turn dead or not, and when it is due again."""

    dead: bool
    due_in_s: float
    backlog: Backlog


def backoff_s(failures: int, *, jitter: Callable[[], float] = random.random) -> float:
    """1 s doubled a failure up to 5 min, of which a random half is taken off, so that sessions don't come in step."""
    whole = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 30))
    return whole * (0.5 + jitter() / 2)


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

    What may be one turn's fault is tried again with fewer, down to one: so only the poisoned turn dies. It dies for a
    permanent failure, for too many that count, or when the session has been failing for too long.
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
    """How many deliveries a process keeps up at once, and when the next may begin: one more at a time, halved down."""

    limit: int = 1
    failures: int = 0
    resume_at_s: float = 0

    def succeeded(self, most: int) -> "ConcurrencyLimiter":
        """The sink took something: one more at once."""
        return ConcurrencyLimiter(min(most, self.limit + 1))

    def failed(
        self, failure: Failure, now_s: float, *, jitter: Callable[[], float] = random.random
    ) -> "ConcurrencyLimiter":
        """Half as many at once; and a pause where the sink is ill, with `Retry-After` at least that long.

        A failure that may be some turn's fault is no sign of illness until it comes `ILL_AFTER` times on end.
        """
        if failure.permanent:
            return self
        failures = self.failures + 1
        limit = max(1, self.limit // 2)
        if failure.counts and failures < ILL_AFTER and failure.retry_after_s is None:
            return ConcurrencyLimiter(limit, failures, self.resume_at_s)
        pause_s = max(min(PAUSE_LAST_S, backoff_s(failures, jitter=jitter)), failure.retry_after_s or 0)
        return ConcurrencyLimiter(limit, failures, max(self.resume_at_s, now_s + pause_s))
