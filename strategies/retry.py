"""Repeats transient failures, bounded by attempts and by time. The only module that uses tenacity."""

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
    """`attempts` in all, each of at most `attempt_timeout_s`.

    Between them is Azure's `Retry-After`, or a wait with full jitter whose bound doubles from `backoff_s` to
    `backoff_max_s`. Tests set `backoff_s=0`, so that they do not wait.
    """

    attempts: int = 2
    attempt_timeout_s: float = 2.5
    backoff_s: float = 0.1
    backoff_max_s: float = 1.0


@dataclass(slots=True)
class Tries:
    """Counts the attempts. The caller holds it, because a cancelled `retry` returns nothing."""

    count: int = 0


async def retry(call: Callable[[float], Awaitable[T]], *, policy: RetryPolicy, deadline_s: float, tries: Tries) -> T:
    """Awaits `call(timeout_s)` until it succeeds, fails for good, or `deadline_s` (monotonic) leaves no time for more.

    Only transient failures are repeated, except timeouts and missing credentials: a timeout has used the time up, and
    the credential was asked for a moment ago. A `Retry-After` beyond the deadline ends it at once. Raises the error of
    the last attempt.
    """

    async def attempt() -> T:
        tries.count += 1
        timeout_s = min(policy.attempt_timeout_s, deadline_s - time.monotonic())
        if timeout_s <= 0:
            raise TimedOutError("no time was left for it")
        return await call(timeout_s)

    # The first attempt runs without tenacity: nearly every call needs no second one, and setting tenacity up costs as
    # much CPU as the mint.
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
