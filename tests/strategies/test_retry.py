"""Retries: bounded by attempts and by time, and obedient to Azure's wish."""

import time
from collections.abc import Awaitable, Callable

import pytest

from strategies.chain import RetryPolicy, Tries, retry
from strategies.errors import (
    CredentialError,
    MalformedError,
    MintError,
    MisconfiguredError,
    PermanentError,
    RateLimitedError,
    RejectedError,
    TimedOutError,
    TransientError,
)  # fmt: skip
from tests.support.machine import retry_if_host_busy

AT_ONCE = RetryPolicy(attempts=3, attempt_timeout_s=1, backoff_s=0)


def failing(*errors: MintError, seen: list[float] | None = None) -> Callable[[float], Awaitable[str]]:
    """Raises these in turn, then answers "minted"; notes the time limits it was given."""
    left = list(errors)

    async def call(timeout_s: float) -> str:
        if seen is not None:
            seen.append(timeout_s)
        if left:
            raise left.pop(0)
        return "minted"

    return call


async def run(
    call: Callable[[float], Awaitable[str]], policy: RetryPolicy = AT_ONCE, within_s: float = 5
) -> tuple[str | MintError, int]:
    tries = Tries()
    try:
        outcome: str | MintError = await retry(call, policy=policy, deadline_s=time.monotonic() + within_s, tries=tries)
    except MintError as error:
        outcome = error
    return outcome, tries.count


async def test_success_is_not_repeated() -> None:
    assert await run(failing()) == ("minted", 1)


@pytest.mark.parametrize(
    "error", [TransientError("503"), RateLimitedError("429"), RateLimitedError("429", retry_after_s=0)]
)
async def test_transient_failure_is_repeated(error: MintError) -> None:
    assert await run(failing(error)) == ("minted", 2)
    assert await run(failing(error, error)) == ("minted", 3)


@pytest.mark.parametrize(
    "error",
    [
        PermanentError("404"),
        MisconfiguredError("401"),
        RejectedError("400"),
        MalformedError("HTML"),
        TimedOutError("silence"),  # the time is used up
        CredentialError("no Entra"),  # was asked for a moment ago
        MintError("unexpected"),
    ],
)
async def test_final_failure_is_not_repeated(error: MintError) -> None:
    assert await run(failing(error)) == (error, 1)
    assert await run(failing(TransientError("503"), error)) == (error, 2)


@pytest.mark.parametrize("attempts", [1, 2, 5])
async def test_attempts_are_limited_and_last_error_raised(attempts: int) -> None:
    errors = [TransientError(str(number)) for number in range(10)]
    outcome, tries = await run(failing(*errors), RetryPolicy(attempts=attempts, backoff_s=0))
    assert (outcome, tries) == (errors[attempts - 1], attempts)


@retry_if_host_busy()
async def test_retry_after_past_deadline_fails_at_once() -> None:
    began_s = time.monotonic()
    error = RateLimitedError("429", retry_after_s=3600)
    assert await run(failing(error)) == (error, 1)
    assert time.monotonic() - began_s < 0.5


async def test_retry_after_before_deadline_is_obeyed() -> None:
    began_s = time.monotonic()
    assert await run(failing(RateLimitedError("429", retry_after_s=0.1))) == ("minted", 2)
    assert time.monotonic() - began_s >= 0.1


async def test_attempt_time_is_limited() -> None:
    seen: list[float] = []
    await run(failing(TransientError("503"), seen=seen), RetryPolicy(attempts=2, attempt_timeout_s=0.2, backoff_s=0))
    await run(failing(seen=seen), RetryPolicy(attempt_timeout_s=9), within_s=0.5)
    assert seen[:2] == [0.2, 0.2]
    assert 0.4 < seen[2] <= 0.5


async def test_no_time_left_makes_no_attempt() -> None:
    seen: list[float] = []
    outcome, _ = await run(failing(seen=seen), within_s=-1)
    assert isinstance(outcome, TimedOutError)
    assert seen == []


async def test_backoff_grows_up_to_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []

    def longest(low: float, high: float) -> float:
        asked.append((low, high))
        return 0.0

    monkeypatch.setattr("random.uniform", longest)
    errors = [TransientError("503")] * 6
    await run(failing(*errors), RetryPolicy(attempts=6, backoff_s=0.1, backoff_max_s=0.5))
    # Full jitter between 0 and 0.1 · 2^n, at most 0.5.
    assert asked[:5] == [(0, 0.1), (0, 0.2), (0, 0.4), (0, 0.5), (0, 0.5)]
