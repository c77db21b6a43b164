"""Rates, on a clock that the test turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from token_broker.limits import RateLimit, too_many_requests


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_burst_of_the_whole_rate_passes_and_the_next_one_waits(clock: Clock) -> None:
    rate = RateLimit(60, clock=clock)
    assert [rate.take("a") for _ in range(60)] == [None] * 60
    assert rate.take("a") == pytest.approx(1.0)  # 60 s / 60


def test_after_the_burst_requests_pass_at_the_rate(clock: Clock) -> None:
    rate = RateLimit(6, clock=clock)
    for _ in range(6):
        rate.take("a")
    for _ in range(10):
        clock.now_s += 9.9
        assert rate.take("a") == pytest.approx(0.1)  # a place every 60 s / 6 = 10 s
        clock.now_s += 0.1
        assert rate.take("a") is None


def test_one_keys_flood_costs_another_nothing(clock: Clock) -> None:
    rate = RateLimit(2, clock=clock)
    for _ in range(1000):
        rate.take("flood")
    assert rate.take("other") is None


def test_refused_requests_do_not_lengthen_the_wait(clock: Clock) -> None:
    rate = RateLimit(1, clock=clock)
    rate.take("a")
    waits = [rate.take("a") for _ in range(100)]
    assert waits == [pytest.approx(60)] * 100


def test_nought_is_off_and_remembers_nobody(clock: Clock) -> None:
    rate = RateLimit(0, clock=clock)
    assert all(rate.take("a") is None for _ in range(1000))
    assert len(rate) == 0


def test_keys_are_forgotten_when_their_time_has_come_and_never_outgrow_the_limit(clock: Clock) -> None:
    rate = RateLimit(60, clock=clock, max_keys=100)
    for number in range(1000):
        rate.take(f"k{number}")
        assert len(rate) <= 100
    clock.now_s += 61
    rate.take("later")
    assert len(rate) == 1


@given(steps=st.lists(st.floats(0, 30), min_size=1, max_size=200), per_minute=st.integers(1, 120))
def test_in_no_minute_do_more_than_twice_the_rate_pass(steps: list[float], per_minute: int) -> None:
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


@pytest.mark.parametrize(("wait_s", "retry_after"), [(0.2, "1"), (12.0, "12"), (12.1, "13")])
def test_a_refusal_says_in_whole_seconds_when_to_come_again(wait_s: float, retry_after: str) -> None:
    problem = too_many_requests(wait_s)
    assert (problem.status, problem.headers["Retry-After"]) == (429, retry_after)
