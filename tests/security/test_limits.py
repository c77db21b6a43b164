"""Rates and open talks, on a clock that the test turns."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies.clock import Clock
from token_broker.security.limits import (
    PROMPT_REFUSALS_PER_MINUTE,
    RateLimit,
    RateLimiter,
    SessionLimits,
    too_many_requests,
    too_many_sessions,
)
from token_broker.web.requests import Problem


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_whole_rate_passes_as_burst_then_waits(clock: Clock) -> None:
    rate = RateLimit(60, clock=clock)
    assert [rate.take("a") for _ in range(60)] == [None] * 60
    assert rate.take("a") == pytest.approx(1.0)  # 60 s / 60


def test_burst_then_steady_rate(clock: Clock) -> None:
    rate = RateLimit(6, clock=clock)
    for _ in range(6):
        rate.take("a")
    for _ in range(10):
        clock.now_s += 9.9
        assert rate.take("a") == pytest.approx(0.1)  # a place every 60 s / 6 = 10 s
        clock.now_s += 0.1
        assert rate.take("a") is None


def test_burst_may_be_below_rate(clock: Clock) -> None:
    rate = RateLimit(30, burst=10, clock=clock)
    assert [rate.take("a") for _ in range(10)] == [None] * 10
    assert rate.take("a") == pytest.approx(2.0)  # 60 s / 30
    clock.now_s += 2
    assert [rate.take("a"), rate.take("a")] == [None, pytest.approx(2.0)]
    clock.now_s += 3600
    assert [rate.take("a") is None for _ in range(11)] == [True] * 10 + [False]
    assert (rate.fits(10), rate.fits(11)) == (True, False)


def test_rate_of_one_key_spares_others(clock: Clock) -> None:
    rate = RateLimit(2, clock=clock)
    for _ in range(1000):
        rate.take("flood")
    assert rate.take("other") is None


def test_refusals_do_not_lengthen_the_wait(clock: Clock) -> None:
    rate = RateLimit(1, clock=clock)
    rate.take("a")
    waits = [rate.take("a") for _ in range(100)]
    assert waits == [pytest.approx(60)] * 100


def test_cost_takes_as_many_places(clock: Clock) -> None:
    rate = RateLimit(60, clock=clock)
    assert rate.take("a", 60) is None
    assert rate.take("a", 10) == pytest.approx(10.0)  # a place every 60 s / 60
    clock.now_s += 10
    assert rate.wait_s("a", 10) is None
    assert rate.wait_s("a", 11) == pytest.approx(1.0)
    assert rate.take("a", 10) is None
    assert rate.take("b", 60) is None


def test_cost_over_quota_never_fits(clock: Clock) -> None:
    rate = RateLimit(60, clock=clock)
    assert (rate.fits(60), rate.fits(61)) == (True, False)
    assert RateLimit(0, clock=clock).fits(10**12)


def test_forced_count_waits_a_minute_at_most(clock: Clock) -> None:
    rate = RateLimit(60, clock=clock)
    for _ in range(1000):
        rate.count("a")
    assert rate.wait_s("a") == pytest.approx(1.0)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 30)), max_size=50))
def test_twice_the_quota_a_minute_at_most(asked: list[tuple[int, float]]) -> None:
    """A burst, and as much again while it comes back: what GCRA promises for any costs."""
    clock = Clock()
    rate = RateLimit(50, clock=clock)
    passed: list[tuple[float, int]] = []
    for cost, pause_s in asked:
        clock.now_s += pause_s
        wait_s = rate.take("a", cost)
        if wait_s is not None:
            clock.now_s += wait_s
            assert rate.take("a", cost) is None, "the wait that was told is enough"
        passed.append((clock.now_s, cost))
    for start_s, _ in passed:
        assert sum(cost for at_s, cost in passed if start_s <= at_s < start_s + 60) <= 100


def test_zero_rate_is_off_and_keeps_no_keys(clock: Clock) -> None:
    rate = RateLimit(0, clock=clock)
    assert all(rate.take("a") is None for _ in range(1000))
    assert len(rate) == 0


def test_rate_keys_expire_and_are_bounded(clock: Clock) -> None:
    rate = RateLimit(60, clock=clock, max_keys=100)
    for number in range(1000):
        rate.take(f"k{number}")
        assert len(rate) <= 100
    clock.now_s += 61
    rate.take("later")
    assert len(rate) == 1


@given(steps=st.lists(st.floats(0, 30), min_size=1, max_size=200), per_minute=st.integers(1, 120))
def test_twice_the_rate_a_minute_at_most(steps: list[float], per_minute: int) -> None:
    clock = Clock()
    rate = RateLimit(per_minute, clock=clock)
    passed: list[float] = []
    for step in steps:
        clock.now_s += step / per_minute
        wait_s = rate.take("a")
        if wait_s is None:
            passed.append(clock.now_s)
        else:
            assert 0 < wait_s <= 60 / per_minute + 1e-6
    # A burst of the whole rate, and what comes free within the minute.
    assert all(sum(at - 60 < other <= at for other in passed) <= 2 * per_minute for at in passed)


def test_open_talks_counted_per_key_and_in_all(clock: Clock) -> None:
    limits = SessionLimits(per_key=2, total=3, clock=clock)
    first, second = limits.acquire("a"), limits.acquire("a")
    assert first is not None
    assert second is not None
    assert limits.acquire("a") is None
    assert limits.acquire("b") is not None
    assert limits.acquire("c") is None
    assert limits.active == 3
    first.release()
    assert limits.acquire("c") is not None


def test_place_is_released_once(clock: Clock) -> None:
    limits = SessionLimits(per_key=1, total=0, clock=clock)
    lease = limits.acquire("a")
    assert lease is not None
    with pytest.raises(RuntimeError), lease:
        raise RuntimeError
    lease.release()
    assert limits.active == 0
    assert limits.acquire("a") is not None
    lease.release()
    assert limits.active == 1


def test_kept_place_lasts_until_hang_up_or_expiry(clock: Clock) -> None:
    limits = SessionLimits(per_key=2, total=0, clock=clock)
    for name in ("rtc_1", "rtc_2"):
        lease = limits.acquire("a")
        assert lease is not None
        with lease:
            lease.keep(name, for_s=3600)
    assert limits.active == 2
    assert limits.end("rtc_1")
    assert not limits.end("rtc_1")
    assert limits.active == 1
    clock.now_s += 3600
    assert limits.active == 0
    assert not limits.end("rtc_2")


def test_renewed_keep_lasts_its_own_time(clock: Clock) -> None:
    limits = SessionLimits(per_key=0, total=0, clock=clock)
    for for_s in (10, 100):
        lease = limits.acquire("a")
        assert lease is not None
        lease.keep("call", for_s=for_s)
    clock.now_s += 50
    assert limits.active == 1


def test_zero_limits_allow_any_number_of_talks(clock: Clock) -> None:
    limits = SessionLimits(per_key=0, total=0, clock=clock)
    assert all(limits.acquire("a") is not None for _ in range(5000))


@pytest.mark.parametrize(
    ("make", "retry_after"),
    [
        (lambda: too_many_requests(0.2), "1"),
        (lambda: too_many_requests(12.1), "13"),
        (too_many_sessions, "10"),
    ],
)
def test_refusals_say_when_to_come_again(make: Callable[[], Problem], retry_after: str) -> None:
    problem = make()
    assert (problem.status, problem.headers["Retry-After"]) == (429, retry_after)


# --- refusals


async def refusal(limiter: RateLimiter, key: str) -> Problem:
    with pytest.raises(Problem) as refused:
        await limiter.admit(key)
    return refused.value


async def test_refusals_slow_down_after_a_burst(clock: Clock) -> None:
    limiter = RateLimiter(2, clock=clock, pause_s=0.05)
    loop = asyncio.get_running_loop()
    for _ in range(2):
        await limiter.admit("flood")
    prompt = [asyncio.ensure_future(refusal(limiter, "flood")) for _ in range(PROMPT_REFUSALS_PER_MINUTE)]
    await asyncio.sleep(0)  # one turn of the loop is all that they take
    assert all(task.done() and task.result().status == 429 for task in prompt)
    began_s = loop.time()
    paused = await refusal(limiter, "flood")
    assert loop.time() - began_s >= 0.04
    assert (paused.status, paused.headers["Retry-After"]) == (429, "30")


async def test_slow_refusals_are_per_key(clock: Clock) -> None:
    limiter = RateLimiter(1, clock=clock, pause_s=3600)
    for _ in range(PROMPT_REFUSALS_PER_MINUTE):
        with contextlib.suppress(Problem):
            await limiter.admit("flood")
    await limiter.admit("other")
    async with asyncio.timeout(60):
        assert (await refusal(limiter, "other")).status == 429


async def test_limiter_that_is_off_admits_all() -> None:
    limiter = RateLimiter(0, pause_s=3600)
    async with asyncio.timeout(60):
        for _ in range(1000):
            await limiter.admit("a")
