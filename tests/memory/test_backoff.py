"""Backoff, dead letters and pressure, as decisions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_broker.memory.delivery.worker import UNAVAILABLE_AFTER, ConcurrencyLimiter, NextTry, after_failure
from token_broker.memory.types import FULL_BATCH, Backlog, Failure, backoff_s

NOW_US = 50_000_000_000_000
ILL = Failure("down")
COUNTS = Failure("500", counts=True)
PERMANENT = Failure("400", permanent=True)


def decide(failure: Failure, together: int = 1, backlog: Backlog | None = None) -> NextTry:
    return after_failure(
        backlog or Backlog(),
        failure,
        together,
        now_us=NOW_US,
        max_attempts=3,
        max_age_s=3600,
        jitter=lambda: 1.0,
    )


@pytest.mark.parametrize(("failures", "wait_s"), [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (1000, 300)])
def test_backoff_doubles_up_to_five_minutes(failures: int, wait_s: float) -> None:
    assert backoff_s(failures, jitter=lambda: 1.0) == wait_s
    assert backoff_s(failures, jitter=lambda: 0.0) == wait_s / 2


def test_unavailable_sink_costs_no_attempt() -> None:
    verdict = decide(ILL, 30)
    assert verdict == NextTry(False, 1, Backlog(0, 1, NOW_US, FULL_BATCH))


def test_counted_failure_halves_batch() -> None:
    assert decide(COUNTS, 30) == NextTry(False, 1, Backlog(1, 1, NOW_US, 15))


def test_refused_batch_is_retried_smaller() -> None:
    assert decide(PERMANENT, 30) == NextTry(False, 0, Backlog(batch=7))
    assert decide(PERMANENT, 7).backlog.batch == 1


def test_turn_refused_alone_is_dead() -> None:
    assert decide(PERMANENT, 1).dead


def test_turn_is_dead_after_max_attempts() -> None:
    assert not decide(COUNTS, 1, Backlog(attempts=1)).dead
    assert decide(COUNTS, 1, Backlog(attempts=2)).dead
    assert not decide(COUNTS, 2, Backlog(attempts=2)).dead  # which of the two it is must show first


def test_turns_wait_until_max_age() -> None:
    day_ago_us, just_now_us = NOW_US - 86_400_000_000, NOW_US - 60_000_000
    assert not decide(ILL, 1, Backlog(0, 500, just_now_us)).dead
    assert decide(ILL, 1, Backlog(0, 500, day_ago_us)).dead


def test_retry_after_is_minimum_wait() -> None:
    assert decide(Failure("429", retry_after_s=77)).due_in_s == 77
    assert decide(Failure("429", retry_after_s=0.1)).due_in_s == 1


@given(batch=st.integers(1, FULL_BATCH), failure=st.sampled_from([PERMANENT, COUNTS]))
def test_poisoned_turn_is_soon_isolated(batch: int, failure: Failure) -> None:
    backlog, calls = Backlog(batch=batch), 0
    while not (verdict := decide(failure, backlog.batch, backlog)).dead:
        assert verdict.backlog.batch <= backlog.batch
        backlog, calls = verdict.backlog, calls + 1
        assert calls <= 8
    assert backlog.batch == 1


def test_limiter_backs_off_from_failing_sink() -> None:
    limiter = ConcurrencyLimiter(limit=8).failed(ILL, 100, jitter=lambda: 1.0)
    assert limiter == ConcurrencyLimiter(4, 1, 101)
    assert limiter.failed(Failure("429", retry_after_s=60), 101, jitter=lambda: 1.0) == ConcurrencyLimiter(2, 2, 161)


def test_poisoned_turn_makes_no_pause() -> None:
    limiter = ConcurrencyLimiter(limit=8)
    for _ in range(UNAVAILABLE_AFTER - 1):
        limiter = limiter.failed(COUNTS, 100)
    assert limiter.resume_at_s == 0
    assert limiter.failed(COUNTS, 100).resume_at_s > 100
    assert ConcurrencyLimiter(limit=8).failed(PERMANENT, 100) == ConcurrencyLimiter(limit=8)


def test_limiter_recovers_one_at_a_time() -> None:
    limiter = ConcurrencyLimiter(1, 9, 100)
    for expected in (2, 3, 4, 4):
        limiter = limiter.succeeded(4)
        assert limiter == ConcurrencyLimiter(expected)


@given(st.lists(st.sampled_from([ILL, COUNTS, PERMANENT, None]), max_size=50))
def test_limiter_allows_one_within_pause_limit(events: list[Failure | None]) -> None:
    limiter = ConcurrencyLimiter()
    for event in events:
        limiter = limiter.succeeded(8) if event is None else limiter.failed(event, 1000)
        assert 1 <= limiter.limit <= 8
        assert limiter.resume_at_s <= 1030
