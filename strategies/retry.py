"""Repeats what failed in passing, within attempts *and* time. The one place that knows tenacity."""

import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from strategies.errors import CredentialError, RateLimitedError, TimedOutError, TransientError

__all__ = ["RetryPolicy", "Tries", "retry"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`attempts` in all, each of at most `attempt_timeout_s`; between them a wait with full jitter, from
    `backoff_s` doubling to `backoff_max_s`, or Azure's `Retry-After`. `backoff_s=0` takes waiting out of tests.
    """

    attempts: int = 2
    attempt_timeout_s: float = 2.5
    backoff_s: float = 0.1
    backoff_max_s: float = 1.0


@dataclass(slots=True)
class Tries:
    """How many attempts were made; kept by the caller, since a cancelled retry has no result to say it in."""

    count: int = 0


async def retry(call: Callable[[float], Awaitable[T]], *, policy: RetryPolicy, deadline_s: float, tries: Tries) -> T:
    """`call(timeout_s)` until it succeeds, fails for good, or `deadline_s` (monotonic) leaves no time for more.

    Only transient failures come again, and of those neither a timeout nor a missing credential: one has used the time
    up, the other was asked for a moment ago. A `Retry-After` beyond the deadline ends it at once. Raises what the
    last attempt raised.
    """

    async def attempt() -> T:
        tries.count += 1
        timeout_s = min(policy.attempt_timeout_s, deadline_s - time.monotonic())
        if timeout_s <= 0:
            raise TimedOutError("no time was left for it")
        return await call(timeout_s)

    # The first attempt is made plainly: nearly all need no second, and tenacity's set-up costs as much as the mint.
    try:
        return await attempt()
    except TransientError as error:
        if policy.attempts == 1 or not _is_worth_repeating(error):
            raise
        first: TransientError | None = error

    async def again() -> T:
        nonlocal first
        if (error := first) is not None:
            first = None
            raise error
        return await attempt()

    return await tenacity.AsyncRetrying(
        stop=lambda state: (
            state.attempt_number >= policy.attempts or time.monotonic() + state.upcoming_sleep >= deadline_s
        ),
        wait=lambda state: _wait_s(state, policy),
        retry=tenacity.retry_if_exception(_is_worth_repeating),
        reraise=True,
    )(again)


def _is_worth_repeating(error: BaseException) -> bool:
    return isinstance(error, TransientError) and not isinstance(error, TimedOutError | CredentialError)


def _wait_s(state: tenacity.RetryCallState, policy: RetryPolicy) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, RateLimitedError) and error.retry_after_s is not None:
        return error.retry_after_s
    longest_s = min(policy.backoff_max_s, policy.backoff_s * 2 ** (state.attempt_number - 1))
    return random.uniform(0, longest_s)  # noqa: S311  # jitter, not a secret
